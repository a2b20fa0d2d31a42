"""Sender: records -> the log, acknowledged, each output partition in order and one batch at a time.

Partitions go in parallel; within one, a batch is sent only after the one before it was acknowledged. That is what
"in origin order without holes" needs: with batches in flight behind each other, a failed one left a hole that the
idempotent producer did not close.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from streams.fold import Sent
from streams.kafka import KafkaSettings, stopped
from streams.settings import Settings

BATCH_BYTES_MAX = 1 << 19
REQUEST_BYTES_MAX = 1 << 21  # one record of RECORD_BYTES_MAX with its headers fits
LOOK_BACK_S = 5.0
SEND_S_MAX = 30.0  # a chunk that is not acknowledged by then ends the process that sent it


class Sender:
    """One producer; started at the first send."""

    def __init__(self, settings: Settings, kafka: KafkaSettings) -> None:
        self._settings = settings
        self._kafka = kafka
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> AIOKafkaProducer:
        """Connect (KafkaError if there is no broker), once."""
        async with self._starting:
            if self._producer is None:
                self._producer = await self._connected()
            return self._producer

    async def _connected(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._kafka.client_kwargs(),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=REQUEST_BYTES_MAX,
            request_timeout_ms=15_000,
        )
        await producer.start()
        return producer

    async def stop(self) -> None:
        """Disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def send(self, records: Iterable[Sent], crash_point: Callable[[str], None] = lambda name: None) -> None:
        """Send and wait until every record is acknowledged by all in-sync replicas, or raise KafkaError."""
        places: dict[tuple[str, int], list[Sent]] = {}
        for one in records:
            places.setdefault((one.topic, one.partition), []).append(one)
        if not places:
            return
        producer = await self.start()
        physical = self._settings.physical
        tasks = [
            self._send_place(producer, physical(topic), part, them, crash_point)
            for (topic, part), them in places.items()
        ]
        await asyncio.gather(*tasks)

    async def _send_place(
        self,
        producer: AIOKafkaProducer,
        topic: str,
        partition: int,
        records: list[Sent],
        crash_point: Callable[[str], None],
    ) -> None:
        batch = producer.create_batch()
        for one in records:
            if batch.append(timestamp=one.time_ms, key=one.key, value=one.value, headers=one.headers) is None:
                await self._send_batch(producer, batch, topic, partition)
                crash_point("mid-send")  # between batches, and below between partitions
                batch = producer.create_batch()
                if batch.append(timestamp=one.time_ms, key=one.key, value=one.value, headers=one.headers) is None:
                    raise ValueError(f"a record of {len(one.value)} bytes does not fit an empty batch")
        await self._send_batch(producer, batch, topic, partition)
        crash_point("mid-send")

    @staticmethod
    async def _send_batch(producer: AIOKafkaProducer, batch: Any, topic: str, partition: int) -> None:
        batch.close()
        acknowledged = await producer.send_batch(batch, topic, partition=partition)
        await acknowledged

    async def record_before(self, topic: str, partition: int, offset: int) -> Any:
        """Read the record that stands right before `offset` (physical topic), or None if none can be read there."""
        consumer = AIOKafkaConsumer(
            **self._kafka.client_kwargs(), isolation_level="read_committed", auto_offset_reset="none"
        )
        await consumer.start()
        try:
            tp = TopicPartition(topic, partition)
            consumer.assign([tp])
            consumer.seek(tp, offset - 1)
            found = await consumer.getmany(tp, timeout_ms=int(LOOK_BACK_S * 1000), max_records=1)
            return found[tp][0] if found.get(tp) else None
        finally:
            await stopped(consumer)
