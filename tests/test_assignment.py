"""Assignment: the worker that leads its group gives out every partition of every topic, or ends; never a part of them.

A static member that comes back within its session is given what it had, without being asked (KIP-345). What was
assigned while the broker said nothing of the topics would be nothing, for ever.
"""

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from schemas.topics import partitions
from streams.exits import EXIT_AGAIN
from streams.kafka import SESSION_S, TopicSpec, ensure_topics
from streams.supervisor import FORGOTTEN_S, SILENT_S_MAX, START_S_MAX, Deployment
from streams.topics import specs
from streams.topology import stages
from tests import blind_worker
from tests.feeds import feed
from tests.harness import Workers, ended, finish, judge, now_ms, settings_for, vault_of, write
from tests.proof import SEED, Say, size

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1_200)]

BLIND = (sys.executable, str(Path(blind_worker.__file__)))


def test_a_worker_that_is_told_nothing_of_its_topics_ends_and_the_next_one_has_all(broker: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "blind")
    workers = Workers(settings, broker.settings, command=BLIND)
    reads = {stage.reads.name: partitions(stage.reads, settings.partitions) for stage in stages(settings.tuning)}

    async def run() -> None:
        await ensure_topics(broker.settings, specs(settings))
        workers.start()
        assert workers.process is not None
        assert await asyncio.to_thread(workers.process.wait, 120) == EXIT_AGAIN, workers.log()[-3000:]
        stopping = workers.log().splitlines()[-1]
        assert "the broker told nothing of " in stopping
        assert all(settings.physical(topic) in stopping for topic in reads)
        workers.command = Workers.command
        workers.start()
        await workers.back()
        assert len(workers.status()["partitions"]) == sum(reads.values())

    with ended(workers):
        asyncio.run(run())


def test_a_broker_that_dies_while_a_worker_starts_leaves_no_partition_without_an_owner(
    broker: Any, tmp_path: Path, proof: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C7: killed at any moment from the worker's first breath until it is at work, and brought back."""
    kills = size("broker kills at a start")
    case = proof("C7", "kill -9 of the broker while a worker starts", kills, "kills")
    settings = settings_for(tmp_path, "c7-start")
    records = list(feed(SEED, 60, settings.partitions, vault_of(settings), now_ms()))
    reads = sum(partitions(stage.reads, settings.partitions) for stage in stages(settings.tuning))
    status = settings.data / "run" / "worker-0.status.json"
    rng = random.Random(SEED)
    told: list[str] = []
    monkeypatch.setenv("XINFLUENCER_KAFKA", broker.bootstrap)

    def owned(deployment: Deployment) -> int:
        """Count the partitions of the worker that runs now; 0 until it says so."""
        pid = deployment.pids.get("worker")
        known = json.loads(status.read_text()) if pid and status.exists() else {}
        return len(known["partitions"]) if known and known["pid"] == pid else 0

    async def run() -> Any:
        await write(settings, broker.settings, records)
        deployment = Deployment(settings, {}, told.append)
        await deployment.start("worker")
        try:
            for _ in range(kills):
                await asyncio.sleep(rng.uniform(0.5, 4.0))
                broker.kill()
                broker.restart()  # in the main thread: the kernel ends a JVM with the thread that started it
                async with asyncio.timeout(START_S_MAX + SILENT_S_MAX + FORGOTTEN_S + 9 * START_S_MAX):
                    while owned(deployment) != reads:
                        await asyncio.sleep(0.1)
                before = deployment.pids["worker"]
                os.kill(before, signal.SIGKILL)
                while deployment.pids.get("worker") in (None, before):
                    await asyncio.sleep(0.05)
            await finish(settings, broker.settings, Workers(settings, broker.settings))
        finally:
            await deployment.stop()
        return await judge(settings, broker.settings)

    try:
        verdict = asyncio.run(run())
    finally:
        if broker.process.poll() is not None:
            broker.restart()
    assert verdict.faults == []
    assert verdict.visible["rewards"] > 0
    case.detail = f"{sum('stands still' in line for line in told)} times the supervisor had to end a worker that hung"


async def join(broker: Any, topics: list[str], group: str, *, blind: bool = False) -> int:
    """Join as plain aiokafka would, with the id of always; give how many partitions that brought."""
    consumer = AIOKafkaConsumer(
        **broker.settings.client_kwargs(),
        group_id=group,
        group_instance_id="0",
        partition_assignment_strategy=[RoundRobinPartitionAssignor],
        session_timeout_ms=int(SESSION_S * 1000),
    )
    await consumer.start()
    if blind:
        consumer._client._metadata_update = lambda *given: blind_worker.unanswered(consumer._client, *given)
    try:
        consumer.subscribe(topics)
        async with asyncio.timeout(30):
            while consumer._coordinator._heartbeat_task is None:
                await asyncio.sleep(0.05)
        return len(consumer.assignment())
    finally:
        await consumer.stop()


def test_control_what_a_blind_leader_assigns_stays_until_nobody_was_there_for_a_session(broker: Any) -> None:
    """The same with aiokafka's own assignor."""
    topics = ["trap-a", "trap-b"]

    async def run() -> list[int]:
        await ensure_topics(broker.settings, [TopicSpec(topic, 2, {}) for topic in topics])
        found = [await join(broker, topics, "trap", blind=True)]
        found += [await join(broker, topics, "trap") for _ in range(3)]
        await asyncio.sleep(SESSION_S + 6.0)  # the session, and a broker that is late
        return [*found, await join(broker, topics, "trap")]

    assert asyncio.run(run()) == [0, 0, 0, 0, 4]
