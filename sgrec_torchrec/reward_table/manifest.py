"""manifest.json of a table: which segments it has, of which files, with which sums.

Its text is the one rendering of its content, sealed by a checksum, so that no bit of it
can flip unseen. It is replaced by a rename: readers see the old or the new table.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import naming, parse_sealed, sealed
from sgrec_torchrec.reward_table.judged_files import Columns

FORMAT_VERSION = 1
MEND = "build the table again"
SEGMENTS = "segments"
_LOCK = ".lock"
_TEMPORARY = ".building-"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One raw array of a segment."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """What one segment holds, and where it comes from."""

    name: str
    files: dict[str, FileFacts]
    num_pairs: int
    num_users: int
    num_items: int
    user_homes: int
    item_homes: int
    item_base: int | None
    """Rows name items by id - item_base; None: by their place among the item ids."""
    pairs_per_user: tuple[int, int]
    """Fewest and most."""
    pairs_per_item: tuple[int, int]
    num_new_users: int
    """Users that no older segment holds."""
    num_new_items: int
    num_replaced_users: int
    """Users whose older pairs are dropped: they were judged at another prefix."""
    judge_versions: tuple[str, ...] = ()
    prompt_versions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    token_cost: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A table: its columns and ranges, and its segments, the oldest first."""

    columns: Columns
    reward_range: tuple[float, float]
    aspect_range: tuple[float, float]
    segments: tuple[SegmentFacts, ...]

    @property
    def num_users(self) -> int:
        """Distinct users of all segments."""
        return sum(segment.num_new_users for segment in self.segments)

    @property
    def num_items(self) -> int:
        """Distinct items of all segments."""
        return sum(segment.num_new_items for segment in self.segments)


def render(manifest: Manifest) -> str:
    """The text of a manifest, checksum included."""
    content = sealed({"format_version": FORMAT_VERSION, **asdict(manifest)})
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the table in ``folder``.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for one that is damaged or of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: name the folder of a reward table, or build one"
        )
    return parse_manifest(path, path.read_bytes())


def parse_manifest(path: Path, text: bytes) -> Manifest:
    """The manifest that ``render`` wrote as ``text``; errors name ``path``.

    Raises:
        ValueError: for any other bytes, or another format version.
    """
    content = parse_sealed(path, text, {}, format_version=FORMAT_VERSION, mend=MEND)
    with naming(path, MEND):
        manifest = _parse(content)
        if render(manifest).encode("utf-8") != text:
            raise ValueError("its checksum does not fit")
    return manifest


def _parse(content: dict[str, Any]) -> Manifest:
    columns = dict(content["columns"])
    columns["aspects"] = tuple(columns["aspects"])
    return Manifest(
        columns=Columns(**columns),
        reward_range=tuple(content["reward_range"]),
        aspect_range=tuple(content["aspect_range"]),
        segments=tuple(map(_parse_segment, content["segments"])),
    )


def _parse_segment(facts: dict[str, Any]) -> SegmentFacts:
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in facts.items()
    }
    plain["files"] = {
        name: FileFacts(**{**file, "shape": tuple(file["shape"])})
        for name, file in facts["files"].items()
    }
    return SegmentFacts(**plain)


@contextmanager
def writing(folder: Path, *, must_exist: bool) -> Iterator[Path]:
    """Hold the table's only writing place; yields a folder for files being built.

    What is left in that folder at the end goes, as does what a killed writer left.

    Raises:
        FileNotFoundError: with ``must_exist``, where there is no table.
        BlockingIOError: where another process writes this table.
        ValueError: for a folder that holds something else.
    """
    if must_exist:
        read_manifest(folder)
    had_folder = folder.exists()
    if had_folder:
        strangers = [one.name for one in folder.iterdir() if not _is_ours(one.name)]
        if strangers:
            raise ValueError(
                f"{folder} holds {strangers[0]!r} and no reward table: choose an empty "
                "or new folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    building = folder / f"{_TEMPORARY}{os.getpid()}"
    try:
        with (folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"{folder} is being written by another process: wait until it ends"
                ) from error
            _sweep(folder)
            building.mkdir()
            try:
                yield building
            finally:
                shutil.rmtree(building, ignore_errors=True)
    finally:
        if not had_folder and not (folder / MANIFEST).is_file():
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)


def publish(
    folder: Path, building: Path, manifest: Manifest, new: SegmentFacts
) -> None:
    """Put the finished segment in its place, then name it in the manifest.

    Args:
        building: the folder with the files of ``new``, the last of ``manifest``.
    """
    target = folder / SEGMENTS / new.name
    target.parent.mkdir(exist_ok=True)
    try:
        os.replace(building, target)
        _sync_folder(target.parent)
        with (
            atomic_file(folder / MANIFEST) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            file.write(render(manifest))
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(folder)
    finally:
        # what the manifest now names stays: the new segment, or those before it
        _sweep(folder)


def _sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def next_name(folder: Path) -> str:
    """A segment name above all that this folder has or names."""
    used = [path.name for path in (folder / SEGMENTS).glob("*")]
    with contextlib.suppress(FileNotFoundError, ValueError):
        used += [segment.name for segment in read_manifest(folder).segments]
    numbers = [int(name) for name in used if name.isdigit()]
    return f"{1 + max(numbers, default=0):06d}"


def _is_ours(name: str) -> bool:
    is_ours = name in (_LOCK, MANIFEST, SEGMENTS) or name.startswith(_TEMPORARY)
    return is_ours or name.startswith(f".{MANIFEST}.")


def _sweep(folder: Path) -> None:
    """Remove what no manifest names; only the holder of the lock may."""
    try:
        named = {segment.name for segment in read_manifest(folder).segments}
    except FileNotFoundError:
        named = set()
    except ValueError:
        return
    left = [one for one in folder.iterdir() if one.name.startswith(_TEMPORARY)]
    for path in (*left, *(folder / SEGMENTS).glob("*")):
        if path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".{MANIFEST}.*.tmp"):
        path.unlink(missing_ok=True)
