"""A package of one's own adds an importer, a relation, a reward and a judge backend.

``examples/own_package`` is installed, as a user would, and each part is used as a user
would: by its name.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec import cli
from sgrec_torchrec.distributed.checkpoint import latest_checkpoint, read_extra
from sgrec_torchrec.evidence.prior import FIRST_RELATIONS, load_relations
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.prompt import PromptSettings
from sgrec_torchrec.judge.judge_files import write_judge
from sgrec_torchrec.judge.learn.user_weights import UserNetwork, save_network
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.serving.run_files import read_run

PACKAGE = Path(__file__).resolve().parents[1] / "examples" / "own_package"
NUM_ITEMS = 40
NUM_KINDS = 5
PIP = (
    *("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"),
    *("--no-index", "--no-compile", "--disable-pip-version-check", "--target"),
)
ALL_RELATIONS = (*FIRST_RELATIONS, "same-category")
Sgrec = Callable[..., str]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package, built and installed into a folder that only these tests see."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / "source")
    words = [sys.executable, *PIP, folder / "site", folder / "source"]
    subprocess.run(words, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        yield
    sys.modules.pop("own_parts", None)


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who walk through the items of one category, and now and then leave it."""
    noise = np.random.default_rng(0)
    lines = []
    for user in range(60):
        kind = user % NUM_KINDS
        for place in range(10):
            kind = kind if noise.random() < 0.8 else int(noise.integers(NUM_KINDS))
            item = kind + NUM_KINDS * int(noise.integers(NUM_ITEMS // NUM_KINDS))
            lines.append(f"u{user};i{item};kind {kind};{1_000_000 + 60 * place}\n")
    path = tmp_path_factory.mktemp("receipts") / "log.txt"
    path.write_text("".join(lines))
    return path


def call(*words: object) -> int:
    """``sgrec`` in this process -> its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sgrec", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def run_dir(
    package: None,
    receipts: Path,
    tiny_arguments: Callable[..., list[str]],
    train_here: Callable[[list[str]], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A small run that asks for all three parts that training uses."""
    out_dir = tmp_path_factory.mktemp("runs")
    changes = (
        "log.source=receipts",
        f"evidence.relations={','.join(ALL_RELATIONS)}",
        "evidence.num_folds=2",
        "pretrain.num_epochs=1",
        "align.num_steps=2",
        "align.global_batch_size=32",
        "align.num_rollouts=8",
        "align.business=rare-hits",
    )
    train_here(tiny_arguments(receipts, out_dir, *changes))
    return out_dir / "tiny"


def test_a_log_is_imported_by_the_importer_of_a_package(
    package: None, receipts: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "canonical"
    assert call("import", "receipts", "--path", receipts, "--out", out) == 0
    said = capsys.readouterr().out
    assert "receipts: 600 rows, 60 users, 40 items" in said
    assert "receipts of our shop" in said


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (("import", "--help"), "receipts of own-package 0.1"),
        (("judge", "run", "--help"), "word-judge of own-package 0.1"),
    ],
)
def test_help_names_what_a_package_adds(
    package: None, words: tuple[str, ...], added: str, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(*words) == 0
    assert f"From installed packages: {added}." in capsys.readouterr().out


def test_a_wrong_name_is_told_those_of_the_package_too(package: None, capsys) -> None:
    assert call("import", "receipt", "--out", "x") == 2
    assert "choose one of movielens, " in (said := capsys.readouterr().err)
    assert "canonical, receipts (packages add to sgrec.importers)" in said


def test_a_run_uses_the_relation_of_a_package(run_dir: Path) -> None:
    manifest = json.loads((run_dir / "evidence" / "evidence.json").read_text())
    assert tuple(manifest["relations"]) == ALL_RELATIONS
    relations = load_relations(run_dir / "evidence", ALL_RELATIONS)
    assert relations.num_relations == 7
    items = load_split(run_dir / "split").catalogue.categories
    first = 6 * len(items)
    for item, kind in enumerate(items):
        low, high = relations.indptr_R1[first + item : first + item + 2]
        near = relations.neighbours_E[low:high].tolist()
        assert sorted(near) == [
            other for other, its in enumerate(items) if its == kind and other != item
        ]


def test_evidence_of_other_relations_is_refused_by_their_names(run_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"visits-text, same-category, but evidence"):
        load_relations(run_dir / "evidence", FIRST_RELATIONS)


def test_a_served_run_needs_no_package_for_its_relations(run_dir: Path) -> None:
    parts = read_run(run_dir)
    assert parts.evidence is not None
    assert parts.evidence.relations.num_relations == 7
    assert parts.settings.evidence.relations is None


def test_post_training_earns_the_reward_of_a_package(run_dir: Path) -> None:
    lines = (run_dir / "aligned" / "metrics.jsonl").read_text().splitlines()
    rewards = [
        values["reward"]
        for line in lines
        if "reward" in (values := json.loads(line)["values"])
    ]
    # The next-item reward of a group sums to 0; this one never punishes.
    assert len(rewards) == 2
    assert all(0 < reward < 1 for reward in rewards)
    newest = latest_checkpoint(run_dir / "aligned" / "best")
    assert newest is not None
    made_of = read_extra(newest)["made_of"]
    assert made_of.endswith("-business-rare-hits of own-package 0.1")


def test_a_run_is_judged_by_the_backend_of_a_package(
    run_dir: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sgrec_torchrec.judge.ask.likeness.text_embedding",
        lambda texts: np.eye(len(texts), dtype=np.float32),
    )
    reader = CaseReader(load_split(run_dir / "split"), PromptSettings(max_history=4))
    write_small_judge(tmp_path / "judge", reader)
    write_candidates(tmp_path / "candidates", reader)
    words = ("--judge", tmp_path / "judge", "--candidates", tmp_path / "candidates")
    words += ("--out", tmp_path / "judged", "--backend", "word-judge")
    assert call("judge", "run", run_dir, *words) == 0
    manifest = json.loads((tmp_path / "judged" / "manifest.json").read_text())
    assert manifest["backend"] == "word-judge"
    (part,) = (tmp_path / "judged").glob("part-*.parquet")
    scores = pq.read_table(part).to_pylist()
    assert [row["item_id"] for row in scores] == ["i0", "i1", "i2"]
    assert all(0 <= row["reward"] <= 1 for row in scores)
    capsys.readouterr()
    assert call("judge", "run", run_dir, *words, "--url", "http://host") == 2
    assert "word-judge has no setting 'base_url'" in capsys.readouterr().err


def write_small_judge(folder: Path, reader: CaseReader) -> None:
    """A judge whose model is a name alone: the backend has its own."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    network = UserNetwork(len(reader.aspects), 4)
    save_network(network, folder / "aggregator.safetensors")
    write_judge(folder, reader, "network", {}, learned=["nobody"])


def write_candidates(folder: Path, reader: CaseReader) -> None:
    """Three candidates of one user."""
    folder.mkdir()
    at = Case(user=0, as_of=5, request_timestamp=0, items=())
    user = {
        "user_id": reader.split.user_ids[0],
        "as_of": 5,
        "history_hash": reader.history_hash(at),
        "request_timestamp": reader.next_timestamp(0, 5),
        "next_item_id": "i1",
    }
    pairs = [
        {"user_id": user["user_id"], "item_id": f"i{n}", "source": "beam"}
        for n in range(3)
    ]
    pq.write_table(pa.Table.from_pylist([user]), folder / "users.parquet")
    pq.write_table(pa.Table.from_pylist(pairs), folder / "candidates.parquet")
