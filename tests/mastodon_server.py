"""Mastodon's side of the wire for tests: HTTP/1.1 on loopback with server-sent events, and whatever goes wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

T0_MS = 1_767_571_200_000
HOST = "social.example"


def number(at_ms: int, extra: int = 0) -> str:
    """An id as Mastodon makes it: milliseconds, then 16 bits."""
    return str((at_ms << 16) + extra)


def account(id_: str = "11", **changes: Any) -> dict[str, Any]:
    base = {
        "id": id_,
        "username": f"p{id_}",
        "acct": f"p{id_}",
        "display_name": f"Person {id_}",
        "bot": False,
        "created_at": "2017-04-15T00:00:00.000Z",
        "note": "<p>tea</p>",
        "url": f"https://{HOST}/@p{id_}",
        "followers_count": 182,
        "following_count": 20,
        "statuses_count": 1128,
        "indexable": True,
        "noindex": None,
    }
    return base | changes


def status(at_ms: int = T0_MS, **changes: Any) -> dict[str, Any]:
    """A status as Mastodon's REST API gives it; every value in it is made up."""
    base: dict[str, Any] = {
        "id": number(at_ms),
        "created_at": "2026-01-05T00:00:00.000Z",
        "in_reply_to_id": None,
        "in_reply_to_account_id": None,
        "sensitive": False,
        "spoiler_text": "",
        "visibility": "public",
        "language": "en",
        "uri": f"https://{HOST}/users/p11/statuses/{number(at_ms)}",
        "url": f"https://{HOST}/@p11/{number(at_ms)}",
        "replies_count": 1,
        "reblogs_count": 2,
        "favourites_count": 3,
        "quotes_count": 4,
        "edited_at": None,
        "content": "<p>hello</p>",
        "reblog": None,
        "account": account(),
        "media_attachments": [],
        "mentions": [],
        "tags": [],
        "emojis": [],
        "card": None,
        "poll": None,
        "quote": None,
    }
    return base | changes


def event(name: str, payload: Any) -> bytes:
    """An event as the streaming server writes it."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload, separators=(",", ":")).encode()
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


@dataclass
class MastodonServer:
    """What it streams, what its timeline holds, and what it does wrong.

    `sends`: for each connection of the stream, the pieces of bytes written, each flushed on its own; then it ends, or
    hangs where the last piece is None. `refuse` and `refuse_page`: answers (status, headers, body) to what comes next.
    `token`: what it wants to see, if anything. `timeline`: statuses, any order.
    """

    sends: list[list[bytes | None]] = field(default_factory=list)
    timeline: list[Any] = field(default_factory=list)
    refuse: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    refuse_page: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    token: str | None = None
    expires_after: int | None = None  # connections that the token is good for
    content_type: str = "text/event-stream"
    page: int = 40
    asked: list[tuple[str, dict[str, str], str | None]] = field(default_factory=list)
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target = urlsplit(head.split(" ")[1])
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            bearer = {key.lower(): value for key, value in headers.items()}.get("authorization")
            params = {key: values[0] for key, values in parse_qs(target.query).items()}
            self.asked.append((target.path, params, bearer))
            await self._answer(target.path, params, bearer, writer)
        writer.close()

    async def _answer(self, path: str, params: dict[str, str], bearer: str | None, out: asyncio.StreamWriter) -> None:
        streaming = path.startswith("/api/v1/streaming/")
        refuse = self.refuse if streaming else self.refuse_page
        if refuse:
            return await self._reply(out, *refuse.pop(0))
        if self.token is not None and bearer != f"Bearer {self.token}":
            return await self._reply(out, 401, {}, json.dumps({"error": f"The access token is invalid: {bearer}"}))
        if not streaming:
            return await self._reply(out, 200, {}, self._page_after(params))
        if self.expires_after is not None:
            self.expires_after -= 1
            if self.expires_after <= 0:
                self.token = "another"
        kind = self.content_type.encode()
        out.write(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in [b":)\n", *(self.sends.pop(0) if self.sends else [])]:
            if piece is None:
                await asyncio.sleep(60)
                return None
            out.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await out.drain()
            await asyncio.sleep(0)
        out.write(b"0\r\n\r\n")
        return await out.drain()

    def _page_after(self, params: dict[str, str]) -> str:
        after = int(params["min_id"])
        ids = sorted((int(one["id"]), index) for index, one in enumerate(self.timeline) if int(one["id"]) > after)
        found = ids[: min(self.page, int(params["limit"]))]
        return json.dumps([self.timeline[index] for _, index in reversed(found)])

    async def _reply(self, out: asyncio.StreamWriter, code: int, headers: dict[str, str], body: str) -> None:
        lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body.encode())}", "Content-Type: application/json"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        out.write("\r\n".join([*lines, "", ""]).encode() + body.encode())
        await out.drain()


@asynccontextmanager
async def mastodon_server(**given: Any) -> AsyncIterator[MastodonServer]:
    """Run one on a free port."""
    it = MastodonServer(**given)
    server = await asyncio.start_server(it.handle, "127.0.0.1", 0, limit=1 << 20)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield it
    finally:
        server.close()
