"""The columns of a canonical log: names, types, casts, and what no row may hold.

Read by ``incoming`` (checks of what arrives) and ``canonical`` (what is written).
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SECONDS = 100_000_000_000
"""Year 5138: a greater timestamp is in milliseconds or finer."""
MAX_ID_CHARACTERS = 256
"""A server takes no longer ones."""
MISSING_WORDS = ("nan", "null", "none", "<na>", "\\n")
"""As other programs write a value that is not there, without regard to case."""
BLANKS = "' ' || chr(9) || chr(10) || chr(13) || chr(160) || chr(65279)"
"""SQL: blanks, among them a no-break one and a byte-order mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the canonical format."""

    name: str
    kind: str
    """id, text, seconds, number, vector (float32) or codes (int16)."""
    is_required: bool = False
    allows_null: bool = False
    synonyms: tuple[str, ...] = ()
    """Names that other formats give it: offered where the column is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A condition that no row may meet, and what to tell whoever has such a row."""

    column: str
    is_bad: str
    """SQL over the staged table."""
    problem: str
    mend: str


_ITEM_SYNONYMS = ("item", "iid", "product_id", "movie_id", "asin", "sku", "article_id")
USER_ID = Column(
    name="user_id",
    kind="id",
    is_required=True,
    synonyms=("user", "uid", "customer_id", "household_id", "reviewer_id", "member_id"),
)
ITEM_ID = Column(name="item_id", kind="id", is_required=True, synonyms=_ITEM_SYNONYMS)
TIMESTAMP = Column(
    name="timestamp",
    kind="seconds",
    is_required=True,
    synonyms=("time", "ts", "unix_review_time", "event_time", "date", "datetime"),
)
INTERACTION_COLUMNS = (
    USER_ID,
    ITEM_ID,
    TIMESTAMP,
    Column(name="event", kind="text"),
    Column(name="value", kind="number", allows_null=True),
    Column(name="split", kind="text"),
)
ITEM_COLUMNS = (
    ITEM_ID,
    Column(
        name="title",
        kind="text",
        is_required=True,
        allows_null=True,
        synonyms=("name", "item_name", "product_name", "product_title", "text"),
    ),
    Column(name="description", kind="text", allows_null=True),
    Column(name="brand", kind="text", allows_null=True),
    Column(name="category", kind="text", allows_null=True),
    Column(name="price", kind="number", allows_null=True),
    Column(name="embedding", kind="vector"),
    Column(name="sid", kind="codes"),
)

_SIGNED = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_UNSIGNED = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
_INTEGERS = frozenset((*_SIGNED, *_UNSIGNED))
_NESTED = ("STRUCT", "MAP", "BLOB", "JSON", "UNION")
_FLOATS = frozenset(("FLOAT", "DOUBLE"))
_WANTED = {
    "id": "integers or strings",
    "text": "strings",
    "seconds": "whole seconds or dates",
    "number": "numbers",
    "vector": "lists of finite float32",
    "codes": "lists of codes from 0 to 32767",
}


def quote(name: str) -> str:
    """A column name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def check_type(file: str, theirs: str, column: Column, arrived: str) -> None:
    """Raise unless DuckDB's type ``arrived`` can hold ``column``, named ``theirs``.

    Raises:
        ValueError: naming file, column, type and mend.
    """
    is_nested = arrived.endswith("]") or arrived.startswith(_NESTED)
    is_number = arrived in _INTEGERS | _FLOATS or arrived.startswith("DECIMAL")
    is_time = arrived.startswith("TIMESTAMP") or arrived == "DATE"
    is_accepted = {
        "id": arrived == "VARCHAR" or arrived in _INTEGERS or _is_whole(arrived),
        "text": not is_nested,
        "seconds": arrived == "VARCHAR" or is_number or is_time,
        "number": arrived == "VARCHAR" or is_number,
        "vector": arrived.endswith("]"),
        "codes": arrived.endswith("]"),
    }[column.kind]
    if not is_accepted:
        ours = "" if theirs == column.name else f" ({column.name})"
        where, mend = "row 0 and all others", "cast the column before the import"
        if arrived == "JSON":
            where, mend = "some rows", "write a text in place of lists and objects"
        raise ValueError(
            f"{file}, column {theirs!r}{ours}, {where}: type {arrived} "
            f"cannot hold {_WANTED[column.kind]}; {mend}"
        )


def _is_whole(arrived: str) -> bool:
    """A DECIMAL without places behind the point, as warehouses write integers."""
    return arrived.startswith("DECIMAL") and arrived.endswith(",0)")


def cast_of(column: Column, arrived: str) -> str:
    """SQL that casts a staged column to its canonical type; NULL where it cannot."""
    name = quote(column.name)
    if column.kind == "id":
        return name if arrived == "VARCHAR" else f"try_cast({name} AS BIGINT)"
    if column.kind == "seconds":
        return _seconds(name, arrived)
    sql_type = {
        "text": "VARCHAR",
        "number": "FLOAT",
        "vector": "FLOAT[]",
        "codes": "SMALLINT[]",
    }[column.kind]
    return f"try_cast({name} AS {sql_type})"


def _seconds(name: str, arrived: str) -> str:
    """Whole seconds since 1970-01-01, UTC where neither text nor type names a zone."""
    if arrived in _INTEGERS:
        return f"try_cast({name} AS BIGINT)"
    if arrived.startswith("TIMESTAMP") or arrived == "DATE":
        return f"CAST(floor(epoch({name})) AS BIGINT)"
    # Fractions of a second are cut off.
    number = f"try_cast(floor(try_cast({name} AS DOUBLE)) AS BIGINT)"
    if arrived != "VARCHAR":
        return number
    # The session's zone is UTC, for text that names none.
    moment = f"epoch(try_cast({name} AS TIMESTAMPTZ))"
    return f"coalesce({number}, CAST(floor({moment}) AS BIGINT))"


def rules_of(
    columns: Sequence[Column], types: dict[str, str], table: str
) -> list[Rule]:
    """The rules that follow from the kinds of the columns present in ``types``.

    ``table`` is the staged table, whose row 0 sets the length of list columns.
    """
    rules = []
    for column in columns:
        if column.name in types:
            cast = cast_of(column, types[column.name])
            rules += _null_rules(column, cast, types[column.name])
            rules += _finite_rules(column, cast, table)
            if column.kind == "id" and types[column.name] == "VARCHAR":
                rules += _text_id_rules(column)
    return rules


def _text_id_rules(column: Column) -> list[Rule]:
    """What is no id, or could not be asked for by it."""
    name = quote(column.name)
    is_blank = f"trim({name}, {BLANKS}) = ''"
    words = ", ".join(f"'{word}'" for word in MISSING_WORDS)
    return [
        Rule(
            column=column.name,
            is_bad=f"{is_blank} OR lower(trim({name}, {BLANKS})) IN ({words})",
            problem="stands for a missing id",
            mend="fill it in, or drop the row",
        ),
        Rule(
            column=column.name,
            is_bad=f"NOT ({is_blank}) AND {name} <> trim({name}, {BLANKS})",
            problem="begins or ends with blanks",
            mend="trim the column: 'a ' and 'a' would be two",
        ),
        Rule(
            column=column.name,
            is_bad=f"length({name}) > {MAX_ID_CHARACTERS}",
            problem=f"is longer than {MAX_ID_CHARACTERS} characters",
            mend="give shorter ids, such as a hash of these",
        ),
    ]


def _null_rules(column: Column, cast: str, arrived: str) -> list[Rule]:
    name = quote(column.name)
    mend = "mend the value, or drop the row"
    if column.kind == "id" and arrived != "VARCHAR":
        mend = "cast the column to text: integers end at 2^63 - 1"
    wrong_type = Rule(
        column=column.name,
        is_bad=f"{name} IS NOT NULL AND ({cast}) IS NULL",
        problem=f"cannot be read as {_WANTED[column.kind]}",
        mend=mend,
    )
    if column.allows_null:
        return [wrong_type]
    null = Rule(
        column=column.name,
        is_bad=f"{name} IS NULL",
        problem="is not allowed here",
        mend="fill it in, or drop the row",
    )
    return [null, wrong_type]


def _finite_rules(column: Column, cast: str, table: str) -> list[Rule]:
    first_length = f"(SELECT len({quote(column.name)}) FROM {table} WHERE file_row = 0)"
    other_length = f"len({cast}) = 0 OR len({cast}) <> {first_length}"
    per_kind = {
        "number": ([f"NOT isfinite({cast})"], "is NaN or infinite"),
        "vector": (
            [_any(cast, "NOT isfinite(x)"), other_length],
            "holds null, NaN or infinity, or is not as long as in row 0",
        ),
        "codes": (
            [_any(cast, "x < 0"), other_length],
            "holds a code outside [0, 32767], or is not as long as in row 0",
        ),
    }
    if column.kind not in per_kind:
        return []
    conditions, problem = per_kind[column.kind]
    return [
        Rule(
            column=column.name,
            is_bad=" OR ".join(conditions),
            problem=problem,
            mend=f"give every row {_WANTED[column.kind]}, or drop it",
        )
    ]


def _any(cast: str, condition: str) -> str:
    """SQL: an element of the list is null or meets ``condition`` on x."""
    return f"len(list_filter({cast}, lambda x: x IS NULL OR {condition})) > 0"


def log_rules(types: dict[str, str], *, has_clock: bool) -> list[Rule]:
    """Rules of a log beyond those of its kinds: time range and split names."""
    seconds = cast_of(TIMESTAMP, types["timestamp"])
    rules = [
        Rule(
            column="timestamp",
            is_bad=f"{seconds} < 0",
            problem="is negative",
            mend="give seconds since 1970-01-01, or drop the row",
        )
    ]
    if has_clock:
        rules.append(
            Rule(
                column="timestamp",
                is_bad=f"{seconds} >= {MAX_SECONDS}",
                problem="is too great for seconds (milliseconds?)",
                mend="divide the column until its unit is seconds",
            )
        )
    else:
        rules.append(
            Rule(
                column="timestamp",
                is_bad="try_cast(CAST(timestamp AS VARCHAR) AS DOUBLE) % 1 <> 0",
                problem="is no whole number, and an ordinal must be one",
                mend="number the events of a user",
            )
        )
    if "split" in types:
        rules.append(
            Rule(
                column="split",
                is_bad="split NOT IN ('train', 'valid', 'test')",
                problem="is no split",
                mend="use train, valid or test",
            )
        )
    return rules
