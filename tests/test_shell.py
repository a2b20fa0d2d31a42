"""The shell, the transport and the sender, one decision at a time: what comes before what, and what ends a process.

The fault tests kill real workers and find what is lost; these find why, in milliseconds, and in each place.
"""

import asyncio
import errno
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from schemas.events import AuthorForgotten
from schemas.posts import AuthorErased, PostDeleted
from streams import shell as shell_module
from streams.exits import EXIT_AGAIN, EXIT_REFUSED
from streams.memory import Logged
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.transport import Consumer, ConsumerThread, Fetched
from streams.trouble import ATTEMPTS_MAX, Trouble
from tests.bare_shell import KAFKA, STAGES, Ended, Keys, World, logged, people, said_by, thumb
from tests.folding import T0_MS


@pytest.fixture(autouse=True)
def _ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(reason: str, code: int = EXIT_AGAIN) -> None:
        raise Ended(reason, code)

    monkeypatch.setattr(shell_module, "stop_process", stop)


# ---- the shell ------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_or_committed_before_what_follows_from_it_was_sent(tmp_path: Path) -> None:
    world, records = World(tmp_path, STAGES["intake"]), people(6)

    async def life() -> None:
        assert await world.own() == 0
        await world.shell.handle(world.chunk(records[:3]))
        assert len(world.log.records) == 3, "what is handled is acknowledged"
        assert world.kept() == 3
        assert world.shell.committable() == {world.tp: 3}
        world.shell.owned[world.tp].written_s = 1e12  # no snapshot is due
        await world.shell.handle(world.chunk(records[3:5]))
        assert world.shell.committable() == {world.tp: 3}, "the commit went ahead of the snapshot"
        world.shell.owned[world.tp].written_s = 0.0
        world.log.fails = True
        with pytest.raises(Ended, match="the broker is away"):
            await world.shell.handle(world.chunk(records[5:]))
        assert world.kept() == 3

    asyncio.run(life())
    assert [kept for kept, _ in world.log.moments] == [0, 3, 3], "a snapshot stood before its outputs did"


def test_a_snapshot_that_could_not_be_written_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, STAGES["intake"])

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    async def life() -> None:
        await world.own(committed=0)
        with monkeypatch.context() as patch:
            patch.setattr(world.shell.snapshots, "write", full)
            await world.shell.handle(world.chunk(people(3)))
            assert world.shell.committable() == {}
        world.shell.owned[world.tp].written_s = 0.0
        assert world.shell.committable() == {world.tp: 3}, "it is written once there is room"

    asyncio.run(life())


def test_a_status_that_the_disk_does_not_take_ends_nothing_and_the_file_says_that_somebody_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, run = World(tmp_path, STAGES["intake"]), tmp_path / "run"
    run.mkdir()
    path, temporary = run / "worker-0.status.json", run / f"worker-0.status.{os.getpid()}.tmp"

    async def positions(tps: Sequence[TP]) -> list[tuple[int, int, int]]:
        return [(3, 3, 100) for _ in tps]

    async def life() -> None:
        await world.own()
        world.shell.consumer = SimpleNamespace(thread_positions=positions)
        temporary.symlink_to("/dev/full")
        await world.shell.write_status(path)
        assert not path.exists(), "there is nothing that it could touch"
        temporary.unlink()
        await world.shell.write_status(path)
        assert json.loads(path.read_text())["partitions"] == {"feedback/0": [0, 3, 3, 100]}
        before = path.read_text()
        os.utime(path, (0, 0))
        temporary.symlink_to("/dev/full")
        for _ in range(3):
            await world.shell.write_status(path)
        assert path.read_text() == before
        assert abs(path.stat().st_mtime - time.time()) < 5
        temporary.unlink()
        await world.shell.write_status(path)
        assert path.read_text() != before, "it says everything again once there is room"

    asyncio.run(life())
    assert sum("No space left" in line.getMessage() for line in caplog.records) == 2, "once each time that it fills up"


@pytest.mark.parametrize(("partitions", "due"), [(1, True), (8, False)])
def test_snapshots_of_many_partitions_share_one_part_of_the_time(tmp_path: Path, partitions: int, due: bool) -> None:
    world = World(tmp_path, STAGES["intake"])

    async def life() -> None:
        await world.own()
        first = world.shell.owned[world.tp]
        written_s = time.monotonic() - 2.0  # alone it may write each second, with seven others every five
        for number in range(partitions):
            tp = TP(world.tp.topic, number)
            world.shell.owned[tp] = replace(first, tp=tp, dirty=True, cost_s=0.05, written_s=written_s)
        assert world.shell._due(world.shell.owned[world.tp]) is due
        for one in world.shell.owned.values():
            one.cost_s = 10.0
        world.shell.owned[world.tp].cost_s, world.shell.owned[world.tp].written_s = 0.2, written_s - 4.0
        assert world.shell._due(world.shell.owned[world.tp]), "nobody waits longer than a limit for the others"

    asyncio.run(life())


def test_a_chunk_that_does_not_begin_where_its_partition_stands_ends_the_process(tmp_path: Path) -> None:
    records = people(6)
    for first in (2, 4):  # records that were applied already, records that would be passed over
        world = World(tmp_path / str(first), STAGES["intake"])

        async def life(world: World = world, first: int = first) -> None:
            await world.own()
            await world.shell.handle(world.chunk(records[:3]))
            with pytest.raises(Ended, match="a hole"):
                await world.shell.handle(world.chunk(records[first:]))
            assert len(world.log.records) == 3

        asyncio.run(life())


def test_a_chunk_of_an_old_epoch_is_nobodys(tmp_path: Path) -> None:
    world, records = World(tmp_path, STAGES["intake"]), people(3)

    async def life() -> None:
        await world.own()
        world.shell.begin(2)
        await world.shell.handle(world.chunk(records, epoch=1))
        assert (world.log.records, world.shell.owned[world.tp].fold.memory.next) == ([], 0)
        assert world.shell.stale_chunks == 1
        await world.shell.handle(world.chunk(records, epoch=2))
        assert len(world.log.records) == 3

    asyncio.run(life())


async def read_some(world: World, records: list[Logged], count: int) -> None:
    """Let a process take the first records, keep its snapshot, and end."""
    await world.own()
    await world.shell.handle(world.chunk(records[:count]))
    assert world.kept() == count
    world.begin()
    world.log.before = SimpleNamespace(**{name: getattr(records[count - 1], name) for name in Logged.__slots__})


def test_an_owner_goes_on_where_its_snapshot_stands_and_not_at_the_commit(tmp_path: Path) -> None:
    world, records = World(tmp_path, STAGES["intake"]), people(6)

    async def life() -> None:
        await read_some(world, records, 3)
        assert await world.own(committed=5) == 3
        assert world.shell.committable() == {}, "what is committed is not committed again"

    asyncio.run(life())


def test_records_that_are_gone_before_they_were_read_are_missed(tmp_path: Path) -> None:
    world, records = World(tmp_path, STAGES["intake"]), people(6)

    async def life() -> None:
        with pytest.raises(Ended, match="records are missing") as ended:
            await world.own(start=2, end=6)
        assert ended.value.code == EXIT_REFUSED
        world.begin()
        await read_some(world, records, 3)
        for start, end in ((4, 6), (0, 2)):  # retention was faster; the log is shorter than what was read
            with pytest.raises(Ended, match="the snapshot stands at 3"):
                await world.own(start, end)
            world.begin()

    asyncio.run(life())


def test_a_log_that_was_cut_and_refilled_is_refused(tmp_path: Path) -> None:
    world, records = World(tmp_path, STAGES["intake"]), people(6)

    async def life() -> None:
        await read_some(world, records, 3)
        assert await world.own() == 3, "the log that it read is taken up again"
        world.begin()
        world.log.before = replace(records[5], offset=2)
        with pytest.raises(Ended, match="is not the record that was read there before") as ended:
            await world.own()
        assert ended.value.code == EXIT_REFUSED

    asyncio.run(life())


def test_a_key_is_gone_before_its_receipt_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path, STAGES["metadata"])
    keys = world.shell.vault
    said = [said_by("x:1", "x:@ann"), said_by("x:2", "x:@bob"), AuthorErased(owner="x:@ann", source="x")]
    said += [said_by("x:3", "x:@bob"), PostDeleted(post="x:2", owner="x:@bob", source="x")]
    records = logged(outside(one, "/sources/x", T0_MS, 1, keys) for one in said)
    assert keys.get("x:@ann")
    assert keys.leaf("x:@bob", "post/x:2")

    async def life() -> None:
        await world.own()
        await world.shell.handle(world.chunk(records))

    asyncio.run(life())
    receipts = [one.event.owner for one in world.log.records if isinstance(one.event, AuthorForgotten)]
    assert receipts == ["x:@ann"]
    gone = [gone for _, gone in world.log.moments]
    assert gone == [{"x:@ann": None, "x:2": None}], "a key stood when its receipt was sent"
    assert keys.get("x:@bob")
    assert keys.leaf("x:@bob", "post/x:3")


def test_a_step_that_fails_ends_the_process_and_counts(tmp_path: Path) -> None:
    def step(chunk: Any, state: Any) -> Any:
        raise ZeroDivisionError

    world = World(tmp_path, replace(STAGES["intake"], step=step))

    async def life() -> None:
        await world.own(committed=0)
        with pytest.raises(Ended, match="ZeroDivisionError") as ended:
            await world.shell.handle(world.chunk(people(3)))
        assert ended.value.code == EXIT_AGAIN
        assert world.kept() == 0
        assert world.shell.committable() == {}

    for _ in range(3):
        asyncio.run(life())
        world.begin()
    assert world.shell.trouble.touches(world.tp.topic, 0, 0, 3), "three times is too often"


def test_trouble_is_the_same_trouble_however_the_chunk_was_cut(tmp_path: Path) -> None:
    """Chunks begin elsewhere after each restart, and the record that fails is somewhere in them."""
    cuts = ((10, 20), (12, 15), (14, 40))
    assert len(cuts) == ATTEMPTS_MAX
    assert [Trouble(tmp_path).failed("t", 0, *cut) for cut in cuts] == [1, 2, 3]
    assert Trouble(tmp_path).touches("t", 0, 39, 50)
    assert not Trouble(tmp_path).touches("t", 0, 40, 50)
    assert Trouble(tmp_path).failed("t", 0, 40, 50) == 1, "what lies behind it is another trouble"


@pytest.mark.parametrize("torn", ["", "{", "[]", "5", "null", '{"start": 1}', '{"start": [], "end": 9, "attempts": 3}'])
def test_a_note_of_trouble_that_is_damaged_is_forgotten_and_made_again(tmp_path: Path, torn: str) -> None:
    assert Trouble(tmp_path).failed("t", 0, 10, 20) == 1
    (note,) = tmp_path.iterdir()
    note.write_text(torn)
    assert not Trouble(tmp_path).touches("t", 0, 10, 20)
    assert [Trouble(tmp_path).failed("t", 0, 10, 20) for _ in range(3)] == [1, 2, 3]
    assert Trouble(tmp_path).touches("t", 0, 10, 20)


# ---- the transport --------------------------------------------------------------------------------------------------


def test_a_fetch_that_crossed_a_seek_belongs_to_no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch(thread: Any) -> dict[str, list[int]]:
        thread.epoch += thread.crossing  # a seek comes in the middle
        return {"records": [1]}

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "_fetch_records", fetch)
    thread: Any = object.__new__(ConsumerThread)
    thread.epoch, thread.crossing = 4, False
    assert asyncio.run(thread._fetch_records()).epoch == 4
    thread.crossing = True
    crossed = asyncio.run(thread._fetch_records())
    assert (thread.epoch, crossed.epoch) == (5, -1)
    assert crossed == {"records": [1]}


def test_every_seek_begins_an_epoch_of_its_own() -> None:
    thread: Any = object.__new__(ConsumerThread)
    sought: list[tuple[TopicPartition, int]] = []
    thread._ensure_consumer = lambda: SimpleNamespace(seek=lambda tp, offset: sought.append((tp, offset)))

    async def at_once(call: Any) -> Any:
        return await call()

    thread.call_thread = at_once
    epochs = [asyncio.run(thread.move({TP("tweets", 0): offset})) for offset in (3, 9, 9)]
    assert epochs == [1, 2, 3]
    assert sought == [(TopicPartition("tweets", 0), offset) for offset in (3, 9, 9)]


class Flowing(Consumer):
    """A consumer that nobody stops."""

    should_stop = False
    flow_active = True


def test_chunks_join_without_a_hole_over_a_transactions_marker(tmp_path: Path) -> None:
    """A marker takes an offset that no record has: the next chunk begins at it, where the partition stands."""
    world, records = World(tmp_path, STAGES["intake"]), people(6)
    del records[2]  # the marker
    consumer: Any = object.__new__(Flowing)
    consumer.shell, consumer.handed = world.shell, {world.tp: 0}
    consumer.app = SimpleNamespace(consumer_generation_id=1)
    consumer._to_message = lambda tp, record: SimpleNamespace(value=record)
    given = [records[:2], records[2:]]

    async def fetch(timeout: float) -> tuple[Fetched, None]:
        found = Fetched({TopicPartition(*world.tp): given.pop(0)})
        found.epoch = 1
        return found, None

    consumer._wait_next_records = fetch

    async def life() -> list[tuple[int, int]]:
        await world.own()
        chunks = []
        while given:
            async for tp, message in consumer.getmany(1.0):
                assert tp == world.tp
                chunks.append((message.value.start, message.value.end))
                await world.shell.handle(message.value)
        return chunks

    assert asyncio.run(life()) == [(0, 2), (2, 6)]
    assert len(world.log.records) == 5
    assert world.shell.outstanding(world.tp.topic) == 0


# ---- the sender -----------------------------------------------------------------------------------------------------


class Producer:
    """Stands where the client's producer stands: real batches, acknowledged or not as it was told, never at once."""

    def __init__(self, failing: int | None = None) -> None:
        self.failing = failing
        self.sent: list[tuple[str, int, int]] = []  # topic, partition, records
        self.waiting = 0
        self.most = 0

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(600, 0, is_transactional=0)

    async def send_batch(self, batch: BatchBuilder, topic: str, partition: int) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = len(self.sent)
        self.sent.append((topic, partition, batch.record_count()))
        self.waiting += 1
        self.most = max(self.most, self.waiting)

        def answer() -> None:
            self.waiting -= 1
            if number == self.failing:
                done.set_exception(ConnectionError("not acknowledged"))
            else:
                done.set_result(None)

        asyncio.get_running_loop().call_later(0.01, answer)
        return done

    async def stop(self) -> None:
        return None


def sending(producer: Producer, tmp_path: Path, partitions: Sequence[int]) -> None:
    """Send 20 records of about 200 bytes to each partition."""

    async def send() -> None:
        sender = Sender(Settings(data=tmp_path), KAFKA)
        sender._producer = producer  # type: ignore[assignment]
        one = outside(thumb(1), "/people", T0_MS, 1, Keys())
        await sender.send([one._replace(partition=part) for part in partitions for _ in range(20)])
        assert producer.waiting == 0, "sent means acknowledged"

    asyncio.run(send())


def test_a_batch_is_sent_only_after_the_one_before_it_was_acknowledged(tmp_path: Path) -> None:
    whole = Producer()
    sending(whole, tmp_path, [0])
    assert len(whole.sent) > 3
    assert whole.most == 1
    assert sum(count for _, _, count in whole.sent) == 20
    both = Producer()
    sending(both, tmp_path, [0, 1])
    assert both.most == 2, "partitions need not wait for each other"
    for failing in (0, 1, len(whole.sent) - 1):
        cut = Producer(failing)
        with pytest.raises(ConnectionError, match="not acknowledged"):
            sending(cut, tmp_path, [0])
        assert cut.sent == whole.sent[: failing + 1], "something was sent behind a batch that failed"
    with pytest.raises(ConnectionError, match="not acknowledged"):
        sending(Producer(1), tmp_path, [0, 1])


def test_a_sender_waits_for_all_replicas_and_repeats_without_doubling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(self: AIOKafkaProducer) -> None:
        return None

    async def made() -> Any:
        return await Sender(Settings(data=tmp_path), KAFKA).start()

    monkeypatch.setattr(AIOKafkaProducer, "start", nowhere)
    producer = asyncio.run(made())
    assert producer._sender._acks == -1
    assert producer._txn_manager is not None
