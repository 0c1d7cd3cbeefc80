"""Fields of a run's settings as options of ``sgrec``, over what the run says itself."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from sgrec_torchrec.config.arguments import override
from sgrec_torchrec.config.runs import STAGES, RunConfig
from sgrec_torchrec.files.run_folder import CONFIG


def option(field: str, words: str, *names: str, least: int | None = None) -> Any:
    """A typer option for a field with its stage; give the argument the default None.

    Args:
        words: what --help says; the field's own default is shown beside them.
        names: the option as it is typed, where that is not the argument's name.
    """
    stage, _, name = field.partition(".")
    default = getattr(STAGES[stage](), name)
    # A switch that is off, and a field that nothing fills, show none.
    shown = True if default is None or default is False else str(default)
    return typer.Option(*names, help=words, min=least, show_default=shown)


def settings_of(
    run_dir: Path, stage: str, assignments: Sequence[str] | None, **given: Any
) -> RunConfig:
    """A run's settings; of one stage ``--set`` goes before them, and options before it.

    Args:
        given: fields of the stage; None leaves the field as it is.

    Raises:
        FileNotFoundError, ValueError: as ``RunConfig.read`` and ``override``, or for
            an assignment to another stage, which would change nothing.
    """
    for assignment in assignments or ():
        if assignment.partition(".")[0] != stage:
            raise ValueError(
                f"--set {assignment!r}: this command takes {stage}.FIELD=VALUE"
            )
    config = override(RunConfig.read(run_dir / CONFIG), list(assignments or ()))
    changed = {name: value for name, value in given.items() if value is not None}
    part: Any = dataclasses.replace(getattr(config, stage), **changed)
    return dataclasses.replace(config, **{stage: part})


def pairs(
    assignments: list[str] | None, form: str = "OURS=THEIRS, as user_id=uid"
) -> dict[str, str]:
    """``["a=b"]`` as a dict.

    Raises:
        ValueError: for a word without =, or a name that is given twice.
    """
    given: dict[str, str] = {}
    for assignment in assignments or []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r}: write {form}")
        if name in given:
            raise ValueError(
                f"{name}={given[name]} and {name}={value}: leave one of them out"
            )
        given[name] = value
    return given
