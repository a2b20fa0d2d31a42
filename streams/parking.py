"""Parking: a live stream that is refused waits and is tried again, ever more seldom, while everything else goes on.

What a person mends takes hold without a restart as far as it is read again for each connection: a token in a file, a
plan, a stream that another process held. Everything in the environment needs one. Until then the stream is in the
status, in the metrics and in `alerts`. A process that nobody supervises ends when all that it follows is refused.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from streams.broker import FolderInUse
from streams.ingest import Summary
from streams.live import SourceRefused
from streams.pulse import Pulse

log = logging.getLogger("xinfluencer.follow")

PARKED_S_MIN, PARKED_S_MAX = 30.0, 600.0  # X allows 50 connections in 15 minutes, to all of them together
LOOK_S = 0.5  # how soon a stop is noticed


class Parking:
    """The streams of one process; `refused` says of each that waits, why."""

    def __init__(
        self, patient: bool, stop: asyncio.Event, alert: Callable[[str], Awaitable[None]], clock_ms: Callable[[], int]
    ) -> None:
        self.patient, self.stop, self.alert, self.clock_ms = patient, stop, alert, clock_ms
        self.going: set[str] = set()
        self.refused: dict[str, str] = {}
        self.nothing_left = False

    async def keep(self, pulse: Pulse, follow: Callable[[], Awaitable[Summary]]) -> Summary | None:
        """Follow one stream until the stop; None if it was parked then. Raises what `follow` raises beside refusals."""
        stream, tries = pulse.stream, 0
        while True:
            self.going.add(stream)
            began_s = time.monotonic()
            try:
                return await follow()
            except (SourceRefused, FolderInUse) as error:
                why, own = str(error), not isinstance(error, FolderInUse)
            finally:
                self.going.discard(stream)
            if time.monotonic() - began_s > PARKED_S_MAX:  # it was well: whatever ends it now is news
                tries = 0
                self.refused.pop(stream, None)
            wait_s = min(PARKED_S_MAX, PARKED_S_MIN * 2**tries)
            tries += 1
            text = f"{stream} is refused: {why}"
            self.nothing_left = not self.patient and not self.going
            log.error("%s%s", text, "" if self.nothing_left else f" Tried again in {wait_s:.0f} s; all else goes on.")
            if self.refused.get(stream) != text:
                self.refused[stream] = text
                await self.alert(text)
            pulse.parked, pulse.last_error = True, why
            await self._wait(wait_s, pulse if own else None)  # the status of a stream is of whoever holds it
            if self.stop.is_set() or self.nothing_left:
                return None

    async def _wait(self, seconds: float, pulse: Pulse | None) -> None:
        due_s = time.monotonic() + seconds
        while time.monotonic() < due_s and not self.stop.is_set() and not self.nothing_left:
            try:
                if pulse is not None:
                    pulse.write(self.clock_ms())
            except OSError as error:
                log.warning("%s: the status could not be written: %s", pulse and pulse.stream, error.strerror or error)
            await asyncio.sleep(LOOK_S)
