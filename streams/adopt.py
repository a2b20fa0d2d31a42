"""Adopt: the old version's state at the end of a drained log -> the state that a step's new version begins with.

A step's version is in the ids of what it writes, so two versions on one record would say it twice, under two names.
They never meet: the inputs stop, the agents get through, every worker of the step stops, and only then is the state
carried over (Flink's stop with a savepoint). What the old version wrote is checked by the old version, before; from
here on the new one is, beginning with a copy of this state that is kept for it. The log says so before any worker can
begin: in `alerts` stand step, version, offset and the state's hash, so `xinfluencer verify` needs no word of ours.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from aiokafka.admin import AIOKafkaAdminClient

from schemas.events import AlertRaised
from schemas.seal import Keys
from schemas.topics import partitions
from streams.fold import Fold, Memory, Stage
from streams.kafka import KafkaSettings, cluster_id, topic_ids
from streams.reader import reader
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.snapshots import Bound, SnapshotRefused
from streams.verify import adoption

LEFT_S_MAX = 15.0  # a worker's session is 6 s
POLL_S = 0.25


class CannotAdopt(Exception):
    """The old version is not through, or its state does not fit; nothing was written. The message says what to do."""


class Keeper(Protocol):
    """Where snapshots are kept: SnapshotFolder or SnapshotStore."""

    def claim(self, bound: Bound) -> int: ...
    def load(self, fold: Fold, bound: Bound) -> tuple[Memory | None, list[str]]: ...
    def write(self, fold: Fold, bound: Bound, claim: int) -> int: ...


async def adopt(
    settings: Settings, kafka: KafkaSettings, keeper: Keeper, stage: Stage, before: int, keys: Keys, group: str
) -> dict[int, int]:
    """Let `stage` go on from where its version `before` ended; gives the offset of each partition that it takes over.

    `group` is the group of workers of all agents, with which the names of others' groups begin. Safe to run again
    after a kill. CannotAdopt, before anything is written, if a worker still runs, a record waits, or the state has
    another shape.
    """
    await _left(kafka, group, stage)
    physical = settings.physical(stage.reads.name)
    log = f"{await cluster_id(kafka)}/{physical}/{(await topic_ids(kafka, [physical]))[physical]}"
    folds = [
        Fold(stage, part, settings.partitions, keys) for part in range(partitions(stage.reads, settings.partitions))
    ]
    bounds = [Bound(stage.name, stage.version, fold.partition, log, settings.partitions) for fold in folds]
    offsets: dict[int, int] = {}
    async with reader(settings, kafka) as log_reader:
        for fold, bound in zip(folds, bounds, strict=True):
            if _adopted(keeper, fold, bound):
                fold.memory = begins(keeper, fold, bound) or fold.memory
                offsets[fold.partition] = fold.memory.next
                continue
            fold.memory = carried(keeper, fold, bound, before) or fold.memory
            async for waiting in log_reader.records(stage.reads.name, fold.partition, fold.memory.next):
                raise CannotAdopt(
                    f"{stage.reads.name}/{fold.partition}@{waiting.offset} waits: start version {before} again and let "
                    "it get through"
                )
    new = [(fold, bound) for fold, bound in zip(folds, bounds, strict=True) if fold.partition not in offsets]
    for fold, bound in new:
        _write(keeper, fold, beginning(bound))
    await _say(settings, kafka, [adoption(stage, before, fold.partition, fold.memory) for fold, _ in new], keys)
    for fold, bound in new:  # last: whoever finds these finds the copy, and the log says how they came to be
        _write(keeper, fold, bound)
        offsets[fold.partition] = fold.memory.next
    return offsets


def _write(keeper: Keeper, fold: Fold, bound: Bound) -> None:
    keeper.write(fold, bound, keeper.claim(bound))


async def _say(settings: Settings, kafka: KafkaSettings, events: Iterable[AlertRaised], keys: Keys) -> None:
    """Write what is to be known of an adoption; said again it is the same record."""
    now_ms = int(time.time() * 1000)
    sender = Sender(settings, kafka)
    try:
        await sender.send([outside(one, "/operator", now_ms, settings.partitions, keys) for one in events])
    finally:
        await sender.stop()


async def begun(
    settings: Settings, kafka: KafkaSettings, keeper: Keeper, table: Sequence[Stage], keys: Keys
) -> dict[tuple[str, int], Memory]:
    """Read what each step's version began with, for `verify`: (stage, partition) -> memory, where one was adopted."""
    names = [settings.physical(stage.reads.name) for stage in table]
    cluster, ids = await cluster_id(kafka), await topic_ids(kafka, names)
    found = {}
    for stage in table:
        physical = settings.physical(stage.reads.name)
        for partition in range(partitions(stage.reads, settings.partitions)):
            fold = Fold(stage, partition, settings.partitions, keys)
            log = f"{cluster}/{physical}/{ids[physical]}"
            memory = begins(keeper, fold, Bound(stage.name, stage.version, partition, log, settings.partitions))
            if memory is not None:
                found[stage.name, partition] = memory
    return found


def _adopted(keeper: Keeper, fold: Fold, bound: Bound) -> bool:
    try:
        return keeper.load(fold, bound)[0] is not None
    except SnapshotRefused:
        return False  # it is the old version's, or of another log, which `carried` says


def carried(keeper: Keeper, fold: Fold, bound: Bound, before: int) -> Memory | None:
    """Read what version `before` knew into this version's shape; CannotAdopt if it does not fit."""
    try:
        return keeper.load(fold, msgspec.structs.replace(bound, version=before))[0]
    except msgspec.ValidationError as error:
        raise CannotAdopt(
            f"the state of {bound.stage} version {before} does not fit version {bound.version} ({error}): give new "
            "fields a default, or begin a new namespace and fold the log again"
        ) from error


def begins(keeper: Keeper, fold: Fold, bound: Bound) -> Memory | None:
    """Read what this version began with; None if it has folded the log from its first record."""
    return keeper.load(fold, beginning(bound))[0]


def beginning(bound: Bound) -> Bound:
    """Name the place of the copy that a version began with."""
    return msgspec.structs.replace(bound, stage=f"{bound.stage}@{bound.version}")


async def _left(kafka: KafkaSettings, group: str, stage: Stage) -> None:
    """Wait until nobody runs a step: a member with a name of its own is only missed when its session is over."""
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    try:
        deadline = time.monotonic() + LEFT_S_MAX
        listed = sorted(name for name, *_ in await admin.list_consumer_groups())
        for name in (one for one in listed if runs(one, group, stage.name)):
            # One at a time: aiokafka 0.14 reads the answer of version 3 as one of version 2, which fits one group only.
            # A group whose coordinator cannot say (it loads, it moved) has no members in the answer, but an error.
            while any(one[0] or one[5] for told in await admin.describe_consumer_groups([name]) for one in told.groups):
                if time.monotonic() > deadline:
                    raise CannotAdopt(
                        f"group {name} has members, or nobody says that it has none: stop every worker that runs "
                        f"{stage.name}, and try again"
                    )
                await asyncio.sleep(POLL_S)
    finally:
        await admin.close()


def runs(name: str, group: str, stage: str) -> bool:
    """Say whether workers of a group run a step: those of all agents, or those named in it (streams/worker.py)."""
    return name == group or (name.startswith(f"{group}-") and f"-{stage}-" in f"{name.removeprefix(group)}-")
