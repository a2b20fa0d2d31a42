"""Sink: every topic -> the analytics tables, batch by batch; the place reached is kept in the database after the rows.

Order is everything: rows, then the checkpoint. A crash between them repeats rows, and since each is known by its id
(streams/tables.py) nobody who asks sees one twice. It reads without a group and writes nothing but receipts of what it
erased and alerts. What cannot be read is counted by its place in `sink_skipped`: whoever owns the topic dead-letters
it. Anything odd ends the process, and the supervisor starts it again from the checkpoint.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from schemas import envelope
from schemas.envelope import Refused
from schemas.events import AlertRaised
from schemas.facts import Event, Where
from schemas.posts import AuthorErased, AuthorHidden, AuthorShown, IntentDeclared, PostDeleted
from schemas.topics import TOPICS, partitions
from streams import crash, places
from streams import tables as t
from streams.access_rules import REFUSED, require
from streams.analytics import Answering
from streams.exits import EXIT_REFUSED, leave, or_fail, stop_process
from streams.forgetting import HIDDEN, NO_INDEX, Forgetting, Request
from streams.kafka import KafkaSettings, cluster_id, ensure_topics, stopped, topic_ids
from streams.quick import fields_of, writer_of
from streams.reader import LogUnreadable, reader
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.topics import specs
from streams.vault import Vault
from streams.warehouse import Warehouse, WarehouseRefused, client, locked

log = logging.getLogger("xinfluencer.sink")

ROWS_MAX = 20_000  # a batch: about 60 MB as events, and the engine writes large parts far faster than small ones
POLL_ROWS_MAX = 5_000  # decoded at a stretch: a signal or a question waits at most some 50 ms
FLUSH_S = 1.0  # how old a small batch may become
POLL_MS = 200
STATUS_S = 1.0

TAKING_BACK = frozenset((PostDeleted, AuthorErased, AuthorHidden, AuthorShown, IntentDeclared))

Place = tuple[str, int]


@dataclass
class Batch:
    """Records on their way into tables: by kind, with where each partition stands after them."""

    withheld: Callable[[str, str], bool] = lambda owner, why: False  # whether an author is, before it
    began_s: float = field(default_factory=time.monotonic)
    rows: int = 0
    events: dict[type[Event], list[Any]] = field(default_factory=dict)  # or what has their fields: see streams/quick.py
    marks: dict[type[Event], list[tuple[Any, ...]]] = field(default_factory=dict)  # what t.RECORD says, one a row
    skipped: list[tuple[Any, ...]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    hides: set[tuple[str, str]] = field(default_factory=set)  # who is withheld from somewhere in it on, and why
    lift: tuple[str, str] | None = None  # who is let in again behind its last record, and of what
    next: dict[Place, int] = field(default_factory=dict)

    def take(self, topic: str, partition: int, records: Sequence[Any]) -> Sequence[Any]:
        """Decode records of one partition, in order, up to one that lets somebody in again; gives back the rest."""
        assert self.lift is None
        events, marks, rest = self.events, self.marks, records[:0]
        for index, raw in enumerate(records, 1):
            value, offset, time_ms = raw.value, raw.offset, raw.timestamp
            size = len(value) if value is not None else 0
            found: tuple[Any, str, str, Any] | None = fields_of(topic, time_ms, raw.headers, value)
            if found is None:
                try:
                    one = envelope.decode(topic, partition, offset, time_ms, raw.headers, value)
                except Refused as refused:
                    self.skipped.append((topic, partition, offset, max(0, time_ms), refused.reason, size))
                    continue
                writer = one.origin.stage if one.origin is not None else writer_of(dict(raw.headers).get("ce_source"))
                found = type(one.event), one.id, writer, one.event
            event: Any
            kind, event_id, writer, event = found
            if kind not in events:
                events[kind], marks[kind] = [], []
            events[kind].append(event)
            marks[kind].append((event_id, topic, partition, offset, time_ms, writer, size))
            if kind in TAKING_BACK:
                request = Request.of(Where(topic=topic, partition=partition, offset=offset), kind, event)
                if request is not None:
                    self.requests.append(request)
                    self.hides.add((request.owner, request.why))
                elif kind is AuthorShown or kind is IntentDeclared:
                    lift = (event.owner, HIDDEN if kind is AuthorShown else NO_INDEX)
                    if lift in self.hides or self.withheld(*lift):
                        self.lift, records, rest = lift, records[:index], records[index:]
                        break
        if records:
            self.rows += len(records)
            self.next[topic, partition] = records[-1].offset + 1
        return rest

    def columns(self) -> dict[t.Table, dict[str, list[Any]]]:
        """Give the batch as columns, by table."""
        found = {}
        for kind, events in self.events.items():
            table = t.TABLES[kind]
            marks = zip(*self.marks[kind], strict=True)
            found[table] = {name: list(one) for (name, _), one in zip(t.RECORD, marks, strict=True)}
            found[table].update(t.values(table, events))
        return found


def types_of(table: t.Table) -> dict[str, str]:
    """Give the SQL type of every column that is inserted."""
    return {**dict(t.RECORD), **{column.name: column.sql for column in table.columns}}


def write(
    batch: Batch,
    warehouse: Warehouse,
    forgetting: Forgetting,
    logs: Mapping[str, str],
    crash_point: Callable[[str], None] = crash.nowhere,
) -> int:
    """Put a batch into the tables, then keep where it ends; gives the rows written. Repeating it changes nothing."""
    forgetting.ask(batch.requests)
    columns = batch.columns()
    forgetting.sift(columns)
    rows = 0
    for table, values in columns.items():
        rows += warehouse.insert(table.name, values, types_of(table))
        crash_point("after-insert")
    if batch.lift is not None:  # from the next batch on: of this one, what they said before must stay out
        forgetting.lift(*batch.lift, time.monotonic())
    if batch.skipped:
        warehouse.keep("sink_skipped", batch.skipped)
    crash_point("before-checkpoint")
    warehouse.keep("sink_checkpoint", [(topic, part, logs[topic], at) for (topic, part), at in batch.next.items()])
    crash_point("after-checkpoint")
    return rows


class Sink:
    """The process: one consumer, one thread that writes, one socket that answers."""

    def __init__(self, settings: Settings, kafka: KafkaSettings, crash_point: Callable[[str], None]) -> None:
        self.settings = settings
        self.kafka = kafka
        self.crash_point = crash_point
        self.warehouse = Warehouse(client(settings))
        self.forgetting = Forgetting(self.warehouse, crash_point)
        self.sender = Sender(settings, kafka)
        self.vault = Vault(settings.data / "vault" / "keys.sqlite")
        self.logs: dict[str, str] = {}
        self.written: dict[Place, int] = {}
        self.taken: dict[Place, int] = {}
        self.ends: dict[Place, int] = {}
        self.rows = 0
        self.skipped: Counter[str] = Counter()
        self.stopping = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)  # one writer: batches and erasures in their order
        self._rest: list[tuple[TopicPartition, Sequence[Any]]] = []  # polled and not taken yet
        self._hides: set[tuple[str, str]] = set()  # by the batch that is being written
        self._told_s = 0.0
        self._rate = (time.monotonic(), 0)

    async def run(self) -> None:
        """Copy until told to stop. WarehouseRefused when a person must act."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.stopping.set)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(Answering(self.settings).serve(self.stopping))
                group.create_task(or_fail(self._copy()))
        finally:
            self._thread.shutdown()
            await self.sender.stop()
            self.vault.close()

    async def _in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    async def _copy(self) -> None:
        began = await self._in_thread(self._prepare)
        await ensure_topics(self.kafka, specs(self.settings))
        await require(self.settings, self.kafka, "sink")
        cluster = await cluster_id(self.kafka)
        ids = await topic_ids(self.kafka, [self.settings.physical(topic.name) for topic in TOPICS])
        self.logs = {self.settings.logical(name): f"{cluster}/{one}" for name, one in ids.items()}
        await self._resume(began)
        consumer = AIOKafkaConsumer(
            **self.kafka.client_kwargs(),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        await consumer.start()
        try:
            await self._seek(consumer)
            await self._follow(consumer)
        finally:
            await stopped(consumer)

    def _prepare(self) -> list[Where]:
        made = self.warehouse.migrate()
        log.info("the analytics tables are at version %d (%d statements)", t.VERSION, made)
        return self.forgetting.load()

    async def _resume(self, unfinished: list[Where]) -> None:
        """Hold the checkpoint against this log, and ask the log again whom the unfinished erasures are about."""
        for (topic, partition), (log_id, at) in (await self._in_thread(self.warehouse.places)).items():
            if self.logs.get(topic) != log_id:
                raise WarehouseRefused(
                    f"the analytics database was filled from another log: {topic}/{partition} was {log_id}, here it is "
                    f"{self.logs.get(topic)}. If the broker's folder was wiped on purpose, remove the database too: "
                    f"the folder {self.settings.data / 'analytics'}, or the one that XINFLUENCER_CLICKHOUSE names"
                )
            self.written[topic, partition] = at
        # What lies behind the checkpoint is read again with its batch; taken up twice it would be counted twice.
        unfinished = [one for one in unfinished if one.offset < self.written.get((one.topic, one.partition), 0)]
        if unfinished:
            async with reader(self.settings, self.kafka) as log_reader:
                found = await log_reader.at(unfinished)
            for place, raw in found.items():
                where = Where(topic=place[0], partition=place[1], offset=place[2])
                self.forgetting.resume(where, envelope.decode(*place, raw.timestamp, raw.headers, raw.value).event)

    async def _seek(self, consumer: AIOKafkaConsumer) -> None:
        """Go to where each partition stands; a stretch that retention took meanwhile is named in `alerts`."""
        tps = {
            (topic.name, partition): TopicPartition(self.settings.physical(topic.name), partition)
            for topic in TOPICS
            for partition in range(partitions(topic, self.settings.partitions))
        }
        consumer.assign(list(tps.values()))
        starts = await consumer.beginning_offsets(list(tps.values()))
        ends = await consumer.end_offsets(list(tps.values()))
        for place, tp in tps.items():
            at = self.written.get(place, 0)
            if at > ends[tp]:
                raise WarehouseRefused(
                    f"the analytics database holds {place[0]}/{place[1]} up to {at}, the log ends at {ends[tp]}: "
                    "the log was cut. Restore it, or remove the database and let the sink fill a new one"
                )
            if place in self.written and at < starts[tp]:
                detail = f"{place[0]}/{place[1]}: {at} to {starts[tp]} was deleted by retention before it was copied"
                await self._say(AlertRaised(kind="records-missed", stage="sink", detail=detail))
            at = max(at, starts[tp])
            self.written[place] = self.taken[place] = at
            self.ends[place] = ends[tp]
            consumer.seek(tp, at)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        batch = Batch(self._withheld)
        writing: asyncio.Future[int] | None = None
        while not self.stopping.is_set():
            if not self._rest:
                self._rest = list((await consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_ROWS_MAX)).items())
            while self._rest and batch.lift is None:
                tp, records = self._rest.pop(0)
                if left := batch.take(self.settings.logical(tp.topic), tp.partition, records):
                    self._rest.insert(0, (tp, left))
            self.taken.update(batch.next)
            now_s = time.monotonic()
            if batch.rows >= ROWS_MAX or batch.lift or (batch.rows and now_s - batch.began_s >= FLUSH_S):
                if writing is not None:
                    self.rows += await writing  # one is written while the next is read, and no more than that
                lifted, writing, batch = batch.lift, self._write(batch), Batch(self._withheld)
                if lifted:  # what comes next must find them let in
                    self.rows, writing = self.rows + await writing, None
            if writing is not None and writing.done():
                self.rows, writing = self.rows + writing.result(), None
            if now_s - self._told_s >= STATUS_S:
                self._told_s = now_s
                await self._forget(now_s)
                await self._tell(consumer)
        if writing is not None:
            self.rows += await writing
        if batch.rows:
            self.rows += await self._write(batch)
        await self._tell(consumer, ended=True)

    def _withheld(self, owner: str, why: str) -> bool:
        """Say whether somebody is withheld, or is going to be by the batch that is being written."""
        return (owner, why) in self._hides or self.forgetting.withholds(owner, why)

    def _write(self, batch: Batch) -> "asyncio.Future[int]":
        def work() -> int:
            rows = write(batch, self.warehouse, self.forgetting, self.logs, self.crash_point)
            self.written.update(batch.next)
            self.skipped.update(reason for _, _, _, _, reason, _ in batch.skipped)
            return rows

        self._hides = batch.hides
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _forget(self, now_s: float) -> None:
        if self.forgetting.asked and await self._in_thread(self.forgetting.erase, now_s):
            log.info("erased what %d requests named; waiting for the bytes", len(self.forgetting.erased))
        gone = await self._in_thread(self.forgetting.gone) if self.forgetting.erased else []
        if gone:
            self.crash_point("before-receipt")
            await self._say(*(request.receipt() for request in gone))
            self.crash_point("after-receipt")
            await self._in_thread(self.forgetting.done)

    async def _say(self, *events: "Event | tuple[Event, str]") -> None:
        now_ms = int(time.time() * 1000)
        named = [one if isinstance(one, tuple) else (one, None) for one in events]
        width = self.settings.partitions
        await self.sender.send([outside(event, "/sink", now_ms, width, self.vault, name) for event, name in named])

    async def _tell(self, consumer: AIOKafkaConsumer, ended: bool = False) -> None:
        """Write run/sink.status.json: for each partition what is written, what was taken, the position, the end."""
        ranges = {}
        for tp in consumer.assignment():
            place = (self.settings.logical(tp.topic), tp.partition)
            position = self.taken[place] if self._rest else await consumer.position(tp)
            self.ends[place] = max(position, self.ends[place], consumer.last_stable_offset(tp) or 0)
            ranges[f"{place[0]}/{place[1]}"] = (self.written[place], self.taken[place], position, self.ends[place])
        now_s = time.monotonic()
        (then_s, then), self._rate = self._rate, (now_s, self.rows)
        status = {
            "pid": os.getpid(),
            "ended": ended,  # by itself: of a dead process that does not say so, the figures still count
            "time": time.time(),
            "applied": self.rows,
            "partitions": ranges,
            "rows_per_s": round((self.rows - then) / max(now_s - then_s, 1e-3), 1),
            "skipped": dict(self.skipped),
            "too_late": self.forgetting.dropped,
            "to_erase": len(self.forgetting.asked) + len(self.forgetting.erased),
            "owed_since_s": self.forgetting.owed_since(),
            "rss_bytes": rss_bytes(),
        }
        path = places.run(self.settings) / "sink.status.json"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(status))
        temporary.replace(path)


def rss_bytes() -> int:
    """Give the memory that this process holds now; where the kernel does not say, the most it ever held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_sink(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; leaves with EXIT_REFUSED when a person must act, else with EXIT_AGAIN."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)

    async def run() -> None:
        sink = Sink(settings, settings.kafka(), crash.from_env())
        with contextlib.closing(sink.warehouse.client):
            await sink.run()

    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A batch is tens of thousands of objects that die with it and hardly a cycle: look for cycles less often.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        with locked(settings):
            asyncio.run(run())
    except* (WarehouseRefused, LogUnreadable, *REFUSED) as refused:
        stop_process(str(_first(refused)), EXIT_REFUSED)
    except* Exception as failed:  # noqa: BLE001 - whatever it is, a new process starts from the checkpoint
        stop_process(repr(_first(failed)))
    leave(0)  # a long question is not waited for


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
