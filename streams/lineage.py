"""Lineage: a version -> the posts that it was made of, as spans that lead there by parents and links.

Every record is a span already: its `ce_traceparent` names it, and nothing that a retry makes anew is in it. So no step
writes spans while it works; they are read from the log when somebody asks, and the same log gives the same bytes. The
parent of a span is the record that caused it. What it was made of beside that, its body names by places; these are
links, as the messaging conventions have it where many messages make one (opentelemetry.io, semconv 1.44,
messaging-spans): from a version to its batches, from a batch to its pairs, from a pair and a reward to the posts.

What retention took is counted as gone; what stands behind it is reached by the other links. Spans hold places and
kinds: never words, and no id that somebody outside chose.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from schemas import envelope
from schemas.envelope import Record, Refused
from schemas.events import FeedbackGiven, FeedbackRetracted, RewardClosed, Ticked
from schemas.facts import Where
from schemas.learned import BatchClosed, ModelTrained, PairFormed
from schemas.topics import BATCHES, CANDIDATES, MODELS, PREFERENCES
from streams import tracing
from streams.reader import LogUnreadable
from streams.settings import Settings
from streams.tracing import Span

LINKS_MAX = 128  # of one span, as OpenTelemetry's own default limit; the first by the order in the body
RECORDS_MAX = 50_000  # of one walk, about 100 MB: 64 batches of 128 pairs come to less
PRODUCER = 4  # opentelemetry-proto, Span.SpanKind

Place = tuple[str, int, int]  # topic, partition, offset


class Log(Protocol):
    """What is read (streams.reader.Reader fits)."""

    def records(self, topic: str) -> AsyncIterator[Any]: ...
    async def at(self, places: Iterable[Where]) -> dict[Place, Any]: ...


class Step(NamedTuple):
    """A record of the walk, where its parent stands, and where what it links to stands."""

    record: Record
    parent: Place | None
    links: tuple[Place, ...]


@dataclass
class Lineage:
    """What a walk found, the version first; `gone` is what the log holds no more, `left_out` what RECORDS_MAX did."""

    steps: dict[Place, Step] = field(default_factory=dict)
    gone: set[Place] = field(default_factory=set)
    left_out: int = 0

    def roots(self) -> list[Record]:
        """Give what began it: posts, answers, judgements, ticks."""
        return [one.record for one in self.steps.values() if one.record.origin is None and one.parent is None]

    def spans(self) -> list[tuple[str, Span]]:
        """Give every record as a span, with the name of the service that wrote it."""
        return [(_service(one.record), self._span(one)) for one in self.steps.values()]

    def _span(self, step: Step) -> Span:
        record = step.record
        parent = self.steps.get(step.parent) if step.parent is not None else None
        return Span(
            f"send {record.topic}",
            tracing.of(record),
            record.time_ms * 1_000_000,  # log time: when what caused it was written; how long it took, no record says
            record.time_ms * 1_000_000,
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": record.topic,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "xinfluencer.event": type(record.event).__name__,
            },
            tracing.parent(tracing.of(parent.record)) if parent is not None else None,
            links=[tracing.of(self.steps[place].record) for place in step.links if place in self.steps][:LINKS_MAX],
            kind=PRODUCER,
        )


async def lineage(log: Log, version: str) -> Lineage:
    """Walk back from a version, named by the beginning of its hash. LookupError if none, or more than one, is known."""
    trained = await _trained(log, version)
    assert isinstance(trained.event, ModelTrained)
    batches: dict[str, Record] = {}
    async for one in _decoded(log, BATCHES.name):
        if isinstance(one.event, BatchClosed):
            batches.setdefault(one.event.batch, one)
    # The trainer's record has no origin: it was made of a window of batches, and is in the trace of the newest.
    window = [_place(batches[name]) for name in trained.event.batches if name in batches]
    newest = max(window, default=None)
    found = Lineage()
    said = [one async for one in _decoded(log, MODELS.name) if one.origin and _cause(one) == _place(trained)]
    for one in said:
        found.steps[_place(one)] = Step(one, _place(trained), ())
    found.steps[_place(trained)] = Step(trained, newest, tuple(window))
    wanted: list[Place] = window
    while wanted:
        room = max(0, RECORDS_MAX - len(found.steps))
        found.left_out += max(0, len(wanted) - room)
        there = await _read(log, wanted[:room])
        found.gone.update(place for place in wanted[:room] if place not in there)
        for place, record in there.items():
            found.steps[place] = Step(record, _cause(record), tuple(_made_of(record)))
        ahead = chain.from_iterable((*([step.parent] if step.parent else []), *step.links)
                                    for step in (found.steps[place] for place in there))  # fmt: skip
        wanted = [place for place in dict.fromkeys(ahead) if place not in found.steps and place not in found.gone]
    return found


async def _trained(log: Log, version: str) -> Record:
    found: dict[str, Record] = {}
    async for one in _decoded(log, CANDIDATES.name):
        if isinstance(one.event, ModelTrained) and version and one.event.version.startswith(version):
            found.setdefault(one.event.version, one)
    if len(found) != 1:
        how = "more than one version begins" if found else "no version begins"
        raise LookupError(f"{how} with {version!r}; `xinfluencer report models` lists them")
    return next(iter(found.values()))


def _made_of(record: Record) -> Iterable[Place]:
    """Give the places that a body names."""
    event = record.event
    if isinstance(event, BatchClosed):
        return [(PREFERENCES.name, 0, pair.offset) for pair in event.pairs]
    if isinstance(event, PairFormed):
        return map(_at, (event.prompt_where, event.chosen.where, event.rejected.where))
    if isinstance(event, RewardClosed):
        return map(_at, filter(None, (event.where, event.prompt_where)))
    return ()


def _at(where: Where) -> Place:
    return where.topic, where.partition, where.offset


def _place(record: Record) -> Place:
    return record.topic, record.partition, record.offset


def _cause(record: Record) -> Place | None:
    origin = record.origin
    return (origin.topic, origin.partition, origin.offset) if origin is not None else None


async def _read(log: Log, places: Sequence[Place]) -> Mapping[Place, Record]:
    """Read records; those that cannot be had, or be read, are left out."""
    wheres = [Where(topic=topic, partition=partition, offset=offset) for topic, partition, offset in places]
    try:
        raws = await log.at(wheres)
    except LogUnreadable:  # retention took one of them: ask for each
        raws = {}
        for where in wheres:
            try:
                raws |= await log.at([where])
            except LogUnreadable:
                continue
    found = {}
    for place in places:
        try:
            raw = raws[place]
            found[place] = envelope.decode(place[0], place[1], raw.offset, raw.timestamp, raw.headers, raw.value)
        except (KeyError, Refused):
            continue
    return found


async def _decoded(log: Log, topic: str) -> AsyncIterator[Record]:
    async for raw in log.records(topic):
        try:
            yield envelope.decode(topic, 0, raw.offset, raw.timestamp, raw.headers, raw.value)
        except Refused:
            continue


def _service(record: Record) -> str:
    if record.origin is not None:
        return record.origin.stage
    if isinstance(record.event, Ticked):
        return "ticker"
    if isinstance(record.event, FeedbackGiven | FeedbackRetracted):
        return "people"
    return {CANDIDATES.name: "trainer", "answers": "server"}.get(record.topic, "ingest")


def run_trace(settings: Settings, version: str, out: Path | None) -> None:
    """Print what a version was made of, by kind, and write the spans (OTLP/JSON, one a line) if a file is named."""
    from streams.access import log_access
    from streams.reader import reader
    from streams.show import Screen

    screen = Screen()

    async def run() -> Lineage:
        async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log:
            return await lineage(log, version)

    found = asyncio.run(run())
    kinds = Counter((one.record.topic, type(one.record.event).__name__) for one in found.steps.values())
    screen.table(("topic", "event", "records"), [(*kind, number) for kind, number in kinds.items()])
    for what, number in (("gone from the log", len(found.gone)), ("left out, there are too many", found.left_out)):
        if number:
            screen.say(f"  {number} records {what}")
    if out is not None:
        with open(out, "w", encoding="ascii") as file:
            file.writelines(span.line(service) + "\n" for service, span in found.spans())
        screen.say(f"  {len(found.steps)} spans in {out} (OTLP/JSON lines, for a collector's file receiver)")
