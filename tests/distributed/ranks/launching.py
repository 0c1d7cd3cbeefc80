"""One scene of starting, waiting or dying, named by the first argument."""

import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

from sgrec_torchrec.distributed.launch import (
    Ranks,
    all_gather_rows,
    main_rank_first,
    process_group,
)


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


def main() -> None:
    scene = globals()[sys.argv[1]]
    with process_group(timeout_s=float(sys.argv[2])) as ranks:
        scene(ranks)
    print("finished")


if __name__ == "__main__":
    main()
