"""Stage 12, serving: reads a trained run or a package, answers with items. No LLM.

``Recommender.load(path)`` takes a run, a checkpoint or a package and needs no process
group; ``export_package`` writes the package, which loads without torchrec. Encoding a
history and decoding items are two calls, so that a server may keep the first.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgrec_torchrec.serving.encoder import UserState
    from sgrec_torchrec.serving.filters import Filters
    from sgrec_torchrec.serving.history import History
    from sgrec_torchrec.serving.package import export_package
    from sgrec_torchrec.serving.recommender import Recommended, Recommender

__all__ = [
    "History",
    "Filters",
    "Recommender",
    "Recommended",
    "UserState",
    "export_package",
]

_MODULES = {
    "History": "history",
    "Filters": "filters",
    "Recommender": "recommender",
    "Recommended": "recommender",
    "UserState": "encoder",
    "export_package": "package",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, ``sgrec --help`` must not."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
