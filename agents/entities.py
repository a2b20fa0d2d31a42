"""Entities: a text -> the hashtags, cashtags, mentions and links in it, by X's own rules.

The rules are those of twitter-text 3 (its regex package), which X applies to what people write. They serve sources
whose payload lists none; a payload's own entities go first, for only the source knows which of the names exist. A link
needs a protocol: X makes https://t.co of every other one before anybody reads the text.
"""

from typing import NamedTuple

import regex

LINK = regex.compile(r"(?<![A-Za-z0-9@＠$#＃\u202a-\u202e])https?://[^\s\p{C}<>\"“”「」『』（）]+", regex.I)
LINK_TAIL = regex.compile(r"[.,:;!?'’…)\]]+$")
T_CO = regex.compile(r"https?://t\.co/[a-z0-9]+", regex.I)
ALPHA = r"\p{L}\p{M}"
TAG = ALPHA + r"\p{Nd}_\u200c\u200d\ua67e\u05be\u05f3\u05f4\uff5e\u301c\u309b\u309c\u30a0\u30fb\u3003\u0f0b\u0f0c\u00b7"
HASHTAG = regex.compile(
    rf"(?:(?<![{TAG}&])|(?<=[\ufe0e\ufe0f]))[#＃](?![\ufe0f\u20e3])((?>[{TAG}]*[{ALPHA}][{TAG}]*))(?![#＃]|://)"
)
CASHTAG = regex.compile(r"(?<!\S)\$([a-z]{1,6}(?:[._][a-z]{1,2})?)(?=$|\s|[\p{P}\p{S}])", regex.I)
LATIN_ACCENTS = r"\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0100-\u024f\u0300-\u036f\u1e00-\u1eff"
MENTION = regex.compile(
    rf"(?:(?<![a-zA-Z0-9_!#$%&*@＠])|(?<=(?:^|[^a-zA-Z0-9_+~.-])(?:RT|rt|Rt|rT):?))"
    rf"[@＠]((?>[a-zA-Z0-9_]{{1,20}}))(?![@＠{LATIN_ACCENTS}]|://)"
)
CUT_WORD = regex.compile(r"\S*…\Z")


class Entities(NamedTuple):
    """In the order of the text, repetitions kept; tags and names without their sign."""

    hashtags: tuple[str, ...]
    cashtags: tuple[str, ...]
    mentions: tuple[str, ...]
    links: tuple[str, ...]


def entities(text: str) -> Entities:
    """Find them in a text as people read it (unescaped)."""
    if text.startswith("RT @") and text.endswith("…"):  # an old repost, cut to size: half a name is no name
        text = CUT_WORD.sub("", text)
    links: list[str] = []

    def cut(found: regex.Match[str]) -> str:
        short = T_CO.match(found[0])
        links.append(short[0] if short else LINK_TAIL.sub("", found[0]))
        rest: str = found[0][len(links[-1]) :]
        return " x" + rest  # a letter, so that "#tag" right behind it is no tag

    if "://" in text:
        text = LINK.sub(cut, text)
    return Entities(
        tuple(HASHTAG.findall(text)) if "#" in text or "＃" in text else (),
        tuple(CASHTAG.findall(text)) if "$" in text else (),
        tuple(MENTION.findall(text)) if "@" in text or "＠" in text else (),
        tuple(links),
    )
