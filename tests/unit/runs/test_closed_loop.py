"""Two rounds over a run that went through the pipeline: judged anew, published."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from sgrec_torchrec import cli
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.reward_table import RewardTable
from sgrec_torchrec.runs import closed_loop
from sgrec_torchrec.runs.closed_loop import (
    Round,
    close_loop,
    read_published,
    show_rounds,
)

NUM_PAIRS = 30


@pytest.fixture(scope="module")
def looped(
    piped_run: Path,
    piped_alone: FileLock,
    warm_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of a run after two rounds. Do not change it."""
    runs = tmp_path_factory.mktemp("looped") / "runs"
    with piped_alone:
        shutil.copytree(piped_run.parent, runs, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.executable", str(warm_python))
        close_loop(runs / "tiny", 2, NUM_PAIRS, [])
    return runs / "tiny"


def record(run_dir: Path, number: int) -> Round:
    path = run_dir / "loop" / f"round-{number:03d}" / "round.json"
    return Round(**without_seal(json.loads(path.read_text())))


def test_what_a_round_missed_is_judged_and_found_in_the_next(looped: Path) -> None:
    pairs = pq.read_table(looped / "loop" / "round-001" / "pairs.parquet").to_pylist()
    assert 0 < len(pairs) <= NUM_PAIRS
    counts = [pair["count_sum"] for pair in pairs]
    assert counts == sorted(counts, reverse=True)
    table = RewardTable.open(looped / "reward_table")
    users = [pair["user_id"] for pair in pairs]
    items = [pair["item_id"] for pair in pairs]
    assert table.lookup(users, items)[1].all()
    assert {segment.name for segment in table.manifest.segments} >= {"000001", "000002"}
    first, second = record(looped, 1), record(looped, 2)
    assert first.num_missed == len(pairs) == first.num_judged
    # The second round asked for no pair that the first had judged.
    path = looped / "loop" / "round-002" / "pairs.parquet"
    later = pq.read_table(path).to_pylist() if path.is_file() else []
    assert len(later) == second.num_missed
    again = {(pair["user_id"], pair["item_id"]) for pair in later}
    assert again.isdisjoint(zip(users, items, strict=True))
    assert second.judged_rollouts > first.judged_rollouts


def test_the_best_validation_is_published_with_its_sum(looped: Path) -> None:
    facts = read_published(looped)
    assert facts is not None
    rounds = [record(looped, number) for number in (1, 2)]
    best = max(rounds, key=lambda one: one.validation_ndcg)
    assert facts["validation_ndcg"] == best.validation_ndcg
    assert rounds[0].is_published
    assert rounds[1].is_published == (
        rounds[1].validation_ndcg > rounds[0].validation_ndcg
    )
    checkpoint = looped / facts["checkpoint"]
    sums = json.loads((checkpoint / "manifest.json").read_text())["sha256"]
    assert {name: sha256_file(checkpoint / name) for name in sums} == sums


def test_a_second_call_does_nothing_again(looped: Path, monkeypatch) -> None:
    monkeypatch.setattr(closed_loop, "run_steps", None)
    before = sorted((path, path.stat().st_mtime_ns) for path in looped.rglob("*.json"))
    rounds = close_loop(looped, 2, NUM_PAIRS, [])
    assert [one.number for one in rounds] == [1, 2]
    after = sorted((path, path.stat().st_mtime_ns) for path in looped.rglob("*.json"))
    assert before == after


def test_an_interrupted_round_goes_on_without_training_or_judging_again(
    looped: Path, capsys
) -> None:
    """As a kill before the round's record is written leaves it."""
    expected = record(looped, 2)
    (looped / "loop" / "round-002" / "round.json").unlink()
    table = (looped / "reward_table" / "manifest.json").read_bytes()
    assert close_loop(looped, 2, NUM_PAIRS, [])[1] == expected
    text = capsys.readouterr().out
    # Post-training; where anything was missed, judging and appending too.
    assert text.count(": reused") == (3 if expected.num_missed else 1)
    assert "begins" not in text
    assert (looped / "reward_table" / "manifest.json").read_bytes() == table


def test_what_another_table_has_made_goes_before_a_later_round(aligned: Path) -> None:
    table = aligned / "reward_table" / "manifest.json"
    table.parent.mkdir()
    table.write_text("one")
    rounds = [closed_loop._OneRound(run_dir=aligned, number=n) for n in (1, 2, 3)]
    for one in rounds[:2]:
        one._begin(one.folder / "begin.json")
    assert (aligned / "aligned").is_dir()
    table.write_text("grown")
    rounds[2]._begin(rounds[2].folder / "begin.json")
    assert not (aligned / "aligned").exists()


def loop_round(validation_ndcg: float, run_dir: Path, number: int) -> bool:
    one = closed_loop._OneRound(run_dir=run_dir, number=number)
    one.folder.mkdir(parents=True, exist_ok=True)
    (one.folder / "begin.json").write_text('{"table": "sum"}')
    return one._publish(validation_ndcg)


@pytest.fixture
def aligned(tmp_path: Path) -> Path:
    """A run with a checkpoint of one file."""
    folder = tmp_path / "aligned" / "best" / "step-000000000003"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("weights")
    sums = {"weights": sha256_file(folder / "weights")}
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}))
    return tmp_path


def test_only_a_better_validation_is_published_and_two_copies_are_kept(
    aligned: Path,
) -> None:
    assert loop_round(0.1, aligned, 1)
    assert not loop_round(0.1, aligned, 2)
    assert loop_round(0.2, aligned, 3)
    assert loop_round(0.3, aligned, 4)
    facts = read_published(aligned)
    assert facts is not None
    assert (facts["round"], facts["validation_ndcg"]) == (4, 0.3)
    kept = sorted(path.parent.name for path in aligned.glob("loop/*/checkpoint"))
    assert kept == ["round-003", "round-004"]


def test_a_round_that_published_before_it_was_interrupted_has_published(
    aligned: Path,
) -> None:
    assert loop_round(0.1, aligned, 1)
    assert loop_round(0.1, aligned, 1)


def test_a_damaged_checkpoint_is_not_published(aligned: Path) -> None:
    (aligned / "aligned/best/step-000000000003/weights").write_text("other")
    with pytest.raises(ValueError, match="weights differs from its sha256"):
        loop_round(0.1, aligned, 1)
    assert read_published(aligned) is None


def test_a_published_checkpoint_that_is_gone_is_named(aligned: Path) -> None:
    loop_round(0.1, aligned, 1)
    shutil.rmtree(aligned / "loop" / "round-001" / "checkpoint")
    with pytest.raises(ValueError, match=r"published\.json names .* gone or another"):
        read_published(aligned)


def test_misses_of_all_ranks_are_one_file_within_the_bound(aligned: Path) -> None:
    import pyarrow as pa

    for rank, rows in enumerate([[("u", "a", 3), ("u", "b", 1)], [("u", "b", 4)]]):
        names = ("user_id", "item_id", "count")
        table = pa.Table.from_pylist(
            [dict(zip(names, row, strict=True)) for row in rows]
        )
        source = pa.array(["miss"] * len(rows))
        pq.write_table(
            table.append_column("source", source),
            aligned / "aligned" / f"misses-{rank:05d}.parquet",
        )
    one = closed_loop._OneRound(run_dir=aligned, number=1)
    one.folder.mkdir(parents=True)
    assert one._collect(1) == 1
    pairs = pq.read_table(one.folder / "pairs.parquet").to_pylist()
    # b: 1 + 4 in all, a: 3.
    assert pairs == [{"user_id": "u", "item_id": "b", "source": "miss", "count_sum": 5}]
    assert closed_loop._OneRound(run_dir=aligned / "none", number=1)._collect(5) == 0


def test_what_the_newest_segment_was_made_of_is_appended(tmp_path: Path) -> None:
    one = closed_loop._OneRound(run_dir=tmp_path, number=1)
    part = one.folder / "judged" / "part-00000.parquet"
    part.parent.mkdir(parents=True)
    part.touch()
    manifest = tmp_path / "reward_table" / "manifest.json"
    manifest.parent.mkdir()

    def table_of(*sources: object) -> bool:
        segments = [{"sources": ["older"]}, {"sources": list(map(str, sources))}]
        manifest.write_text(json.dumps({"segments": segments}))
        return one._was_appended()

    assert table_of(part)
    assert not table_of(part.parent / "part-00001.parquet")
    assert not table_of(part, part.parent / "part-00001.parquet")
    # Judged anew since then.
    assert table_of(part)
    later_s = manifest.stat().st_mtime + 1
    os.utime(part, (later_s, later_s))
    assert not one._was_appended()


def test_rounds_are_shown_as_a_table(capsys) -> None:
    one = Round(
        number=1,
        best_step=0,
        validation_ndcg=0.0672,
        test_ndcg=0.0905,
        test_hit_rate=0.1657,
        judged_rollouts=0.037,
        num_missed=30,
        num_judged=29,
        is_published=True,
    )
    show_rounds([one, replace(one, number=2, best_step=40, is_published=False)])
    first, second = (
        line for line in capsys.readouterr().out.splitlines() if "0.0672" in line
    )
    assert "pretrained" in first
    assert "published" in first
    assert "40" in second
    assert "3.7%" in second
    assert asdict(one)["number"] == 1


@pytest.fixture
def sgrec(monkeypatch, capsys) -> Callable[..., str]:
    """sgrec(*words) -> the one line of its error."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["sgrec", "loop", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


def test_user_error_is_one_line(sgrec: Callable[..., str], aligned: Path) -> None:
    line = sgrec(aligned)
    assert "config.json is missing: go through `sgrec pipeline` first" in line
    assert "--rounds 0: give 1 to 999" in sgrec(aligned, "--rounds", 0)
    assert "--max-pairs 0" in sgrec(aligned, "--max-pairs", 0)
