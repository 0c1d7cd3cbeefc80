"""Candidate files as cases to judge; every error names file and row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.files.run_folder import CANDIDATE_PAIRS, USERS
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.judge_requests import (
    Request,
    read_requests,
)

Row = dict[str, Any]


@pytest.fixture
def user_row(reader: CaseReader) -> Callable[..., Row]:
    """user_row(user, **changes): at the fifth event."""

    def make(user: int, **changes: Any) -> Row:
        at = Case(user=user, as_of=5, request_timestamp=0, items=())
        return {
            "user_id": f"u{user}",
            "as_of": 5,
            "history_hash": reader.history_hash(at),
            "request_timestamp": 1_600_000_000 + user,
            "next_item_id": "i9",
            **changes,
        }

    return make


@pytest.fixture
def read(tmp_path: Path, reader: CaseReader) -> Callable[..., list[Request]]:
    """read(users, pairs): requests of files with these rows."""

    def make(users: list[Row], pairs: list[tuple[Any, ...]]) -> list[Request]:
        names = ("user_id", "item_id", "source")
        rows = [dict(zip(names, pair, strict=True)) for pair in pairs]
        pq.write_table(pa.Table.from_pylist(users), tmp_path / USERS)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / CANDIDATE_PAIRS)
        return list(read_requests(tmp_path, reader))

    return make


def test_users_come_in_order_with_all_their_candidates(read, user_row) -> None:
    pairs = [
        *(("u0", "i3", "beam"), ("u2", "i1", "next"), ("u0", "i4", "rollout")),
        *(("u2", "i0", "easy_negative"), ("u0", "i3", "rollout")),
    ]
    first, second = read([user_row(2), user_row(1), user_row(0)], pairs)
    assert (first.user_id, first.case.user, first.case.as_of) == ("u2", 2, 5)
    assert first.case.items == (1, 0)
    assert first.sources == ("next", "easy_negative")
    assert first.case.request_timestamp == 1_600_000_002
    assert first.next_item_id == "i9"
    assert first.history_hash == user_row(2)["history_hash"]
    # A pair that is named twice counts once, where it is first.
    assert second.case.items == (3, 4)
    assert second.sources == ("beam", "rollout")


def test_other_pairs_take_the_place_of_the_candidates(
    read, user_row, reader, tmp_path: Path
) -> None:
    read([user_row(0), user_row(1)], [("u0", "i3", "beam"), ("u1", "i3", "beam")])
    missed = tmp_path / "missed.parquet"
    rows = [{"user_id": "u1", "item_id": "i8", "source": "missed"}]
    pq.write_table(pa.Table.from_pylist(rows), missed)
    (one,) = read_requests(tmp_path, reader, missed)
    assert (one.user_id, one.case.items, one.sources) == ("u1", (8,), ("missed",))


@pytest.mark.parametrize("name", [USERS, CANDIDATE_PAIRS])
def test_a_missing_file_says_how_to_make_it(
    read, user_row, reader, tmp_path: Path, name: str
) -> None:
    read([user_row(0)], [("u0", "i3", "beam")])
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: make it by"):
        list(read_requests(tmp_path, reader))


@pytest.mark.parametrize("name", [USERS, CANDIDATE_PAIRS])
def test_a_damaged_file_is_named(
    read, user_row, reader, tmp_path: Path, name: str
) -> None:
    read([user_row(0)], [("u0", "i3", "beam")])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{name}: cannot be read") as error:
        list(read_requests(tmp_path, reader))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *((USERS, name) for name in ("user_id", "as_of", "history_hash")),
        (USERS, "request_timestamp"),
        *((CANDIDATE_PAIRS, name) for name in ("user_id", "item_id", "source")),
    ],
)
def test_a_missing_column_is_named(
    read, user_row, reader, tmp_path: Path, name: str, column: str
) -> None:
    read([user_row(0)], [("u0", "i3", "beam")])
    table = pq.read_table(tmp_path / name)
    pq.write_table(table.drop_columns(column), tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: no column {column}$"):
        list(read_requests(tmp_path, reader))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("u0", "i77", "beam"), "unknown item 'i77'"),
        (("u5", "i1", "beam"), "user 'u5' is not in "),
        ((None, "i1", "beam"), "user_id or item_id is null"),
        (("u0", None, "beam"), "user_id or item_id is null"),
    ],
)
def test_a_bad_pair_names_file_and_row(read, user_row, pair, message) -> None:
    with pytest.raises(ValueError, match=r"candidates.parquet, row 1: ") as error:
        read([user_row(0)], [("u0", "i3", "beam"), pair])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_hash": 5}, "is another one in this log: make the candidates again"),
        ({"as_of": 4}, "is another one in this log: make the candidates again"),
        ({"as_of": None}, "user_id, as_of or history_hash is null"),
        ({"history_hash": None}, "user_id, as_of or history_hash is null"),
        ({"user_id": None}, "user_id, as_of or history_hash is null"),
        ({"user_id": "u0"}, "user 'u0' is there twice"),
    ],
)
def test_a_bad_user_names_file_and_row(read, user_row, changes, message) -> None:
    pairs = [("u0", "i3", "beam"), ("u1", "i3", "beam")]
    if changes.get("user_id", "u1") != "u1":
        pairs = pairs[:1]
    with pytest.raises(ValueError, match=r"users.parquet, row 1: ") as error:
        read([user_row(0), user_row(1, **changes)], pairs)
    assert message in str(error.value)


def test_a_user_of_another_log_is_refused(read, user_row) -> None:
    users = [user_row(0), user_row(1, user_id="stranger")]
    with pytest.raises(ValueError, match=r"users.parquet, row 1: unknown user"):
        read(users, [("u0", "i3", "beam"), ("stranger", "i3", "beam")])


def test_a_log_without_a_clock_may_have_no_request_time(read, user_row) -> None:
    (one,) = read([user_row(0, request_timestamp=None)], [("u0", "i3", "beam")])
    assert one.case.request_timestamp == 0
