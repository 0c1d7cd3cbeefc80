"""``sgrec import``; the stage is imported inside, so that ``--help`` is quick."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgrec_torchrec.config.listing import listing
from sgrec_torchrec.config.options import pairs
from sgrec_torchrec.config.registry import IMPORTERS

if TYPE_CHECKING:
    from sgrec_torchrec.logs.import_report import ImportReport

TABLE = "table"

app = typer.Typer()
Mapping = Annotated[
    list[str] | None,
    typer.Option(metavar="OURS=THEIRS", help="Column mapping, as user_id=uid."),
]


@app.command("import", cls=listing(IMPORTERS))
def import_log(
    source: Annotated[
        str,
        typer.Argument(help=f"{', '.join(IMPORTERS.built_in)}, {TABLE}"),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the canonical log.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="What to read: a folder, or the table's log.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="table: the catalogue.")] = None,
    column: Mapping = None,
    item_column: Mapping = None,
    delimiter: Annotated[
        str | None, typer.Option(help="table: what parts the fields of a CSV, as ';'.")
    ] = None,
    ordinal: Annotated[
        bool, typer.Option("--ordinal", help="table: timestamps are ordinals.")
    ] = False,
    duplicates: Annotated[
        str | None,
        typer.Option(help="table: keep, drop or error, of rows equal throughout."),
    ] = None,
    bad_rows: Annotated[
        str | None,
        typer.Option(help="table: refuse, or drop them into a file with reasons."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="table: report, and write nothing.")
    ] = False,
) -> None:
    """Read a log in one of the known formats and write it as canonical Parquet."""
    if out is None and not check:
        raise ValueError("import: name the folder of the canonical log with --out")
    options = {
        "--items": items,
        "--column": column,
        "--item-column": item_column,
        "--delimiter": delimiter,
        "--ordinal": ordinal or None,
        "--duplicates": duplicates,
        "--bad-rows": bad_rows,
        "--check": check or None,
    }
    if source == TABLE:
        report = _import_table(path, out, options)
    else:
        given = [name for name, value in options.items() if value is not None]
        report = _import_named(source, path, out, given)
    typer.echo("\n".join(report.lines()))


def _import_table(
    path: Path | None, out: Path | None, options: dict[str, Any]
) -> "ImportReport":
    from sgrec_torchrec.logs.importers.table import check_table, import_table

    if path is None:
        raise ValueError("import table: name the log with --path")
    asked: dict[str, Any] = {
        "columns": pairs(options["--column"]),
        "items_path": options["--items"],
        "item_columns": pairs(options["--item-column"]),
        "delimiter": options["--delimiter"],
        "has_clock": not options["--ordinal"],
        "duplicates": options["--duplicates"],
        "bad_rows": options["--bad-rows"] or "refuse",
    }
    if options["--check"]:
        return check_table(path, **asked)
    assert out is not None
    return import_table(path, out, **asked)


def _import_named(
    source: str, path: Path | None, out: Path | None, options: list[str]
) -> "ImportReport":
    from sgrec_torchrec.config import LogConfig
    from sgrec_torchrec.logs import importers
    from sgrec_torchrec.logs.importers.locate import fingerprint

    if source not in IMPORTERS:
        raise ValueError(
            f"import {source!r}: choose one of {', '.join(IMPORTERS)} (packages add to "
            f"{IMPORTERS.group}), or {TABLE} (any Parquet, CSV or JSON lines)"
        )
    if options:
        raise ValueError(
            f"import {source}: {options[0]} has an effect on `import table` alone; "
            "leave it out"
        )
    assert out is not None
    config = LogConfig(source=source, path=str(path) if path else None)
    # Refuses a path that the source would not read.
    fingerprint(config.source, config.path)
    return importers.import_log(config, out)
