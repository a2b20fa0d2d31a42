"""Mastodon stream: a server's timeline as server-sent events -> arrivals in the form that streams/mastodon.py reads.

The stream has no cursor. Ours is the newest status with the moment it came; a connection first opens the stream, then
fetches what its timeline holds after that status, then follows. What a timeline cannot say (deletions and edits made
meanwhile, posts of other servers that came later than OVERLAP_MS), and more than PAGES_MAX of it, is a Gap. A deletion
names a status and nobody: whose it was is looked up in what was seen (streams/mastodon_owners.py), boosted and quoted
statuses too. The token is in a header and nowhere else.
Protocol: docs.joinmastodon.org, "streaming API methods" and "timelines API methods".
"""

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec

from streams.live import Arrival, Gap, SourceBroken, SourceRefused
from streams.mastodon import STATUSES, statuses_in
from streams.mastodon_api import Api, timeline_of
from streams.mastodon_owners import Owners
from streams.mastodon_post import LOCAL_ID
from streams.settings import Settings

PAGE_MAX = 40  # statuses, the most a server gives
PAGES_MAX = 50  # 2,000 statuses; a server allows 300 requests in 5 minutes
OVERLAP_MS = 30_000  # posts of other servers come late and are numbered by when they were made
STALL_S = 45.0  # a server sends a heartbeat every 15 s
EVENT_BYTES_MAX = 1 << 20  # a status is a few kB; a longer one is cut there: no JSON, so refused
MISSED = (
    "deletions and edits made meanwhile are not told again, "
    f"nor posts of other servers that came more than {OVERLAP_MS // 1000} s after they were made"
)
CURSOR = re.compile(r"([A-Za-z0-9_-]{1,64})@([0-9]{1,14})")
SNOWFLAKE_BITS = 16  # of a Mastodon id, below its milliseconds


class _Status(msgspec.Struct):
    id: str
    created_at: str | None = None
    edited_at: str | None = None


_STATUS = msgspec.json.Decoder(_Status)


class MastodonStream:
    """One timeline of one server (streams.live.Source)."""

    name = "mastodon"
    stream = "mastodon"

    def __init__(
        self, settings: Settings, env: Mapping[str, str] | None = None,
        clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        stall_s: float = STALL_S, pages_max: int = PAGES_MAX, owners: Owners | None = None,
    ) -> None:  # fmt: skip
        self._timeline = timeline_of(settings.mastodon_stream)
        self._api = Api(settings.mastodon_url, env, stall_s)
        self._clock_ms, self._pages_max = clock_ms, pages_max
        self._owners = owners or Owners(settings.data / "vault" / "mastodon-owners.sqlite")
        self._newest: str | None = None

    async def connect(self, cursor: str | None) -> AsyncGenerator[Arrival | Gap, None]:
        """Open one connection that goes on after `cursor` (ID@MILLISECONDS; None: from now)."""
        found = None if cursor is None else CURSOR.fullmatch(cursor)
        if cursor is not None and found is None:
            raise SourceRefused(f"{cursor[:40]!r} is no cursor of a Mastodon timeline: start with --from-now.")
        self._newest = found[1] if found else None
        opened_ms = self._clock_ms()
        async with self._api.open(self._timeline) as pieces:
            if found:
                async with aclosing(self._missed(found[1], int(found[2]), opened_ms)) as missed:
                    async for one in missed:
                        yield one
            async with aclosing(events(pieces)) as told:
                async for event in told:
                    yield Arrival(None, self._cursor()) if event is None else self._arrival(*event)
        raise SourceBroken("Mastodon ended the stream")

    async def _missed(self, newest: str, seen_ms: int, opened_ms: int) -> AsyncGenerator[Arrival | Gap, None]:
        """Fetch what the timeline holds after a status, oldest first, and say what that leaves out."""
        yield Gap(seen_ms, opened_ms, MISSED)
        after = _before(newest)
        for _ in range(self._pages_max):
            try:
                page = await self._api.page(self._timeline, after, PAGE_MAX)
            except SourceRefused as refused:  # the stream itself is open: what comes now is not given up for it
                yield Gap(seen_ms, opened_ms, f"the timeline cannot be read: {refused}")
                return
            ids = [one.id for one in map(_peek, page) if one is not None]
            newest_there = max(ids, key=order, default=after)
            if order(newest_there) <= order(after):
                return
            after = newest_there
            for raw in reversed(page):  # a page has the newest first
                arrival = self._arrival("update", raw)
                yield arrival
                seen_ms = arrival.made_ms or seen_ms
        yield Gap(seen_ms, opened_ms, f"more than {self._pages_max * PAGE_MAX} statuses were missed")

    def _arrival(self, event: str, data: bytes) -> Arrival:
        """Wrap a message with whose it is; what is no JSON is passed on bare, to be refused."""
        message: dict[str, Any] = {"host": self._api.host, "event": event}
        made_ms = None
        if event == "delete":
            number = data.decode("utf-8", "replace").strip()
            message["payload"] = number
            owner = self._owners.of(f"{self._api.host}:{number}")
            if owner is not None:
                message["owner"] = owner
        else:
            try:
                payload = msgspec.json.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                if event in STATUSES:
                    return Arrival(data, self._cursor())
                message["payload"] = None  # "undefined", as it stands beside filters_changed
            else:
                message["payload"] = msgspec.Raw(data)
                self._note_owners(event, payload)
            status = _peek(data) if event in STATUSES else None
            if status is not None:
                if event == "update" and (self._newest is None or order(status.id) > order(self._newest)):
                    self._newest = status.id
                made_ms = _ms(status.created_at if event == "update" else status.edited_at)
        return Arrival(msgspec.json.encode(message), self._cursor(), made_ms)

    def _note_owners(self, event: str, payload: Any) -> None:
        """Remember whose each status in a message is, for its deletion will not say; one that is odd costs itself."""
        if event not in STATUSES and event != "notification":
            return
        for raw in statuses_in(event, payload):
            account = raw.get("account")
            ids = raw.get("id"), account.get("id") if isinstance(account, dict) else None
            if all(isinstance(one, str) and LOCAL_ID.fullmatch(one) for one in ids):
                self._owners.note(f"{self._api.host}:{ids[0]}", str(ids[1]))

    def _cursor(self) -> str | None:
        return None if self._newest is None else f"{self._newest}@{self._clock_ms()}"


def order(number: str) -> tuple[int, str]:
    """Give what sorts ids by age, as the API's documentation has it: by length, then by letters."""
    return len(number), number


def _before(number: str) -> str:
    """Give an id OVERLAP_MS before another one, where ids hold times; else that one."""
    if not number.isdecimal() or len(number) < 17:
        return number
    return str(((int(number) >> SNOWFLAKE_BITS) - OVERLAP_MS) << SNOWFLAKE_BITS)


def _peek(data: bytes) -> _Status | None:
    try:
        found = _STATUS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if CURSOR.fullmatch(f"{found.id}@0") else None


def _ms(text: str | None) -> int | None:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000) if text else None
    except (ValueError, OverflowError):
        return None


async def events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[tuple[str, bytes] | None, None]:
    """Read server-sent events: name and data of each, None for a heartbeat (WHATWG HTML, 9.2.6).

    One that the connection cuts is left out: it comes again, from the timeline.
    """
    name, data = "", bytearray()
    begun = False
    async for line in lines(pieces):
        if not line:
            if begun:
                yield name or "message", bytes(data)
            name, data, begun = "", bytearray(), False
        elif line.startswith(b":"):
            yield None
        else:
            key, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if key == b"event":
                name = value[:64].decode("utf-8", "replace")
            elif key == b"data":
                data += (b"\n" if begun else b"") + value
                del data[EVENT_BYTES_MAX:]
                begun = True


async def lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split bytes that are cut anywhere into lines; each of at most EVENT_BYTES_MAX, the rest of it is dropped."""
    held = bytearray()
    ended = b""
    async for piece in pieces:
        before, ended = ended, piece[-1:] or ended
        if before == b"\r" and piece.startswith(b"\n"):
            piece = piece[1:]
        *whole, rest = re.split(rb"\r\n|\r|\n", piece)
        for one in whole:
            held += one[: EVENT_BYTES_MAX - len(held)]
            yield bytes(held)
            held.clear()
        held += rest[: EVENT_BYTES_MAX - len(held)]
