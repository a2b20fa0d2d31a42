"""Memory of the workers at 100,000 authors: a feed in which each of them posts, through metadata, graph and rewards.

It measures no ratio: the promise is that a worker stays under LIMIT_MB. Resident memory is read from /proc (Linux) once
every agent is through, as now and as the most it ever was. Log time flows, so rewards close; a subject that waits for
its age costs about a kilobyte more, and how many wait is a matter of the ages, not of the authors.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.chain import broker, settings_for, workers
from bench.feed import feed
from schemas.topics import INTERACTIONS, SIGNALS, TWEETS
from streams.kafka import KafkaSettings, committed_offsets, end_offsets, ensure_topics
from streams.sender import Sender
from streams.settings import Settings
from streams.supervisor import ticks
from streams.topics import specs
from streams.vault import Vault

AUTHORS, POSTS = 100_000, 120_000
LIMIT_MB = 400
NAMES = ("worker (metadata, rewards)", "worker (graph)")
SECONDS_MAX = 400.0
TICKS_BEHIND = 3  # on each partition: there is always a newest one


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 if every worker stayed under the limit."""
    with broker() as kafka, tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder) / "memory", "memory")
        seen = asyncio.run(_fill(settings, kafka))
        with workers(settings, kafka, plain=False) as running:
            asyncio.run(_drain(settings, kafka))
            found = [(name, *_memory(process.pid)) for name, process in zip(NAMES, running, strict=True)]
    for name, now, most in found:
        print(f"  {name:<28} {now:6.0f} MB, at most {most:6.0f} MB, after {POSTS} posts of {seen} authors")
    return int(any(most >= LIMIT_MB for _, _, most in found))


async def _fill(settings: Settings, kafka: KafkaSettings) -> int:
    await ensure_topics(kafka, specs(settings))
    sender = Sender(settings, kafka)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    vault.make_all(f"x:@{who}" for who in range(AUTHORS))
    owners, chunk = set(), []
    for record in feed(3, POSTS, AUTHORS, settings.partitions, vault, int(time.time() * 1000), even=True):
        owners.add(record.key)
        chunk.append(record)
        if len(chunk) == 5_000:
            await sender.send(chunk)
            chunk = []
    await sender.send(chunk)
    await sender.stop()
    return len(owners)


async def _drain(settings: Settings, kafka: KafkaSettings) -> None:
    """Wait until both groups have committed all there is, then let the graph be measured, and wait again."""
    sender = Sender(settings, kafka)
    groups = {"worker-metadata-rewards": (TWEETS.name, SIGNALS.name), "worker-graph": (INTERACTIONS.name,)}
    deadline = time.monotonic() + SECONDS_MAX
    for _ in range(2):
        behind = 1
        while behind and time.monotonic() < deadline:
            await sender.send(ticks(settings, int(time.time() * 1000)))
            await asyncio.sleep(1.0)
            behind = 0
            for group, topics in groups.items():
                ends = await end_offsets(kafka, [settings.physical(name) for name in topics])
                done = await committed_offsets(kafka, settings.group(group))
                behind += sum(max(0, end - done.get(place, 0) - TICKS_BEHIND) for place, end in ends.items())
        if behind:
            raise TimeoutError(f"{behind} records behind after {SECONDS_MAX:.0f} s; see {settings.data}/log")
    await sender.stop()


def _memory(pid: int) -> tuple[float, float]:
    """Give resident memory (MB) now and at most."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024
