"""The chain, from a post in `tweets` to its reward, with metadata, graph and rewards; against the same in plain Faust.

One worker process and one for the graph, as `up` runs them, with the broker on the same cores. Posts wait in the log
when the clock starts, so what is measured is what the chain sustains: rewards a second on the topic `rewards`, from a
tenth of the way to the end of the window. A post's reward closes at the first tick after it came of age (1 ms here).
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from bench.feed import feed
from bench.rows import Row, row
from schemas.topics import REWARDS
from streams import broker as embedded
from streams.kafka import KafkaSettings, end_offsets, ensure_topics
from streams.sender import Sender
from streams.settings import Settings
from streams.supervisor import ticks
from streams.topics import specs
from streams.vault import Vault

ROOT = Path(__file__).resolve().parent.parent
WINDOW_S = 60.0
POSTS_OURS, POSTS_PEER = 330_000, 30_000  # more than the window takes
AUTHORS = 20_000
CHAIN = ("metadata", "rewards")
TICK_S = 0.25
START_S_MAX = 90.0


def run() -> list[Row]:
    """Measure one window of each on the same broker."""
    with broker() as kafka, tempfile.TemporaryDirectory() as folder:
        ours = _measure(kafka, Path(folder) / "ours", POSTS_OURS, plain=False)
        peer = _measure(kafka, Path(folder) / "peer", POSTS_PEER, plain=True)
    return [
        row(
            f"posts through metadata, graph and rewards, sustained for {WINDOW_S:.0f} s",
            ours,
            peer,
            "faust-streaming agents with the same steps, gathered sends",
            "posts/s",
            n=1,
            command="python -m bench chain",
            packages=("faust-streaming", "aiokafka", "pydantic", "networkx"),
        )
    ]


@contextmanager
def broker() -> Iterator[KafkaSettings]:
    """Run an embedded broker in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = embedded.prepare(Path(folder), Settings.from_env().cache)
        process = embedded.start(prepared)
        try:
            embedded.wait_ready(prepared, process)
            yield KafkaSettings(bootstrap=prepared.bootstrap)
        finally:
            embedded.stop(process)


def settings_for(data: Path, namespace: str) -> Settings:
    """Settings of a run of its own: rewards close at once, and only once."""
    data.mkdir(parents=True)
    return Settings.model_validate({"data": data, "namespace": namespace, "ages_ms": (1,)})


@contextmanager
def workers(settings: Settings, kafka: KafkaSettings, plain: bool) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the chain's processes: ours as `up` does, or the peer's one."""
    env = {**os.environ, **settings.to_env(), "XINFLUENCER_KAFKA": kafka.bootstrap, "PYTHONPATH": str(ROOT)}
    cli = ["-m", "streams.cli", "worker"]
    commands = [[*cli, *CHAIN], [*cli, "graph", "--instance", "graph"]]
    if plain:
        program = str(Path(__file__).with_name("plain_chain.py"))
        commands = [[program, *CHAIN], [program, "graph"]]
    with open(settings.data / "log", "ab") as log:
        running = [
            subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, stdout=log, stderr=log)
            for command in commands
        ]
    try:
        yield running
    finally:
        for one in running:
            one.kill()
            one.wait()


def _measure(kafka: KafkaSettings, data: Path, posts: int, plain: bool) -> float:
    settings = settings_for(data, data.name)
    asyncio.run(fill(settings, kafka, posts))
    with workers(settings, kafka, plain):
        return asyncio.run(_window(settings, kafka))


async def fill(settings: Settings, kafka: KafkaSettings, posts: int) -> None:
    """Write the posts."""
    await ensure_topics(kafka, specs(settings))
    sender = Sender(settings, kafka)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    vault.make_all(f"x:@{who}" for who in range(AUTHORS))
    chunk = []
    for record in feed(1, posts, AUTHORS, settings.partitions, vault, int(time.time() * 1000)):
        chunk.append(record)
        if len(chunk) == 5_000:
            await sender.send(chunk)
            chunk = []
    await sender.send(chunk)
    await sender.stop()


async def _window(settings: Settings, kafka: KafkaSettings) -> float:
    """Give rewards a second over the window, which begins when the first are there."""
    topic = settings.physical(REWARDS.name)
    sender = Sender(settings, kafka)
    began = time.monotonic()
    seen: list[tuple[float, int]] = []
    while not seen or time.monotonic() - seen[0][0] < WINDOW_S:
        await sender.send(ticks(settings, int(time.time() * 1000)))
        done = sum((await end_offsets(kafka, [topic])).values())
        if done:
            seen.append((time.monotonic(), done))
        elif time.monotonic() - began > START_S_MAX:
            raise TimeoutError(f"no reward after {START_S_MAX:.0f} s; see {settings.data}/log")
        await asyncio.sleep(TICK_S)
    await sender.stop()
    quarters = [seen[round(i * (len(seen) - 1) / 4)] for i in range(5)]
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(quarters)]
    print(f"  {settings.namespace}: {', '.join(f'{rate:.0f}' for rate in rates)} posts/s in each quarter", flush=True)
    return statistics.fmean(rates)
