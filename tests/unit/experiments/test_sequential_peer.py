"""What goes to the peer and what comes back, mostly with a stand-in for its script."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.evaluation.baselines import Fitted
from sgrec_torchrec.experiments import sequential_peer
from sgrec_torchrec.experiments.sequential_peer import SequentialPeer
from sgrec_torchrec.schema import Catalogue, EvalRows, Sequences, SplitLog

pytestmark = pytest.mark.long

STAND_IN = """
import json, sys
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq

folder, arguments = Path(sys.argv[1]), sys.argv[2:]
with (Path(__file__).parent / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if (Path(__file__).parent / "fails").exists():
    print("\\n".join(f"line {n}" for n in range(30)))
    sys.exit("no memory left")
seed = arguments[arguments.index("--seed") + 1]
k = json.loads((folder / "settings.json").read_text())["k"]
if "--tune" in arguments:
    (folder / "sasrec-tuned.json").write_text("{}")
rows = pq.read_table(folder / "test.parquet").to_pylist()
# Newest first, without an end: an empty history has an empty list.
lists = [row["history"][::-1][:k] for row in rows]
if (Path(__file__).parent / "loses").exists():
    rows, lists = rows[1:], lists[1:]
table = pa.table({
    "row": pa.array([row["row"] for row in rows], pa.int64()),
    "items": pa.array(lists, pa.list_(pa.int64())),
})
pq.write_table(table, folder / f"test-lists-{seed}.parquet")
"""
SETUP = 'echo "set up" >> "$(dirname "$0")/setup-calls"\n'


def rows_of(*rows: tuple[int, int, int, int]) -> EvalRows:
    """(user, start and end of the history, target) each."""
    user, start, end, target = np.array(rows, dtype=np.int64).T
    return EvalRows(
        user_E=user,
        history_start_E=start.astype(np.int32),
        history_end_E=end.astype(np.int32),
        target_E=target.astype(np.int32),
        target_timestamp_E=end,
    )


def fitted_log(
    users: list[list[int]], train_end: list[int], *, fit_on: str = "train"
) -> Fitted:
    """The valid period has one event of every user; the peer needs no graph."""
    lengths = np.array([len(user) for user in users])
    sequences = Sequences(
        offsets_U1=np.append(0, np.cumsum(lengths)),
        items_R=np.concatenate(users).astype(np.int32),
        timestamps_R=np.concatenate([np.arange(n) for n in lengths]),
        events_R=np.zeros(lengths.sum(), dtype=np.int16),
        values_R=np.zeros(lengths.sum(), dtype=np.float32),
        train_end_U=np.array(train_end, dtype=np.int32),
        valid_end_U=np.array(train_end, dtype=np.int32) + 1,
        num_items=9,
        num_event_types=1,
        has_clock=True,
        has_value=False,
    )
    ends = enumerate(train_end)
    valid = rows_of(*((user, 0, end, users[user][end]) for user, end in ends))
    blank = [""] * 9
    catalogue = Catalogue(
        item_ids=blank, titles=blank, brands=blank, categories=blank, texts=blank,
        embedding_ND=None, sid_NL=None,
    )  # fmt: skip
    split = SplitLog(
        sequences=sequences, valid=valid, test=valid, catalogue=catalogue,
        user_ids=[str(n) for n in range(len(users))], protocol="given",
    )  # fmt: skip
    return Fitted(
        split=split, graph=None, config=GraphConfig(), fit_on=fit_on,  # type: ignore[arg-type]
        filter_seen=True,
    )  # fmt: skip


USERS, TRAIN_END = [[4, 5, 6, 7], [8, 0, 1]], [2, 1]
ROWS = rows_of((1, 0, 2, 1), (0, 1, 3, 7), (0, 0, 0, 4), (0, 0, 3, 7))


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the stand-in, which notes its calls in calls.jsonl."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "setup").write_text(SETUP)
    (folder / "sasrec.py").write_text(STAND_IN)
    monkeypatch.setattr(sequential_peer, "SCRIPTS", folder)
    monkeypatch.setattr(sequential_peer, "PYTHON", Path(sys.executable))
    return folder


def calls_of(scripts: Path) -> list[list[str]]:
    path = scripts / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_peer(tmp_path: Path, *, period: str = "train", seed: int = 0):
    return SequentialPeer(
        folder=tmp_path / "exchange" / period,
        tuned_in=tmp_path / "exchange" / "train",
        seed=seed,
        max_history=3,
        tune_minutes=1.5,
    )


def test_lists_come_back_row_by_row_filled_up_and_cut(scripts, tmp_path) -> None:
    found = make_peer(tmp_path)(fitted_log(USERS, TRAIN_END), ROWS, 2)
    # Histories 8 0, 5 6, none, and 4 5 6 cut to two.
    assert found.tolist() == [[0, 8], [6, 5], [-1, -1], [6, 5]]
    assert found.dtype == np.int32
    assert (scripts / "setup-calls").read_text() == "set up\n"


def test_exchange_holds_the_fitted_events_and_the_rows(scripts, tmp_path) -> None:
    make_peer(tmp_path)(fitted_log(USERS, TRAIN_END), ROWS, 2)
    folder = tmp_path / "exchange" / "train"
    assert pq.read_table(folder / "fit.parquet").to_pylist() == [
        {"user": 0, "item": 4, "position": 0},
        {"user": 0, "item": 5, "position": 1},
        {"user": 1, "item": 8, "position": 0},
    ]
    assert pq.read_table(folder / "valid.parquet").to_pylist() == [
        {"row": 0, "history": [4, 5], "target": 6},
        {"row": 1, "history": [8], "target": 0},
    ]
    assert pq.read_table(folder / "test.parquet").to_pylist() == [
        {"row": 0, "history": [8, 0], "target": 1},
        {"row": 1, "history": [5, 6], "target": 7},
        {"row": 2, "history": [], "target": 4},
        {"row": 3, "history": [4, 5, 6], "target": 7},
    ]
    assert json.loads((folder / "settings.json").read_text()) == {
        "num_items": 9,
        "filter_seen": True,
        "max_history": 3,
        "k": 2,
    }


def test_a_refit_knows_valid_events_and_has_no_valid_rows(scripts, tmp_path) -> None:
    fitted = fitted_log(USERS, TRAIN_END, fit_on="train+valid")
    make_peer(tmp_path, period="train+valid")(fitted, ROWS, 2)
    folder = tmp_path / "exchange" / "train+valid"
    assert pq.read_table(folder / "fit.parquet")["item"].to_pylist() == [4, 5, 6, 8, 0]
    assert not (folder / "valid.parquet").exists()


def test_one_search_serves_later_seeds_and_the_refit(scripts, tmp_path) -> None:
    fitted = fitted_log(USERS, TRAIN_END)
    make_peer(tmp_path)(fitted, ROWS, 2)
    make_peer(tmp_path, seed=1)(fitted, ROWS, 2)
    refit = fitted_log(USERS, TRAIN_END, fit_on="train+valid")
    make_peer(tmp_path, period="train+valid")(refit, ROWS, 2)
    first, second, third = calls_of(scripts)
    exchange = tmp_path / "exchange"
    tuned = ["--tuned", str(exchange / "train" / "sasrec-tuned.json")]
    assert first[:3] == [str(exchange / "train"), "--seed", "0"]
    assert first[-3:] == ["--tune", "--tune-minutes", "1.5"]
    assert second[:3] == [str(exchange / "train"), "--seed", "1"]
    assert second[-2:] == third[-2:] == tuned
    assert "--tune" not in second + third
    assert third[0] == str(exchange / "train+valid")
    for call in (first, second, third):
        assert int(call[call.index("--threads") + 1]) >= 1


def test_a_failing_peer_shows_the_end_of_what_it_printed(scripts, tmp_path) -> None:
    (scripts / "fails").touch()
    with pytest.raises(RuntimeError, match=r"sasrec\.py .*--seed 0.* failed:") as error:
        make_peer(tmp_path)(fitted_log(USERS, TRAIN_END), ROWS, 2)
    shown = str(error.value).splitlines()[1:]
    # The newest 20 lines, errors among them.
    assert shown == [*(f"line {n}" for n in range(11, 30)), "no memory left"]


def test_a_failing_setup_stops_before_the_training(scripts, tmp_path) -> None:
    (scripts / "setup").write_text("echo no such package\nexit 3\n")
    with pytest.raises(RuntimeError, match=r"setup failed:\nno such package"):
        make_peer(tmp_path)(fitted_log(USERS, TRAIN_END), ROWS, 2)
    assert not (scripts / "calls.jsonl").exists()


def test_missing_scripts_are_named_before_anything_is_written(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(sequential_peer, "SCRIPTS", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing: .*--peer-seeds"):
        make_peer(tmp_path)(fitted_log(USERS, TRAIN_END), ROWS, 2)
    assert not (tmp_path / "exchange").exists()


def test_lists_of_other_rows_are_refused(scripts, tmp_path) -> None:
    (scripts / "loses").touch()
    message = r"test-lists-0\.parquet does not hold the 4 rows asked, in order"
    with pytest.raises(ValueError, match=message):
        make_peer(tmp_path)(fitted_log(USERS, TRAIN_END), ROWS, 2)


@pytest.mark.slow
@pytest.mark.skipif(
    not sequential_peer.PYTHON.is_file(),
    reason="the peer's environment .venv-sequential is absent; its setup makes it",
)
def test_the_real_peer_ranks_items_of_the_log(tmp_path) -> None:
    generator = np.random.default_rng(1)
    # Walks up and around the catalogue, 10 to 14 events each.
    users = [
        ((start + np.arange(generator.integers(10, 15))) % 9).tolist()
        for start in generator.integers(0, 9, 60)
    ]
    fitted = fitted_log(users, [len(user) - 2 for user in users])
    num_users = len(users)
    rows = rows_of(
        *((n, len(users[n]) - 5, len(users[n]) - 1, users[n][-1]) for n in range(60))
    )
    folder = tmp_path / "exchange" / "train"
    peer = SequentialPeer(
        folder=folder, tuned_in=folder, seed=0, max_history=8, tune_minutes=0
    )
    found = peer(fitted, rows, 5)
    assert found.shape == (num_users, 5)
    assert (found >= -1).all()
    assert (found < 9).all()
    assert (found[:, 0] >= 0).all()
    for row, listed in enumerate(found.tolist()):
        items = [item for item in listed if item >= 0]
        assert len(set(items)) == len(items)
        # Seen items are filtered.
        assert not set(items) & set(users[row][-5:-1])
    assert (folder / sequential_peer.TUNED).is_file()
    record = json.loads((folder / "sasrec-0.json").read_text())
    ranks = found == rows.target_E[:, None]
    assert record["test_hr@10"] == pytest.approx(ranks.any(axis=1).mean())
