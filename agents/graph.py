"""Graph: acts between authors -> who is influential, who belongs together, and how each post's author stands.

The state holds single acts, not sums, so forgetting one is exact. On a schedule of log time the decayed graph is built
from them and measured whole (agents/influence.py says how, and what it does against bought influence); in between
only the last measure is used. An author in no edge has no score: the reward's component stays missing. Numbers of
communities hold within one measure only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from struct import Struct

import msgspec
import numpy as np

from agents import influence
from agents.acts import AUTHORS_MAX, NONE, Acts, Expired
from agents.bounded import remember
from schemas.envelope import Out, Record
from schemas.events import (
    AuthorWithdrawn,
    GraphMeasured,
    InteractionObserved,
    InteractionWithdrawn,
    NetworkNoted,
    PostNoted,
    Ticked,
)
from schemas.facts import Event, Influence
from schemas.ids import subject_id

WAITING_MAX = 10_000  # posts whose author is in no measure yet: they are all said at once at the next
WITHDRAWN_MAX = 20_000  # acts taken back before they were seen
FORGOTTEN_MAX = 100_000  # authors who are not to be named again until they post again
TOP = 100
_PLACE = Struct("<ddI")
PLACES = np.dtype([("influence", "<f8"), ("percentile", "<f8"), ("community", "<u4")])
NOWHERE = np.array((0.0, math.nan, 0), PLACES)


@dataclass(frozen=True)
class Limits:
    """When the graph is measured and how fast an act fades."""

    every_ms: int = 60_000
    half_life_ms: int = 7 * 86_400_000


class State(msgspec.Struct):
    """What the one partition remembers. `places` holds the last measure by author number, percentile NaN for none."""

    acts: Acts = msgspec.field(default_factory=Acts)
    places: bytearray = msgspec.field(default_factory=bytearray)
    waiting: dict[str, tuple[str, int]] = msgspec.field(default_factory=dict)  # post -> (prompt, author)
    withdrawn: dict[str, str] = msgspec.field(default_factory=dict)  # act -> who took it back
    forgotten: dict[str, bool] = msgspec.field(default_factory=dict)
    next_ms: int = 0
    changed: bool = False  # since the last measure


def step(chunk: Sequence[Record], state: State, limits: Limits) -> tuple[list[Out], State]:
    """Fold a chunk of `interactions`."""
    outs: list[Out] = []
    for record in chunk:
        event = record.event
        if type(event) is InteractionObserved:
            _act(event, record.time_ms, state)
        elif type(event) is PostNoted:
            outs.extend(Out(record, one) for one in _post(event, state))
        elif type(event) is InteractionWithdrawn:
            state.waiting.pop(event.post, None)
            if state.acts.take_back(event.post, event.actor):
                state.changed = True
            else:
                remember(state.withdrawn, event.post, event.actor, WITHDRAWN_MAX)
        elif type(event) is AuthorWithdrawn:
            state.changed |= state.acts.forget(event.owner)
            remember(state.forgotten, event.owner, True, FORGOTTEN_MAX)
        elif type(event) is Ticked and state.changed and event.at_ms >= state.next_ms:
            outs.extend(Out(record, one) for one in _measure(event.at_ms, state, limits))
        if len(state.acts.names) >= AUTHORS_MAX:
            _shrink(state)
    return outs, state


def _act(event: InteractionObserved, time_ms: int, state: State) -> None:
    if event.actor in state.forgotten or event.target in state.forgotten:
        return
    if state.withdrawn and state.withdrawn.get(event.post) == event.actor:
        return
    # A time in the future would never fade; one in the past only costs weight.
    at_ms = time_ms if event.at_ms is None else min(event.at_ms, time_ms)
    state.changed |= state.acts.add(
        event.post, event.actor, event.kind, event.target, event.target_post, at_ms, time_ms
    )


def _post(event: PostNoted, state: State) -> list[Event]:
    state.forgotten.pop(event.owner, None)
    author = state.acts.note(event.post, event.owner)
    score = score_of(state, author)
    if score is None:
        remember(state.waiting, event.post, (event.prompt, author), WAITING_MAX)
        return []
    return [NetworkNoted(prompt=event.prompt, subject=subject_id(event.prompt, event.post), score=score)]


def score_of(state: State, author: int) -> float | None:
    """Give an author's score in -1..1 by the last measure, None if they are not in it."""
    if author * _PLACE.size >= len(state.places):
        return None
    percentile = _PLACE.unpack_from(state.places, author * _PLACE.size)[1]
    return None if math.isnan(percentile) else round(2 * percentile - 1, 6)


def _measure(now_ms: int, state: State, limits: Limits) -> list[Event]:
    acts = state.acts
    compact(state, partial(influence.expired, now_ms=now_ms, half_life_ms=limits.half_life_ms))
    given = influence.edges(acts.table(), len(acts.names), now_ms, limits.half_life_ms)
    found = influence.measure(given)
    places = np.full(len(acts.names), NOWHERE)
    for name in PLACES.names or ():
        places[name][found.author] = getattr(found, name)
    state.places = bytearray(places.tobytes())
    state.next_ms, state.changed = now_ms + limits.every_ms, False
    said: list[Event] = [
        GraphMeasured(
            at_ms=now_ms,
            authors=len(found.author),
            edges=len(given.weight),
            communities=len(np.unique(found.community)),
            modularity=found.modularity,
            top=top(state, found, TOP),
        )
    ]
    for post, (prompt, author) in state.waiting.items():
        score = score_of(state, author)
        if score is not None:
            said.append(NetworkNoted(prompt=prompt, subject=subject_id(prompt, post), score=score))
    state.waiting = {}
    return said


def top(state: State, found: influence.Places, most: int) -> tuple[Influence, ...]:
    """List the most influential, ties in the order of names."""
    first = np.argsort(-found.influence, kind="stable")[:most].tolist()
    return tuple(
        Influence(
            author=state.acts.names[found.author[i]],
            influence=float(found.influence[i]),
            percentile=float(found.percentile[i]),
            community=int(found.community[i]),
            acted_on_by=int(found.acted_on_by[i]),
        )
        for i in first
    )


def _shrink(state: State) -> None:
    """Forget the older half of everything until there is room for names again."""
    compact(state, None)
    while len(state.acts.names) >= AUTHORS_MAX // 2:
        state.waiting = {}
        compact(state, None, 0.5)


def compact(state: State, expired: Expired | None, newest: float = 1.0) -> None:
    """Drop what counts no more and number the authors anew, here as in the acts."""
    state.waiting = {post: one for post, one in state.waiting.items() if state.acts.names[one[1]]}
    before = np.frombuffer(bytes(state.places), PLACES)
    numbers = state.acts.compact(expired, [author for _, author in state.waiting.values()], newest)
    places = np.full(len(state.acts.names), NOWHERE)
    kept = np.flatnonzero(numbers[: len(before)] != NONE)
    places[numbers[kept]] = before[kept]
    state.places = bytearray(places.tobytes())
    state.waiting = {post: (prompt, int(numbers[author])) for post, (prompt, author) in state.waiting.items()}
