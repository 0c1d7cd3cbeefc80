"""The judge in the report: a few users, what was said of their candidates, the cost."""

import json
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.files.sealed_json import sealed
from sgrec_torchrec.report import judged as report_judged
from sgrec_torchrec.report.judged import MAX_CHARS, read_judged
from sgrec_torchrec.report.run_page import write_report

HOSTILE = '<script>alert("judge")</script>'


def pair(user: str, item: str, reward: float, source: str = "beam", why: str = ""):
    return {
        "user_id": user,
        "item_id": item,
        "source": source,
        "aspect_novelty": 0.25,
        "aspect_future_interest": 0.75,
        "evidence_novelty": why or None,
        "evidence_future_interest": None,
        "weight_novelty": 0.4,
        "weight_future_interest": 0.6,
        "reward": reward,
    }


def write_pairs(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    folder = run_dir / "judged"
    folder.mkdir(exist_ok=True)
    path = folder / "part-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True)


ROWS = [
    *(pair("u1", f"i{n}", 0.5 + n / 100) for n in range(8)),
    pair("u1", "next", 0.1, source="next"),
    pair("u2", "i1", 0.4, why="It is new to this person."),
]


@pytest.fixture
def judged(run_dir: Path) -> Path:
    """The run of MovieLens, judged."""
    write_pairs(run_dir, ROWS)
    users = [{"user_id": "u1", "history": ["i1", "i2"]}]
    pq.write_table(
        pa.Table.from_pylist(users),
        run_dir / "judged" / "users.parquet",
        write_page_checksum=True,
    )
    items = {"item_id": ["i1", "i7", "next"], "title": ["Lamp", "Desk", "Rug"]}
    pq.write_table(pa.table(items), run_dir / "split" / "items.parquet")
    manifest = {"pairs": 10, "pairs_per_second": 2.41, "prompt_tokens": 5}
    (run_dir / "judged" / "manifest.json").write_text(json.dumps(manifest))
    stage = {
        "point_accuracy": 0.301,
        "pair_auc": {"all": 0.593},
        "pair_auc_interval": [0.522, None],
    }
    rival = {"pair_auc": {"all": 0.577}}
    report = {"stages": {"sft": stage, "before": stage}, "baselines": {"cosine": rival}}
    (run_dir / "judge").mkdir()
    (run_dir / "judge" / "report.json").write_text(json.dumps(report))
    return run_dir


def test_report_shows_judged_users_evidence_and_cost(judged: Path) -> None:
    html = write_report(judged).read_text()
    for words in (
        "It is new to this person.",
        "pairs per second",
        "2.41",
        "chosen next",
        "weight 0.40",
        "30.1 %",
        "rival: cosine",
        "5 of 9 judged candidates",
    ):
        assert words in html, words


def test_users_with_evidence_come_first_and_the_next_item_is_always_there(
    judged: Path,
) -> None:
    section = read_judged(judged)
    assert section is not None
    assert [user.user_id for user in section.users] == ["u2", "u1"]
    shown = section.users[1].items
    # The four best, and what was chosen next, the worst; i4 to i6 have no title.
    assert [item.title for item in shown] == ["Desk", "i6", "i5", "i4", "Rug"]
    assert [item.is_next for item in shown] == [False] * 4 + [True]
    assert section.users[1].history == ["Lamp", "i2"]
    assert [said.score_percent for said in shown[0].said] == [25.0, 75.0]
    assert section.stages is not None
    labels = [row.label for row in section.stages.rows]
    assert labels == ["before", "sft", "rival: cosine"]


def test_hostile_text_is_shown_never_run(judged: Path) -> None:
    rows = [pair(HOSTILE, HOSTILE, 0.5, source=HOSTILE, why=HOSTILE)]
    write_pairs(judged, rows)
    html = write_report(judged).read_text()
    assert "<script" not in html
    # user, title, source, evidence
    assert html.count(escape(HOSTILE).replace("&quot;", "&#34;")) == 4


def test_long_text_and_many_pairs_are_bounded(judged: Path, monkeypatch) -> None:
    write_pairs(judged, [pair("u1", "i1", 0.5, why="x" * 1000)])
    section = read_judged(judged)
    assert section is not None
    said = section.users[0].items[0].said[0]
    assert said.evidence == "x" * (MAX_CHARS - 3) + "..."
    monkeypatch.setattr(report_judged, "MAX_READ_ROWS", 3)
    write_pairs(judged, ROWS)
    section = read_judged(judged)
    assert section is not None
    assert [user.num_pairs for user in section.users] == [3]


def test_a_run_that_was_not_judged_has_no_such_section(run_dir: Path) -> None:
    assert read_judged(run_dir) is None
    assert 'id="judge"' not in write_report(run_dir).read_text()


def test_titles_and_histories_may_be_missing(judged: Path) -> None:
    (judged / "judged" / "users.parquet").unlink()
    (judged / "split" / "items.parquet").unlink()
    (judged / "judge" / "report.json").unlink()
    section = read_judged(judged)
    assert section is not None
    assert section.stages is None
    assert section.users[1].items[0].title == "i7"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("judged/part-00000.parquet", "PAR1"),
        ("judged/users.parquet", "PAR1"),
        ("judged/manifest.json", "{"),
        ("judge/report.json", "{}"),
        ("judge/report.json", "{"),
        ("judge/report.json", '{"stages": {}, "baselines": {}, "checksum": "0"}'),
    ],
)
def test_a_damaged_file_is_named(judged: Path, name: str, text: str) -> None:
    (judged / name).write_text(text)
    with pytest.raises(ValueError, match=r"judge.*cannot be read"):
        write_report(judged)


@pytest.mark.parametrize(
    ("name", "column"),
    [("part-00000.parquet", "reward"), ("users.parquet", "history.list.element")],
)
def test_a_flipped_bit_of_a_page_is_found(judged: Path, name: str, column: str) -> None:
    path = judged / "judged" / name
    plain = {"compression": "none", "use_dictionary": False}
    pq.write_table(pq.read_table(path), path, write_page_checksum=True, **plain)
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(nth) for nth in range(group.num_columns)]
    (chunk,) = [one for one in chunks if one.path_in_schema == column]
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"judged: .*cannot be read .*CRC"):
        write_report(judged)


def test_column_that_is_missing_is_named(judged: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "reward"} for row in ROWS]
    write_pairs(judged, rows)
    with pytest.raises(ValueError, match=r"judged: .*KeyError: 'reward'.*judge again"):
        write_report(judged)


ROW = ["pretrain", "judge", "align"]


@pytest.mark.parametrize("row", [ROW, sealed({"names": ROW})])
def test_time_is_told_by_the_steps_of_the_pipeline(judged: Path, row: object) -> None:
    folder = judged / "steps"
    folder.mkdir()
    (folder / "row.json").write_text(json.dumps(row))
    for name, stamp in (
        ("pretrain", {"is_done": True, "seconds": 60.0}),
        ("judge", {"is_done": True, "seconds": 540.0}),
        ("align", {"is_done": False, "seconds": 5.0}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(stamp))
    html = write_report(judged).read_text()
    assert "10 min 00 s in all" in html
    assert "9 min 00 s" in html
