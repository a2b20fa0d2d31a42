"""Similar: a post of the log, or words -> the posts nearest in meaning, their words unsealed from the log to be shown.

The store holds vectors and places, no words: what is shown is read back from `tweets` and unsealed with its author's
key, so a forgotten author's words cannot show up here. A post that may not be shown is listed by its id alone.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from schemas import envelope, seal
from schemas.envelope import Record, Refused
from schemas.facts import PostContent, Where
from schemas.posts import PostObserved
from schemas.topics import TWEETS
from streams.access import NothingThere, log_access
from streams.reader import LogUnreadable, Reader, reader
from streams.settings import Settings
from streams.show import Screen
from streams.vault import Vault
from streams.vector_ledger import Ledger
from streams.vectors import Near, Row, VectorReader, folder
from streams.vectors import Vectors as Vector

SHOWN_CHARS_MAX = 160  # of each post, on one line


class NothingSimilar(Exception):
    """The question cannot be answered; the message says why."""


def run_similar(
    settings: Settings,
    post: str | None,
    text: str | None,
    number: int,
    source: str | None = None,
    lang: str | None = None,
    since: str | None = None,
) -> None:
    """Print the posts nearest to a post or to words. NothingSimilar or NoStore: a sentence that says why not."""
    if (post is None) == (text is None):
        raise NothingSimilar("give either the id of a post or --text")
    since_ms = moment_ms(since) if since is not None else None
    logging.basicConfig(level=logging.WARNING)
    screen = Screen()
    store = VectorReader(folder(settings))
    vector = _encoded(settings, store, text) if text is not None else None
    asyncio.run(_answer(settings, screen, store, post, vector, number, source, lang, since_ms))


def moment_ms(text: str) -> int:
    """Read a date or a time of ISO 8601, UTC where it names no zone, as ms. NothingSimilar if it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise NothingSimilar("--since: give a date such as 2026-11-21 or 2026-11-21T08:00") from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def _encoded(settings: Settings, store: VectorReader, text: str) -> Vector:
    from models.encode import Encoder

    encoder = Encoder.load(settings.encoder, settings.cache, settings.threads)
    if encoder.sha256 != store.encoder:
        raise NothingSimilar(
            f"the vectors were made by encoder {store.encoder[:12]}, {settings.encoder} is {encoder.sha256[:12]}: "
            "set XINFLUENCER_ENCODER to the one that made them"
        )
    if not text.strip():
        raise NothingSimilar("--text holds no words")
    return encoder.encode([text])[0]


async def _answer(
    settings: Settings,
    screen: Screen,
    store: VectorReader,
    post: str | None,
    vector: Vector | None,
    number: int,
    source: str | None,
    lang: str | None,
    since_ms: int | None,
) -> None:
    rows: list[Row] = []
    if vector is None and post is not None:
        found = await asyncio.to_thread(store.find, post)
        if found is not None:
            rows, vector = [found[0]], found[1]
    near: list[Near] = []
    if vector is not None:
        near = await asyncio.to_thread(
            store.nearest, vector, number, beside=post, source=source, lang=lang, since_ms=since_ms
        )
    if vector is None and post is not None:
        raise NothingSimilar(await why_not(settings, screen, post))
    words = await shown(settings, screen, [*rows, *(one.row for one in near)])
    if rows:
        screen.say(f"  nearest to {rows[0].post}: {words.get(rows[0].post, '')}\n")
    if not near:
        raise NothingSimilar("no post that fits the filters has a vector")
    screen.table(
        ("score", "post", "author", "claimed", "words"),
        [(one.score, one.row.post, one.row.owner, _when(one.row), words.get(one.row.post, "")) for one in near],
    )


def _when(row: Row) -> str:
    if row.claimed_ms is None:
        return "-"
    return datetime.fromtimestamp(row.claimed_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


async def shown(settings: Settings, screen: Screen, rows: Sequence[Row]) -> dict[str, str]:
    """Give what may be shown of each post: its words on one line, or in brackets why there are none."""
    said = {row.post: "[may not be shown]" for row in rows if not row.show}
    if len(said) == len(rows):
        return said
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    try:
        async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log_reader:
            for row in rows:
                if row.show:
                    said[row.post] = await _words(log_reader, vault, row)
    except NothingThere as nothing:
        screen.say(f"  (no words: {nothing})")
    finally:
        vault.close()
    return said


async def _words(log_reader: Reader, vault: Vault, row: Row) -> str:
    place = (row.topic, row.partition, row.offset)
    try:
        raw = (await log_reader.at([Where(topic=row.topic, partition=row.partition, offset=row.offset)]))[place]
        record = envelope.decode(*place, raw.timestamp, raw.headers, raw.value)
        event = seal.unseal(record.event, record.id, vault)
    except (LogUnreadable, Refused):
        return "[its record cannot be read any more]"
    if not isinstance(event, PostObserved) or event.post != row.post:
        return "[the log holds another record there]"
    if not isinstance(event.content, PostContent):
        return "[it was deleted, or its author forgotten]"
    line = " ".join(event.content.text.split())
    return line if len(line) <= SHOWN_CHARS_MAX else line[: SHOWN_CHARS_MAX - 1] + "…"


async def why_not(settings: Settings, screen: Screen, post: str) -> str:
    """Say in a sentence why a post has no vector; where the ledger does not know, all of `tweets` is read."""
    ledger = Ledger(folder(settings))
    try:
        if ledger.post_is_gone(post):
            return f"{post} was deleted; its vector is gone"
        async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log_reader:
            found = await _found(log_reader, post)
        if found is None:
            return f"there is no post {post} in the log; ids look like x:123"
        return f"{post} has no vector: {_reason(found, ledger)}"
    finally:
        ledger.close()


async def _found(log_reader: Reader, post: str) -> Record | None:
    """Read the log for the last record of a post."""
    needle = post.encode()
    found = None
    for (topic, partition), end in (await log_reader.ends(TWEETS.name)).items():
        async for raw in log_reader.records(topic, partition, 0, end):
            if needle in (raw.value or b""):
                with suppress(Refused):
                    one = envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
                    found = one if isinstance(one.event, PostObserved) and one.event.post == post else found
    return found


def _reason(record: Record, ledger: Ledger) -> str:
    post = record.event
    assert isinstance(post, PostObserved)
    place = ledger.places().get(record.partition)
    if post.reposted is not None:
        return f"it is a repost of {post.reposted} and has no words of its own"
    if not post.rights.index:
        return f"the policy {post.rights.policy} of {post.source} does not allow indexing it"
    if owner := ledger.owner_is_gone(post.owner):
        return f"its author was {owner}"
    if place is None or record.offset >= place.next:
        return "the embedder has not come so far; it runs with `xinfluencer up` or `embedder`"
    return "it has no words, its date lies in the future, or its author was forgotten"
