"""Metadata pace: a client that was told too little of the cluster waits before it asks again.

aiokafka asks for metadata as fast as it is answered while a partition that it uses has no leader: some 1,500 times a
second, a CPU and, while the broker is away, two lines of log each. As in Kafka's own client (KAFKA-4024), an answer
that lacks something is followed by the back-off of retries. What is replaced is pinned in tests/test_metadata_pace.py,
because it is aiokafka's inside.
"""

import asyncio
from collections.abc import Collection

from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata

_ask = AIOKafkaClient._metadata_update


def lacks(cluster: ClusterMetadata, topics: Collection[str]) -> bool:
    """Say whether one of the topics is not known, or one of its partitions has no leader."""
    known = ((cluster.partitions_for_topic(topic), cluster.available_partitions_for_topic(topic)) for topic in topics)
    return any(not there or there != led for there, led in known)


async def _ask_in_peace(self: AIOKafkaClient, cluster: ClusterMetadata, topics: Collection[str] | None) -> bool:
    answered = bool(await _ask(self, cluster, topics))
    if not answered or lacks(cluster, topics or ()):
        await asyncio.sleep(self._retry_backoff)
    return answered


def keep() -> None:
    """From now on, the clients of this process keep the pace."""
    AIOKafkaClient._metadata_update = _ask_in_peace
