"""Log and catalogue as they arrive -> staged tables without a bad row.

All faults of both files are told together, or their rows are dropped and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from sgrec_torchrec.logs.columns import (
    INTERACTION_COLUMNS,
    ITEM_COLUMNS,
    ITEM_ID,
    Column,
    Rule,
    cast_of,
    log_rules,
    rules_of,
)
from sgrec_torchrec.logs.faults import (
    Fault,
    broken_fault,
    drop_rows,
    find_faults,
    join,
    refuse,
)
from sgrec_torchrec.logs.incoming import Incoming, Staged, scalar, stage

LOG, ITEMS = "staged_log", "staged_items"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedTables:
    """Both tables, with only good rows."""

    log: Staged
    items: Staged
    has_catalogue: bool
    """False: the items are those of the log, titled by their ids."""
    dropped_rows: int
    dropped_items: int


def stage_tables(
    connection: duckdb.DuckDBPyConnection,
    log: Incoming,
    items: Incoming | None,
    *,
    has_clock: bool,
    bad_rows: str,
    hint: str = "",
) -> StagedTables:
    """Stage and check. Without ``items`` the catalogue is made from the log's rows.

    Args:
        bad_rows: refuse, or drop: each bad row is moved into a table of its own.
        hint: what errors end with.

    Raises:
        ValueError: a line for each kind of fault, naming file, column, first rows and
            mend; with ``drop`` for files that have no table, and where nothing is left.
    """
    staged_log, staged_items = _stage_both(connection, log, items)
    of_log = rules_of(INTERACTION_COLUMNS, staged_log.types, LOG)
    of_log += log_rules(staged_log.types, has_clock=has_clock)
    rules = [(staged_log, of_log)]
    if staged_items is not None:
        of_items = rules_of(ITEM_COLUMNS, staged_items.types, ITEMS)
        rules.append((staged_items, [*of_items, _twice(ITEM_ID)]))
        # Asked last: an item is known where its row of the catalogue is good.
        rules.append((staged_log, [_unknown_item(staged_log, staged_items)]))
    dropped = {LOG: 0, ITEMS: 0}
    if bad_rows == "refuse":
        refuse(_all_faults(connection, rules), hint)
    else:
        for staged, broken_by in rules:
            dropped[staged.table] += drop_rows(connection, staged, broken_by)
        if not scalar(connection, f"SELECT count(*) FROM {LOG}"):
            raise ValueError(f"{log.name}: no row is good; --check tells why")
        dropped[LOG] += staged_log.broken.num_rows
    if staged_items is None:
        staged_items = stage(connection, _from_log(log.name), ITEM_COLUMNS, ITEMS)
    elif bad_rows == "drop":
        dropped[ITEMS] += staged_items.broken.num_rows
    return StagedTables(
        log=staged_log,
        items=staged_items,
        has_catalogue=items is not None,
        dropped_rows=dropped[LOG],
        dropped_items=dropped[ITEMS],
    )


def _all_faults(
    connection: duckdb.DuckDBPyConnection,
    rules: Sequence[tuple[Staged, Sequence[Rule]]],
) -> list[Fault]:
    """Unknown items are told of only where the catalogue has no fault of its own."""
    faults: list[Fault] = []
    told: set[str] = set()
    for staged, broken_by in rules:
        if staged.table in told:
            # The log a second time.
            if any(fault.table == ITEMS for fault in faults):
                continue
        else:
            faults += broken_fault(staged)
        told.add(staged.table)
        faults += find_faults(connection, staged, broken_by)
    return faults


def _stage_both(
    connection: duckdb.DuckDBPyConnection, log: Incoming, items: Incoming | None
) -> tuple[Staged, Staged | None]:
    """Raise for what is wrong with the columns of both, together."""
    staged, wrong = [], []
    wanted: list[tuple[Incoming | None, tuple[Column, ...], str]]
    wanted = [(log, INTERACTION_COLUMNS, LOG), (items, ITEM_COLUMNS, ITEMS)]
    for incoming, columns, table in wanted:
        if incoming is None:
            continue
        try:
            staged.append(stage(connection, incoming, columns, table))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(join(wrong))
    return staged[0], staged[1] if items is not None else None


def _from_log(name: str) -> Incoming:
    return Incoming(
        name=name,
        source=f"SELECT item_id, CAST(item_id AS VARCHAR) AS title FROM {LOG} "
        "WHERE item_id IS NOT NULL GROUP BY item_id ORDER BY item_id",
    )


def _twice(column: Column) -> Rule:
    name = column.name
    return Rule(
        column=name,
        is_bad=f"{name} IS NOT NULL AND file_row NOT IN (SELECT min(file_row) FROM "
        f"{ITEMS} GROUP BY {name})",
        problem="is in the catalogue already",
        mend="give every item one row",
    )


def _unknown_item(log: Staged, items: Staged) -> Rule:
    log_id, catalogue_id = item_ids(log, items)
    return Rule(
        column="item_id",
        is_bad=f"item_id IS NOT NULL AND {log_id} NOT IN (SELECT {catalogue_id} FROM "
        f"{ITEMS} WHERE {catalogue_id} IS NOT NULL)",
        problem=f"is not in the catalogue {items.name}",
        mend="add the item there, or drop the rows",
    )


def item_ids(log: Staged, items: Staged) -> tuple[str, str]:
    """SQL of the item id in the log and in the catalogue, of one common type."""
    types = (log.types["item_id"], items.types["item_id"])
    if (types[0] == "VARCHAR") == (types[1] == "VARCHAR"):
        return cast_of(ITEM_ID, types[0]), cast_of(ITEM_ID, types[1])
    return "CAST(item_id AS VARCHAR)", "CAST(item_id AS VARCHAR)"
