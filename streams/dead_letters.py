"""Dead letters: what could not be used, listed by reason, shown one by one, and put back when the cause is mended.

A letter that a stage wrote names the record's place in the log; replaying writes that record again, as it is but for
its origin, at the end of the same partition. Its id is what it was, so all that follows is named as it would have been
the first time. A record that was replayed before and refused again has a letter for each time; it is written once.
Letters stay, and a step knows a repetition only among its newest ids: so what was replayed is noted beside the log, as
the edge notes what it wrote, and `--reason` leaves it out however much later. An id given by hand is always written.
What was refused at the edge never was a record: take its file in again.
"""

import asyncio
import base64
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from schemas import envelope, seal
from schemas.envelope import Record, Refused
from schemas.events import RecordRefused
from schemas.facts import RefusedContent, Where
from schemas.ids import digest
from schemas.seal import Keys
from schemas.topics import BY_NAME, DEAD_LETTERS
from streams.access import log_access
from streams.fold import Sent
from streams.reader import LogUnreadable, Reader, reader
from streams.sender import Sender
from streams.settings import Settings
from streams.show import Screen
from streams.vault import Vault
from streams.written import Written, log_of


class NoSuchLetter(Exception):
    """There is no dead letter of that id."""


PLACE = re.compile(r"(?P<topic>[a-z-]+)/(?P<partition>[0-9]{1,9})/(?P<offset>[0-9]{1,15})")
GONE_SHOWN_MAX = 20  # lines on a screen; the count is whole


class Letters(NamedTuple):
    """What lies in `dead-letters`: the letters, duplicates left out, oldest first; how many records are none."""

    found: list[Record]
    unreadable: int


class Replayed(NamedTuple):
    """What became of letters: written again; doubles of those; refused at the edge; places with nothing, and why; left
    out because they were replayed before."""

    written: int
    doubles: int
    never_there: int
    gone: list[str]
    before: int = 0


async def letters(log: Reader) -> Letters:
    """Read all dead letters; a record that is none (somebody wrote past our edge) is counted, and hides no other."""
    found: dict[str, Record] = {}
    unreadable = 0
    async for raw in log.records(DEAD_LETTERS.name):
        try:
            record = envelope.decode(DEAD_LETTERS.name, 0, raw.offset, raw.timestamp, raw.headers, raw.value)
        except Refused:
            unreadable += 1
            continue
        found.setdefault(record.id, record)
    return Letters(list(found.values()), unreadable)


def place_of(letter: RecordRefused) -> Where | None:
    """Say where the refused record lies in the log; None if it was refused before it could lie there."""
    place = PLACE.fullmatch(letter.place)
    if letter.stage == "ingest" or place is None or place["topic"] not in BY_NAME:
        return None
    return Where(topic=place["topic"], partition=int(place["partition"]), offset=int(place["offset"]))


def replayed_file(data: Path) -> Path:
    """Where a deployment notes what it replayed."""
    return data / "ingest" / "replayed.sqlite"


async def replay(
    log: Reader, sender: Sender, chosen: Sequence[RecordRefused], replayed: Written, again_too: bool = False
) -> Replayed:
    """Write the records of these letters again, each once however many letters it has; `again_too`: a second time."""
    known = [where for letter in chosen if (where := place_of(letter)) is not None]
    places = [where for where in known if again_too or not replayed.knows(digest("replayed", _text(where)))]
    unique = sorted(set(map(_key, places)))
    there, gone = await _there(log, [Where(topic=topic, partition=part, offset=at) for topic, part, at in unique])
    again: dict[tuple[Any, ...], Sent] = {}
    for topic, part, at in sorted(there):
        raw = there[topic, part, at]
        headers = [(name, value) for name, value in raw.headers if name != "ce_origin"]
        sent = Sent(topic, part, raw.key, raw.value or b"", headers, raw.timestamp, None)  # type: ignore[arg-type]
        again[topic, part, raw.key, sent.value, tuple(headers), raw.timestamp] = sent
    await sender.send(again.values())
    replayed.note(digest("replayed", _text(where)) for where in places if _key(where) in there)
    lost = sum(_key(where) not in there for where in places)
    doubles = len(places) - lost - len(again)
    return Replayed(len(again), doubles, len(chosen) - len(known), gone, len(known) - len(places))


async def _there(log: Reader, places: list[Where]) -> tuple[dict[tuple[str, int, int], Any], list[str]]:
    """Read what is still there of places in order, and say why the others are not."""
    if not places:
        return {}, []
    ends = await log.ends(*sorted({where.topic for where in places}))
    inside = [where for where in places if where.offset < ends.get((where.topic, where.partition), 0)]
    found, lost = await _halved(log, inside)
    there = set(map(_key, inside))
    return found, lost + [f"{_text(one)}: the log ends before it" for one in places if _key(one) not in there]


async def _halved(log: Reader, places: list[Where]) -> tuple[dict[tuple[str, int, int], Any], list[str]]:
    """Read places, halved until what is gone is alone: retention takes the oldest, so there are few halves to try."""
    try:
        return await log.at(places), []
    except LogUnreadable as gone:
        if len(places) == 1:
            return {}, [f"{_text(places[0])}: {gone}"]
    half = len(places) // 2
    (found, lost), (more, others) = await _halved(log, places[:half]), await _halved(log, places[half:])
    return found | more, lost + others


def _text(where: Where) -> str:
    return f"{where.topic}/{where.partition}/{where.offset}"


def _key(where: Where) -> tuple[str, int, int]:
    return where.topic, where.partition, where.offset


def head_of(record: Record, keys: Keys) -> bytes:
    """Give the first bytes of what was refused; empty if they were not kept or their key is destroyed."""
    try:
        event = seal.unseal(record.event, record.id, keys)
    except Refused:
        return b""
    content = getattr(event, "content", None)
    return base64.b64decode(content.head) if isinstance(content, RefusedContent) else b""


def run_list(settings: Settings, reason: str | None) -> None:
    """Count letters by stage and reason, or list those of one reason."""
    screen = Screen()
    found = _readable(asyncio.run(_all(settings, screen)), screen)
    told = [(record, record.event) for record in found if isinstance(record.event, RecordRefused)]
    if reason is None:
        counts = Counter((one.stage, one.reason) for _, one in told)
        newest = {(one.stage, one.reason): record.id for record, one in told}
        rows = [(*name, number, newest[name]) for name, number in counts.most_common()]
        screen.table(("stage", "reason", "letters", "the newest"), rows)
        return
    chosen = [(record.id, one.place, one.size, one.detail[:60]) for record, one in told if one.reason == reason]
    screen.table(("letter", "place", "bytes", "detail"), chosen)


def run_show(settings: Settings, letter: str) -> None:
    """Show one letter: all that is known of it, and the first bytes of what was refused."""
    screen = Screen()
    record, event = _one(_readable(asyncio.run(_all(settings, screen)), screen), letter)
    for name in ("reason", "detail", "stage", "place", "size", "sha256"):
        screen.say(f"  {name:<8} {getattr(event, name)}")
    head = head_of(record, Vault(settings.data / "vault" / "keys.sqlite"))
    screen.say(f"  {'begins':<8} {head!r}" if head else "  its first bytes were not kept, or their key is destroyed")


def run_replay_letters(settings: Settings, names: Sequence[str], reason: str | None) -> None:
    """Write the records of letters again, by id or by reason; exits with 1 if there was nothing to write."""
    screen = Screen()

    async def run() -> Replayed:
        async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log:
            found = _readable(await letters(log), screen)
            chosen = [_one(found, name)[1] for name in names] or [
                one.event for one in found if isinstance(one.event, RecordRefused) and one.event.reason == reason
            ]
            if not chosen:
                raise NoSuchLetter(
                    f"no dead letter has the reason {reason!r}; `xinfluencer dead-letters list` says all"
                )
            replayed = Written(replayed_file(settings.data), await log_of(settings, kafka))
            sender = Sender(settings, kafka)
            try:
                return await replay(log, sender, chosen, replayed, again_too=bool(names))
            finally:
                await sender.stop()
                replayed.close()

    if not names and reason is None:
        raise ValueError("say which: ids of letters, or --reason")
    done = asyncio.run(run())
    screen.say(f"  {done.written} records written again; what becomes of them is seen in the topics that follow")
    if done.doubles:
        screen.say(f"  {done.doubles} more letters are about the same records, which were refused more than once")
    if done.before:
        screen.say(f"  {done.before} were written again before and are left out; name their ids to do it once more")
    if done.never_there:
        screen.say(f"  {done.never_there} were refused at the edge and lie in no topic: take their file in again")
    if done.gone:
        screen.say(
            f"  {len(done.gone)} are not in the log any more and are left out; who has their file takes it in again"
        )
        for line in done.gone[:GONE_SHOWN_MAX]:
            screen.say(f"    {line}")
    if not done.written and not done.before:
        sys.exit(1)


async def _all(settings: Settings, screen: Screen) -> Letters:
    async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log:
        return await letters(log)


def _readable(all_of_them: Letters, screen: Screen) -> list[Record]:
    if all_of_them.unreadable:
        screen.say(
            f"  {all_of_them.unreadable} records in {DEAD_LETTERS.name} are no letters of ours, and are left out"
        )
    return all_of_them.found


def _one(found: Sequence[Record], name: str) -> tuple[Record, RecordRefused]:
    for record in found:
        if record.id == name and isinstance(record.event, RecordRefused):
            return record, record.event
    raise NoSuchLetter(f"there is no dead letter {name!r}; `xinfluencer dead-letters list` shows them")
