"""Arrays and a few facts <-> a folder of .npy files whose SHA-256 is checked on load.

Arrays come back memory-mapped and read-only, so processes of one host share them. One
of them reads every byte, to compare the sums; the others need read none
(``distributed.main_rank.verifies_files``).
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.files.atomic import atomic_folder, sha256_file
from sgrec_torchrec.files.growing_array import file_of, mapped
from sgrec_torchrec.files.sealed_json import Fields, naming, read_sealed, write_sealed

Array = npt.NDArray[Any]


def write_arrays(
    manifest_path: Path, arrays: Mapping[str, Array], facts: Mapping[str, object]
) -> None:
    """Write the manifest's folder, all or none: one file an array, facts, sums.

    Args:
        arrays: one that is mapped from a .npy file as a whole becomes a second name of
            it where it can: that file may go, but not change.
        facts: JSON values, ``format_version`` among them.
    """
    with atomic_folder(manifest_path.parent) as folder:
        for name, array in arrays.items():
            _write(folder / f"{name}.npy", array)
        paths = {name: folder / f"{name}.npy" for name in arrays}
        sums = {name: sha256_file(path) for name, path in paths.items()}
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        content = {**facts, "sha256": sums, "bytes": sizes}
        write_sealed(folder / manifest_path.name, content)


def _write(path: Path, array: Array) -> None:
    """``np.save``; what is mapped from such a file is not read into memory for it."""
    written = file_of(array)
    if written is None:
        np.save(path, array, allow_pickle=False)
        return
    try:
        path.hardlink_to(written)
    except OSError:  # on another disk, or where there are no links
        shutil.copyfile(written, path)


def read_arrays(
    manifest_path: Path,
    names: Collection[str],
    fact_kinds: Fields,
    *,
    format_version: int,
    what: str,
    verify: bool = True,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The named arrays and facts of what ``write_arrays`` wrote.

    Args:
        fact_kinds: the facts, and their types, as ``read_sealed`` takes them.
        format_version: as ``read_sealed``.
        what: how errors call it, as "the item graph".
        verify: compare the files' sums, which reads them whole. False: another process
            of this host does; here sizes alone are compared, where the folder's
            version tells them, and no page of an array is touched.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming the file that is damaged or of another format.
    """
    if not manifest_path.is_file():
        raise FileNotFoundError(f"{manifest_path} is missing: build {what} first")
    mend = f"build {what} again"
    manifest = read_sealed(
        manifest_path,
        {"sha256": dict, "bytes": (dict, NoneType), **fact_kinds},
        format_version=format_version,
        mend=mend,
    )
    sums, sizes = manifest["sha256"], manifest.get("bytes") or {}
    arrays = {}
    for name in names:
        path = manifest_path.parent / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {mend}")
        if verify:
            is_whole, by = sha256_file(path) == sums.get(name), "SHA-256"
        else:
            size = path.stat().st_size
            is_whole, by = size == sizes.get(name, size), "size"
        if not is_whole:
            raise ValueError(
                f"{path} is damaged (its {by} is not that of {manifest_path.name}): "
                f"{mend}"
            )
        with naming(path, mend):
            arrays[name] = mapped(path)
    return arrays, {name: manifest.get(name) for name in fact_kinds}
