"""The table over seeds and protocols, from runs that only write made-up figures."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import Ranks
from sgrec_torchrec.evaluation.baselines import BASELINES, Baseline
from sgrec_torchrec.evaluation.compare import hits_path, write_hits
from sgrec_torchrec.evaluation.ranking import metric_names
from sgrec_torchrec.experiments import seeds as table
from sgrec_torchrec.experiments.sequential_peer import SYSTEM, SequentialPeer
from sgrec_torchrec.schema import Catalogue, EvalRows, SplitLog
from sgrec_torchrec.train import RunResult

NUM_USERS = 8
SLICES = {"cold": {"rows": 2, "HR@10": 0.5}, "short": {"rows": 3, "HR@10": 0.25}}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the benchmark asked of one run."""

    config: RunConfig
    resume: bool
    if_there: str
    baselines: Mapping[str, Baseline]


def tiny_split() -> SplitLog:
    """Eight users of a row each; nothing else takes part."""
    zeros = np.zeros(NUM_USERS, dtype=np.int32)
    rows = EvalRows(
        user_E=np.arange(NUM_USERS),
        history_start_E=zeros,
        history_end_E=zeros,
        target_E=zeros,
        target_timestamp_E=zeros.astype(np.int64),
    )
    names = ["x"]
    catalogue = Catalogue(
        item_ids=names, titles=names, brands=names, categories=names, texts=names,
        embedding_ND=None, sid_NL=None,
    )  # fmt: skip
    return SplitLog(
        sequences=None, valid=rows, test=rows, catalogue=catalogue,  # type: ignore[arg-type]
        user_ids=[f"u{n}" for n in range(NUM_USERS)], protocol="given",
    )  # fmt: skip


def write_run(config: RunConfig, baselines: Mapping[str, Baseline]) -> None:
    """Results and hits: the generator finds seed + 2 targets, the others one."""
    base = 0.1 * (config.seed + 1) + (config.log.fit_on != "train")
    folder = config.run_dir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    split, place = tiny_split(), np.arange(NUM_USERS)
    systems = []
    for name in ("generator", *baselines):
        extra, num_found = (0.05, config.seed + 2) if name == "generator" else (0, 1)
        metrics = dict.fromkeys(metric_names(), base + extra)
        intervals = {"HR@10": [0.1, 0.9]}
        systems.append(
            {"system": name, "metrics": metrics, "intervals": intervals, **SLICES}
        )
        ranks = (place < num_found).astype(np.int32)
        write_hits(hits_path(folder, name), split, split.test, place, ranks)
    results = {
        "protocol": config.log.protocol,
        "systems": systems,
        "prior_weight": 0.4,
        "seconds": {"pretrain": 12.5},
    }
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def runs(world_of_one, monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Each run that the benchmark asked for, in order."""
    asked: list[Asked] = []

    def run(
        config: RunConfig,
        ranks: Ranks,
        *,
        resume: bool,
        if_there: str,
        baselines: Mapping[str, Baseline],
    ) -> RunResult:
        assert ranks.world_size == 1
        asked.append(
            Asked(
                config=config,
                resume=resume,
                if_there=if_there,
                baselines=dict(baselines),
            )
        )
        write_run(config, baselines)
        return RunResult(best_epoch=3 + config.seed, prior_weight=0.4)

    monkeypatch.setattr(table, "run", run)
    return asked


def benchmark(data: str, tmp_path: Path, **settings) -> list[dict[str, object]]:
    """One seed under ``tmp_path`` and no file, unless told otherwise."""
    defaults = {"num_seeds": 1, "json_path": None}
    assignments = [f"out_dir={tmp_path}", *settings.pop("assignments", [])]
    return table.benchmark(data, **{**defaults, **settings}, assignments=assignments)


def test_every_seed_is_one_run_with_its_own_folder(runs, tmp_path, capsys) -> None:
    path = tmp_path / "rows.json"
    rows = benchmark(
        "movielens",
        tmp_path,
        num_seeds=3,
        json_path=path,
        assignments=["pretrain.num_epochs=7"],
    )
    assert [one.config.seed for one in runs] == [0, 1, 2]
    assert [one.config.name for one in runs] == [
        f"benchmark/movielens/train-{seed}" for seed in range(3)
    ]
    assert {one.config.pretrain.num_epochs for one in runs} == {7}
    # Its folders are its own: other settings are measured in their place.
    assert {one.if_there for one in runs} == {"replace"}
    written = json.loads(path.read_text())
    assert written["rows"] == rows
    assert written["world_size"] == 1
    assert "meta" in written
    # Medians over 3 seeds of 0.15, 0.25, 0.35, with their range.
    assert "0.2500" in capsys.readouterr().out


def test_rows_carry_what_the_run_wrote(runs, tmp_path) -> None:
    rows = benchmark("movielens", tmp_path, num_seeds=2)
    assert [row["system"] for row in rows if row["seed"] == 1] == ["generator"]
    assert rows[-1] == {
        "data": "movielens",
        "protocol": "leave-last-out, fitted on train",
        "system": "generator",
        "seed": 1,
        "prior_weight": 0.4,
        "seconds": {"pretrain": 12.5},
        "slices": SLICES,
        "intervals": {"HR@10": [0.1, 0.9]},
        **dict.fromkeys(metric_names(), 0.25),
    }


def test_baselines_without_a_seed_are_measured_with_the_first_one(
    runs, tmp_path
) -> None:
    rows = benchmark("office", tmp_path, num_seeds=2)
    names = [list(one.baselines) for one in runs]
    # Both periods of the first seed, and neither of the second.
    assert names == [list(BASELINES), list(BASELINES), [], []]
    seeds = {row["seed"] for row in rows if row["system"] != "generator"}
    assert seeds == {0}
    assert len(rows) == 2 * (1 + len(BASELINES)) + 2


def test_office_is_fitted_again_with_what_the_first_run_chose(runs, tmp_path) -> None:
    rows = benchmark("office", tmp_path, num_seeds=2)
    configs = [one.config for one in runs]
    assert [(config.seed, config.log.fit_on) for config in configs] == [
        (0, "train"),
        (0, "train+valid"),
        (1, "train"),
        (1, "train+valid"),
    ]
    first, refit = configs[2:]
    assert first.pretrain.stop_after_epochs is None
    assert first.evaluation.prior_weight is None
    assert refit.pretrain.stop_after_epochs == 4
    assert refit.pretrain.num_epochs == first.pretrain.num_epochs
    assert refit.evaluation.prior_weight == 0.4
    assert refit.run_dir == tmp_path / "benchmark" / "office" / "train+valid-1"
    assert {row["protocol"] for row in rows} == {
        "given, fitted on train",
        "given, fitted on train+valid",
    }


@pytest.mark.parametrize("resume", [False, True])
def test_every_run_is_told_whether_to_go_on(runs, tmp_path, resume) -> None:
    benchmark("office", tmp_path, num_seeds=2, resume=resume)
    assert [one.resume for one in runs] == [resume] * 4


def test_the_peer_has_its_own_number_of_seeds_and_one_search(runs, tmp_path) -> None:
    benchmark("office", tmp_path, num_seeds=3, num_peer_seeds=2, tune_minutes=1.5)
    peers = [one.baselines.get(SYSTEM) for one in runs]
    assert peers[4:] == [None, None]
    exchange = tmp_path / "benchmark" / "office" / "sasrec"
    expected = [
        SequentialPeer(
            folder=exchange / period,
            tuned_in=exchange / "train",
            seed=seed,
            max_history=10,
            tune_minutes=1.5,
        )
        for seed in (0, 1)
        for period in ("train", "train+valid")
    ]
    assert peers[:4] == expected


def test_no_peer_seeds_mean_no_peer(runs, tmp_path) -> None:
    benchmark("movielens", tmp_path, num_seeds=2)
    assert not any(SYSTEM in one.baselines for one in runs)


def test_table_shows_the_median_with_its_range(runs, tmp_path) -> None:
    rows = benchmark("movielens", tmp_path, num_seeds=3)
    shown = table._table(rows)
    assert shown.row_count == 1 + len(BASELINES)
    assert list(shown.columns[1].cells)[:2] == ["generator", "popularity"]
    assert list(shown.columns[2].cells)[:2] == ["3", "1"]
    cells = list(shown.columns[3].cells)
    assert cells[:2] == ["0.2500 [0.1500, 0.3500]", "0.1000"]


def test_table_shows_slices_where_they_have_rows_and_the_generators_cost() -> None:
    figures = {"protocol": "p", **dict.fromkeys(metric_names(), 0.1)}
    empty = {"cold": {"HR@10": None}, "short": {"HR@10": None}}
    some = {"cold": {"HR@10": 0.25}, "short": {"HR@10": 0.5}}
    more = {"cold": {"HR@10": None}, "short": {"HR@10": 0.75}}
    # 30 + 60 seconds are 1.5 minutes, the longest of the seeds.
    cost = {"seconds": {"log": 30.0, "pretrain": 60.0}}
    quick = {"seconds": {"pretrain": 6.0}}
    rows = [
        {**figures, **cost, "system": "generator", "slices": some},
        {**figures, **quick, "system": "generator", "slices": more},
        {**figures, **cost, "system": "popularity", "slices": empty},
    ]
    columns = {str(one.header): list(one.cells) for one in table._table(rows).columns}
    assert columns["cold HR@10"] == ["0.2500", ""]
    assert columns["short HR@10"] == ["0.6250 [0.5000, 0.7500]", ""]
    assert columns["train min"] == ["1.5", ""]


def test_all_seeds_of_both_sides_are_compared(runs, tmp_path) -> None:
    path = tmp_path / "rows.json"
    benchmark("office", tmp_path, num_seeds=3, num_peer_seeds=2, json_path=path)
    comparisons = json.loads(path.read_text())["comparisons"]
    assert {row["against"] for row in comparisons} == {*BASELINES, SYSTEM}
    protocols = {row["protocol"] for row in comparisons}
    assert protocols == {"given, fitted on train", "given, fitted on train+valid"}
    assert len(comparisons) == 2 * (len(BASELINES) + 1) * len(metric_names())
    for row in comparisons:
        if row["metric"] != "HR@10":
            continue
        # 2, 3 and 4 of 8 targets are found by the seeds, and one by anything else.
        assert row["value_b"] == pytest.approx((2 + 3 + 4) / 3 / 8)
        assert row["value_a"] == pytest.approx(1 / 8)
        assert row["difference"] == pytest.approx(3 / 8 - 1 / 8)
        assert row["low"] <= row["difference"] <= row["high"]
        assert 0 < row["p_value"] <= 1


def test_comparison_table_shows_the_lead_of_the_headline_metric() -> None:
    figures = {"protocol": "p", "low": 0.005, "high": 0.035, "p_value": 0.01}
    lead = {**figures, "metric": "NDCG@10", "value_a": 0.08, "difference": 0.02}
    rows = [
        {**lead, "against": "item-kNN"},
        {**lead, "against": "nothing", "value_a": 0.0},
        {**lead, "against": "item-kNN", "metric": "HR@10"},
    ]
    shown = table._comparison_table(rows)
    assert shown.row_count == 2
    cells = [list(column.cells) for column in shown.columns]
    assert cells[1] == ["item-kNN", "nothing"]
    # .02 of .08 is a quarter; of nothing it is no share.
    assert cells[2] == ["+0.0200 (+25.0 %)", "+0.0200"]
    assert cells[3] == ["[+0.0050, +0.0350]"] * 2
    assert cells[4] == ["0.0100"] * 2


def test_only_the_main_rank_gives_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    nowhere = RunConfig(name="nowhere")
    assert table._rows("movielens", nowhere) == []
    assert table._compared([nowhere]) == []


def test_unknown_log_and_setting_are_refused(runs, tmp_path) -> None:
    with pytest.raises(ValueError, match="unknown log 'netflix': choose one of"):
        benchmark("netflix", tmp_path)
    with pytest.raises(ValueError, match="no field 'width'"):
        benchmark("office", tmp_path, assignments=["generator.width=1"])
    assert runs == []
