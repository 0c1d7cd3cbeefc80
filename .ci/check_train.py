"""What the extra ``train`` of the wheel promises: commands that work, anywhere.

VENV/bin/python .ci/check_train.py, in an empty folder: a wheel of which VENV has the
extra. Imports a small log, trains on it, recommends, builds a reward table, reads it.
"""

import csv
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import sgrec_torchrec
from sgrec_torchrec.reward_table import RewardTable

NUM_USERS, NUM_ITEMS = 200, 60
SMALL = (
    "log.source=canonical",
    "log.path=log",
    "tokens.num_codes=16",
    "graph.text_weight=0",
    "pretrain.num_epochs=4",
    "pretrain.global_batch_size=16",
)


def main() -> None:
    """From a log to a list, from pairs to rewards; the first that fails ends it."""
    assert sgrec_torchrec.__file__, "no package"
    site = sysconfig.get_path("purelib")
    assert Path(sgrec_torchrec.__file__).is_relative_to(site), sgrec_torchrec.__file__
    write_log(Path("log.csv"))
    sgrec("import", "table", "--path", "log.csv", "--out", "log")
    sgrec("train", "--run", "smoke", *(f"--set={one}" for one in SMALL))
    sgrec("recommend", "runs/smoke", "--user", "u0")
    columns = {"user_id": ["u0", "u1"], "item_id": ["i1", "i2"], "reward": [0.0, 1.0]}
    pq.write_table(pa.table(columns), "pairs.parquet")
    sgrec("table", "build", "pairs.parquet", "--out", "table")
    rewards, found = RewardTable.open(Path("table")).lookup(["u1", "u1"], ["i2", "i1"])
    assert (rewards[0], *found) == (1.0, True, False)
    print("the extra train imports a log, trains, recommends, builds a table")


def write_log(path: Path) -> None:
    """Users whose next item follows from the one before, four times in five."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("user_id", "item_id", "timestamp"))
        for user in range(NUM_USERS):
            item = draw.randrange(NUM_ITEMS)
            for place in range(draw.randrange(8, 17)):
                writer.writerow((f"u{user}", f"i{item}", 1_600_000_000 + 60 * place))
                is_noise = draw.random() < 0.2
                item = (
                    draw.randrange(NUM_ITEMS)
                    if is_noise
                    else (item * 7 + 3) % NUM_ITEMS
                )


def sgrec(*words: str) -> None:
    """Run the command as a user would; its output is shown where it fails."""
    command = [str(Path(sys.executable).with_name("sgrec")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
