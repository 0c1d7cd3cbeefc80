"""What the campaign breaks: a small generated log, runs of it, a package, a table."""

import csv
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faults.processes import Ended, run, start_ranks
from sgrec_torchrec.files.run_folder import (
    ALIGNED,
    EVALUATION,
    METRICS,
    PREPARED,
    RESULTS,
)
from sgrec_torchrec.files.tracking import read_metrics

NUM_USERS, NUM_ITEMS = 200, 60
SMALL = (
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
    "pretrain.checkpoint_every_steps=5",
    "pretrain.keep_checkpoints=3",
)
ALIGN = (
    "align.num_steps=12",
    "align.global_batch_size=32",
    "align.num_rollouts=8",
    "align.rollouts=sample",
    "align.valid_every_steps=4",
)
NAME = "tiny"


@dataclass(frozen=True, slots=True)
class Field:
    """Paths of what is whole; every trial breaks a copy."""

    root: Path

    @property
    def log(self) -> Path:
        """The canonical log."""
        return self.root / "log"

    @property
    def table(self) -> Path:
        """Rewards of 20 items of each user."""
        return self.root / "table"

    @property
    def package(self) -> Path:
        """What ``runs()`` exports."""
        return self.root / "package"

    def runs(self, num_ranks: int = 1, seed: int = 0) -> Path:
        """Folder of the uninterrupted run on so many ranks."""
        return self.root / f"runs-{num_ranks}-{seed}"

    def train(self, runs: Path, *changes: str) -> list[str]:
        """The command that makes a run, or goes on with it (``--resume``)."""
        words = ["train", "--run", "smoke", "--name", NAME]
        for one in (*SMALL, f"log.path={self.log}", f"out_dir={runs}"):
            words += ["--set", one]
        return [*words, *changes]

    def copy_runs(self, target: Path, *, prepared_only: bool, seed: int = 0) -> Path:
        """A copy that a trial may break: all, or what was prepared alone."""
        source = self.runs(seed=seed)
        if prepared_only:
            shutil.copytree(source / PREPARED, target / PREPARED, symlinks=True)
        else:
            shutil.copytree(source, target, symlinks=True)
        return target


def align_words() -> list[str]:
    """What post-trains a run by the business reward alone."""
    return ["--resume", *(word for one in ALIGN for word in ("--set", one))]


def make_field(root: Path) -> Field:
    """Generate, train on one and on two ranks, post-train, export, build a table."""
    field = Field(root)
    _write_log(root / "log.csv")
    _must(run("import", "table", "--path", root / "log.csv", "--out", field.log))
    for num_ranks, seed in ((1, 0), (2, 0), (1, 1)):
        words = field.train(field.runs(num_ranks, seed), "--set", f"seed={seed}")
        for rank in start_ranks(words, num_ranks):
            _must(rank.wait())
    _must(run("export", field.runs() / NAME, "--out", field.package))
    shutil.copytree(field.runs(), root / "aligned", symlinks=True)
    _must(run(*field.train(root / "aligned"), *align_words()))
    noise = np.random.default_rng(0)
    users = np.repeat([f"u{user}" for user in range(NUM_USERS)], 20)
    items = np.concatenate(
        [noise.choice(NUM_ITEMS, 20, replace=False) for _ in range(NUM_USERS)]
    )
    columns = {
        "user_id": users,
        "item_id": [f"i{item}" for item in items],
        "reward": noise.random(len(users)),
    }
    pq.write_table(pa.table(columns), root / "pairs.parquet")
    _must(run("table", "build", root / "pairs.parquet", "--out", field.table))
    return field


def losses(run_dir: Path, stage: str) -> list[tuple[int, float]]:
    """(step, loss) of a loop, as far as it has come."""
    path = (run_dir / ALIGNED if stage == "align" else run_dir) / METRICS
    if not path.exists():
        return []
    return [
        (line.step, line.values["loss"])
        for line in read_metrics(path)
        if line.stage == stage and "loss" in line.values
    ]


def figures(run_dir: Path) -> dict[str, dict[str, float]]:
    """All metrics of the evaluation, by system."""
    text = (run_dir / EVALUATION / RESULTS).read_text(encoding="utf-8")
    return {one["system"]: one["metrics"] for one in json.loads(text)["systems"]}


def _write_log(path: Path) -> None:
    """The next item follows from the one before, four times in five."""
    noise = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("user_id", "item_id", "timestamp"))
        for user in range(NUM_USERS):
            item = int(noise.integers(NUM_ITEMS))
            for place in range(int(noise.integers(8, 17))):
                writer.writerow((f"u{user}", f"i{item}", 1_600_000_000 + 60 * place))
                is_noise = noise.random() < 0.2
                item = int(noise.integers(NUM_ITEMS)) if is_noise else item * 7 + 3
                item %= NUM_ITEMS


def _must(ended: Ended) -> None:
    """The field itself has to be whole.

    Raises:
        RuntimeError: with all that the command said.
    """
    if ended.code != 0:
        raise RuntimeError(f"the field cannot be made: {ended.said}")


def remove(folder: Path) -> None:
    """What a trial made; links are not followed."""
    shutil.rmtree(folder, ignore_errors=True)
    assert not os.path.lexists(folder)
