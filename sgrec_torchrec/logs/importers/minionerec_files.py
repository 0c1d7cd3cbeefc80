"""The files of a MiniOneRec folder: where they lie, and their rows, texts and codes."""

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sgrec_torchrec.logs.importers.clean_text import clean_html
from sgrec_torchrec.logs.text_lines import BLOCK_BYTES

SPLITS = ("train", "valid", "test")
_COLUMNS = ("user_id", "history_item_id", "item_id")
_CODE = re.compile(r"<([a-z])_(\d+)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniOneRecFiles:
    """The files of one category."""

    root: Path
    rows: dict[str, Path]
    """Split -> CSV; valid and test always, train where it is there."""
    items: Path
    """id -> title, description, brand, categories."""
    index: Path | None
    """id -> SID codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRow:
    """One row: rank ``target`` given ``history`` (oldest first)."""

    path: Path
    line: int
    split: str
    user: str
    history: list[int]
    target: int


def find_files(path: Path) -> MiniOneRecFiles:
    """The files below a flat folder, a clone, its data/Amazon, or beside one CSV.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: where a folder holds several categories.
    """
    if path.is_file():
        return _full_layout(path.parent.parent, path.stem)
    if (path / "data" / "Amazon").is_dir():
        path = path / "data" / "Amazon"
    if (path / "test").is_dir():
        found = sorted((path / "test").glob("*.csv"))
        if len(found) > 1:
            raise ValueError(
                f"{path}: holds {len(found)} categories; give one CSV file as the "
                f"path, such as {found[0]}"
            )
        if found:
            return _full_layout(path, found[0].stem)
    rows = {split: path / f"{split}.csv" for split in SPLITS}
    return _present(path, rows, path / "item.json", path / "index.json")


def _full_layout(root: Path, stem: str) -> MiniOneRecFiles:
    rows = {split: root / split / f"{stem}.csv" for split in SPLITS}
    names = [file.name for file in (root / "index").glob("*.item.json")]
    categories = [name.removesuffix(".item.json") for name in names]
    fitting = [category for category in categories if stem.startswith(category)]
    category = max(fitting, key=len, default=stem)
    return _present(
        root,
        rows,
        root / "index" / f"{category}.item.json",
        root / "index" / f"{category}.index.json",
    )


def _present(
    root: Path, rows: dict[str, Path], items: Path, index: Path
) -> MiniOneRecFiles:
    for needed in (rows["valid"], rows["test"], items):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed}: not found; a MiniOneRec folder has valid.csv, test.csv, "
                "item.json, or train/, valid/, test/ and index/ as in its data/Amazon"
            )
    return MiniOneRecFiles(
        root=root,
        rows={split: file for split, file in rows.items() if file.is_file()},
        items=items,
        index=index if index.is_file() else None,
    )


def read_rows(path: Path, split: str) -> Iterator[SplitRow]:
    """The rows of a CSV, in file order.

    Raises:
        ValueError: naming file, line, column and mend.
    """
    # A row's texts may be longer than csv takes by itself.
    csv.field_size_limit(BLOCK_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}, line 1: no column {missing[0]!r} in {reader.fieldnames}; "
                "give the CSV as MiniOneRec writes it"
            )
        row = None
        for row in _read(path, reader):
            line = reader.line_num
            if not row["user_id"]:
                raise ValueError(f"{path}, line {line}: user_id is empty; fill it in")
            yield SplitRow(
                path=path,
                line=line,
                split=split,
                user=row["user_id"],
                history=_history(path, line, row["history_item_id"]),
                target=_item(path, line, "item_id", row["item_id"]),
            )
        if row is None:
            raise ValueError(f"{path}: has no rows; give a file with data")


def _read(
    path: Path, reader: "csv.DictReader[str]"
) -> Iterator[dict[str | Any, str | Any]]:
    try:
        yield from reader
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _history(path: Path, line: int, text: str | None) -> list[int]:
    try:
        values = ast.literal_eval(text or "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, list) or not values:
        raise ValueError(
            f"{path}, line {line}, column 'history_item_id': {text!r:.60} is no list "
            "of at least one item id, such as [926, 38]; mend or drop the row"
        )
    return [_item(path, line, "history_item_id", value) for value in values]


def _item(path: Path, line: int, column: str, value: object) -> int:
    text = str(value)
    if not text.isascii() or not text.isdigit():
        raise ValueError(
            f"{path}, line {line}, column {column!r}: {value!r} is no item id (a whole "
            "number); mend or drop the row"
        )
    return int(text)


def read_catalogue(files: MiniOneRecFiles) -> tuple[pa.Table, dict[str, int]]:
    """The catalogue in order of id, and how many items share a SID.

    Raises:
        ValueError: naming file, item and mend.
    """
    entries = _read_json(files.items)
    ids = sorted(entries, key=lambda text: _item_key(files.items, text))
    texts: dict[str, list[str]] = {name: [] for name in ("title", "brand", "category")}
    descriptions = []
    for item in ids:
        entry = entries[item]
        if not isinstance(entry, dict) or "title" not in entry:
            raise ValueError(
                f"{files.items}, item {item!r}: has no title; give title, description, "
                "brand and categories"
            )
        texts["title"].append(str(entry["title"]))
        texts["brand"].append(str(entry.get("brand") or ""))
        texts["category"].append(_joined(entry.get("categories") or ""))
        descriptions.append(_joined(entry.get("description") or ""))
    table = pa.table(
        {"item_id": [int(item) for item in ids], **texts, "description": descriptions}
    )
    if files.index is None:
        return table, {}
    sids = _read_sids(files.index, ids)
    num_per_sid = Counter(map(tuple, sids))
    collided = len(sids) - len(num_per_sid)
    table = table.append_column("sid", pa.array(sids, pa.list_(pa.int16())))
    return table, {"items_whose_sid_is_taken_already": collided}


def _item_key(path: Path, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{path}: {text!r} is no item id; use whole numbers as keys")
    return int(text)


def _joined(text: object) -> str:
    """A list of texts, or its Python literal, as one clean line."""
    parts = text
    if isinstance(text, str) and text.startswith("["):
        try:
            parts = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parts = text
    if not isinstance(parts, list):
        parts = [parts]
    cleaned = (clean_html(str(part)) for part in parts)
    return " ".join(part for part in cleaned if part)


def _read_sids(path: Path, ids: list[str]) -> list[list[int]]:
    index = _read_json(path)
    sids = []
    for item in ids:
        codes = index.get(item)
        matches = [_CODE.fullmatch(str(code)) for code in codes or ()]
        levels = "".join(match[1] for match in matches if match)
        if not matches or levels != "abcdefghijklmnopqrstuvwxyz"[: len(matches)]:
            raise ValueError(
                f"{path}, item {item!r}: {codes!r} is no SID; give one code a level, "
                "such as ['<a_60>', '<b_159>', '<c_203>']"
            )
        sids.append([int(match[2]) for match in matches if match])
    return sids


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); copy it again") from error
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: holds no items; give a JSON object of id -> item")
    return value
