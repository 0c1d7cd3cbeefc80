"""Files whose SHA-256 stands in their folder's manifest: are they as they were written?

What users bring has no such manifest, and a killed process may have written a file that
is not listed yet: both are taken as they are.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import DamagedError, naming, without_seal

SUMS = "sha256"
"""In the manifest: name -> sum."""


def sums_of(paths: Iterable[Path]) -> dict[str, str]:
    """For the manifest of the folder that the files lie in."""
    return {path.name: sha256_file(path) for path in paths}


def check_listed(paths: Iterable[Path], mend: str) -> None:
    """Hash each file that its folder's manifest lists.

    Raises:
        DamagedError: naming a file that differs, or a manifest that is damaged.
    """
    known: dict[Path, dict[str, str]] = {}
    for path in paths:
        folder = path.parent
        if folder not in known:
            known[folder] = listed_sums(folder, mend)
        expected = known[folder].get(path.name)
        if expected is not None and path.is_file() and sha256_file(path) != expected:
            raise DamagedError(f"{path} differs from its sha256 in {MANIFEST}: {mend}")


def listed_sums(folder: Path, mend: str) -> dict[str, str]:
    """Name -> SHA-256; empty where no manifest lists any.

    Raises:
        DamagedError: where the manifest's own seal does not fit.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return {}  # another tool's, or refused by who reads it for its facts
    with naming(path, mend):
        content = without_seal(content)
    sums = content.get(SUMS) if isinstance(content, dict) else None
    return dict(sums) if isinstance(sums, dict) else {}
