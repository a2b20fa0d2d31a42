"""Up: one machine, everything, until Ctrl-C."""

import asyncio
import contextlib
import json
import signal
from typing import Any

from streams import places
from streams.registry_access import access
from streams.schema_registry import register_if_set
from streams.settings import Settings
from streams.show import Screen
from streams.supervisor import Deployment, deployment, require_port


def run_up(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM; CannotRun or FolderInUse says why it cannot."""
    require_port(settings)
    asyncio.run(_up(settings, Screen()))


async def _up(settings: Settings, screen: Screen) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    access(settings)  # a bad address or secret of the schema registry is refused before anything runs
    async with deployment(settings, {}, lambda text: screen.say(f"  {text}")) as running:
        live = ["follow"] if settings.follow else []
        names = ("worker", "graph", "trainer", "server", "embedder", "sink", "ticker", *live)
        await start_all(running, screen, *names)
        stopped = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(_tell_when_ready(settings, screen))
        registering = asyncio.create_task(
            asyncio.to_thread(register_if_set, settings, lambda text: screen.say(f"  {text}"))
        )
        waiting: set[asyncio.Future[Any]] = {stopped, running.failed}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        registering.cancel()
        screen.say("\nstopping")
        if running.failed.done():
            running.failed.result()


async def start_all(running: Deployment, screen: Screen, *names: str) -> None:
    """Start the broker with its progress shown, then the rest."""
    with screen.progress("fetching Kafka's jars") as advance:
        await running.start_broker(lambda done, of, what: advance(done, of))
    screen.say(f"  Kafka at {running.kafka.bootstrap}, data in {running.settings.data}")
    await running.start(*names)


async def _tell_when_ready(settings: Settings, screen: Screen) -> None:
    path = places.run(settings) / "server.json"
    path.unlink(missing_ok=True)
    while not path.exists():
        await asyncio.sleep(0.3)
    with contextlib.suppress(ValueError):
        url = json.loads(path.read_text())["url"]
        screen.say(f"  answering at {url}/v1/chat/completions; is it ready: {url}/readyz; Ctrl-C stops everything")
