"""Live: what every live source gives, and how its connection may end; the pump that takes it in is streams/follow.py.

A source is an endless stream of arrivals. Each carries the cursor from which a later connection goes on after it; the
pump keeps a cursor only when everything before it is acknowledged, so a crash repeats and never skips, and ids absorb
the repetition. A gap is never silent: whatever cannot be filled is a CursorTooOld or a Gap that says from when to when.
"""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol


class Arrival(NamedTuple):
    """One message as it came: its bytes (None: a keep-alive, a quiet moment), the cursor after it, when it was made."""

    data: bytes | None
    cursor: str | None = None
    made_ms: int | None = None  # as the source says, for the lag figure


class Gap(NamedTuple):
    """Messages between these two moments (ms) may be missing, and why; the pump raises an alert and goes on."""

    after_ms: int | None
    until_ms: int
    reason: str


class SourceRefused(Exception):
    """The source will not serve us however often we ask (wrong token, no such plan, bad rules): a person must act."""


class CursorTooOld(SourceRefused):
    """The source no longer holds what follows our cursor: start again from now (--from now), knowing of the gap."""


class SourceBroken(Exception):
    """The connection ended or what came was no stream of this source's; connect again after a back-off."""


class RateLimited(SourceBroken):
    """The source asks to wait: `wait_s` seconds before the next connection."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Source(Protocol):
    """A live source. `connect` gives one connection's arrivals; it ends by one of the exceptions above."""

    name: str  # whose policy applies: x, bluesky, mastodon
    stream: str  # names the cursor's file: several streams of one source keep cursors of their own

    def connect(self, cursor: str | None) -> AsyncIterator[Arrival | Gap]:
        """Open one connection that goes on after `cursor` (None: from now)."""
