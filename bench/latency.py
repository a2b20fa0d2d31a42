"""From a post's arrival to its reward, at a steady rate; against the same in plain Faust at a rate that it can hold.

A post is written with the time of its sending as the record's timestamp; its reward's arrival is noted by a consumer
of `rewards`. Rewards close at the first tick after they came of age (1 ms), and there is a tick every TICK_S: half of
that is in every figure. Posts of the first seconds, while processes warm up, are left out.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer

from bench.chain import AUTHORS, broker, settings_for, workers
from bench.feed import feed
from bench.rows import Row, row
from schemas.envelope import parse
from schemas.events import RewardClosed
from schemas.posts import PostObserved
from schemas.topics import REWARDS
from streams.kafka import KafkaSettings, ensure_topics
from streams.sender import Sender
from streams.settings import Settings
from streams.supervisor import ticks
from streams.topics import specs
from streams.vault import Vault

RATE_OURS, RATE_PEER = 1_000, 200  # posts/s
SECONDS, WARM_S = 45.0, 15.0
TICK_S = 0.05
SEND_S = 0.02


def run() -> list[Row]:
    """Measure both on one broker; the ratios are of times, so above 1 ours is quicker."""
    with broker() as kafka, tempfile.TemporaryDirectory() as folder:
        ours = asyncio.run(_measure(kafka, Path(folder) / "ours", RATE_OURS, plain=False))
        peer = asyncio.run(_measure(kafka, Path(folder) / "peer", RATE_PEER, plain=True))
    return [
        row(
            f"arrival to reward, p{percent}, ours at {RATE_OURS}/s, peer at {RATE_PEER}/s",
            _percentile(ours, percent),
            _percentile(peer, percent),
            "faust-streaming agents with the same steps, gathered sends",
            "ms",
            n=min(len(ours), len(peer)),
            command="python -m bench latency",
            packages=("faust-streaming", "aiokafka", "pydantic"),
        )
        for percent in (50, 99)
    ]


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def _measure(kafka: KafkaSettings, data: Path, rate: int, plain: bool) -> list[float]:
    settings = settings_for(data, data.name)
    await ensure_topics(kafka, specs(settings))
    sent: dict[str, float] = {}
    took: list[float] = []
    with workers(settings, kafka, plain):
        await asyncio.sleep(WARM_S)
        listening = asyncio.create_task(_listen(settings, kafka, sent, took))
        ticking = asyncio.create_task(_tick(settings, kafka))
        await _send(settings, kafka, rate, sent)
        await asyncio.sleep(3.0)
        for task in (listening, ticking):
            task.cancel()
        await asyncio.gather(listening, ticking, return_exceptions=True)
    print(f"  {settings.namespace}: {len(took)} of {len(sent)} posts rewarded", flush=True)
    return took


async def _send(settings: Settings, kafka: KafkaSettings, rate: int, sent: dict[str, float]) -> None:
    sender = Sender(settings, kafka)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    vault.make_all(f"x:@{who}" for who in range(AUTHORS))
    posts = feed(2, int(rate * (WARM_S + SECONDS)), AUTHORS, settings.partitions, vault, int(time.time() * 1000))
    began, done, chunk = time.monotonic(), 0, []
    for record in posts:
        chunk.append(record._replace(time_ms=int(time.time() * 1000)))
        done += isinstance(record.event, PostObserved)
        ahead = done / rate - (time.monotonic() - began)
        if ahead > SEND_S:
            now = time.time()
            for one in chunk:
                if isinstance(one.event, PostObserved) and time.monotonic() - began > WARM_S:
                    sent[one.event.post] = now
            await sender.send(chunk)
            chunk = []
            await asyncio.sleep(max(0.0, done / rate - (time.monotonic() - began)))
    await sender.stop()


async def _listen(settings: Settings, kafka: KafkaSettings, sent: dict[str, float], took: list[float]) -> None:
    topic = settings.physical(REWARDS.name)
    consumer = AIOKafkaConsumer(topic, **kafka.client_kwargs(), auto_offset_reset="earliest", fetch_max_wait_ms=20)
    await consumer.start()
    try:
        async for record in consumer:
            if b"xinfluencer.RewardClosed.v1" in dict(record.headers).values():
                event, _ = parse(RewardClosed, record.value)
                began = sent.get(event.subject.rpartition("/")[2])
                if began is not None:
                    took.append((time.time() - began) * 1000)
    finally:
        await consumer.stop()


async def _tick(settings: Settings, kafka: KafkaSettings) -> None:
    sender = Sender(settings, kafka)
    while True:
        await sender.send(ticks(settings, int(time.time() * 1000)))
        await asyncio.sleep(TICK_S)
