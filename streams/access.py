"""Access: settings -> a log that can be read now, whether or not anything runs.

The cluster that is configured; else the embedded broker that runs on the data folder; else one started for as long
as it is needed.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from streams import broker as embedded
from streams.kafka import KafkaSettings
from streams.settings import Settings
from streams.supervisor import deployment


class NothingThere(Exception):
    """There is no log to read."""


@asynccontextmanager
async def log_access(
    settings: Settings, tell: Callable[[str], None], make: bool = False
) -> AsyncIterator[KafkaSettings]:
    """Give the address of the log; NothingThere if the folder never held one and `make` is not set."""
    if os.environ.get("XINFLUENCER_KAFKA"):
        yield settings.kafka()
        return
    folder = settings.data / "broker"
    bootstrap = embedded.running(folder)
    if bootstrap is not None:
        yield KafkaSettings(bootstrap=bootstrap)
        return
    if not (folder / "data").exists() and not make:
        raise NothingThere(f"there is no log in {settings.data}: run `xinfluencer up` or `demo` first, or give --data")
    tell("nothing runs here; starting the broker on its folder for this command")
    async with deployment(settings, {}, tell) as running:
        await running.start_broker(lambda done, of, what: None)
        yield running.kafka
