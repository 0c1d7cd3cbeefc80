"""Plain user sequences with item text (two text files) -> a canonical log.

user_sequence.txt: a user, then item ids in time order. item_text.txt: an item id, then
its text. Fields are separated by single spaces.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import ImportReport, Origin
from sgrec_torchrec.logs.importers.locate import resolve_path
from sgrec_torchrec.logs.incoming import Incoming


def import_sequences(path: str | None, out_dir: Path) -> ImportReport:
    """Import the folder ``path`` (a path, or a name below $SGREC_DATA).

    A row's timestamp is its position in the user's line: an ordinal, comparable within
    one user only. Memory grows with the files (about 3 times their size).

    Raises:
        FileNotFoundError: naming the file that is not there.
        ValueError: naming file, line and mend.
    """
    folder = resolve_path(path, "sequences")
    sequence_path = folder / "user_sequence.txt"
    text_path = folder / "item_text.txt"
    log = _read_sequences(sequence_path)
    items = _read_texts(text_path)
    note = f"user sequences of {folder.resolve().name}; mind the terms of their source"
    return write_canonical(
        out_dir,
        Incoming(name=str(sequence_path), source=log),
        Incoming(name=str(text_path), source=items),
        Origin(importer="sequences", note=note, has_clock=False),
    )


def _read_sequences(path: Path) -> pa.Table:
    fields: Any = pc.split_pattern(_read_lines(path), " ")
    lengths = pc.list_value_length(fields).to_numpy()
    short = np.flatnonzero(lengths < 2)
    if len(short):
        raise ValueError(
            f"{path}, line {short[0] + 1}: has no item; write "
            "a user, then item ids, separated by single spaces"
        )
    users: Any = pc.list_element(fields, 0)
    _check_unique(path, users)
    flat: Any = pc.list_flatten(fields)
    line = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    is_item = pa.array(position > 0)
    _check_not_blank(path, flat, line)
    return pa.table(
        {
            "user_id": users.take(pa.array(line[position > 0])),
            "item_id": flat.filter(is_item),
            "timestamp": pa.array(position[position > 0] - 1),
        }
    )


def _check_unique(path: Path, users: Any) -> None:
    codes = users.dictionary_encode().indices.to_numpy()
    is_first = np.zeros(len(codes), dtype=np.bool_)
    is_first[np.unique(codes, return_index=True)[1]] = True
    again = np.flatnonzero(~is_first)
    if len(again):
        raise ValueError(
            f"{path}, line {again[0] + 1}: user {users[int(again[0])].as_py()!r} has a "
            "line already; write all items of a user in one line"
        )


def _check_not_blank(path: Path, flat: Any, line: npt.NDArray[np.int64]) -> None:
    is_blank: Any = pc.equal(flat, pa.scalar(""))
    blank = np.flatnonzero(is_blank.to_numpy(zero_copy_only=False))
    if len(blank):
        raise ValueError(
            f"{path}, line {line[blank[0]] + 1}: holds an empty id; separate ids by "
            "single spaces and leave none at the ends"
        )


def _read_texts(path: Path) -> pa.Table:
    lines = _read_lines(path)
    item_id = pc.replace_substring_regex(lines, r"^([^ ]*).*$", r"\1")
    title = pc.replace_substring_regex(lines, r"^[^ ]* ?", "", max_replacements=1)
    return pa.table({"item_id": item_id, "title": title})


def _read_lines(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: not found; the folder needs user_sequence.txt and item_text.txt"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); convert the file") from error
    if not text:
        raise ValueError(f"{path}: has no rows; give a file with data")
    return pa.array(text.removesuffix("\n").split("\n"), pa.string())
