"""Whether this process is rank 0, told without an import of torch."""

import os


def is_main_rank() -> bool:
    """True on global rank 0 (and where nothing is distributed). No communication."""
    return int(os.environ.get("RANK", "0")) == 0


def verifies_files() -> bool:
    """Is it this process that reads prepared files whole, to compare their sums?

    One rank of each host does, for all: the files as its host sees them. The main rank
    has done before any other goes on (``launch.main_rank_first``). The first rank of
    another host does at the same time as its neighbours map them; where it fails it
    ends the job, and no step of training passes without it.
    """
    return is_first_of_host()


def is_first_of_host() -> bool:
    """True on one rank of each host (and where nothing is distributed)."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0
