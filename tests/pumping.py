"""Pumping: a real live source -> the real pump -> a recorder in place of the broker, until enough is in the log."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

from streams.backoff import Backoff
from streams.cursors import Cursors
from streams.firsts import Firsts
from streams.follow import follow
from streams.ingest import Known, Summary
from streams.intents import Intents
from streams.live import Source
from streams.policy import Policy
from streams.settings import Settings
from tests.ingest_ends import MemoryKeys, Recorder

LIMIT_S = 20.0


class Soon(Backoff):
    """No waiting between connections; what the source asked for is noted."""

    def __init__(self) -> None:
        super().__init__(random.Random(7))
        self.asked: list[float] = []

    def after(self, lived_s: float, asked_s: float = 0.0) -> float:
        self.asked.append(asked_s)
        return 0.0


async def pumped(
    source: Source, data: Path, now_ms: int, until: Callable[[Recorder], bool], keys: MemoryKeys | None = None
) -> tuple[Summary, Recorder, Soon]:
    """Follow until `until` holds of what was sent. The cursor stays in `data`, so a second call goes on after it."""
    end, soon, stop = Recorder(), Soon(), asyncio.Event()
    known = Known(Intents(), Firsts())

    async def watch() -> None:
        async with asyncio.timeout(LIMIT_S):
            while not until(end):
                await asyncio.sleep(0.005)
        stop.set()

    watching = asyncio.create_task(watch())
    try:
        summary = await follow(
            source, Settings(data=data), end, keys or MemoryKeys(), Policy.load(), lambda: now_ms, stop,
            lambda text: None, cursors=Cursors(data / "ingest", "cluster/tweets/1"), backoff=soon, known=known,
        )  # fmt: skip
    finally:
        watching.cancel()
        (failed,) = await asyncio.gather(watching, return_exceptions=True)
    assert not isinstance(failed, TimeoutError)
    return summary, end, soon
