"""X's streams: a long HTTPS answer of JSON lines -> arrivals, and an honest account of what no connection covered.

X gives no cursor. Ours is the time (ms) up to which everything was received; after a cut it says what to ask for: a
backfill of up to five minutes, the recovery of a day, or nothing, and then there is a Gap. X does not say whether a
recovery was whole: where its newest post is not near its end the rest is asked for again, and then it is a Gap. While
older posts still flow in the cursor stays where it was, for a second cut then would lose the rest. A connection may
take a minute to open, and what X sends counts from then: what is made meanwhile is in the backfill or in a Gap.
Endpoints and errors as in X API v2, "Filtered stream", "Compliance streams", "Handling disconnections", "Recovery and
redundancy" (docs.x.com).
"""

import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from streams.lines import LINE_BYTES_MAX
from streams.live import Arrival, CursorTooOld, Gap, SourceBroken, SourceRefused
from streams.settings import Settings
from streams.x_api import authorized, checked_url, client, read_answer, refusal

KEEP_ALIVE_S = 20.0  # X sends an empty line at least this often
MARGIN_MS = 15_000  # a post may reach the stream so long after it was made
NEAR_MS = 60_000  # a recovery whose newest post is so near its end was whole
RECOVERIES_MAX = 5  # one after the other, each from where the one before it ended
DAY_MS = 86_400_000  # X recovers no more
SNOWFLAKE_MS = 1_288_834_974_657  # X's ids count milliseconds from here, shifted by 22 bits
PARTITIONS = {"tweets": 4, "users": 4}  # of the compliance streams
FIELDS = {
    "tweet.fields": (
        "attachments,author_id,context_annotations,conversation_id,created_at,edit_controls,edit_history_tweet_ids,"
        "entities,geo,id,in_reply_to_user_id,lang,note_tweet,possibly_sensitive,public_metrics,referenced_tweets,"
        "reply_settings,source,text,withheld"
    ),
    "expansions": (
        "attachments.media_keys,author_id,entities.mentions.username,in_reply_to_user_id,referenced_tweets.id,"
        "referenced_tweets.id.author_id"
    ),
    "user.fields": (
        "created_at,description,entities,id,location,name,protected,public_metrics,username,verified,verified_type"
    ),
    "media.fields": "alt_text,duration_ms,height,media_key,public_metrics,type,url,width",
}
"""All that ingest reads, and what may be read of a post later from its raw form."""


@dataclass(frozen=True)
class Request:
    """One connection to ask for: X's parameters; until_ms where it is a recovery that X ends there; the gap left."""

    params: dict[str, str]
    until_ms: int | None = None
    gap: Gap | None = None
    catching_up: bool = False


def plan(now_ms: int, cursor_ms: int | None, backfill_minutes: int, recovery: bool) -> Request:
    """Decide what to ask for when everything up to `cursor_ms` is here (None: begin now).

    backfill_minutes: 0 where the plan allows none, else 1 to 5. recovery: whether X may be asked for the past day.
    """
    if cursor_ms is None:
        return Request({})
    away_ms = max(0, now_ms - cursor_ms)
    minutes = -(-(away_ms + MARGIN_MS) // 60_000)
    if minutes <= backfill_minutes:
        return Request({"backfill_minutes": str(minutes)}, catching_up=True)
    if recovery and backfill_minutes:  # the recovery takes time itself, which a backfill must cover
        start_ms = max(cursor_ms - MARGIN_MS, now_ms - DAY_MS + MARGIN_MS)
        gap = Gap(cursor_ms, start_ms, "X recovers one day only") if start_ms > cursor_ms else None
        until_ms = now_ms - now_ms % 1000  # X's times are whole seconds
        return Request({"start_time": _utc(start_ms), "end_time": _utc(until_ms)}, until_ms, gap, True)
    most = f"a backfill of {backfill_minutes} minutes covers no more" if backfill_minutes else "X has no cursor"
    gap = Gap(cursor_ms, max(cursor_ms, now_ms - backfill_minutes * 60_000), most)
    params = {"backfill_minutes": str(backfill_minutes)} if backfill_minutes else {}
    return Request(params, None, gap, bool(backfill_minutes))


def _left(request: Request, cursor_ms: int | None, opened_ms: int) -> Gap | None:
    """Give what a connection that is open since `opened_ms` does not bring: the plan could not know when that would be.

    A recovery brings what lies between two times, whenever it opens; a backfill and what follows count from there.
    """
    if request.until_ms is not None or cursor_ms is None:
        return request.gap
    since_ms = opened_ms - 60_000 * int(request.params.get("backfill_minutes", "0"))
    if request.gap is not None:
        return request.gap._replace(until_ms=max(request.gap.until_ms, since_ms))
    late = "the stream took too long to open for its backfill"
    return Gap(cursor_ms, since_ms, late) if since_ms > cursor_ms else None


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class XStream:
    """One of X's streams (streams.live.Source). `filtered` and `compliance` make them."""

    name = "x"

    def __init__(
        self, url: str, stream: str, params: Mapping[str, str], backfill_minutes: int = 0, recovery: bool = False,
        env: Mapping[str, str] | None = None, clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:  # fmt: skip
        self.url, self.stream, self.params = url, stream, dict(params)
        self.backfill_minutes, self.recovery = backfill_minutes, recovery
        self.clock_ms, self.keep_alive_s = clock_ms, keep_alive_s
        self._env = env

    async def connect(self, cursor: str | None) -> AsyncGenerator[Arrival | Gap, None]:
        """Open one connection; `cursor` is a time in ms. Ends by SourceBroken, RateLimited or SourceRefused."""
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 16):
            raise CursorTooOld(f"{self.stream}: {cursor[:40]!r} is no cursor of X's streams: start with --from-now.")
        at_ms = int(cursor) if cursor is not None else None
        asked = 0
        while True:
            now_ms = self.clock_ms()
            request = plan(now_ms, at_ms, self.backfill_minutes, self.recovery)
            newest_ms = 0
            async with aclosing(self._connection(request, at_ms)) as arrivals:
                async for one in arrivals:
                    newest_ms = max(newest_ms, (isinstance(one, Arrival) and one.made_ms) or 0)
                    yield one
            # Only a recovery ends without an error, and X does not say whether it was whole.
            until_ms = request.until_ms or now_ms
            if newest_ms < until_ms - NEAR_MS:
                asked += 1
                if asked < RECOVERIES_MAX and at_ms is not None and newest_ms > at_ms + MARGIN_MS:
                    at_ms = newest_ms  # what is missing is asked for once more
                    continue
                yield Gap(max(newest_ms, at_ms or 0), until_ms, "X ended the recovery with nothing newer")
            asked, at_ms = 0, until_ms  # a recovery is through; what was made meanwhile comes next
            yield Arrival(None, str(at_ms))

    async def _connection(self, request: Request, cursor_ms: int | None) -> AsyncGenerator[Arrival | Gap, None]:
        recovering, catching_up = request.until_ms is not None, request.catching_up
        opened_ms = reached_ms = 0
        async with aclosing(self._lines({**self.params, **request.params})) as lines:
            async for line in lines:
                if line is None:  # the stream is open
                    opened_ms = reached_ms = self.clock_ms()
                    if gap := _left(request, cursor_ms, opened_ms):
                        yield gap
                    if not catching_up:
                        yield Arrival(None, str(reached_ms))
                    continue
                data = line.strip()
                made_ms = _made_ms(data) if data else None
                if not data:  # X has nothing to send: whatever was queued for us, older posts too, is through
                    reached_ms = self.clock_ms()
                    catching_up = recovering
                elif made_ms is not None:  # not the time of arrival, for posts may wait in X's queue
                    reached_ms = max(reached_ms, min(made_ms, self.clock_ms()))
                    catching_up = catching_up and (recovering or made_ms < opened_ms + MARGIN_MS)
                yield Arrival(data or None, None if catching_up else str(reached_ms), made_ms)
        if not recovering:
            raise SourceBroken("X closed the connection")

    async def _lines(self, params: Mapping[str, str]) -> AsyncGenerator[bytes | None, None]:
        """Give None once the stream is open, then its lines, empty ones too."""
        try:
            async with (
                client(self.url, 2 * self.keep_alive_s) as http,
                http.stream("GET", self.url, params=params, headers=authorized(self._env)) as response,
            ):
                if response.status_code != 200:
                    raise refusal(response.status_code, response.headers, await read_answer(response))
                yield None
                splitter = Splitter()
                async for piece in response.aiter_raw():
                    for line in splitter.feed(piece):
                        yield line
                if rest := splitter.rest():  # a whole answer, whose last line has no end
                    yield rest
        except httpx.ReadTimeout:
            raise SourceBroken(f"nothing came for {2 * self.keep_alive_s:.0f} s, not even a keep-alive") from None
        except httpx.ConnectError as error:  # names, routes, certificates: nothing of the request is in it
            raise SourceBroken(f"X cannot be reached: {str(error)[:200]}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceBroken(f"{type(error).__name__}: the connection to X broke") from None


class Splitter:
    """Pieces of bytes, cut anywhere -> lines. One longer than LINE_BYTES_MAX is cut there: no JSON, so refused."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._max = line_bytes_max
        self._held: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Take a piece and give the lines that it ends."""
        lines = []
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._hold(part)
            lines.append(b"".join(self._held))
            self._held, self._size = [], 0
        self._hold(rest)
        return lines

    def rest(self) -> bytes:
        """Give what no line end has followed yet."""
        return b"".join(self._held)

    def _hold(self, part: bytes) -> None:
        room = self._max - self._size
        if part and room > 0:
            self._held.append(part[:room])
            self._size += len(self._held[-1])


class _Post(msgspec.Struct):
    id: Any = None


class _Line(msgspec.Struct):
    data: _Post | None = None
    errors: Any = None


_PEEK = msgspec.json.Decoder(_Line)
_EVENT_AT = re.compile(rb'"event_at"\s*:\s*"([0-9T:.Z+-]{19,35})"')


def _made_ms(data: bytes) -> int | None:
    """Read when a line's post was made, from its id, or its compliance event happened; SourceBroken if X says goodbye.

    What is in a line decides streams/xv2.py; a line that this cannot read passes.
    """
    try:
        line = _PEEK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if line.data is None:
        if farewell := _farewell(line.errors):
            raise SourceBroken(farewell)
        return None
    number = line.data.id
    if isinstance(number, str) and number.isdecimal() and 15 < len(number) < 20:
        return (int(number) >> 22) + SNOWFLAKE_MS
    found = _EVENT_AT.search(data)
    try:
        return int(datetime.fromisoformat(found[1].decode()).timestamp() * 1000) if found else None
    except ValueError:
        return None


def _farewell(errors: Any) -> str:
    """Say why X ends the stream; empty where the errors are partial ones, which only say what a post lacks."""
    for one in errors if isinstance(errors, list) else []:
        if isinstance(one, dict) and (
            one.get("title") in ("operational-disconnect", "ConnectionException")
            or "disconnect_type" in one
            or "connection_issue" in one
        ):
            why = one.get("connection_issue") or one.get("disconnect_type") or one.get("title")
            return f"X ends the stream: {str(why)[:100]!r}"
    return ""


def _recovery(settings: Settings) -> bool:
    return bool(getattr(settings, "x_recovery", False))


def filtered(settings: Settings, env: Mapping[str, str] | None = None, **more: Any) -> XStream:
    """Give the filtered stream; what it sends is decided by the rules (streams/x_rules.py)."""
    url = f"{checked_url(settings.x_url)}/2/tweets/search/stream"
    return XStream(url, "x-filtered", FIELDS, settings.x_backfill_minutes, _recovery(settings), env, **more)


def compliance(
    settings: Settings, kind: str, partition: int, env: Mapping[str, str] | None = None, **more: Any
) -> XStream:
    """Give one partition, from 1, of the compliance stream of "tweets" or "users": deletions, suspensions, edits."""
    if not 1 <= partition <= PARTITIONS.get(kind, 0):
        raise SourceRefused(f"X has no compliance stream {kind!r} with a partition {partition}.")
    url = f"{checked_url(settings.x_url)}/2/{kind}/compliance/stream"
    own = {"partition": str(partition)}
    stream = f"x-compliance-{kind}-{partition}"
    return XStream(url, stream, own, settings.x_backfill_minutes, _recovery(settings), env, **more)


def every_compliance(settings: Settings) -> list[XStream]:
    """Give all partitions of both compliance streams: only together they say everything."""
    return [compliance(settings, kind, part) for kind, number in PARTITIONS.items() for part in range(1, number + 1)]
