"""One scene of starting, waiting or dying, named by the first argument."""

import os
import signal
import subprocess
import sys
import threading
import time

import torch
import torch.distributed as dist

from sgrec_torchrec.distributed.heartbeat import SILENCE_S
from sgrec_torchrec.distributed.launch import (
    Ranks,
    all_gather_rows,
    main_rank_first,
    process_group,
)

KILLER = """
import os, sys, time
parent, stopped = map(int, sys.argv[1:])
while os.getppid() == parent:
    time.sleep(0.1)
os.kill(stopped, 9)
"""


def gather_unequal(ranks: Ranks) -> None:
    rows = torch.full((2 * ranks.rank, 3), float(ranks.rank))
    gathered = all_gather_rows(rows)
    expected = torch.tensor([1.0] * 2 + [2.0] * 4)[:, None].expand(6, 3)
    torch.testing.assert_close(gathered, expected, rtol=0, atol=0)
    assert all_gather_rows(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2)
    flags = all_gather_rows(torch.tensor([ranks.rank == 1]))
    assert flags.tolist() == [False, True, False]


def wait_beyond_the_timeout(ranks: Ranks) -> None:
    order = []

    def prepare() -> int:
        if ranks.rank == 0:
            time.sleep(6)  # collectives time out after 3 s
        order.append(time.time())
        return 10 + ranks.rank

    assert main_rank_first(prepare) == 10 + ranks.rank
    assert main_rank_first(lambda: "again") == "again"
    times = all_gather_rows(torch.tensor(order, dtype=torch.float64))
    assert times[0] < times[1:].min()


def fail_while_preparing(ranks: Ranks) -> None:
    def prepare() -> None:
        if ranks.rank == 0:
            raise ValueError("items.parquet: row 7 has no title")

    main_rank_first(prepare)


def be_killed_while_preparing(ranks: Ranks) -> None:
    def prepare() -> None:
        if ranks.rank == 0:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

    main_rank_first(prepare)


def miss_the_shared_folder(ranks: Ranks) -> None:
    from pathlib import Path

    from sgrec_torchrec.distributed import launch

    launch.SHARED_FOLDER_WAIT_S = 0.0
    main_rank_first(lambda: None, shared_path=Path("/nonexistent/graph"))


def raise_on_one_rank(ranks: Ranks) -> None:
    if ranks.rank == 1:
        # A loader's thread that still runs must not hold the process back.
        threading.Thread(target=time.sleep, args=(600,)).start()
        raise ValueError("bad row 7")
    dist.all_reduce(torch.ones(1))


def be_killed_on_one_rank(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def raise_when_the_other_is_done(ranks: Ranks) -> None:
    if ranks.rank == 1:
        time.sleep(2)
        raise ValueError("too late")


def stop_rank_0(ranks: Ranks) -> None:
    _stop(ranks, 0)


def stop_rank_1(ranks: Ranks) -> None:
    _stop(ranks, 1)


def stop_rank_0_while_preparing(ranks: Ranks) -> None:
    def prepare() -> None:
        if ranks.rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)

    pids = all_gather_rows(torch.tensor([os.getpid()])).tolist()
    if ranks.rank == 1:
        kill = [sys.executable, "-c", KILLER, str(os.getpid()), str(pids[0])]
        subprocess.Popen(kill)
    main_rank_first(prepare)


def hold_no_one_who_was_asleep(ranks: Ranks) -> None:
    """Rank 1 is stopped for less than the patience, then goes on."""
    if ranks.rank == 1:
        waker = "import os, sys, time; time.sleep(3); os.kill(int(sys.argv[1]), 18)"
        subprocess.Popen([sys.executable, "-c", waker, str(os.getpid())])
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))


def _stop(ranks: Ranks, which: int) -> None:
    """The process is stopped, and killed by another once the other rank has ended."""
    pids = all_gather_rows(torch.tensor([os.getpid()])).tolist()
    if ranks.rank == which:
        os.kill(os.getpid(), signal.SIGSTOP)
    subprocess.Popen([sys.executable, "-c", KILLER, str(os.getpid()), str(pids[which])])
    dist.all_reduce(torch.ones(1))


def main() -> None:
    scene = globals()[sys.argv[1]]
    silence_s = float(sys.argv[3]) if len(sys.argv) > 3 else SILENCE_S
    with process_group(timeout_s=float(sys.argv[2]), silence_s=silence_s) as ranks:
        scene(ranks)
    print("finished")


if __name__ == "__main__":
    main()
