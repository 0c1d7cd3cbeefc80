"""What reads a folder, and its answer as text: the same files give the same text."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from faults.damage import command
from faults.field import NUM_ITEMS, NUM_USERS, figures
from sgrec_torchrec.files.run_folder import CANDIDATE_PAIRS, CANDIDATES
from sgrec_torchrec.reward_table import RewardTable


def recommend(run_dir: Path) -> str:
    """A user's list."""
    return command("recommend", run_dir, "--user", "u3", "--k", "10")


def recommend_of_package(package: Path) -> str:
    """A history's list."""
    return command("recommend", package, "--item", "i3", "--item", "i24", "--k", "10")


def evaluate(run_dir: Path) -> str:
    """All figures, ranked again."""
    command("evaluate", run_dir)
    return json.dumps(figures(run_dir))


def resume(run_dir: Path) -> str:
    """What goes on with a run that is done: everything is read and compared."""
    command("train", "--config", run_dir / "config.json", "--resume")
    return json.dumps(figures(run_dir))


def export(run_dir: Path, out: Path) -> str:
    """What a new package of the run recommends, with its scores."""
    command("export", run_dir, "--out", out)
    return recommend_of_package(out)


def verified_table(folder: Path) -> str:
    """All pairs, as training opens a table."""
    return _lookups(folder, verify=True)


def table(folder: Path) -> str:
    """All pairs, as a table is opened elsewhere; its rows are not read before."""
    _lookups(folder, verify=False)
    return "answered"


def candidates(run_dir: Path) -> str:
    """Whom to judge on what."""
    rows = pq.read_table(run_dir / CANDIDATES / CANDIDATE_PAIRS).to_pylist()
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def say(reader: str, path: Path) -> None:
    """Print what one of the above answers: for a process of its own."""
    print(globals()[reader](path))


def _lookups(folder: Path, *, verify: bool) -> str:
    users = np.repeat([f"u{user}" for user in range(NUM_USERS)], NUM_ITEMS)
    items = np.tile([f"i{item}" for item in range(NUM_ITEMS)], NUM_USERS)
    opened = RewardTable.open(folder)
    if verify:
        opened.verify()
    rewards, found = opened.lookup(users, items)
    return hashlib.sha256(rewards[found].tobytes() + found.tobytes()).hexdigest()
