"""Pairing: final rewards -> pairs under one prompt, better against worse, as ids and hashes.

A subject is paired once, when its final reward arrives, with the closed sibling whose reward lies farthest from its
own: n siblings give at most n - 1 pairs, and every text is in at least one where the margin allows. Only what the
policy lets be trained on, only where somebody judged or reacted, only under a prompt whose words are in the log.
"""

from collections.abc import Iterable, Sequence

import msgspec

from agents.bounded import remember
from schemas.envelope import Out, Record
from schemas.events import RewardClosed, RewardWithdrawn
from schemas.facts import Event, Side, Where
from schemas.ids import digest
from schemas.learned import PairFormed, PairWithdrawn

PROMPTS_MAX = 50_000  # a partition
SIBLINGS_MAX = 64  # closed subjects kept of one prompt
PAIRS_MAX = 256  # pairs of one prompt that can still be withdrawn
SIBLINGS_WEIGHT = 0.5  # other people's replies say less about our answers than judgements of our answers


class Closed(msgspec.Struct, array_like=True):
    """A closed sibling."""

    kind: str
    total: float
    text_hash: str
    where: tuple[str, int, int]
    chars: int
    simulated: bool


class Prompt(msgspec.Struct, array_like=True):
    """One prompt's closed subjects, and the pairs made of them: pair -> (chosen, rejected)."""

    closed: dict[str, Closed] = msgspec.field(default_factory=dict)
    pairs: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict)


class State(msgspec.Struct):
    """What one partition remembers."""

    prompts: dict[str, Prompt] = msgspec.field(default_factory=dict)


def step(chunk: Sequence[Record], state: State, margin_min: float) -> tuple[list[Out], State]:
    """Fold a chunk of `rewards`; pairs whose rewards differ by less than `margin_min` say nothing and are not made."""
    outs: list[Out] = []
    for record in chunk:
        event = record.event
        said: Iterable[Event] = ()
        if isinstance(event, RewardClosed) and pairable(event):
            said = _closed(event, state, margin_min)
        elif isinstance(event, RewardWithdrawn):
            said = _withdrawn(event, state)
        outs.extend(Out(record, one) for one in said)
    return outs, state


def judged(event: RewardClosed) -> bool:
    """Say whether anybody judged the subject or reacted to it: form and rhythm alone are no preference."""
    return event.components.human is not None or event.components.engagement is not None


def pairable(event: RewardClosed) -> bool:
    """Say whether a final reward may stand in a pair."""
    return (
        event.final
        and event.kind != "root"  # a root answers nothing
        and event.trainable
        and event.prompt_hash is not None
        and judged(event)
    )


def _closed(event: RewardClosed, state: State, margin_min: float) -> Iterable[Event]:
    prompt = state.prompts.get(event.prompt)
    if prompt is None:
        prompt = Prompt()
        remember(state.prompts, event.prompt, prompt, PROMPTS_MAX)
    if event.subject in prompt.closed or len(prompt.closed) >= SIBLINGS_MAX:
        return []
    new = Closed(
        event.kind,
        event.total,
        event.text_hash,
        (event.where.topic, event.where.partition, event.where.offset),
        event.chars,
        event.simulated > 0 or event.policy == "simulator",
    )
    rivals = [
        (abs(new.total - old.total), name)
        for name, old in prompt.closed.items()
        if old.kind == new.kind and old.text_hash != new.text_hash and abs(new.total - old.total) >= margin_min
    ]
    prompt.closed[event.subject] = new
    if not rivals or len(prompt.pairs) >= PAIRS_MAX:
        return []
    _, rival = max(rivals)  # ties fall to the greater name: a rule that does not depend on the order of arrival
    chosen, rejected = event.subject, rival
    if prompt.closed[chosen].total < prompt.closed[rejected].total:
        chosen, rejected = rejected, chosen
    pair = _pair(event, prompt, chosen, rejected)
    prompt.pairs[pair.pair] = (chosen, rejected)
    return [pair]


def _pair(event: RewardClosed, prompt: Prompt, chosen: str, rejected: str) -> PairFormed:
    a, b = prompt.closed[chosen], prompt.closed[rejected]
    margin = round(a.total - b.total, 6)
    siblings = a.kind == "reply"
    assert event.prompt_hash is not None
    assert event.prompt_where is not None
    return PairFormed(
        pair=digest("pair", chosen, a.text_hash, rejected, b.text_hash),
        prompt=event.prompt,
        prompt_hash=event.prompt_hash,
        prompt_where=event.prompt_where,
        chosen=_side(chosen, a),
        rejected=_side(rejected, b),
        margin=margin,
        weight=round(min(1.0, margin) * (SIBLINGS_WEIGHT if siblings else 1.0), 6),
        origin="siblings" if siblings else "feedback",
        simulated=a.simulated or b.simulated,
        policy=event.policy,
    )


def _side(subject: str, closed: Closed) -> Side:
    topic, partition, offset = closed.where
    return Side(
        subject=subject,
        text_hash=closed.text_hash,
        where=Where(topic=topic, partition=partition, offset=offset),
        reward=closed.total,
        chars=closed.chars,
    )


def _withdrawn(event: RewardWithdrawn, state: State) -> Iterable[Event]:
    prompt = state.prompts.get(event.prompt)
    if prompt is None:
        return []
    prompt.closed.pop(event.subject, None)
    whole = event.subject == f"{event.prompt}/{event.prompt}"  # the prompt itself is gone
    gone = [pair for pair, sides in prompt.pairs.items() if whole or event.subject in sides]
    for pair in gone:
        del prompt.pairs[pair]
    return [PairWithdrawn(pair=pair, reason=event.reason) for pair in gone]
