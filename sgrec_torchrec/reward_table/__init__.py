"""Stage 8, reward table: reads judged pairs as Parquet, writes a memory-mapped index.

``build`` compiles (user, item) -> reward, ``table`` answers batches of pairs from it,
``compaction`` merges the segments that were appended, ``misses`` keeps the pairs that a
trainer asked for in vain, so that the next judge run fills them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgrec_torchrec.reward_table.build import append_segment, build_reward_table
    from sgrec_torchrec.reward_table.build_report import BuildReport
    from sgrec_torchrec.reward_table.compaction import compact
    from sgrec_torchrec.reward_table.misses import MissLog
    from sgrec_torchrec.reward_table.table import RewardTable

__all__ = [
    "build_reward_table",
    "BuildReport",
    "append_segment",
    "compact",
    "RewardTable",
    "MissLog",
]

_MODULES = {
    "build_reward_table": "build",
    "BuildReport": "build_report",
    "append_segment": "build",
    "compact": "compaction",
    "RewardTable": "table",
    "MissLog": "misses",
}


def __getattr__(name: str) -> Any:
    """Import on first use: numba and torch take seconds, ``sgrec --help`` must not."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
