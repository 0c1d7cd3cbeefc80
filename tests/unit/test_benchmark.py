"""The table over seeds and protocols, from runs that only write made-up figures."""

import json

import pytest

from sgrec_torchrec import benchmark as table
from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import Ranks
from sgrec_torchrec.evaluation.ranking import metric_names
from sgrec_torchrec.train import RunResult


@pytest.fixture
def runs(world_of_one, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Settings of each run that the benchmark asked for, in order."""
    asked: list[RunConfig] = []

    def run(config: RunConfig, ranks: Ranks) -> RunResult:
        assert ranks.world_size == 1
        asked.append(config)
        base = 0.1 * (config.seed + 1) + (config.log.fit_on != "train")
        systems = [
            {"system": name, "metrics": dict.fromkeys(metric_names(), base + extra)}
            for name, extra in (("generator", 0.05), ("popularity", 0.0))
        ]
        folder = config.run_dir / "evaluation"
        folder.mkdir(parents=True)
        results = {"protocol": config.log.protocol, "systems": systems}
        (folder / "results.json").write_text(json.dumps(results))
        return RunResult(best_epoch=3 + config.seed, prior_weight=0.4)

    monkeypatch.setattr(table, "run", run)
    return asked


def test_every_seed_is_one_run_with_its_own_folder(runs, tmp_path, capsys) -> None:
    path = tmp_path / "rows.json"
    rows = table.benchmark(
        "movielens",
        num_seeds=3,
        json_path=path,
        assignments=[f"out_dir={tmp_path}", "pretrain.num_epochs=7"],
    )
    assert [config.seed for config in runs] == [0, 1, 2]
    assert [config.name for config in runs] == [
        f"benchmark/movielens/train-{seed}" for seed in range(3)
    ]
    assert {config.pretrain.num_epochs for config in runs} == {7}
    assert json.loads(path.read_text())["rows"] == rows
    assert len(rows) == 6
    assert rows[2] == {
        "data": "movielens",
        "protocol": "leave-last-out, fitted on train",
        "system": "generator",
        "seed": 1,
        **dict.fromkeys(metric_names(), 0.25),
    }
    # Medians over 3 seeds of 0.15, 0.25, 0.35, with their range.
    assert "0.2500" in capsys.readouterr().out


def test_office_is_fitted_again_with_what_the_first_run_chose(runs, tmp_path) -> None:
    rows = table.benchmark(
        "office", num_seeds=2, json_path=None, assignments=[f"out_dir={tmp_path}"]
    )
    assert [(config.seed, config.log.fit_on) for config in runs] == [
        (0, "train"),
        (0, "train+valid"),
        (1, "train"),
        (1, "train+valid"),
    ]
    first, refit = runs[2:]
    assert first.pretrain.stop_after_epochs is None
    assert refit.pretrain.stop_after_epochs == 4
    assert refit.pretrain.num_epochs == first.pretrain.num_epochs
    assert refit.evaluation.prior_weight == 0.4
    assert refit.run_dir == tmp_path / "benchmark" / "office" / "train+valid-1"
    assert {row["protocol"] for row in rows} == {
        "given, fitted on train",
        "given, fitted on train+valid",
    }


def test_table_shows_the_median_with_its_range(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    rows = table.benchmark(
        "movielens", num_seeds=3, json_path=None, assignments=[f"out_dir={tmp_path}"]
    )
    shown = table._table(rows)
    assert shown.row_count == 2
    cells = list(shown.columns[3].cells)
    assert cells == ["0.2500 [0.1500, 0.3500]", "0.2000 [0.1000, 0.3000]"]


def test_only_the_main_rank_gives_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert table._rows("movielens", "train", 0, RunConfig(name="nowhere")) == []


def test_unknown_log_and_setting_are_refused(runs, tmp_path) -> None:
    with pytest.raises(ValueError, match="unknown log 'netflix': choose one of"):
        table.benchmark("netflix", num_seeds=1, json_path=None, assignments=[])
    with pytest.raises(ValueError, match="no field 'width'"):
        table.benchmark(
            "office", num_seeds=1, json_path=None, assignments=["generator.width=1"]
        )
    assert runs == []
