"""Embedder: `tweets` -> a vector of every post that may be indexed; edits and deletions applied, each with its receipt.

One process reads all partitions without a group and is the one writer of the store (streams/vectors.py). Its place in
the log lies beside the rows (streams/vector_ledger.py) and is bound to this very log: **forget, write, checkpoint**, in
that order, and a crash anywhere repeats a chunk that changes nothing the second time. Whatever is odd ends the process;
the supervisor starts it again.

A receipt (CopyErased) is written when the bytes have left the disk, not when the rows became invisible.
"""

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from schemas import envelope
from schemas.envelope import Record, Refused
from schemas.events import AlertRaised, CopyErased
from schemas.facts import Where
from schemas.ids import digest
from schemas.topics import TWEETS
from streams import crash, healthy, places
from streams.access_rules import REFUSED, require
from streams.embed_plan import Plan, plan
from streams.exits import EXIT_AGAIN, EXIT_REFUSED
from streams.fold import fingerprint
from streams.kafka import KafkaSettings, cluster_id, ensure_topics, stopped, topic_ids
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.topics import specs
from streams.vault import Vault
from streams.vector_ledger import Ledger, Place, Request
from streams.vectors import STORE, Row, StoreRefused, VectorStore, folder

if TYPE_CHECKING:
    from models.encode import Encoder

log = logging.getLogger("xinfluencer.embedder")

CHUNK_RECORDS_MAX = 500  # about 2 s of encoding on two cores: a stop is prompt
LINGER_S = 0.5  # after a chunk that was not full: at most two commits a second, however slowly posts come
POLL_MS = 500
STATUS_S = 0.5
UPKEEP_S = 60.0  # shortest time between two tidyings
UPKEEP_COST_SHARE = 0.05  # tidying may take a twentieth of the time: a large store is tidied less often
STOP_S_MAX = 8.0  # then the process ends as it stands, which costs a chunk read again
RECEIPTS_MAX = 500  # sent at a time


class Embedder:
    """One process; `run` returns only after `stop` was set."""

    def __init__(
        self, settings: Settings, kafka: KafkaSettings, crash_point: crash.CrashPoint, upkeep_s: float
    ) -> None:
        self.settings = settings
        self.kafka = kafka
        self.crash_point = crash_point
        self.upkeep_s = upkeep_s
        self.vault = Vault(settings.data / "vault" / "keys.sqlite")
        self.sender = Sender(settings, kafka)
        self.stop = asyncio.Event()
        self.places: dict[int, Place] = {}
        self.ends: dict[int, int] = {}
        self.applied = self.encoded = self.unchanged = 0
        self.skipped: Counter[str] = Counter()
        self.changed = True  # a process before us may have died and left files of no version
        self.tidied_s, self.cost_s, self.tidied_ms = time.monotonic(), 0.0, 0
        self.rows = self.unindexed = 0

    async def run(self) -> None:
        """Open the store, find the place in the log, follow. StoreRefused: a person must act."""
        await ensure_topics(self.kafka, specs(self.settings))
        await require(self.settings, self.kafka, "embedder")
        self.ledger = Ledger(folder(self.settings))
        self.encoder = await asyncio.to_thread(_load, self.settings)
        self.store = await asyncio.to_thread(
            VectorStore, folder(self.settings), self.encoder.sha256, self.encoder.dimensions
        )
        physical = self.settings.physical(TWEETS.name)
        self.tps = {TopicPartition(physical, part): part for part in range(self.settings.partitions)}
        self.consumer = AIOKafkaConsumer(
            **self.kafka.client_kwargs(),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        await self.consumer.start()
        try:
            self.consumer.assign(list(self.tps))
            await self._begin()
            await self._follow()
        finally:
            await stopped(self.consumer)
            await self.sender.stop()
            self.store.close()
            self.ledger.close()

    # ---- the place in the log ---------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Hold the ledger against the log and the table, and go to where it stands."""
        physical = self.settings.physical(TWEETS.name)
        ids = await topic_ids(self.kafka, [physical])
        self.bound = {"log": f"{await cluster_id(self.kafka)}/{physical}/{ids[physical]}", "store": self.store.name}
        kept = self.ledger.bound()
        again = f"If that is meant, remove {folder(self.settings)}: the log is encoded again from its beginning."
        for name, value in self.bound.items():
            if kept.get(name, value) != value or (not kept and self.store.count()):
                raise StoreRefused(
                    f"the vectors belong to {name} {kept.get(name, 'unknown')}, this is {value}. {again}"
                )
        if int(kept.get("version", "0")) > self.store.version:
            raise StoreRefused(f"the table of vectors is older than its ledger: was it put back from a copy? {again}")
        self.places = {part: Place(0) for part in self.tps.values()} | self.ledger.places()
        starts = await self.consumer.beginning_offsets(list(self.tps))
        ends = await self.consumer.end_offsets(list(self.tps))
        for tp, part in self.tps.items():
            place = self.places[part]
            if not starts[tp] <= place.next <= ends[tp]:
                raise StoreRefused(
                    f"{tp.topic}/{part} was read up to {place.next}, the log holds {starts[tp]} to {ends[tp]}. {again}"
                )
            if place.last >= starts[tp]:
                found = await self.sender.record_before(tp.topic, part, place.last + 1)
                if found is not None and found.offset == place.last and fingerprint(found) != place.fingerprint:
                    raise StoreRefused(f"{tp.topic}/{part}@{place.last} is not the record that was read there. {again}")
            self.ends[part] = ends[tp]  # until the first fetch, the client knows none
            self.consumer.seek(tp, place.next)
        self.ledger.commit(self.places, self._bound())
        await asyncio.to_thread(self._count)
        log.info("reads on from %s", ", ".join(f"{part}@{place.next}" for part, place in sorted(self.places.items())))

    def _bound(self) -> dict[str, str]:
        return {**self.bound, "version": str(self.store.version)}

    # ---- flow -------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        telling = asyncio.create_task(self._tell())
        try:
            while not self.stop.is_set():
                await self._next()
                if telling.done():
                    telling.result()  # it has no end but what it raises
        finally:
            telling.cancel()

    async def _next(self) -> None:
        found = await self.consumer.getmany(timeout_ms=POLL_MS, max_records=CHUNK_RECORDS_MAX)
        records: list[Record] = []
        moved = {}
        for tp, raws in found.items():
            for raw in raws:
                records += self._decoded(raw)
            last = raws[-1]
            moved[self.tps[tp]] = Place(await self.consumer.position(tp), last.offset, fingerprint(last))
        if moved:
            await asyncio.to_thread(self._apply, records, self.places | moved)
            self.applied += sum(map(len, found.values()))
            if sum(map(len, found.values())) < CHUNK_RECORDS_MAX:
                await asyncio.sleep(LINGER_S)
        if self.changed and time.monotonic() - self.tidied_s >= max(self.upkeep_s, self.cost_s / UPKEEP_COST_SHARE):
            await self._upkeep()

    def _decoded(self, raw: Any) -> list[Record]:
        try:
            return [envelope.decode(TWEETS.name, raw.partition, raw.offset, raw.timestamp, raw.headers, raw.value)]
        except Refused as refused:
            self.skipped[refused.reason] += 1  # the worker, which reads it too, writes its dead letter
            return []

    def _apply(self, records: list[Record], moved: dict[int, Place]) -> None:
        """Forget, write, checkpoint."""
        self.vault.refresh()
        made = plan(records, self.vault, self.ledger)
        self._forget(made)
        self._write(made)
        self.ledger.commit(moved, self._bound(), made.deleted, made.owners, made.revisions)
        self.crash_point("after-checkpoint")
        self.places = moved
        self.skipped.update(made.skipped)
        self._count()

    def _forget(self, made: Plan) -> None:
        if not made.requests and not made.withdrawn:
            return
        owners = {one.owner for one in made.requests if one.post is None}
        posts = {name for one in made.requests for name in _names(one, made.revisions)} | made.withdrawn
        held = self.store.of(posts, owners)
        self.ledger.owe(_counted(made.requests, held, made.revisions))
        self.crash_point("after-owe")
        self.store.delete(row.post for row in held)
        self.crash_point("after-delete")
        self.changed = True

    def _write(self, made: Plan) -> None:
        known = self.store.known(made.texts) if made.texts else {}
        new = [(row, text) for row, text in made.texts.values() if not _stands(known.get(row.post), row)]
        self.unchanged += len(made.texts) - len(new)
        if not new:
            return
        vectors = self.encoder.encode([text for _, text in new])
        self.crash_point("after-encode")
        self.store.upsert([row for row, _ in new], vectors)
        self.crash_point("after-merge")
        self.encoded += len(new)
        self.changed = True

    def _count(self) -> None:
        self.rows, self.unindexed = self.store.count(), self.store.unindexed()

    # ---- forgetting for good ----------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        """Tidy the store, then say what is gone from it for good."""
        began = time.monotonic()
        owed = self.ledger.owed()
        clean = await asyncio.to_thread(self.store.tidy)
        self.crash_point("after-tidy")
        self.changed = not clean
        if clean:
            for at in range(0, len(owed), RECEIPTS_MAX):
                await self._receipts(owed[at : at + RECEIPTS_MAX])
        else:
            log.error("bytes of deleted rows are left in the store; no receipt is written before they are gone")
        await asyncio.to_thread(self._count)
        self.tidied_s = time.monotonic()
        self.tidied_ms = int(time.time() * 1000)
        self.cost_s = self.tidied_s - began

    async def _receipts(self, owed: list[tuple[Request, int]]) -> None:
        now_ms = int(time.time() * 1000)
        records = []
        for asked, rows in owed:
            where = Where(topic=TWEETS.name, partition=asked.partition, offset=asked.offset)
            event = CopyErased(store=STORE, owner=asked.owner, post=asked.post, requested=where, rows=rows)
            name = digest(STORE, asked.record)
            records.append(outside(event, "/embedder", now_ms, self.settings.partitions, self.vault, name))
        await self.sender.send(records)
        self.crash_point("after-receipt")
        self.ledger.sent(asked for asked, _ in owed)

    # ---- what others see --------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        written = True
        while True:
            status = self.status()
            try:
                healthy.tell(places.run(self.settings), "embedder", **status)
                written = True
            except OSError as error:  # a full disk, which has room again one day
                if written:
                    log.warning("cannot write the status: %s", error)
                written = False
            await asyncio.sleep(STATUS_S)

    def status(self) -> dict[str, Any]:
        """Tell, for each partition as the worker does: [applied to, handed out to, client's position, end]."""
        told = {}
        for tp, part in self.tps.items():
            at = self.places[part].next
            end = max(at, self.ends.get(part, 0), self.consumer.last_stable_offset(tp) or 0)
            told[f"{TWEETS.name}/{part}"] = [at, at, at, end]
        return {
            "applied": self.applied,
            "partitions": told,
            "encoder": self.encoder.sha256,
            "encoded": self.encoded,
            "unchanged": self.unchanged,
            "skipped": dict(self.skipped),
            "rows": self.rows,
            "unindexed": self.unindexed,
            "receipts_owed": self.ledger.waiting(),
            "owed_since_s": self.ledger.owed_since(),
            "tidied_ms": self.tidied_ms,
            "tidying_s": round(self.cost_s, 3),
            "rss_bytes": rss_bytes(),
        }

    async def alert(self, kind: str, detail: str) -> None:
        """Say so in `alerts`, if the broker takes it within five seconds."""
        event = AlertRaised(kind=kind, stage="embedder", detail=detail[:500])
        sender = Sender(self.settings, self.kafka)
        try:
            sent = outside(event, "/embedder", int(time.time() * 1000), self.settings.partitions, self.vault)
            await asyncio.wait_for(sender.send([sent]), 5.0)
        except Exception as error:  # noqa: BLE001 - said in the log, where the reason that raised it stands too
            log.error("the alert could not be written: %r", error)
        finally:
            await sender.stop()


def _load(settings: Settings) -> "Encoder":
    from models.encode import Encoder  # torch: not before it is needed

    return Encoder.load(settings.encoder, settings.cache, settings.threads)


def _stands(known: Row | None, row: Row) -> bool:
    """Say whether what is kept of a post need not be encoded again: it is newer, or was made of the same words."""
    if known is None:
        return False
    if known.revision != row.revision:
        return known.revision > row.revision
    return (known.words, known.train, known.show, known.policy) == (row.words, row.train, row.show, row.policy)


def _names(request: Request, revisions: Mapping[str, str]) -> set[str]:
    """Give the ids under which the post of a request may have a row: its own, and the one it is a revision of."""
    return set() if request.post is None else {request.post, revisions.get(request.post, request.post)}


def _counted(requests: list[Request], held: list[Row], revisions: Mapping[str, str]) -> list[tuple[Request, int]]:
    """Say of each request how many rows there were for it; a row counts for the first that asks."""
    left = {row.post: row.owner for row in held}
    counted = []
    for one in requests:
        names = _names(one, revisions)
        theirs = [post for post, owner in left.items() if (post in names if one.post else owner == one.owner)]
        counted.append((one, len(theirs)))
        for post in theirs:
            del left[post]
    return counted


def rss_bytes() -> int:
    """Give this process's memory: what is resident now on Linux, elsewhere the most that ever was, in its unit."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def _run(settings: Settings, upkeep_s: float) -> int:
    """Run until a signal, or until something is odd; give the exit code."""
    embedder = Embedder(settings, settings.kafka(), crash.from_env(), upkeep_s)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, embedder.stop.set)
    running = asyncio.create_task(embedder.run())
    stopping = asyncio.create_task(embedder.stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await asyncio.wait({running}, timeout=STOP_S_MAX)
    error = running.exception() if running.done() else None
    if error is None:
        healthy.ended(places.run(settings), "embedder")
        return 0
    refused = isinstance(error, StoreRefused) or type(error).__name__ == "EncoderRefused"
    forbidden = isinstance(error, REFUSED)  # and then `alerts` may be what we may not write
    log.critical("stopping: %s", error if refused or forbidden else repr(error))
    if refused:
        await embedder.alert("vectors-refused", str(error))
    return EXIT_REFUSED if refused or forbidden else EXIT_AGAIN


def run_embedder(settings: Settings, upkeep_s: float = UPKEEP_S) -> None:
    """Run until SIGTERM or SIGINT; exits with EXIT_REFUSED where a person must act, EXIT_AGAIN on anything else odd."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)

    async def run() -> None:
        code = await _run(settings, upkeep_s)
        logging.shutdown()
        os._exit(code)  # from within: a thread that still encodes must not hold the process, its work is done again

    asyncio.run(run())
