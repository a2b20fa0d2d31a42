"""Transport: Faust's worker, handed one chunk of a partition at a time instead of one record.

Faust keeps what it is good at: the worker, the consumer group, assignment. Its own acks, gaps and commits are not
used (DESIGN and docs/ARCHITECTURE.md say what they lose). Everything overridden here is pinned by signature in
tests/test_faust_pins.py, because it is Faust's inside.

The rule that makes it exact: a seek raises an epoch, every fetch is stamped with the epoch it began in, and every
chunk says where it starts and ends. A chunk of an old epoch is nobody's; a chunk that does not start where its
partition stands ends the process.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiokafka
import faust
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.exits import stop_process

if TYPE_CHECKING:
    from streams.shell import Shell

CHUNK_RECORDS_MAX = 2_000  # keeps one chunk's work under about 50 ms, so that heartbeats and rebalances are prompt
FETCH_WAIT_MS = 200
BUSY_POLL_S = 0.005


@dataclass(slots=True)
class Chunk:
    """Consecutive records of one partition: [start, end) by offset, fetched in `epoch`."""

    tp: TP
    start: int
    end: int
    records: list[Any]
    epoch: int


class Fetched(dict[Any, Any]):
    """A fetch's records by partition, stamped with the epoch in which it began."""

    epoch = -1


class ReadNothing(dict[Any, Any]):
    """Faust's memory of what it read, emptied: it would drop records after a seek backwards."""

    def __getitem__(self, key: Any) -> None:
        return None

    def __setitem__(self, key: Any, value: Any) -> None:
        return None

    def update(self, *args: Any, **kwargs: Any) -> None:
        return None


class WholeTopics(RoundRobinPartitionAssignor):  # type: ignore[misc]
    """Round robin over all partitions of all topics; a leader that does not know one of them yet ends its process.

    aiokafka leaves such a topic out, and a static member that comes back is given again what it had (KIP-345): if the
    broker dies while a group is joined, what was then left out would be nobody's for ever.
    """

    @classmethod
    def assign(cls, cluster: ClusterMetadata, members: Mapping[str, Any]) -> dict[str, Any]:
        topics = {topic for member in members.values() for topic in member.subscription}
        unknown = sorted(topic for topic in topics if not cluster.partitions_for_topic(topic))
        if unknown:
            stop_process(f"the broker told nothing of {', '.join(unknown)}: without that nobody is assigned anything")
        return dict(super().assign(cluster, members))


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread with a client of our own settings, and the epoch."""

    epoch = 0

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        self._assignor = WholeTopics
        conf = self.app.conf
        return aiokafka.AIOKafkaConsumer(
            **self.app.shell.kafka.client_kwargs(),
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[WholeTopics],
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",  # an offset outside the log is never a reason to jump; perform_seek checks first
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
        )

    async def on_start(self) -> None:
        """Start the client. What it would tell a user who polls it, Faust never asks for: it ends the process."""
        await super().on_start()
        client = self._ensure_consumer()
        client._coordinator._push_error_to_user = lambda error: stop_process(f"the group: {error!r}")
        for task in (client._coordinator._coordination_task, client._fetcher._fetch_task, client._client._sync_task):
            task.add_done_callback(_fail_loudly)

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Fetched:
        epoch = self.epoch
        fetched = Fetched(await super()._fetch_records(*args, **kwargs))
        # Stamped with the epoch before the fetch AND checked after it: a fetch that crossed a seek belongs to neither.
        fetched.epoch = epoch if epoch == self.epoch else -1
        return fetched

    async def move(self, offsets: Mapping[TP, int]) -> int:
        """Seek every partition and begin a new epoch; gives its number."""

        async def in_thread() -> int:
            self.epoch += 1
            for tp, offset in offsets.items():
                self._ensure_consumer().seek(TopicPartition(tp.topic, tp.partition), offset)
            return self.epoch

        return int(await self.call_thread(in_thread))

    async def committed(self, tps: set[TP]) -> dict[TP, int | None]:
        """Ask the group for what it committed."""

        async def in_thread() -> dict[TP, int | None]:
            consumer = self._ensure_consumer()
            return {tp: await consumer.committed(TopicPartition(tp.topic, tp.partition)) for tp in tps}

        found: dict[TP, int | None] = await self.call_thread(in_thread)
        return found

    async def positions(self, tps: list[TP]) -> list[tuple[int, int]]:
        """Give (position, last stable offset as fetched) of each partition; (-1, -1) while one is not known."""

        async def in_thread() -> list[tuple[int, int]]:
            consumer = self._ensure_consumer()
            found = []
            for tp in tps:
                client = TopicPartition(tp.topic, tp.partition)
                state = consumer._subscription.subscription.assignment.state_value(client)
                known = state is not None and state.has_valid_position
                found.append((state.position, consumer.last_stable_offset(client) or 0) if known else (-1, -1))
            return found

        places: list[tuple[int, int]] = await self.call_thread(in_thread)
        return places

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        found = {TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(at, "") for tp, at in offsets.items()}
        try:
            await self._ensure_consumer().commit(found)
        except (CommitFailedError, IllegalStateError):
            return False  # the partitions were taken away meanwhile; whoever has them commits
        return True


def _fail_loudly(task: "asyncio.Task[None]") -> None:
    """End the process with a task of the client that nobody waits for."""
    if not task.cancelled() and task.exception() is not None:
        stop_process(f"the client ended {task.get_name()}: {task.exception()!r}")


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, chunked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = ReadNothing()
        self.handed: dict[TP, int] = {}  # where the next chunk of a partition must start
        self.shell: Shell = self.app.shell
        self.shell.consumer = self

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        return None  # quadratic, and only of use to Faust's own commit

    async def perform_seek(self) -> None:
        """Before any flow resumes: forget all state, own what is assigned, load it, seek to it."""
        tps = set(self.assignment())
        self.shell.release()
        self.handed = {}
        if not tps:
            return
        starts = await self.earliest_offsets(*tps)
        ends = await self.highwaters(*tps)
        committed = await self._thread.committed(tps)
        positions = await self.shell.own(tps, starts, ends, committed)
        self.shell.begin(await self._thread.move(positions))
        self.handed = dict(positions)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Fetched:
        """Fetch only topics with nothing outstanding: one drain loop serves all, and a slow agent starved others."""
        tps = active_partitions or set()
        free = {tp for tp in tps if not self.shell.outstanding(tp.topic)}
        if not free:  # never an empty set: aiokafka reads it as all
            await asyncio.sleep(BUSY_POLL_S)
            return Fetched()
        return await super()._getmany(free, timeout if len(free) == len(tps) else 0.05)  # type: ignore[no-any-return]

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        fetched, _ = await self._wait_next_records(timeout)
        shell = self.shell
        if not fetched or self.should_stop or not self.flow_active or fetched.epoch != shell.epoch:
            return
        generation = self.app.consumer_generation_id
        for client_tp, records in fetched.items():
            tp = TP(client_tp.topic, client_tp.partition)
            for first in range(0, len(records), CHUNK_RECORDS_MAX):
                part = records[first : first + CHUNK_RECORDS_MAX]
                if (
                    not self.flow_active
                    or self.app.consumer_generation_id != generation
                    or fetched.epoch != shell.epoch
                ):
                    return
                chunk = Chunk(tp, self.handed[tp], part[-1].offset + 1, part, fetched.epoch)
                self.handed[tp] = chunk.end
                message = self._to_message(tp, part[0])
                message.value = chunk
                shell.hand_out(tp.topic)
                yield tp, message

    async def thread_positions(self, tps: list[TP]) -> list[tuple[int, int, int]]:
        """Give (handed out to, client's position, end) of each partition."""
        places = await self._thread.positions(tps)
        return [(self.handed.get(tp, -1), *place) for tp, place in zip(tps, places, strict=True)]

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """On Faust's commit timer: snapshot what is idle and changed, then commit what snapshots cover."""
        for memory in (self._acked, self._acked_index, self._gap):
            memory.clear()
        offsets = self.shell.committable()
        offsets = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        if not offsets or not await self._thread.commit(offsets):
            return False
        self.shell.committed(offsets)
        return True


class Transport(driver.Transport):  # type: ignore[misc]
    """Faust's transport with our consumer."""

    Consumer = Consumer


class ChunkSchema(faust.Schema):  # type: ignore[misc]
    """Passes a chunk through as the value; decoding is the fold's."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return None

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.value
