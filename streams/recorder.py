"""Recorder: the server's events -> the log, acknowledged within a limit or not at all as far as we say.

A producer that failed once is put aside: it may still hold a batch that the broker takes later. That is harmless,
since an event's id comes from what it says, and it is why a failure is answered with "try again" and nothing else.
"""

import asyncio
import logging
import time

from aiokafka.errors import KafkaError

from schemas.envelope import Refused
from schemas.events import AlertRaised
from schemas.facts import Event
from streams.fold import Sent
from streams.kafka import KafkaSettings
from streams.metrics import Metrics
from streams.problems import Problem
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.vault import Vault

log = logging.getLogger("xinfluencer.server")

RECORD_S_MAX = 10.0


class Recorder:
    """Writes events of people and of the server itself."""

    def __init__(self, settings: Settings, kafka: KafkaSettings, vault: Vault, metrics: Metrics) -> None:
        self._settings = settings
        self._kafka = kafka
        self._vault = vault
        self._metrics = metrics
        self._sender = Sender(settings, kafka)
        self._starting = asyncio.Lock()  # two first sends at once would start two producers
        self._retired: set[asyncio.Task[None]] = set()

    async def admit(self, owner: str) -> None:
        """Make sure that words of this owner can be sealed. Problem 403 if the owner was erased."""
        if await asyncio.to_thread(self._key, owner) is None:
            raise _erased()

    def _key(self, owner: str) -> bytes | None:
        self._vault.refresh()
        return self._vault.make(owner)

    async def record(self, event: Event, event_id: str | None = None, traceparent: bytes | None = None) -> None:
        """Return once all in-sync replicas have the event. Problem 503 if that was not said in RECORD_S_MAX."""
        sender = self._sender
        try:
            sent = await asyncio.to_thread(self._seal, event, event_id, traceparent)
            async with asyncio.timeout(RECORD_S_MAX):
                async with self._starting:
                    await sender.start()
                await sender.send([sent])
        except Refused as refused:
            raise _erased() if refused.reason == "owner-erased" else Problem(400, "refused", refused.detail) from None
        except (KafkaError, TimeoutError, OSError) as error:
            self._metrics.unrecorded.inc()
            log.error("%s was not acknowledged: %s", type(event).__name__, type(error).__name__)
            self._retire(sender)
            raise Problem(
                503, "not_recorded", "The log did not say in time that it took this: try again.", None, 5
            ) from None

    def _seal(self, event: Event, event_id: str | None, traceparent: bytes | None) -> Sent:
        self._vault.refresh()
        now_ms = int(time.time() * 1000)
        return outside(event, "/server", now_ms, self._settings.partitions, self._vault, event_id, traceparent)

    def _retire(self, sender: Sender) -> None:
        if sender is self._sender:
            self._sender = Sender(self._settings, self._kafka)
            task = asyncio.create_task(sender.stop())
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def alert(self, kind: str, detail: str) -> None:
        """Say in `alerts` that a person should look; without a broker the log of this process must do."""
        log.error("%s: %s", kind, detail)
        try:
            await self.record(AlertRaised(kind=kind, stage="server", detail=detail[:500]))
        except Problem as problem:
            log.error("the alert could not be written: %s", problem.code)

    async def close(self) -> None:
        """Disconnect; what was acknowledged is safe, and nothing else was promised."""
        for task in list(self._retired):
            task.cancel()
        await self._sender.stop()


def _erased() -> Problem:
    return Problem(403, "owner_erased", "This user asked to be forgotten; nothing of theirs is taken in again.")
