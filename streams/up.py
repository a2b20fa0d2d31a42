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

ENDING = (signal.SIGINT, signal.SIGTERM)


def run_up(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM; CannotRun or FolderInUse says why it cannot."""
    require_port(settings)
    asyncio.run(_up(settings, Screen()))


async def _up(settings: Settings, screen: Screen) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def asked() -> None:
        stop.set()
        # Python waits for a thread that fetches jars: a second signal ends this process, and our children with it.
        for number in ENDING:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in ENDING:
        loop.add_signal_handler(number, asked)
    access(settings)  # a bad address or secret of the schema registry is refused before anything runs
    async with deployment(settings, {}, lambda text: screen.say(f"  {text}")) as running:
        live = ["follow"] if settings.follow else []
        names = ("worker", "graph", "trainer", "server", "embedder", "sink", "ticker", *live)
        over: set[asyncio.Future[Any]] = {asyncio.create_task(stop.wait()), running.failed}
        starting = asyncio.create_task(start_all(running, screen, *names))
        beside = [starting]
        await asyncio.wait({*over, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            registering = asyncio.to_thread(register_if_set, settings, lambda text: screen.say(f"  {text}"))
            beside = [asyncio.create_task(one) for one in (_tell_when_ready(settings, screen), registering)]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        for task in beside:
            task.cancel()
        await asyncio.wait({starting})  # what it shows is taken down before anything else is said
        screen.say("\nstopping; a second Ctrl-C ends it at once")
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
