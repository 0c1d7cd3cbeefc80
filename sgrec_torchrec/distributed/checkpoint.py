"""Checkpoints that are whole or absent, that reshard, and that run no code on load.

Turns a sharded model, its optimizer and the run's position into a folder
``step-<n>`` and back, on any number of ranks, or into a plain module for serving.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sgrec_torchrec.config import JUDGE_STAGES
from sgrec_torchrec.distributed.checkpoint_files import (
    SafeReader,
    check_fit,
    checkpoint_folders,
    hash_folder,
    open_reader,
    read_manifest,
    verify_sums,
    why_not_whole,
    write_manifest,
)
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.files.atomic import gone_on_error, write_json
from sgrec_torchrec.files.full_disk import failed_write, naming_a_full_disk
from sgrec_torchrec.files.run_folder import CONFIG, STATE

MEND = "restore it from a copy, or start afresh under another --name or by --overwrite"
FREE_FIELDS = (
    *("name", "out_dir", "align", "evaluation", "evidence"),
    *JUDGE_STAGES,
    "pretrain.valid_every_epochs",
    "pretrain.checkpoint_every_steps",
    "pretrain.keep_checkpoints",
    "pretrain.patience",
)
"""Settings (or whole stages) that may differ when a run is resumed."""


def save_checkpoint(
    folder_root: Path,
    step: int,
    dmp: DistributedModelParallel,
    optimizer: KeyedOptimizer,
    extra: Mapping[str, Any],
    config_json: str,
    keep: int,
    trained_on: Mapping[str, str] | None = None,
) -> Path:
    """Write ``folder_root/step-<step>`` and delete all but the newest ``keep``.

    Those of later steps are of an older run: they go, too, once this one is there.
    Everything goes to a hidden folder first; when all ranks have written their
    shards, the main rank adds settings, state and sums and renames it. A process
    killed at any moment leaves the older checkpoints as they were. Collective; every
    rank writes only its own shards, so time and memory fall with their number.

    Args:
        extra: what else a resumption needs: tensors (equal on all ranks) and JSON
            values (those of the main rank are kept; no NaN or infinity).
        trained_on: keys of the prepared stages (``files.stage_keys``).

    Returns:
        The folder.

    Raises:
        OSError: where the folder cannot be written; what was written of it goes.
    """
    final = folder_root / f"step-{step:012d}"
    temporary = folder_root / f".{final.name}.tmp"
    with naming_a_full_disk(final), gone_on_error(temporary):
        if is_main_rank():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        _barrier()
        tensors = _training_tensors(dmp, optimizer)
        plain = {}
        for name, value in extra.items():
            if isinstance(value, Tensor):
                tensors[f"extra.{name}"] = value
            else:
                plain[name] = value
        try:
            with _without_known_advice():
                save(tensors, storage_writer=FileSystemWriter(temporary))
        except CheckpointException as error:
            said = f"cannot write checkpoint {final}: {_cause(error)}"
            raise failed_write(final, error, said) from error
        if is_main_rank():
            write_json(temporary / CONFIG, json.loads(config_json))
            write_json(temporary / STATE, plain)
        _barrier()
        sha256 = hash_folder(temporary)
        if is_main_rank():
            write_manifest(temporary, step, sha256, trained_on)
            _publish(temporary, final)
            _prune(final, keep)
    _barrier()
    return final


def latest_checkpoint(folder_root: Path, below: Path | None = None) -> Path | None:
    """The checkpoint of the highest step that can be read; None where there is none.

    A damaged one is passed over for the next older one. No communication; shards are
    not hashed before ``load_checkpoint``.

    Args:
        below: only those of lower steps than this one.

    Raises:
        ValueError: where there are some and none can be read, or where the newest
            is of another format version. Damage is never a fresh start.
    """
    why = None
    for path in checkpoint_folders(folder_root):
        if below is None or path.name < below.name:
            wrong = why_not_whole(path)
            if wrong is None:
                return path
            why = why or wrong
    if why is None:
        return None
    raise ValueError(
        f"{folder_root} holds no checkpoint that can be read ({why}): {MEND}"
    )


def load_checkpoint(
    path: Path,
    dmp: DistributedModelParallel,
    optimizer: KeyedOptimizer,
    config_json: str | None = None,
    free_fields: Collection[str] = FREE_FIELDS,
    check: Callable[[Path], None] = lambda _: None,
) -> dict[str, Any]:
    """Read a checkpoint into a model and optimizer sharded in any way; collective.

    Sums are verified before anything is parsed, and nothing in the folder can run
    code. On an error, model and optimizer hold no usable state.

    Args:
        config_json: the settings of this run, to compare with the checkpoint's; None
            compares only names and shapes of tensors.
        free_fields: settings whose difference does not matter.
        check: raises where a checkpoint that is whole does not belong here.

    Returns:
        ``extra`` as it was saved; tensors on the CPU.

    Raises:
        FileNotFoundError: where there is no checkpoint.
        ValueError: where it is damaged, or was saved under other settings or by
            another model: naming the file, the field or the tensor.
    """
    reader = _open_verified(path, together=True)
    if config_json is not None:
        check_config(path, config_json, free_fields)
    check(path)
    model_state = dmp.state_dict()
    tensors = _training_tensors(dmp, optimizer, model_state)
    extra = _read_json(path / STATE)
    for key, entry in reader.tensors.items():
        if key.startswith("extra."):
            held = torch.empty(entry.size, dtype=entry.properties.dtype)
            tensors[key] = extra[key.removeprefix("extra.")] = held
    check_fit(path, tensors, reader, whole=True)
    optimizer_state = optimizer.state_dict()
    _read_tensors(path, tensors, reader, alone=False)
    dmp.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    return extra


def load_unsharded(path: Path, module: nn.Module) -> None:
    """Read the weights of a checkpoint into a plain module, in this process alone.

    For serving and evaluation of what was trained sharded: needs no process group and
    calls no collective, so any rank may call it. The module must have room for whole
    tables. Reads every byte once for the sums and the weights once more.

    Raises:
        FileNotFoundError: where there is no checkpoint.
        ValueError: where it is damaged or of another model.
    """
    reader = _open_verified(path, together=False)
    tensors = {f"model.{key}": value for key, value in module.state_dict().items()}
    on_meta = [key for key, value in tensors.items() if value.is_meta]
    if on_meta:
        raise ValueError(f"{on_meta[0]} is on the meta device: call to_empty() first")
    check_fit(path, tensors, reader, whole=False)
    _read_tensors(path, tensors, reader, alone=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherSetting:
    """A setting that a checkpoint was saved with, and that a run has otherwise."""

    field: str
    was: object
    now: object

    def __str__(self) -> str:
        return f"{self.field} = {self.was!r}, this run has {self.now!r}"


def other_setting(
    path: Path,
    config_json: str,
    free_fields: Collection[str],
    *,
    is_open: bool = False,
) -> OtherSetting | None:
    """The first setting in which a checkpoint and a run differ. No communication.

    Args:
        config_json: settings of the run.
        free_fields: settings whose difference does not matter.
        is_open: what is None follows from the log, which is not read yet, so it does
            not count.

    Raises:
        ValueError: where the checkpoint's settings are damaged.
    """
    try:
        saved = _flatten(_read_json(path / CONFIG))
    except ValueError as error:
        raise ValueError(
            f"{path / CONFIG} is damaged ({error}): use an older checkpoint"
        ) from error
    current = _flatten(json.loads(config_json))
    for field in sorted(saved.keys() | current.keys()):
        if field in free_fields or field.split(".")[0] in free_fields:
            continue
        was, now = saved.get(field), current.get(field)
        if was != now and not (is_open and now is None):
            return OtherSetting(field=field, was=was, now=now)
    return None


def check_config(
    path: Path,
    config_json: str,
    free_fields: Collection[str] = FREE_FIELDS,
    *,
    is_open: bool = False,
) -> None:
    """Raise where a run's settings are not those of a checkpoint.

    Args:
        path, config_json, free_fields, is_open: as ``other_setting``.

    Raises:
        ValueError: naming the field, and both values.
    """
    found = other_setting(path, config_json, free_fields, is_open=is_open)
    if found is not None:
        raise ValueError(
            f"{path} was saved with {found}: set {found.field} back, or start afresh "
            "under another name"
        )


def read_extra(path: Path) -> dict[str, Any]:
    """The JSON part of ``extra``, with its sum verified. No communication.

    Raises:
        FileNotFoundError: where there is no checkpoint.
        ValueError: where it is damaged.
    """
    manifest = read_manifest(path)
    sums = {STATE: manifest.sha256.get(STATE, "")}
    verify_sums(path, replace(manifest, sha256=sums), together=False)
    return _read_json(path / STATE)


def _training_tensors(
    dmp: DistributedModelParallel,
    optimizer: KeyedOptimizer,
    model_state: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Flat name -> tensor; each aliases the training state, so loading is in place.

    Learning rates and other Python values of param_groups are left out: the loop sets
    them every step, and they would have to be pickled.
    """
    state = dmp.state_dict() if model_state is None else model_state
    tensors = {f"model.{key}": value for key, value in state.items()}
    for parameter, parts in optimizer.state_dict()["state"].items():
        for part, value in parts.items():
            tensors[f"optimizer.{parameter}.{part}"] = value
    odd = [key for key, value in tensors.items() if not torch.is_tensor(value)]
    assert not odd, f"not tensors: {odd}"
    return tensors


def _open_verified(path: Path, *, together: bool) -> SafeReader:
    manifest = read_manifest(path)
    verify_sums(path, manifest, together=together)
    return open_reader(path, manifest)


def _read_tensors(
    path: Path, tensors: dict[str, Any], reader: SafeReader, *, alone: bool
) -> None:
    try:
        with _without_known_advice():
            load(tensors, storage_reader=reader, no_dist=alone)
    except CheckpointException as error:
        raise ValueError(f"{path} cannot be read: {_cause(error)}") from error


@contextmanager
def _without_known_advice() -> Iterator[None]:
    """Silence what torch says of its own parts and no user could change.

    That ShardedTensor, which torchrec uses, will give way to DTensor; and that there
    is no process group, which is as it should be in a server.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use DTensor instead")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _cause(error: CheckpointException) -> str:
    # It derives from BaseException and its text is a page of traces.
    rank, (first, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {type(first).__name__}: {first}"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, child in value.items():
        flat |= _flatten(child, f"{prefix}.{key}" if prefix else key)
    return flat


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _publish(temporary: Path, final: Path) -> None:
    """Rename; a checkpoint of the same step, left by an earlier run, gives way."""
    retired = final.with_name(f".{final.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if final.exists():
        os.replace(final, retired)
    os.replace(temporary, final)
    # The rename itself must survive a power cut.
    handle = os.open(final.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    shutil.rmtree(retired, ignore_errors=True)


def _prune(newest: Path, keep: int) -> None:
    found = checkpoint_folders(newest.parent)
    kept = [path for path in found if path.name <= newest.name][: max(1, keep)]
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
