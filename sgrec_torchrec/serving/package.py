"""A recommender <-> one folder that needs neither the run, nor torchrec, nor pickle.

manifest.json          format version, settings, sha256 and bytes of every file
weights.safetensors    tables (float32, or int8 with a scale a row), backbone, decoder
trie.safetensors       the legal codes and the item of each leaf
items.parquet          item_id, title, category; row n is item n
evidence-<name>.npy    relations of the evidence; absent without it
scorer.safetensors     their scorer
encoder.pt2, level-<l>.pt2    compiled programs (``serving.program``), as an option
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgrec_torchrec.evidence.gather import num_features
from sgrec_torchrec.evidence.prior import EvidencePrior
from sgrec_torchrec.evidence.relations import RELATION_ARRAYS, Relations
from sgrec_torchrec.evidence.scorer import load_scorer, save_scorer
from sgrec_torchrec.files.array_folder import Array
from sgrec_torchrec.files.atomic import atomic_folder, sha256_file
from sgrec_torchrec.files.held import held
from sgrec_torchrec.files.origin import origin
from sgrec_torchrec.files.run_folder import ITEMS, MANIFEST, SCORER_WEIGHTS
from sgrec_torchrec.files.sealed_json import Fields, naming, read_sealed, write_sealed
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import ItemTokens
from sgrec_torchrec.serving.catalogue import ServedCatalogue
from sgrec_torchrec.serving.network import Network, quantise
from sgrec_torchrec.serving.parts import Parts, ServingSettings, empty_network
from sgrec_torchrec.serving.program import (
    PROGRAM_FILES,
    Program,
    compile_programs,
    lacking,
    program_files,
)

logger = logging.getLogger(__name__)
FORMAT = "sgrec package"
FORMAT_VERSION = 2
WEIGHTS, TRIE = "weights.safetensors", "trie.safetensors"
COLUMNS = ("item_id", "title", "category")
NEEDED = (WEIGHTS, TRIE, ITEMS)
RELATION_FILES = {name: f"evidence-{name}.npy" for name in RELATION_ARRAYS}
EVIDENCE = (SCORER_WEIGHTS, *RELATION_FILES.values())
MAPPED = (WEIGHTS, TRIE, *RELATION_FILES.values())
"""Files that their readers map; of the others nothing is left to read later."""
MAX_HELD_BYTES = 4 << 30
"""Of a file of relations: those of 1e8 items need not fit into memory."""
STAYS_MAPPED = (
    "%s stays mapped, as it is large: write no file over it while it is served"
)
MEND = "export the run again"
NO_PROGRAMS = "it holds none"
WITHOUT = "%s: runs without compiled programs: %s"
UNREADABLE = (SafetensorError, RuntimeError, pa.ArrowException, KeyError, OSError)
"""What their readers raise over wrong bytes, beside ValueError."""
Made = TypeVar("Made")


def is_package(path: Path) -> bool:
    """Whether a folder is a package, whole or damaged: a checkpoint or run is none.

    Raises:
        FileNotFoundError: where there is no folder.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: name a run or a package")
    return any((path / name).is_file() for name in NEEDED) or (
        (path / MANIFEST).is_file() and not (path / ".metadata").exists()
    )


def export_package(
    run: Path, out: Path, *, is_int8: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """Write a run, or one of its checkpoints, as a package; whole or not at all.

    An older package in ``out`` is replaced in one rename.

    Args:
        run: as ``run_files.find_run``.
        out: the folder to write.
        is_int8: tables as int8 with a scale a row.
        compiled: add programs for hosts as this one, which takes a C++ compiler.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError, ValueError: from the run; or where ``out`` holds other files.
    """
    from sgrec_torchrec.serving.run_files import read_run

    if out.exists() and not (
        out.is_dir() and (not any(out.iterdir()) or _is_replaceable(out))
    ):
        raise ValueError(f"{out} holds other files: choose another folder for --out")
    return write_package(read_run(run), out, is_int8=is_int8, compiled=compiled)


def _is_replaceable(out: Path) -> bool:
    """Whether a folder is a package, not by its manifest: most folders have one."""
    return any((out / name).is_file() for name in (WEIGHTS, TRIE))


def write_package(
    parts: Parts, out: Path, *, is_int8: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """``export_package`` of parts that are loaded."""
    network = int8_network(parts) if is_int8 else parts.network
    with atomic_folder(out) as folder:
        save_file(_contiguous(network.state_dict()), folder / WEIGHTS)
        save_file(_contiguous(_trie_tensors(parts.trie)), folder / TRIE)
        catalogue = parts.catalogue
        columns = (catalogue.item_ids, catalogue.titles, catalogue.categories)
        table = pa.table(
            {
                name: pa.array(column, pa.string())
                for name, column in zip(COLUMNS, columns, strict=True)
            }
        )
        pq.write_table(table, folder / ITEMS, write_page_checksum=True)
        if parts.evidence is not None:
            for name in RELATION_ARRAYS:
                array = getattr(parts.evidence.relations, name)
                np.save(folder / f"evidence-{name}.npy", array, allow_pickle=False)
            save_scorer(parts.evidence.scorer, folder / SCORER_WEIGHTS)
        made_on = compile_programs(network.tower, folder) if compiled else None
        for path in folder.iterdir():
            # safetensors writes for its own user alone; a server may be another one.
            path.chmod(0o644)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "is_int8": is_int8,
            "table_bytes": network.table_bytes(),
            "settings": parts.settings.to_plain(),
            "origin": origin(),
            "programs": made_on,
            "files": {
                path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                for path in sorted(folder.iterdir())
            },
        }
        write_sealed(folder / MANIFEST, manifest)
    return manifest


def int8_network(parts: Parts) -> Network:
    """The same network with tables of int8; the dense part is shared."""
    network = empty_network(parts.settings, is_int8=True)
    state = dict(parts.network.state_dict())
    for name in list(parts.network.tables.embeddings):
        key = f"tables.embeddings.{name}"
        weight, scale = quantise(state[f"{key}.weight"])
        state |= {f"{key}.weight": weight, f"{key}.scale": scale}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)


def read_package(
    folder: Path, *, with_evidence: bool = True, compiled: bool = False
) -> Parts:
    """The parts of a recommender; every sum is verified before anything is parsed.

    Reads every byte once. Whatever is done to the folder later changes no answer: all
    is held in memory, but for relations beyond ``MAX_HELD_BYTES``, which stay mapped.
    Programs are neither opened nor missed unless ``compiled``, as ``Recommender.load``
    has it, asks for them.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming the file that is damaged, of another version, or wrong.
    """
    with ExitStack() as copies:
        places = _Places(folder, copies)
        manifest = _read_manifest(folder, places, with_programs=compiled)
        with naming(folder / MANIFEST, MEND):
            settings = ServingSettings.from_plain(manifest["settings"])
            is_int8 = bool(manifest["is_int8"])
        evidence = None
        if with_evidence and SCORER_WEIGHTS in manifest["files"]:
            evidence = _named(
                folder / SCORER_WEIGHTS,
                lambda: _read_evidence(folder, places, settings),
            )
        network = _named(
            folder / WEIGHTS,
            lambda: _read_network(places.of(WEIGHTS), settings, is_int8),
        )
        return Parts(
            network=network,
            trie=_named(folder / TRIE, lambda: _read_trie(places.of(TRIE), settings)),
            catalogue=_named(folder / ITEMS, lambda: _read_items(folder, settings)),
            evidence=evidence,
            settings=settings,
            program=_read_program(folder, manifest, network) if compiled else None,
        )


class _Places:
    """Where each file is read: in a copy of this process, where it would be mapped."""

    def __init__(self, folder: Path, copies: ExitStack) -> None:
        self._folder, self._copies = folder, copies
        self._held: dict[str, Path] = {}

    def of(self, name: str) -> Path:
        """The copy, or the file itself."""
        return self._held.get(name, self._folder / name)

    def sum_of(self, name: str) -> str:
        """SHA-256 of what will be read."""
        path = self._folder / name
        if name not in MAPPED:
            return sha256_file(path)
        if name in EVIDENCE and path.stat().st_size > MAX_HELD_BYTES:
            logger.warning(STAYS_MAPPED, path)
            return sha256_file(path)
        self._held[name], found = self._copies.enter_context(held(path))
        return found


def _read_manifest(
    folder: Path, places: _Places, *, with_programs: bool
) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {MEND}")
    kinds: Fields = {"format": str, "files": dict}
    manifest = read_sealed(path, kinds, format_version=FORMAT_VERSION, mend=MEND)
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path}: format {manifest['format']!r}, this program reads {FORMAT!r}: "
            f"{MEND}"
        )
    with naming(path, MEND):
        sums = {
            str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()
        }
    needed = {*NEEDED, *(EVIDENCE if SCORER_WEIGHTS in sums else ())}
    known = {*NEEDED, *EVIDENCE, *PROGRAM_FILES}
    for name in sorted(needed | sums.keys()):
        if name not in known:
            raise ValueError(f"{path} names {name!r}, no file of a package: {MEND}")
        if name in PROGRAM_FILES and not with_programs:
            continue
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: {MEND}")
        if places.sum_of(name) != sums.get(name):
            raise ValueError(
                f"{folder / name} is damaged (its SHA-256 is not that of {MANIFEST}): "
                f"{MEND}"
            )
    return manifest


def _named(path: Path, read: Callable[[], Made]) -> Made:
    """``read()``; whatever a file with the right sum can hold, the error names it."""
    try:
        return read()
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read ({error}): {MEND}") from error
    except ValueError as error:
        named = str(error) if path.name in str(error) else f"{path}: {error}"
        raise ValueError(named) from error


def _read_network(path: Path, settings: ServingSettings, is_int8: bool) -> Network:
    network = empty_network(settings, is_int8=is_int8)
    state = load_file(path)
    for name, wanted in network.state_dict().items():
        if name in state and state[name].dtype != wanted.dtype:
            raise ValueError(f"{name} is {state[name].dtype}, not {wanted.dtype}")
        if name in state and not state[name].isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite: {MEND}")
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)


def _read_program(
    folder: Path, manifest: dict[str, Any], network: Network
) -> Program | None:
    """The programs, whose sums are verified; None where they are not for this host."""
    why_not = NO_PROGRAMS
    names = program_files(network.tower.decoder.num_levels)
    if set(names) <= manifest["files"].keys():
        try:
            missing = lacking(manifest["programs"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / MANIFEST} is damaged (programs: {error!r}): {MEND}"
            ) from error
        why_not = f"they need {missing}"
        if missing is None:
            try:
                return Program(folder, network.tower)
            except (RuntimeError, KeyError) as error:
                why_not = f"they cannot be loaded ({error!r})"
    logger.warning(WITHOUT, folder, why_not)
    return None


def _trie_tensors(trie: PrefixTrie) -> dict[str, Tensor]:
    tensors = {"item_of_leaf": trie.item_of_leaf_N, "codes": trie.codes_NL}
    for level in range(trie.num_levels):
        tensors[f"legal_bits_{level}"] = trie.legal_bits[level]
        tensors[f"first_child_{level}"] = trie.first_child[level]
    return tensors


def _read_trie(path: Path, settings: ServingSettings) -> PrefixTrie:
    tensors = load_file(path)
    codes_NL = tensors["codes"]
    shape = (settings.num_items, settings.num_levels)
    if tuple(codes_NL.shape) != shape or codes_NL.dtype != torch.int32:
        raise ValueError(f"codes are {codes_NL.dtype} {tuple(codes_NL.shape)}")
    ItemTokens(codes_NL=codes_NL.numpy(), num_codes=settings.num_codes).validate()
    rebuilt = PrefixTrie.build(codes_NL.numpy(), settings.num_codes)
    for name, wanted in _trie_tensors(rebuilt).items():
        if not torch.equal(tensors[name], wanted):
            raise ValueError(f"{name} does not follow from the codes: {MEND}")
    return rebuilt


def _read_items(folder: Path, settings: ServingSettings) -> ServedCatalogue:
    table = pq.read_table(
        folder / ITEMS, columns=list(COLUMNS), page_checksum_verification=True
    )
    if table.num_rows != settings.num_items:
        raise ValueError(f"has {table.num_rows} rows, not {settings.num_items}: {MEND}")
    if any(table[name].null_count for name in COLUMNS):
        raise ValueError(f"an item has no {' or no '.join(COLUMNS)}: {MEND}")
    texts: dict[str, Any] = {name: table[name].to_pylist() for name in COLUMNS}
    item_ids, titles, categories = (texts[name] for name in COLUMNS)
    return ServedCatalogue(item_ids, titles, categories, str(folder / ITEMS))


def _read_evidence(
    folder: Path, places: _Places, settings: ServingSettings
) -> EvidencePrior:
    arrays = {
        name: _read_array(folder / file, places.of(file))
        for name, file in RELATION_FILES.items()
    }
    relations = Relations(**arrays)
    relations.validate()
    if relations.num_items != settings.num_items:
        raise ValueError(f"the evidence names {relations.num_items} items: {MEND}")
    width = num_features(relations.num_relations)
    return EvidencePrior(
        relations=relations,
        scorer=load_scorer(folder / SCORER_WEIGHTS, settings.evidence, width),
        config=settings.evidence,
        filter_seen=settings.filter_seen,
    )


def _read_array(path: Path, place: Path) -> Array:
    try:
        # Not np.load, which takes other kinds of files too.
        loaded: Array = np.lib.format.open_memmap(place, mode="r")
    # numpy reads the head of the file by the grammar of Python.
    except (TokenError, SyntaxError, TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}): {MEND}") from error
    if loaded.ndim != 1:
        raise ValueError(f"{path} has {loaded.ndim} axes, not 1: {MEND}")
    return loaded


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
