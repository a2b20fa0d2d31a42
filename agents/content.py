"""Content: a text -> what can be counted in it, and one number for how it reads.

The quality is a rule that a person can check by hand, not a model: full marks for 5 to 60 words in mixed case without
repetition, less for shouting, for hashtags and links in place of words, for saying the same again. It is one of six
components of the reward and weighs 0.05.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from schemas.facts import AnswerContent, Features, PostContent, Turn, Words
from schemas.ids import text_hash

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # and whole milliseconds: a float rounds the last one of 9999 up
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
WORDS_FEW, WORDS_MANY = 5, 60
CAPS_SHARE_FREE = 0.3  # names and acronyms are no shouting
MARKS_SHARE_FREE = 0.25  # hashtags and links per word before they count against a text


def words_of_post(post: str, content: PostContent, mentions: int, media: int, claimed_ms: int | None) -> Words:
    """Say what is kept of a post's words where they are sealed; `claimed_ms` is UTC and may be unknown."""
    counted = features(
        content.text,
        hashtags=len(content.hashtags),
        mentions=mentions,
        links=len(content.links),
        media=media,
        at_ms=claimed_ms,
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


def features(text: str, *, hashtags: int, mentions: int, links: int, media: int, at_ms: int | None) -> Features:
    """Count what the text and its payload say; `at_ms` is UTC and may be unknown."""
    words = WORD.findall(text)
    letters = [c for c in text if c.isalpha()]
    caps = sum(c.isupper() for c in letters) / len(letters) if len(letters) >= 8 else 0.0
    distinct = len({w.casefold() for w in words}) / len(words) if words else 1.0
    at = EPOCH + timedelta(milliseconds=at_ms) if at_ms is not None else None
    return Features(
        chars=len(text),
        words=len(words),
        hashtags=hashtags,
        mentions=mentions,
        links=links,
        media=media,
        caps_share=round(caps, 4),
        distinct_share=round(distinct, 4),
        hour=at.hour if at else None,
        weekday=at.weekday() if at else None,
        quality=_quality(len(words), caps, distinct, (hashtags + links) / max(1, len(words))),
    )


def _quality(words: int, caps: float, distinct: float, marks: float) -> float:
    length = min(1.0, words / WORDS_FEW) if words < WORDS_FEW else min(1.0, (2 * WORDS_MANY) / (WORDS_MANY + words))
    shouting = max(0.0, caps - CAPS_SHARE_FREE) / (1 - CAPS_SHARE_FREE)
    marking = min(1.0, max(0.0, marks - MARKS_SHARE_FREE))
    repeating = 1 - distinct
    return round(max(-1.0, min(1.0, 2 * length - 1 - shouting - marking - repeating)), 4)
