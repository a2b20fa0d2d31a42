"""Faults of the worker's process on the real broker: killed at random and at every named point, ended, put to sleep.

What every run must come to is said by one oracle (harness.judge): every input has its outputs or its dead letter, once,
with one payload, and the snapshots hold what a clean reading from offset 0 gives. Sizes are in tests/proof.py.
"""

import asyncio
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.events import AlertRaised
from streams.exits import EXIT_AGAIN, EXIT_REFUSED
from streams.kafka import ensure_topics
from streams.reader import reader
from streams.topics import specs
from tests.feeds import feed
from tests.harness import (
    ROOT,
    Workers,
    attacked_run,
    ended,
    finish,
    judge,
    killed_run,
    now_ms,
    said,
    settings_for,
    vault_of,
    write,
    write_stubbornly,
)
from tests.proof import SCALE, SEED, Say, size

POINTS = ("before-take", "after-take", "mid-send", "after-send", "after-snapshot", "before-commit")
GONE_S_MAX = 10.0 if SCALE != "ci" else 28.0  # other tests run beside this one in CI
BACK_S_MAX = 10.0 if SCALE != "ci" else 60.0

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1200)]


def variant(settings: Any, kafka: Any, name: str, instance: str = "0", **env: str) -> Workers:
    """Make the workers of tests/wrong_worker.py."""
    script = str(Path(__file__).with_name("wrong_worker.py"))
    return Workers(settings, kafka, (sys.executable, script, name), {"PYTHONPATH": str(ROOT), **env}, instance=instance)


def test_a_worker_killed_again_and_again_loses_and_doubles_nothing(broker: Any, tmp_path: Path, proof: Say) -> None:
    """C1."""
    kills = size("kills")
    settings = settings_for(tmp_path, "c1")
    records = list(feed(SEED, size("events") * 10 // 24, settings.partitions, vault_of(settings), now_ms()))
    case = proof("C1", f"kill -9 of a worker at random gaps while it reads {len(records):,} records", kills, "kills")
    workers = Workers(settings, broker.settings)
    verdict = killed_run(settings, broker.settings, records, kills, SEED, workers)
    assert verdict.faults == [], workers.log()[-3000:]
    assert verdict.visible["preferences"] > 0
    assert verdict.visible["batches"] > 0
    assert workers.ended.count(-signal.SIGKILL) >= kills - 1, "the kills did not happen"
    case.detail = f"back in {max(workers.backs_s):.1f} s, {sum(verdict.absorbed.values())} duplicates absorbed"
    assert max(workers.backs_s) < BACK_S_MAX


def test_a_worker_that_dies_at_every_named_point_changes_nothing(broker: Any, tmp_path: Path, proof: Say) -> None:
    """C2: one life after another, each ended at the next point while its slice of the feed is in flight."""
    each = size("points")
    proof("C2", f"death at each of {len(POINTS)} named points", each * len(POINTS), "deaths")
    settings = settings_for(tmp_path, "c2")
    orders = [point for point in POINTS for _ in range(each)]
    records = list(feed(SEED, 60 * len(orders), settings.partitions, vault_of(settings), now_ms()))
    share = -(-len(records) // len(orders))
    workers = Workers(settings, broker.settings)
    died: dict[str, int] = {}

    async def fate(part: list[Any]) -> int | None:
        """Give a worker its slice until it dies: one that chance spared at every commit reads the same again."""
        for _ in range(6):
            await write(settings, broker.settings, part)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                assert workers.process is not None
                if (code := workers.process.poll()) is not None:
                    return code
                await asyncio.sleep(0.05)
        return None

    async def run() -> Any:
        await write(settings, broker.settings, [])
        for life, point in enumerate(orders):
            workers.env = {"XINFLUENCER_CRASH": f"{point}:{SEED + life}:0.4"}
            workers.start()
            code = await fate(records[life * share : (life + 1) * share])
            died[point] = died.get(point, 0) + (code == -signal.SIGKILL)
        workers.env = {}
        workers.start()
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(settings, broker.settings)

    with ended(workers):
        verdict = asyncio.run(run())
    assert died == dict.fromkeys(POINTS, each), "it did not die where it was told to"
    assert verdict.faults == [], workers.log()[-3000:]
    assert verdict.visible["rewards"] > 0


def test_a_worker_told_to_end_with_chunks_in_hand_is_gone_in_time_and_loses_nothing(
    broker: Any, tmp_path: Path, proof: Say
) -> None:
    """C3: a slow worker, so that SIGTERM finds it at work."""
    terms = size("terms")
    case = proof("C3", "SIGTERM while chunks are in hand", terms, "signals")
    settings = settings_for(tmp_path, "c3")
    records = list(feed(SEED, 60 * terms, settings.partitions, vault_of(settings), now_ms()))
    workers = variant(settings, broker.settings, "slow", XINFLUENCER_SLOW_S="0.3")
    rng = random.Random(SEED)
    gone_s = []

    async def ending() -> None:
        for _ in range(terms):
            await workers.back()
            await asyncio.sleep(rng.uniform(0.2, 1.5))
            began = time.monotonic()
            await asyncio.to_thread(workers.signal, signal.SIGTERM)
            gone_s.append(time.monotonic() - began)
            workers.env["XINFLUENCER_SLOW_S"] = "0.3" if len(gone_s) < terms else "0"
            workers.keep()

    async def attack() -> None:
        pause_s = 2.5 * terms / (len(records) / 100)
        await asyncio.gather(write_stubbornly(settings, broker.settings, records, pause_s), ending())

    verdict = attacked_run(settings, broker.settings, workers, attack)
    assert verdict.faults == [], workers.log()[-3000:]
    assert set(workers.ended) == {0}, "it ended otherwise than it was told to"
    assert max(gone_s) < GONE_S_MAX
    case.detail = f"gone in {max(gone_s):.1f} s"


def test_a_worker_that_wakes_up_after_another_took_over_changes_nothing(
    broker: Any, tmp_path: Path, proof: Say
) -> None:
    """C4: SIGSTOP with outputs made and not sent, longer than its session; another reads on; SIGCONT."""
    zombies = size("zombies")
    proof("C4", "SIGSTOP with a chunk in hand, beyond its session, then SIGCONT", zombies, "zombies")
    settings = settings_for(tmp_path, "c4", partitions=2)
    records = list(feed(SEED, 150 * zombies, settings.partitions, vault_of(settings), now_ms()))
    share = len(records) // zombies
    other = Workers(settings, broker.settings, instance="1")
    first = variant(settings, broker.settings, "sleeper")

    async def run() -> Any:
        await ensure_topics(broker.settings, specs(settings))
        for number in range(zombies):
            slept = tmp_path / f"slept-{number}"
            first.env["XINFLUENCER_SLEEP"] = f"{('after-take', 'after-send', 'mid-send')[number % 3]}@{slept}"
            first.start()
            await first.back()
            part = records[number * share : (number + 1) * share]
            await write(settings, broker.settings, part[: share // 2])
            assert first.process is not None
            while not slept.exists():
                assert first.process.poll() is None, first.log()[-3000:]
                await asyncio.sleep(0.05)
            other.start()
            await other.back()  # it owns all that the sleeper lost: its session is over
            await write(settings, broker.settings, part[share // 2 :])
            await _through(settings, broker.settings)
            first.process.send_signal(signal.SIGCONT)
            first.ended.append(await asyncio.to_thread(first.process.wait, 60))
            other.keep()
            await finish(settings, broker.settings, other)
            await asyncio.to_thread(other.signal, signal.SIGTERM)
        return await judge(settings, broker.settings)

    with ended(first), ended(other):
        verdict = asyncio.run(run())
    assert verdict.faults == [], first.log()[-3000:]
    assert first.ended == [EXIT_AGAIN] * zombies, "the sleeper noticed nothing"


async def _through(settings: Any, kafka: Any) -> None:
    """Wait until what was written now has come through the first stages."""
    async with reader(settings, kafka) as log_reader:
        before = -1
        while (now := sum((await log_reader.ends("signals")).values())) != before:
            before = now
            await asyncio.sleep(1.0)


def test_a_log_that_was_wiped_under_kept_snapshots_is_noticed(broker: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "wiped")
    records = list(feed(SEED, 20, settings.partitions, vault_of(settings), now_ms()))
    workers = Workers(settings, broker.settings)
    topic = settings.physical("tweets")
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    with ended(workers):
        asyncio.run(_filled(settings, broker.settings, workers, records))
        for future in admin.delete_topics([topic]).values():
            future.result(20)
        time.sleep(1.0)
        asyncio.run(write(settings, broker.settings, records))
        workers.start()
        assert workers.process is not None
        assert workers.process.wait(90) == EXIT_REFUSED
    assert "remove the snapshot folder too" in workers.log()


async def _filled(settings: Any, kafka: Any, workers: Workers, records: list[Any]) -> None:
    """Let a worker read a feed, and end it."""
    await write(settings, kafka, records)
    workers.start()
    await finish(settings, kafka, workers)
    await asyncio.to_thread(workers.signal, signal.SIGTERM)


@pytest.mark.parametrize("running", [False, True])
def test_records_that_retention_took_before_they_were_read_are_missed_by_name(
    broker: Any, tmp_path: Path, proof: Say, running: bool
) -> None:
    """D9: once between two lives of the worker, once under a worker that runs and is behind."""
    proof("D9", "retention passes a worker that is behind, ended or running", 1, "runs")
    settings = settings_for(tmp_path, f"d9-{running}".lower())
    vault = vault_of(settings)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    topic = settings.physical("tweets")

    def refused() -> int:
        assert workers.process is not None
        deadline = time.monotonic() + 90
        while True:  # as the supervisor does: whatever else it ends with, it is started again
            code = workers.process.wait(deadline - time.monotonic())
            if code == EXIT_REFUSED:
                return code
            workers.keep()

    async def passed() -> None:
        await write(settings, broker.settings, feed(SEED + 1, 200, settings.partitions, vault, now_ms()))
        async with reader(settings, broker.settings) as log_reader:
            ends = await log_reader.ends("tweets")
        cut = [TopicPartition(topic, partition, end - 3) for (_, partition), end in ends.items()]
        for future in admin.delete_records(cut).values():
            future.result(20)

    async def run() -> list[Any]:
        await write(settings, broker.settings, feed(SEED, 30, settings.partitions, vault, now_ms()))
        workers.start()
        await finish(settings, broker.settings, workers)
        assert workers.process is not None
        if running:
            workers.process.send_signal(signal.SIGSTOP)
            await passed()
            workers.process.send_signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(workers.signal, signal.SIGTERM)
            await passed()
            workers.start()
        assert await asyncio.to_thread(refused) == EXIT_REFUSED
        return await said(settings, broker.settings, "alerts")

    workers = Workers(settings, broker.settings)
    with ended(workers):
        alerts = [one.event for one in asyncio.run(run())]
    named = [one for one in alerts if isinstance(one, AlertRaised) and one.kind == "log-mismatch"]
    assert named, workers.log()[-3000:]
    assert topic in named[-1].detail
    assert "the log holds" in named[-1].detail


def test_a_snapshot_damaged_on_disk_is_told_and_the_one_before_it_serves(
    broker: Any, tmp_path: Path, proof: Say
) -> None:
    """C11 on the real worker: the newest of every partition flipped or cut, of some both."""
    settings = settings_for(tmp_path, "c11")
    records = list(feed(SEED, 60, settings.partitions, vault_of(settings), now_ms()))
    rng = random.Random(SEED)
    workers = Workers(settings, broker.settings)
    folders: list[Path] = []

    def damage() -> None:
        for number, file in enumerate(sorted((settings.data / "snapshots").glob("*/snapshot"))):
            folders.append(file.parent)
            for path in (file, file.parent / "snapshot.previous")[: 1 + (number % 3 == 0)]:
                data = bytearray(path.read_bytes()) if path.exists() else bytearray(b"x")
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                path.write_bytes(data[: rng.randrange(len(data))] if number % 2 else data)

    async def attack() -> None:
        await write(settings, broker.settings, records[: len(records) // 2])
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        await asyncio.to_thread(damage)
        workers.start()
        await write(settings, broker.settings, records[len(records) // 2 :])

    verdict = attacked_run(settings, broker.settings, workers, attack)
    proof("C11", "snapshots flipped or cut, some with the one before", len(folders), "files")
    alerts = [one.event for one in asyncio.run(said(settings, broker.settings, "alerts"))]
    broken = [one for one in alerts if isinstance(one, AlertRaised) and one.kind == "snapshot-broken"]
    assert verdict.faults == [], workers.log()[-3000:]
    assert len(broken) >= len(folders), "damage was not told"
    assert not [code for code in workers.ended if code], workers.log()[-3000:]
