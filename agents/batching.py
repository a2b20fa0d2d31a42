"""Batching: pairs -> micro-batches, closed by count, by age in log time, or by a budget of characters.

A batch is a set: its pairs are ordered by id, so the order in which partitions were read leaves no mark on the root.
Only what is in the open batch can still be withdrawn from it; a pair in a closed batch is left out by whoever reads it.
"""

from collections.abc import Iterable, Sequence

import msgspec

from schemas import merkle
from schemas.envelope import Out, Record
from schemas.events import Ticked
from schemas.facts import Event, PairRef
from schemas.ids import digest
from schemas.learned import BatchClosed, PairFormed, PairWithdrawn


class Limits(msgspec.Struct, frozen=True):
    """When a batch closes. A batch younger than `age_ms` or with fewer than `pairs_min` pairs stays open."""

    pairs_max: int = 64
    pairs_min: int = 8
    age_ms: int = 3_600_000
    chars_max: int = 400_000


class State(msgspec.Struct):
    """The open batch: pair -> (leaf, offset, chars), the log time of its first pair, and how many closed before."""

    open: dict[str, tuple[str, int, int]] = msgspec.field(default_factory=dict)
    opened_ms: int = 0
    chars: int = 0
    sequence: int = 0


def step(chunk: Sequence[Record], state: State, limits: Limits) -> tuple[list[Out], State]:
    """Fold a chunk of `preferences`."""
    outs: list[Out] = []
    for record in chunk:
        event = record.event
        said: Iterable[Event] = ()
        if isinstance(event, PairFormed):
            said = _formed(record, event, state, limits)
        elif isinstance(event, PairWithdrawn):
            gone = state.open.pop(event.pair, None)
            state.chars -= gone[2] if gone else 0
        elif isinstance(event, Ticked):
            old = state.open and event.at_ms >= state.opened_ms + limits.age_ms
            if old and len(state.open) >= limits.pairs_min:
                said = [_close("age", event.at_ms, state)]
        outs.extend(Out(record, one) for one in said)
    return outs, state


def pair_leaf(pair: PairFormed) -> bytes:
    """Hash what makes a pair this pair: whose words, which words, how much they weigh; no place, no time (32 bytes)."""
    parts = (
        pair.pair,
        pair.prompt,
        pair.prompt_hash,
        pair.chosen.subject,
        pair.chosen.text_hash,
        pair.rejected.subject,
        pair.rejected.text_hash,
        f"{pair.weight:.6f}",
    )
    return merkle.leaf("\n".join(parts).encode())


def _formed(record: Record, pair: PairFormed, state: State, limits: Limits) -> Iterable[Event]:
    if not state.open:
        state.opened_ms = record.time_ms
        state.chars = 0
    chars = pair.chosen.chars + pair.rejected.chars
    if pair.pair not in state.open:
        state.open[pair.pair] = (pair_leaf(pair).hex(), record.offset, chars)
        state.chars += chars
    if len(state.open) >= limits.pairs_max:
        return [_close("count", record.time_ms, state)]
    if state.chars >= limits.chars_max:
        return [_close("budget", record.time_ms, state)]
    return []


def _close(by: str, now_ms: int, state: State) -> BatchClosed:
    refs = [PairRef(pair=pair, leaf=leaf, offset=offset) for pair, (leaf, offset, _) in sorted(state.open.items())]
    root = merkle.root([bytes.fromhex(ref.leaf) for ref in refs]).hex()
    offsets = [ref.offset for ref in refs]
    batch = BatchClosed(
        batch=digest("batch", str(state.sequence), root),
        sequence=state.sequence,
        pairs=tuple(refs),
        first_offset=min(offsets),
        last_offset=max(offsets),
        root=root,
        closed_by=by,  # type: ignore[arg-type]
        opened_ms=state.opened_ms,
        closed_ms=max(now_ms, state.opened_ms),
    )
    state.open, state.chars, state.sequence = {}, 0, state.sequence + 1
    return batch
