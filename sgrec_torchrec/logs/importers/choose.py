"""``log.source`` -> the importer of that name, and the canonical folder as a source."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.config.registry import IMPORTERS
from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.canonical_write import refuse_foreign_folder
from sgrec_torchrec.logs.import_report import ImportReport, report_of
from sgrec_torchrec.logs.importers.complete_journey import import_complete_journey
from sgrec_torchrec.logs.importers.locate import resolve_path
from sgrec_torchrec.logs.importers.movielens import import_movielens

Importer = Callable[[str | None, Path], ImportReport]
"""(``log.path``, folder to write) -> what was done; ``write_canonical`` writes it."""


def import_log(config: LogConfig, out_dir: Path) -> ImportReport:
    """Write the log that ``config`` names as a canonical folder under ``out_dir``.

    Call it on one rank. The folder appears whole or not at all.

    Raises:
        ImportError: naming the extra of a data package that is not installed, or the
            package whose importer cannot be loaded.
        FileNotFoundError: for a path that is not there, and how to get the data.
        ValueError: naming file, column, first offending row and mend.
    """
    read: Importer = IMPORTERS.load(config.source)
    return read(config.path, out_dir)


def packaged_movielens(_: str | None, out_dir: Path) -> ImportReport:
    """``import_movielens``, which takes no path."""
    return import_movielens(out_dir)


def packaged_journey(_: str | None, out_dir: Path) -> ImportReport:
    """``import_complete_journey``, which takes no path."""
    return import_complete_journey(out_dir)


def import_canonical(path: str | None, out_dir: Path) -> ImportReport:
    """Verify a canonical folder and link (or, across disks, copy) it to ``out_dir``."""
    source = resolve_path(path, "canonical")
    log = read_canonical(source)
    if source.resolve() != out_dir.resolve():
        refuse_foreign_folder(out_dir)
        with atomic_folder(out_dir) as folder:
            (folder / "interactions").mkdir()
            for name in [*log.manifest["files"], MANIFEST]:
                _link_or_copy(source / name, folder / name)
    return report_of(log.manifest, out_dir)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
