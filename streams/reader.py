"""Reader: places in the log -> the records that lie there; no group, no commit, nothing kept.

Everything that looks back (trainer, replay, verify, the demo) reads through this. It sees committed records only. Where
retention passed before, whoever asks for a place that is gone is told; whoever asks for all is told where all begins.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from schemas.facts import Where
from schemas.topics import BY_NAME, partitions
from streams.kafka import KafkaSettings, stopped
from streams.settings import Settings

POLL_MS = 1_000
SILENT_POLLS_MAX = 30  # a broker that gives nothing for half a minute where it says there is something
RECORDS_MAX = 2_000


class LogUnreadable(Exception):
    """The log does not give what it must hold at a place."""


class LogSilent(TimeoutError):
    """The broker gives nothing where it says there is something: it may be away, and another time will do."""


class Records(dict[tuple[str, int], list[Any]]):
    """Whole topics in memory: (topic, partition) -> records; `begins`: the offset below which retention took them."""

    def __init__(self) -> None:
        super().__init__()
        self.begins: dict[tuple[str, int], int] = {}


class Reader:
    """Reads topics of the table by their names."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer) -> None:
        self._settings = settings
        self._consumer = consumer

    async def ends(self, *topics: str) -> dict[tuple[str, int], int]:
        """Give the offset after the last readable record of each partition."""
        places = await self._places(topics)
        found = await self._consumer.end_offsets(list(places.values()))
        return {place: found[client] for place, client in places.items()}

    async def begins(self, *topics: str) -> dict[tuple[str, int], int]:
        """Give the first offset that each partition still has: 0 unless retention passed."""
        places = await self._places(topics)
        found = await self._consumer.beginning_offsets(list(places.values()))
        return {place: found[client] for place, client in places.items()}

    async def _places(self, topics: Iterable[str]) -> dict[tuple[str, int], TopicPartition]:
        places = {}
        for topic in topics:
            physical = self._settings.physical(topic)
            # An assignment makes the client forget every other topic; without its metadata the question hangs.
            await self._consumer._client.add_topic(physical)
            for partition in range(partitions(BY_NAME[topic], self._settings.partitions)):
                places[topic, partition] = TopicPartition(physical, partition)
        return places

    async def records(
        self, topic: str, partition: int = 0, first: int | None = None, stop: int | None = None
    ) -> AsyncIterator[Any]:
        """Give the records with first <= offset < stop, in order; by default all that there are now.

        LogUnreadable if `first` is named and retention has passed it: whoever needs all from 0 must not get less.
        LogSilent if nothing comes for half a minute.
        """
        if stop is None:
            stop = (await self.ends(topic))[topic, partition]
        place = TopicPartition(self._settings.physical(topic), partition)
        self._consumer.assign([place])
        begin = (await self._consumer.beginning_offsets([place]))[place]
        first = begin if first is None else first
        if first < begin:
            raise LogUnreadable(f"{topic}/{partition} begins at {begin}; {first} was deleted by retention")
        self._consumer.seek(place, first)
        silent = 0
        while await self._consumer.position(place) < stop:
            batch = (await self._consumer.getmany(place, timeout_ms=POLL_MS, max_records=RECORDS_MAX)).get(place, [])
            silent = 0 if batch else silent + 1
            if silent > SILENT_POLLS_MAX:
                raise LogSilent(f"{topic}/{partition} gives nothing after {await self._consumer.position(place)}")
            for record in batch:
                if record.offset >= stop:
                    return
                yield record

    async def everything(self, *topics: str) -> Records:
        """Read whole topics as they are now, into memory, and say where each partition begins.

        LogUnreadable if retention passes in this very moment: read again.
        """
        found = Records()
        ends, found.begins = await self.ends(*topics), await self.begins(*topics)
        for (topic, partition), end in ends.items():
            begin = found.begins[topic, partition]
            found[topic, partition] = [one async for one in self.records(topic, partition, begin, end)]
        return found

    async def at(self, places: Iterable[Where]) -> dict[tuple[str, int, int], Any]:
        """Read single records; LogUnreadable if one is no longer there."""
        wanted: dict[tuple[str, int], list[int]] = {}
        for where in places:
            wanted.setdefault((where.topic, where.partition), []).append(where.offset)
        found: dict[tuple[str, int, int], Any] = {}
        for (topic, partition), offsets in sorted(wanted.items()):
            for first, last in _runs(sorted(set(offsets))):
                inside = set(offsets)
                async for record in self.records(topic, partition, first, last + 1):
                    if record.offset in inside:
                        found[topic, partition, record.offset] = record
            for offset in offsets:
                if (topic, partition, offset) not in found:
                    raise LogUnreadable(f"{topic}/{partition}/{offset} is not in the log any more")
        return found


def _runs(offsets: list[int], gap_max: int = 500) -> list[tuple[int, int]]:
    """Join offsets into stretches worth reading through: a seek costs about as much as 500 records."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and offset - runs[-1][1] <= gap_max:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return runs


@asynccontextmanager
async def reader(settings: Settings, kafka: KafkaSettings) -> AsyncIterator[Reader]:
    """Connect a reader, and disconnect it."""
    consumer = AIOKafkaConsumer(
        **kafka.client_kwargs(), isolation_level="read_committed", enable_auto_commit=False, auto_offset_reset="none"
    )
    await consumer.start()
    await asyncio.sleep(0)  # its routines must have begun: aiokafka's stop cancels one that has not into our face
    try:
        yield Reader(settings, consumer)
    finally:
        await stopped(consumer)
