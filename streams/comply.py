"""Comply: what X's batch compliance job answers -> deletions, once the log has said whose posts they are.

The job's answers name an id and a reason, but neither an author nor whether the id is a post's or an account's: the
person who began the job knows that, and the log knows the rest. Posts that `tweets` does not hold need no deletion.
Reading goes through all of `tweets` once. Answers of the job are not proofs: they are as recent as the job.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from schemas import envelope
from schemas.envelope import Refused
from schemas.facts import Event
from schemas.ids import digest
from schemas.posts import AuthorErased, AuthorHidden, PostDeleted, PostObserved
from schemas.topics import TWEETS
from streams.access import log_access
from streams.lines import Damage, Item, Line, parse, read_lines
from streams.reader import reader
from streams.records import content_id, outside
from streams.sender import Sender
from streams.settings import Settings
from streams.show import Screen
from streams.vault import Vault
from streams.xv2_post import Names

Kind = Literal["tweets", "users"]
KINDS: tuple[Kind, ...] = ("tweets", "users")
SOURCE = "x"
DELETED = "deleted"
SENT_MAX = 2_000


def wanted(items: Iterable[Item], kind: Kind) -> tuple[dict[str, str], Counter[str]]:
    """Read a job's answers: our id -> X's reason; and why lines were not used, counted."""
    names = Names(SOURCE)
    found: dict[str, str] = {}
    unused: Counter[str] = Counter()
    for item in items:
        try:
            if isinstance(item, Damage):
                raise Refused(item.reason, item.detail)
            if item is None:
                continue
            one = parse(item.data) if isinstance(item, Line) else item.value
            if not isinstance(one, dict) or one.get("action") != "delete":
                raise Refused("unknown-shape", "no answer of a compliance job: it must have id and action delete")
            reason = one.get("reason")
            name = names.post(one, "id") if kind == "tweets" else names.author(one, "id")
            if found.get(name) != DELETED:  # which is for ever, whatever a later line says
                found[name] = reason if isinstance(reason, str) and reason.isidentifier() else "unsaid"
        except Refused as refused:
            unused[refused.reason] += 1
    return found, unused


def events_for(post: PostObserved, answers: dict[str, str], kind: Kind) -> list[Event]:
    """Say what follows for one post that the log holds: its deletion, or its author's."""
    if kind == "tweets":
        gone = post.post in answers or post.named in answers
        return [PostDeleted(post=post.post, owner=post.owner, source=post.source)] if gone else []
    reason = answers.get(post.owner)
    if reason is None:
        return []
    if reason == DELETED:
        return [AuthorErased(owner=post.owner, source=post.source)]
    return [AuthorHidden(owner=post.owner, source=post.source, reason=reason[:512])]


def look(raws: Iterable[Any], partition: int, answers: dict[str, str], kind: Kind) -> list[Event]:
    """Look through raw records of one partition of `tweets`; one that cannot be read is no post."""
    events: list[Event] = []
    for raw in raws:
        if b"Post" not in (dict(raw.headers or ()).get("ce_type") or b""):
            continue
        try:
            record = envelope.decode(TWEETS.name, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
        except Refused:
            continue
        if isinstance(record.event, PostObserved):
            events.extend(events_for(record.event, answers, kind))
    return events


def run_comply(settings: Settings, file: str, kind: str) -> None:
    """Write the deletions that a finished compliance job asks for, and say how many."""
    if kind not in KINDS:
        raise ValueError(f"--type must be {' or '.join(KINDS)}: what the ids of the job were")
    meant: Kind = "tweets" if kind == "tweets" else "users"
    answers, unused = wanted(read_lines(file), meant)
    asyncio.run(_run(settings, Screen(), answers, unused, meant))


async def _run(settings: Settings, screen: Screen, answers: dict[str, str], unused: Counter[str], kind: Kind) -> None:
    events: dict[Event, None] = {}
    async with log_access(settings, screen.say) as kafka:
        async with reader(settings, kafka) as log_reader:
            ends = await log_reader.ends(TWEETS.name)
            read = 0
            with screen.progress("records of tweets read") as advance:
                for (topic, partition), end in ends.items():
                    async for raw in log_reader.records(topic, partition, 0, end):
                        events.update(dict.fromkeys(look((raw,), partition, answers, kind)))
                        read += 1
                        if read % 1_000 == 0:
                            advance(read, sum(ends.values()))
        sender, vault = Sender(settings, kafka), Vault(settings.data / "vault" / "keys.sqlite")
        now = int(time.time() * 1000)
        records = [outside(one, f"/sources/{SOURCE}", now, settings.partitions, vault, _id(one, now)) for one in events]
        try:
            for first in range(0, len(records), SENT_MAX):
                await sender.send(records[first : first + SENT_MAX])
        finally:
            await sender.stop()
            vault.close()
    said = Counter(type(one).__name__ for one in events)
    counts = ", ".join(f"{number} {name}" for name, number in sorted(said.items())) or "nothing"
    screen.say(f"  {len(answers)} answers, {counts} written; of the others the log holds nothing")
    for reason, number in sorted(unused.items()):
        screen.say(f"  {number} lines not used: {reason}")


def _id(event: Event, now_ms: int) -> str:
    """Name an event; an account may be hidden, shown and hidden again, and the last must not pass for the first."""
    return digest(content_id(event), str(now_ms)) if isinstance(event, AuthorHidden) else content_id(event)
