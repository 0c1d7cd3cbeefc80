"""Whether this process is rank 0, told without an import of torch."""

import os


def is_main_rank() -> bool:
    """True on global rank 0 (and where nothing is distributed). No communication."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_of_host() -> bool:
    """True on one rank of each host (and where nothing is distributed)."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0
