"""One hop in and out: our worker's intake stage against a plain Faust agent with JSON Records, same broker, same run.

Both read `feedback` events with the same fields and write one event for each to another topic, at least once, with
acknowledged sends. Ours also checks the schema, dedupes, names, carries CloudEvents headers and origins, snapshots
with fsync and commits. The rate is measured from outside, on the output topic: records after the first tenth until
the last, so that neither pays for its start. Both get the same number of partitions and one process.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rows import Row, row
from schemas.events import FeedbackGiven
from schemas.topics import FEEDBACK, SIGNALS
from streams import broker as embedded
from streams.kafka import KafkaSettings, end_offsets, ensure_topics
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.topics import specs
from streams.vault import Vault

ROOT = Path(__file__).resolve().parent.parent
EVENTS_OURS, EVENTS_PEER = 120_000, 12_000
RUNS = 3
SECONDS_MAX = 180.0


def run() -> list[Row]:
    """Measure RUNS runs of each, in turns."""
    settings = Settings.from_env()
    with tempfile.TemporaryDirectory() as folder:
        prepared = embedded.prepare(Path(folder) / "broker", settings.cache)
        process = embedded.start(prepared)
        try:
            embedded.wait_ready(prepared, process)
            kafka = KafkaSettings(bootstrap=prepared.bootstrap)
            ours, peer = [], []
            for turn in range(RUNS):
                ours.append(_measure(kafka, Path(folder) / f"ours-{turn}", f"ours-{turn}", EVENTS_OURS, False))
                peer.append(_measure(kafka, Path(folder) / f"peer-{turn}", f"peer-{turn}", EVENTS_PEER, True))
        finally:
            embedded.stop(process)
    return [
        row(
            "one hop, feedback in and signals out, against a plain Faust agent with JSON Records",
            statistics.median(ours),
            statistics.median(peer),
            "faust-streaming agent, Record(serializer='json'), gathered sends",
            "events/s",
            n=RUNS,
            command="python -m bench hop",
            packages=("faust-streaming", "aiokafka", "pydantic"),
        )
    ]


def _measure(kafka: KafkaSettings, data: Path, namespace: str, events: int, plain: bool) -> float:
    data.mkdir()
    settings = Settings.model_validate({"data": data, "namespace": namespace})
    asyncio.run(_fill(settings, kafka, events))
    command = [str(Path(__file__).with_name("plain_hop.py"))] if plain else ["-m", "streams.cli", "worker", "intake"]
    env = {**os.environ, **settings.to_env(), "XINFLUENCER_KAFKA": kafka.bootstrap, "PYTHONPATH": str(ROOT)}
    with open(data / "log", "wb") as log:
        worker = subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, stdout=log, stderr=log)
    try:
        return asyncio.run(_rate(settings, kafka, events))
    finally:
        worker.kill()
        worker.wait()


async def _fill(settings: Settings, kafka: KafkaSettings, events: int) -> None:
    await ensure_topics(kafka, specs(settings))
    sender = Sender(settings, kafka)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    now = int(time.time() * 1000)
    for start in range(0, events, 5_000):
        given = (
            FeedbackGiven(feedback=f"f:{i}", subject=f"q:{i % 997}/a:{i % 7}", rater=f"r:{i % 100}", kind="thumb")
            for i in range(start, min(events, start + 5_000))
        )
        await sender.send(outside(event, "/people", now, settings.partitions, vault) for event in given)
    await sender.stop()


async def _rate(settings: Settings, kafka: KafkaSettings, events: int) -> float:
    """Give events a second on the output topic, from its first tenth to its last record."""
    assert FEEDBACK.wide
    topic = settings.physical(SIGNALS.name)
    deadline = time.monotonic() + SECONDS_MAX
    first: tuple[float, int] | None = None
    while time.monotonic() < deadline:
        done = sum((await end_offsets(kafka, [topic])).values())
        now = time.monotonic()
        if first is None and done >= events // 10:
            first = (now, done)
        if done >= events:
            assert first is not None
            return (done - first[1]) / (now - first[0])
        await asyncio.sleep(0.02)
    raise TimeoutError(f"{done} of {events} after {SECONDS_MAX:.0f} s; see {settings.data}/log")
