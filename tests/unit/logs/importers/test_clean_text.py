"""HTML to plain text."""

import pytest

from sgrec_torchrec.logs.importers.clean_text import clean_html


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
