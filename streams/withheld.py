"""Withheld: `tweets` up to a place -> whose words may not be trained on any more, whatever the steps still remember.

The steps take a pair back as long as they know its posts, and each of their memories has a limit; the log has none. So
whoever makes a training set asks here: one pass by `ce_type`, decoding only what takes something back, and from then
on only what is new. What it says is a function of the log up to there.

A deletion, or an erased author, counts wherever it stands. An author who was hidden, or said no, takes back what was
said before that, and while they are hidden: what comes later has its own rights (streams/policy.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from schemas import envelope
from schemas.envelope import Refused
from schemas.facts import MS_MAX, Event, Where
from schemas.posts import (
    AuthorErased,
    AuthorHidden,
    AuthorShown,
    IntentDeclared,
    PostDeleted,
    PostEdited,
    PostObserved,
)
from schemas.topics import TWEETS
from streams.reader import Reader

KINDS = (PostDeleted, PostEdited, AuthorErased, AuthorHidden, AuthorShown, IntentDeclared)
WANTED = frozenset(envelope.type_header(kind)[1] for kind in KINDS)
NEVER = MS_MAX  # an offset that no record reaches


@dataclass
class Withheld:
    """What was taken back up to `next` of each partition; about 100 bytes a deletion, an edit, an author."""

    next: dict[int, int] = field(default_factory=dict)
    _deleted: set[int] = field(default_factory=set)  # 64-bit hashes: a clash would withhold a pair too many
    _revisions: dict[int, int] = field(default_factory=dict)  # a revision's own name -> its post
    _erased: set[int] = field(default_factory=set)
    _hidden: dict[int, int] = field(default_factory=dict)  # author -> the offset from which they are shown again
    _declared: dict[int, int] = field(default_factory=dict)  # author -> the offset of their newest no

    async def read(self, reader: Reader, ends: Mapping[tuple[str, int], int]) -> None:
        """Read on to these ends of `tweets`; they never lie before those of the last time."""
        for (topic, partition), end in ends.items():
            if topic == TWEETS.name and self.next.get(partition, 0) < end:
                async for raw in reader.records(topic, partition, self.next.get(partition, 0), end):
                    if dict(raw.headers or ()).get("ce_type") in WANTED:
                        self._take(partition, raw)
                self.next[partition] = end

    def _take(self, partition: int, raw: Any) -> None:
        try:
            record = envelope.decode(TWEETS.name, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
        except Refused:
            return  # nothing was said; the worker writes its dead letter
        event = record.event
        if isinstance(event, PostDeleted):
            post = _hash(event.post)
            self._deleted |= {post, self._revisions.get(post, post)}
        elif isinstance(event, PostEdited):
            if event.named is not None:
                self._revisions[_hash(event.named)] = post = _hash(event.post)
                if _hash(event.named) in self._deleted:  # one version was deleted, so all of them were
                    self._deleted.add(post)
        elif isinstance(event, AuthorErased):
            self._erased.add(_hash(event.owner))
        elif isinstance(event, AuthorHidden):
            self._hidden[_hash(event.owner)] = NEVER
        elif isinstance(event, AuthorShown):
            if self._hidden.get(_hash(event.owner)) == NEVER:
                self._hidden[_hash(event.owner)] = record.offset
        elif isinstance(event, IntentDeclared) and event.train is False:
            self._declared[_hash(event.owner)] = record.offset

    def reason(self, where: Where, event: Event) -> str | None:
        """Say why the words of this record may not be used, or None."""
        if isinstance(event, PostObserved):  # and PostEdited
            names = (event.post, event.named or event.post)
            if any(_hash(name) in self._deleted for name in names):
                return "post-deleted"
        owner = _hash(event.owner)  # type: ignore[attr-defined]
        if owner in self._erased:
            return "author-erased"
        # All of an author's records lie in one partition, but an answer's offset says nothing about those.
        at = where.offset if where.topic == TWEETS.name else -1
        if at < self._hidden.get(owner, -1):
            return "author-hidden"
        return "intent-declared" if at < self._declared.get(owner, -1) else None


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
