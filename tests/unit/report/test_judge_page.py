"""The inspection page shows what was judged, runs nothing of it and hides no gap."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.report.judge_page import write_page

Row = dict[str, Any]
CHROMIUM = shutil.which("chromium")
ASPECTS = ("profile", "future_interest", "novelty", "context")
TITLES = {f"i{n}": f"Film {n}" for n in range(9)}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, and the script's data."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.scripts: list[str] = []
        self._within = ""
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.pieces).split())
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append(data)
            self._within = ""
        elif self._within != "style":
            self.pieces.append(data)

    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]

    def user(self, user_id: str) -> dict[str, Any]:
        (found,) = (user for user in self.data["users"] if user["id"] == user_id)
        return dict(found)


def pair(user_id: str, item_id: str, source: str, score: float, **other: Any) -> Row:
    row: Row = {"user_id": user_id, "item_id": item_id, "source": source}
    row |= {f"aspect_{name}": score for name in ASPECTS}
    row |= {f"weight_{name}": 0.25 for name in ASPECTS}
    row |= {f"evidence_{name}": f"{name} of {item_id}" for name in ASPECTS}
    row |= {"reward": score, "as_of": 2, "history_hash": 1}
    return row | {"judge_version": "j1", "prompt_version": "p1"} | other


def user(user_id: str, **other: Any) -> Row:
    row: Row = {"user_id": user_id, "as_of": 2, "request_timestamp": 1_000_000_000}
    return row | {"history": ["i1", "i2"], "next_item_id": "i3"} | other


def write_pairs(path: Path, rows: list[Row], without: str = "") -> None:
    """Pairs without the columns whose names have the word ``without``."""
    table = pa.Table.from_pylist(rows, None if rows else pq.read_schema(path))
    kept = [n for n in table.column_names if not without or without not in n]
    pq.write_table(table.select(kept), path)


def write_users(folder: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "users.parquet")


PAIRS = [
    pair("u1", "i3", "next", 0.75),
    pair("u1", "i4", "beam", 0.5),
    pair("u1", "i5", "easy_negative", 0.25),
    pair("u2", "i3", "next", 0.5),
    pair("u2", "i6", "beam", 1.0),
]


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    folder = tmp_path / "judged"
    folder.mkdir()
    write_pairs(folder / "part-0.parquet", PAIRS[:3])
    write_pairs(folder / "part-1.parquet", PAIRS[3:])
    write_users(folder, [user("u1"), user("u2")])
    manifest = {"model": "smol", "tokens": {"prompt": 12345}, "cost_per_pair": 2.1e-5}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def page_of(judged: Path, titles: Mapping[str, str] = TITLES, **options: Any) -> Page:
    return Page(write_page(judged, titles, **options).read_text(encoding="utf-8"))


def test_page_lies_in_the_folder_or_where_it_is_asked_for(judged: Path) -> None:
    assert write_page(judged, TITLES) == judged / "index.html"
    elsewhere = judged.parent / "pages" / "judge.html"
    assert write_page(judged, TITLES, elsewhere) == elsewhere
    assert [path.name for path in elsewhere.parent.iterdir()] == ["judge.html"]


def test_head_tells_facts_means_and_whether_the_next_item_is_preferred(
    judged: Path,
) -> None:
    text = page_of(judged).text
    assert "tokens prompt 12,345" in text
    assert "cost per pair 2.1e-05" in text
    # u1: 0.75 beats 0.5 and 0.25; u2: 0.5 loses to 1.0. 2 of 3.
    assert "True next item preferred 66.7 % of 3 comparisons" in text
    # mean of the beam: (0.5 + 1.0) / 2 in each of 4 aspects and the reward; 1 of 2 won
    assert "beam 2" + 5 * " 0.750" + " 50.0 %" in text
    # the next item: (0.75 + 0.5) / 2, and it has no rival of its own source
    assert "true next item 2" + 5 * " 0.625" + " \u2013" in text


def test_missing_values_are_null_and_counted_never_zero(judged: Path) -> None:
    gaps = {"aspect_novelty": None, "evidence_novelty": None, "reward": None}
    write_pairs(judged / "part-1.parquet", [pair("u2", "i6", "beam", 1.0, **gaps)])
    page = page_of(judged)
    _, _, scores, evidence = page.user("u2")["rows"][0]
    assert scores == [1.0, 1.0, None, 1.0, None]
    assert evidence[2] is None
    assert page.text.count("1 of 4 pairs have no value here.") == 2
    # the mean of the beam's novelty is that of the one that is there
    assert "beam 2 0.750 0.750 0.500 0.750 0.500" in page.text


def test_page_without_context_says_so(judged: Path) -> None:
    for number, rows in enumerate((PAIRS[:3], PAIRS[3:])):
        write_pairs(judged / f"part-{number}.parquet", rows, without="context")
    page = page_of(judged)
    assert "Not judged here: contextual relevance." in page.text
    assert "context" not in dict(page.data["measures"])


def test_page_without_aggregator_has_no_reward_and_compares_by_aspects(
    judged: Path,
) -> None:
    for number, rows in enumerate((PAIRS[:3], PAIRS[3:])):
        rows = [row | dict.fromkeys(map("weight_{}".format, ASPECTS)) for row in rows]
        write_pairs(judged / f"part-{number}.parquet", rows, without="reward")
    page = page_of(judged)
    assert "No aggregator ran" in page.text
    assert "66.7 % of 3 comparisons with another candidate" in page.text
    assert "by mean of the aspects" in page.text
    assert page.user("u1")["weights"] == [None] * 4
    assert "reward" not in dict(page.data["measures"])


def test_page_says_how_many_users_it_shows(judged: Path) -> None:
    assert "2 of 2 users are shown one by one." in page_of(judged).text
    page = page_of(judged, max_users=1)
    assert "1 of 2 users are shown one by one, drawn by a seed." in page.text
    assert len(page.data["users"]) == 1


def test_judgements_of_two_versions_are_pointed_out(judged: Path) -> None:
    assert "do not compare" not in page_of(judged).text
    rows = [row | {"prompt_version": "p2"} for row in PAIRS[3:]]
    write_pairs(judged / "part-1.parquet", rows)
    text = page_of(judged).text
    assert "judge j1, prompt p1 (3 pairs); judge j1, prompt p2 (2 pairs)" in text


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "a\u2028b\u2029c\u202e",
    "{{ 7 * 7 }}{% raw %}",
    "\\u003c/script\\u003e & &lt;",
]


def hostile_folder(judged: Path, text: str) -> dict[str, str]:
    """Put ``text`` wherever a stranger may write; returns titles."""
    rows = [
        row
        | dict.fromkeys((f"evidence_{name}" for name in ASPECTS), text)
        | {"user_id": text, "judge_version": text}
        for row in PAIRS[:3]
    ]
    rows.append(pair(text, text, text, 0.5))
    write_pairs(judged / "part-0.parquet", rows)
    write_users(judged, [user(text, next_item_id=text), user("u2")])
    (judged / "manifest.json").write_text(json.dumps({text: text, "x": [text]}))
    return {**TITLES, "i4": text, text: text}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_never_run(judged: Path, text: str) -> None:
    page = page_of(judged, hostile_folder(judged, text))
    assert page.user(text)["rows"][0][3] == [text] * 4
    assert ["i4", text] in page.data["items"]
    assert page.names().count("script") == 2
    assert "img" not in page.names()
    html = (judged / "index.html").read_text(encoding="utf-8")
    data = html.split('id="data">')[1].split("</script>")[0]
    assert not set(data) & set("<>&\u2028\u2029")
    assert not [name for _, attrs in page.tags for name in attrs if name[:2] == "on"]
    words = " ".join(text.split())
    # the manifest's label, value and list, the version
    assert page.text.count(words) >= 4


def test_text_that_utf8_cannot_hold_does_not_stop_the_page(judged: Path) -> None:
    (judged / "manifest.json").write_text('{"model": "\\ud800"}', encoding="utf-8")
    page = page_of(judged, {"i3": "lone \ud800"})
    assert "lone" in str(page.data["items"])


def test_page_refers_to_nothing_outside_itself(judged: Path) -> None:
    page = page_of(judged)
    html = (judged / "index.html").read_text(encoding="utf-8")
    assert not set(page.names()) & {"link", "iframe", "object", "base", "form", "img"}
    for word in ("http://", "https://", "url(", "@import", "import(", "fetch(", "eval"):
        assert word not in html, word
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not attributes & {"src", "href", "srcset", "action"}
    (policy,) = (
        str(attrs["content"])
        for tag, attrs in page.tags
        if tag == "meta" and "http-equiv" in attrs
    )
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


@pytest.mark.parametrize(
    ("break_it", "error", "words"),
    [
        (
            lambda d: [path.unlink() for path in d.glob("part-*")],
            FileNotFoundError,
            r"judged: no part-\*\.parquet; judge candidates first",
        ),
        (
            lambda d: (d / "users.parquet").unlink(),
            FileNotFoundError,
            r"users\.parquet: not there.*judge again",
        ),
        (
            lambda d: write_pairs(d / "part-1.parquet", PAIRS, without="source"),
            ValueError,
            r"part-1\.parquet: no column source; it has user_id",
        ),
        (
            lambda d: write_pairs(d / "part-1.parquet", PAIRS, without="aspect_"),
            ValueError,
            r"part-1\.parquet: no column aspect_<name>",
        ),
        (
            lambda d: pq.write_table(pa.table({"user_id": ["u"]}), d / "users.parquet"),
            ValueError,
            r"users\.parquet: no column as_of",
        ),
        (
            lambda d: pq.write_table(
                pq.read_table(d / "part-0.parquet").set_column(
                    0, "user_id", pa.array([1, 2, 3])
                ),
                d / "part-0.parquet",
            ),
            ValueError,
            r"part-0\.parquet: column user_id holds int64, not string",
        ),
        (
            lambda d: (d / "part-1.parquet").write_bytes(b"PAR1 cut"),
            ValueError,
            r"part-1\.parquet: no whole Parquet file .*remove it and judge again",
        ),
        (
            lambda d: (d / "manifest.json").write_text('{"pairs": '),
            ValueError,
            r"manifest\.json: not JSON .*mend it, or remove it",
        ),
        (
            lambda d: (d / "manifest.json").write_text("[1]"),
            ValueError,
            r"manifest\.json: JSON, but no object; mend it",
        ),
    ],
)
def test_unusable_folder_is_a_clear_error_and_writes_nothing(
    judged: Path, break_it: Any, error: type[Exception], words: str
) -> None:
    break_it(judged)
    with pytest.raises(error, match=words):
        write_page(judged, TITLES)
    assert not (judged / "index.html").exists()


def test_damage_inside_a_part_is_a_clear_error(judged: Path) -> None:
    path = judged / "part-0.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"its Parquet files cannot be read .*again"):
        write_page(judged, TITLES)


def test_no_users_is_refused(judged: Path) -> None:
    with pytest.raises(ValueError, match="max_users is 0; show 1 user or more"):
        write_page(judged, TITLES, max_users=0)


def test_page_without_manifest_or_pairs_says_so(judged: Path) -> None:
    (judged / "manifest.json").unlink()
    for number in range(2):
        write_pairs(judged / f"part-{number}.parquet", [])
    text = page_of(judged).text
    assert "There is no manifest.json" in text
    assert "No pair has been judged yet." in text


def in_browser(path: Path) -> str:
    """The document as chromium has it once its scripts have run."""
    assert CHROMIUM
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    flags.append(f"--user-data-dir={path.parent / 'browser'}")
    done = subprocess.run(
        [CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=120
    )
    return done.stdout


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
CLICKS = """<script>
const click = (key) => document.querySelector(`[data-key=${key}] button`).click();
click("profile"); click("profile");
</script></body>"""


@needs_browser
def test_browser_sorts_by_a_click_and_shows_hostile_text(judged: Path) -> None:
    text = HOSTILE[2]
    html = write_page(judged, hostile_folder(judged, text)).read_text(encoding="utf-8")
    # the policy lets no other script run, so that the copy goes without it
    html = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", CLICKS)
    copy = judged / "copy.html"
    copy.write_text(html, encoding="utf-8")
    page = Page(in_browser(copy))
    assert page.names().count("img") == 0
    assert page.text.count(text) >= 10
    order = [attrs.get("aria-sort") for tag, attrs in page.tags if tag == "th"]
    assert "ascending" in order
    assert "descending" not in order
    numbers = re.findall(r"(0\.\d\d) (?=\d\.\d\d)", page.text.split("Reward")[-1])
    assert numbers[0] == "0.25"


@needs_browser
def test_policy_runs_the_pages_script_and_no_other(judged: Path) -> None:
    path = write_page(judged, TITLES)
    html = path.read_text(encoding="utf-8")
    foreign = "<script>document.title = 'foreign'</script></body>"
    path.write_text(html.replace("</body>", foreign), encoding="utf-8")
    dom = in_browser(path)
    assert "<title>Judgements</title>" in dom
    assert "Film 3" in Page(dom).text
