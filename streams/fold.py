"""Fold: one partition of one stage; raw records in, records to send out, nothing else touched.

Every engine (memory, Kafka) drives the same fold, so what is proved of it in memory is true of it on a broker. The
fold knows what was applied (by origin, or by id where outsiders write) and ignores it the second time. It never sees
a clock, and steps never see words: what they need of a text was counted where it came in, so destroying a key changes
nothing of what follows from the log. What cannot be used leaves as a RecordRefused, in its place among the outputs.
"""

import base64
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from agents.bounded import remember
from schemas import envelope, seal
from schemas.envelope import Headers, Out, Record, Refused
from schemas.events import AlertRaised, RecordRefused
from schemas.facts import MS_MAX, Event, RefusedContent
from schemas.ids import output_id, partition_of
from schemas.topics import HOME, Topic, partitions
from streams import tracing

SEEN_MAX = 100_000  # ids remembered a partition where outsiders write: the stated window of dedupe by id
HEAD_BYTES_MAX = 256  # of a refused record, kept (sealed) in its dead letter


class Raw(Protocol):
    """A record as a client library gives it (aiokafka's ConsumerRecord fits)."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...
    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True)
class Stage:
    """A row of the topology: what it reads, what it may write, its step. A new version means a new step or shape."""

    name: str
    version: int
    reads: Topic
    writes: tuple[Topic, ...]
    state: Callable[[], Any]
    state_type: Any
    step: Callable[[Sequence[Record], Any], tuple[list[Out], Any]]


class Sent(NamedTuple):
    """One record to send, in the order in which its partition must take it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers
    time_ms: int
    event: Event


class Way(NamedTuple):
    """What is the same of every event of one kind that leaves one stage."""

    topic: str
    width: int  # partitions of the topic
    key_of: Callable[[Event], str | None]
    source: tuple[str, bytes]  # the headers ce_source and ce_type
    kind: tuple[str, bytes]
    worded: bool


Caused = tuple[int, str, bytes | None, Event]
"""An output before it has a name: offset, name and traceparent of the record that caused it, and what is said."""


class Memory(msgspec.Struct):
    """All that a fold knows; this, and only this, is in its snapshot."""

    state: Any
    next: int = 0  # the offset that it will read next
    last: str = ""  # digest of the last record applied, so that a log that lost its tail is noticed
    applied: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)
    seen: dict[int, int] = msgspec.field(default_factory=dict)  # 64-bit hash of id -> CRC-32 of payload
    unknown_fields: int = 0
    ignored: int = 0  # duplicates absorbed


_PACK = msgspec.msgpack.Encoder()
_SENT: Callable[[tuple[Any, ...]], Sent] = partial(tuple.__new__, Sent)  # a third of the time of Sent(...)


def memory_type(stage: Stage) -> Any:
    """Give Memory with the stage's own type of state, for decoding."""
    return msgspec.defstruct(
        "Memory",
        [("state", stage.state_type), *[(f.name, f.type) for f in msgspec.structs.fields(Memory) if f.name != "state"]],
    )


def unpack(data: bytes, stage: Stage) -> Memory:
    """Read a Memory from msgpack."""
    typed = msgspec.msgpack.decode(data, type=memory_type(stage))
    return Memory(**{name: getattr(typed, name) for name in Memory.__struct_fields__})


class StepFailed(Exception):
    """A step raised: a fault of ours, not of the record's. The process must stop before anything follows from it."""


def short_hash(data: bytes) -> int:
    """Hash to 64 bits: enough to tell 100,000 remembered ids apart (chance of a clash below 10^-14 a record)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class Fold:
    """One partition of one stage. `take` gives what must be sent; the engine advances `memory.next` after sending."""

    def __init__(self, stage: Stage, partition: int, width: int, keys: seal.Keys) -> None:
        self.stage = stage
        self.partition = partition
        self.width = width
        self.keys = keys
        self.memory = Memory(stage.state())
        self.set_aside: dict[int, str] = {}  # offset -> why: records that a step failed on, as their letters say
        self._ways: dict[type[Event], Way] = {}

    def take_with_care(self, raws: Sequence[Raw]) -> list[Sent]:
        """Apply records among which a step failed before: halved until the one that fails is alone, and a dead letter.

        Every attempt begins from a copy of what was known. The record's id is not remembered, so that it can be
        replayed once the step is mended.
        """
        before = _PACK.encode(self.memory)
        try:
            return self.take(raws)
        except StepFailed as failed:
            self.memory = unpack(before, self.stage)
            if len(raws) == 1:
                self.set_aside[raws[0].offset] = repr(failed.__cause__)
                return self.take(raws)
            half = len(raws) // 2
            return self.take_with_care(raws[:half]) + self.take_with_care(raws[half:])

    def take(self, raws: Sequence[Raw]) -> list[Sent]:
        """Apply records in order. Splitting the sequence changes neither what is sent nor what is remembered."""
        records: list[Record] = []
        refusals: list[Caused] = []
        for raw in raws:
            try:
                record = self._read(raw)
                if record is not None:
                    records.append(record)
            except Refused as refused:
                name = self._name(raw)
                given = tracing.given(raw.headers)
                refusals.extend((raw.offset, name, given, event) for event in self._refusal(raw, refused))
        try:
            outs, self.memory.state = self.stage.step(records, self.memory.state)
        except Exception as error:
            place = f"{self.stage.reads.name}/{self.partition}"
            raise StepFailed(f"{self.stage.name} on {place} from {raws[0].offset}: {error!r}") from error
        caused = [(cause.offset, cause.id, cause.traceparent, event) for cause, event in outs]
        if refusals:  # both runs are in order already; merging keeps each output partition in origin order
            caused = sorted(caused + refusals, key=lambda one: one[0])
        # What is said of a record without a usable time must still have one that can be written.
        times = {raw.offset: raw.timestamp if 0 <= raw.timestamp <= MS_MAX else 0 for raw in raws}
        if raws:
            self.memory.last = fingerprint(raws[-1])
        return self._send(caused, times)

    def _name(self, raw: Raw) -> str:
        """Name a record that has no id that can be used, by what it holds and where it stands."""
        return f"{self.stage.reads.name}/{self.partition}/{raw.offset}/{fingerprint(raw)}"

    def _read(self, raw: Raw) -> Record | None:
        if raw.offset in self.set_aside:
            raise Refused("step-failed", self.set_aside[raw.offset])
        record = envelope.decode(
            self.stage.reads.name, self.partition, raw.offset, raw.timestamp, raw.headers, raw.value
        )
        self.memory.unknown_fields += record.unknown_fields
        if self._known(record, raw.value or b""):
            self.memory.ignored += 1
            return None
        return record

    def _known(self, record: Record, value: bytes) -> bool:
        """Say whether this record was applied before, and remember it. Another payload under a known id is Refused."""
        origin = record.origin
        if origin is not None and not self.stage.reads.outside:
            source = f"{origin.stage}/{origin.topic}/{origin.partition}"
            mark = (origin.offset, origin.ordinal)
            if mark <= self.memory.applied.get(source, (-1, -1)):
                return True
            self.memory.applied[source] = mark
            return False
        name, payload = short_hash(record.id.encode()), zlib.crc32(value)
        before = self.memory.seen.get(name)
        if before is None:
            remember(self.memory.seen, name, payload, SEEN_MAX)
            return False
        if before != payload:
            raise Refused("id-conflict", f"id {record.id} was seen with another payload")
        return True

    def _refusal(self, raw: Raw, refused: Refused) -> list[Event]:
        data = raw.value or b""
        letter = RecordRefused(
            owner=f"refused:{self.stage.reads.name}",
            reason=refused.reason,
            detail=refused.detail,
            stage=self.stage.name,
            place=f"{self.stage.reads.name}/{self.partition}/{raw.offset}",
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            content=RefusedContent(head=base64.b64encode(data[:HEAD_BYTES_MAX]).decode()) if data else None,
        )
        if refused.reason != "id-conflict":
            return [letter]
        return [letter, AlertRaised(kind="id-conflict", stage=self.stage.name, detail=refused.detail)]

    def _send(self, caused: list[Caused], times: dict[int, int]) -> list[Sent]:
        """Name, seal and render what was said. What outputs of one cause, or of one kind, share is made once."""
        sent: list[Sent] = []
        ordinal, cause = 0, -1
        stage, ways, body = self.stage, self._ways, envelope.body
        where = f"{stage.name}/{stage.reads.name}/{self.partition}"
        before = after = b""
        for offset, name, given, event in caused:
            ordinal = ordinal + 1 if offset == cause else 0
            if not ordinal:
                cause, time_ms = offset, times[offset]
                time_header = envelope.time_header(time_ms)
                before, after = tracing.trace(given, name, not stage.reads.outside)
            way = ways.get(type(event)) or self._way(type(event))
            event_id = output_id(stage.name, stage.version, name, ordinal)
            raw_id = event_id.encode()
            key = way.key_of(event)
            sent.append(
                _SENT(
                    (
                        way.topic,
                        partition_of(key, way.width) if key is not None else 0,
                        key.encode() if key is not None else None,
                        body(seal.seal(event, event_id, self.keys) if way.worded else event),
                        [
                            envelope.SPEC,
                            ("ce_id", raw_id),
                            way.source,
                            way.kind,
                            time_header,
                            envelope.JSON,
                            ("ce_origin", f"{where}/{offset}/{ordinal}".encode()),
                            ("ce_traceparent", before + raw_id[:16] + after),
                        ],
                        time_ms,
                        event,
                    )
                )
            )
        return sent

    def _way(self, kind: type[Event]) -> Way:
        topic, stage = HOME[kind], self.stage
        if topic not in stage.writes:
            raise StepFailed(f"{stage.name} wrote {kind.__name__}, but {topic.name} is not in its row")
        way = self._ways[kind] = Way(
            topic.name,
            partitions(topic, self.width),
            topic.key_of,
            ("ce_source", f"/stages/{stage.name}".encode()),
            envelope.type_header(kind),
            kind in seal.CONTENT,
        )
        return way


def fingerprint(raw: Raw) -> str:
    """Digest a record's id and body (16 hex digits)."""
    state = hashlib.blake2b(raw.value or b"", digest_size=8)
    for name, value in raw.headers or ():
        if name == "ce_id":
            state.update(value or b"")
    return state.hexdigest()
