"""D10: a post is deleted and an author erased; whatever is then read again, from any offset, nothing of them is back.

The log, the keys, the pairs and the batches on real processes. Each store's own bytes are searched beside the store
that they are about: vectors in test_embedder.py, tables in test_sink.py.
"""

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from schemas import posts as ps
from schemas import seal
from schemas.events import AuthorForgotten
from schemas.learned import PairFormed
from streams.dataset import Dataset, closed_batches, load
from streams.reader import reader
from streams.records import outside
from tests.feeds import feed
from tests.harness import Workers, attacked_run, ended, finish, judge, now_ms, said, settings_for, vault_of, write
from tests.proof import SEED, Say

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]


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
    other = next(one for one in posts.values() if one.owner != owner)
    return owner, (other.post, other.owner)


def _gone(settings: Any, kafka: Any, found: dict[str, Any]) -> None:
    """Hold the log, the keys, the pairs and the receipts against what was asked to be forgotten."""
    owner, (post, _) = found["owner"], found["post"]
    vault = vault_of(settings)
    assert vault.get(owner) is None
    assert vault.make(owner) is None, "a destroyed key was made again"
    tweets = asyncio.run(said(settings, kafka, "tweets"))
    theirs = [one for one in tweets if one.event.owner == owner and isinstance(one.event, ps.PostObserved)]  # type: ignore[attr-defined]
    assert theirs
    for one in theirs:
        assert seal.unseal(one.event, one.id, vault).content is None  # type: ignore[attr-defined]
    others = [one for one in tweets if isinstance(one.event, ps.PostObserved) and one.event.owner != owner]
    assert all(seal.unseal(one.event, one.id, vault).content is not None for one in others), "control: others' words"  # type: ignore[attr-defined]
    receipts = {one.id: one.event for one in asyncio.run(said(settings, kafka, "erasures"))}
    assert [one.owner for one in receipts.values() if isinstance(one, AuthorForgotten)] == [owner]
    before, after = found["before"], found["after"]  # `load` raises BatchBroken where a root does not verify
    assert set(before.pairs) <= set(after.pairs), "a closed batch holds what it held"
    withheld = {row.id for row in before.rows} - {row.id for row in after.rows}
    for name in withheld | {row.id for row in after.rows}:
        sides = {after.pairs[name].chosen.subject, after.pairs[name].rejected.subject}
        of_it = any(side.split("/")[1] == post for side in sides) or after.pairs[name].prompt == post
        assert name in withheld or not of_it, "a pair with a deleted post is trained on"
    assert withheld
    assert sum(after.withheld.values()) >= len(withheld)
