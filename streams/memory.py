"""Memory: the whole topology in one process, on lists instead of Kafka; one seed is one run, faults included.

The engine drives the same folds in the same order of things as the worker does (take, send, advance, snapshot), and
a seeded scheduler decides who runs next, how much it reads, and where it dies. Faults are inputs: a `Faults` says how
often each happens. It exists so that two thousand runs cost a minute.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from schemas.seal import Keys
from schemas.topics import TOPICS, partitions
from streams.fold import Fold, Memory, Sent, Stage
from streams.snapshots import Bound, decode, encode

CHUNK_MAX = 17  # records; small, so that chunks end in awkward places
FAULTY_TURNS_MAX = 5_000  # then faults end: a run takes some hundreds, and one that only ever crashes shows nothing new


@dataclass(slots=True)
class Logged:
    """A record as it lies in a partition; the same attributes as aiokafka's ConsumerRecord."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Faults:
    """Chances in 0..1 for each chunk. Each crash loses what the process had in memory and nothing else."""

    die_before_send: float = 0.0
    die_in_send: float = 0.0  # some output partitions whole, one cut short
    die_after_send: float = 0.0
    die_after_snapshot: float = 0.0
    zombie: float = 0.0  # a process that lost its claim sends a chunk more and tries to write its snapshot
    torn_snapshot: float = 0.0  # the newest snapshot is cut; the one before it must serve
    snapshot: float = 0.3  # no fault: how often a snapshot is taken at all


NO_FAULTS = Faults()


@dataclass
class Engine:
    """A run: append what comes from outside, then `run` until nobody has anything left to read."""

    table: tuple[Stage, ...]
    keys: Keys
    width: int = 3
    seed: int = 0
    faults: Faults = NO_FAULTS
    log: dict[tuple[str, int], list[Logged]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        for topic in TOPICS:
            for partition in range(partitions(topic, self.width)):
                self.log[topic.name, partition] = []
        self.kept: dict[tuple[str, int], list[bytes]] = {}
        self.folds: dict[tuple[str, int], Fold] = {}
        for stage in self.table:
            for partition in range(partitions(stage.reads, self.width)):
                self._assign(stage, partition)

    def append(self, records: Iterable[Sent]) -> None:
        """Write records to the log, in the order given."""
        for sent in records:
            place = self.log[sent.topic, sent.partition]
            place.append(Logged(len(place), sent.time_ms, sent.key, sent.value, list(sent.headers)))

    def run(self, steps_max: int = 1_000_000) -> None:
        """Let the scheduler pick partitions with something to read until there are none; RuntimeError if it never is.

        What repeats after a crash is read again downstream, and may be repeated there: with crashes for ever, a rare
        run grows faster than it reads. As in the liveness mode of TigerBeetle's simulator, faults end, and then it
        must come through.
        """
        for turn in range(steps_max):
            if turn == FAULTY_TURNS_MAX:
                self.faults = replace(NO_FAULTS, snapshot=self.faults.snapshot)
            behind = [fold for fold in self.folds.values() if fold.memory.next < len(self._input(fold))]
            if not behind:
                return
            self._turn(self.random.choice(behind))
        raise RuntimeError(f"seed {self.seed}: still behind after {steps_max} turns")

    def snapshot_all(self) -> None:
        """Write every fold's snapshot, as a clean stop does."""
        for fold in self.folds.values():
            self._keep(fold)

    def _input(self, fold: Fold) -> list[Logged]:
        return self.log[fold.stage.reads.name, fold.partition]

    def _bound(self, fold: Fold) -> Bound:
        return Bound(fold.stage.name, fold.stage.version, fold.partition, "memory", self.width)

    def _assign(self, stage: Stage, partition: int) -> Fold:
        fold = Fold(stage, partition, self.width, self.keys)
        for data in reversed(self.kept.get((stage.name, partition), [])):
            memory: Memory | None = decode(data, fold, self._bound(fold))
            if memory is not None:
                fold.memory = memory
                break
        self.folds[stage.name, partition] = fold
        return fold

    def _keep(self, fold: Fold) -> None:
        kept = self.kept.setdefault((fold.stage.name, fold.partition), [])
        kept.append(encode(fold, self._bound(fold)))
        del kept[:-2]

    def _turn(self, fold: Fold) -> None:
        faults, chance = self.faults, self.random.random
        if faults.zombie and chance() < faults.zombie:
            self._count("zombie")
            self._assign(fold.stage, fold.partition)  # the new owner starts from the snapshot; this one goes on below
            zombie = True
        else:
            zombie = False
        start = fold.memory.next
        chunk = self._input(fold)[start : start + self.random.randint(1, CHUNK_MAX)]
        sent = fold.take(chunk)
        if self._dies("die_before_send", fold):
            return
        if self._dies("die_in_send", fold):
            self._send_in_part(sent)
            return
        self.append(sent)
        fold.memory.next = start + len(chunk)
        if zombie or self._dies("die_after_send", fold):
            return  # a zombie's snapshot is refused by its claim, so it leaves no trace but what it sent
        if chance() < faults.snapshot:
            self._keep(fold)
            if faults.torn_snapshot and chance() < faults.torn_snapshot:
                kept = self.kept[fold.stage.name, fold.partition]
                kept[-1] = kept[-1][: self.random.randrange(len(kept[-1]))]
                self._count("torn_snapshot")
                self._assign(fold.stage, fold.partition)
            self._dies("die_after_snapshot", fold)

    def _dies(self, point: str, fold: Fold) -> bool:
        if self.random.random() >= getattr(self.faults, point):
            return False
        self._count(point)
        self._assign(fold.stage, fold.partition)
        return True

    def _send_in_part(self, sent: list[Sent]) -> None:
        """Send as a process does that dies in the middle: partitions in any order, each one from its front."""
        places = sorted({(one.topic, one.partition) for one in sent})
        self.random.shuffle(places)
        for index, place in enumerate(places[: self.random.randint(0, len(places))]):
            batch = [one for one in sent if (one.topic, one.partition) == place]
            self.append(batch if index else batch[: self.random.randint(0, len(batch))])

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
