"""Jetstream: Bluesky's network as JSON over a web socket (v1) -> arrivals; the cursor is the time of the last message.

A connection goes on OVERLAP_US before its cursor, for messages are not quite in the order of their times; ids absorb
the repetition. The server keeps a day or more and starts silently at its oldest message when asked for an older one,
and silently at the newest when asked for a future one: both are noticed here. So is a clock of ours that is behind, for
which every message would come from the future and none give a cursor. Messages are passed on as they come, bad ones
too, for ingest to refuse. No compression: a server spends more on it than on anything else.
Protocol: github.com/bluesky-social/jetstream, docs/README.md, "Legacy v1 JSON Payload" and "Cursor Replay".
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException

from streams.bluesky import COLLECTIONS
from streams.lines import LINE_BYTES_MAX
from streams.live import Arrival, CursorTooOld, Gap, RateLimited, SourceBroken, SourceRefused
from streams.settings import Settings

OVERLAP_US = 5_000_000  # "rewind a few seconds for gapless playback", say Jetstream's notes
HOLE_US_MIN = 60_000_000  # the whole network is never silent for so long: messages that should be there are not
HELD_US = 24 * 3_600_000_000  # the least that servers hold by default: 24 hours, or 36
AHEAD_US = 300_000_000  # what a clock may be off
AHEAD_MAX, AHEAD_MS_MAX = 100, 60_000  # so many messages, or all those of a minute, from the future: our clock is wrong
FIRST_US = 1_000_000_000_000_000  # a smaller cursor is a sequence number to newer servers, not a time
IDLE_S = 1.0  # after which a quiet moment is told
SILENT_S_MAX = 60.0  # a server that answers pings and has nothing to say has lost its own source
MESSAGE_BYTES_MAX = LINE_BYTES_MAX  # no repository may hold a record of more than 1 MB
QUEUE_MAX = 256  # messages read ahead; beyond it the server waits, and may cut us off
ASK_AGAIN_S = 60.0  # where a server that limits us does not say how long
TOO_BIG = 1009  # RFC 6455, 7.4.1


class _Head(msgspec.Struct):
    time_us: int


_HEAD = msgspec.json.Decoder(_Head)


class Jetstream:
    """One Jetstream server (streams.live.Source)."""

    name = "bluesky"
    stream = "bluesky-jetstream"

    def __init__(
        self, settings: Settings, clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        idle_s: float = IDLE_S, silent_s_max: float = SILENT_S_MAX, message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:  # fmt: skip
        self._url = settings.bluesky_url
        self._accept = settings.accept_gaps
        self._sparse = "wantedDids=" in settings.bluesky_url or "wantedCollections=" in settings.bluesky_url
        self._clock_ms = clock_ms
        self._idle_s, self._silent_s_max, self._bytes_max = idle_s, silent_s_max, message_bytes_max
        self._beyond_us = 0  # where to go on after a message that cannot be taken over the wire
        self._skipped_us = 0
        self._ahead = 0  # how many messages came from the future since one that did not, over all connections
        self._ahead_since_ms = self._behind_us = 0

    async def connect(self, cursor: str | None) -> AsyncGenerator[Arrival | Gap, None]:
        """Open one connection that goes on after `cursor` (microseconds since 1970; None: from now)."""
        after_us = None if cursor is None else self._checked(cursor)
        start_us = None if after_us is None else max(after_us - OVERLAP_US, self._beyond_us)
        url = self._address(start_us)
        newest_us = after_us or 0
        begun = False
        try:
            async with connect(
                url, compression=None, max_size=self._bytes_max, max_queue=QUEUE_MAX, close_timeout=2.0,
                user_agent_header="xinfluencer",
            ) as socket:  # fmt: skip
                silent_s = 0.0
                while True:
                    try:
                        async with asyncio.timeout(self._idle_s):
                            data = await socket.recv(decode=False)
                    except TimeoutError:
                        silent_s += self._idle_s
                        if silent_s >= self._silent_s_max:
                            raise SourceBroken(f"Jetstream said nothing for {silent_s:.0f} s") from None
                        yield Arrival(None)
                        continue
                    silent_s = 0.0
                    at_us = self._time_us(data)
                    if at_us is not None:
                        if start_us is not None and not begun and (gap := self._hole(start_us, at_us)):
                            yield gap
                        begun = True
                        if at_us > newest_us:
                            newest_us, self._skipped_us = at_us, 0
                    yield Arrival(
                        data,
                        str(newest_us) if newest_us else None,
                        None if at_us is None else at_us // 1000,
                    )
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == TOO_BIG:
                yield self._stepped_over(newest_us or self._clock_ms() * 1000)
                raise SourceBroken(f"a message of more than {self._bytes_max} bytes was left out") from None
            raise SourceBroken(f"Jetstream closed the connection: {_reason(closed)}") from None
        except InvalidStatus as refused:
            raise _refusal(refused) from None
        except InvalidURI:
            raise SourceRefused("XINFLUENCER_BLUESKY_URL is no address of a web socket.") from None
        except (InvalidHandshake, WebSocketException) as error:
            raise SourceBroken(f"{type(error).__name__}: no web socket could be opened with Jetstream") from None
        except OSError as error:  # among them a time-out while connecting
            raise SourceBroken(f"Jetstream cannot be reached: {error.strerror or type(error).__name__}") from None

    def _checked(self, cursor: str) -> int:
        """Read a cursor. A server takes one from the future for "from now": what lies between would be lost."""
        if not (cursor.isascii() and cursor.isdecimal() and len(cursor) == 16 and int(cursor) >= FIRST_US):
            raise SourceRefused(f"{cursor[:40]!r} is no cursor of Jetstream's: start with --from-now.")
        at_us = int(cursor)
        if at_us > self._clock_ms() * 1000 + AHEAD_US:
            raise SourceRefused(
                f"the cursor of Jetstream is {_utc(at_us)}, which is still to come: set this machine's clock right, "
                "or start with --from-now, knowing of the gap."
            )
        return at_us

    def _address(self, start_us: int | None) -> str:
        """Ask for what streams/bluesky.py reads, unless the address asks for something itself."""
        try:
            parts = urlsplit(self._url)
            (parts.hostname or "").encode("idna")
            parts.port  # noqa: B018 - reading it checks it
            given = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:
            raise SourceRefused("XINFLUENCER_BLUESKY_URL is no address.") from None
        if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.username or parts.fragment:
            raise SourceRefused("XINFLUENCER_BLUESKY_URL must be wss://host/subscribe, without a user.")
        if any(key in ("compress", "requireHello") for key, _ in given):
            raise SourceRefused("XINFLUENCER_BLUESKY_URL asks for compress or requireHello, which are not spoken here.")
        asked = [(key, value) for key, value in given if key not in ("cursor", "maxMessageSizeBytes")]
        if not any(key == "wantedCollections" for key, _ in asked):
            asked += [("wantedCollections", one) for one in COLLECTIONS]
        asked.append(("maxMessageSizeBytes", str(self._bytes_max)))
        if start_us is not None:
            asked.append(("cursor", str(start_us)))
        return urlunsplit(parts._replace(query=urlencode(asked)))

    def _time_us(self, data: bytes) -> int | None:
        """Read a message's time; one that cannot be true must not become the cursor.

        One from the future is that message's fault; where all are, our clock is behind: SourceRefused.
        """
        try:
            at_us = _HEAD.decode(data).time_us
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if at_us < FIRST_US:
            return None
        now_ms = self._clock_ms()
        ahead_us = at_us - now_ms * 1000
        if ahead_us <= AHEAD_US:
            self._ahead = 0
            return at_us
        if self._ahead == 0:
            self._ahead_since_ms, self._behind_us = now_ms, ahead_us
        self._ahead += 1
        self._behind_us = min(self._behind_us, ahead_us)
        if self._ahead >= AHEAD_MAX or now_ms - self._ahead_since_ms >= AHEAD_MS_MAX:
            raise SourceRefused(
                f"this machine's clock is at least {self._behind_us // 60_000_000} minutes behind Jetstream's: "
                "set it right."
            )
        return None

    def _hole(self, start_us: int, first_us: int) -> Gap | None:
        """Judge how the first message follows what was asked for: None, a Gap, or CursorTooOld raised.

        A cursor older than what servers hold is too old. A younger one met a server that was down (then nothing is
        lost, its messages carry later times) or that holds less than others: a Gap, for it cannot be told which. Where
        the operator asks for a few accounts only, a silence says nothing, and a cursor that is too old is a Gap.
        """
        old = self._clock_ms() * 1000 - start_us > HELD_US
        if first_us <= start_us + HOLE_US_MIN or (self._sparse and not old):
            return None
        if old and not self._sparse and not self._accept:
            raise CursorTooOld(
                f"Jetstream no longer holds what follows {_utc(start_us)}: its oldest message is of {_utc(first_us)}. "
                "What lies between is missing: start once with XINFLUENCER_ACCEPT_GAPS=true to go on from there, or "
                "with --from-now."
            )
        why = "Jetstream no longer holds it" if old else "Jetstream has nothing between: it was down, or forgets sooner"
        return Gap(start_us // 1000, first_us // 1000, why)

    def _stepped_over(self, newest_us: int) -> Gap:
        """Go on behind a message too large for us: 1 s further, and twice as far while that does not help."""
        self._skipped_us = min(2 * self._skipped_us, HOLE_US_MIN) or 1_000_000
        self._beyond_us = max(newest_us, self._beyond_us) + self._skipped_us
        return Gap(newest_us // 1000, self._beyond_us // 1000, f"a message is larger than {self._bytes_max} bytes")


def _refusal(refused: InvalidStatus) -> SourceBroken | SourceRefused:
    response = refused.response
    said = _plain(bytes(response.body or b"")[:200].decode("utf-8", "replace"))
    code = response.status_code
    if code == 429 or (code == 503 and "retry-after" in response.headers):
        return RateLimited(f"Jetstream asks to wait ({code})", _wait_s(response.headers))
    if code >= 500:
        return SourceBroken(f"Jetstream answered {code}: {said}")
    return SourceRefused(f"Jetstream answered {code}: {said}. Is XINFLUENCER_BLUESKY_URL right?")


def _wait_s(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return max(1.0, float(text)) if text.isascii() and text.isdecimal() and len(text) < 6 else ASK_AGAIN_S


def _reason(closed: ConnectionClosed) -> str:
    if closed.rcvd is None:
        return "it broke off" if closed.sent is None else "it does not answer"
    return f"{closed.rcvd.code} {_plain(closed.rcvd.reason[:100])}".strip()


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _utc(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(timespec="seconds")
