"""Following: `models` and `model-releases` -> which version answers under each alias, now.

The log is read from its beginning without a group, so any number of servers follow it and none keeps a place in it.
A version that may not be loaded changes nothing: the present one goes on and an alert says why. Only a server that
has nothing yet goes back to older releases, down to the base.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from models.adapters import AdapterRefused
from schemas import envelope
from schemas.envelope import Record, Refused
from schemas.learned import ModelReleased, ModelRetracted, ReleasePointed
from schemas.topics import MODEL_RELEASES, MODELS
from streams.access_rules import require
from streams.kafka import KafkaSettings, ensure_topics, stopped
from streams.metrics import Metrics
from streams.problems import Problem
from streams.settings import Settings
from streams.shelf import Known, Shelf
from streams.topics import specs

log = logging.getLogger("xinfluencer.server")

POLL_MS = 500
RETRY_MS = 1_000  # between two looks for a broker that is away; each one is a line in the log
BASE = "base"
PREFIX_CHARS_MIN = 12  # of a version's hash, to ask for it by name
_VERSION = re.compile(rf"[0-9a-f]{{{PREFIX_CHARS_MIN},64}}")


@dataclass
class Releases:
    """What the log says: versions known, those retracted, and where each alias points."""

    known: dict[str, Known] = field(default_factory=dict)
    retracted: set[str] = field(default_factory=set)
    pointed: dict[str, Known] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Take one record of `models` or `model-releases`."""
        event = record.event
        if isinstance(event, ModelReleased | ReleasePointed):
            before = self.known.get(event.version)
            created_ms = min(before.created_ms, record.time_ms) if before else record.time_ms
            one = Known(event.release, event.version, event.base, event.base_name, event.adapter, created_ms)
            self.known[event.version] = one
            if isinstance(event, ReleasePointed):
                self.pointed[event.alias] = one
        elif isinstance(event, ModelRetracted):
            self.retracted.add(event.version)

    def before(self, newest: Known) -> list[Known]:
        """Give the releases before one, the last first; never a later one, which may have been rolled back."""
        older = [one for one in self.known.values() if one.release < newest.release]
        return sorted((one for one in older if one.version not in self.retracted), key=lambda one: -one.release)


class Following:
    """The task that follows, and what it found."""

    def __init__(
        self,
        settings: Settings,
        kafka: KafkaSettings,
        shelf: Shelf,
        metrics: Metrics,
        alert: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._kafka = kafka
        self._shelf = shelf
        self._metrics = metrics
        self._alert = alert
        self._tried: dict[str, str] = {}
        self._complained: set[str] = set()
        self.releases = Releases()
        self.serving: dict[str, Known] = {}
        shelf.pointed = lambda: {one.adapter for one in self.serving.values() if one.adapter is not None}

    async def run(self, well: Callable[[], None]) -> None:
        """Follow until cancelled, saying `well` once all is read. Raises KafkaError if there is no log at the start."""
        await ensure_topics(self._kafka, specs(self._settings))
        await require(self._settings, self._kafka, "server")
        places = {
            TopicPartition(self._settings.physical(topic.name), 0): topic.name for topic in (MODELS, MODEL_RELEASES)
        }
        consumer = AIOKafkaConsumer(
            **self._kafka.client_kwargs(),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            retry_backoff_ms=RETRY_MS,
        )
        await consumer.start()
        try:
            consumer.assign(list(places))
            await consumer.seek_to_beginning(*places)
            ends = await consumer.end_offsets(list(places))
            found = Releases()
            while True:
                for place, records in (await consumer.getmany(timeout_ms=POLL_MS)).items():
                    for raw in records:
                        await self._take(found, places[place], raw)
                if found is self.releases or all([await consumer.position(one) >= ends[one] for one in places]):
                    self.releases = found  # only whole: an alias must not run through its history
                    well()
                    await self._point()
        finally:
            await stopped(consumer)

    async def _take(self, found: Releases, topic: str, raw: Any) -> None:
        try:
            found.apply(envelope.decode(topic, 0, raw.offset, raw.timestamp, raw.headers, raw.value))
        except Refused as refused:
            await self._complain("release-unreadable", f"{topic}/0/{raw.offset}: {refused.reason}")

    async def _point(self) -> None:
        """Let each alias answer with its newest version, if that loads."""
        if not self._shelf.ready.is_set():
            return
        for alias, newest in self.releases.pointed.items():
            if self._tried.get(alias) == newest.version:
                continue
            self._tried[alias] = newest.version
            choices = [newest] if alias in self.serving else [newest, *self.releases.before(newest)]
            for choice in choices:
                if await self._loads(choice):
                    self._serve(alias, choice)
                    break

    async def _loads(self, one: Known) -> bool:
        try:
            await self.hold(one, whatever=True)
        except Problem:
            return False
        self._shelf.release(one)
        return True

    def _serve(self, alias: str, one: Known) -> None:
        before = self.serving.get(alias)
        self.serving[alias] = one
        self._metrics.release.labels(alias).set(one.release)
        if before is None or before.version != one.version:
            self._metrics.swaps.inc()
            log.info("%s is release %d, version %s", alias, one.release, one.version[:12])
        self._shelf.tidy()

    async def hold(self, one: Known, whatever: bool = False) -> None:
        """Hold a version (`Shelf.hold`). Problem 409 if it may not be loaded, with one alert a version."""
        try:
            await self._shelf.hold(one, whatever)
        except AdapterRefused as refused:
            self._metrics.refusals.inc()
            await self._complain("adapter-refused", f"release {one.release}, version {one.version[:12]}: {refused}")
            raise Problem(409, "version_refused", f"This version is not loaded: {refused}.", "model") from None

    async def _complain(self, kind: str, detail: str) -> None:
        if detail not in self._complained:
            self._complained.add(detail)
            await self._alert(kind, detail)

    # ---- what requests ask ------------------------------------------------------------------------------------------

    def find(self, name: str) -> Known:
        """Read the `model` of a request: an alias, "base", or the beginning of a version's hash. Raises Problem."""
        if name in self.serving:
            return self.serving[name]
        if name == "default" or name in self.releases.pointed:
            raise Problem(503, "no_release", "No release is followed yet; try again.", None, 5)
        if name == BASE:
            return self.base()
        if not _VERSION.fullmatch(name):
            raise Problem(404, "model_not_found", "model: there is no alias or version of this name.", "model")
        found = [one for version, one in self.all().items() if version.startswith(name)]
        if len(found) != 1:
            how = "more than one version begins" if found else "no version that was released begins"
            raise Problem(404, "model_not_found", f"model: {how} like this.", "model")
        if found[0].version in self.releases.retracted:
            raise Problem(410, "model_retracted", "model: this version was retracted.", "model")
        return found[0]

    def base(self) -> Known:
        """Give the base: release 0, whether or not the log says so already. Problem 503 before it is loaded."""
        base = self._shelf.generator.base
        return self.releases.known.get(base.sha256) or Known(0, base.sha256, base.sha256, base.name, None, 0)

    def all(self) -> dict[str, Known]:
        """Give every version by its hash, the base first."""
        first = [self.base()] if self._shelf.ready.is_set() else []
        return {one.version: one for one in [*first, *self.releases.known.values()]}

    def models(self) -> list[dict[str, Any]]:
        """List every version in OpenAI's shape, with what we add."""
        return [
            {
                "id": one.version,
                "object": "model",
                "created": one.created_ms // 1000,
                "owned_by": "xinfluencer",
                "release": one.release,
                "base": one.base_name,
                "current": any(other.version == one.version for other in self.serving.values()),
                "aliases": [alias for alias, other in self.serving.items() if other.version == one.version],
                "retracted": one.version in self.releases.retracted,
            }
            for one in self.all().values()
        ]
