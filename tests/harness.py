"""Harness: real worker processes on a real broker, killed and judged; the oracle is streams.verify.

A run is: write a feed, kill things, wait until the agents are through, let time pass, wait again, stop cleanly, then
read the whole log and fold it again. The verdict also holds the workers' last snapshots against the clean rebuild.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from schemas.topics import TOPICS, partitions
from streams.fold import Fold, Sent
from streams.kafka import KafkaSettings, ensure_topics, topic_ids
from streams.kafka import cluster_id as cluster_id_of
from streams.reader import reader
from streams.sender import Sender
from streams.settings import Settings
from streams.settle import settled
from streams.snapshots import Bound, SnapshotFolder, state_hash
from streams.supervisor import ticks
from streams.topics import specs
from streams.topology import stages
from streams.vault import Vault
from streams.verify import Verdict, verify

ROOT = Path(__file__).resolve().parent.parent
AGES_MS = (1_000,)


@dataclass
class Workers:
    """Worker processes of one deployment, started again whenever they end (unless told otherwise)."""

    settings: Settings
    kafka: KafkaSettings
    command: tuple[str, ...] = (sys.executable, "-m", "streams.cli", "worker")
    env: dict[str, str] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the worker."""
        log = open(self.settings.data / "worker.log", "ab")  # noqa: SIM115
        env = {**os.environ, **self.settings.to_env(), "XINFLUENCER_KAFKA": self.kafka.bootstrap, **self.env}
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=env, stdout=log, stderr=log)
        log.close()

    def keep(self) -> None:
        """Start it again if it ended."""
        if self.process is not None and self.process.poll() is not None:
            self.ended.append(self.process.returncode)
            self.start()

    def signal(self, number: int) -> None:
        """Send a signal to the worker, and wait for its end if it is a killing one."""
        assert self.process is not None
        self.process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait(30)

    def log(self) -> str:
        """Read what the workers said."""
        return (self.settings.data / "worker.log").read_text(errors="replace")


def settings_for(data: Path, namespace: str, **more: object) -> Settings:
    """Make settings of a test's own: a namespace on the shared broker and a folder."""
    data.mkdir(parents=True, exist_ok=True)
    own = {"data": data, "namespace": namespace, "ages_ms": AGES_MS, "batch_pairs_min": 1, "batch_age_ms": 1_000}
    return Settings.model_validate({**own, **more})


async def write(settings: Settings, kafka: KafkaSettings, records: Iterable[Sent], pause_s: float = 0.0) -> None:
    """Write records in small chunks."""
    await ensure_topics(kafka, specs(settings))
    sender = Sender(settings, kafka)
    chunk: list[Sent] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == 250:
            await sender.send(chunk)
            chunk = []
            await asyncio.sleep(pause_s)
    await sender.send(chunk)
    await sender.stop()


async def finish(settings: Settings, kafka: KafkaSettings, workers: Workers, seconds_max: float = 90.0) -> None:
    """Wait until the agents are through, let everything come of age, wait again; restarts workers meanwhile."""

    async def keep() -> None:
        while True:
            workers.keep()
            await asyncio.sleep(0.1)

    keeper = asyncio.create_task(keep())
    try:
        sender = Sender(settings, kafka)
        for _ in range(2):
            await settled(settings, kafka, seconds_max)
            await asyncio.sleep(AGES_MS[0] / 1000 + 0.2)
            await sender.send(ticks(settings, int(time.time() * 1000)))
        await settled(settings, kafka, seconds_max)
        await sender.stop()
    finally:
        keeper.cancel()


async def judge(settings: Settings, kafka: KafkaSettings) -> Verdict:
    """Read the whole log, fold it again, and hold log and snapshots against that."""
    async with reader(settings, kafka) as log_reader:
        log = await log_reader.everything(*(topic.name for topic in TOPICS))
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    table = stages(settings.tuning)
    verdict = verify(log, table, settings.partitions, vault)
    ids = await topic_ids(kafka, [settings.physical(stage.reads.name) for stage in table])
    cluster = await cluster_id_of(kafka)
    snapshots = SnapshotFolder(settings.data / "snapshots")
    for stage in table:
        physical = settings.physical(stage.reads.name)
        for partition in range(partitions(stage.reads, settings.partitions)):
            fold = Fold(stage, partition, settings.partitions, vault)
            name = f"{cluster}/{physical}/{ids[physical]}"
            bound = Bound(stage.name, stage.version, partition, name, settings.partitions)
            memory, _ = snapshots.load(fold, bound)
            if memory is not None and state_hash(memory) != verdict.states[stage.name, partition]:
                verdict.faults.append(f"({stage.name}, {partition}): the snapshot differs from a clean rebuild")
    return verdict


def killed_run(
    settings: Settings, kafka: KafkaSettings, records: Iterable[Sent], kills: int, seed: int, workers: Workers
) -> Verdict:
    """Write a feed while the worker is killed `kills` times at random gaps; give the verdict."""
    rng = random.Random(seed)

    async def killing() -> None:
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0.3, 3.0))
            workers.keep()
            await asyncio.to_thread(workers.signal, signal.SIGKILL)
            workers.keep()

    async def run() -> Verdict:
        await ensure_topics(kafka, specs(settings))
        workers.start()
        await asyncio.gather(write(settings, kafka, records, 0.5), killing())
        await finish(settings, kafka, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(settings, kafka)

    with ended(workers):
        return asyncio.run(run())


@contextmanager
def ended(workers: Workers) -> Iterator[None]:
    """Leave no process behind."""
    try:
        yield
    finally:
        if workers.process is not None and workers.process.poll() is None:
            workers.process.kill()
            workers.process.wait(10)
