"""D10: a post is deleted and an author erased; whatever is then read again, from any offset, nothing of them is back.

The log, the keys, the pairs and the batches on real processes. Whoever has the log and every byte of the vault is
played here, and opens nothing of either. Each store's own bytes are searched beside the store that they are about:
vectors in test_embedder.py, tables in test_sink.py, keys in test_puncture.py; what the steps have long forgotten is
deleted in test_withheld.py.
"""

import asyncio
import shutil
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from schemas import posts as ps
from schemas import seal
from schemas.envelope import Record, Refused
from schemas.events import AuthorForgotten, PostForgotten
from schemas.learned import PairFormed
from schemas.puncture import DEPTH, NODE_BYTES, Node, leaf, place_of
from streams import restore
from streams.backup_store import Store
from streams.dataset import Dataset, closed_batches, load
from streams.reader import reader
from streams.records import outside
from streams.vault import Vault
from tests.feeds import feed
from tests.harness import Workers, attacked_run, ended, finish, judge, now_ms, said, settings_for, vault_of, write
from tests.proof import SEED, Say

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]


def test_what_was_forgotten_is_in_nothing_that_is_read_again(broker: Any, tmp_path: Path, proof: Say) -> None:
    proof("D10", "a post deleted, an author erased, then the worker reads all again from offset 0", 1, "runs")
    settings = settings_for(tmp_path, "d10")
    vault, kafka = vault_of(settings), broker.settings
    workers = Workers(settings, kafka)
    records = list(feed(SEED, 120, settings.partitions, vault, now_ms(), doubled=0.0))
    found: dict[str, Any] = {}

    async def dataset() -> Dataset:
        async with reader(settings, kafka) as log_reader:
            return await load(log_reader, [batch for _, batch in await closed_batches(log_reader)], vault)

    async def attack() -> None:
        await write(settings, kafka, records)
        await finish(settings, kafka, workers)
        found["before"] = before = await dataset()
        pair = next(iter(before.pairs.values()))
        found["owner"], found["post"] = await _owners(settings, kafka, pair)
        store = Store(tmp_path / "store")
        store.put_keys(settings.data / "vault" / "keys.sqlite")
        found["old"] = store.keys
        assert await _opened(settings, kafka, settings.data / "vault", *found["post"]), "control: it opens before"
        events = (
            ps.AuthorErased(owner=found["owner"], source="x"),
            ps.PostDeleted(post=found["post"][0], owner=found["post"][1], source="x"),
        )
        await write(settings, kafka, [outside(one, "/sources/x", now_ms(), 4, vault) for one in events])
        await finish(settings, kafka, workers)
        found["after"] = await dataset()

    verdict = attacked_run(settings, kafka, workers, attack)
    assert verdict.faults == [], workers.log()[-3000:]
    _gone(settings, kafka, found)

    # The replay: no snapshot, everything again from offset 0, by a process that never saw it.
    shutil.rmtree(settings.data / "snapshots")
    again = Workers(settings, kafka)

    async def replay() -> tuple[Any, Dataset]:
        again.start()
        await finish(settings, kafka, again)
        await asyncio.to_thread(again.signal, signal.SIGTERM)
        return await judge(settings, kafka), await dataset()

    with ended(again):
        verdict, found["after"] = asyncio.run(replay())
    assert verdict.faults == [], again.log()[-3000:]
    _gone(settings, kafka, found)


async def _owners(settings: Any, kafka: Any, pair: PairFormed) -> tuple[str, tuple[str, str]]:
    """Give the author of what was chosen, and another's post with its author that some pair does not share."""
    posts = {
        (one.topic, one.partition, one.offset): one.event
        for one in await said(settings, kafka, "tweets")
        if isinstance(one.event, ps.PostObserved)
    }
    where = pair.chosen.where
    owner = posts[where.topic, where.partition, where.offset].owner
    whose = Counter(one.owner for one in posts.values() if one.content is not None)
    other = next(one for one in posts.values() if one.owner != owner and one.content and whose[one.owner] > 2)
    return owner, (other.post, other.owner)


def _gone(settings: Any, kafka: Any, found: dict[str, Any]) -> None:
    """Hold the log, the keys, the pairs and the receipts against what was asked to be forgotten."""
    owner, (post, _) = found["owner"], found["post"]
    vault, whose = vault_of(settings), found["post"][1]
    assert vault.get(owner) is None
    assert vault.make(owner) is None, "a destroyed key was made again"
    assert vault.get(whose) is not None
    tweets = asyncio.run(said(settings, kafka, "tweets"))
    theirs = [one for one in tweets if one.event.owner == owner and isinstance(one.event, ps.PostObserved)]  # type: ignore[attr-defined]
    assert theirs
    for one in theirs:
        assert seal.unseal(one.event, one.id, vault).content is None  # type: ignore[attr-defined]
    others = [one for one in tweets if isinstance(one.event, ps.PostObserved) and one.event.owner != owner]
    shut = [one.event.post for one in others if seal.unseal(one.event, one.id, vault).content is None]  # type: ignore[attr-defined]
    deleted = {one.event.post: one.event.owner for one in tweets if isinstance(one.event, ps.PostDeleted)}
    there = {one.event.post for one in others}  # type: ignore[attr-defined]
    assert set(shut) == deleted.keys() & there, "a deleted post opens, or another does not"
    assert post in shut
    assert {one.event.owner for one in others} > {whose}, "control: others' words, and others of the same author"  # type: ignore[attr-defined]
    assert any(one.event.owner == whose and one.event.post != post for one in others)  # type: ignore[attr-defined]
    receipts = {one.id: one.event for one in asyncio.run(said(settings, kafka, "erasures"))}
    assert [one.owner for one in receipts.values() if isinstance(one, AuthorForgotten)] == [owner]
    posts = {one.post: one.owner for one in receipts.values() if isinstance(one, PostForgotten)}
    assert posts == deleted
    authors_and_posts = [one for one in receipts.values() if isinstance(one, AuthorForgotten | PostForgotten)]
    _nobody_opens_it(settings, kafka, found, authors_and_posts)
    before, after = found["before"], found["after"]  # `load` raises BatchBroken where a root does not verify
    assert set(before.pairs) <= set(after.pairs), "a closed batch holds what it held"
    withheld = {row.id for row in before.rows} - {row.id for row in after.rows}
    for name in withheld | {row.id for row in after.rows}:
        sides = {after.pairs[name].chosen.subject, after.pairs[name].rejected.subject}
        of_it = any(side.split("/")[1] == post for side in sides) or after.pairs[name].prompt == post
        assert name in withheld or not of_it, "a pair with a deleted post is trained on"
    assert withheld
    assert sum(after.withheld.values()) >= len(withheld)


def _nobody_opens_it(settings: Any, kafka: Any, found: dict[str, Any], receipts: list[Any]) -> None:
    """Attack the deleted post with the log and every byte of the vault, and with a vault that was put back."""
    assert asyncio.run(_opened(settings, kafka, settings.data / "vault", *found["post"])) == []
    back = found["old"].parent / "back" / "keys.sqlite"
    back.parent.mkdir(exist_ok=True)
    shutil.copy(found["old"], back)
    assert asyncio.run(_opened(settings, kafka, back.parent, *found["post"])), "control: the copy from before opens it"
    assert restore.forget(back, receipts) >= 2  # the feed deletes some posts of its own, whose keys had gone before
    assert asyncio.run(_opened(settings, kafka, back.parent, *found["post"])) == []
    assert Vault(back).get(found["post"][1]) is not None


async def _opened(settings: Any, kafka: Any, folder: Path, post: str, owner: str) -> list[Record]:
    """Give the records of a post that open to somebody who tries every 16 bytes of the vault's files as any node."""
    with sqlite3.connect(folder / "keys.sqlite") as db:
        (key,) = db.execute("select key from keys where owner = ?", (owner,)).fetchone()
        kept = [secret for (secret,) in db.execute("select secret from nodes union select root from keys") if secret]
    db.close()
    data = b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())
    place = place_of(seal.post_name(post))
    # Every node of this vault, at every depth of this post's path; and, whatever the tables say, the raw bytes around.
    leaves = {leaf(_over(place, depth, secret), place) for secret in kept for depth in range(DEPTH + 1)}
    at = data.find(owner.encode())
    while at >= 0:
        around = range(max(0, at - 100), min(len(data) - NODE_BYTES, at + 200))
        leaves |= {leaf(_over(place, 0, data[one : one + NODE_BYTES]), place) for one in around}
        at = data.find(owner.encode(), at + 1)
    records = [one for one in await said(settings, kafka, "tweets") if getattr(one.event, "content", None)]
    records = [one for one in records if isinstance(one.event, ps.PostObserved) and one.event.post == post]
    assert records
    return [
        one for one in records if any(_opens(one, guess) for guess in (key, *(seal.post_key(key, x) for x in leaves)))
    ]


def _over(place: int, depth: int, secret: bytes) -> Node:
    """Give the node of a depth that covers a place, if its secret were this."""
    width = 1 << 2 * (DEPTH - depth)
    return Node(place // width * width, depth, secret)


def _opens(record: Record, key: bytes) -> bool:
    try:
        return bool(seal.open_bytes(key, record.event.content, f"PostObserved/{record.id}".encode()))  # type: ignore[attr-defined]
    except Refused:
        return False
