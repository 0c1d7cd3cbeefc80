"""Candidate files -> cases to judge, user by user.

    users.parquet        user_id, as_of, history_hash, request_timestamp, next_item_id
    candidates.parquet   user_id, item_id, source

Pairs that training missed (``reward_table.MissLog``) come in the second form too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.checked_parquet import read_checked
from sgrec_torchrec.files.run_folder import CANDIDATE_PAIRS, MANIFEST, USERS
from sgrec_torchrec.files.sealed_json import CANDIDATES_FORMAT, naming, read_sealed
from sgrec_torchrec.files.text_column import places_of
from sgrec_torchrec.judge.ask.cases import Case, CaseReader

USER_COLUMNS = ("user_id", "as_of", "history_hash", "request_timestamp")
PAIR_COLUMNS = ("user_id", "item_id", "source")
MEND = "make it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One user's candidates, and where each comes from."""

    user_id: str
    case: Case
    sources: tuple[str, ...]
    history_hash: int
    next_item_id: str | None


def read_requests(
    candidates: Path, reader: CaseReader, pairs: Path | None = None
) -> Iterator[Request]:
    """Users in the order of users.parquet, each with all its candidates.

    Args:
        candidates: folder that ``sgrec candidates`` wrote.
        pairs: Parquet file of pairs to judge in place of its candidates.parquet.

    Memory grows with the judged users and their pairs; ``cut`` makes parts of them.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: naming file and row: unknown user or item, a history that is not
            this log's, a missing column.
    """
    users_path, pairs_path = candidate_files(candidates, pairs)
    users = read_checked(users_path, MEND).to_pylist()
    by_user = _by_user(pairs_path)
    known = {str(user["user_id"]) for user in users}
    user_index = places_of(reader.split.user_ids, known)
    item_index = places_of(reader.split.catalogue.item_ids, _items(by_user))
    for user_id, rows in by_user.items():
        if user_id not in known:
            raise ValueError(
                f"{pairs_path}, row {rows[0][2]}: user {user_id!r} is not in "
                f"{users_path}, which says how much of a history may be seen"
            )
    _check_users(users_path, users)
    for place, user in enumerate(users):
        rows = by_user.get(str(user["user_id"]), [])
        if not rows:
            continue
        index = user_index.get(str(user["user_id"]))
        if index is None:
            raise ValueError(f"{users_path}, row {place}: unknown user in this log")
        for item_id, _, row in rows:
            if item_id not in item_index:
                raise ValueError(f"{pairs_path}, row {row}: unknown item {item_id!r}")
        case = Case(
            user=index,
            as_of=int(user["as_of"]),
            request_timestamp=int(user["request_timestamp"] or 0),
            items=tuple(item_index[item_id] for item_id, _, _ in rows),
        )
        if reader.history_hash(case) != int(user["history_hash"]):
            raise ValueError(
                f"{users_path}, row {place}: the history of user {user['user_id']!r} "
                "is another one in this log: make the candidates again from this run"
            )
        yield Request(
            user_id=str(user["user_id"]),
            case=case,
            sources=tuple(source for _, source, _ in rows),
            history_hash=int(user["history_hash"]),
            next_item_id=user.get("next_item_id"),
        )


def candidate_files(candidates: Path, pairs: Path | None) -> tuple[Path, Path]:
    """Files of users and of pairs, as they were written; see ``read_requests``.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing, cannot be read,
            lacks a column or is not as it was written.
    """
    found = (candidates / USERS, pairs or candidates / CANDIDATE_PAIRS)
    _check_sums(candidates, (USERS,) if pairs else (USERS, CANDIDATE_PAIRS))
    for path, columns in zip(found, (USER_COLUMNS, PAIR_COLUMNS), strict=True):
        _check_columns(path, columns)
    return found


def _items(by_user: dict[str, list[tuple[str, str, int]]]) -> set[str]:
    return {item for rows in by_user.values() for item, _, _ in rows}


def _check_users(path: Path, users: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for place, user in enumerate(users):
        if any(user[name] is None for name in USER_COLUMNS[:3]):
            raise ValueError(
                f"{path}, row {place}: user_id, as_of or history_hash is null"
            )
        if str(user["user_id"]) in seen:
            raise ValueError(
                f"{path}, row {place}: user {user['user_id']!r} is there twice"
            )
        seen.add(str(user["user_id"]))


def _by_user(path: Path) -> dict[str, list[tuple[str, str, int]]]:
    """(item, source, row) by user; a pair named twice counts once, where first."""
    table = read_checked(path, MEND)
    found: dict[str, dict[str, tuple[str, str, int]]] = {}
    columns = [table[name].to_pylist() for name in PAIR_COLUMNS]
    for row, (user_id, item_id, source) in enumerate(zip(*columns, strict=True)):
        if user_id is None or item_id is None:
            raise ValueError(f"{path}, row {row}: user_id or item_id is null")
        pair = (str(item_id), str(source), row)
        found.setdefault(str(user_id), {}).setdefault(str(item_id), pair)
    return {user_id: list(pairs.values()) for user_id, pairs in found.items()}


def _check_sums(folder: Path, names: Sequence[str]) -> None:
    """Where the folder is of ``sgrec candidates``: files of other tools have no sums.

    Raises:
        ValueError: naming the file that is not as it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    mend = "make it again by `sgrec candidates RUN`"
    manifest = read_sealed(
        path, {"files": dict}, format_version=CANDIDATES_FORMAT, mend=mend
    )
    with naming(path, mend):
        sums = {name: manifest["files"][name]["sha256"] for name in names}
    for name, digest in sums.items():
        if (folder / name).is_file() and sha256_file(folder / name) != digest:
            raise ValueError(
                f"{folder / name}: its SHA-256 is not that of {MANIFEST}: {mend}"
            )


def _check_columns(path: Path, columns: tuple[str, ...]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make it by `sgrec candidates RUN`")
    try:
        known = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): {MEND}") from error
    missing = [name for name in columns if name not in known]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
