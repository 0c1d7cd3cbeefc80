"""All arms on the planted log: same start, same mask, every arm tested and written."""

import itertools
import json
import shutil
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.evaluation.offline import NETWORK_ALONE
from sgrec_torchrec.experiments import fusions as module
from sgrec_torchrec.experiments.arm_report import HELD_OUT, LAST_STEP, SYSTEMS
from sgrec_torchrec.experiments.arms import ARMS, FEW, GRPO, PRETRAINED
from sgrec_torchrec.experiments.fusions import benchmark_a2po
from sgrec_torchrec.files.content_key import folder_key
from sgrec_torchrec.logs.judged_users import history_hash
from sgrec_torchrec.logs.prompts import eligible_prompts
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.reward_table import build_reward_table

STEPS = 3


def judged_everything(run: Path, folder: Path) -> Path:
    """A table with a made-up opinion of every item, for every user that is asked."""
    split = load_split(run / "split")
    ids, rows = split.catalogue.item_ids, []
    prompts = eligible_prompts(split, 0, 50)
    for user, as_of in zip(prompts.user_E, prompts.history_end_E, strict=True):
        first = int(split.sequences.offsets_U1[user])
        items = split.sequences.items_R[first : first + int(as_of)].tolist()
        user_id = split.user_ids[user]
        facts = {
            "user_id": user_id,
            "as_of": int(as_of),
            "history_hash": history_hash([ids[item] for item in items]),
        }
        rows += [
            facts
            | {
                "item_id": item,
                "reward": zlib.crc32(f"{user_id} {item}".encode()) % 97 / 97,
            }
            for item in ids
        ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "judged.parquet")
    build_reward_table(folder / "judged.parquet", folder / "table")
    return folder / "table"


@pytest.fixture
def base(finished_run: Path, tmp_path: Path, monkeypatch) -> RunConfig:
    """The settings of the finished run under a name of ours, weights in place."""
    runs = tmp_path / "runs"
    shutil.copytree(finished_run.parent, runs, symlinks=True)
    config = RunConfig.read(finished_run / "config.json")
    monkeypatch.setitem(RUNS, "planted", config)
    (runs / "benchmark" / "planted").mkdir(parents=True)
    return config


@pytest.fixture
def benchmark(base: RunConfig, world_of_one, tmp_path: Path):
    """benchmark(**changes) -> rows; the JSON is in rows.json."""
    out_dir = tmp_path / "runs"
    table = judged_everything(out_dir / base.name, tmp_path)

    def run(*assignments: str, **changes):
        words = {"table": table, "arms": None, "resume": False} | changes
        return benchmark_a2po(
            "planted",
            num_seeds=1,
            json_path=tmp_path / "rows.json",
            assignments=[
                f"out_dir={out_dir}",
                f"align.num_steps={STEPS}",
                *assignments,
            ],
            **words,
        )

    return run


def steps_of(tmp_path: Path) -> dict[str, list[dict]]:
    """Arm's folder -> the values of each line that its post-training wrote."""
    return {
        path.parent.parent.name: [
            json.loads(line)["values"] for line in path.read_text().splitlines()
        ]
        for path in tmp_path.glob("runs/benchmark/planted/*/aligned/metrics.jsonl")
    }


def test_all_arms_start_from_one_model_and_are_tested(
    benchmark, tmp_path: Path, capsys
) -> None:
    rows = benchmark("align.prompts=judged")
    assert {row["arm"] for row in rows} == set(ARMS)
    assert {row["system"] for row in rows} == set(SYSTEMS)
    whole = json.loads((tmp_path / "rows.json").read_text())
    tested = {(one["arm"], one["against"]) for one in whole["comparisons"]}
    others = [arm for arm in ARMS if arm != PRETRAINED]
    assert tested == {
        (arm, against)
        for arm, against in itertools.product(others, (PRETRAINED, GRPO))
        if arm != against
    }
    metrics = steps_of(tmp_path)
    assert len(metrics) == len(others)
    starts = {lines[0]["pretrained NDCG@10"] for lines in metrics.values()}
    assert len(starts) == 1
    # The first step's groups are of the same policy, so the same ones are judged.
    share = {arm: lines[1]["judged_share"] for arm, lines in metrics.items()}
    (few,) = [share.pop(arm) for arm in list(share) if FEW in arm]
    assert len(set(share.values())) == 1
    assert few < min(share.values())
    assert "a2po-shuffled" in capsys.readouterr().out


def test_every_figure_of_an_arm_is_there(benchmark, tmp_path: Path) -> None:
    rows = benchmark("align.prompts=judged", arms=["a2po", PRETRAINED])
    assert [row["arm"] for row in rows[:: len(SYSTEMS)]] == [PRETRAINED, "a2po"]
    for row in rows:
        assert 0 < row["coverage"] <= 1
        if row["system"] == HELD_OUT:
            # The judge's own users: nobody was asked about them, nothing was judged.
            assert row["judged reward@10"] is row["in table@10"] is None
        else:
            assert row["in table@10"] == 1.0
            assert 0 < row["judged reward@10"] < 1
        assert 0 < row["NDCG@10"] < row["HR@10"] < 1
        assert 0 < row["value@10"] < row["HR@10"]
    size = {row["system"]: row["rows"] for row in rows}
    assert 0 < size.pop(HELD_OUT) < min(size.values()) == max(size.values())
    whole = json.loads((tmp_path / "rows.json").read_text())
    assert whole["align"]["table"] == folder_key(tmp_path / "table")
    pretrained, arm = whole["runs"]
    assert pretrained["shares"] == {}
    assert arm["shares"]["in_table_share"] == 1.0
    assert arm["shares"]["missed_rollouts"] == 0.0
    assert 0 < arm["shares"]["live_in_table"] <= 1
    assert arm["shares"]["bound_violations"] == 0.0
    # The guard never ships what is worse than its start.
    assert arm["valid NDCG@10"] >= pretrained["valid NDCG@10"] > 0
    assert pretrained["made_of"] == arm["made_of"]


def test_rows_that_an_arm_learns_from_do_not_guard_it(
    benchmark, tmp_path: Path
) -> None:
    rows = benchmark("align.prompts=fresh", arms=[PRETRAINED, GRPO])
    whole = json.loads((tmp_path / "rows.json").read_text())
    pretrained = {row["system"]: row for row in rows if row["arm"] == PRETRAINED}
    # The guard sees just the rows of the users that are not asked.
    guard = whole["runs"][0]["valid NDCG@10"]
    assert pretrained[HELD_OUT]["NDCG@10"] == pytest.approx(guard, rel=1e-6)


def test_the_last_step_is_shown_where_the_guard_ships_the_pretrained_model(
    benchmark, tmp_path: Path
) -> None:
    rows = benchmark("align.lr=0.5", "align.warmup_steps=0", arms=[PRETRAINED, GRPO])
    whole = json.loads((tmp_path / "rows.json").read_text())
    assert [one["best_step"] for one in whole["runs"]] == [0, 0]
    figures = {(row["arm"], row["system"]): row["NDCG@10"] for row in rows}
    start = figures[PRETRAINED, NETWORK_ALONE]
    assert figures[PRETRAINED, LAST_STEP] == figures[GRPO, NETWORK_ALONE] == start
    assert figures[GRPO, LAST_STEP] < start


def test_done_arms_are_kept_until_what_made_them_changes(
    benchmark, tmp_path: Path, capsys, monkeypatch
) -> None:
    aligned: list[str] = []
    real = module.align

    def noted(aligner, *words, **more):
        aligned.append(aligner.config.name)
        return real(aligner, *words, **more)

    monkeypatch.setattr(module, "align", noted)
    first = benchmark(arms=[PRETRAINED, GRPO])
    capsys.readouterr()
    assert benchmark(arms=[PRETRAINED, GRPO], resume=True) == first
    assert len(aligned) == 1
    assert capsys.readouterr().out.count("done before, in") == 2
    # A new arm, other settings and a table of other content are work; a new place
    # of the same table is none.
    benchmark(arms=[GRPO, "a2po"], resume=True)
    benchmark("align.lr=1e-3", arms=[GRPO], resume=True)
    assert len(aligned) == len(set(aligned)) == 3
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "table", moved)
    benchmark(arms=[GRPO], resume=True, table=moved)
    assert len(aligned) == 3
    judged = pq.read_table(tmp_path / "judged.parquet").slice(0, 600)
    pq.write_table(judged, tmp_path / "fewer.parquet")
    build_reward_table(tmp_path / "fewer.parquet", tmp_path / "fewer")
    benchmark(arms=[GRPO], resume=True, table=tmp_path / "fewer")
    assert len(aligned) == len(set(aligned)) == 4
    # Without --resume an arm is run again, in its own folder.
    benchmark(arms=[GRPO])
    assert len(aligned) == 5
    assert len(set(aligned)) == 4


def test_a_trained_model_is_not_trained_or_evaluated_again(
    benchmark, monkeypatch
) -> None:
    first = benchmark(arms=[PRETRAINED])

    def never(*words: object, **more: object) -> None:
        raise AssertionError("the pretrained model is there")

    with monkeypatch.context() as patch:
        patch.setattr(module, "run", never)
        assert benchmark(arms=[PRETRAINED]) == first
        with pytest.raises(AssertionError, match="is there"):
            benchmark("pretrain.num_epochs=3", arms=[PRETRAINED])


def test_judged_prompts_are_checked_before_any_training(benchmark, monkeypatch) -> None:
    def never(*words: object, **more: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(module, "run", never)
    with pytest.raises(ValueError, match=r"needs .*align\.table"):
        benchmark("align.prompts=judged", table=None)
    with pytest.raises(ValueError, match="arm 'a2po' needs a judge"):
        benchmark(table=None, arms=["a2po"])
    with pytest.raises(ValueError, match=r"unknown arm 'best': choose of pretrained,"):
        benchmark(arms=["best"])
    with pytest.raises(FileNotFoundError, match="no-table"):
        benchmark(table=Path("no-table"))


def test_an_unknown_log_is_named() -> None:
    with pytest.raises(ValueError, match="unknown log 'nothing': choose one of"):
        benchmark_a2po(
            "nothing", num_seeds=1, table=None, json_path=None, assignments=[]
        )


def test_a_table_that_is_not_there_is_named_before_anything_is_prepared(
    monkeypatch,
) -> None:
    monkeypatch.setattr(module, "process_group", None)
    with pytest.raises(FileNotFoundError, match="no-table"):
        benchmark_a2po(
            "smoke",
            num_seeds=1,
            table=Path("no-table"),
            json_path=None,
            assignments=[],
        )
