"""Tables of the report hold the results' figures as text, the best ones marked."""

from typing import Any

from sgrec_torchrec.report.tables import (
    beyond_table,
    duration,
    facts,
    headline_bars,
    key_figures,
    metric_tables,
    p_value,
    time_shares,
)


def test_metric_tables_put_ours_first_in_bold_and_columns_in_order_of_k(
    results: dict[str, Any],
) -> None:
    results["systems"].sort(key=lambda entry: entry["system"] != "generator")
    hit_rate, ndcg = metric_tables(results["systems"])
    assert (hit_rate.title, ndcg.title) == ("Hit rate", "NDCG")
    assert ndcg.columns == ["@1", "@3", "@5", "@10", "@20", "@50"]
    assert [row.is_ours for row in ndcg.rows] == [True, False, False, False]
    assert all(cell.is_best for cell in ndcg.rows[0].cells)
    assert not any(cell.is_best for row in ndcg.rows[1:] for cell in row.cells)
    # HR@10 of the generator is .0983; its interval .84 and 1.16 times that.
    cell = hit_rate.rows[0].cells[3]
    assert (cell.text, cell.low, cell.high) == ("0.0983", "0.0826", "0.1140")


def test_equal_figures_are_both_best_and_zeros_never() -> None:
    systems = [
        {"system": name, "metrics": {"HR@1": 0.0, "HR@5": value}}
        for name, value in (("a", 0.04), ("b", 0.040004), ("c", 0.03))
    ]
    (table,) = metric_tables(systems)
    best = [[cell.is_best for cell in row.cells] for row in table.rows]
    assert best == [[False, True], [False, True], [False, False]]


def test_an_interval_without_ends_is_left_out(results: dict[str, Any]) -> None:
    results["systems"][0]["intervals"]["HR@10"] = [None, None]
    hit_rate, _ = metric_tables(results["systems"])
    assert (hit_rate.rows[0].cells[3].low, hit_rate.rows[0].cells[3].high) == ("", "")
    assert hit_rate.rows[0].cells[2].low != ""


def test_key_figures_compare_with_the_best_baseline(results: dict[str, Any]) -> None:
    figures = {figure.label: figure for figure in key_figures(results)}
    # Both NDCG@10 share one factor, so the gain is that of .0983 over .0924: 6.4 %.
    lead = figures["Over best baseline"]
    assert lead.text == "+6.4 %"
    assert lead.note == "NDCG@10, item graph, p = 0.380"
    assert figures["Coverage"].text == "31.0 %"
    assert figures["HR@10"].text == "0.0983"


def test_a_part_of_the_generator_is_no_baseline(results: dict[str, Any]) -> None:
    results["systems"][2]["system"] = "generator without evidence"
    figures = {figure.label: figure for figure in key_figures(results)}
    # The item graph's place is taken: .0983 over co-visitation's .0790 is 24.4 %.
    assert figures["Over best baseline"].text == "+24.4 %"


def test_key_figures_without_a_baseline_or_a_generator(
    results: dict[str, Any],
) -> None:
    results["systems"] = results["systems"][-1:]
    notes = {figure.note for figure in key_figures(results)}
    assert "no baseline was measured" in notes
    results["systems"] = []
    (figure,) = key_figures(results)
    assert (figure.label, figure.text) == ("Rows of test", "671")


def test_beyond_accuracy_shows_shares_cold_rows_and_p(results: dict[str, Any]) -> None:
    table = beyond_table(results["systems"])
    assert table.columns[3] == "HR@10 on 38 cold rows"
    texts = [cell.text for cell in table.rows[0].cells]
    assert texts == ["12.0 %", "9.41", "0.872", "0.0263", "< 0.001"]
    bare = beyond_table([{"system": "a", "metrics": {}, "novelty": None}])
    assert [cell.text for cell in bare.rows[0].cells] == [""] * 5


def test_bars_of_nothing_but_zeros_are_empty() -> None:
    systems = [{"system": "a", "metrics": {"NDCG@10": 0.0}}]
    assert headline_bars(systems)[0].width == 0.0


def test_durations_and_p_values_are_short() -> None:
    assert [duration(value) for value in (0.42, 59.97, 245, 3725)] == [
        "0.4 s",
        "1 min 00 s",
        "4 min 05 s",
        "1 h 02 min",
    ]
    assert [p_value(p) for p in (None, 0.0, 0.0042)] == ["", "< 0.001", "0.004"]


def test_time_shares_sum_to_the_whole() -> None:
    shares, total = time_shares({"graph": 1.0, "pretrain": 3.0})
    assert [share.percent for share in shares] == [25.0, 75.0]
    assert total == "4.0 s"
    assert time_shares({"graph": 0.0})[0][0].percent == 0.0


def test_facts_join_nested_names_and_cut_long_lists() -> None:
    data = {
        "rows": 100004,
        "has_clock": True,
        "counts": {"no_year": 3},
        "clock": {"first": 5},
        "codes": list(range(10)),
        "none_at_all": [],
        "unknown": None,
        "files": {"a": 1},
    }
    assert facts(data) == [
        ("rows", "100,004"),
        ("has clock", "yes"),
        ("no year", "3"),
        ("clock first", "5"),
        ("codes", "0, 1, 2, 3, 4, 5, 6, 7, ... (10 in all)"),
        ("none at all", "none"),
    ]
