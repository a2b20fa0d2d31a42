"""Verify: the log alone -> does every output follow from its input, once, and nothing else stand there?

The oracle of the fault tests and of an operator: fold every partition again from offset 0, without faults, and hold
what comes out against what the log holds. It reads nothing but records, so it cannot share a mistake with the worker's
delivery; it shares the steps, whose own tests are elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas import envelope
from schemas.envelope import Refused
from schemas.events import RecordRefused
from schemas.seal import Keys
from schemas.topics import BY_NAME, DEAD_LETTERS, TOPICS, partitions
from streams.fold import Fold, Raw, Stage
from streams.snapshots import state_hash

Log = Mapping[tuple[str, int], Sequence[Raw]]
CHUNK = 1000


@dataclass
class Verdict:
    """What was found; `faults` is empty when the log holds what it must."""

    faults: list[str] = field(default_factory=list)
    states: dict[tuple[str, int], str] = field(default_factory=dict)  # (stage, partition) -> hash of a clean rebuild
    visible: dict[str, int] = field(default_factory=dict)  # topic -> events that a reader who ignores duplicates sees
    absorbed: dict[str, int] = field(default_factory=dict)  # topic -> duplicates in the log


def verify(log: Log, table: Sequence[Stage], width: int, keys: Keys) -> Verdict:
    """Fold the log again and compare. A log without faults has no missing, no extra and no contradicting record."""
    verdict = Verdict()
    made: dict[tuple[str, int], dict[str, bytes]] = {place: {} for place in log}
    stages = {stage.name for stage in table}
    aside = set_aside(log)
    for stage in table:
        for partition in range(partitions(stage.reads, width)):
            fold = Fold(stage, partition, width, keys)
            fold.set_aside = aside.get((stage.name, partition), {})
            records = log[stage.reads.name, partition]
            for start in range(0, len(records), CHUNK):
                for sent in fold.take(records[start : start + CHUNK]):
                    made[sent.topic, sent.partition][_id(sent.headers)] = sent.value
            verdict.states[stage.name, partition] = state_hash(fold.memory)
    for topic in TOPICS:
        verdict.visible[topic.name] = verdict.absorbed[topic.name] = 0
        for partition in range(partitions(topic, width)):
            _compare(verdict, log[topic.name, partition], made[topic.name, partition], stages, (topic.name, partition))
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


def _compare(
    verdict: Verdict, records: Sequence[Raw], made: dict[str, bytes], stages: set[str], place: tuple[str, int]
) -> None:
    seen: dict[str, bytes] = {}
    last: dict[str, tuple[int, int]] = {}
    for raw in records:
        try:
            _, name, origin = envelope.read_headers(raw.headers)
        except Refused:
            continue  # its stage wrote a dead letter in its place, which `made` holds
        value = raw.value or b""
        if name in seen:
            verdict.absorbed[place[0]] += 1
            if seen[name] != value and not BY_NAME[place[0]].outside:
                verdict.faults.append(f"{place}: id {name} carries two payloads")
            continue
        seen[name] = value
        verdict.visible[place[0]] += 1
        if origin is None or origin.stage not in stages:
            continue
        source = f"{origin.stage}/{origin.topic}/{origin.partition}"
        mark = (origin.offset, origin.ordinal)
        if mark <= last.get(source, (-1, -1)):
            verdict.faults.append(
                f"{place}: {name} arrived behind a later output of the same origin: a reader skips it"
            )
        last[source] = mark
        if name not in made:
            verdict.faults.append(f"{place}: {name} ({origin.text()}) follows from no input")
        elif made[name] != value:
            verdict.faults.append(f"{place}: {name} differs from what its input gives")
    for name in made.keys() - seen.keys():
        verdict.faults.append(f"{place}: {name} is missing")


def _id(headers: Sequence[tuple[str, bytes]]) -> str:
    return next(value for name, value in headers if name == "ce_id").decode()
