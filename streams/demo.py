"""Demo: the whole loop once, by itself, on a real broker: posts in, a released version out, and the data kept.

The demo is the operator: it writes log time (`Ticked`) itself, and only once all agents are through, so which records
a reward, a pair or a batch is made of does not depend on how fast this machine is or on what was killed meanwhile.
Killing any process while it runs gives the same dataset root and the same adapter.
"""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from aiokafka.errors import KafkaError

from agents.pairing import judged
from schemas import envelope
from schemas.events import AlertRaised, RewardClosed
from schemas.learned import ModelRefused, ModelReleased, ModelTrained, PairFormed
from schemas.topics import INTERACTIONS, PREFERENCES, SIGNALS, TOPICS
from streams import places
from streams.backup import refuse_running
from streams.broker import FolderLock
from streams.commands import told
from streams.dataset import closed_batches
from streams.kafka import KafkaSettings, end_offsets, ensure_topics
from streams.raters import Raters
from streams.reader import reader
from streams.records import Sent
from streams.sender import Sender
from streams.settings import Settings
from streams.settle import settled
from streams.show import Screen, spark
from streams.supervisor import Deployment, PortTaken, deployment, require_port, ticks
from streams.talk import Talk
from streams.topics import specs
from streams.up import start_all
from streams.vault import Vault

CANDIDATES_A_PROMPT = 3
ANSWER_TOKENS = 48
SHOWN = 4
SIMULATED_POSTS = 150  # enough for a dozen pairs among siblings; training on two cores is what takes the time
VERDICT_S_MAX = 900.0
AGE_MS = 1_000  # of rewards and batches; real deployments wait minutes and hours, this one has minutes in all
GRAPH_HALF_LIFE_MS = 1000 * 365 * 86_400_000  # nothing fades: the posts are as old as they are, and the day is no input
RETRY_S_MAX = 90.0

T = TypeVar("T")


def run_demo(settings: Settings, feed: Path | None, seed: int, prompts: int) -> None:
    """Run it; what it prints is its result. The folder of the run before is kept beside as demo.previous.

    FolderInUse or BackupRefused if something still runs in one of the two.
    """
    if feed is not None and not feed.exists():
        raise FileNotFoundError(
            f"there is no file {feed}: give FEED a file of posts, as X, Jetstream or Mastodon give them (.jsonl, .gz)"
        )
    folder = settings.data / "demo"
    previous = settings.data / "demo.previous"
    if folder.exists():
        with ExitStack() as locks:
            for one in (folder, previous):
                if one.exists():
                    locks.enter_context(FolderLock(one))
                    refuse_running(settings.model_copy(update={"data": one}))
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
    own = {
        "data": folder,
        "ages_ms": (AGE_MS,),
        "batch_age_ms": AGE_MS,
        "graph_half_life_ms": GRAPH_HALF_LIFE_MS,
        "batch_pairs_min": 4,
        "batch_pairs_max": 4096,
        "seed": seed,
        "port": settings.port if _free(settings) else 0,
    }
    asyncio.run(Demo(settings.model_copy(update=own), feed, seed, prompts).run())


def _free(settings: Settings) -> bool:
    try:
        require_port(settings)
    except PortTaken:
        return False
    return True


class Demo:
    """One run."""

    def __init__(self, settings: Settings, feed: Path | None, seed: int, prompts: int) -> None:
        self.settings = settings
        self.feed = feed
        self.prompts = prompts
        self.seed = seed
        self.raters = Raters(seed)
        self.screen = Screen()
        self.kafka: KafkaSettings = KafkaSettings(bootstrap="unset:0")
        self.talk = Talk(settings)

    async def run(self) -> None:
        """Every part in order; whatever happens, all processes are ended."""
        say = self.screen.say
        async with deployment(self.settings, {}, lambda text: say(f"  {text}")) as running:
            self.screen.head("Kafka, the worker, the trainer and the server start")
            await start_all(running, self.screen, "worker", "trainer", "server")
            self.kafka = running.kafka
            self.vault = Vault(self.settings.data / "vault" / "keys.sqlite")
            self.sender = Sender(self.settings, self.kafka)
            task = asyncio.create_task(self._parts(running))
            await asyncio.wait({task, running.failed}, return_when=asyncio.FIRST_COMPLETED)
            if running.failed.done():
                task.cancel()
                running.failed.result()
            task.result()
            await self.sender.stop()
        self._next_steps()

    async def _parts(self, running: Deployment) -> None:
        await self._patiently(lambda: ensure_topics(self.kafka, specs(self.settings)))
        await self._posts()
        await self._tick_when_settled(INTERACTIONS.name)  # the graph is measured, and its scores go to `signals`
        await self._tick_when_settled(SIGNALS.name)
        await self._rewards("post")
        self.screen.head("the server loads the base model")
        with self.screen.progress("waiting for the server"):
            await self.talk.ready()
        await self._answers()
        await self._tick_when_settled(SIGNALS.name)
        await self._rewards("answer")
        await self._tick_when_settled(PREFERENCES.name)
        await self._counts()
        await self._pairs()
        trained = await self._training()
        await self._verdict(trained)

    # ---- parts ------------------------------------------------------------------------------------------------------

    async def _posts(self) -> None:
        from streams.ingest import ingest, ingest_values
        from streams.lines import read_lines
        from streams.policy import Policy

        policy = Policy.load(self.settings.policy)
        began = time.monotonic()

        async def run() -> Any:
            if self.feed is not None:
                lines = read_lines(str(self.feed))
                with self.screen.progress("posts taken in") as advance:
                    return await ingest(
                        lines,
                        None,
                        self.settings,
                        self.sender,
                        self.vault,
                        policy,
                        _now_ms,
                        lambda now: advance(now.posts, 0),
                    )
            from streams.simulator import Simulator

            events = Simulator(self.seed, authors=40, posts=SIMULATED_POSTS).events()
            return await ingest_values(events, "simulator", self.settings, self.sender, self.vault, policy, _now_ms)

        self.screen.head(f"posts in, from {self.feed or 'the simulator'}")
        summary = await self._patiently(run)
        for line in told(summary):
            self.screen.say(f"  {line}")
        await self._settled()
        self.screen.say(f"  every agent is through after {time.monotonic() - began:.1f} s")

    async def _answers(self) -> None:
        n = CANDIDATES_A_PROMPT
        self.screen.head(f"{self.prompts} questions, {n} answers each by the base; simulated people judge them")
        judgements = 0
        with self.screen.progress("answering") as advance:
            for index, question in enumerate(self.raters.questions(self.prompts)):
                answer = await self.talk.ask(question, n, ANSWER_TOKENS, f"demo-{self.seed}-{index}")
                judged_now = self.raters.judge(
                    answer.prompt, question, list(zip(answer.subjects, answer.texts, strict=True))
                )
                for one in judged_now:
                    await self.talk.judge(one)
                judgements += len(judged_now)
                advance(index + 1, self.prompts)
        self.screen.say(
            f"  {self.prompts * n} answers in `answers`, {judgements} judgements in `feedback` (marked simulated)"
        )

    async def _rewards(self, kind: str) -> None:
        closed = [
            event
            for event in await self._events("rewards")
            if isinstance(event, RewardClosed) and (event.kind == "answer") == (kind == "answer")
        ]
        self.screen.head(f"rewards: {len(closed)} {kind}s closed")
        parts = ("human", "review", "engagement", "network", "temporal", "content")

        def cell(value: float | None) -> str:
            return "missing" if value is None else f"{value:+.2f}"

        best = sorted(closed, key=lambda event: (-event.total, event.subject))
        chosen = [*best[:SHOWN], *best[-SHOWN:]] if len(best) > 2 * SHOWN else best
        rows = [
            (e.subject[:44], f"{e.total:+.3f}", *(cell(getattr(e.components, p)) for p in parts), f"{e.penalty:.2f}")
            for e in chosen
        ]
        self.screen.table((f"highest and lowest {kind}s", "reward", *parts, "penalty"), rows)
        if kind == "post":
            refused = sum(e.kind == "reply" and e.final and not e.trainable and judged(e) for e in closed)
            pairs = sum(isinstance(event, PairFormed) for event in await self._events("preferences"))
            policies = ", ".join(sorted({e.policy for e in closed if not e.trainable})) or "-"
            if refused:
                self.screen.say(f"  {pairs} pairs: policy {policies} ({refused} replies may not be trained on)")
            else:
                self.screen.say(f"  {pairs} pairs among sibling replies")

    async def _counts(self) -> None:
        self.screen.head("records in each topic")
        names = [self.settings.physical(topic.name) for topic in TOPICS]
        ends = await self._patiently(lambda: end_offsets(self.kafka, names))
        counts: dict[str, int] = {}
        for tp, end in ends.items():
            counts[tp.topic] = counts.get(tp.topic, 0) + end
        seconds = time.monotonic() - self.screen.began
        rows = [
            (t.name, counts[self.settings.physical(t.name)], counts[self.settings.physical(t.name)] / seconds)
            for t in TOPICS
        ]
        self.screen.table(("topic", "records", "per second"), rows)

    async def _pairs(self) -> None:
        pairs = [event for event in await self._events("preferences") if isinstance(event, PairFormed)]
        by_origin: dict[str, int] = {}
        for pair in pairs:
            by_origin[pair.origin] = by_origin.get(pair.origin, 0) + 1
        async with reader(self.settings, self.kafka) as log_reader:
            batches = [batch for _, batch in await closed_batches(log_reader)]
        self.screen.head(f"{len(pairs)} pairs ({', '.join(f'{n} from {o}' for o, n in sorted(by_origin.items()))})")
        for batch in batches:
            self.screen.say(f"  batch {batch.sequence} closed by {batch.closed_by}: {len(batch.pairs)} pairs")
            self.screen.say(f"  dataset root {batch.root}")
        if not batches:
            raise NoBatch("no batch closed: too few pairs; run with more --prompts or another --seed")

    async def _training(self) -> ModelTrained:
        self.screen.head("DPO with LoRA on the closed batch")
        path = places.run(self.settings) / "trainer.status.json"
        deadline = time.monotonic() + VERDICT_S_MAX
        with self.screen.progress("training, then evaluating") as advance:
            while time.monotonic() < deadline:
                found = [e for e in await self._events("candidates") if isinstance(e, ModelTrained) and e.adapter]
                if found:
                    break
                for alert in await self._events("alerts"):
                    if isinstance(alert, AlertRaised) and alert.stage == "trainer":
                        raise NoVersion(f"the trainer refused the batch: {alert.detail}")
                try:
                    told = json.loads(path.read_text())
                except (OSError, ValueError):
                    told = {}
                advance(told.get("step") or 0, told.get("steps") or 0)
                await asyncio.sleep(1.0)
            else:
                raise TimeoutError(
                    f"no version after {VERDICT_S_MAX:.0f} s; see {places.logs(self.settings)}/trainer.log"
                )
        trained = found[0]
        losses = trained.losses
        self.screen.say(f"  loss {losses[0]:.3f} {spark(losses)} {losses[-1]:.3f} over {len(losses)} steps")
        self.screen.say(
            f"  {trained.trained} pairs trained on, {trained.held_back} held back, {trained.withheld} withheld"
        )
        self.screen.say(f"  adapter sha256 {trained.version}")
        return trained

    async def _verdict(self, trained: ModelTrained) -> None:
        if trained.measured and trained.baseline:
            self.screen.head("evaluation, the same for the base")
            names = type(trained.measured).model_fields
            rows = [(n.replace("_", " "), getattr(trained.measured, n), getattr(trained.baseline, n)) for n in names]
            self.screen.table(("measure", "new version", "base"), rows)
        verdict = await self._wait_verdict(trained.version)
        if isinstance(verdict, ModelRefused):
            self.screen.head("verdict: refused")
            for reason in verdict.reasons:
                self.screen.say(f"  {reason}")
            return
        self.screen.head(f"verdict: released as release {verdict.release}")
        for note in verdict.notes:
            self.screen.say(f"  {note}")
        await self.talk.follows(trained.version)
        self.screen.head("the same question, both versions")
        question = self.raters.questions(self.prompts + 1)[-1]
        self.screen.say(f"  {question}")
        for name, version in (("base", trained.base), ("new ", trained.version)):
            answer = await self.talk.ask(question, 1, ANSWER_TOKENS, f"demo-{self.seed}-both", version, greedy=True)
            self.screen.say(f"  {name} {version[:12]}  {' '.join(answer.texts[0].split())}")

    async def _wait_verdict(self, version: str) -> ModelReleased | ModelRefused:
        deadline = time.monotonic() + RETRY_S_MAX
        while time.monotonic() < deadline:
            for event in await self._events("models"):
                if isinstance(event, ModelReleased | ModelRefused) and event.version == version:
                    return event
            await asyncio.sleep(0.5)
        raise TimeoutError(f"no verdict on {version[:12]} after {RETRY_S_MAX:.0f} s")

    def _next_steps(self) -> None:
        data = os.path.relpath(self.settings.data)
        url = f"http://127.0.0.1:{self.settings.port or 8642}"
        self.screen.head("done; the data stays")
        for line in (
            f"go on from here:      .venv/bin/xinfluencer --data {data} up",
            f"then ask:             curl -s {url}/v1/chat/completions -H 'content-type: application/json' \\",
            '                        -d \'{"messages":[{"role":"user","content":"How do I sleep better?"}]}\'',
            f"the API's description: {url}/openapi.json",
            f"the training set:     .venv/bin/xinfluencer --data {data} replay --out train.jsonl",
            f"is the log whole:     .venv/bin/xinfluencer --data {data} verify",
            f"what the processes said: {data}/logs",
        ):
            self.screen.say(f"  {line}")

    # ---- means ------------------------------------------------------------------------------------------------------

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it again while the broker is away; everything here can be repeated, because ids are what they are."""
        deadline = time.monotonic() + RETRY_S_MAX
        while True:
            try:
                return await work()
            except (KafkaError, OSError, LookupError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise
                self.screen.say(f"  the broker is away ({type(error).__name__}); trying again")
                await self.sender.stop()
                await asyncio.sleep(1.0)

    async def _settled(self) -> None:
        with self.screen.progress("the agents are working"):
            await settled(self.settings, self.kafka, 300.0)

    async def _tick_when_settled(self, topic: str) -> None:
        """Let the youngest record come of age, then say so to the topic's agents, and wait until they are through."""
        await self._settled()
        await asyncio.sleep(AGE_MS / 1000 + 0.2)
        now: list[Sent] = [one for one in ticks(self.settings, _now_ms()) if one.topic == topic]
        await self._patiently(lambda: self.sender.send(now))
        await self._settled()

    async def _events(self, topic: str) -> list[Any]:
        """Read a topic's events, duplicates left out."""

        async def read() -> list[Any]:
            seen: dict[str, Any] = {}
            async with reader(self.settings, self.kafka) as log_reader:
                for (name, partition), raws in (await log_reader.everything(topic)).items():
                    for raw in raws:
                        record = envelope.decode(name, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
                        seen.setdefault(record.id, record.event)
            return list(seen.values())

        return await self._patiently(read)


class NoVersion(Exception):
    """The batch that closed gave no version."""


class NoBatch(Exception):
    """Not enough pairs for a batch."""


def _now_ms() -> int:
    return int(time.time() * 1000)
