"""Jetstream's side of the wire for tests: a real web socket server on loopback that misbehaves when told to."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
OTHER = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
T0_US = 1_767_571_200_000_000


def message(at_us: int, collection: str = "app.bsky.feed.post", **changes: Any) -> dict[str, Any]:
    """A commit as Jetstream writes it; every value in it is made up."""
    commit = {
        "rev": "3mptbypcq372f",
        "operation": "create",
        "collection": collection,
        "rkey": f"k{at_us}",
        "record": {"$type": collection, "createdAt": "2026-01-05T00:00:00.000Z", "text": f"post at {at_us}"},
        "cid": "bafyreiapzyf65cmq55jklpnrihiygze2jmmdqvvkwqeiomd72pbp2iazuu",
    }
    return {"did": DID, "time_us": at_us, "kind": "commit", "commit": {**commit, **changes}}


def account(active: Any, status: Any = None, did: str = DID, **changes: Any) -> dict[str, Any]:
    inner = {"active": active, "did": did, "seq": 5, "time": "2026-01-05T00:00:00.000Z", **changes}
    return {"did": DID, "time_us": T0_US, "kind": "account", "account": inner | ({"status": status} if status else {})}


@dataclass
class JetstreamServer:
    """What it holds, what it does wrong, and what was asked of it. A held item is a message, or bytes sent as they are.

    `refuse`: HTTP answers (status, headers, body) to the next connections. `cut_after`: for the next connections, after
    how many messages the TCP connection is cut. `close_with`: how it closes after what it holds; None: the live tail.
    """

    held: list[Any] = field(default_factory=list)
    held_from_us: int = 0
    now_us: int = T0_US + 3_600_000_000
    refuse: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    close_with: tuple[int, str] | None = (1001, "done")
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    url: str = ""
    live: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def gate(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer the handshake."""
        if self.refuse:
            status, headers, body = self.refuse.pop(0)
            response = connection.respond(HTTPStatus(status), body)
            for name, value in headers.items():
                response.headers[name] = value
            return response
        return None

    async def serve(self, connection: ServerConnection) -> None:
        """Replay from the cursor as v1 does: clamped in silence to what is held, or to now; then the live tail."""
        assert connection.request is not None
        asked = parse_qs(urlsplit(connection.request.path).query)
        self.asked.append(asked)
        cursor = int(asked["cursor"][0]) if "cursor" in asked else self.now_us
        cut = self.cut_after.pop(0) if self.cut_after else None
        sent = 0
        try:
            for one in [*self.held, None]:
                if cut is not None and sent >= cut:
                    connection.transport.abort()
                    return
                if one is None or cursor > self.now_us:
                    break
                at_us = one["time_us"] if isinstance(one, dict) else cursor
                if at_us >= max(cursor, self.held_from_us) and cursor < self.now_us:
                    await self._send(connection, one)
                    sent += 1
            if self.close_with is not None:
                await connection.close(*self.close_with)
                return
            closed = asyncio.create_task(connection.wait_closed())
            while True:
                newest = asyncio.create_task(self.live.get())
                await asyncio.wait({newest, closed}, return_when=asyncio.FIRST_COMPLETED)
                if closed.done():
                    if not newest.cancel():  # it came for whoever connects next
                        self.live.put_nowait(newest.result())
                    return
                await self._send(connection, newest.result())
        except ConnectionClosed:
            return

    async def _send(self, connection: ServerConnection, one: Any) -> None:
        text = one if isinstance(one, bytes) else json.dumps(one, separators=(",", ":")).encode()
        await connection.send(text, text=True)


@asynccontextmanager
async def jetstream_server(**given: Any) -> AsyncIterator[JetstreamServer]:
    """Run one on a free port."""
    it = JetstreamServer(**given)
    async with serve(it.serve, "127.0.0.1", 0, process_request=it.gate, compression=None) as server:
        it.url = f"ws://127.0.0.1:{_port(server)}/subscribe"
        yield it


def _port(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])
