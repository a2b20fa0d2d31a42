"""Verify: the log alone -> does every output follow from its input, once, and nothing else stand there?

The oracle of the fault tests and of an operator: fold every partition again from offset 0, without faults, and hold
what comes out against what the log holds. It reads nothing but records, so it cannot share a mistake with the worker's
delivery; it shares the steps, whose own tests are elsewhere.

A step whose version changed (streams/adopt.py) is folded from where this version began, with the state that it began
with; the log says where that was and what that state's hash is. What versions before it wrote is told by its ids, each
of which names the version that made it, and counted: only their own programs can fold it again.

Where retention passed, what can be known is judged and the rest is named. A step whose input is whole is folded, and
what it gives is held against what its topics still have. A step whose input is cut is not: several steps and the ticker
write into such a topic, and in which order their records met stood nowhere else, so it cannot be made again from what
is kept. Of its outputs each must have an id that an input which is there gives; what they say, and whether one is
missing, stays unknown. A log is read whole into memory, at about BYTES_A_RECORD for each record.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from schemas import envelope
from schemas.envelope import Origin, Refused
from schemas.events import AlertRaised, RecordRefused
from schemas.ids import output_id
from schemas.seal import Keys
from schemas.topics import ALERTS, BY_NAME, DEAD_LETTERS, TOPICS, partitions
from streams.fold import Fold, Memory, Raw, Stage, fingerprint, unpack
from streams.reader import Records
from streams.snapshots import state_hash

Log = Mapping[tuple[str, int], Sequence[Raw]]
Begins = Mapping[tuple[str, int], Memory]  # (stage, partition) -> what its version began with, if not with nothing
Place = tuple[str, int]
CHUNK = 1000
BYTES_A_RECORD = 3_000  # measured at short posts, 2.6 kB: 1 GB of memory is enough for 330,000 records
ADOPTED = "version-adopted"
_ADOPTED = re.compile(r"\S+/([0-9]+)@([0-9]+): version ([0-9]+) goes on from version [0-9]+, state ([0-9a-f]{64})")
_PACK = msgspec.msgpack.Encoder()


@dataclass
class Verdict:
    """What was found; `faults` is empty when the log holds what it must."""

    faults: list[str] = field(default_factory=list)
    states: dict[tuple[str, int], str] = field(default_factory=dict)  # (stage, partition) -> hash of a clean rebuild
    visible: dict[str, int] = field(default_factory=dict)  # topic -> events that a reader who ignores duplicates sees
    absorbed: dict[str, int] = field(default_factory=dict)  # topic -> duplicates in the log
    earlier: dict[str, int] = field(default_factory=dict)  # stage -> outputs of versions before, not folded again
    unchecked: list[str] = field(default_factory=list)  # what retention took out of sight, one sentence each


class Made(NamedTuple):
    """An output as its input gives it."""

    value: bytes
    key: bytes | None
    origin: bytes


def verify(log: Log, table: Sequence[Stage], width: int, keys: Keys, begins: Begins = MappingProxyType({})) -> Verdict:
    """Fold the log again and compare. A log without faults has no missing, no extra and no contradicting record.

    `begins`: what `streams.adopt.begun` read, for steps whose version changed. A log of `Reader.everything` says where
    its partitions begin; of any other nothing is taken to be gone. `states` leaves out what could not be folded.
    """
    verdict = Verdict()
    cut = {place: begin for place, begin in log.begins.items() if begin} if isinstance(log, Records) else {}
    made: dict[Place, dict[str, Made]] = {place: {} for place in log}
    stages: dict[str, Told] = {}
    aside, told = set_aside(log), adoptions(log)
    for stage in table:
        by_ids = stages[stage.name] = Told(stage, log, cut)
        for partition in range(partitions(stage.reads, width)):
            fold = Fold(stage, partition, width, keys)
            fold.set_aside = aside.get((stage.name, partition), {})
            begin = begins.get((stage.name, partition))
            verdict.faults += _told(stage, partition, begin, told, log, cut)
            if begin is not None:
                fold.memory = unpack(_PACK.encode(begin), stage)  # a copy: folding changes it
                by_ids.until[partition] = begin.next
            if fold.memory.next < cut.get((stage.reads.name, partition), 0):
                by_ids.unfolded.add(partition)
                continue
            records = [raw for raw in log[stage.reads.name, partition] if raw.offset >= fold.memory.next]
            for start in range(0, len(records), CHUNK):
                for sent in fold.take(records[start : start + CHUNK]):
                    given = dict(sent.headers)
                    one = Made(sent.value, sent.key, given["ce_origin"])
                    made[sent.topic, sent.partition][given["ce_id"].decode()] = one
            verdict.states[stage.name, partition] = state_hash(fold.memory)
    for topic in TOPICS:
        verdict.visible[topic.name] = verdict.absorbed[topic.name] = 0
        for partition in range(partitions(topic, width)):
            place = topic.name, partition
            _compare(verdict, log[place], made[place], stages, place, cut.get(place, 0))
    verdict.unchecked += [
        f"{topic}/{part} before offset {begin}: gone by retention" for (topic, part), begin in cut.items()
    ]
    verdict.unchecked += [line for one in stages.values() for line in one.said()]
    return verdict


def set_aside(log: Log) -> dict[tuple[str, int], dict[int, str]]:
    """Read from the dead letters which records a step failed on: (stage, partition) -> {offset: why}."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for raw in log.get((DEAD_LETTERS.name, 0), ()):
        try:
            letter = envelope.decode(DEAD_LETTERS.name, 0, raw.offset, raw.timestamp, raw.headers, raw.value).event
        except Refused:
            continue
        if isinstance(letter, RecordRefused) and letter.reason == "step-failed":
            _, partition, offset = letter.place.split("/")
            found.setdefault((letter.stage, int(partition)), {})[int(offset)] = letter.detail
    return found


def memory_hash(memory: Memory) -> str:
    """Hash all that a fold knows: state, place, and what was applied and in which order."""
    return hashlib.sha256(_PACK.encode(memory)).hexdigest()


def adoption(stage: Stage, before: int, partition: int, memory: Memory) -> AlertRaised:
    """Say for the log that a step's version goes on from here with this state; `adoptions` reads it."""
    place = f"{stage.reads.name}/{partition}@{memory.next}"
    goes_on = f"version {stage.version} goes on from version {before}, state {memory_hash(memory)}"
    return AlertRaised(kind="version-adopted", stage=stage.name, detail=f"{place}: {goes_on}")


def adoptions(log: Log) -> dict[tuple[str, int, int], tuple[int, str]]:
    """Read from the alerts where versions began: (stage, partition, version) -> (offset, hash of its state)."""
    found = {}
    for raw in log.get((ALERTS.name, 0), ()):
        try:
            alert = envelope.decode(ALERTS.name, 0, raw.offset, raw.timestamp, raw.headers, raw.value).event
        except Refused:
            continue
        if isinstance(alert, AlertRaised) and alert.kind == ADOPTED and (said := _ADOPTED.fullmatch(alert.detail)):
            found[alert.stage, int(said[1]), int(said[3])] = (int(said[2]), said[4])
    return found


def _told(
    stage: Stage,
    partition: int,
    begin: Memory | None,
    told: Mapping[tuple[str, int, int], tuple[int, str]],
    log: Log,
    cut: Mapping[Place, int],
) -> list[str]:
    """Hold what a version began with against what the log says that it began with."""
    said = told.get((stage.name, partition, stage.version))
    who = f"({stage.name}, {partition}): version {stage.version}"
    if begin is None:
        return [f"{who} began at {said[0]} with a state that is not kept here: put its snapshots back"] if said else []
    if said is not None:
        same = said == (begin.next, memory_hash(begin))
        return [] if same else [f"{who} is kept to have begun at {begin.next} with another state than the log says"]
    alerts = log.get((ALERTS.name, 0), ())
    # Retention takes alerts, after a month.
    whole = (ALERTS.name, 0) not in cut and (not alerts or alerts[0].offset == 0)
    return [f"{who} is kept to have begun at {begin.next}, of which the log says nothing"] if whole else []


class Told:
    """What a step wrote that is not folded again, told by its ids: a hash of step, version, input and ordinal.

    It is what versions before this one wrote, and all of a partition whose input retention cut.
    """

    def __init__(self, stage: Stage, log: Log, cut: Mapping[Place, int]) -> None:
        self.stage = stage
        self.until: dict[int, int] = {}  # partition -> where this version began
        self.unfolded: set[int] = set()
        self.told: Counter[int] = Counter()  # partition -> outputs whose input is there
        self.gone: Counter[int] = Counter()  # partition -> outputs whose input is not
        self._log, self._cut = log, cut
        self._inputs: dict[int, dict[int, Raw]] = {}

    def covers(self, origin: Origin) -> bool:
        """Say whether an output came of a record that is not folded."""
        if origin.topic != self.stage.reads.name:
            return False
        return origin.partition in self.unfolded or origin.offset < self.until.get(origin.partition, 0)

    def version(self, name: str, origin: Origin) -> int | None:
        """Give the version that made an output of this id; 0 if none did, None if its input is gone."""
        place, partition = (self.stage.reads.name, origin.partition), origin.partition
        if origin.offset < self._cut.get(place, 0):
            self.gone[partition] += 1
            return None
        self.told[partition] += 1
        if partition not in self._inputs:
            self._inputs[partition] = {raw.offset: raw for raw in self._log[place]}
        raw = self._inputs[partition].get(origin.offset)
        if raw is None:
            return 0
        names = {f"{place[0]}/{place[1]}/{raw.offset}/{fingerprint(raw)}"}  # a dead letter's: see Fold
        names |= {_id(raw.headers)} if any(header == "ce_id" for header, _ in raw.headers) else set()
        made = (
            version
            for version in range(1, self.stage.version + (partition in self.unfolded))
            for one in names
            if output_id(self.stage.name, version, one, origin.ordinal) == name
        )
        return next(made, 0)

    def said(self) -> list[str]:
        """Say what was not judged, and how much."""
        name, topic = self.stage.name, self.stage.reads.name
        return [
            f"{name} on {topic}/{partition}: its input begins at {self._cut[topic, partition]}, so it was not folded; "
            f"{self.told[partition]} outputs were told by their ids alone, and one that is missing was not looked for"
            for partition in sorted(self.unfolded)
        ] + [
            f"{name} on {topic}/{partition}: {number} outputs, of records that are gone"
            for partition, number in sorted(self.gone.items())
        ]


def _compare(
    verdict: Verdict,
    records: Sequence[Raw],
    made: dict[str, Made],
    stages: Mapping[str, Told],
    place: Place,
    cut: int,
) -> None:
    topic = BY_NAME[place[0]]
    seen: dict[str, bytes] = {}
    first: dict[str, tuple[int, int]] = {}
    last: dict[str, tuple[int, int]] = {}
    versions: dict[str, int] = {}
    for raw in records:
        try:
            _, name, origin = envelope.read_headers(raw.headers)
        except Refused:
            continue  # its stage wrote a dead letter in its place, which `made` holds
        value = raw.value or b""
        if name in seen:
            verdict.absorbed[topic.name] += 1
            if seen[name] != value and not topic.outside:
                verdict.faults.append(f"{place}: id {name} carries two payloads")
            continue
        seen[name] = value
        verdict.visible[topic.name] += 1
        if origin is None or origin.stage not in stages:
            continue
        source, mark = _source(origin)
        # Of a cut partition a source's first record may be one that it says again later, after others that it repeats.
        again = bool(cut) and mark < first.setdefault(source, mark)
        if mark <= last.get(source, (-1, -1)) and not again and not topic.compacted:
            verdict.faults.append(
                f"{place}: {name} arrived behind a later output of the same origin: a reader skips it"
            )
        if not again:
            last[source] = mark
        told = stages[origin.stage]
        if told.covers(origin):
            folded = origin.partition not in told.unfolded
            version = told.version(name, origin)
            if version == 0:
                nothing = "no version before the adoption" if folded else "no input"
                verdict.faults.append(f"{place}: {name} ({origin.text()}) follows from {nothing}")
            elif version is not None and version < versions.get(source, 0) and not again:
                verdict.faults.append(f"{place}: {name} ({origin.text()}) of version {version} is behind a later one's")
            versions[source] = max(version or 0, versions.get(source, 0))
            if folded:
                verdict.earlier[origin.stage] = verdict.earlier.get(origin.stage, 0) + 1
        elif name not in made:
            verdict.faults.append(f"{place}: {name} ({origin.text()}) follows from no input")
        elif made[name].value != value:
            verdict.faults.append(f"{place}: {name} differs from what its input gives")
    newest = {one.key: name for name, one in made.items()} if topic.compacted else {}
    gone = 0
    for name in made.keys() - seen.keys():
        one = made[name]
        source, mark = _source(Origin.parse(one.origin.decode()))
        if cut and (source not in first or mark < first[source]):
            gone += 1
        elif newest.get(one.key, name) == name:  # compaction leaves the newest of each key
            verdict.faults.append(f"{place}: {name} is missing")
    if gone > cut:
        verdict.faults.append(f"{place}: {gone} outputs are missing, and retention took only {cut} records")


def _source(origin: Origin) -> tuple[str, tuple[int, int]]:
    return f"{origin.stage}/{origin.topic}/{origin.partition}", (origin.offset, origin.ordinal)


def _id(headers: Sequence[tuple[str, bytes]]) -> str:
    return next(value for name, value in headers if name == "ce_id").decode()
