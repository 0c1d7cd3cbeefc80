"""``evaluation/results.json`` and manifests -> tables of plain text for the report.

Everything is text when it leaves here; the template escapes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgrec_torchrec.report.pictures import Bar, bars, short

OURS = "generator"
PARTS_OF_OURS = ("generator without evidence",)
"""Systems that are ours with something taken away: no baselines."""
HEADLINE = "NDCG@10"
FAMILIES = {"HR": "Hit rate", "NDCG": "NDCG"}
NOT_FACTS = ("files", "mapped", "canonical_files", "format_version", "note")
"""Manifest entries that are no facts of the data (the note is shown apart)."""
MAX_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A figure, its 95 % interval and whether it leads its column."""

    text: str
    low: str = ""
    high: str = ""
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One system's cells."""

    label: str
    is_ours: bool
    cells: list[Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Systems by figures."""

    title: str
    columns: list[str]
    rows: list[Row]
    corner: str = "System"
    """Above the labels of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFigure:
    """A large number with a word above and a note below."""

    label: str
    text: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A stage's part of the whole time."""

    label: str
    text: str
    percent: float


def ordered_systems(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The systems, ours first, the others in their order."""
    systems = list(results["systems"])
    return sorted(systems, key=lambda system: system["system"] != OURS)


def metric_tables(systems: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One table per metric family (all ``NAME@k`` of one name), columns by k."""
    names = {name for system in systems for name in system["metrics"]}
    found = sorted(filter(None, map(_split_metric, names)))
    families = dict.fromkeys(sorted((family for family, _ in found), key=_place))
    return [
        Table(
            title=FAMILIES.get(family, family),
            columns=[f"@{k}" for name, k in found if name == family],
            rows=_metric_rows(systems, [m for m in found if m[0] == family]),
        )
        for family in families
    ]


def beyond_table(systems: Sequence[Mapping[str, Any]]) -> Table:
    """Coverage, novelty, diversity, the cold slice and the paired test."""
    rows = []
    for system in systems:
        cold = system.get("cold") or {}
        cells = [
            _percent(system.get("coverage")),
            _number(system.get("novelty"), 2),
            _number(system.get("diversity"), 3),
            _number(cold.get("HR@10"), 4),
            p_value((system.get("p_vs_generator") or {}).get(HEADLINE)),
        ]
        rows.append(_row(system, [Cell(text=text) for text in cells]))
    cold_rows = max(
        (system.get("cold") or {}).get("rows", 0) for system in [*systems, {}]
    )
    cold_name = f"{cold_rows:,} cold rows" if cold_rows else "cold rows"
    columns = ["Coverage", "Novelty", "Diversity", f"HR@10 on {cold_name}"]
    columns.append(f"p of {HEADLINE} against {OURS}")
    return Table(title="Beyond accuracy", columns=columns, rows=rows)


def headline_bars(systems: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """A bar of NDCG@10 for each system that has it."""
    rows = [
        (system["system"], system["metrics"][HEADLINE], _interval(system, HEADLINE))
        for system in systems
        if system["metrics"].get(HEADLINE) is not None
    ]
    return bars(rows, OURS)


def key_figures(results: Mapping[str, Any]) -> list[KeyFigure]:
    """What a reader wants to know first."""
    systems = ordered_systems(results)
    figures = []
    if systems and systems[0]["system"] == OURS:
        figures = [_metric_figure(systems[0], name) for name in (HEADLINE, "HR@10")]
        figures.append(_lead_figure(systems))
        covered = _percent(systems[0].get("coverage"))
        note = "of the catalogue is recommended to someone"
        figures.append(KeyFigure(label="Coverage", text=covered, note=note))
    rows, users = results.get("rows", 0), results.get("users", 0)
    protocol = results.get("protocol", "unknown protocol")
    figures.append(
        KeyFigure(
            label=f"Rows of {results.get('split', 'test')}",
            text=f"{rows:,}",
            note=f"of {users:,} users, {protocol}",
        )
    )
    return figures


def time_shares(seconds: Mapping[str, float]) -> tuple[list[Share], str]:
    """Each stage's time and part of the sum; the sum as text."""
    total = sum(seconds.values())
    shares = [
        Share(
            label=stage,
            text=duration(value),
            percent=round(100 * value / total, 2) if total else 0.0,
        )
        for stage, value in seconds.items()
    ]
    return shares, duration(total)


def facts(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(label, text) for every scalar and short list, nested names joined."""
    found = []
    for name, value in data.items():
        label = f"{prefix} {name}".replace("_", " ").strip()
        if name in NOT_FACTS or value is None:
            continue
        if isinstance(value, Mapping):
            found += facts(value, prefix if name == "counts" else label)
        elif isinstance(value, list):
            listed = ", ".join(fact_text(part) for part in value[:MAX_LISTED])
            more = f", ... ({len(value)} in all)" if len(value) > MAX_LISTED else ""
            found.append((label, (listed + more) or "none"))
        else:
            found.append((label, fact_text(value)))
    return found


def fact_text(value: object) -> str:
    """A scalar as people write it.

    >>> [fact_text(value) for value in (True, 100004, 0.25, "movielens")]
    ['yes', '100,004', '0.25', 'movielens']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return short(value) if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> [duration(seconds) for seconds in (0.42, 59.97, 245, 3725)]
    ['0.4 s', '1 min 00 s', '4 min 05 s', '1 h 02 min']
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def p_value(p: float | None) -> str:
    """A p-value without false precision.

    >>> [p_value(p) for p in (None, 0.0, 0.0042, 0.31)]
    ['', '< 0.001', '0.004', '0.310']
    """
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _split_metric(name: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(.+)@(\d+)", name)
    return (match[1], int(match[2])) if match else None


def _place(family: str) -> tuple[int, str]:
    order = list(FAMILIES)
    return (order.index(family) if family in order else len(order), family)


def _metric_rows(
    systems: Sequence[Mapping[str, Any]], metrics: Sequence[tuple[str, int]]
) -> list[Row]:
    names = [f"{family}@{k}" for family, k in metrics]
    best = {
        name: max(round(s["metrics"].get(name) or 0.0, 4) for s in systems)
        for name in names
    }
    return [
        _row(system, [_metric_cell(system, name, best[name]) for name in names])
        for system in systems
    ]


def _metric_cell(system: Mapping[str, Any], name: str, best: float) -> Cell:
    value = system["metrics"].get(name)
    if value is None:
        return Cell(text="")
    interval = _interval(system, name)
    low, high = (f"{end:.4f}" for end in interval) if interval else ("", "")
    is_best = round(value, 4) == best > 0
    return Cell(text=f"{value:.4f}", low=low, high=high, is_best=is_best)


def _row(system: Mapping[str, Any], cells: list[Cell]) -> Row:
    return Row(label=system["system"], is_ours=system["system"] == OURS, cells=cells)


def _interval(system: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    pair = (system.get("intervals") or {}).get(name)
    # Ends are null where too few users allow no interval.
    return (pair[0], pair[1]) if pair and None not in pair else None


def _metric_figure(system: Mapping[str, Any], name: str) -> KeyFigure:
    interval = _interval(system, name)
    note = f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
    text = _number(system["metrics"].get(name), 4)
    return KeyFigure(label=name, text=text, note=note)


def _lead_figure(systems: Sequence[Mapping[str, Any]]) -> KeyFigure:
    """Ours against the best other system, in percent of the latter's NDCG@10."""
    others = [
        system
        for system in systems[1:]
        if system["system"] not in PARTS_OF_OURS and system["metrics"].get(HEADLINE)
    ]
    ours = systems[0]["metrics"].get(HEADLINE)
    label = "Over best baseline"
    if not others or ours is None:
        return KeyFigure(label=label, text="", note="no baseline was measured")
    best = max(others, key=lambda system: float(system["metrics"][HEADLINE]))
    gain = 100 * (ours / best["metrics"][HEADLINE] - 1)
    p = p_value((best.get("p_vs_generator") or {}).get(HEADLINE))
    note = f"{HEADLINE}, {best['system']}" + (f", p {_sign(p)}" if p else "")
    return KeyFigure(label=label, text=f"{gain:+.1f} %", note=note)


def _sign(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
