"""Ingest: lines or values of a source -> records in `tweets`, and a dead letter for everything that cannot be one.

The one edge where outside words come in: here they get their rights (streams/policy.py), their names (by what they
say) and their seal. Taking a file in twice changes nothing as long as its ids are remembered: here, where the log is
known (streams/written.py: 25 million records at least), else in the steps (100,000 ids a partition). What is accepted
can be read back: a record that a reader would refuse is refused here. Every post has one fate, and the summary counts.
"""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from typing import Any, NamedTuple, Protocol

from schemas import envelope
from schemas.envelope import Refused
from schemas.facts import Event
from schemas.ids import digest
from schemas.posts import (
    AuthorErased,
    AuthorHidden,
    AuthorShown,
    EngagementObserved,
    IntentDeclared,
    PostDeleted,
    PostEdited,
    PostObserved,
    ReactionObserved,
    ReactionRetracted,
)
from schemas.seal import Keys
from schemas.topics import TWEETS
from streams.firsts import Firsts, firsts_file
from streams.fold import Sent
from streams.formats import SOURCES, read, source_of
from streams.intents import Declared, Intents, intents_file
from streams.kafka import KafkaSettings
from streams.letters import Letters, bytes_of
from streams.lines import Damage, IngestRefused, Item, Line, Value, parse
from streams.policy import PURPOSES, Policy
from streams.polls import Polls
from streams.reading import RightsOf, Said
from streams.records import content_id, outside
from streams.settings import Settings
from streams.written import Written, log_of, written_file
from streams.xv2_post import canonical

CHUNK_RECORDS_MAX = 2_000
CHUNK_BYTES_MAX = 8 << 20  # with records near 1 MB, what is in memory and unacknowledged at once
READ_BACK_BYTES_MIN = 500_000  # sealed words have a limit of their own, which only larger records can exceed
SOURCE = re.compile(r"[a-z][a-z0-9-]{0,39}")


class Sends(Protocol):
    """Where records go: streams.sender.Sender."""

    async def send(self, records: Iterable[Sent]) -> None:
        """Return when every record is acknowledged, or raise."""


class Known(NamedTuple):
    """What a deployment remembers where words come in: what authors declared, whom posts were first seen of, and, where
    the log is known, what of it was written."""

    intents: Intents
    firsts: Firsts
    written: Written | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Known":
        """Open the deployment's files, beside its vault."""
        return cls(Intents(intents_file(settings.data)), Firsts(firsts_file(settings.data)))

    @classmethod
    async def at(cls, settings: Settings, kafka: KafkaSettings) -> "Known":
        """Open them together with what was written to this log, whose topics are made."""
        written = Written(written_file(settings.data), await log_of(settings, kafka))
        return cls.of(settings)._replace(written=written)

    def close(self) -> None:
        """Close the files."""
        self.intents.close()
        self.firsts.close()
        if self.written is not None:
            self.written.close()


COUNTED: dict[type[Event], str] = {
    PostObserved: "posts",
    PostEdited: "posts",
    EngagementObserved: "engagements",
    PostDeleted: "deletions",
    ReactionObserved: "reactions",
    ReactionRetracted: "retractions",
    IntentDeclared: "intents",
    AuthorHidden: "hidden",
    AuthorShown: "shown",
    AuthorErased: "erased",
}
TIMELY = (IntentDeclared, AuthorHidden, AuthorShown)
"""What may be said, unsaid and said again in the same words: only the message around it tells the times apart."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What came in and what became of it."""

    lines: int = 0  # lines, or values where there are no lines; blank ones are not counted
    bytes: int = 0
    posts_in: int = 0
    posts: int = 0
    repeated: int = 0  # met twice in one page, or in the log already
    engagements: int = 0
    deletions: int = 0
    reactions: int = 0
    retractions: int = 0
    intents: int = 0
    hidden: int = 0
    shown: int = 0
    erased: int = 0
    of_no_use: int = 0  # understood, and nothing in it for us: profiles, keep-alives, what X lists beside posts
    refused: Mapping[str, int] = field(default_factory=dict)  # by reason
    refused_posts: int = 0
    errors_reported: int = 0  # partial errors in X's pages, which are no faults of ours
    by_source: Mapping[str, int] = field(default_factory=dict)  # posts of each source
    by_policy: Mapping[str, int] = field(default_factory=dict)  # posts under each policy
    withheld: Mapping[str, int] = field(default_factory=dict)  # posts that may not be used, by purpose; index: refused

    @property
    def unaccounted(self) -> int:
        """Count posts without a fate; anything but 0 is a fault in this program."""
        return self.posts_in - self.posts - self.refused_posts - self.repeated


Progress = Callable[[Summary], None]


async def ingest(
    lines: Iterable[Item], source: str | None, settings: Settings, sender: Sends, keys: Keys, policy: Policy,
    clock_ms: Callable[[], int], progress: Progress | None = None, known: Known | None = None,
) -> Summary:  # fmt: skip
    """Take in what `streams.lines.read_lines` gives; returns when all of it is acknowledged.

    `source` None: each value's own, told by its content. Each chunk carries the time that `clock_ms` said when it was
    begun. `known` is what the deployment remembers (its own files if not given). Raises IngestRefused for a source that
    cannot be one, and what the sender raises; then some chunks are in the log, and taking in all again adds nothing
    visible.
    """
    opened = known or Known.of(settings)
    try:
        intake = Intake(source, settings, keys, policy, opened)
        records = intake.records(lines)
        more = True
        while more:
            intake.begin(clock_ms())
            # In a thread: reading may wait and sealing takes its time, while the producer must keep its connections.
            chunk, more = await asyncio.to_thread(_chunk, records)
            if chunk:
                await sender.send(chunk)
            await asyncio.to_thread(intake.acknowledged, chunk)
            if progress is not None:
                progress(intake.summary())
        return intake.summary()
    finally:
        if known is None:
            opened.close()


async def ingest_values(
    values: Iterable[Any], source: str | None, settings: Settings, sender: Sends, keys: Keys, policy: Policy,
    clock_ms: Callable[[], int], progress: Progress | None = None, known: Known | None = None,
) -> Summary:  # fmt: skip
    """Take in JSON values from a producer in this process; a None among them means: send what you have."""
    numbers = count(1)
    items = (None if value is None else Value(f"values:{next(numbers)}", value) for value in values)
    return await ingest(items, source, settings, sender, keys, policy, clock_ms, progress, known)


def _chunk(records: Iterator[Sent | None]) -> tuple[list[Sent], bool]:
    """Give the next records, until there are enough or the source pauses, and whether there may be more."""
    chunk: list[Sent] = []
    size = 0
    for one in records:
        if one is None:
            return chunk, True
        chunk.append(one)
        size += len(one.value)
        if len(chunk) >= CHUNK_RECORDS_MAX or size >= CHUNK_BYTES_MAX:
            return chunk, True
    return chunk, False


class Intake:
    """A source, or files of several, being taken in: what to send next, and the counts so far.

    For messages that come one by one: `take` a batch of them, send what it gives, have it acknowledged, go on.
    """

    def __init__(
        self, source: str | None, settings: Settings, keys: Keys, policy: Policy, known: Known | None = None
    ) -> None:
        if source is not None and not SOURCE.fullmatch(source):
            raise IngestRefused(f"{source!r} cannot be a source: use a name of small letters, digits and dashes.")
        self.source, self.width, self.keys, self.policy = source, settings.partitions, keys, policy
        self.known = known or Known.of(settings)
        self.polls = Polls(self.known.written) if self.known.written is not None else None
        self.time_ms = 0
        self.counts: Counter[str] = Counter()
        self.letters = Letters(source, self.width, keys, policy, self._rights_of)
        self.by_source: Counter[str] = Counter()
        self.by_policy: Counter[str] = Counter()
        self.withheld: Counter[str] = Counter()

    def begin(self, time_ms: int) -> None:
        """Begin a chunk: its records are written at `time_ms`, under the keys that there are now."""
        self.time_ms = time_ms
        refresh = getattr(self.keys, "refresh", None)
        if refresh is not None:
            refresh()  # another process may have destroyed a key since the last chunk

    def take(self, items: Iterable[Item], time_ms: int) -> list[Sent]:
        """Give the records of a batch, in order; it is in memory as a whole, so whoever calls bounds it."""
        self.begin(time_ms)
        return [one for one in self.records(items) if one is not None]

    def acknowledged(self, records: Iterable[Sent]) -> None:
        """Remember that the log holds these; call it when all are acknowledged, and not before."""
        if self.known.written is not None and self.polls is not None:
            names, newest = self.polls.taken()
            names.update(_name(one) for one in records if one.topic == TWEETS.name)
            self.known.written.note(names, newest)

    def _new(self, record: Sent, message: Callable[[], str]) -> Sent | None:
        """Give a record as it is to be written, None if the log has it."""
        if self.known.written is None or self.polls is None:
            return record
        name, event = _name(record), record.event
        if not isinstance(event, EngagementObserved):
            return None if self.known.written.knows(name) else record
        under = self.polls.name(event.post, name, message)
        if under is None or under == name:
            return None if under is None else record
        return outside(event, f"/sources/{event.source}", self.time_ms, self.width, self.keys, under)

    def summary(self) -> Summary:
        """Count what was taken so far."""
        return Summary(
            **self.counts,
            refused=dict(self.letters.refused),
            by_source=dict(self.by_source),
            by_policy=dict(self.by_policy),
            withheld=dict(self.withheld),
        )

    def records(self, items: Iterable[Item]) -> Iterator[Sent | None]:
        """Give records as the items come, None where they pause."""
        for item in items:
            if item is None:
                yield None
                continue
            self.counts["lines"] += 1
            if isinstance(item, Damage):
                self.counts["bytes"] += item.size
                fault = Refused(item.reason, item.detail)
                yield from self.letters.of(fault, item.place, self.time_ms, item.size, item.sha256, item.head)
                continue
            if isinstance(item, Line):
                self.counts["bytes"] += len(item.data)
                try:
                    value = parse(item.data)
                except Refused as fault:
                    yield from self.letters.about(fault, item.place, self.time_ms, item.data)
                    continue
            else:
                self.counts["bytes"] += item.size
                value = item.value
            self.counts["of_no_use"] += value == []
            for one in value if isinstance(value, list) else (value,):
                yield from self._value(one, item.place)
            if self.polls is not None and len(self.polls) >= CHUNK_RECORDS_MAX:
                yield None  # nothing new for a long time, and that is noted too

    def _rights_of(self, source: str, native: str | None) -> RightsOf:
        """Ask what authors declared; of a source that the operator names also under their names where it came from."""
        declared = self.known.intents.declared
        if native is None:
            return lambda owner: self.policy.rights(source, declared(owner))
        return lambda owner: self.policy.rights(
            source, _joined(declared(owner), declared(f"{native}:{owner.partition(':')[2]}"))
        )

    def _value(self, value: Any, place: str) -> Iterator[Sent]:
        named = self.source is not None and self.source not in (*SOURCES.values(), "simulator")
        native = source_of(value) if named else None
        reading = read(value, self.source, partial(self._rights_of, native=native))
        for name in ("posts_in", "repeated", "of_no_use"):
            self.counts[name] += getattr(reading, name)
        self.counts["errors_reported"] += reading.errors
        make_all = getattr(self.keys, "make_all", None)
        if make_all is not None:  # one wait for the disk a page, not one a person
            firsts = (said.events[0] for said in reading.said)
            make_all(one.owner for one in firsts if isinstance(one, PostObserved) and one.rights.index)
        message = cache(lambda: hashlib.sha256(bytes_of(value)).hexdigest())
        for said in reading.said:
            try:
                records = self._sealed(said)
            except Refused as fault:
                self.counts["refused_posts"] += isinstance(said.events[0], PostObserved)
                yield from self.letters.about(fault, place, self.time_ms, bytes_of(said.raw), said.raw, value)
                continue
            for one in records:
                new = self._new(one, message)
                if new is not None:
                    self.counts[COUNTED[type(new.event)]] += 1
                    yield new
                elif isinstance(one.event, PostObserved):
                    self.counts["repeated"] += 1
        for refusal in reading.refusals:
            self.counts["refused_posts"] += refusal.what == "post"
            reason = Refused(refusal.reason, f"{refusal.what}: {refusal.detail}")
            raw = {"user": refusal.raw} if refusal.what == "author" else refusal.raw
            yield from self.letters.about(reason, place, self.time_ms, bytes_of(refusal.raw), raw, value)

    def _sealed(self, said: Said) -> list[Sent]:
        """Make the records of one object, or refuse them all; an erased author's posts never come in again."""
        first, *rest = said.events
        self._permitted(first)
        if isinstance(first, PostObserved):
            if self.keys.make(first.owner) is None:
                raise Refused("owner-erased", "the author of this post was erased; nothing of theirs is taken in again")
            if first.author is not None:
                # The raw hash tells apart the forms in which a post comes: each has its own facts.
                author = self.known.firsts.author(f"{first.post}/{first.raw_sha256[:32]}", first.author)
                if author != first.author:
                    first = first.model_copy(update={"author": author})
        records = [self._record(one, said.raw) for one in (first, *rest)]
        for one in records:
            if len(one.value) >= READ_BACK_BYTES_MIN:
                try:
                    envelope.parse(type(one.event), one.value)
                except Refused as fault:
                    raise Refused("too-large", f"no reader would take it: {fault.detail}") from None
        for event in said.events:
            if isinstance(event, IntentDeclared):
                self.known.intents.note(event, event.claimed_ms or 0)
        if isinstance(first, PostObserved):
            self.by_source[first.source] += 1
            self.by_policy[first.rights.policy] += 1
        return records

    def _permitted(self, event: Event) -> None:
        """Count what a post may not be used for; what may not be stored is Refused."""
        if not isinstance(event, PostObserved | EngagementObserved | ReactionObserved):
            return
        if isinstance(event, PostObserved):
            self.withheld.update(purpose for purpose in PURPOSES if not getattr(event.rights, purpose))
        if not event.rights.index:
            raise Refused("rights-index", f"policy {event.rights.policy} lets nothing of {event.source} be stored")

    def _record(self, event: Event, raw: Any) -> Sent:
        name = digest(content_id(event), hashlib.sha256(canonical(raw)).hexdigest()) if type(event) in TIMELY else None
        source: str = getattr(event, "source")  # noqa: B009 - every event of a source names it
        return outside(event, f"/sources/{source}", self.time_ms, self.width, self.keys, name)


def _joined(*said: Declared) -> Declared:
    """Join what one author declared under several names: a no wins over a yes, and a yes over silence."""

    def of(values: list[bool | None]) -> bool | None:
        return False if False in values else True if True in values else None

    return Declared(of([one.train for one in said]), of([one.index for one in said]))


def _name(record: Sent) -> str:
    return next(value for name, value in record.headers if name == "ce_id").decode()
