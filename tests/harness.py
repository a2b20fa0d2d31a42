"""Harness: real worker processes on a real broker, killed and judged; the oracle is streams.verify.

A run is: write a feed, kill things, wait until the agents are through, let time pass, wait again, stop cleanly, then
read the whole log and fold it again. The verdict also holds the workers' last snapshots against the clean rebuild.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from schemas import envelope
from schemas.envelope import Record, Refused
from schemas.topics import TOPICS, partitions
from streams.adopt import begun
from streams.fold import Fold, Sent, Stage
from streams.kafka import KafkaSettings, TopicSpec, ensure_topics, topic_ids
from streams.kafka import cluster_id as cluster_id_of
from streams.object_snapshots import keeper
from streams.reader import reader
from streams.sender import Sender
from streams.settings import Settings
from streams.settle import settled
from streams.snapshots import Bound, state_hash
from streams.supervisor import ticks
from streams.topics import specs
from streams.topology import stages
from streams.vault import Vault
from streams.verify import Verdict, verify

ROOT = Path(__file__).resolve().parent.parent
AGES_MS = (1_000,)
BACK_S_MAX = 60.0  # a worker that owns nothing after so long never will


@dataclass
class Workers:
    """Worker processes of one deployment, started again whenever they end (unless told otherwise)."""

    settings: Settings
    kafka: KafkaSettings
    command: tuple[str, ...] = (sys.executable, "-m", "streams.cli", "worker")
    env: dict[str, str] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    instance: str = "0"
    backs_s: list[float] = field(default_factory=list)  # how long it took to be at work again

    def start(self) -> None:
        """Start the worker."""
        log = open(self.settings.data / "worker.log", "ab")  # noqa: SIM115
        env = {**os.environ, **self.settings.to_env(), "XINFLUENCER_KAFKA": self.kafka.bootstrap, **self.env}
        more = () if self.instance == "0" else ("--instance", self.instance)
        self.process = subprocess.Popen((*self.command, *more), cwd=ROOT, env=env, stdout=log, stderr=log)
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

    def status(self) -> dict[str, Any]:
        """Read what the worker that runs now says of itself; empty until it owns its partitions."""
        try:
            told = json.loads((self.settings.data / "run" / f"worker-{self.instance}.status.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return told if self.process is not None and told["pid"] == self.process.pid else {}

    async def back(self) -> float:
        """Wait until a worker owns its partitions, starting it again if it ends; give the seconds that it took."""
        began = time.monotonic()
        while not self.status():
            assert time.monotonic() - began < BACK_S_MAX, self.log()[-3000:]
            self.keep()
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    def log(self) -> str:
        """Read what the workers said."""
        return (self.settings.data / "worker.log").read_text(errors="replace")


def vault_of(settings: Settings) -> Vault:
    """Open the deployment's keys."""
    return Vault(settings.data / "vault" / "keys.sqlite")


def now_ms() -> int:
    """Read this machine's clock."""
    return int(time.time() * 1000)


def settings_for(data: Path, namespace: str, **more: object) -> Settings:
    """Make settings of a test's own: a namespace on the shared broker and a folder."""
    data.mkdir(parents=True, exist_ok=True)
    own = {"data": data, "namespace": namespace, "ages_ms": AGES_MS, "batch_pairs_min": 1, "batch_age_ms": 1_000}
    return Settings.model_validate({**own, **more})


def for_ever(settings: Settings) -> list[TopicSpec]:
    """Render topics that keep all, for a life told from another year: a broker deletes by the time in the records."""
    return [replace(one, configs={**one.configs, "retention.ms": "-1"}) for one in specs(settings)]


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


async def write_stubbornly(settings: Settings, kafka: KafkaSettings, records: list[Sent], pause_s: float) -> None:
    """Write records whatever happens to the broker: a chunk that was not acknowledged is written again."""
    sender = Sender(settings, kafka)
    for start in range(0, len(records), 100):
        while True:
            try:
                await asyncio.wait_for(sender.send(records[start : start + 100]), 40)
                break
            except (KafkaError, OSError, TimeoutError):
                await _closed(sender)
                sender = Sender(settings, kafka)
                await asyncio.sleep(0.5)
        await asyncio.sleep(pause_s)
    await _closed(sender)


async def _closed(sender: Sender) -> None:
    """Let go of a producer, be there a broker or not."""
    try:
        await asyncio.wait_for(sender.stop(), 5)
    except (KafkaError, OSError, TimeoutError):
        return


async def finish(settings: Settings, kafka: KafkaSettings, workers: Workers, seconds_max: float = 240.0) -> None:
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
            await sender.send(ticks(settings, now_ms()))
        await settled(settings, kafka, seconds_max)
        await sender.stop()
    finally:
        keeper.cancel()


async def judge(settings: Settings, kafka: KafkaSettings, table: Sequence[Stage] = ()) -> Verdict:
    """Read the whole log, fold it again, and hold log and snapshots against that; `table`: some stages only."""
    async with reader(settings, kafka) as log_reader:
        log = await log_reader.everything(*(topic.name for topic in TOPICS))
    vault = vault_of(settings)
    table = table or stages(settings.tuning)
    snapshots = keeper(settings.snapshots, settings.data / "snapshots")
    verdict = verify(log, table, settings.partitions, vault, await begun(settings, kafka, snapshots, table, vault))
    ids = await topic_ids(kafka, [settings.physical(stage.reads.name) for stage in table])
    cluster = await cluster_id_of(kafka)
    for stage in table:
        physical = settings.physical(stage.reads.name)
        for partition in range(partitions(stage.reads, settings.partitions)):
            fold = Fold(stage, partition, settings.partitions, vault)
            name = f"{cluster}/{physical}/{ids[physical]}"
            bound = Bound(stage.name, stage.version, partition, name, settings.partitions)
            memory, _ = snapshots.load(fold, bound)
            if memory is not None and state_hash(memory) != verdict.states.get(
                (stage.name, partition), state_hash(memory)
            ):
                verdict.faults.append(f"({stage.name}, {partition}): the snapshot differs from a clean rebuild")
    return verdict


async def said(settings: Settings, kafka: KafkaSettings, *topics: str) -> list[Record]:
    """Read what can be read of topics."""
    found = []
    async with reader(settings, kafka) as log_reader:
        for (topic, partition), raws in (await log_reader.everything(*topics)).items():
            for raw in raws:
                try:
                    found.append(envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value))
                except Refused:
                    continue
    return found


def attacked_run(
    settings: Settings, kafka: KafkaSettings, workers: Workers, attack: Callable[[], Awaitable[object]]
) -> Verdict:
    """Start a worker, attack it, let it come through, stop it cleanly, judge."""

    async def run() -> Verdict:
        await ensure_topics(kafka, specs(settings))
        workers.start()
        await attack()
        # Who is started from here on dies at no point: it need only come through.
        workers.env = {name: value for name, value in workers.env.items() if name != "XINFLUENCER_CRASH"}
        workers.keep()
        await finish(settings, kafka, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(settings, kafka)

    with ended(workers):
        return asyncio.run(run())


def killed_run(
    settings: Settings, kafka: KafkaSettings, records: Iterable[Sent], kills: int, seed: int, workers: Workers
) -> Verdict:
    """Write a feed while the worker is killed `kills` times at random gaps, half of them at work for certain."""
    rng = random.Random(seed)
    records = list(records)

    async def killing() -> None:
        for number in range(kills):
            if number % 2:
                workers.backs_s.append(await workers.back())
            await asyncio.sleep(rng.uniform(0.1, 1.6))
            workers.keep()
            await asyncio.to_thread(workers.signal, signal.SIGKILL)
            workers.keep()

    async def attack() -> None:
        # The feed lasts as long as the kills: each finds something in flight.
        pause_s = 1.6 * kills / max(1, len(records) / 100)
        await asyncio.gather(write_stubbornly(settings, kafka, records, pause_s), killing())

    return attacked_run(settings, kafka, workers, attack)


@contextmanager
def ended(workers: Workers) -> Iterator[None]:
    """Leave no process behind."""
    try:
        yield
    finally:
        if workers.process is not None and workers.process.poll() is None:
            workers.process.kill()
            workers.process.wait(10)
