"""Metadata: tweets -> what was posted, by whom towards whom, how people reacted; ids and numbers, no words.

The first to read what sources wrote. It knows an author's rhythm, which post answers which, and which posts are gone:
a delete that comes before its post waits for it. Keyed by author, so one author's events are seen in order.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from schemas.envelope import Out, Record
from schemas.events import (
    AuthorForgotten,
    EngagementNoted,
    InteractionObserved,
    PromptNoted,
    RecordRefused,
    SubjectNoted,
    SubjectWithdrawn,
)
from schemas.facts import Event, Where
from schemas.ids import subject_id
from schemas.posts import AuthorErased, EngagementObserved, PostDeleted, PostEdited, PostObserved

V = TypeVar("V")

AUTHORS_MAX = 100_000  # a partition; about 100 bytes each in a snapshot; the longest unseen is forgotten first
POSTS_MAX = 100_000  # a partition; a deletion of an older post still destroys nothing it should keep, see the README
RHYTHM_POSTS_MIN = 3  # two gaps: below that an author has no rhythm
RHYTHM_SHARE = 0.2  # of the newest gap in the moving averages
RHYTHM_SPREAD_MAX = 3.0  # mean deviation of ln(gap) that counts as no rhythm at all: a factor of 20 either way
FUTURE_MS_MAX = 86_400_000  # a post dated more than a day after it arrived is set aside


class Rhythm(msgspec.Struct, array_like=True):
    """An author's posting gaps: how many posts, the last time (ms), moving mean and deviation of ln(gap in seconds)."""

    posts: int
    last_ms: int
    mean: float
    spread: float


class Known(msgspec.Struct, array_like=True):
    """A post we have seen: its author and the prompt that it answers (itself if none)."""

    owner: str
    prompt: str


class State(msgspec.Struct):
    """What one partition remembers."""

    authors: dict[str, Rhythm] = msgspec.field(default_factory=dict)
    posts: dict[str, Known] = msgspec.field(default_factory=dict)
    deleted: dict[str, bool] = msgspec.field(default_factory=dict)
    erased: dict[str, bool] = msgspec.field(default_factory=dict)


def step(chunk: Sequence[Record], state: State) -> tuple[list[Out], State]:
    """Fold a chunk of `tweets`."""
    outs: list[Out] = []
    for record in chunk:
        event = record.event
        said: list[Event] = []
        if isinstance(event, PostObserved | PostEdited):
            said = _post(record, event, state)
        elif isinstance(event, EngagementObserved):
            said = _engagement(event, state)
        elif isinstance(event, PostDeleted):
            said = _deleted(event, state)
        elif isinstance(event, AuthorErased):
            said = _erased(record, event, state)
        outs.extend(Out(record, one) for one in said)
    return outs, state


def _post(record: Record, post: PostObserved, state: State) -> list[Event]:
    if post.owner in state.erased or post.post in state.deleted:
        return []
    if post.claimed_ms is not None and post.claimed_ms > record.time_ms + FUTURE_MS_MAX:
        return [_refused(record, post, "future-dated", f"claims {post.claimed_ms}, arrived {record.time_ms}")]
    said: list[Event] = list(_interactions(post))
    if post.reposted is not None or post.words is None:
        return said
    prompt = post.parent or post.post
    first_seen = post.post not in state.posts
    _remember(state.posts, post.post, Known(post.owner, prompt), POSTS_MAX)
    where = Where(topic=record.topic, partition=record.partition, offset=record.offset)
    said.append(PromptNoted(prompt=post.post, text_hash=post.words.text_hash, where=where, rights=post.rights))
    said.append(
        SubjectNoted(
            prompt=prompt,
            subject=subject_id(prompt, post.post),
            kind="reply" if post.parent else "root",
            owner=post.owner,
            source=post.source,
            text_hash=post.words.text_hash,
            where=where,
            rights=post.rights,
            features=post.words.features,
            temporal=_rhythm(post, state) if first_seen else _score(state.authors.get(post.owner)),
        )
    )
    return said


def _interactions(post: PostObserved) -> list[InteractionObserved]:
    def edge(
        kind: Literal["reply", "quote", "repost", "mention"], target: str | None, target_post: str | None
    ) -> InteractionObserved:
        return InteractionObserved.model_construct(
            kind=kind,
            source=post.source,
            actor=post.owner,
            target=target,
            post=post.post,
            at_ms=post.claimed_ms,
            target_post=target_post,
        )

    edges = []
    if post.parent is not None:
        edges.append(edge("reply", post.reply_to, post.parent))
    if post.quoted is not None:
        edges.append(edge("quote", None, post.quoted))
    if post.reposted is not None:
        edges.append(edge("repost", None, post.reposted))
    else:
        edges.extend(edge("mention", who, None) for who in post.mentions if who not in (post.owner, post.reply_to))
    return edges


def _rhythm(post: PostObserved, state: State) -> float | None:
    """Update the author's rhythm by one post and score it; out-of-order posts do not move it back in time."""
    if post.claimed_ms is None:
        return None
    known = state.authors.pop(post.owner, None)
    if known is None:
        known = Rhythm(1, post.claimed_ms, 0.0, 0.0)
    elif post.claimed_ms >= known.last_ms:
        gap = math.log(max(1.0, (post.claimed_ms - known.last_ms) / 1000))
        mean = gap if known.posts == 1 else known.mean + RHYTHM_SHARE * (gap - known.mean)
        spread = 0.0 if known.posts == 1 else known.spread + RHYTHM_SHARE * (abs(gap - known.mean) - known.spread)
        known = Rhythm(known.posts + 1, post.claimed_ms, round(mean, 6), round(spread, 6))
    _remember(state.authors, post.owner, known, AUTHORS_MAX)
    return _score(known)


def _score(rhythm: Rhythm | None) -> float | None:
    if rhythm is None or rhythm.posts < RHYTHM_POSTS_MIN:
        return None
    return round(1 - 2 * min(1.0, rhythm.spread / RHYTHM_SPREAD_MAX), 4)


def _engagement(seen: EngagementObserved, state: State) -> list[Event]:
    if seen.owner in state.erased or seen.post in state.deleted:
        return []
    prompt = seen.parent or seen.post
    return [
        EngagementNoted(
            prompt=prompt,
            subject=subject_id(prompt, seen.post),
            likes=seen.likes or 0,
            replies=seen.replies or 0,
            reposts=seen.reposts or 0,
            quotes=seen.quotes or 0,
            views=seen.views,
        )
    ]


def _deleted(gone: PostDeleted, state: State) -> list[Event]:
    _remember(state.deleted, gone.post, True, POSTS_MAX)
    known = state.posts.pop(gone.post, None)
    return _withdrawn(gone.post, known, "post-deleted") if known else []


def _erased(record: Record, gone: AuthorErased, state: State) -> list[Event]:
    _remember(state.erased, gone.owner, True, AUTHORS_MAX)
    state.authors.pop(gone.owner, None)
    theirs = [post for post, known in state.posts.items() if known.owner == gone.owner]
    said: list[Event] = []
    for post in theirs:
        said.extend(_withdrawn(post, state.posts.pop(post), "author-erased"))
    where = Where(topic=record.topic, partition=record.partition, offset=record.offset)
    return [*said, AuthorForgotten(owner=gone.owner, requested=where)]


def _withdrawn(post: str, known: Known, reason: str) -> list[Event]:
    """Take a post back both as something said and, for those who answered it, as something to answer."""
    own = SubjectWithdrawn(prompt=post, subject=subject_id(post, post), reason=reason)
    if known.prompt == post:
        return [own]
    return [SubjectWithdrawn(prompt=known.prompt, subject=subject_id(known.prompt, post), reason=reason), own]


def _refused(record: Record, post: PostObserved, reason: str, detail: str) -> RecordRefused:
    return RecordRefused(
        owner=post.owner,
        reason=reason,
        detail=detail,
        stage="metadata",
        place=f"{record.topic}/{record.partition}/{record.offset}",
        size=0,
        sha256=post.raw_sha256,
    )


def _remember(memory: dict[str, V], key: str, value: V, most: int) -> None:
    memory[key] = value
    if len(memory) > most:
        del memory[next(iter(memory))]
