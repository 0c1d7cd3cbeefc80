"""What a judge is asked with, by name: opened by a command, or by each worker."""

from dataclasses import dataclass
from pathlib import Path

from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.ask.prompt import PromptSettings
from sgrec_torchrec.judge.backends.open_backend import open_backend
from sgrec_torchrec.judge.judge_files import open_judge
from sgrec_torchrec.judge.judging import Judge
from sgrec_torchrec.judge.learn.user_weights import weigher
from sgrec_torchrec.logs.split import load_split


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a judge is asked; nothing of where its files lie."""

    backend: str
    settings: tuple[tuple[str, str | bool], ...]
    """Of the backend."""
    num_written: int


def read_log(split: Path, settings: PromptSettings) -> CaseReader:
    """The cases of a split log."""
    return CaseReader(load_split(split), settings)


def open_asked(split: Path, folder: Path, asking: Asking) -> Judge:
    """The judge in a folder, its language model loaded.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as ``open_judge`` and
            ``open_backend``, or where it was trained for other questions.
    """
    files = open_judge(folder)
    reader = read_log(split, files.prompt)
    asked = tuple(aspect.name for aspect in reader.aspects)
    if files.aspects != asked:
        raise ValueError(
            f"{folder} judges by {', '.join(files.aspects)}; for the log of {split} "
            f"that is {', '.join(asked)}: train a judge on this run's labels"
        )
    if reader.prompt_version != files.prompt_version:
        raise ValueError(
            f"{folder} was trained on the prompt {files.prompt_version}, this release "
            f"asks {reader.prompt_version}: train the judge again"
        )
    return Judge(
        files=files,
        backend=open_backend(asking.backend, str(files.model), **dict(asking.settings)),
        reader=reader,
        weigh=weigher(files, reader),
        num_written=asking.num_written,
    )
