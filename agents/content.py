"""Content: a text -> what can be counted in it, and one number for how it reads.

The quality is a rule that a person can check by hand, not a model: full marks for 5 to 60 words in mixed case without
repetition, less for shouting, for hashtags and links in place of words, for saying the same again. It is one of six
components of the reward and weighs 0.05.
"""

import re
from collections.abc import Sequence

import regex

from agents.language import language
from schemas.facts import AnswerContent, Features, PostContent, Turn, Words
from schemas.ids import text_hash

DAY_MS = 86_400_000
THURSDAY = 3  # 1 January 1970
LINK = re.compile(r"https?://\S+")  # not read aloud: no words, no letters of the author's
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
LONG_CHARS = 6  # a longer word is a long word, in LIX
UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u1000-\u109f\u1780-\u17d3"  # Thai, Lao, Burmese, Khmer
    "\u3005\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")
NEEDS_CARE = re.compile(f"[\u0300-\u036f\u0591-\u05c7\u0610-\u065f\u0670\u06d6-\u06ed\u0700-\u1cff{UNSPACED}]")
"""Letters with marks that `re` takes for the end of a word, and scripts without spaces."""
CAREFUL_WORD = regex.compile(
    rf"[{UNSPACED}](?:\p{{M}}*[{UNSPACED}])?\p{{M}}*"
    rf"|[[\p{{L}}\p{{N}}]--[{UNSPACED}]][[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]*(?:['’][\p{{L}}\p{{M}}\p{{N}}]+)?",
    regex.V1,
)
"""Between spaces; where a script has none, two characters count as a word (about the mean in Chinese and Japanese)."""
ASCII_UPPER = bytes(range(65, 91))
NOT_ASCII_LETTERS = bytes(byte for byte in range(256) if not chr(byte).isalpha() or byte > 127)
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
SENTENCE_END = re.compile(r"[.!?…।؟]+[\"'”’»)\]]*(?=\s|$)|[。！？]+|\n+")
READABLE = re.compile(r"[^\W_]")
MAY_BE_EMOJI = re.compile("[\u00a9\u00ae\u203c\u2049\u20e3\u2122-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001ffff]")
EMOJI = regex.compile(
    r"\p{RI}\p{RI}"  # a flag
    r"|[0-9#*]\ufe0f?\u20e3"  # a keycap
    r"|(?:[\p{Extended_Pictographic}--[©®™]](?!\ufe0e)|[©®™]\ufe0f)"  # with what changes it or is joined to it:
    r"[\ufe0f\p{EMod}\U000e0020-\U000e007f]*(?:\u200d\p{Extended_Pictographic}[\ufe0f\p{EMod}]*)*",
    regex.V1,
)
"""What people see as one picture is one (UTS #51); marks of trade and rights only where they ask to be pictures."""
WORDS_FEW, WORDS_MANY = 5, 60
CAPS_SHARE_FREE = 0.3  # names and acronyms are no shouting
MARKS_SHARE_FREE = 0.25  # hashtags and links per word before they count against a text


def words_of_post(
    post: str,
    content: PostContent,
    mentions: int,
    media: int,
    claimed_ms: int | None,
    *,
    lang: str | None = None,
) -> Words:
    """Say what is kept of a post's words where they are sealed; `claimed_ms` is UTC and may be unknown.

    `lang` is what the payload says; where it says nothing, the language is found in the text.
    """
    counted = features(
        content.text,
        hashtags=len(content.hashtags),
        mentions=mentions,
        links=len(content.links),
        media=media,
        at_ms=claimed_ms,
        cashtags=len(content.cashtags),
        lang=lang,
    )
    return Words(text_hash=text_hash(post, content.text), features=counted)


def words_of_answer(prompt: str, items: Sequence[str], content: AnswerContent) -> tuple[str, tuple[Words, ...]]:
    """Say the same of a prompt (its hash) and of each text that answered it."""
    words = tuple(
        Words(
            text_hash=text_hash(item, text),
            features=features(text, hashtags=0, mentions=0, links=0, media=0, at_ms=None),
        )
        for item, text in zip(items, content.texts, strict=True)
    )
    return text_hash(prompt, prompt_text(content.messages)), words


def prompt_text(messages: Sequence[Turn]) -> str:
    """Flatten a conversation to the one string that its hash is made of; lengths tell where each turn ends."""
    return "\n".join(f"{turn.role}\0{len(turn.content)}\0{turn.content}" for turn in messages)


def features(
    text: str,
    *,
    hashtags: int,
    mentions: int,
    links: int,
    media: int,
    at_ms: int | None,
    cashtags: int = 0,
    lang: str | None = None,
) -> Features:
    """Count what the text and its payload say; `at_ms` is UTC and may be unknown, `lang` is as the payload says.

    Readability follows from the counts in any language that has spaces: LIX = words / sentences + 100 long / words
    (Björnsson 1968); where most is in a script without spaces `long_words` is None, for LIX says nothing there.
    """
    plain = LINK.sub(" ", text) if "://" in text else text
    words, long_words = _words(plain.lower())
    emoji = len(EMOJI.findall(plain)) if MAY_BE_EMOJI.search(plain) else 0
    caps = _caps(plain)
    distinct = len(set(words)) / len(words) if words else 1.0
    days, rest_ms = divmod(at_ms, DAY_MS) if at_ms is not None else (None, 0)
    return Features(
        chars=len(text),
        words=len(words),
        hashtags=hashtags,
        mentions=mentions,
        links=links,
        media=media,
        caps_share=round(caps, 4),
        distinct_share=round(distinct, 4),
        cashtags=cashtags,
        emoji=emoji,
        sentences=sum(1 for part in SENTENCE_END.split(plain) if READABLE.search(part)),
        long_words=long_words,
        lang=language(text) if lang is None else None,
        hour=rest_ms // 3_600_000 if days is not None else None,
        weekday=(days + THURSDAY) % 7 if days is not None else None,
        quality=_quality(len(words), caps, distinct, (hashtags + links) / max(1, len(words))),
    )


def _words(text: str) -> tuple[list[str], int | None]:
    """Give the words, and how many are long; None where most of the text is in a script without spaces."""
    careful = not text.isascii() and NEEDS_CARE.search(text)
    words = CAREFUL_WORD.findall(text) if careful else WORD.findall(text)
    if careful and 2 * sum(map(len, UNSPACED_RUN.findall(text))) > sum(map(len, words)):
        return words, None
    return words, len([word for word in words if len(word) > LONG_CHARS])


def _caps(text: str) -> float:
    """Give the share of capitals among the letters; 0 below eight letters."""
    letters = text.encode("ascii", "ignore").translate(None, NOT_ASCII_LETTERS)
    count, upper = len(letters), len(letters) - len(letters.translate(None, ASCII_UPPER))
    if not text.isascii():
        others = "".join(filter(str.isalpha, "".join(NOT_ASCII.findall(text))))
        count, upper = count + len(others), upper + sum(map(str.isupper, others))
    return upper / count if count >= 8 else 0.0


def _quality(words: int, caps: float, distinct: float, marks: float) -> float:
    length = min(1.0, words / WORDS_FEW) if words < WORDS_FEW else min(1.0, (2 * WORDS_MANY) / (WORDS_MANY + words))
    shouting = max(0.0, caps - CAPS_SHARE_FREE) / (1 - CAPS_SHARE_FREE)
    marking = min(1.0, max(0.0, marks - MARKS_SHARE_FREE))
    repeating = 1 - distinct
    return round(max(-1.0, min(1.0, 2 * length - 1 - shouting - marking - repeating)), 4)
