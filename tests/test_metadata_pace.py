"""Metadata pace: while a partition has no leader, or the broker is away, a client asks ten times a second, not 1,500.

What streams/metadata_pace.py replaces is no API. If the pin fails after an upgrade, read the new source of that method
and of those that call it before changing the pin.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.structs import PartitionMetadata, TopicPartition

from streams import metadata_pace
from streams.kafka import TopicSpec, ensure_topics

MANY = 100


async def asked(client: AIOKafkaClient, over: Callable[[int], bool]) -> int:
    """Count how often a client asks for its broker, until `over` or for three seconds."""
    count, get_conn = 0, client._get_conn

    async def counted(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        return await get_conn(*args, **more)

    client._get_conn = counted
    for _ in range(30):
        await asyncio.sleep(0.1)
        if over(count):
            break
    client._get_conn = get_conn
    return count


def without_a_leader(client: AIOKafkaClient, at: TopicPartition) -> None:
    """Let a client believe what a broker says that has just come back."""
    known = client.cluster._partitions[at.topic]
    known[at.partition] = known[at.partition]._replace(leader=-1)


@pytest.mark.parametrize("kept", [True, False], ids=["ours", "control: aiokafka's own"])
def test_a_consumer_whose_partition_lost_its_leader_asks_at_the_pace_of_retries(
    broker: Any, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    at = TopicPartition(f"pace-{kept}".lower(), 0)
    if not kept:
        monkeypatch.setattr(AIOKafkaClient, "_metadata_update", metadata_pace._ask)

    async def run() -> tuple[int, bytes]:
        await ensure_topics(broker.settings, [TopicSpec(at.topic, 1)])
        consumer = AIOKafkaConsumer(**broker.settings.client_kwargs(), auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([at])
            await consumer.getmany(timeout_ms=200)
            without_a_leader(consumer._client, at)
            broker.kill()
            often = await asked(consumer._client, lambda count: count > MANY)
            broker.restart()
            async with AIOKafkaProducer(**broker.settings.client_kwargs()) as producer:
                await producer.send_and_wait(at.topic, b"after", partition=0)
            async with asyncio.timeout(40):
                return often, (await consumer.getone()).value
        finally:
            await consumer.stop()

    try:
        often, read = asyncio.run(run())
    finally:
        if broker.process.poll() is not None:
            broker.restart()
    assert read == b"after", "it goes on by itself"
    assert (often < MANY) is kept, often


def cluster(leader: int) -> ClusterMetadata:
    """Make the metadata of one topic with two partitions, the second of them led by `leader`."""
    found = ClusterMetadata()
    found._partitions = {
        "one": {number: PartitionMetadata("one", number, who, [1], [1], 0) for number, who in enumerate((1, leader))}
    }
    return found


def test_what_is_lacking() -> None:
    assert not metadata_pace.lacks(cluster(leader=1), ["one"])
    assert metadata_pace.lacks(cluster(leader=-1), ["one"])
    assert metadata_pace.lacks(cluster(leader=1), ["one", "another"])
    assert not metadata_pace.lacks(cluster(leader=-1), []), "who asks for nothing lacks nothing"


def test_every_client_of_ours_keeps_the_pace_and_what_is_replaced_has_the_shape_it_was_written_for() -> None:
    assert AIOKafkaClient._metadata_update is metadata_pace._ask_in_peace
    assert list(inspect.signature(metadata_pace._ask).parameters) == ["self", "cluster_metadata", "topics"]
    assert "ret = await self._metadata_update(self.cluster, topics)" in inspect.getsource(
        AIOKafkaClient._md_synchronizer
    )
