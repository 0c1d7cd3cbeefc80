"""Judged by parts, by processes that may be lost: the same judgements, none twice."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.distributed.executor import InProcess
from sgrec_torchrec.files.sealed_json import DamagedError, read_sealed
from sgrec_torchrec.item_tokens.text_embedding import text_embedding
from sgrec_torchrec.judge import in_parts as module
from sgrec_torchrec.judge.ask import likeness
from sgrec_torchrec.judge.asking import Asking
from sgrec_torchrec.judge.cut import ASKED, cut_candidates, num_parts
from sgrec_torchrec.judge.in_parts import (
    Places,
    judge_here,
    judge_in_parts,
)
from sgrec_torchrec.judge.judging import FORMAT_VERSION, WORK
from sgrec_torchrec.reward_table.build import build_reward_table
from sgrec_torchrec.reward_table.table import RewardTable

ASKING = Asking(backend="transformers", settings=(), num_written=0)
Judged = dict[tuple[str, str], dict[str, object]]


@pytest.fixture
def places(
    requests_of_run,
    reader_of_run,
    tiny_judge: Path,
    run_dir: Path,
    tmp_path: Path,
) -> Places:
    requests = requests_of_run
    item_ids = reader_of_run.split.catalogue.item_ids
    users = [
        {
            "user_id": one.user_id,
            "as_of": one.case.as_of,
            "history_hash": one.history_hash,
            "request_timestamp": one.case.request_timestamp,
            "next_item_id": one.next_item_id,
        }
        for one in requests
    ]
    pairs = [
        {"user_id": one.user_id, "item_id": item_ids[item], "source": source}
        for one in requests
        for item, source in zip(one.case.items, one.sources, strict=True)
    ]
    asked = tmp_path / "candidates"
    asked.mkdir()
    pq.write_table(pa.Table.from_pylist(users), asked / "users.parquet")
    pq.write_table(pa.Table.from_pylist(pairs), asked / "candidates.parquet")
    return Places(
        split=run_dir / "split",
        judge=tiny_judge,
        candidates=asked,
        pairs=None,
        out=tmp_path / "judged",
    )


def judged_in(folder: Path) -> Judged:
    """Rows by pair; none is there twice."""
    rows = [
        row
        for path in sorted(folder.glob("part-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    found = {(row["user_id"], row["item_id"]): row for row in rows}
    assert len(found) == len(rows) > 0
    return found


def assert_same(ours: Judged, theirs: Judged) -> None:
    """Equal, scores up to the rounding of another batch."""
    assert ours.keys() == theirs.keys()
    for pair, row in theirs.items():
        for name, value in row.items():
            if isinstance(value, float):
                assert ours[pair][name] == pytest.approx(value, abs=1e-5)
            else:
                assert ours[pair][name] == value


def test_parts_give_what_one_process_gives(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other processes know nothing of the stand-in that this one has for the encoder.
    monkeypatch.setattr(f"{likeness.__name__}.text_embedding", text_embedding)
    whole = replace(places, out=tmp_path / "whole")
    one = judge_here(whole, ASKING)
    many = judge_in_parts(places, ASKING, InProcess(2), users_per_part=2)
    assert_same(judged_in(places.out), judged_in(whole.out))
    for name in ("users", "pairs", "prompt_tokens", "judge_version", "unanswered"):
        assert many[name] == one[name]
    assert many["pairs_this_time"] == many["pairs"]
    assert not (places.out / WORK).exists()
    ours, theirs = (
        pq.read_table(folder / "users.parquet").sort_by("user_id")
        for folder in (places.out, whole.out)
    )
    assert ours.equals(theirs)
    build_reward_table([places.out], tmp_path / "table")
    assert len(RewardTable.open(tmp_path / "table", verify=True)) == one["pairs"]


def test_what_is_judged_is_not_judged_again_by_any_number_of_workers(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pq.read_table(places.candidates / "candidates.parquet")
    pq.write_table(kept.slice(0, 5), places.candidates / "candidates.parquet")
    first = judge_in_parts(places, ASKING, InProcess(), users_per_part=1)
    assert first["pairs"] == 5
    before = {path.name: path.read_bytes() for path in places.out.glob("part-*")}
    pq.write_table(kept, places.candidates / "candidates.parquet")
    then = judge_in_parts(places, ASKING, InProcess(), users_per_part=3)
    assert then["pairs"] == kept.num_rows == len(judged_in(places.out))
    assert then["pairs_this_time"] == kept.num_rows - 5
    assert (
        before.items()
        <= {path.name: path.read_bytes() for path in places.out.glob("part-*")}.items()
    )
    # Nor is the model loaded where all is judged.
    monkeypatch.setattr(module, "_opened", None)
    again = judge_in_parts(places, ASKING, InProcess(), users_per_part=3)
    assert again["pairs_this_time"] == 0
    assert again["seconds"] == then["seconds"]


class _DiesAtPart:
    """An executor whose process ends in the middle."""

    def __init__(self, part: int) -> None:
        self.part = part

    def map(self, function, tasks, *, description):
        assert description == "judge"
        for number, task in enumerate(tasks):
            if number == self.part:
                raise KeyboardInterrupt
            function(task, task.out)
        return []


@pytest.mark.parametrize("goes_on", [judge_in_parts, judge_here])
def test_a_call_that_was_ended_loses_no_part(places: Places, goes_on) -> None:
    with pytest.raises(KeyboardInterrupt):
        judge_in_parts(places, ASKING, _DiesAtPart(2), users_per_part=2)
    assert not list(places.out.glob("part-*"))
    parts = sorted((places.out / WORK).glob(ASKED))
    rows = [pq.read_metadata(one / "candidates.parquet").num_rows for one in parts]
    done = sum([count for count in rows if count][:2])
    more = {} if goes_on is judge_here else {"users_per_part": 3}
    executor = () if goes_on is judge_here else (InProcess(),)
    facts = goes_on(places, ASKING, *executor, **more)
    assert facts["pairs"] == len(judged_in(places.out))
    assert facts["pairs_this_time"] == facts["pairs"] - done
    assert not (places.out / WORK).exists()


def test_a_killed_worker_goes_on_after_its_last_user(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def killed(requests, judge, folder):
        one, *_ = requests
        asked.append(one.user_id)
        real([one], judge, folder)

    real = module.judge_requests
    with monkeypatch.context() as patch:
        patch.setattr(module, "judge_requests", killed)
        patch.setattr("sgrec_torchrec.judge.journal.Journal.seal", _die)
        with pytest.raises(KeyboardInterrupt):
            judge_in_parts(places, ASKING, InProcess(), users_per_part=9)
    assert not list((places.out / WORK).glob("judged-*/part-*"))
    facts = judge_in_parts(places, ASKING, InProcess(), users_per_part=9)
    assert facts["pairs"] == len(judged_in(places.out))
    of_first = [user for user, _ in judged_in(places.out) if user == asked[0]]
    assert facts["pairs_this_time"] == facts["pairs"] - len(of_first)


def test_a_journal_of_one_process_is_taken_over(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sgrec_torchrec.judge.journal.Journal.seal", _die)
        with pytest.raises(KeyboardInterrupt):
            judge_here(places, ASKING)
    assert not list(places.out.glob("part-*"))
    monkeypatch.setattr(module, "_opened", None)
    facts = judge_in_parts(places, ASKING, InProcess(), users_per_part=9)
    assert facts["pairs"] == len(judged_in(places.out))
    assert facts["pairs_this_time"] == 0


def _die(_journal: object) -> None:
    raise KeyboardInterrupt


def test_two_calls_do_not_judge_into_one_folder(places: Places) -> None:
    places.out.mkdir()
    with (
        module.locked(places.out),
        pytest.raises(BlockingIOError, match="another process is judging"),
    ):
        judge_in_parts(places, ASKING, InProcess(), users_per_part=9)


def test_a_damaged_part_is_not_moved_in(places: Places) -> None:
    with pytest.raises(KeyboardInterrupt):
        judge_in_parts(places, ASKING, _DiesAtPart(1), users_per_part=2)
    (part,) = (places.out / WORK).glob("judged-*/part-*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(DamagedError, match=part.name):
        judge_in_parts(places, ASKING, InProcess(), users_per_part=2)
    part.unlink()
    facts = judge_in_parts(places, ASKING, InProcess(), users_per_part=2)
    assert facts["pairs"] == len(judged_in(places.out))


@pytest.mark.parametrize("name", ["part-00000.parquet", "users.parquet"])
def test_what_changed_since_an_earlier_call_is_refused_before_any_worker_starts(
    places: Places, name: str
) -> None:
    judge_in_parts(places, ASKING, InProcess(), users_per_part=9)
    path = places.out / name
    pq.write_table(pq.read_table(path), path, compression="gzip")
    with pytest.raises(DamagedError, match=name):
        judge_in_parts(places, ASKING, _DiesAtPart(0), users_per_part=9)


def test_a_user_of_another_history_is_refused_before_any_worker_starts(
    places: Places,
) -> None:
    judge_in_parts(places, ASKING, InProcess(), users_per_part=9)
    path = places.candidates / "users.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["history_hash"] += 1
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match=f"{rows[1]['user_id']}.*another history"):
        judge_in_parts(places, ASKING, _DiesAtPart(0), users_per_part=9)


def test_a_user_whom_the_judge_learned_from_is_refused_before_any_worker_starts(
    places: Places, labels
) -> None:
    learned = next(one.case.user for one in labels if not one.is_held_out)
    path = places.candidates / "users.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["user_id"] = f"u{learned}"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match="has learned from user"):
        judge_in_parts(places, ASKING, _DiesAtPart(0), users_per_part=9)


def test_no_pairs_are_refused(places: Places) -> None:
    path = places.candidates / "candidates.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="nothing to judge"):
        judge_in_parts(places, ASKING, InProcess(), users_per_part=9)


def test_every_row_goes_to_one_part_in_order(places: Places, tmp_path: Path) -> None:
    users, pairs = (
        places.candidates / name for name in ("users.parquet", "candidates.parquet")
    )
    assert num_parts(users, 2) == 4
    folders = cut_candidates(users, pairs, [], tmp_path / "cut", 4)
    rows = pq.read_table(pairs).to_pylist()
    seen = []
    for folder in folders:
        own = {row["user_id"] for row in pq.read_table(folder / users.name).to_pylist()}
        got = pq.read_table(folder / pairs.name).to_pylist()
        assert got == [row for row in rows if row["user_id"] in own]
        seen += got
    assert len(seen) == len(rows)
    assert len(folders) > 1


def test_parts_carry_the_seal_of_the_judge(places: Places) -> None:
    judge_in_parts(places, ASKING, InProcess(), users_per_part=2)
    facts = read_sealed(
        places.out / "manifest.json",
        {"sha256": dict},
        format_version=FORMAT_VERSION,
        mend="",
    )
    names = {path.name for path in places.out.glob("*.parquet")}
    assert set(facts["sha256"]) == names


def test_the_judge_is_opened_once_a_worker(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    module._opened.cache_clear()
    opened = []
    real = module.open_asked
    monkeypatch.setattr(
        module, "open_asked", lambda *words: opened.append(words) or real(*words)
    )
    judge_in_parts(places, ASKING, InProcess(), users_per_part=2)
    assert len(opened) == 1
