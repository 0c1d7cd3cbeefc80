"""Importers: what users have (files, packages) -> a canonical log folder.

Reads MovieLens, the Complete Journey, MiniOneRec folders, user sequences, any table
or an existing canonical folder; writes ``canonical/`` as ``logs.canonical`` reads it.
"""

from sgrec_torchrec.logs.importers.choose import IMPORTERS, import_log
from sgrec_torchrec.logs.importers.table import import_table

__all__ = ["IMPORTERS", "import_log", "import_table"]
