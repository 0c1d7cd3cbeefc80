"""HTML to plain text."""

import pytest

from sgrec_torchrec.logs.importers.clean_text import clean_html, resolve_entities


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("  two\n\n lines\t", "two lines"),
        ("<p>one</p><p>two</p>", "one two"),
        ("8.5&rdquo; &amp; 3 &lt; 4", "8.5\u201d & 3 < 4"),
        ("a<!-- .headerM {color:#000} -->b", "ab"),
        ("x<style>p {color: red}</style>y<script>f(1)</script>z", "x y z"),
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("</style>kept", "kept"),
        ("line<br/>break", "line break"),
        ("", ""),
    ],
)
def test_only_what_a_reader_sees_stays(text, expected):
    assert clean_html(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/p?id=3&reg=eu&copy=2",
        "R&D at AT&T &c",
        "a&notit;b &nosuch; &;",
        "&#; &#x; &#123 &#x41 &lt",
        "&#" + "9" * 5_000 + ";",
    ],
)
def test_nothing_is_altered_where_no_whole_entity_stands(text: str) -> None:
    assert resolve_entities(text) == text
    assert clean_html(text) == text
    assert clean_html(f"<b>{text}</b>") == text


def test_each_whole_entity_is_resolved_once() -> None:
    text = "&amp;lt; &#65;&#x42; &Eacute;t&eacute; &copy;&reg=1"
    expected = "&lt; AB \xc9t\xe9 \xa9&reg=1"
    assert resolve_entities(text) == clean_html(text) == expected
    assert clean_html(f"<i>{text}</i>") == expected
