"""Rows of items.parquet as a catalogue: each item keeps its own texts."""

from pathlib import Path

import pyarrow as pa

from sgrec_torchrec.logs.catalogue_store import catalogue_of


def test_an_item_without_texts_keeps_its_place() -> None:
    table = pa.table(
        {
            "item_id": [100, 101, 102, 103],
            "title": ["", "pen", None, None],
            "brand": pa.array([None, None, "acme", None], pa.string()),
            "category": ["", "", "red", ""],
        }
    )
    catalogue = catalogue_of(table, Path("items.parquet"))
    assert catalogue.texts == ["", "pen", "acme red", ""]
    assert catalogue.titles == ["", "pen", "", ""]
    assert catalogue.item_ids == ["100", "101", "102", "103"]


def test_vectors_of_no_numbers_are_none() -> None:
    table = pa.table({"item_id": [1], "sid": pa.array([[]], pa.list_(pa.int16()))})
    assert catalogue_of(table, Path("items.parquet")).sid_NL is None
