"""Text with HTML in places -> one line of plain text."""

import html
import re
from html.entities import html5
from html.parser import HTMLParser

_SILENT = frozenset(("script", "style"))
_SPACES = re.compile(r"\s+")
# Bounded: Python turns no text of thousands of digits into a number.
_ENTITY = re.compile(r"&(#\d{1,8}|#[xX][\da-fA-F]{1,8}|[a-zA-Z][a-zA-Z\d]*);")


class _Text(HTMLParser):
    """Collects what a reader of the page would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent_depth = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.silent_depth += tag in _SILENT
        self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.silent_depth -= tag in _SILENT and self.silent_depth > 0
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if self.silent_depth == 0:
            self.parts.append(data)


def resolve_entities(text: str) -> str:
    """Replace ``&amp;`` and its kind; an ``&`` that begins no whole entity stays.

    HTML takes the first letters of ``&region=eu`` for a sign, as pages of the nineties
    left the semicolon out. In a log that is part of an address.

    >>> resolve_entities("Ink &amp; paper, /p?id=3&region=eu")
    'Ink & paper, /p?id=3&region=eu'
    """
    return _ENTITY.sub(_resolved, text) if "&" in text else text


def _resolved(found: re.Match[str]) -> str:
    name = found[1]
    is_known = name.startswith("#") or f"{name};" in html5
    return html.unescape(found[0]) if is_known else found[0]


def clean_html(text: str) -> str:
    """Drop tags, comments, styles and scripts; resolve entities; join white space.

    >>> clean_html("<b>Ink</b><!-- x --> &amp; paper")
    'Ink & paper'
    """
    if "<" in text:
        parser = _Text()
        # Each & comes out of the parser as it is, and is then read by our own rule.
        parser.feed(text.replace("&", "&amp;"))
        parser.close()
        text = "".join(parser.parts)
    text = resolve_entities(text)
    return _SPACES.sub(" ", text).strip()
