"""The command line of a run -> its settings: --run NAME --set stage.field=value."""

import argparse
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.config.extras import extra_of

USER_ERRORS = (ValueError, OSError, ImportError)
"""What a user can get wrong; the message says it all."""


def wants_traceback() -> bool:
    """Is ``SGREC_TRACEBACK`` set?"""
    return bool(os.environ.get("SGREC_TRACEBACK"))


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """What a user can get wrong ends with one line and exit code 2.

    ``SGREC_TRACEBACK=1`` shows where it came from instead.
    """
    try:
        yield
    except USER_ERRORS as error:
        if wants_traceback():
            raise
        missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        extra = extra_of(missing)
        hint = f"; pip install 'sgrec_torchrec[{extra}]'" if extra else ""
        print(f"{program}: {error}{hint}", file=sys.stderr)
        raise SystemExit(2) from None


def override(config: RunConfig, assignments: list[str]) -> RunConfig:
    """Apply ``stage.field=value`` assignments.

    Raises:
        ValueError: for an unknown stage or field (with those that exist), or a value
            that does not parse as the field's type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment!r}: write stage.field=value")
        config = _assign(config, path.split("."), text, assignment)
    return config


def _assign(node: typing.Any, path: list[str], text: str, whole: str) -> typing.Any:
    types_of = typing.get_type_hints(type(node))
    if path[0] not in types_of:
        known = ", ".join(sorted(types_of))
        raise ValueError(f"--set {whole!r}: no field {path[0]!r}; there are {known}")
    if len(path) > 1:
        child = getattr(node, path[0])
        if not dataclasses.is_dataclass(child):
            raise ValueError(f"--set {whole!r}: {path[0]} has no fields of its own")
        value = _assign(child, path[1:], text, whole)
    else:
        value = _parse(text, types_of[path[0]], whole)
    return dataclasses.replace(node, **{path[0]: value})


def _parse(text: str, kind: typing.Any, whole: str) -> typing.Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and text.lower() == "none":
        return None
    for option in options:
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option in (int, float, str):
            try:
                return option(text)
            except ValueError:
                continue
    raise ValueError(f"--set {whole!r}: {text!r} is not of type {kind}")


def parse_run(argv: list[str] | None = None) -> tuple[RunConfig, argparse.Namespace]:
    """The command line of ``train.py``: --run NAME --set stage.field=value --resume."""
    parser = run_parser(
        "train.py", "Train and evaluate the generator on an interaction log."
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="config.json of a run, instead of --run: its settings, where it lies now",
    )
    return parse_with(parser, argv)


def settings_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser that takes a run's settings."""
    parser = argparse.ArgumentParser(
        prog=program,
        # A cut-short option would change its meaning with the next option added.
        allow_abbrev=False,
        description=description,
        epilog="Fields of --set: " + "; ".join(describe_fields()),
    )
    parser.add_argument(
        "--run", default="movielens", choices=sorted(RUNS), help="named settings"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.FIELD=VALUE",
        help="override one field; may be repeated",
    )
    parser.add_argument("--name", help="folder of the run below out_dir")
    return parser


def run_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser that takes what every command takes that trains."""
    parser = settings_parser(program, description)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume", action="store_true", help="go on from the newest whole checkpoint"
    )
    begin.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew; what the run's folder holds is moved to NAME.1 first",
    )
    return parser


def parse_with(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[RunConfig, argparse.Namespace]:
    """Parse by what ``run_parser`` made; an error is one line and exit code 2."""
    args = parser.parse_args(argv)
    try:
        config, path = RUNS[args.run], getattr(args, "config", None)
        if path is not None:
            config = RunConfig.read(path).at(path.parent)
        if args.name is not None:
            config = dataclasses.replace(config, name=args.name)
        return override(config, args.set), args
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


def describe_fields() -> list[str]:
    """``stage.field (default)`` for every field that ``--set`` takes."""
    lines = []
    default = RUNS["movielens"]
    for stage in dataclasses.fields(default):
        value = getattr(default, stage.name)
        if not dataclasses.is_dataclass(value):
            lines.append(f"{stage.name} ({value})")
            continue
        for part in dataclasses.fields(value):
            lines.append(f"{stage.name}.{part.name} ({getattr(value, part.name)})")
    return lines
