"""Learned: pairs, the batches they close, the versions made of them, and which of those may answer people."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.facts import Count, Event, EventId, Hash, Id, Measured, Ms, Number, PairRef, Short, Side, Where


class PairFormed(Event):
    """Under one prompt, one text was worth more than another."""

    pair: EventId
    prompt: Id
    prompt_hash: Hash
    prompt_where: Where
    chosen: Side
    rejected: Side
    margin: Annotated[float, Field(gt=0, le=3)]
    weight: Annotated[float, Field(gt=0, le=1)]
    origin: Literal["feedback", "siblings"]
    simulated: bool
    policy: Short


class PairWithdrawn(Event):
    """A pair may no longer be used."""

    pair: EventId
    reason: Short


class BatchClosed(Event):
    """A micro-batch: what the next version learns from."""

    batch: EventId
    sequence: Count
    pairs: Annotated[tuple[PairRef, ...], Field(min_length=1, max_length=4096)]
    first_offset: Count
    last_offset: Count
    root: Hash
    closed_by: Literal["count", "age", "budget"]
    opened_ms: Ms
    closed_ms: Ms


class ModelTrained(Event):
    """A version exists, its files are in place and hashed, and this is what it was made of."""

    version: Hash  # the adapter's sha256, or the base's for version 0
    base: Hash
    base_name: Short
    adapter: Hash | None = None
    batches: tuple[EventId, ...] = ()
    root: Hash | None = None  # over the batches' roots, in order
    dataset_sha256: Hash | None = None
    first_offset: Count | None = None
    last_offset: Count | None = None
    cut: dict[Short, Count] = Field(default={})  # topic/partition -> up to which offset the log was asked for it
    trained: Count = 0
    held_back: Count = 0
    withheld: Count = 0  # pairs whose words were gone, or whose prompt is too long to train on
    settings: dict[str, str | int | Number | bool] = Field(default={})
    seed: Count = 0
    code: Short = ""
    losses: tuple[Number, ...] = ()
    measured: Measured | None = None
    baseline: Measured | None = None  # the base on the same held-back pairs


class ReleaseCommanded(Event):
    """An operator asks for a release, a roll-back or a retraction."""

    command: Literal["release", "roll-back", "retract"]
    version: Hash
    by: Short
    reason: Short


class ModelReleased(Event):
    """A version may answer people from now on."""

    release: Count
    version: Hash
    base: Hash
    base_name: Short
    adapter: Hash | None = None
    root: Hash | None = None
    notes: tuple[Short, ...] = ()


class ModelRefused(Event):
    """A version was kept back, and why."""

    version: Hash
    reasons: Annotated[tuple[Short, ...], Field(min_length=1)]


class ModelRolledBack(Event):
    """An earlier release answers again."""

    release: Count
    version: Hash
    reason: Short


class ModelRetracted(Event):
    """A version must not be used any more by anyone."""

    version: Hash
    reason: Short


class ReleasePointed(Event):
    """Under this alias, run this release now. Compacted: the last one of an alias is the truth."""

    alias: Id
    release: Count
    version: Hash
    base: Hash
    base_name: Short
    adapter: Hash | None = None
