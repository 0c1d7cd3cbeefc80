"""The prepared split on disk: one folder, written whole and read back verified.

sequences.parquet   a row per user: user_id, items, timestamps, events, values (lists
                    of equal length), train_end, valid_end
valid.parquet, test.parquet   a row per target: the fields of ``EvalRows``
items.parquet       the catalogue; row n is item n
users.arrow, items.arrow   the same user ids and catalogue, to be memory-mapped; older
                    folders lack them, and then the Parquet files are read
manifest.json       settings, counts, sha256 and bytes of every file
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.distributed.main_rank import verifies_files
from sgrec_torchrec.files.atomic import atomic_folder, sha256_file
from sgrec_torchrec.files.run_folder import ITEMS, MANIFEST
from sgrec_torchrec.files.sealed_json import Fields, naming, read_sealed, write_sealed
from sgrec_torchrec.files.text_column import TextColumn, map_columns, write_columns
from sgrec_torchrec.logs.canonical import CanonicalLog, parquet_writer
from sgrec_torchrec.logs.catalogue_store import (
    MAPPED_ITEMS,
    catalogue_of,
    flatten_lists,
    map_catalogue,
    write_catalogue,
)
from sgrec_torchrec.schema import (
    Catalogue,
    EvalRows,
    Int64Array,
    Sequences,
    SplitLog,
    Texts,
)

FORMAT_VERSION = 2
EVENTS_PER_GROUP = 1 << 22
EVAL_COLUMNS = {
    "user": np.int64,
    "history_start": np.int32,
    "history_end": np.int32,
    "target": np.int32,
    "target_timestamp": np.int64,
}
LISTS: dict[str, Any] = {
    "items": pa.int32(),
    "timestamps": pa.int64(),
    "events": pa.int16(),
    "values": pa.float32(),
}
# Nothing is null: Parquet then stores and decodes no definition levels.
SEQUENCE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        *(
            pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), False)
            for name, kind in LISTS.items()
        ),
        pa.field("train_end", pa.int32(), nullable=False),
        pa.field("valid_end", pa.int32(), nullable=False),
    ]
)
SEQUENCES = "sequences.parquet"
MAPPED_USERS = "users.arrow"
MAPPED_FILES = {MAPPED_ITEMS, MAPPED_USERS}
FILES = {SEQUENCES, "valid.parquet", "test.parquet", ITEMS}
FACTS: Fields = {
    "files": dict,
    "mapped": (dict, type(None)),
    "counts": dict,
    "event_types": list,
    "has_clock": bool,
    "has_value": bool,
    "protocol": str,
}
"""What is read of the manifest."""
MEND = "prepare the split again"


def write_split(
    out_dir: Path,
    *,
    log: CanonicalLog,
    config: LogConfig,
    sequences: Sequences,
    valid: EvalRows,
    test: EvalRows,
    user_ids: TextColumn,
    event_types: list[str],
    counts: dict[str, int],
) -> None:
    """Write the folder under a temporary name, then rename it over an older one."""
    facts: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "protocol": config.protocol,
        "max_history": config.max_history,
        "seed": config.seed,
        "has_clock": sequences.has_clock,
        "has_value": sequences.has_value,
        "event_types": event_types,
        "canonical_files": {
            name: entry["sha256"] for name, entry in log.manifest["files"].items()
        },
        "counts": {
            "users": sequences.num_users,
            "items": sequences.num_items,
            "rows": len(sequences.items_R),
            "train_rows": int(sequences.train_end_U.sum(dtype=np.int64)),
            "valid_targets": len(valid),
            "test_targets": len(test),
            **counts,
        },
    }
    with atomic_folder(out_dir) as folder:
        write_sequences(folder / SEQUENCES, sequences, user_ids)
        for name, rows in (("valid", valid), ("test", test)):
            columns = {key: getattr(rows, f"{key}_E") for key in EVAL_COLUMNS}
            _write_table(folder / f"{name}.parquet", pa.table(columns))
        items = log.items()
        _write_table(folder / ITEMS, items)
        write_catalogue(folder / MAPPED_ITEMS, catalogue_of(items, log.items_path))
        ids = pa.array(user_ids, pa.large_string())
        write_columns(folder / MAPPED_USERS, {"user_id": ids})
        # Apart from the files that name what a model was trained on: these are copies.
        for kind, pattern in (("files", "*.parquet"), ("mapped", "*.arrow")):
            facts[kind] = {
                path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                for path in sorted(folder.glob(pattern))
            }
        write_sealed(folder / MANIFEST, facts)


def load_split(out_dir: Path) -> SplitLog:
    """Read a prepared split; sha256 and page checksums are verified.

    The sums are by one process of a host (``verifies_files``).

    Arrow's list offsets and values become numpy columns without a Python object per
    event; memory is 18 bytes an event. Ids and catalogue are memory maps, which the
    processes of a host share. Every rank may call it; none communicate.

    Raises:
        FileNotFoundError: where the folder or one of its files is absent.
        ValueError: naming the file that was cut or changed, or the row out of range.
    """
    facts = read_facts(out_dir)
    is_mapped = bool(facts["mapped"])
    sequences, user_ids = read_sequences(
        out_dir / SEQUENCES,
        ids_path=out_dir / MAPPED_USERS if is_mapped else None,
        num_items=int(facts["counts"]["items"]),
        num_event_types=len(facts["event_types"]),
        has_clock=bool(facts["has_clock"]),
        has_value=bool(facts["has_value"]),
    )
    catalogue = read_catalogue(out_dir, facts)
    if len(catalogue) != sequences.num_items:
        name = MAPPED_ITEMS if is_mapped else ITEMS
        raise ValueError(
            f"{out_dir / name}: has {len(catalogue)} rows, manifest.json "
            f"says {sequences.num_items}; {MEND}"
        )
    return SplitLog(
        sequences=sequences,
        valid=_read_eval_rows(out_dir / "valid.parquet", sequences),
        test=_read_eval_rows(out_dir / "test.parquet", sequences),
        catalogue=catalogue,
        user_ids=user_ids,
        protocol=str(facts["protocol"]),
    )


def write_sequences(path: Path, sequences: Sequences, user_ids: Texts) -> None:
    """Write ``sequences.parquet``, in row groups of whole users, 4 M events or so."""
    offsets_U1 = sequences.offsets_U1
    group_U = offsets_U1[:-1] // EVENTS_PER_GROUP
    starts = np.flatnonzero(np.diff(group_U, prepend=-1))
    ids: Any = pa.array(user_ids, pa.large_string())
    with parquet_writer(path, SEQUENCE_SCHEMA) as writer:
        for start, end in zip(starts, [*starts[1:], len(group_U)], strict=True):
            first, last = offsets_U1[start], offsets_U1[end]
            lists = pa.array((offsets_U1[start : end + 1] - first).astype(np.int32))
            columns: list[Any] = [ids[start:end].cast(pa.string())]
            for name, field in zip(LISTS, list(SEQUENCE_SCHEMA)[1:], strict=False):
                values = pa.array(getattr(sequences, f"{name}_R")[first:last])
                columns.append(pa.ListArray.from_arrays(lists, values).cast(field.type))
            columns.append(pa.array(sequences.train_end_U[start:end]))
            columns.append(pa.array(sequences.valid_end_U[start:end]))
            table = pa.Table.from_arrays(columns, schema=SEQUENCE_SCHEMA)
            writer.write_table(table, row_group_size=max(1, end - start))


def read_sequences(
    path: Path,
    *,
    num_items: int,
    num_event_types: int,
    has_clock: bool,
    has_value: bool,
    ids_path: Path | None = None,
) -> tuple[Sequences, TextColumn]:
    """``sequences.parquet`` as CSR arrays, and the user ids.

    Args:
        ids_path: the ids by themselves, to be mapped; None reads them here.

    Raises:
        ValueError: naming the file if its bytes changed, or what is out of range.
    """
    names = [*LISTS, "train_end", "valid_end", *([] if ids_path else ["user_id"])]
    table = _read_table(path, names)
    sequences = _as_sequences(
        path,
        table,
        num_items=num_items,
        num_event_types=num_event_types,
        has_clock=has_clock,
        has_value=has_value,
    )
    ids = _map(ids_path)["user_id"] if ids_path else table["user_id"]
    if len(ids) != sequences.num_users:
        raise ValueError(
            f"{ids_path}: has {len(ids)} user ids, {path.name} {sequences.num_users} "
            f"users; {MEND}"
        )
    return sequences, TextColumn(ids)


def num_shards(split_dir: Path) -> int:
    """Of a split: its users, in order, in parts of some 4 M events."""
    with pq.ParquetFile(split_dir / SEQUENCES) as file:
        return int(file.num_row_groups)


def read_shard(split_dir: Path, number: int) -> tuple[Sequences, int]:
    """One part of a split's users, without their ids, and which user is its first.

    Sums of whole files are ``load_split``'s to compare; here pages are checked.

    Raises:
        FileNotFoundError, ValueError: naming what is missing, cut or changed.
    """
    facts = read_sealed(
        split_dir / MANIFEST, FACTS, format_version=FORMAT_VERSION, mend=MEND
    )
    path = split_dir / SEQUENCES
    wanted = [*LISTS, "train_end", "valid_end"]
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(number)]
            table = file.read_row_group(number, wanted)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {MEND}") from error
    sequences = _as_sequences(
        path,
        table,
        num_items=int(facts["counts"]["items"]),
        num_event_types=len(facts["event_types"]),
        has_clock=bool(facts["has_clock"]),
        has_value=bool(facts["has_value"]),
    )
    return sequences, sum(sizes)


def _as_sequences(path: Path, table: Any, **facts: Any) -> Sequences:
    columns: dict[str, npt.NDArray[Any]] = {}
    offsets_U1: Int64Array | None = None
    for name in LISTS:
        list_offsets_U1, columns[name] = flatten_lists(table[name])
        if offsets_U1 is not None and not np.array_equal(offsets_U1, list_offsets_U1):
            raise ValueError(
                f"{path}: column {name} differs from items in length; {MEND}"
            )
        offsets_U1 = list_offsets_U1
    assert offsets_U1 is not None
    sequences = Sequences(
        offsets_U1=offsets_U1,
        items_R=columns["items"],
        timestamps_R=columns["timestamps"],
        events_R=columns["events"],
        values_R=columns["values"],
        train_end_U=table["train_end"].to_numpy(),
        valid_end_U=table["valid_end"].to_numpy(),
        **facts,
    )
    if verifies_files():
        sequences.validate()
    return sequences


def read_catalogue(out_dir: Path, facts: Mapping[str, Any]) -> Catalogue:
    """The catalogue of a prepared split, memory-mapped where its version has it so.

    Args:
        facts: what ``read_facts`` returned of it.

    Raises:
        ValueError: naming the file if its bytes changed, or an embedding or sid whose
            length differs from the first item's.
    """
    if facts["mapped"]:
        return map_catalogue(_map(out_dir / MAPPED_ITEMS))
    return catalogue_of(_read_table(out_dir / ITEMS), out_dir / ITEMS)


def _read_eval_rows(path: Path, sequences: Sequences) -> EvalRows:
    table = _read_table(path)
    fields = {
        f"{name}_E": table[name].to_numpy().astype(dtype, copy=False)
        for name, dtype in EVAL_COLUMNS.items()
    }
    rows = EvalRows(**fields)
    user_E, end_E = rows.user_E, rows.history_end_E
    is_bad_E = (user_E < 0) | (user_E >= sequences.num_users)
    is_bad_E |= (rows.target_E < 0) | (rows.target_E >= sequences.num_items)
    lengths_U = np.diff(sequences.offsets_U1)
    is_bad_E |= end_E > lengths_U[np.where(is_bad_E, 0, user_E)]
    is_bad_E |= (rows.history_start_E < 0) | (rows.history_start_E > end_E)
    if is_bad_E.any():
        row = int(np.flatnonzero(is_bad_E)[0])
        raise ValueError(f"{path}: row {row} is outside the sequences; {MEND}")
    return rows


def read_facts(out_dir: Path) -> dict[str, Any]:
    """The manifest of a prepared split, after comparing every file with its sum.

    One process of a host reads them for that; the others compare sizes.

    Raises:
        FileNotFoundError, ValueError: as ``load_split``.
    """
    path = out_dir / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found, so {out_dir} is no prepared split; {MEND}"
        )
    facts = read_sealed(path, FACTS, format_version=FORMAT_VERSION, mend=MEND)
    with naming(path, MEND):
        mapped = facts.setdefault("mapped", None) or {}
        files = {**facts["files"], **mapped}
        sums = {str(name): entry["sha256"] for name, entry in files.items()}
        int(facts["counts"]["items"])
        needed = FILES | (MAPPED_FILES if mapped else set())
        if missing := needed - sums.keys():
            raise ValueError(f"it names no {min(missing)}")
    for name, digest in sums.items():
        if not (out_dir / name).is_file():
            raise FileNotFoundError(
                f"{out_dir / name}: is in manifest.json only; {MEND}"
            )
        if verifies_files():
            is_whole, by = sha256_file(out_dir / name) == digest, "sha256"
        else:
            size = (out_dir / name).stat().st_size
            is_whole, by = size == files[name].get("bytes", size), "size"
        if not is_whole:
            raise ValueError(f"{out_dir / name}: truncated or changed ({by}); {MEND}")
    return facts


def _read_table(path: Path, columns: list[str] | None = None) -> Any:
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {MEND}") from error


def _map(path: Path) -> dict[str, Any]:
    with naming(path, MEND):
        return map_columns(path)


def _write_table(path: Path, table: Any) -> None:
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
