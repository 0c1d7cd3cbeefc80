"""Arrays and a few facts <-> a folder of .npy files whose SHA-256 is checked on load.

Arrays come back memory-mapped and read-only, so processes of one host share them.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.files.atomic import atomic_folder, sha256_file
from sgrec_torchrec.files.sealed_json import Fields, read_sealed, write_sealed

Array = npt.NDArray[Any]


def write_arrays(
    manifest_path: Path, arrays: Mapping[str, Array], facts: Mapping[str, object]
) -> None:
    """Write the manifest's folder, all or none: one file an array, facts, sums.

    Args:
        facts: JSON values, ``format_version`` among them.
    """
    with atomic_folder(manifest_path.parent) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        sums = {name: sha256_file(folder / f"{name}.npy") for name in arrays}
        write_sealed(folder / manifest_path.name, {**facts, "sha256": sums})


def read_arrays(
    manifest_path: Path,
    names: Collection[str],
    fact_kinds: Fields,
    *,
    format_version: int,
    what: str,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The named arrays and facts of what ``write_arrays`` wrote.

    Args:
        fact_kinds: the facts, and their types, as ``read_sealed`` takes them.
        format_version: as ``read_sealed``.
        what: how errors call it, as "the item graph".

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming the file that is damaged or of another format.
    """
    if not manifest_path.is_file():
        raise FileNotFoundError(f"{manifest_path} is missing: build {what} first")
    mend = f"build {what} again"
    manifest = read_sealed(
        manifest_path,
        {"sha256": dict, **fact_kinds},
        format_version=format_version,
        mend=mend,
    )
    sums = manifest["sha256"]
    arrays = {name: _read(manifest_path, name, sums, mend) for name in names}
    return arrays, {name: manifest.get(name) for name in fact_kinds}


def _read(manifest_path: Path, name: str, sums: dict[str, Any], mend: str) -> Array:
    path = manifest_path.parent / f"{name}.npy"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {mend}")
    if sha256_file(path) != sums.get(name):
        raise ValueError(
            f"{path} is damaged (its SHA-256 is not that of {manifest_path.name}): "
            f"{mend}"
        )
    loaded: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded
