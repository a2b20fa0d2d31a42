"""Inbox: what stands between a live connection and the log: bounded, and free of what came a moment ago."""

import asyncio
import hashlib
from collections import deque

from streams.ingest import CHUNK_BYTES_MAX, CHUNK_RECORDS_MAX
from streams.live import Arrival, Gap

WINDOW_MAX = 100_000  # messages remembered: five minutes of backfill at 300 a second; about 13 MB
ARRIVAL_BYTES = 64  # what an arrival weighs beside its data, so that empty ones are bounded too


class Window:
    """What came lately, by its bytes: the same message again is counted and dropped, whatever its id."""

    def __init__(self, size_max: int = WINDOW_MAX) -> None:
        self._max = size_max
        self._order: deque[bytes] = deque()
        self._seen: set[bytes] = set()

    def is_new(self, data: bytes) -> bool:
        """Say whether the message was not met within the window, and remember it."""
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest in self._seen:
            return False
        if len(self._order) >= self._max:
            self._seen.discard(self._order.popleft())
        self._order.append(digest)
        self._seen.add(digest)
        return True


class Inbox:
    """Arrivals between the connection and the log: bounded by number and bytes; `put` waits while it is full."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._wake = wake
        self._items: list[Arrival | Gap] = []
        self._bytes = 0
        self._room = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Say whether nothing more goes in."""
        return len(self._items) >= CHUNK_RECORDS_MAX or self._bytes >= CHUNK_BYTES_MAX

    async def put(self, item: Arrival | Gap) -> None:
        """Add one; waits for room."""
        while self.full:
            self._wake.set()
            self._room.clear()
            await self._room.wait()
        self._items.append(item)
        self._bytes += ARRIVAL_BYTES + len(item.data or b"") if isinstance(item, Arrival) else ARRIVAL_BYTES

    def take(self) -> list[Arrival | Gap]:
        """Empty it."""
        items, self._items, self._bytes = self._items, [], 0
        self._room.set()
        return items
