"""A server that speaks X's protocol, on loopback: what each connection meets is a list of faults, in order.

The feed is a log of lines with the time each was made. A connection to a stream runs the next behaviour of `script`,
or, when that is empty, `everything`: the backfill or recovery it asked for, then what is made from now on. Chunks are
written as raw HTTP/1.1, so that a line can be cut at any byte.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

SNOWFLAKE_MS = 1_288_834_974_657
TOKEN = "AAAAAAAAAAAAAAAAAAAAAsecret%2Bof%3Dthe-tests.1"
KEEP_ALIVE_S = 0.05  # of the tests' server; X's is 20
REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 429: "Too Many"}


def now_ms() -> int:
    return int(time.time() * 1000)


def line(number: int, made_ms: int | None = None, **changes: Any) -> bytes:
    """A line of the filtered stream; its id says when it was made, and `number` tells posts of one moment apart."""
    made_ms = now_ms() if made_ms is None else made_ms
    post_id = str(((made_ms - SNOWFLAKE_MS) << 22) | (number & 0x3FFFFF))
    author = str(7000 + number % 50)
    post: dict[str, Any] = {
        "id": post_id,
        "text": f"post {number}",
        "author_id": author,
        "conversation_id": post_id,
        "edit_history_tweet_ids": [post_id],
        "lang": "en",
        "public_metrics": {"retweet_count": 0, "reply_count": 0, "like_count": 0, "quote_count": 0},
    }
    post = {key: value for key, value in {**post, **changes}.items() if value is not None}
    user = {"id": author, "name": f"Person {author}", "username": f"p{author}"}
    return json.dumps(
        {"data": post, "includes": {"users": [user]}, "matching_rules": [{"id": "1", "tag": "t"}]}
    ).encode()


class Gone(Exception):
    """The other side left."""


@dataclass(eq=False)
class Wire:
    """One connection of a client, and the ways to treat it."""

    server: "XServer"
    path: str
    params: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    opened_ms: int = field(default_factory=now_ms)

    async def answer(self, code: int, body: Any = None, **headers: str) -> None:
        """A whole answer that is no stream."""
        data = json.dumps(body).encode() if body is not None else b""
        head = {"content-type": "application/json", "content-length": str(len(data)), "connection": "close", **headers}
        await self._raw(self._head(code, head) + data)

    async def open(self) -> None:
        await self._raw(self._head(200, {"content-type": "application/json", "transfer-encoding": "chunked"}))

    async def send(self, data: bytes) -> None:
        """One HTTP chunk, whatever is in it."""
        await self._raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def lines(self, *lines: bytes) -> None:
        await self.send(b"".join(one + b"\r\n" for one in lines))

    async def keep_alive(self) -> None:
        await self.send(b"\r\n")

    async def end(self) -> None:
        """The end as HTTP has it."""
        await self._raw(b"0\r\n\r\n")

    def cut(self) -> None:
        """Drop the connection where it is."""
        self.writer.transport.abort()

    async def live(self, after: int = 0) -> None:
        """Send what the feed holds from here on, and keep-alives, until the client leaves."""
        sent = after
        while True:
            new = self.server.feed[sent:]
            if new:
                await self.lines(*(one for _, one in new))
                sent += len(new)
                continue
            try:
                await asyncio.wait_for(self.server.grown(sent), self.server.keep_alive_s)
            except TimeoutError:
                await self.keep_alive()

    async def _raw(self, data: bytes) -> None:
        if self.reader.at_eof():
            raise Gone
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            raise Gone from None

    @staticmethod
    def _head(code: int, headers: dict[str, str]) -> bytes:
        rows = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {code} {REASONS.get(code, 'Other')}\r\n{rows}\r\n".encode()


Behaviour = Callable[[Wire], Awaitable[None]]


async def everything(wire: Wire) -> None:
    """What X does on a good day: backfill or recovery as asked for, then live."""
    await wire.open()
    feed = wire.server.feed
    if "start_time" in wire.params:
        start, end = (_ms(wire.params[name]) for name in ("start_time", "end_time"))
        await wire.lines(*(one for made, one in feed if start <= made < end))
        await wire.end()
        return
    since = len(feed)
    minutes = int(wire.params.get("backfill_minutes", "0"))
    if minutes:
        back_ms = wire.opened_ms - minutes * 60_000
        since = next((at for at, (made, _) in enumerate(feed) if made >= back_ms), len(feed))
    await wire.live(since)


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def status(code: int, body: Any = None, **headers: str) -> Behaviour:
    async def behave(wire: Wire) -> None:
        await wire.answer(code, body, **headers)

    return behave


def sends(*data: bytes, then: str = "cut", gap_s: float = 0.0) -> Behaviour:
    """Chunks of bytes as they are; then "cut", "end", "hang" (silence) or "live"."""

    async def behave(wire: Wire) -> None:
        await wire.open()
        since = len(wire.server.feed)
        for one in data:
            await wire.send(one)
            await asyncio.sleep(gap_s)
        if then == "cut":
            await asyncio.sleep(0.02)  # so that what was sent arrives before the reset
            wire.cut()
        elif then == "end":
            await wire.end()
        elif then == "hang":
            await wire.server.closing.wait()
        else:
            await wire.live(since)

    return behave


@dataclass
class XServer:
    """The feed, the rules, the token that counts, and who asked what."""

    url: str = ""
    token: str = TOKEN
    keep_alive_s: float = KEEP_ALIVE_S
    script: list[Behaviour] = field(default_factory=list)
    always: dict[str, Behaviour] = field(default_factory=dict)  # by path, before the script
    feed: list[tuple[int, bytes]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    rules: dict[str, dict[str, str]] = field(default_factory=dict)  # by id
    bad_rules: tuple[str, ...] = ()
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    wires: set[Wire] = field(default_factory=set)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    def post(self, number: int, made_ms: int | None = None, **changes: Any) -> bytes:
        """Make a post now; it goes to whoever is connected."""
        made_ms = now_ms() if made_ms is None else made_ms
        one = line(number, made_ms, **changes)
        self.put(one, made_ms)
        return one

    def put(self, one: bytes, made_ms: int) -> None:
        self.feed.append((made_ms, one))
        self._grown.set()
        self._grown = asyncio.Event()

    async def grown(self, size: int) -> None:
        while len(self.feed) <= size:
            await self._grown.wait()

    def drop_all(self) -> None:
        for wire in list(self.wires):
            wire.cut()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        # A task that ends cancelled would be told as an error by asyncio's streams.
        with contextlib.suppress(Gone, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._handle(reader, writer)
        self.tasks.discard(task)
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *rows = head.splitlines()
        method, target, _ = request.split(" ")
        headers = {name.lower(): value for name, _, value in (row.partition(": ") for row in rows)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        parts = urlsplit(target)
        wire = Wire(self, parts.path, dict(parse_qsl(parts.query)), reader, writer)
        self.asked.append((parts.path, wire.params))
        if headers.get("authorization") != f"Bearer {self.token}":
            await wire.answer(401, {"title": "Unauthorized", "type": "about:blank", "status": 401})
        elif parts.path.endswith("/rules"):
            await self._rules(wire, method, body)
        else:
            behave = self.always.get(parts.path) or (self.script.pop(0) if self.script else everything)
            self.wires.add(wire)
            try:
                await behave(wire)
            finally:
                self.wires.discard(wire)

    async def _rules(self, wire: Wire, method: str, body: bytes) -> None:
        if method == "GET":
            rows = [{"id": number, **rule} for number, rule in self.rules.items()]
            start = int(wire.params.get("pagination_token", "0"))
            size = int(wire.params.get("max_results", "1000"))
            more = {"next_token": str(start + size)} if start + size < len(rows) else {}
            await wire.answer(200, {"data": rows[start : start + size], "meta": {"result_count": len(rows), **more}})
            return
        asked = json.loads(body)
        dry = wire.params.get("dry_run") == "true"
        if "delete" in asked:
            for number in asked["delete"]["ids"]:
                if not dry:
                    self.rules.pop(number, None)
            await wire.answer(200, {"meta": {"summary": {"deleted": len(asked["delete"]["ids"]), "not_deleted": 0}}})
            return
        made: list[dict[str, str]] = []
        errors: list[dict[str, Any]] = []
        for rule in asked["add"]:
            if rule["value"] in [one["value"] for one in self.rules.values()]:
                errors.append({"title": "DuplicateRule", "value": rule["value"], "id": "1"})
            elif rule["value"] in self.bad_rules:
                errors.append({"title": "UnprocessableEntity", "value": rule["value"], "details": ["no such operator"]})
            else:
                number = str(1000 + len(self.rules) + len(made) + len(self.asked))
                made.append({"id": number, **rule})
        if not dry:
            self.rules.update({one["id"]: {"value": one["value"], "tag": one["tag"]} for one in made})
        summary = {"created": len(made), "not_created": len(errors)}
        body_out = {"data": made, "meta": {"summary": summary}, **({"errors": errors} if errors else {})}
        await wire.answer(201 if made or not errors else 400, body_out)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[XServer]:
    """Serve on a free port of loopback until the block ends."""
    server = XServer(**settings)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, limit=1 << 20)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        server.closing.set()
        listener.close()
        for task in list(server.tasks):
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
