"""Shell: what stands around a fold on Kafka: claim, load, take, send, snapshot, commit; anything odd ends the process.

Order is everything here: outputs are acknowledged before the state that follows from them is kept, and kept before
the commit says so. A crash between any two of these repeats work, and the origins make the repeat invisible. There is
no recovery inside: the process exits with EXIT_AGAIN, and the supervisor outside starts it again from the snapshot.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from faust.types import TP

from schemas.events import AlertRaised
from schemas.topics import ERASURES
from streams.adopt import begins
from streams.exits import EXIT_REFUSED, stop_process
from streams.fold import Fold, Memory, Stage, StepFailed, fingerprint
from streams.kafka import KafkaSettings
from streams.object_snapshots import SnapshotStore, StoreRefused, keeper
from streams.records import outside
from streams.sender import SEND_S_MAX, Sender
from streams.settings import Settings
from streams.snapshots import Bound, ClaimLost, SnapshotRefused, encode
from streams.transport import Chunk
from streams.trouble import ATTEMPTS_MAX, Trouble
from streams.vault import Vault
from streams.worker_metrics import WorkerMetrics

log = logging.getLogger("xinfluencer.worker")

TAKERS_MAX = 16  # partitions that are taken over from a store at the same time: each asks it five times
PUTS_MAX = 4  # snapshots on their way to a store at the same time, each held in memory as it was
CLOSE_S_MAX = 6.0  # for what is on its way at a stop; what does not arrive costs reading again
SNAPSHOT_SHARE_EACH = 0.05  # snapshots of a partition may take a twentieth of the time: large states less often
SNAPSHOT_SHARE_ALL = 0.1  # those of all partitions together a tenth: eight at a twentieth each took 40 %
SNAPSHOTS_WAIT_S_MAX = 5.0  # but nobody waits longer for the others: it is what a kill may cost to read again


class LogMismatch(Exception):
    """The log does not continue what the snapshot saw; a person must decide."""


@dataclass
class Owned:
    """A partition that this process owns."""

    tp: TP
    fold: Fold
    bound: Bound
    claim: int
    covered: int  # a snapshot holds everything before this offset
    committed: int
    end: int
    dirty: bool = False
    busy: bool = False
    written_s: float = 0.0
    cost_s: float = 0.0
    since_s: float = 0.0  # since when something applied is in no snapshot
    size: int = 0  # of the newest snapshot, in bytes
    putting: bool = False  # a snapshot is on its way to a store


class Held(NamedTuple):
    """What taking over a partition gave: the claim, what was loaded, and which snapshots were found broken."""

    fold: Fold
    bound: Bound
    claim: int
    memory: Memory | None
    broken: list[str]


class Shell:
    """All partitions that one worker process owns."""

    def __init__(
        self,
        settings: Settings,
        kafka: KafkaSettings,
        stages: tuple[Stage, ...],
        logs: Mapping[str, str],
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.settings = settings
        self.kafka = kafka
        self.logs = logs  # physical topic -> cluster and topic id: which log this is
        self.stages = {settings.physical(stage.reads.name): stage for stage in stages}
        self.vault = Vault(settings.data / "vault" / "keys.sqlite")
        self.snapshots = keeper(settings.snapshots, settings.data / "snapshots")
        self.sender = Sender(settings, kafka)
        self.trouble = Trouble(settings.data / "run")
        self.crash_point = crash_point
        self.consumer: Any = None
        self.epoch = -1
        self.owned: dict[TP, Owned] = {}
        self.applied = 0
        self.metrics = WorkerMetrics(stages, lambda: list(self.owned.values()))
        self.stale_chunks = 0
        self._mute = False  # the disk did not take the last status
        self._handed: dict[str, int] = {}
        self._threads = ThreadPoolExecutor(TAKERS_MAX, "store")
        self._puts: set[asyncio.Task[None]] = set()

    # ---- assignment -------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Forget everything: what is assigned next starts from its snapshots."""
        self.owned = {}
        self.epoch = -1
        self._handed = {}

    async def own(
        self,
        tps: set[TP],
        starts: Mapping[TP, int],
        ends: Mapping[TP, int],
        committed: Mapping[TP, int | None],
    ) -> dict[TP, int]:
        """Take the claim on each partition and load it; gives where to read from. Stops the process on a mismatch."""
        try:
            for tp, held in (await self._take_over(sorted(tps))).items():
                self.owned[tp] = await self._own(tp, held, starts[tp], ends[tp], committed[tp])
        except (LogMismatch, SnapshotRefused, StoreRefused) as error:
            await self.alert("log-mismatch", str(error))
            stop_process(str(error), EXIT_REFUSED)
        except Exception as error:  # noqa: BLE001 - whatever it is, a process that does not own its state must not go on
            stop_process(f"cannot take over partitions: {error!r}")
        log.info(
            "owns %s", ", ".join(f"{tp.topic}/{tp.partition}@{one.fold.memory.next}" for tp, one in self.owned.items())
        )
        return {tp: one.fold.memory.next for tp, one in self.owned.items()}

    async def _take_over(self, tps: list[TP]) -> dict[TP, "Held"]:
        """Claim and load each; those of a store side by side, for each waits for its answers."""

        def take(tp: TP) -> Held:
            stage = self.stages[tp.topic]
            fold = Fold(stage, tp.partition, self.settings.partitions, self.vault)
            bound = Bound(stage.name, stage.version, tp.partition, self.logs[tp.topic], self.settings.partitions)
            claim = self.snapshots.claim(bound)
            memory, broken = self.snapshots.load(fold, bound)
            return Held(fold, bound, claim, memory or begins(self.snapshots, fold, bound), broken)

        if not isinstance(self.snapshots, SnapshotStore):
            return {tp: take(tp) for tp in tps}
        run = asyncio.get_running_loop().run_in_executor
        return dict(zip(tps, await asyncio.gather(*(run(self._threads, take, tp) for tp in tps)), strict=True))

    async def _own(self, tp: TP, held: "Held", start: int, end: int, committed: int | None) -> Owned:
        fold, bound, claim, memory, broken = held
        for path in broken:
            await self.alert("snapshot-broken", f"{path} is torn; the one before it is used")
        if memory is not None:
            fold.memory = memory
        elif start > 0:
            raise LogMismatch(
                f"{tp.topic}/{tp.partition} begins at {start} and there is no snapshot: records are missing"
            )
        at = fold.memory.next
        if not start <= at <= end:
            raise LogMismatch(f"{tp.topic}/{tp.partition}: the snapshot stands at {at}, the log holds {start} to {end}")
        if memory is not None and at > start:
            await self._check_last(tp, fold)
        return Owned(tp, fold, bound, claim, at, committed if committed is not None else -1, end)

    async def _check_last(self, tp: TP, fold: Fold) -> None:
        """Hold the last record applied against the log's: a log that was cut and refilled is not the one we read."""
        found = await self.sender.record_before(tp.topic, tp.partition, fold.memory.next)
        if found is not None and found.offset == fold.memory.next - 1 and fingerprint(found) != fold.memory.last:
            raise LogMismatch(f"{tp.topic}/{tp.partition}@{found.offset} is not the record that was read there before")

    def begin(self, epoch: int) -> None:
        """The seek is done: chunks of this epoch count."""
        self.epoch = epoch

    # ---- flow -------------------------------------------------------------------------------------------------------

    def outstanding(self, topic: str) -> int:
        """Count chunks of a topic handed out and not finished."""
        return self._handed.get(topic, 0)

    def hand_out(self, topic: str) -> None:
        """Note a chunk handed to its agent."""
        self._handed[topic] = self._handed.get(topic, 0) + 1

    async def handle(self, chunk: Chunk) -> None:
        """Apply one chunk. Returns only if it was applied and sent, or is nobody's any more."""
        try:
            await self._handle(chunk)
        except asyncio.CancelledError:
            raise
        except ClaimLost as lost:
            stop_process(str(lost))
        except StepFailed as failed:
            attempts = self.trouble.failed(chunk.tp.topic, chunk.tp.partition, chunk.start, chunk.end)
            await self.alert("step-failed", f"{failed} (attempt {attempts} of {ATTEMPTS_MAX})")
            stop_process(str(failed))
        except BaseException as error:  # noqa: BLE001 - fail-stop is the whole of our error handling
            stop_process(f"{chunk.tp.topic}/{chunk.tp.partition} {chunk.start}..{chunk.end}: {error!r}")
        finally:
            if chunk.epoch == self.epoch:
                self._handed[chunk.tp.topic] = max(0, self._handed.get(chunk.tp.topic, 0) - 1)

    async def _handle(self, chunk: Chunk) -> None:
        owned = self.owned.get(chunk.tp)
        if owned is None or chunk.epoch != self.epoch:
            self.stale_chunks += 1
            return
        at = owned.fold.memory.next
        if at != chunk.start:
            stop_process(f"a hole: {chunk.tp} stands at {at}, the chunk starts at {chunk.start}")
        owned.busy = True
        before = self.metrics.before(owned.fold)
        self.vault.refresh()
        self.crash_point("before-take")
        troubled = self.trouble.touches(chunk.tp.topic, chunk.tp.partition, chunk.start, chunk.end)
        sent = owned.fold.take_with_care(chunk.records) if troubled else owned.fold.take(chunk.records)
        self.crash_point("after-take")
        self.vault.forget([one.event for one in sent if one.topic == ERASURES.name])  # before their receipts are sent
        await asyncio.wait_for(self.sender.send(sent, self.crash_point), SEND_S_MAX)
        self.crash_point("after-send")
        owned.busy = False
        if self.owned.get(chunk.tp) is not owned:
            self.stale_chunks += 1
            return
        owned.fold.memory.next = chunk.end
        owned.since_s = owned.since_s if owned.dirty else time.monotonic()
        owned.dirty = True
        self.applied += len(chunk.records)
        self.metrics.applied(owned.fold, before, len(chunk.records), sent)
        if self._due(owned) and not isinstance(self.snapshots, SnapshotStore):
            self._snapshot(owned)

    def _due(self, owned: Owned) -> bool:
        others_s = owned.cost_s * sum(one.dirty for one in self.owned.values()) / SNAPSHOT_SHARE_ALL
        wait_s = max(self.settings.snapshot_s, owned.cost_s / SNAPSHOT_SHARE_EACH, min(others_s, SNAPSHOTS_WAIT_S_MAX))
        return time.monotonic() - owned.written_s >= wait_s

    def _snapshot(self, owned: Owned) -> None:
        """Keep what a fold knows: on a disk of ours here and now, in a store beside the flow."""
        began, at = time.monotonic(), owned.fold.memory.next
        if isinstance(self.snapshots, SnapshotStore):
            if len(self._puts) < PUTS_MAX and not owned.putting:
                owned.putting = True
                data = encode(owned.fold, owned.bound)
                task = asyncio.get_running_loop().create_task(self._put(owned, at, data, began, time.monotonic()))
                self._puts.add(task)
                task.add_done_callback(self._puts.discard)
            return
        try:
            owned.size = self.snapshots.write(owned.fold, owned.bound, owned.claim)
        except OSError as error:
            self._not_kept(owned, error, began)
        else:
            self._kept(owned, at, began, time.monotonic())

    async def _put(self, owned: Owned, at: int, data: bytes, began: float, encoded: float) -> None:
        """Send to the store what a fold knew at `at`; meanwhile it goes on."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            owned.size = await run(self._threads, self.snapshots.put, owned.bound, owned.claim, at, data)  # type: ignore[union-attr]
            self._kept(owned, at, began, encoded)
        except asyncio.CancelledError:
            raise
        except OSError as error:
            self._not_kept(owned, error, began)
        except BaseException as error:  # noqa: BLE001 - as in `handle`
            if not isinstance(error, ClaimLost) or self.owned.get(owned.tp) is owned:
                stop_process(str(error) if isinstance(error, ClaimLost) else repr(error))
        finally:
            owned.putting = False

    def _kept(self, owned: Owned, at: int, began: float, worked: float) -> None:
        """Note a snapshot; `worked`: until when it kept the flow waiting."""
        self.crash_point("after-snapshot")
        owned.covered = at
        owned.dirty, owned.since_s = owned.fold.memory.next > at, began
        owned.written_s = time.monotonic()
        owned.cost_s = worked - began
        self.metrics.snapshotted(owned.fold.stage.name, owned.written_s - began)

    def _not_kept(self, owned: Owned, error: OSError, began: float) -> None:
        # A full disk is no reason to lose what is sent: nothing is committed, the old snapshot stands, try again.
        log.error("cannot write the snapshot of %s/%s: %s", owned.tp.topic, owned.tp.partition, error)
        owned.written_s = time.monotonic()
        owned.cost_s = owned.written_s - began  # a store that hangs is not asked again at once
        self.metrics.failed.labels(self.metrics.process, owned.fold.stage.name).inc()

    def committable(self) -> dict[TP, int]:
        """Snapshot idle partitions that changed; give what snapshots cover beyond the last commit."""
        try:
            # The longest unwritten first: where a store is slow, there is not room for all.
            for owned in sorted(self.owned.values(), key=lambda one: one.written_s):
                if owned.dirty and not owned.busy and self._due(owned):
                    self._snapshot(owned)
        except ClaimLost as lost:
            stop_process(str(lost))
        self.crash_point("before-commit")
        return {tp: owned.covered for tp, owned in self.owned.items() if owned.covered > owned.committed}

    def committed(self, offsets: Mapping[TP, int]) -> None:
        """Note what the group took."""
        for tp, offset in offsets.items():
            if tp in self.owned:
                self.owned[tp].committed = offset

    async def close(self) -> None:
        """A clean stop: the streams are empty, so keep what they know; losing this would only cost reading again."""
        deadline = time.monotonic() + CLOSE_S_MAX
        await self._puts_below(1, deadline)  # what is newer than they are goes after them
        try:
            for owned in self.owned.values():
                await self._puts_below(PUTS_MAX, deadline)
                if owned.dirty and not owned.busy:
                    self._snapshot(owned)
        except ClaimLost as lost:
            stop_process(str(lost))
        await self._puts_below(1, deadline)
        await self.sender.stop()
        self.metrics.close()
        self.vault.close()

    async def _puts_below(self, number: int, deadline: float) -> None:
        while len(self._puts) >= number and (left_s := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._puts, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    # ---- what others see --------------------------------------------------------------------------------------------

    async def alert(self, kind: str, detail: str) -> None:
        """Say so in `alerts`; a broker that does not answer must not hide the reason from the log."""
        log.error("%s: %s", kind, detail)
        event = AlertRaised(kind=kind, stage="worker", detail=detail[:500])
        now_ms = int(time.time() * 1000)
        try:
            sent = outside(event, "/worker", now_ms, self.settings.partitions, self.vault)
            await asyncio.wait_for(self.sender.send([sent]), 5.0)
        except Exception as error:  # noqa: BLE001 - said in the log, where the reason that raised it stands too
            log.error("the alert could not be written: %r", error)

    async def status(self) -> dict[str, Any]:
        """Tell the watchdog outside, for each partition: [applied to, handed out to, client's position, end].

        A transaction's marker takes an offset that no record has, so only the client's own position reaches the end.
        """
        tps = list(self.owned)
        places = await self.consumer.thread_positions(tps)
        positions = {
            f"{self.settings.logical(tp.topic)}/{tp.partition}": [
                self.owned[tp].fold.memory.next,
                handed,
                position,
                end,
            ]
            for tp, (handed, position, end) in zip(tps, places, strict=True)
            if tp in self.owned
        }
        return {"time": time.time(), "pid": os.getpid(), "applied": self.applied, "partitions": positions}

    async def write_status(self, path: Path) -> None:
        """Write the status through a temporary name, now and then the metrics beside it; a full disk ends nothing."""
        told = await self.status()
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(told))
            temporary.replace(path)
            self._mute = False
        except OSError as error:
            if not self._mute:
                log.warning("the status could not be written: %s", error)
            self._mute = True
            with contextlib.suppress(OSError):  # there is none yet
                os.utime(path)  # needs no room, and whoever looks sees that we live: healthy.read
        self.metrics.places = told["partitions"]
        self.metrics.write(path.with_name(path.name.replace(".status.json", ".prom")))
