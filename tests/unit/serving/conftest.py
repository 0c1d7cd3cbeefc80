"""The shared run as recommenders, and its test rows as requests."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from typer.testing import CliRunner

from sgrec_torchrec.cli import app
from sgrec_torchrec.experiments.measure_export import row_events
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.logs.split_store import load_split
from sgrec_torchrec.serving import History, Recommender
from sgrec_torchrec.serving.package import write_package
from sgrec_torchrec.serving.run_files import event_types

WEIGHT = 0.6
# Thousands of cases, the same ones in each run; the first that fails is told as it is.
settings.register_profile(
    "fuzz",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def one_thread_here() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def served_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run whose evaluation chose a weight that shows."""
    out_dir = tmp_path_factory.mktemp("served")
    shutil.copytree(finished_run.parent, out_dir, symlinks=True, dirs_exist_ok=True)
    path = out_dir / "tiny" / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    write_sealed(path, results | {"prior_weight": WEIGHT})
    return out_dir / "tiny"


@pytest.fixture(scope="session")
def recommender(served_run: Path) -> Recommender:
    return Recommender.load(served_run)


@pytest.fixture(scope="session")
def package(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the run. Do not change what it holds."""
    folder = tmp_path_factory.mktemp("package") / "tiny"
    write_package(recommender.parts, folder)
    return folder


@pytest.fixture(scope="session")
def compiled_package(
    served_run: Path, once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """The same with programs, as the command writes it: compiled once for all tests."""
    if shutil.which("g++") is None:
        pytest.skip("compiling needs g++")

    def compile_in(folder: Path) -> None:
        words = ["export", str(served_run), "--out", str(folder / "tiny"), "--compile"]
        made = CliRunner().invoke(app, words, catch_exceptions=False)
        assert made.exit_code == 0, made.output

    return once("compiled", compile_in) / "tiny"


@pytest.fixture(scope="session")
def row_histories(served_run: Path) -> list[History]:
    """What the user of each test row had done before, in the order of the rows."""
    split, names = load_split(served_run / "split"), event_types(served_run)
    return [row_events(split, split.test, row, names) for row in range(len(split.test))]
