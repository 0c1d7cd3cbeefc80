"""Importers: what users have (files, packages) -> a canonical log folder.

Reads MovieLens, the Complete Journey, MiniOneRec folders, user sequences, any table
or an existing canonical folder; writes ``canonical/`` as ``logs.canonical`` reads it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgrec_torchrec.config.registry import IMPORTERS
    from sgrec_torchrec.logs.importers.choose import import_log
    from sgrec_torchrec.logs.importers.table import import_table

_MODULES = {"IMPORTERS": "choose", "import_log": "choose", "import_table": "table"}

__all__ = ["IMPORTERS", "import_log", "import_table"]


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and to find a file needs none."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
