"""Answering: a question -> a version held, a job queued, an answer recorded; and whether that can be done at all.

The version is chosen once, when the request arrives, and held until its last token: a release that comes meanwhile
changes nothing for it. What cannot be started (no base yet, no log yet) is tried again for as long as the server is up.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from agents.content import words_of_answer
from schemas.events import AnswerGiven
from schemas.facts import AnswerContent
from schemas.ids import digest
from streams import places, tracing
from streams.access_rules import REFUSED
from streams.chat import Ask
from streams.following import BASE, Following
from streams.kafka import KafkaSettings, cluster_id
from streams.metrics import WRITE_S, Metrics
from streams.policy import Policy
from streams.problems import Problem
from streams.recorder import Recorder
from streams.settings import Settings
from streams.shelf import Known, Shelf
from streams.speaking import REQUESTS_WAITING_MAX, Speaker
from streams.timed import Telling, TimedJob
from streams.vault import Vault

log = logging.getLogger("xinfluencer.server")

BACK_OFF_S_MIN, BACK_OFF_S_MAX = 0.5, 15.0
REACH_S_MAX = 2.0  # to ask the cluster for its id
REACHED_S = 1.0  # an answer to that holds for so long
CLOSE_S_MAX = 0.5


class Answering:
    """One server's parts, and how they make an answer together."""

    def __init__(self, settings: Settings, kafka: KafkaSettings, waiting_max: int = REQUESTS_WAITING_MAX) -> None:
        self.settings = settings
        self.kafka = kafka
        self.rights = Policy.load(settings.policy).rights("server")
        self.metrics = Metrics()
        self.vault = Vault(settings.data / "vault" / "keys.sqlite")
        self.recorder = Recorder(settings, kafka, self.vault, self.metrics)
        self.shelf = Shelf(settings)
        self.following = Following(settings, kafka, self.shelf, self.metrics, self.recorder.alert)
        self.speaker = Speaker(self.metrics, waiting_max)
        self.spans = tracing.from_env("server")
        self.trouble: dict[str, str] = {}
        self.refused = asyncio.Event()  # the cluster does not let us do our work, and a person must act
        self._reached: tuple[float, bool] = (0.0, False)

    @asynccontextmanager
    async def running(self, app: object) -> AsyncIterator[None]:
        """Prepare the base and follow releases for as long as the server is up."""
        tasks = [
            asyncio.create_task(self._keep("the base model", self.shelf.prepare)),
            asyncio.create_task(self._keep("following releases", self.following.run)),
            asyncio.create_task(self._write_metrics()),
        ]
        try:
            yield
        finally:
            self.speaker.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S_MAX):
                    await self.recorder.close()
            self.vault.close()

    async def _keep(self, what: str, run: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Do it until it ends by itself; as long as it is not well, /readyz says why."""
        wait_s = BACK_OFF_S_MIN

        def well() -> None:
            self.trouble.pop(what, None)

        while True:
            try:
                await run(well)
            except REFUSED as error:
                log.critical("stopping: %s", error)
                self.refused.set()
                return
            except Exception as error:  # noqa: BLE001 - whatever it was, it is said and tried again
                self.trouble[what] = f"{type(error).__name__}: {error}"[:300]
                log.error("%s: %s; trying again in %.1f s", what, self.trouble[what], wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(BACK_OFF_S_MAX, wait_s * 2)
            else:
                return

    async def _write_metrics(self) -> None:
        run = places.run(self.settings)
        try:
            while True:
                with suppress(OSError):  # a full disk is told by others
                    self.metrics.write(run)
                await asyncio.sleep(WRITE_S)
        finally:
            self.metrics.close(run)

    async def begin(
        self, ask: Ask, model: str, asked: bytes | None = None, streamed: bool = False
    ) -> tuple[Known, TimedJob]:
        """Choose the version, hold it, and queue the job that lets go of it when it ends; `asked` is a traceparent."""
        generator = self.shelf.generator
        await self.recorder.admit(ask.owner)
        self.speaker.admit()
        known = self.following.find(model)
        await self.following.hold(known)
        label = model if model in self.following.serving or model == BASE else "version"
        answer = event_name(ask, known)
        telling = Telling(
            self.metrics, self.spans, label, known, answer, tracing.header(asked, answer), asked, streamed
        )
        job = TimedJob(ask, known.adapter, generator, on_end=lambda: self.shelf.release(known), telling=telling)
        try:
            self.speaker.submit(job)
        except Problem:
            self.shelf.release(known)
            raise
        return known, job

    async def record(self, ask: Ask, known: Known, texts: tuple[str, ...], asked: bytes | None = None) -> None:
        """Write what was said. Problem 503 if the log does not have it in time."""
        content = AnswerContent(messages=ask.turns, texts=texts)
        items = ask.items(known.version)
        prompt_hash, words = words_of_answer(ask.prompt, items, content)
        event = AnswerGiven(
            prompt=ask.prompt,
            owner=ask.owner,
            items=items,
            release=known.release,
            version=known.version,
            seed=ask.seed,
            rights=self.rights,
            prompt_hash=prompt_hash,
            words=words,
            content=content,
        )
        await self.recorder.record(event, event_name(ask, known), asked)

    async def reachable(self) -> bool:
        """Ask whether the log answers, at most once a second."""
        at_s, answered = self._reached
        if time.monotonic() - at_s > REACHED_S:
            try:
                async with asyncio.timeout(REACH_S_MAX):
                    answered = bool(await cluster_id(self.kafka))
            except Exception as error:  # noqa: BLE001 - every way of not answering is the same here
                log.warning("the log does not answer: %s", type(error).__name__)
                answered = False
            self._reached = (time.monotonic(), answered)
        return answered

    async def unready(self) -> list[str]:
        """Say what is missing; nothing if people can be answered."""
        reasons = [f"{what}: {why}" for what, why in self.trouble.items()]
        if not self.shelf.ready.is_set():
            reasons.append("the base model is not loaded yet")
        if "default" not in self.following.serving:
            reasons.append("no release is followed yet")
        if not await self.reachable():
            reasons.append("Kafka does not answer")
        return reasons


def event_name(ask: Ask, known: Known) -> str:
    """Name the event: a request that is repeated is the same record."""
    return digest("answer", ask.prompt, *ask.items(known.version))
