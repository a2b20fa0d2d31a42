"""Ingest: lines or values of a source -> records in `tweets`, and a dead letter for everything that cannot be one.

The one edge where outside words come in: here they get their rights (streams/policy.py), their names (by what they
say, so taking a file in twice changes nothing) and their seal. What is accepted can be read back: a record that a
reader would refuse is refused here. Every post has one fate, and the summary counts it.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from schemas import envelope
from schemas.envelope import Refused
from schemas.events import RecordRefused
from schemas.facts import Event, RefusedContent, Rights
from schemas.posts import AuthorErased, EngagementObserved, PostDeleted, PostObserved
from schemas.seal import Keys
from streams.fold import HEAD_BYTES_MAX, Sent
from streams.lines import Damage, IngestRefused, Item, Line, Value, parse
from streams.policy import Policy
from streams.reading import Said
from streams.records import outside
from streams.settings import Settings
from streams.xv2 import read
from streams.xv2_post import canonical

CHUNK_RECORDS_MAX = 2_000
CHUNK_BYTES_MAX = 8 << 20  # with records near 1 MB, what is in memory and unacknowledged at once
READ_BACK_BYTES_MIN = 500_000  # sealed words have a limit of their own, which only larger records can exceed
SOURCE = re.compile(r"[a-z][a-z0-9-]{0,39}")


class Sends(Protocol):
    """Where records go: streams.sender.Sender."""

    async def send(self, records: Iterable[Sent]) -> None:
        """Return when every record is acknowledged, or raise."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What came in and what became of it."""

    lines: int = 0  # lines, or values where there are no lines; blank ones are not counted
    bytes: int = 0
    without_posts: int = 0  # pages that were understood and hold none: users, counts, X's own errors
    posts_in: int = 0
    posts: int = 0
    repeated: int = 0  # met twice in one page
    engagements: int = 0
    deletions: int = 0
    erased: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # by reason
    refused_posts: int = 0
    errors_reported: int = 0  # partial errors in X's pages, which are no faults of ours
    by_policy: Mapping[str, int] = field(default_factory=dict)  # posts under each policy

    @property
    def unaccounted(self) -> int:
        """Count posts without a fate; anything but 0 is a fault in this program."""
        return self.posts_in - self.posts - self.refused_posts - self.repeated


Progress = Callable[[Summary], None]


async def ingest(
    lines: Iterable[Item], source: str, settings: Settings, sender: Sends, keys: Keys, policy: Policy,
    clock_ms: Callable[[], int], progress: Progress | None = None,
) -> Summary:  # fmt: skip
    """Take in what `streams.lines.read_lines` gives; returns when all of it is acknowledged.

    Each chunk carries the time that `clock_ms` said when it was begun. Raises IngestRefused for a source that cannot
    be one, and what the sender raises; then some chunks are in the log, and taking in all again adds nothing visible.
    """
    if not SOURCE.fullmatch(source):
        raise IngestRefused(f"{source!r} cannot be a source: use a name of small letters, digits and dashes.")
    intake = _Intake(source, settings.partitions, keys, policy.rights(source))
    records = intake.records(lines)
    refresh = getattr(keys, "refresh", None)
    more = True
    while more:
        intake.time_ms = clock_ms()
        if refresh is not None:
            refresh()  # another process may have destroyed a key since the last chunk
        # In a thread, for reading may wait and sealing takes its time, while the producer must keep its connections.
        chunk, more = await asyncio.to_thread(_chunk, records)
        if chunk:
            await sender.send(chunk)
        if progress is not None:
            progress(intake.summary())
    return intake.summary()


async def ingest_values(
    values: Iterable[Any], source: str, settings: Settings, sender: Sends, keys: Keys, policy: Policy,
    clock_ms: Callable[[], int], progress: Progress | None = None,
) -> Summary:  # fmt: skip
    """Take in JSON values from a producer in this process; a None among them means: send what you have."""
    numbers = count(1)
    items = (None if value is None else Value(f"values:{next(numbers)}", value) for value in values)
    return await ingest(items, source, settings, sender, keys, policy, clock_ms, progress)


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


class _Intake:
    """One source being taken in: what to send next, and the counts so far."""

    def __init__(self, source: str, width: int, keys: Keys, rights: Rights) -> None:
        self.source, self.width, self.keys, self.rights = source, width, keys, rights
        self.make_all = getattr(keys, "make_all", None)
        self.time_ms = 0
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def summary(self) -> Summary:
        posts = self.counts["posts"]
        by_policy = {self.rights.policy: posts} if posts else {}
        return Summary(**self.counts, refused=dict(self.refused), by_policy=by_policy)

    def records(self, lines: Iterable[Item]) -> Iterator[Sent | None]:
        for item in lines:
            if item is None:
                yield None
                continue
            self.counts["lines"] += 1
            if isinstance(item, Damage):
                self.counts["bytes"] += item.size
                yield self._letter(Refused(item.reason, item.detail), item.place, item.size, item.sha256, item.head)
                continue
            if isinstance(item, Line):
                self.counts["bytes"] += len(item.data)
                try:
                    value = parse(item.data)
                except Refused as fault:
                    yield self._letter_of(fault, item.place, item.data)
                    continue
            else:
                self.counts["bytes"] += item.size
                value = item.value
            for one in value if isinstance(value, list) else (value,):
                yield from self._value(one, item.place)

    def _value(self, value: Any, place: str) -> Iterator[Sent]:
        reading = read(value, self.source, lambda owner: self.rights)
        self.counts["posts_in"] += reading.posts_in
        self.counts["repeated"] += reading.repeated
        self.counts["errors_reported"] += reading.errors
        self.counts["without_posts"] += not (reading.said or reading.refusals)
        if self.make_all is not None:  # one wait for the disk a page, not one a person
            self.make_all(said.events[0].owner for said in reading.said if isinstance(said.events[0], PostObserved))
        for said in reading.said:
            try:
                records = self._sealed(said)
            except Refused as fault:
                self.counts["refused_posts"] += isinstance(said.events[0], PostObserved)
                yield self._letter_of(fault, place, _bytes_of(said.raw))
                continue
            for event in said.events:
                self.counts[_kind(event)] += 1
            yield from records
        for refusal in reading.refusals:
            self.counts["refused_posts"] += refusal.what == "post"
            reason = Refused(refusal.reason, f"{refusal.what}: {refusal.detail}")
            yield self._letter_of(reason, place, _bytes_of(refusal.raw))

    def _sealed(self, said: Said) -> list[Sent]:
        """Make the records of one object, or refuse them all; an erased author's posts never come in again."""
        first = said.events[0]
        if isinstance(first, PostObserved) and self.keys.make(first.owner) is None:
            raise Refused("owner-erased", "the author of this post was erased; nothing of theirs is taken in again")
        records = [outside(one, f"/sources/{self.source}", self.time_ms, self.width, self.keys) for one in said.events]
        for one in records:
            if len(one.value) >= READ_BACK_BYTES_MIN:
                try:
                    envelope.parse(type(one.event), one.value)
                except Refused as fault:
                    raise Refused("too-large", f"no reader would take it: {fault.detail}") from None
        return records

    def _letter_of(self, fault: Refused, place: str, data: bytes) -> Sent:
        # Of an erased author not even the first bytes are kept.
        head = b"" if fault.reason == "owner-erased" else data[:HEAD_BYTES_MAX]
        return self._letter(fault, place, len(data), hashlib.sha256(data).hexdigest(), head)

    def _letter(self, fault: Refused, place: str, size: int, sha256: str, head: bytes) -> Sent:
        self.refused[fault.reason] += 1
        owner = f"refused:{self.source}"
        keep = bool(head) and self.keys.make(owner) is not None  # an operator may have erased all heads of a source
        letter = RecordRefused(
            owner=owner,
            reason=fault.reason,
            detail=fault.detail,
            stage="ingest",
            place=place[-512:],
            size=size,
            sha256=sha256,
            content=RefusedContent(head=base64.b64encode(head).decode()) if keep else None,
        )
        return outside(letter, f"/sources/{self.source}", self.time_ms, self.width, self.keys)


def _kind(event: Event) -> str:
    if isinstance(event, EngagementObserved):
        return "engagements"
    return "deletions" if isinstance(event, PostDeleted) else "erased" if isinstance(event, AuthorErased) else "posts"


def _bytes_of(raw: Any) -> bytes:
    """Write what was refused as well as it can be written; it was parsed, so its own bytes are no more."""
    try:
        return canonical(raw)
    except Refused:
        try:
            return json.dumps(raw, default=lambda one: None).encode()
        except (RecursionError, TypeError, ValueError):
            return b""
