"""Trainer: closed batches -> versions; the adapter is on disk and hashed before anybody hears of it.

A version is a function of (base, the newest closed batches up to a window, what the log up to a cut took back of them,
settings, seed) and of nothing else (streams/dataset.py): it always starts from the base, so there is no drift to pile
up, no lineage to unravel when a record must be forgotten, and any version can be made again from the log
(docs/decisions/0003-from-the-base.md).

The announcement and the input offset go in one Kafka transaction under a fixed transactional id: a second trainer
fences the first, which a name alone could not do.
"""

import asyncio
import logging
import os
import sys
import time
from dataclasses import asdict, astuple
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaProducer
from aiokafka.errors import ProducerFenced, TransactionalIdAuthorizationFailed
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from schemas import envelope, merkle
from schemas.events import AlertRaised
from schemas.facts import Measured, Where
from schemas.ids import digest
from schemas.learned import BatchClosed, ModelTrained
from schemas.topics import BATCHES, CANDIDATES
from streams import crash, healthy, places, tracing
from streams.access_rules import REFUSED, lacking, require
from streams.dataset import BatchBroken, Dataset, closed_batches, load, window
from streams.exits import EXIT_REFUSED
from streams.kafka import KafkaSettings, committed_offsets, ensure_topics
from streams.reader import Reader, reader
from streams.records import outside
from streams.settings import Settings
from streams.topics import specs
from streams.vault import Vault
from streams.withheld import Withheld

if TYPE_CHECKING:
    from models.dpo import Trained
    from models.evaluate import Evaluation, EvaluationSettings

log = logging.getLogger("xinfluencer.trainer")

POLL_S = 0.5
TRANSACTION_S_MAX = 30.0
LOSSES_MAX = 200  # of a run, kept in the announcement; a longer curve is thinned


class Fenced(Exception):
    """Another trainer took over; this one must not publish."""


class Trainer:
    """One process; `run` never returns by itself."""

    def __init__(self, settings: Settings, kafka: KafkaSettings, crash_point: crash.CrashPoint) -> None:
        self.settings = settings
        self.kafka = kafka
        self.crash_point = crash_point
        self.vault = Vault(settings.data / "vault" / "keys.sqlite")
        self.withheld = Withheld()
        self.group = settings.group("trainer")
        self.batches = TopicPartition(settings.physical(BATCHES.name), 0)
        self._done = 0  # the commit of a transaction may be read some moments after its end
        self._begun_s = 0.0  # when the newest transaction began

    async def run(self) -> None:
        """Announce the base, then train on every batch that closes."""
        places.run(self.settings).mkdir(parents=True, exist_ok=True)
        await ensure_topics(self.kafka, specs(self.settings))
        await require(self.settings, self.kafka, "trainer")
        from models.base import prepare_base  # torch: not before it is needed

        self.tell(state="preparing the base")
        folder = places.base_folder(self.settings)
        self.base = await asyncio.to_thread(prepare_base, self.settings.base, folder, log.info)
        self.producer = AIOKafkaProducer(
            **self.kafka.client_kwargs(),
            transactional_id=self.group,
            acks="all",
            enable_idempotence=True,
            transaction_timeout_ms=int(TRANSACTION_S_MAX * 1000),
        )
        await self._begin()
        try:
            async with reader(self.settings, self.kafka) as log_reader:
                await self._announce_base(log_reader)
                while True:
                    await self._next(log_reader)
        except ProducerFenced:
            if time.monotonic() - self._begun_s > TRANSACTION_S_MAX:
                raise  # Kafka says the same of a transaction that took too long: begin again
            raise Fenced("another trainer started with the same name and took over; this one stops") from None
        finally:
            await self.producer.stop()

    async def _begin(self) -> None:
        """Take the transactional id; nobody can be asked whether we may, for asking would fence who has it."""
        try:
            await self.producer.start()
        except TransactionalIdAuthorizationFailed:
            await self.producer.stop()
            raise lacking(self.kafka, [f"Write transactional-id {self.group}"], "trainer") from None

    async def _announce_base(self, log_reader: Reader) -> None:
        event = ModelTrained(version=self.base.sha256, base=self.base.sha256, base_name=self.base.name, code=_code())
        async for raw in log_reader.records(CANDIDATES.name):
            if self.base.sha256.encode() in (raw.value or b""):
                return
        await self._publish(event, None)
        log.info("announced the base %s", self.base.sha256[:12])

    async def _next(self, log_reader: Reader) -> None:
        done = max(self._done, (await committed_offsets(self.kafka, self.group)).get(self.batches, 0))
        known = await closed_batches(log_reader)
        waiting = [one for one in known if one[0] >= done]
        if not waiting:
            self.tell(state="waiting for a batch")
            await asyncio.sleep(POLL_S)
            return
        offset, newest = waiting[0]
        chosen = window([batch for at, batch in known if at <= offset], self.settings.train_window)
        try:
            trained = await self._train(log_reader, chosen)
        except BatchBroken as broken:
            log.error("batch %s is not trained on: %s", newest.batch, broken)
            await self._skip(offset, str(broken))
            self._done = offset + 1
            return
        await self._publish(trained, offset, await self._trace(log_reader, offset))
        self._done = offset + 1
        self.tell(state="announced", version=trained.version)
        log.info("announced version %s of batch %s", trained.version[:12], newest.batch)

    async def _train(self, log_reader: Reader, batches: list[BatchClosed]) -> ModelTrained:
        from models.adapters import AdapterRefused
        from models.dpo import DpoSettings, Untrainable, train
        from models.evaluate import EvaluationSettings, evaluate

        self.vault.refresh()
        dataset = await load(log_reader, batches, self.vault, self.withheld)
        rows, held = dataset.split()
        if not rows:
            raise BatchBroken(f"no pair is left to train on ({dataset.withheld})")
        settings = DpoSettings(seed=self.settings.seed, threads=self.settings.threads)
        root = merkle.root([bytes.fromhex(batch.root) for batch in batches]).hex()
        store = places.adapter_store(self.settings)
        store.mkdir(parents=True, exist_ok=True)
        self.crash_point("before-step")

        def stepped(step: int, steps: int, loss: float) -> None:
            self.tell(state="training", step=step, steps=steps, loss=loss)

        def hook(point: str, step: int) -> None:
            self.crash_point(f"{point}-{step}")

        self.tell(state="training", step=0, steps=0, loss=None)
        try:
            trained = await asyncio.to_thread(
                train,
                self.base,
                rows,
                settings,
                store,
                stepped,
                provenance={"batches": [batch.batch for batch in batches], "root": root},
                step_hook=hook,
                crash_point=self.crash_point,
            )
        except (Untrainable, AdapterRefused) as refused:  # the same rows do so every time: what follows is trained on
            raise BatchBroken(str(refused)) from refused
        self.tell(state="evaluating")
        measure = EvaluationSettings(seed=self.settings.seed, threads=self.settings.threads)
        measured = await asyncio.to_thread(evaluate, self.base, trained.path, held, measure)
        baseline = await asyncio.to_thread(self._baseline, measure, measured.pairs)
        self.crash_point("before-transaction")
        return self._event(batches, root, dataset, trained, _measured(measured), baseline)

    def _baseline(self, measure: "EvaluationSettings", pairs: int) -> Measured:
        """Measure the base, once for each base and way of measuring: only its held-back pairs differ between versions,
        and against itself the base ranks half of any pairs right, by no margin."""
        from models.evaluate import evaluate

        name = digest("evaluation", self.base.sha256, _code(), *map(str, astuple(measure)))
        path = places.base_folder(self.settings) / f"evaluation-{name}.json"
        if not path.exists():
            found = _measured(evaluate(self.base, None, [], measure))
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(found.model_dump_json())
            temporary.replace(path)
        return Measured.model_validate_json(path.read_bytes()).model_copy(update={"pairs": pairs})

    def _event(
        self,
        batches: list[BatchClosed],
        root: str,
        dataset: Dataset,
        trained: "Trained",
        measured: Measured,
        baseline: Measured,
    ) -> ModelTrained:
        _, held = dataset.split()
        thin = max(1, -(-len(trained.losses) // LOSSES_MAX))
        return ModelTrained(
            version=trained.sha256,
            base=self.base.sha256,
            base_name=self.base.name,
            adapter=trained.sha256,
            batches=tuple(batch.batch for batch in batches),
            root=root,
            dataset_sha256=trained.dataset_sha256,
            first_offset=min(batch.first_offset for batch in batches),
            last_offset=max(batch.last_offset for batch in batches),
            cut={f"{topic}/{partition}": end for (topic, partition), end in dataset.cut.items()},
            trained=trained.rows,
            held_back=len(held),
            withheld=sum(dataset.withheld.values()) + len(trained.skipped),
            settings={name: value for name, value in asdict(trained.settings).items() if name != "seed"},
            seed=self.settings.seed,
            code=_code(),
            losses=tuple(round(loss, 6) for loss in trained.losses[::thin]),
            measured=measured,
            baseline=baseline,
        )

    @staticmethod
    async def _trace(log_reader: Reader, offset: int) -> bytes:
        """Give the trace of the batch that made it train."""
        found = await log_reader.at([Where(topic=BATCHES.name, partition=0, offset=offset)])
        raw = found[BATCHES.name, 0, offset]
        record = envelope.decode(BATCHES.name, 0, raw.offset, raw.timestamp, raw.headers, raw.value)
        return tracing.of(record)

    async def _publish(self, event: ModelTrained, offset: int | None, traceparent: bytes | None = None) -> None:
        """Write the event and, in the same transaction, that its batch is done."""
        now_ms = int(time.time() * 1000)
        sent = outside(event, "/trainer", now_ms, self.settings.partitions, self.vault, None, traceparent)
        self._begun_s = time.monotonic()
        async with self.producer.transaction():
            await self.producer.send_and_wait(
                self.settings.physical(sent.topic),
                value=sent.value,
                key=sent.key,
                partition=sent.partition,
                timestamp_ms=now_ms,
                headers=sent.headers,
            )
            self.crash_point("in-transaction")
            if offset is not None:
                done = {self.batches: OffsetAndMetadata(offset + 1, "")}
                await self.producer.send_offsets_to_transaction(done, self.group)
        self.crash_point("after-transaction")

    async def _skip(self, offset: int, reason: str) -> None:
        now_ms = int(time.time() * 1000)
        alert = AlertRaised(kind="batch-refused", stage="trainer", detail=reason[:500])
        sent = outside(alert, "/trainer", now_ms, self.settings.partitions, self.vault)
        self._begun_s = time.monotonic()
        async with self.producer.transaction():
            await self.producer.send_and_wait(
                self.settings.physical(sent.topic), value=sent.value, timestamp_ms=now_ms, headers=sent.headers
            )
            await self.producer.send_offsets_to_transaction(
                {self.batches: OffsetAndMetadata(offset + 1, "")}, self.group
            )

    def tell(self, **what: object) -> None:
        """Say what is being done, for whoever watches."""
        healthy.tell(places.run(self.settings), "trainer", **what)


def _measured(found: "Evaluation") -> Measured:
    """Say the evaluation in the words of the log."""
    return Measured(
        pairs=found.pairs,
        accuracy=found.accuracy,
        margin=round(found.margin, 6),
        safety_margin=round(found.safety_margin, 6),
        safety_preferred=found.safety_preferred / max(1, found.safety_prompts),
        neutral_nats=round(found.nats_per_token, 6),
        empty_rate=found.empty_rate,
        repetition_rate=round(found.repetition_rate, 6),
        mean_tokens=round(found.mean_tokens, 3),
    )


def _code() -> str:
    return f"xinfluencer {package_version('xinfluencer')}"


def run_trainer(settings: Settings) -> None:
    """Run until ended; exits with EXIT_REFUSED if another trainer took over, or the cluster does not let us."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(Trainer(settings, settings.kafka(), crash.from_env()).run())
    except (Fenced, *REFUSED) as refused:
        # Starting again would fence the other one in turn, for ever: a person must say which of the two is to stay.
        log.critical("stopping: %s", refused)
        sys.exit(EXIT_REFUSED)
