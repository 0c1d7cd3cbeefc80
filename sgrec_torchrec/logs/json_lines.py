"""Lines of JSON objects -> a view with a column a key, typed by what all lines hold.

DuckDB parses the lines; it is asked for the JSON type of every value and guesses none:
a text stays the text that it is, whatever date or number it looks like.
"""

import duckdb

from sgrec_torchrec.logs.columns import quote
from sgrec_torchrec.logs.text_lines import KEPT_ROWS, LINE, BrokenRows, JsonLines

MAX_KEYS = 1000
INTEGERS = frozenset(("UBIGINT", "BIGINT"))
NUMBERS = INTEGERS | {"DOUBLE"}


def stage_lines(
    connection: duckdb.DuckDBPyConnection,
    source: JsonLines,
    view: str,
    broken: BrokenRows,
) -> None:
    """Make the view. Two scans of the lines, which wait in a table on disk.

    Lines that hold no object go to ``broken``. Integers become HUGEINT, numbers DOUBLE,
    lists of numbers DOUBLE[], lists of texts VARCHAR[], objects STRUCT; where types are
    mixed, texts, numbers and truth values become VARCHAR and all else JSON.

    Raises:
        ValueError: for more than ``MAX_KEYS`` keys.
    """
    text = f"{view}_text"
    connection.register(f"{view}_lines", source.lines)
    connection.execute(
        f"CREATE TABLE {text} AS SELECT {LINE}, row_number() OVER () - 1 AS nth "
        f"FROM {view}_lines"
    )
    _part_broken(connection, text, broken)
    keys = _types(connection, text)
    if len(keys) > MAX_KEYS:
        raise ValueError(f"objects have {len(keys)} keys in all: at most {MAX_KEYS}")
    # An object of no keys is a row without values.
    columns = ", ".join(_column(key, keys[key]) for key in keys) or "NULL AS nothing"
    connection.execute(
        f"CREATE TEMP VIEW {view} AS SELECT {columns} FROM {text} ORDER BY nth"
    )


def _part_broken(
    connection: duckdb.DuckDBPyConnection, text: str, broken: BrokenRows
) -> None:
    is_broken = (
        f"CASE WHEN json_valid({LINE}) THEN json_type({LINE}) <> 'OBJECT' ELSE true END"
    )
    rows = connection.execute(
        f"SELECT nth, {LINE}, count(*) OVER () FROM {text} WHERE {is_broken} "
        f"ORDER BY nth LIMIT {KEPT_ROWS}"
    ).fetchall()
    if rows:
        broken.num_rows = rows[0][2]
        broken.first = [(nth, "is no JSON object", line) for nth, line, _ in rows]
        connection.execute(f"DELETE FROM {text} WHERE {is_broken}")


def _types(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, set[str]]:
    """Key -> the JSON types of its values, in the order of the first lines."""
    rows = connection.execute(
        f"SELECT key, list(DISTINCT {_TYPE}), min((nth, id)) AS first "
        f"FROM {text}, json_each({text}.{LINE}) GROUP BY key ORDER BY first"
    ).fetchall()
    return {key: set(types) for key, types, _ in rows}


# Of a list, that of all it holds.
_TYPE = (
    "CASE type WHEN 'ARRAY' THEN 'ARRAY ' || array_to_string(list_sort(list_distinct("
    "json_type(value, '$[*]'))), ' ') ELSE type END"
)


def _path(key: str) -> str:
    """SQL literal of the JSON path of a key."""
    escaped = key.replace("\\", "\\\\").replace('"', '\\"').replace("'", "''")
    return f"'$.\"{escaped}\"'"


def _column(key: str, types: set[str]) -> str:
    held = types - {"NULL"}
    path = _path(key)
    text = f"json_extract_string({LINE}, {path})"
    value = f"json_extract({LINE}, {path})"
    lists = {one.removeprefix("ARRAY ") for one in held if one.startswith("ARRAY")}
    inside = {name for one in lists for name in one.split() if name != "ARRAY"}
    if not held:
        sql = "CAST(NULL AS VARCHAR)"
    elif held <= INTEGERS:
        sql = f"CAST({text} AS HUGEINT)"
    elif held <= NUMBERS:
        sql = f"CAST({text} AS DOUBLE)"
    elif held == {"OBJECT"}:
        sql = f"struct_pack(json := {value})"
    elif len(lists) < len(held):
        mixed = bool(lists) or "OBJECT" in held
        sql = f"CAST({value} AS JSON)" if mixed else text
    else:
        kind = "DOUBLE[]" if inside <= NUMBERS | {"NULL"} else "VARCHAR[]"
        sql = f"CAST({value} AS {kind})"
    return f"{sql} AS {quote(key)}"
