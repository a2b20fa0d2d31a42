"""X's stream for tests: a real source connects once to the server of tests/x_server.py; what it gave, how it ended."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from streams.live import Arrival, Gap
from streams.settings import Settings
from streams.x_stream import XStream, filtered
from tests.x_server import TOKEN, XServer, serving

ENV = {"XINFLUENCER_X_TOKEN": TOKEN}
KEEP_ALIVE_S = 0.5  # so that the source gives up after 1 s; the server's own is 0.05


def stream(server: XServer, env: dict[str, str] | None = None, backfill: int = 0, **more: Any) -> XStream:
    settings = Settings(x_url=server.url, x_backfill_minutes=backfill)
    return filtered(settings, env or ENV, keep_alive_s=KEEP_ALIVE_S, **more)


async def take(
    source: XStream, cursor: str | None = None, until: Callable[[list[Any]], bool] = lambda got: False
) -> tuple[list[Arrival | Gap], Exception | None]:
    """What one connection gives, until `until` says that it is enough, and how it ended."""
    got: list[Arrival | Gap] = []
    try:
        async with aclosing(source.connect(cursor)) as arrivals:  # type: ignore[type-var]
            async for one in arrivals:
                got.append(one)
                if until(got):
                    return got, None
    except Exception as error:  # noqa: BLE001 - how it ended is what is asked
        return got, error
    return got, None


def data(got: list[Arrival | Gap]) -> list[bytes]:
    return [one.data for one in got if isinstance(one, Arrival) and one.data is not None]


def met(*behaviours: Any, cursor: str | None = None, **more: Any) -> tuple[list[Arrival | Gap], Exception | None]:
    """Connect once to a server that does this."""

    async def run() -> tuple[list[Arrival | Gap], Exception | None]:
        async with serving(script=list(behaviours)) as server:
            return await take(stream(server, **more), cursor)

    return asyncio.run(run())
