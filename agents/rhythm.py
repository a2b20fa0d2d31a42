"""Rhythm: the times of an author's posts -> how regular they are, as moving averages in log time."""

import math

import msgspec

RHYTHM_POSTS_MIN = 3  # two gaps: below that an author has no rhythm
RHYTHM_SHARE = 0.2  # of the newest gap in the moving averages
RHYTHM_SPREAD_MAX = 3.0  # mean deviation of ln(gap) that counts as no rhythm at all: a factor of 20 either way


class Author(msgspec.Struct, array_like=True, gc=False):
    """How many posts, the last time (ms), moving mean and deviation of ln(gap in seconds); followers as last seen."""

    posts: int = 0
    last_ms: int = 0
    mean: float = 0.0
    spread: float = 0.0
    followers: int | None = None


def moved(author: Author, at_ms: int | None) -> float | None:
    """Update the author's rhythm by one post and score it; out-of-order posts do not move it back in time."""
    if at_ms is None:
        return None
    if not author.posts:
        author.posts, author.last_ms = 1, at_ms
    elif at_ms >= author.last_ms:
        gap = math.log(max(1.0, (at_ms - author.last_ms) / 1000))
        mean = gap if author.posts == 1 else author.mean + RHYTHM_SHARE * (gap - author.mean)
        spread = 0.0 if author.posts == 1 else author.spread + RHYTHM_SHARE * (abs(gap - author.mean) - author.spread)
        author.posts, author.last_ms = author.posts + 1, at_ms
        author.mean, author.spread = round(mean, 6), round(spread, 6)
    return score(author)


def score(author: Author) -> float | None:
    """Score an author in -1..1, 1 being a clockwork; None below RHYTHM_POSTS_MIN posts."""
    if author.posts < RHYTHM_POSTS_MIN:
        return None
    return round(1 - 2 * min(1.0, author.spread / RHYTHM_SPREAD_MAX), 4)
