"""Text with HTML in places -> one line of plain text."""

import re
from html.parser import HTMLParser

_SILENT = frozenset(("script", "style"))
_SPACES = re.compile(r"\s+")


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


def clean_html(text: str) -> str:
    """Drop tags, comments, styles and scripts; resolve entities; join white space.

    >>> clean_html("<b>Ink</b><!-- x --> &amp; paper")
    'Ink & paper'
    """
    if "<" in text or "&" in text:
        parser = _Text()
        parser.feed(text)
        parser.close()
        text = "".join(parser.parts)
    return _SPACES.sub(" ", text).strip()
