"""Faults on the real broker: workers killed at random and at every named point, poison, and wrong workers found out.

`N independent kills without a failure` only says that a failure is rarer than 3/N at 95 %; CI sizes are small on
purpose, XINFLUENCER_KILLS and XINFLUENCER_EVENTS raise them.
"""

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from schemas.topics import TWEETS
from streams.fold import Sent
from streams.kafka import KafkaSettings
from streams.reader import reader
from streams.sender import Sender
from streams.shell import EXIT_REFUSED
from streams.vault import Vault
from tests.feeds import feed
from tests.harness import Workers, ended, finish, judge, killed_run, settings_for, write

KILLS = int(os.environ.get("XINFLUENCER_KILLS", "20"))
EVENTS = int(os.environ.get("XINFLUENCER_EVENTS", "5000"))
SEED = 11
POINTS = ("before-take", "after-take", "mid-send", "after-send", "after-snapshot", "before-commit")

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]


def vault_of(settings: Any) -> Vault:
    return Vault(settings.data / "vault" / "keys.sqlite")


def now_ms() -> int:
    return int(time.time() * 1000)


def test_a_worker_killed_again_and_again_loses_and_doubles_nothing(broker: Any, tmp_path: Path) -> None:
    """C1."""
    settings = settings_for(tmp_path, "c1")
    records = list(feed(SEED, EVENTS * 10 // 24, settings.partitions, vault_of(settings), now_ms()))
    workers = Workers(settings, broker.settings)
    verdict = killed_run(settings, broker.settings, records, KILLS, SEED, workers)
    assert verdict.faults == [], workers.log()[-3000:]
    assert verdict.visible["preferences"] > 0
    assert verdict.visible["batches"] > 0
    assert workers.ended.count(-signal.SIGKILL) >= KILLS - 1, "the kills did not happen"


def test_a_worker_that_dies_at_every_named_point_changes_nothing(broker: Any, tmp_path: Path) -> None:
    """C2: one life after another, each ended at the next point while its slice of the feed is in flight."""
    settings = settings_for(tmp_path, "c2")
    orders = [point for point in POINTS for _ in range(2)]
    records = list(feed(SEED, 60 * len(orders), settings.partitions, vault_of(settings), now_ms()))
    share = -(-len(records) // len(orders))
    workers = Workers(settings, broker.settings)
    died: dict[str, int] = {}

    async def run() -> Any:
        await write(settings, broker.settings, [])
        for life, point in enumerate(orders):
            workers.env = {"XINFLUENCER_CRASH": f"{point}:{SEED + life}:0.4"}
            workers.start()
            await write(settings, broker.settings, records[life * share : (life + 1) * share])
            assert workers.process is not None
            code = await asyncio.to_thread(_end_of, workers)
            died[point] = died.get(point, 0) + (code == -signal.SIGKILL)
        workers.env = {}
        workers.start()
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(settings, broker.settings)

    with ended(workers):
        verdict = asyncio.run(run())
    assert died == dict.fromkeys(POINTS, 2), "it did not die where it was told to"
    assert verdict.faults == [], workers.log()[-3000:]
    assert verdict.visible["rewards"] > 0


def _end_of(workers: Workers) -> int:
    assert workers.process is not None
    return workers.process.wait(30)


def poison(seed: int, count: int, width: int) -> list[Sent]:
    """Make records that cannot be used, each in another way."""
    rng = random.Random(seed)
    kinds: list[tuple[bytes, list[tuple[str, bytes]]]] = []
    head = [("ce_specversion", b"1.0"), ("ce_id", b"p"), ("ce_type", b"xinfluencer.PostObserved.v1")]
    for index in range(count):
        named = [(name, b"poison-%d" % index if name == "ce_id" else value) for name, value in head]
        kinds = [
            (rng.randbytes(rng.randrange(0, 400)), named),
            (b"\xff\xfe{", named),
            (b"[" * 5000, named),
            (b'{"post": 1e999999}', named),
            (b'{"post": NaN}', named),
            (b'{"post":"x:1","post":"x:2"}', named),
            (b'{"post":"\\u0000"}', named),
            (b'{"post":"\\ud800"}', named),
            (b"{}", []),
            (b"{}", [("ce_id", b"\xff\xff"), ("ce_type", b"\xff")]),
            (b"{}", [("ce_id", b"q%d" % index), ("ce_type", b"xinfluencer.PostObserved.v99")]),
            (b"{}", [*named, ("ce_origin", b"not/an/origin")]),
        ]
    made = []
    for index in range(count):
        value, headers = kinds[index % len(kinds)]
        headers = [
            (name, b"poison-%d" % index if value_ == b"poison-%d" % (count - 1) else value_) for name, value_ in headers
        ]
        made.append(Sent(TWEETS.name, index % width, None, value + b" " * (index % 7), headers, now_ms(), None))  # type: ignore[arg-type]
    return made


def test_poison_is_accounted_for_and_what_comes_after_it_is_handled(broker: Any, tmp_path: Path) -> None:
    """D1 and D2: 2,000 records that cannot be used, in bursts, then a valid feed; no restart, nothing stalls."""
    settings = settings_for(tmp_path, "d1")
    vault = vault_of(settings)
    bad = poison(SEED, 2000, settings.partitions)
    good = list(feed(SEED, 100, settings.partitions, vault, now_ms()))
    workers = Workers(settings, broker.settings)

    async def run() -> tuple[Any, int, float]:
        await write(settings, broker.settings, [])
        workers.start()
        await finish(settings, broker.settings, workers)
        sender = Sender(settings, broker.settings)
        await sender.send(bad)
        await sender.send(good)
        began = time.monotonic()
        async with reader(settings, broker.settings) as log_reader:
            while not sum((await log_reader.ends("signals")).values()) > 20 and time.monotonic() - began < 30:
                await asyncio.sleep(0.02)
        waited = time.monotonic() - began
        await sender.stop()
        await finish(settings, broker.settings, workers)
        ended_before = len(workers.ended)
        assert workers.process is not None
        # Faust would open a web port on all interfaces.
        listening = [c.laddr for c in psutil.Process(workers.process.pid).net_connections() if c.status == "LISTEN"]
        assert listening == []
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(settings, broker.settings), ended_before, waited

    with ended(workers):
        verdict, restarts, waited = asyncio.run(run())
    assert verdict.faults == []
    assert restarts == 0, workers.log()[-3000:]
    assert verdict.visible["dead-letters"] >= 2000
    assert waited < 10, f"valid records waited {waited:.1f} s behind poison"


@pytest.mark.parametrize(
    ("variant", "point", "found"),
    [
        ("agent_raises", "", "is missing"),
        ("unawaited_send", "after-send", "is missing"),
        ("random_ids", "", "follows from no input"),
    ],
)
def test_the_oracle_finds_a_wrong_worker(broker: Any, tmp_path: Path, variant: str, point: str, found: str) -> None:
    """Negative controls: without them the green above means nothing."""
    settings = settings_for(tmp_path, f"wrong-{variant.replace('_', '-')}")
    script = str(Path(__file__).with_name("wrong_worker.py"))
    env = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    if point:
        env["XINFLUENCER_CRASH"] = f"{point}:{SEED}:0.05"
    workers = Workers(settings, broker.settings, (sys.executable, script, variant), env)
    records = feed(SEED, 600, settings.partitions, vault_of(settings), now_ms())
    verdict = killed_run(settings, broker.settings, records, 3, SEED, workers)
    assert any(found in fault for fault in verdict.faults), (verdict.faults[:5], workers.log()[-2000:])


def test_a_log_that_was_wiped_under_kept_snapshots_is_noticed(broker: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "wiped")
    records = list(feed(SEED, 20, settings.partitions, vault_of(settings), now_ms()))
    workers = Workers(settings, broker.settings)
    topic = settings.physical("tweets")
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})

    async def before() -> None:
        await write(settings, broker.settings, records)
        workers.start()
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)

    with ended(workers):
        asyncio.run(before())
        for future in admin.delete_topics([topic]).values():
            future.result(20)
        time.sleep(1.0)
        asyncio.run(write(settings, broker.settings, records))
        workers.start()
        assert workers.process is not None
        assert workers.process.wait(30) == EXIT_REFUSED
    assert "remove the snapshot folder too" in workers.log()


def test_a_worker_without_a_broker_says_so_and_can_be_started_again(tmp_path: Path) -> None:
    """C7, one attempt of it: the supervisor does the trying again."""
    settings = settings_for(tmp_path, "c7")
    workers = Workers(settings, KafkaSettings(bootstrap="127.0.0.1:1"))
    with ended(workers):
        workers.start()
        assert workers.process is not None
        assert workers.process.wait(60) not in (0, EXIT_REFUSED)
    assert "xinfluencer: " in workers.log()
    assert "Traceback" not in workers.log()
