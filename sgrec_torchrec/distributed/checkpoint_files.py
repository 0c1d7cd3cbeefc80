"""What a checkpoint folder holds, and how it is trusted: sums first, then metadata.

Turns a folder into a verified manifest and a ``torch.distributed.checkpoint`` reader
that cannot run code from the folder.
"""

import pathlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem as dcp_filesystem
from torch.distributed.checkpoint import metadata as dcp_metadata

from sgrec_torchrec.distributed.launch import all_gather_rows
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.origin import origin
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import DamagedError, read_sealed, write_sealed

FORMAT_VERSION = 2
METADATA = ".metadata"
MAX_NAME_BYTES = 96
DIGEST_BYTES = 32
FOLDER_NAME = re.compile(r"step-(\d{12})")
SHARD = re.compile(r"__(\d+)_")

ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    # The path is a label here, whichever class wrote it.
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    (dcp_filesystem.__name__, "_StorageInfo"): dcp_filesystem._StorageInfo,
} | {
    (dcp_metadata.__name__, name): getattr(dcp_metadata, name)
    for name in (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Content of ``manifest.json``: sha256 per file, beside where it came from."""

    step: int
    sha256: dict[str, str]
    trained_on: dict[str, str] = field(default_factory=dict)
    """Key of each prepared stage; empty where an older version wrote it."""


class SafeReader(dcp_filesystem.FileSystemReader):
    """Reads tensors of a verified folder by metadata that was parsed safely.

    ``tensors`` maps each name to its shape, dtype and pieces.
    """

    def __init__(
        self,
        folder: Path,
        metadata: dcp_metadata.Metadata,
        tensors: dict[str, dcp_metadata.TensorStorageMetadata],
    ) -> None:
        super().__init__(folder)
        self.metadata = metadata
        self.tensors = tensors

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> dcp_metadata.Metadata:
        """The parsed metadata; the file is not opened again."""
        return self.metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Builds the classes of DCP's metadata and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up in the allow-list.

        Raises:
            ValueError: for any other global, before anything of it is imported.
        """
        if (module, name) in ALLOWED_GLOBALS:
            return ALLOWED_GLOBALS[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        raise ValueError(f"it names {module}.{name}, which no checkpoint needs")


def open_reader(folder: Path, manifest: Manifest) -> SafeReader:
    """A reader over a folder whose sums were verified.

    Sums tell damage, not malice: whoever writes the folder can write the sums. So the
    metadata, a pickle, is read with an allow-list, and may point only at whole ranges
    of files that the manifest names.

    Raises:
        ValueError: where the metadata holds or names anything else.
    """
    path = folder / METADATA
    with path.open("rb") as file:
        try:
            parsed = _MetadataUnpickler(file).load()
        except (
            ValueError,
            pickle.UnpicklingError,
            TypeError,
            AttributeError,
            LookupError,
            ImportError,
            EOFError,
        ) as error:
            raise ValueError(
                f"{path}: not the metadata of a checkpoint: {error}"
            ) from (error)
    if not isinstance(parsed, dcp_metadata.Metadata):
        raise ValueError(f"{path}: not the metadata of a checkpoint")
    _check_storage(path, parsed, manifest)
    return SafeReader(folder, parsed, _tensor_entries(path, parsed))


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is not a manifest of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {folder} is no checkpoint, or its saving was cut off"
        )
    value = read_sealed(
        path,
        {"step": int, "sha256": dict, "trained_on": (dict, NoneType)},
        format_version=FORMAT_VERSION,
        mend="use another checkpoint",
    )
    manifest = Manifest(
        step=value["step"],
        sha256=value["sha256"],
        trained_on=value.get("trained_on") or {},
    )
    inside = [name for name in manifest.sha256 if Path(name).name == name]
    if len(inside) != len(manifest.sha256) or METADATA not in inside:
        raise DamagedError(
            f"{path} is damaged: it must name {METADATA} and plain files"
        )
    return manifest


def write_manifest(
    folder: Path,
    step: int,
    sha256: dict[str, str],
    trained_on: Mapping[str, str] | None = None,
) -> None:
    """Write ``manifest.json`` with the sums and where the checkpoint came from."""
    write_sealed(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "step": step,
            "sha256": sha256,
            "trained_on": dict(trained_on or {}),
            "origin": origin(),
        },
    )


def hash_folder(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder that all ranks have just written.

    Each rank reads what it wrote itself, the main rank the rest. Collective.

    Raises:
        FileNotFoundError: on the main rank, where it cannot see another rank's file.
    """
    rank, world_size = _place()
    mine = []
    for path in sorted(folder.iterdir()):
        match = SHARD.match(path.name)
        owner = int(match.group(1)) if match else 0
        if owner % world_size == rank:
            mine.append(path)
    rows = torch.zeros(len(mine), MAX_NAME_BYTES + DIGEST_BYTES, dtype=torch.uint8)
    for row, path in zip(rows, mine, strict=True):
        name = path.name.encode()
        row[: len(name)] = torch.frombuffer(bytearray(name), dtype=torch.uint8)
        digest = bytearray.fromhex(sha256_file(path))
        row[MAX_NAME_BYTES:] = torch.frombuffer(digest, dtype=torch.uint8)
    sha256 = {}
    for row in all_gather_rows(rows).numpy():
        name = row[:MAX_NAME_BYTES].tobytes().rstrip(b"\0").decode()
        sha256[name] = row[MAX_NAME_BYTES:].tobytes().hex()
    absent = [name for name in sha256 if not (folder / name).exists()]
    if rank == 0 and absent:
        raise FileNotFoundError(
            f"{folder / absent[0]} was written on another host: set out_dir to a "
            "folder that all hosts share"
        )
    return sha256


def verify_sums(folder: Path, manifest: Manifest, *, together: bool) -> None:
    """Compare every file with its sum, before anything of it is parsed.

    Args:
        together: the ranks share the reading and all raise alike (collective); else
            this process reads everything.

    Raises:
        ValueError: naming the first file that is missing or differs.
    """
    rank, world_size = _place() if together else (0, 1)
    names = sorted(manifest.sha256)
    first_bad = len(names)
    for index in range(rank, len(names), world_size):
        path = folder / names[index]
        if not path.is_file() or sha256_file(path) != manifest.sha256[names[index]]:
            first_bad = min(first_bad, index)
    if together and world_size > 1:
        shared = torch.tensor([first_bad])
        first_bad = int(all_gather_rows(shared).min())
    if first_bad == len(names):
        return
    path = folder / names[first_bad]
    state = "differs from its sha256" if path.is_file() else "is missing"
    raise DamagedError(f"{path} {state}: the checkpoint is damaged, use an older one")


def checkpoint_folders(folder_root: Path) -> list[Path]:
    """Checkpoints under their final names, whole or not, newest step first."""
    if not folder_root.is_dir():
        return []
    named = [path for path in folder_root.iterdir() if FOLDER_NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: path.name, reverse=True)


def why_not_whole(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where all but its shards is whole.

    Shards, which may be large, must be there; they are hashed when they are loaded.

    Raises:
        OtherVersionError: for one of another format version, which is no damage.
    """
    try:
        sha256 = read_manifest(folder).sha256
        small = {name: sha256[name] for name in sha256 if not SHARD.match(name)}
        verify_sums(folder, Manifest(step=0, sha256=small), together=False)
    except (DamagedError, FileNotFoundError) as error:
        return str(error)
    absent = [name for name in sha256 if not (folder / name).is_file()]
    return f"{folder / absent[0]} is missing" if absent else None


def check_fit(
    path: Path, tensors: Mapping[str, Any], reader: SafeReader, *, whole: bool
) -> None:
    """Raise ValueError where names and shapes of a model and a checkpoint differ.

    Args:
        tensors: of the model.
        whole: nothing saved may be left over.
    """
    saved = reader.tensors
    for key, value in tensors.items():
        if key not in saved:
            raise ValueError(
                f"{path} has no {key}: it is a checkpoint of another model"
            )
        was, now = tuple(saved[key].size), _shape(value)
        if was != now:
            raise ValueError(
                f"{path}: {key} has shape {was} in the checkpoint and {now} in this "
                "model"
            )
    unread = sorted(
        key for key in set(saved) - set(tensors) if whole or key.startswith("model.")
    )
    if unread:
        raise ValueError(
            f"{path} holds {unread[0]}, which this model lacks: it is a checkpoint of "
            "another model"
        )


def _shape(value: Any) -> tuple[int, ...]:
    """Of the whole tensor, where ``value`` is a ShardedTensor."""
    if hasattr(value, "local_shards"):
        return tuple(value.metadata().size)
    return tuple(value.shape)


def _tensor_entries(
    path: Path, parsed: dcp_metadata.Metadata
) -> dict[str, dcp_metadata.TensorStorageMetadata]:
    tensors = {}
    for key, entry in parsed.state_dict_metadata.items():
        if not isinstance(entry, dcp_metadata.TensorStorageMetadata):
            raise ValueError(f"{path}: {key!r} is no tensor; only tensors are read")
        tensors[key] = entry
    return tensors


def _check_storage(
    path: Path, parsed: dcp_metadata.Metadata, manifest: Manifest
) -> None:
    """Every piece lies whole inside a file of the manifest, as it was written."""
    sizes: dict[str, int] = {}
    for index, info in (parsed.storage_data or {}).items():
        name = getattr(info, "relative_path", None)
        if name not in manifest.sha256:
            raise ValueError(f"{path}: {index.fqn!r} lies in {name!r}, not of its own")
        if name not in sizes:
            sizes[name] = (path.parent / name).stat().st_size
        if not 0 <= info.offset <= info.offset + info.length <= sizes[name]:
            raise ValueError(f"{path}: {index.fqn!r} lies outside {name}")
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"{path}: {index.fqn!r} asks for a transformation")


def _place() -> tuple[int, int]:
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
