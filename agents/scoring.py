"""Scoring: judgements and reactions -> components of a reward in -1..1, so that no crowd can buy one."""

import math
from collections.abc import Collection, Iterable

import msgspec

PRIOR_VOTES = 1.0  # a neutral vote that every subject starts with: one person alone is half a verdict
VIEW_RATE_FULL = 0.10  # weighted reactions per view that score 1
REACTIONS_FULL = 10_000  # weighted reactions that score 1 where views are unknown (on a log scale)


class Judgement(msgspec.Struct, array_like=True):
    """One person's standing judgement: the feedback's id, kind, value, the subjects, and whether it was simulated."""

    feedback: str
    rater: str
    kind: str
    value: int
    subject: str
    other: str | None
    simulated: bool


class Counted(msgspec.Struct, array_like=True):
    """Reactions as counted once: when the record of it came, and how old the source says that the subject was."""

    time_ms: int
    likes: int
    replies: int
    reposts: int
    quotes: int
    views: int | None
    age_ms: int | None


def votes_of(subject: str, judgements: Iterable[Judgement]) -> tuple[dict[str, list[float]], int, int]:
    """Read the judgements as each rater's votes in -1..1 on one subject: (votes, how many simulated, reporters)."""
    votes: dict[str, list[float]] = {}
    simulated = 0
    reporters = set()
    for one in judgements:
        if subject not in (one.subject, one.other):
            continue
        if one.kind == "report":
            reporters.add(one.rater)
            continue
        if one.kind == "thumb":
            vote = float(one.value)
        elif one.kind == "stars":
            vote = (one.value - 3) / 2
        elif one.kind == "choice":
            vote = 0.0 if one.value == 0 else (1.0 if one.subject == subject else -1.0)
        else:  # a correction speaks against what it corrects and for the better words
            vote = -1.0 if one.subject == subject else 1.0
        votes.setdefault(one.rater, []).append(vote)
        simulated += one.simulated
    return votes, simulated, len(reporters)


def human_of(votes: Collection[list[float]]) -> float:
    """Average people, not judgements: who compares a subject with each of its 64 siblings still is one person."""
    return round(math.fsum(math.fsum(own) / len(own) for own in votes) / (len(votes) + PRIOR_VOTES), 6)


def engagement_of(counted: Counted) -> float:
    """Score reactions in -1..1: by their rate where views are known, else on a log scale."""
    weighted = counted.likes + 1.5 * counted.replies + 2 * counted.reposts + 2 * counted.quotes
    if counted.views:
        return round(2 * min(1.0, weighted / counted.views / VIEW_RATE_FULL) - 1, 6)
    return round(2 * min(1.0, math.log1p(weighted) / math.log1p(REACTIONS_FULL)) - 1, 6)
