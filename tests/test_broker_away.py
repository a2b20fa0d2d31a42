"""Broker away: what aiokafka makes of a broker that is gone, loads, or is fenced, and what we make of that.

No broker runs here: each answer is one that a real one gives, at a moment that lasts milliseconds.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupAuthorizationFailedError, NodeNotReadyError
from aiokafka.structs import BrokerMetadata, PartitionMetadata, TopicPartition

from streams import transport
from streams.exits import or_fail
from streams.kafka import KafkaSettings, TopicRefused, TopicSpec, _create, committed_offsets, stopped
from tests.bare_shell import KAFKA

AT = TopicPartition("away", 0)
LOADS, MOVED, FORBIDDEN = 14, 16, 30


class Gone(Exception):
    """What a consumer is stopped for."""


# ---- a group whose coordinator cannot say what was committed --------------------------------------------------------


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for a coordinator: it gives these answers to OffsetFetch, one after the other."""
    answers: list[Any] = []

    async def started(self: Any) -> None:
        return None

    async def found(self: Any, group: str, *more: Any) -> int:
        return 1

    async def answered(self: Any, request: Any, node: int | None = None) -> Any:
        return answers.pop(0)

    monkeypatch.setattr(AIOKafkaAdminClient, "start", started)
    monkeypatch.setattr(AIOKafkaAdminClient, "close", started)
    monkeypatch.setattr(AIOKafkaAdminClient, "find_coordinator", found)
    monkeypatch.setattr(AIOKafkaAdminClient, "_send_request", answered)
    return answers


def answer(error: int, *topics: Any) -> Any:
    return SimpleNamespace(error_code=error, topics=list(topics))


COMMITTED = answer(0, (AT.topic, [(0, 3, "", 0)]))


@pytest.mark.parametrize("error", [LOADS, MOVED])
def test_a_group_that_is_loaded_is_waited_for(coordinator: list[Any], error: int) -> None:
    coordinator += [answer(error), answer(error), COMMITTED]
    assert asyncio.run(committed_offsets(KAFKA, "trainer")) == {AT: 3}


def test_control_aiokafka_itself_takes_such_a_group_for_one_that_never_committed(coordinator: list[Any]) -> None:
    """Once this gives an error, our own question can go."""

    async def ask() -> object:
        return await AIOKafkaAdminClient().list_consumer_group_offsets("trainer")

    coordinator += [answer(LOADS)]
    assert asyncio.run(ask()) == {}


def test_a_group_that_never_committed_has_nothing_and_one_that_is_not_ours_is_refused(coordinator: list[Any]) -> None:
    coordinator += [answer(0), answer(FORBIDDEN), answer(0, (AT.topic, [(0, -1, "", FORBIDDEN)]))]
    assert asyncio.run(committed_offsets(KAFKA, "trainer")) == {}
    for _ in range(2):
        with pytest.raises(GroupAuthorizationFailedError):
            asyncio.run(committed_offsets(KAFKA, "trainer"))


# ---- a consumer that is stopped -------------------------------------------------------------------------------------


@pytest.fixture
def _deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was met once and answers nothing any more."""

    async def bootstrap(self: AIOKafkaClient) -> None:
        self.cluster._brokers = {1: BrokerMetadata(1, "127.0.0.1", 1, None)}
        self.cluster._partitions = {AT.topic: {0: PartitionMetadata(AT.topic, 0, 1, [1], [1], 0)}}

    async def send(self: AIOKafkaClient, *given: Any, **more: Any) -> None:
        raise NodeNotReadyError

    monkeypatch.setattr(AIOKafkaClient, "bootstrap", bootstrap)
    monkeypatch.setattr(AIOKafkaClient, "send", send)


async def stopped_for_a_reason(how: Any) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers="127.0.0.1:1", auto_offset_reset="none")
    await consumer.start()
    try:
        consumer.assign([AT])
        consumer.seek(AT, 0)
        await consumer.getmany(timeout_ms=300)
        raise Gone
    finally:
        await how(consumer)


@pytest.mark.usefixtures("_deaf")
def test_why_a_consumer_is_stopped_is_not_lost_while_the_broker_is_away() -> None:
    with pytest.raises(Gone):
        asyncio.run(stopped_for_a_reason(stopped))


@pytest.mark.usefixtures("_deaf")
def test_control_aiokafkas_own_stop_cancels_whoever_stops_it() -> None:
    """Once this raises what it should, `stopped` can go."""
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped_for_a_reason(AIOKafkaConsumer.stop))


def test_work_that_is_cancelled_by_nobody_ends_its_group_and_work_that_is_asked_to_end_does_so() -> None:
    async def cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def group(work: Any, seconds_max: float = 0.2) -> None:
        async with asyncio.timeout(seconds_max), asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(60))
            tasks.create_task(work)

    with pytest.raises(ExceptionGroup, match="unhandled") as ended:
        asyncio.run(group(or_fail(cancelled()), 10))
    assert "nobody had asked" in str(ended.value.exceptions[0])
    with pytest.raises(TimeoutError):
        asyncio.run(group(or_fail(asyncio.sleep(60))))
    with pytest.raises(TimeoutError):
        asyncio.run(group(cancelled()))  # the control: the group goes on without it


# ---- topics that cannot be made just now ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Unable to replicate the partition 1 time(s): All brokers are currently fenced.", TimeoutError),
        ("The target replication factor of 3 cannot be reached because only 1 broker(s) are registered.", TopicRefused),
        (None, TopicRefused),
    ],
)
def test_a_cluster_whose_brokers_still_come_up_is_no_persons_matter(
    coordinator: list[Any], monkeypatch: pytest.MonkeyPatch, said: str | None, expected: type[Exception]
) -> None:
    async def created(*given: Any, **more: Any) -> Any:
        return SimpleNamespace(topic_errors=[(AT.topic, 38, said)])

    monkeypatch.setattr(AIOKafkaAdminClient, "create_topics", created)
    with pytest.raises(expected, match=AT.topic):
        asyncio.run(_create(KafkaSettings(bootstrap="127.0.0.1:1"), [TopicSpec(AT.topic, 1)]))


# ---- the worker's client --------------------------------------------------------------------------------------------


def test_a_task_of_the_client_that_fails_ends_the_process_and_one_that_is_stopped_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[str] = []
    monkeypatch.setattr(transport, "stop_process", ends.append)

    async def life(fails: bool) -> None:
        async def work() -> None:
            if fails:
                raise Gone("the group is lost")
            await asyncio.sleep(60)

        task = asyncio.create_task(work(), name="heartbeat")
        task.add_done_callback(transport._fail_loudly)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(life(fails=False))
    assert ends == []
    asyncio.run(life(fails=True))
    assert len(ends) == 1
    assert "heartbeat" in ends[0]
    assert "the group is lost" in ends[0]
