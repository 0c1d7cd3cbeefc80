"""Tables for a terminal: what training added, and how far labels agree."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

from sgrec_torchrec.judge.learn.told import agreement_table, print_table, report_tables


def cells(table: Table) -> list[list[str]]:
    """Its rows."""
    columns = [list(column.cells) for column in table.columns]
    return [list(map(str, row)) for row in zip(*columns, strict=True)]


def test_report_has_a_row_a_stage_and_what_it_must_beat(tiny_judge: Path) -> None:
    report = json.loads((tiny_judge / "report.json").read_text())
    stages, rivals, weights = report_tables(report)
    rows = {row[0]: row for row in cells(stages)}
    assert set(rows) == {"before", "sft", "grpo", "grpo + weights"}
    figures = report["stages"]["sft"]
    assert rows["sft"][1] == f"{figures['point_accuracy']:.4f}"
    assert rows["sft"][-3].startswith(f"{figures['pair_auc']['all']:.4f} (")
    assert rows["sft"][-1] == f"{figures['trade_off_share']:.1%}"
    assert [row[0] for row in cells(rivals)] == ["chance", "place"]
    assert cells(rivals)[0][1] == "0.5000"
    assert len(cells(weights)[0]) == 5


def test_a_kappa_that_does_not_exist_is_left_out(tiny_judge: Path) -> None:
    report = json.loads((tiny_judge / "report.json").read_text())
    for figures in report["stages"].values():
        figures["by_aspect"]["profile"] |= {"kappa": None, "accuracy": 0.5}
    (stages, *_) = report_tables(report)
    headers = [column.header for column in stages.columns]
    place = headers.index("profile (kappa)")
    assert {row[place] for row in cells(stages)} == {"0.500"}


def test_agreement_by_hand(labels, reader) -> None:
    (one, *_) = labels
    levels = one.levels_CA.copy()
    levels[:, 1] = [1, 1, 1, 1, *[5] * (len(levels) - 4)]
    ours = dataclasses.replace(one, levels_CA=levels)
    moved = levels.copy()
    moved[0, 1], moved[1, 1] = 2, 4
    theirs = dataclasses.replace(one, levels_CA=moved)
    count = len(levels)
    rows = {row[0]: row for row in cells(agreement_table([ours], [theirs], reader))}
    assert set(rows) == {aspect.name for aspect in reader.aspects}
    _, candidates, same, near, _ = rows["future_interest"]
    assert candidates == str(count)
    assert same == f"{(count - 2) / count:.3f}"
    assert near == f"{(count - 1) / count:.3f}"
    assert rows["profile"][2:] in (["1.000", "1.000", "1.000"], ["1.000", "1.000", ""])


def test_only_shared_candidates_are_compared(labels, reader) -> None:
    (one, *others) = labels
    half = dataclasses.replace(
        one,
        case=dataclasses.replace(one.case, items=one.case.items[:2]),
        levels_CA=np.array(one.levels_CA[:2]),
    )
    table = agreement_table(labels, [half], reader)
    assert {row[1] for row in cells(table)} == {"2"}
    with pytest.raises(ValueError, match="share no user, time and item"):
        agreement_table(others, [half], reader)


def test_printed_tables_are_not_cut_in_a_file(tiny_judge, capsys) -> None:
    report = json.loads((tiny_judge / "report.json").read_text())
    tables = report_tables(report)
    for table in tables:
        print_table(table)
    printed = capsys.readouterr().out
    assert "\u2026" not in printed
    words = {
        word
        for table in tables
        for row in cells(table)
        for text in row
        for word in text.split()
    }
    assert len(words) > 20
    assert all(word in printed for word in words)
