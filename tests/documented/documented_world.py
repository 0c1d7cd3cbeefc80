"""A small log under the names that the pages use, and their commands over it.

A command is run as it stands, in a folder where ``runs/movielens``, ``data/mine``,
``package``, ``table`` and the like exist, and user 42 and item 318 too. Only its size
is changed: settings of a small network go before the command's own, bounds of the
judge behind them (``smaller``).
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from documented_lines import ROOT, python_blocks

NUM_USERS, NUM_LEVELS, NUM_CODES = 120, 3, 8
ITEM_IDS = ["318", "593", "356", "527", *(str(1000 + nth) for nth in range(56))]
KINDS = ("Comedy", "Drama", "Comedy, Drama")
SMALLER = (
    "log.protocol=leave-last-out",
    "pretrain.num_epochs=1",
    "align.prompts_per_user=1",
    "align.global_batch_size=32",
    "align.num_rollouts=8",
    "align.rollouts=sample",
    "align.lr=1e-3",
    "align.valid_every_steps=2",
)
"""Beside the settings of the tests' other small runs."""
FEWER = {
    "align.num_steps": 4,
    "pretrain.num_epochs": 1,
    "generator.dim": 32,
}
"""Setting of a page -> its smallest form."""
JUDGE_BOUNDS = "--sft-updates 1 --grpo-steps 1 --max-held-out 4 --max-weight-cases 12"
PIPELINE_BOUNDS = "--sft-updates 2 --grpo-updates 1 --max-pairs 120"
OTHER_MODEL = "Qwen/Qwen3-4B"
"""Here a folder with the tiny model, which transformers takes before any download."""


def write_files(world: Path) -> None:
    """What a user would bring: a log and a catalogue, under all names of the pages."""
    noise = np.random.default_rng(0)
    count = len(ITEM_IDS)
    rows = []
    for user in range(1, NUM_USERS + 1):
        item = int(noise.integers(count))
        for place in range(int(noise.integers(9, 17))):
            rows.append((str(user), ITEM_IDS[item], 1_000_000 + 7_000 * place + user))
            is_noise = noise.random() < 0.2
            item = int(noise.integers(count)) if is_noise else (item * 7 + 3) % count
    users, items, times = map(list, zip(*rows, strict=True))
    log = pa.table(
        {"uid": users, "user_id": users, "sku": items, "item_id": items}
        | {"time": times, "timestamp": times}
    )
    pq.write_table(log, world / "log.parquet")
    clicks = log.select(["user_id", "item_id"]).append_column("position", log["time"])
    pa.csv.write_csv(clicks, world / "clicks.csv")
    titles = [f"Film {item_id} (1999)" for item_id in ITEM_IDS[1:]]
    titles.insert(0, "The Matrix (1999)")
    vectors = noise.standard_normal((count, 8)).astype(np.float32)
    codes = [[n % NUM_CODES, n // NUM_CODES, 0] for n in range(count)]
    catalogue = pa.table(
        {"item_id": ITEM_IDS, "sku": ITEM_IDS, "title": titles, "name": titles}
        | {"category": [KINDS[nth % len(KINDS)] for nth in range(count)]}
        | {"codes": codes, "embedding": vectors.tolist()}
    )
    pq.write_table(catalogue, world / "items.parquet")
    pairs = [(str(user), item) for user in range(1, NUM_USERS + 1) for item in ITEM_IDS]
    users, items = map(list, zip(*pairs, strict=True))
    dense = {
        "user_id": users,
        "item_id": items,
        "reward": noise.uniform(0, 50, len(pairs)),
    }
    pq.write_table(pa.table(dense), world / "ecpm.parquet")


@dataclass(frozen=True)
class World:
    """A folder to run commands in."""

    folder: Path
    small: tuple[str, ...]
    """``--set`` words of a small run."""
    model: Path
    """A tiny language model."""
    alone: Callable[[], AbstractContextManager[None]]

    def at(self, folder: Path) -> "World":
        """The same in a copy."""
        return World(folder, self.small, self.model, self.alone)

    def run(self, command: str) -> str:
        """Run it in this process; what it printed.

        Raises:
            AssertionError: where it ended with an error, showing what it said.
        """
        words = shlex.split(command)
        with self._inside() as patch:
            while re.match(r"[A-Z_]+=", words[0]):
                patch.setenv(*words.pop(0).split("=", 1))
            program, said = words.pop(0).rpartition("/")[2], io.StringIO()
            if program == "python":
                program = words.pop(0).rpartition("/")[2]
            main = {"sgrec": sgrec, "train.py": train}[program]
            patch.setattr(sys, "argv", [program])
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = main(self.smaller(words, of_train=program == "train.py"))
        assert code == 0, f"{command}: exit code {code}\n{said.getvalue()}"
        return said.getvalue()

    def execute(self, snippet: str, **names: object) -> dict[str, object]:
        """Run a snippet of Python; the names that it leaves."""
        known = dict(names)
        with self._inside(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(snippet, "<snippet>", "exec"), known)
        return known

    def smaller(self, words: list[str], *, of_train: bool = False) -> list[str]:
        """The words of ``sgrec`` (or of train.py) for a small network and judge."""
        named = {word.partition("=")[0] for word in words}
        fewer = [f"{name}={value}" for name, value in FEWER.items() if name in named]
        last = [word for one in fewer for word in ("--set", one)]
        model = [] if "--model" in words else ["--model", str(self.model)]
        if of_train:
            return [*self.small, *words, *last]
        if words[0] in ("train", "prepare"):
            return [words[0], *self.small, *words[1:], *last]
        if words[0] == "pipeline":
            own = [] if "--judge-model" in words else ["--judge-model", str(self.model)]
            last += [*PIPELINE_BOUNDS.split(), *own, "--set", "align.num_steps=4"]
            return ["pipeline", *self.small, *words[1:], *last]
        if words[0].startswith("benchmark"):
            peers = ["--peer-seeds", "0"] if words[0] == "benchmark" else []
            return [*words, *self.small, "--seeds", "1", *peers]
        if words[:2] == ["judge", "train"]:
            return [*words, *JUDGE_BOUNDS.split(), *model]
        if words[:2] == ["judge", "label"]:
            return [*words, "--max-cases", "60"]
        return words

    @contextlib.contextmanager
    def _inside(self) -> Iterator[pytest.MonkeyPatch]:
        with self.alone(), pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("COLUMNS", "200")
            # Steps of a row are processes of their own.
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.setenv("OMP_NUM_THREADS", "1")
            yield patch

    def shell(self, command: str, limit_s: float = 300) -> str:
        """Run it by bash, with the programs of this environment; what it printed."""
        folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = os.environ | {"PATH": ":".join(folders), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout


def bring_the_rest(world: World) -> None:
    """After a run was trained and judged: what the pages take for granted."""
    folder = world.folder
    run = folder / "runs" / "movielens"
    for theirs, ours in (
        (run / "table", folder / "table"),
        (run / "table", run / "reward_table"),
        (run / "judged", folder / "judged"),
        (run / "labels", folder / "my-labels"),
        (run, folder / "runs" / "wider"),
    ):
        shutil.copytree(theirs, ours, symlinks=True)
    (folder / "runs" / "mine").mkdir()
    (folder / "runs" / "mine" / "tokens").symlink_to((run / "tokens").readlink())
    part = min((run / "judged").glob("part-*.parquet"))
    shutil.copy(part, folder / "new.parquet")
    (snippet,) = (
        block
        for block in python_blocks(ROOT / "docs" / "how-to" / "own-reward-table.md")
        if "to_judge" in block
    )
    pairs = world.execute(snippet)["to_judge"]
    assert isinstance(pairs, pa.Table)
    rewards = np.linspace(0, 1, len(pairs))
    with_rewards = pairs.append_column("reward", pa.array(rewards))
    pq.write_table(with_rewards, folder / "rewards.parquet")


def sgrec(words: list[str]) -> int:
    """Exit code of ``sgrec``."""
    from sgrec_torchrec import cli

    sys.argv = ["sgrec", *words]
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def train(words: list[str]) -> int:
    """Exit code of ``train.py``."""
    from sgrec_torchrec.train import main

    try:
        main(words)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0
