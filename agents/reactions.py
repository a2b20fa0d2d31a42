"""Reactions: single likes, reposts, replies and quotes -> the counts that a source does not give itself.

An act counts once, under its own name, and can be undone; an undoing that comes before its act waits for it. Keyed by
the post reacted to; a post is counted aloud only once it is known which prompt it stands under. A count is said
whenever it changes, so that how records are cut into chunks leaves no mark.
"""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from agents.bounded import remember
from agents.describing import age_ms
from schemas.envelope import Out, Record
from schemas.events import EngagementNoted, PostPlaced, ReactionNoted, ReactionWithdrawn
from schemas.facts import Event
from schemas.ids import subject_id

POSTS_MAX = 100_000  # a partition: placed posts; reactions to an older one change nothing any more
WAITING_MAX = 50_000  # a partition: posts that nobody placed yet; most are older than our reading and never will be
ACTS_MAX = 200_000  # a partition: an act forgotten stays counted, can no longer be undone, and said again counts again
KINDS = ("like", "reply", "repost", "quote")
UNDONE = -1


class Counts(msgspec.Struct, array_like=True, gc=False):
    """How often people reacted to a post; the prompt is "" until the post is placed."""

    prompt: str = ""
    claimed_ms: int | None = None
    like: int = 0
    reply: int = 0
    repost: int = 0
    quote: int = 0


class State(msgspec.Struct):
    """What one partition remembers. `acts` is a hash of (post, act) -> the kind's number, or UNDONE."""

    posts: dict[str, Counts] = msgspec.field(default_factory=dict)
    waiting: dict[str, Counts] = msgspec.field(default_factory=dict)
    acts: dict[str, int] = msgspec.field(default_factory=dict)


def step(chunk: Sequence[Record], state: State) -> tuple[list[Out], State]:
    """Fold a chunk of `reactions`."""
    outs: list[Out] = []
    for record in chunk:
        outs.extend(Out(record, one) for one in _on(record, record.event, state))
    return outs, state


def _on(record: Record, event: Event, state: State) -> Iterable[Event]:
    if isinstance(event, ReactionNoted):
        act = _act(event)
        if act in state.acts:
            return ()
        remember(state.acts, act, KINDS.index(event.kind), ACTS_MAX)
        return _count(record, event.post, event.kind, 1, state)
    if isinstance(event, ReactionWithdrawn):
        act = _act(event)
        kind = state.acts.get(act)
        remember(state.acts, act, UNDONE, ACTS_MAX)
        return _count(record, event.post, KINDS[kind], -1, state) if kind is not None and kind != UNDONE else ()
    if isinstance(event, PostPlaced) and event.post not in state.posts:
        counts = state.waiting.pop(event.post, None) or Counts()
        counts.prompt, counts.claimed_ms = event.prompt, event.claimed_ms
        remember(state.posts, event.post, counts, POSTS_MAX)
        return [_noted(record, event.post, counts)]  # of nobody yet, it may be: that is a count too
    return ()


def _act(event: ReactionNoted | ReactionWithdrawn) -> str:
    """Hash to 64 bits, which are shorter than the names: among ACTS_MAX a clash has a chance below 10^-8."""
    name = f"{event.post} {event.act}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(name, digest_size=8).hexdigest()


def _count(record: Record, post: str, kind: str, change: int, state: State) -> Iterable[Event]:
    counts = state.posts.get(post) or state.waiting.get(post)
    if counts is None:
        counts = Counts()
        remember(state.waiting, post, counts, WAITING_MAX)
    setattr(counts, kind, max(0, getattr(counts, kind) + change))
    return [_noted(record, post, counts)] if counts.prompt else ()


def _noted(record: Record, post: str, counts: Counts) -> EngagementNoted:
    return EngagementNoted(
        prompt=counts.prompt,
        subject=subject_id(counts.prompt, post),
        likes=counts.like,
        replies=counts.reply,
        reposts=counts.repost,
        quotes=counts.quote,
        age_ms=age_ms(counts.claimed_ms, record.time_ms),
    )
