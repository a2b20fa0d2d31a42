"""Policy explain: a post -> what may be done with it, who decided that, and what would be decided now; in sentences.

What was decided travels with every revision in `tweets`, and only its policy's name; the file that said so may be
another one now. So both are said: the verdict in the log, and what today's file and today's declaration would give.
Without the author all of `tweets` is read, for a post's id does not tell its partition. Words are never opened.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from schemas import envelope
from schemas.envelope import Record, Refused
from schemas.facts import Event, Rights
from schemas.ids import partition_of
from schemas.posts import AuthorErased, AuthorHidden, AuthorShown, IntentDeclared, PostDeleted, PostObserved
from schemas.topics import TWEETS
from streams.access import log_access
from streams.intents import NOTHING, Declared, Intents, intents_file
from streams.policy import DECLARED, Policy, Verdict
from streams.reader import Reader, reader
from streams.settings import Settings
from streams.show import Screen

OF_AUTHORS = (IntentDeclared, AuthorHidden, AuthorShown, AuthorErased)
AT_URI = re.compile(r"at://(did:[a-z]+:[A-Za-z0-9._:%-]+)/app\.bsky\.feed\.post/([A-Za-z0-9._:-]+)")
PLAIN = re.compile(r"[0-9]{1,19}")
MAY = {
    "index": "be stored, embedded, searched and scored",
    "train": "become training data",
    "show": "be shown to people",
}


@dataclass
class Found:
    """What `tweets` holds about one post."""

    posts: list[Record] = field(default_factory=list)
    deleted: list[Record] = field(default_factory=list)
    of_authors: list[Record] = field(default_factory=list)
    read: int = 0

    def keep(self, record: Record, wanted: frozenset[str]) -> None:
        """Keep a record if it is about the post, or may be about its author."""
        event = record.event
        if isinstance(event, PostObserved) and (event.post in wanted or event.named in wanted):
            self.posts.append(record)
        elif isinstance(event, PostDeleted) and event.post in wanted:
            self.deleted.append(record)
        elif isinstance(event, OF_AUTHORS):
            self.of_authors.append(record)

    def names(self) -> frozenset[str]:
        """Give the ids under which the post lies in the log."""
        return frozenset(getattr(record.event, "post", "") for record in self.posts + self.deleted)

    def owner(self) -> str:
        """Give its author; there must be a post."""
        owner: str = getattr((self.posts or self.deleted)[-1].event, "owner", "")
        return owner


def names_of(post: str) -> frozenset[str]:
    """Give the ids that a person may mean: an id as it is, an at:// URI, or a number as X, files and the simulator."""
    if uri := AT_URI.fullmatch(post):
        return frozenset((f"bluesky:{uri[1]}~{uri[2]}", f"own:{uri[1]}~{uri[2]}"))
    if PLAIN.fullmatch(post):
        return frozenset(f"{prefix}:{post}" for prefix in ("x", "own", "sim"))
    return frozenset((post,))


def owner_of(author: str) -> str:
    """Give the key that a person means by an author: an id as it is, a DID, or a number of X's."""
    if author.startswith("did:"):
        return f"bluesky:@{author}"
    return f"x:@{author}" if PLAIN.fullmatch(author) else author


def explain(found: Found, policy: Policy, declared: Callable[[str], Declared] = lambda owner: NOTHING) -> list[str]:
    """Say everything about a post that was found; lines for a terminal."""
    said: list[str] = []
    for record in found.posts:
        post: Any = record.event
        place = f"{record.topic}/{record.partition}/{record.offset}"
        said.append(f"{post.post} by {post.owner}, source {post.source}, revision {post.revision}")
        said.append(f"  taken in {_when(record.time_ms)}, at {place}")
        said.append(f"  decided then, by policy {post.rights.policy}{_still_there(post.source, post.rights, policy)}:")
        said.extend(f"    {line}" for line in _verdicts(post.rights))
    owner = found.owner()
    source: str = getattr((found.posts or found.deleted)[-1].event, "source", "")
    now, table = policy.rights(source, declared(owner)), policy.verdict(source)
    said.append(f"{policy.file} now says, under {_table(source, policy)}, policy {now.policy}:")
    said.extend(f"  {line}" for line in _verdicts(now, table, declared(owner)))
    said.append(f"the author's declaration: {_declaration(declared(owner))}")
    events = sorted(found.of_authors + found.deleted, key=lambda one: (one.time_ms, one.offset))
    said.extend(
        f"  {_when(one.time_ms)}: {_happened(one.event)}" for one in events if getattr(one.event, "owner", "") == owner
    )
    if found.posts and _allowed(now) != _allowed(getattr(found.posts[-1].event, "rights", now)):
        said.append("What is in the log stays under the verdict it came with; taken in again, it comes under today's.")
    return said


def _allowed(rights: Rights) -> tuple[bool, bool, bool]:
    return rights.index, rights.train, rights.show


def _still_there(source: str, rights: Rights, policy: Policy) -> str:
    base = rights.policy.partition("+")[0]
    if base == policy.verdict(source).policy:
        return f" ({_table(source, policy)} of {policy.file} still bears that name)"
    return f" (no table for {source} in {policy.file} bears that name: it was another file, or an older one)"


def _table(source: str, policy: Policy) -> str:
    return f"[{source}]" if source in policy.verdicts else f"no table [{source}]"


def _verdicts(rights: Rights, table: Verdict | None = None, declared: Declared = NOTHING) -> list[str]:
    said = []
    for purpose, may in MAY.items():
        allowed = getattr(rights, purpose)
        why = _why(purpose, rights, table, declared) if table is not None else _why_then(purpose, rights)
        said.append(f"it {'may' if allowed else 'may not'} {may}{f': {why}' if why else ''}")
    return said


def _why_then(purpose: str, rights: Rights) -> str:
    suffix = rights.policy.partition("+")[2]
    if suffix == "declared-no-index":
        return "its author had declared that nothing of theirs may be indexed"
    if purpose == "train" and suffix:
        return f"its author had declared {'yes' if suffix == 'declared-yes' else 'no'}"
    return ""


def _why(purpose: str, rights: Rights, table: Verdict, declared: Declared) -> str:
    if rights.policy == "unknown-source":
        return "what no table names may be used for nothing"
    if declared.index is False and table.index:
        return "its author declares that nothing of theirs may be indexed"
    if not table.index:
        return "index = false: nothing of this source is taken in"
    setting = getattr(table, purpose)
    if purpose != "train":
        return f"{purpose} = {str(setting).lower()}"
    if declared.train is False:
        return "its author declares no, and an author's no always wins"
    if setting == DECLARED:
        yes = "its author declares yes" if declared.train else "its author declares nothing about it"
        return f'train = "declared", and {yes}'
    return f"train = {str(setting).lower()}"


def _declaration(declared: Declared) -> str:
    words = {True: "yes", False: "no", None: "nothing said"}
    if declared == NOTHING:
        return "none is known"
    return f"training: {words[declared.train]}; indexing: {words[declared.index]}"


def _happened(event: Event) -> str:
    if isinstance(event, IntentDeclared):
        return f"declared: {_declaration(Declared(event.train, event.index))}"
    if isinstance(event, AuthorHidden):
        return f"the account was hidden ({event.reason}): nothing of it is used until it is shown again"
    if isinstance(event, AuthorShown):
        return "the account is shown again"
    if isinstance(event, AuthorErased):
        return "the account is gone: its words were destroyed, and nothing of it may be used"
    return "the post was deleted: nothing of it may be used"


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def search(found: Found, raws: Iterable[Any], partition: int, wanted: frozenset[str]) -> None:
    """Look through raw records of one partition of `tweets`; one that cannot be read is no answer here."""
    marks = [name.encode() for name in wanted]
    kinds = tuple(kind.__name__.encode() for kind in OF_AUTHORS)
    for raw in raws:
        found.read += 1
        kind = dict(raw.headers or ()).get("ce_type") or b""
        if any(mark in (raw.value or b"") for mark in marks) or any(name in kind for name in kinds):
            try:
                record = envelope.decode(TWEETS.name, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
            except Refused:
                continue
            found.keep(record, wanted)


def run_policy_explain(settings: Settings, post: str, author: str | None = None) -> None:
    """Say what may be done with a post and why; exit code 1 if the log does not hold it."""
    screen = Screen()
    policy = Policy.load(settings.policy)
    wanted = names_of(post)
    owner = owner_of(author) if author else None
    asyncio.run(_run(settings, screen, policy, wanted, owner))


async def _run(settings: Settings, screen: Screen, policy: Policy, wanted: frozenset[str], owner: str | None) -> None:
    async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log_reader:
        found = await _look(settings, screen, log_reader, wanted, owner)
        firsts = found.names() - wanted
        if firsts:  # asked for by a later version's id: now all versions, which lie in one partition
            found = await _look(settings, screen, log_reader, wanted | firsts, found.owner())
    if not found.posts and not found.deleted:
        screen.say(f"not found: {' or '.join(sorted(wanted))}, among {found.read} records of tweets")
        screen.say("what was refused when it came in has no record there: its reason is in `dead-letters`")
        if owner is not None:
            screen.say(f"only the partition of {owner} was searched; without --author all are")
        raise SystemExit(1)
    file = intents_file(settings.data)
    intents = Intents(file if file.exists() else None)
    for line in explain(found, policy, intents.declared):
        screen.say(f"  {line}")
    intents.close()


async def _look(
    settings: Settings, screen: Screen, log_reader: Reader, wanted: frozenset[str], owner: str | None
) -> Found:
    found = Found()
    ends = await log_reader.ends(TWEETS.name)
    if owner is not None:
        place = (TWEETS.name, partition_of(owner, settings.partitions))
        ends = {place: ends[place]}
    with screen.progress("records of tweets read") as advance:
        for (topic, partition), end in ends.items():
            async for raw in log_reader.records(topic, partition, 0, end):
                search(found, (raw,), partition, wanted)
                if found.read % 1_000 == 0:
                    advance(found.read, sum(ends.values()))
    return found
