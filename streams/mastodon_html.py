"""Mastodon HTML: a status's `content` -> its text as a reader sees it, and the links that it holds, as given.

The fediverse sends HTML of any software; a server sanitises it, we trust none. Only the standard library parses it,
nothing is fetched, and what is no text (scripts, styles, images) leaves nothing behind. A link's address is shown by
Mastodon in pieces of which it hides some; the pieces together are the text here.
"""

import re
from collections.abc import Sequence
from html.parser import HTMLParser

from schemas.envelope import Refused

HTML_CHARS_MAX = 200_000  # twice what a text may have
NO_TAG = re.compile(r"<(?!/?[A-Za-z][^<>]{0,4096}>)")
"""A "<" that opens no tag. Left alone, the standard library's parser spends minutes on 200 kB of them (measured)."""
DECLARED = re.compile(r"<[!?][^<>]{0,4096}>")
DEPTH_MAX = 1_000  # of elements left out inside each other
SILENT = frozenset(("script", "style", "head", "title", "template", "noscript", "iframe", "object", "textarea"))
BLOCKS = frozenset(("p", "div", "blockquote", "pre", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "table"))
LINES = frozenset(("br", "li", "tr", "hr"))
VOID = frozenset(("br", "hr", "img", "input", "meta", "link", "wbr", "area", "base", "col", "embed", "source", "track"))
OF_THE_POST = frozenset(("mention", "hashtag"))  # of <a>: what it points to is told by the status beside its content
INLINE_QUOTE = "quote-inline"  # "RE: <link>", for clients that cannot show a quote (Mastodon 4.5)


class _Reader(HTMLParser):
    def __init__(self, quoting: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.quoting = quoting
        self.text: list[str] = []
        self.links: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        given = dict(reversed(attrs))  # of two equal ones the first counts, as browsers have it
        classes = (given.get("class") or "").split()
        if self.silent or tag in SILENT or (self.quoting and INLINE_QUOTE in classes):
            if tag not in VOID and len(self.silent) < DEPTH_MAX:
                self.silent.append(tag)
            return
        if tag in BLOCKS:
            self.text.append("\n\n")
        elif tag in LINES:
            self.text.append("\n")
        href = given.get("href")
        if tag == "a" and href and not OF_THE_POST.intersection(classes):
            self.links.append(href.strip())

    def handle_endtag(self, tag: str) -> None:
        if self.silent:
            if tag in self.silent:  # and whatever was left open inside it
                while self.silent.pop() != tag:
                    continue
        elif tag in BLOCKS:
            self.text.append("\n\n")

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.text.append(data)


def plain(html: str, quoting: bool = False) -> tuple[str, tuple[str, ...]]:
    """Give text and links; `quoting` leaves out the paragraph that only says what is quoted. Refused (bad-html)."""
    if len(html) > HTML_CHARS_MAX:
        raise Refused("too-large", f"content of {len(html)} characters; at most {HTML_CHARS_MAX}")
    reader = _Reader(quoting)
    try:
        reader.feed(NO_TAG.sub("&lt;", DECLARED.sub("", html)))
        reader.close()
    except AssertionError:  # what the standard library has for some malformed declarations
        raise Refused("bad-html", "content is no HTML that can be read") from None
    text = "".join(reader.text).replace("\r\n", "\n")
    text = "\n".join(line.strip(" \t") for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n \t"), tuple(dict.fromkeys(link for link in reader.links if link))
