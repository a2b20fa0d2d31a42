"""Dead letters: what could not be used, listed by reason, shown one by one, and put back when the cause is mended.

A letter that a stage wrote names the record's place in the log; replaying writes that record again, as it is but for
its origin, at the end of the same partition. Its id is what it was, so all that follows is named as it would have been
the first time. What was refused at the edge never was a record: take its file in again.
"""

import asyncio
import base64
from collections import Counter
from collections.abc import Sequence

from schemas import envelope, seal
from schemas.envelope import Record, Refused
from schemas.events import RecordRefused
from schemas.facts import RefusedContent, Where
from schemas.seal import Keys
from schemas.topics import DEAD_LETTERS
from streams.access import log_access
from streams.fold import Sent
from streams.reader import Reader, reader
from streams.sender import Sender
from streams.settings import Settings
from streams.show import Screen
from streams.vault import Vault


class NoSuchLetter(Exception):
    """There is no dead letter of that id."""


async def letters(log: Reader) -> list[Record]:
    """Read all dead letters, duplicates left out, oldest first."""
    found: dict[str, Record] = {}
    async for raw in log.records(DEAD_LETTERS.name):
        record = envelope.decode(DEAD_LETTERS.name, 0, raw.offset, raw.timestamp, raw.headers, raw.value)
        found.setdefault(record.id, record)
    return list(found.values())


def place_of(letter: RecordRefused) -> Where | None:
    """Say where the refused record lies in the log; None if it was refused before it could lie there."""
    topic, _, rest = letter.place.partition("/")
    partition, _, offset = rest.partition("/")
    if letter.stage == "ingest" or not (partition.isdigit() and offset.isdigit()):
        return None
    return Where(topic=topic, partition=int(partition), offset=int(offset))


async def replay(log: Reader, sender: Sender, chosen: Sequence[RecordRefused]) -> int:
    """Write the records of these letters again; gives how many. LogUnreadable if one is no longer in the log."""
    places = [where for letter in chosen if (where := place_of(letter)) is not None]
    records = await log.at(places)
    again = []
    for where in places:
        raw = records[where.topic, where.partition, where.offset]
        headers = [(name, value) for name, value in raw.headers if name != "ce_origin"]
        again.append(Sent(where.topic, where.partition, raw.key, raw.value or b"", headers, raw.timestamp, None))  # type: ignore[arg-type]
    await sender.send(again)
    return len(again)


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
    found = asyncio.run(_all(settings, screen))
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
    record, event = _one(asyncio.run(_all(settings, screen)), letter)
    for name in ("reason", "detail", "stage", "place", "size", "sha256"):
        screen.say(f"  {name:<8} {getattr(event, name)}")
    head = head_of(record, Vault(settings.data / "vault" / "keys.sqlite"))
    screen.say(f"  {'begins':<8} {head!r}" if head else "  its first bytes were not kept, or their key is destroyed")


def run_replay_letters(settings: Settings, names: Sequence[str], reason: str | None) -> None:
    """Write the records of letters again, by id or by reason."""
    screen = Screen()

    async def run() -> tuple[int, int]:
        async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log:
            found = await letters(log)
            chosen = [_one(found, name)[1] for name in names] or [
                one.event for one in found if isinstance(one.event, RecordRefused) and one.event.reason == reason
            ]
            sender = Sender(settings, kafka)
            done = await replay(log, sender, chosen)
            await sender.stop()
            return done, len(chosen) - done

    if not names and reason is None:
        raise ValueError("say which: ids of letters, or --reason")
    done, never_there = asyncio.run(run())
    screen.say(f"  {done} records written again; what becomes of them is seen in the topics that follow")
    if never_there:
        screen.say(f"  {never_there} were refused at the edge and lie in no topic: take their file in again")


async def _all(settings: Settings, screen: Screen) -> list[Record]:
    async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log:
        return await letters(log)


def _one(found: Sequence[Record], name: str) -> tuple[Record, RecordRefused]:
    for record in found:
        if record.id == name and isinstance(record.event, RecordRefused):
            return record, record.event
    raise NoSuchLetter(f"there is no dead letter {name!r}; `xinfluencer dead-letters list` shows them")
