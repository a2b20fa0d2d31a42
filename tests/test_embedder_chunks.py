"""Embedder without a broker: chunks cut anywhere, each begun again at any time, end at the same rows."""

import asyncio
import hashlib
import json
import logging
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from schemas import envelope
from schemas import posts as ps
from schemas.envelope import Record
from schemas.facts import Event, Rights
from streams import crash, embedder, healthy, places, vector_ledger
from streams.embed_plan import Plan
from streams.embedder import Embedder
from streams.exits import EXIT_AGAIN
from streams.fold import Sent
from streams.kafka import KafkaSettings
from streams.records import outside
from streams.vault import Vault
from streams.vector_ledger import Ledger, Place
from streams.vectors import VectorStore, folder
from tests.embedded import NOW, POINTS, SHOWN, SHY, UNINDEXED, Oracle, gone, post
from tests.harness import settings_for
from tests.test_vectors import bytes_on_disk

pytestmark = [pytest.mark.timeout(900)]


class Hashing:
    """An encoder that costs nothing: where time goes into torch, fewer orders of events can be tried."""

    sha256, dimensions = "e" * 64, 8

    def encode(self, texts: Sequence[str]) -> Any:
        found = np.array([list(hashlib.sha256(text.encode()).digest()[:8]) for text in texts], np.float32) - 127.5
        return found / np.linalg.norm(found, axis=1, keepdims=True)


# ---- without a broker: chunks cut anywhere, each begun again at any time ---------------------------------------------


def bare(data: Path) -> Embedder:
    """Make an embedder that is handed its chunks."""
    made = Embedder(settings_for(data, "", partitions=1), KafkaSettings("127.0.0.1:1"), crash.nowhere, 60.0)
    made.encoder = Hashing()  # type: ignore[assignment]
    made.ledger = Ledger(folder(made.settings))
    made.store = VectorStore(folder(made.settings), Hashing.sha256, Hashing.dimensions)
    made.bound = {"log": "cluster/tweets/1", "store": made.store.name}
    return made


def closed(made: Embedder) -> None:
    made.store.close()
    made.ledger.close()
    made.vault.close()


def records(events: Iterable[Event], vault: Vault) -> list[Record]:
    """Write events as partition 0 of `tweets` would hold them."""
    found = []
    for offset, event in enumerate(events):
        sent = outside(event, "/sources/x", NOW + offset, 1, vault)
        found.append(envelope.decode("tweets", 0, offset, NOW + offset, sent.headers, sent.value))
    return found


def kept(store: VectorStore, names: Iterable[str]) -> dict[str, tuple[int, str, str]]:
    return {name: (row.revision, row.owner, row.words) for name, row in store.known(names).items()}


NAMES, OWNERS = [f"x:{n}" for n in range(4)], ["x:@a", "x:@b"]
ALONE = "x:0v2"  # a revision that also came by itself, from a source that told nothing of its first

owned = st.sampled_from(NAMES).map(lambda name: (name, OWNERS[int(name[-1]) % 2]))
versions = st.builds(lambda who, version: (f"{who[0]}v{version}", who[1]), owned, st.sampled_from((2, 2, 3)))


def revised(who: tuple[str, str], text: str, revision: int, rights: Rights, named: bool) -> Event:
    return post(*who, text, revision, rights, named=f"{who[0]}v{revision}" if named and revision > 1 else None)


said = st.builds(
    lambda *what: [revised(*what)],
    owned,
    st.sampled_from(("river", "stone", " ")),
    st.integers(1, 3),
    st.sampled_from((SHOWN, SHOWN, SHOWN, UNINDEXED)),
    st.booleans(),
)

acts = st.one_of(
    st.just(post(ALONE, OWNERS[0], "river")),
    st.builds(lambda who: gone(*who), st.one_of(owned, versions)),
    *(
        st.builds(kind, owner=st.sampled_from(OWNERS), source=st.just("x"), **more)
        for kind, more in (
            (ps.AuthorHidden, {"reason": st.just("suspended")}),
            (ps.AuthorShown, {}),
            (ps.AuthorErased, {}),
            (ps.IntentDeclared, {"index": st.sampled_from((True, False, None))}),
        )
    ),
)


def story(who: tuple[str, str], order: Sequence[int]) -> list[Event]:
    """Three acts on one post, which by chance would hardly ever meet."""
    three = [post(*who, "river"), revised(who, "stone", 2, SHOWN, True), gone(f"{who[0]}v2", who[1])]
    return [three[one] for one in order]


stories = st.builds(story, owned, st.permutations(range(3)))
acts_of_one = acts.map(lambda act: [act])
lives = st.lists(
    st.sampled_from((said, said, said, acts_of_one, stories)).flatmap(lambda kind: kind), min_size=1, max_size=12
).map(lambda parts: [act for part in parts for act in part])


class Died(Exception):
    """A crash at a named point."""


def read(made: Embedder, log: Sequence[Record], cut: Callable[[int, int], int], crashes: Sequence[str | None]) -> None:
    """Hand a log over in chunks, from where the ledger stands, dying at the points named, one a chunk."""
    dying = iter(crashes)
    while (at := made.ledger.places().get(0, Place(0)).next) < len(log):
        point, end = next(dying, None), cut(at + 1, len(log))

        def crash_here(name: str, point: str | None = point) -> None:
            if name == point:
                raise Died

        made.crash_point = crash_here
        with suppress(Died):
            made._apply(log[at:end], {0: Place(end, end - 1, "")})


@hypothesis_settings(max_examples=30, deadline=None)
@given(lives, st.lists(st.sampled_from((None, *POINTS[:5])), min_size=3, max_size=6), st.randoms())
def test_chunks_cut_anywhere_and_begun_again_after_a_crash_end_at_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], crashes: list[str | None], rng: random.Random
) -> None:
    made = bare(tmp_path_factory.mktemp("cut"))
    oracle = Oracle()
    for event in events:
        oracle.take(event)
    read(made, records(events, made.vault), rng.randint, crashes)
    assert kept(made.store, [*NAMES, ALONE]) == oracle.rows
    assert made.store.count() == len(oracle.rows)
    assert {(one.owner, one.post) for one, _ in made.ledger.owed()} == oracle.asked
    closed(made)


FIRST, EDIT, GONE = (
    post("x:1", "x:@a", "river"),
    post("x:1", "x:@a", "the river, edited", 2, named="x:2"),
    gone("x:2", "x:@a"),
)


@pytest.mark.parametrize("cut", [min, max], ids=["a chunk each", "one chunk"])
@pytest.mark.parametrize("events", permutations((FIRST, EDIT, GONE)))
def test_a_deletion_that_names_a_later_version_deletes_the_post_whatever_comes_first(
    tmp_path: Path, events: Sequence[Event], cut: Callable[[int, int], int]
) -> None:
    made = bare(tmp_path)
    for end in range(1, len(events) + 1) if cut is min else [len(events)]:
        read(made, records(events[:end], made.vault), cut, [])
        made.ledger.close()
        made.ledger = Ledger(folder(made.settings))  # a restart
    assert made.store.count() == 0
    assert [(one.owner, one.post) for one, _ in made.ledger.owed()] == [("x:@a", "x:2")]
    read(made, records([*events, EDIT, FIRST, post("x:1", "x:@a", "again", 3, named="x:3")], made.vault), min, [])
    assert made.store.count() == 0, "it does not come back, under none of its names"
    closed(made)


def test_the_receipt_of_a_deletion_that_names_a_version_counts_the_posts_row(tmp_path: Path) -> None:
    made = bare(tmp_path)
    other = post("x:7", "x:@a", "another of the same author")
    read(made, records([FIRST, other, EDIT, GONE, GONE], made.vault), min, ["after-owe"] * 9)
    assert [(one.post, rows) for one, rows in made.ledger.owed()] == [("x:2", 1)]
    assert set(kept(made.store, ["x:1", "x:2", "x:7"])) == {"x:7"}
    closed(made)


def test_a_ledger_from_before_revisions_were_noted_goes_on(tmp_path: Path) -> None:
    made = bare(tmp_path)
    log = records([FIRST, gone("x:9", "x:@b"), EDIT, GONE], made.vault)
    made._apply(log[:2], {0: Place(2, 1, "")})
    made.ledger.close()
    with sqlite3.connect(folder(made.settings) / "ledger.sqlite") as old:
        old.execute("drop table revision")
    old.close()
    made.ledger = Ledger(folder(made.settings))
    assert (made.ledger.places()[0].next, made.ledger.post_is_gone("x:9")) == (2, True)
    read(made, log, min, [])
    assert made.store.count() == 0
    closed(made)


def test_the_ledger_remembers_so_many_revisions_and_forgets_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_ledger, "REVISIONS_MAX", 2)
    ledger = Ledger(tmp_path)
    for number in range(4):
        ledger.commit({}, {}, revisions={f"x:{number}v2": f"x:{number}"})
    assert [ledger.post_of(f"x:{number}v2") for number in range(4)] == [None, None, "x:2", "x:3"]
    ledger.close()


class ChecksFirst(Embedder):
    """Wrong on purpose: the checkpoint comes before the rows."""

    def _write(self, made: Plan) -> None:
        self.ledger.commit({0: Place(1, 0, "")}, {})
        super()._write(made)


class Forgetful(Ledger):
    """Wrong on purpose: what is gone is known for one chunk only."""

    def post_is_gone(self, post: str) -> bool:
        return False


def test_control_a_checkpoint_before_the_rows_loses_one(tmp_path: Path) -> None:
    for kind, rows in ((Embedder, 1), (ChecksFirst, 0)):
        made = bare(tmp_path / kind.__name__)
        made.__class__ = kind
        read(made, records([post("x:1", "x:@a", "river")], made.vault), min, ["after-encode"])
        assert made.store.count() == rows
        closed(made)


def test_control_a_ledger_that_forgets_deletions_lets_a_post_come_back(tmp_path: Path) -> None:
    for kind, rows in ((Ledger, 0), (Forgetful, 1)):
        made = bare(tmp_path / kind.__name__)
        made.ledger.__class__ = kind
        read(made, records([gone("x:1", "x:@a"), post("x:1", "x:@a", "river")], made.vault), min, [])
        assert made.store.count() == rows
        closed(made)


def test_a_post_that_says_the_same_again_is_not_encoded_again_but_new_rights_are_kept(tmp_path: Path) -> None:
    made = bare(tmp_path)
    log = records([post("x:1", "x:@a", "river"), post("x:1", "x:@a", "river", media=1)], made.vault)
    for offset, record in enumerate(log):
        made._apply([record], {0: Place(offset + 1, offset, "")})
    assert (made.encoded, made.unchanged) == (1, 1)
    shy = records([*[gone("x:9", "x:@b")] * 2, post("x:1", "x:@a", "river", 1, SHY)], made.vault)[2:]
    made._apply(shy, {0: Place(3, 2, "")})
    assert made.encoded == 2
    assert [row.show for row in made.store.known(["x:1"]).values()] == [False]
    closed(made)


def test_an_author_whose_key_is_destroyed_is_skipped_and_a_moved_seal_too(tmp_path: Path) -> None:
    made = bare(tmp_path)
    log = records([post("x:1", "x:@a", "river"), post("x:2", "x:@b", "stone")], made.vault)
    moved = log[1]._replace(id=log[0].id, offset=2)
    Vault(made.settings.data / "vault" / "keys.sqlite").destroy("x:@a")  # by another process
    made._apply([*log, moved], {0: Place(3, 2, "")})
    assert set(kept(made.store, NAMES)) == {"x:2"}
    assert made.skipped == {"words-gone": 1, "seal-broken": 1}
    closed(made)


def test_a_post_from_the_future_is_set_aside(tmp_path: Path) -> None:
    made = bare(tmp_path)
    made._apply(records([post("x:1", "x:@a", "river", claimed_ms=NOW * 2)], made.vault), {0: Place(1, 0, "")})
    assert (made.store.count(), made.skipped) == (0, {"future-dated": 1})
    closed(made)


def test_no_receipt_is_written_while_bytes_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bare(tmp_path)
    said: list[Event] = []

    async def send(them: Iterable[Sent]) -> None:
        said.extend(one.event for one in them)

    monkeypatch.setattr(made.sender, "send", send)
    log = records([post("x:1", "x:@a", "river"), gone("x:1", "x:@a")], made.vault)
    for offset, record in enumerate(log):
        made._apply([record], {0: Place(offset + 1, offset, "")})
    vector = Hashing().encode(["river"])[0]
    assert bytes_on_disk(folder(made.settings), vector)
    monkeypatch.setattr(made.store, "tidy", lambda: False)
    asyncio.run(made._upkeep())
    assert (said, made.changed) == ([], True)
    monkeypatch.undo()
    monkeypatch.setattr(made.sender, "send", send)
    asyncio.run(made._upkeep())
    assert bytes_on_disk(folder(made.settings), vector) == []
    where = {"topic": "tweets", "partition": 0, "offset": 1}
    whole = {"store": "vectors", "owner": "x:@a", "post": "x:1", "requested": where, "rows": 1}
    assert [event.model_dump() for event in said] == [whole]
    asyncio.run(made._upkeep())
    assert len(said) == 1
    closed(made)


# ---- what others see of it -------------------------------------------------------------------------------------------


def told(made: Embedder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((places.run(made.settings) / "embedder.status.json").read_text())
    return found


async def until(true: Callable[[], bool]) -> None:
    """Wait five seconds for it at most."""
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


def idle(made: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give it no log to read, and no time between two statuses."""

    async def nothing() -> None:
        await asyncio.sleep(0.005)

    made.tps = {}
    monkeypatch.setattr(made, "_next", nothing)
    monkeypatch.setattr(embedder, "STATUS_S", 0.005)


def test_a_full_disk_ends_no_status_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = bare(tmp_path)
    idle(made, monkeypatch)
    failed = 0

    def full(*_: object, **__: object) -> None:
        nonlocal failed
        failed += 1
        raise OSError(28, "No space left on device")

    async def live() -> None:
        following = asyncio.create_task(made._follow())
        await until((places.run(made.settings) / "embedder.status.json").exists)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            await until(lambda: failed > 3)
        since_s = time.time()
        await until(lambda: told(made)["time"] > since_s)
        made.stop.set()
        await following

    with caplog.at_level(logging.WARNING):
        asyncio.run(live())
    assert [one.message for one in caplog.records if one.name == "xinfluencer.embedder"] == [
        "cannot write the status: [Errno 28] No space left on device"
    ]
    closed(made)


def test_any_other_fault_of_the_status_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bare(tmp_path)
    idle(made, monkeypatch)
    monkeypatch.setattr(made.ledger, "waiting", lambda: 1 // 0)

    async def live() -> None:
        async with asyncio.timeout(5):
            await made._follow()

    with pytest.raises(ZeroDivisionError):
        asyncio.run(live())
    closed(made)


@pytest.mark.parametrize("fate", ["stopped", "stopped in a long chunk", "failed"])
def test_its_last_status_says_whether_it_ended_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    settings = settings_for(tmp_path, "", partitions=1)
    monkeypatch.setattr(embedder, "STOP_S_MAX", 0.1)
    monkeypatch.setenv("XINFLUENCER_KAFKA", "127.0.0.1:1")

    async def run(made: Embedder) -> None:
        healthy.tell(places.run(settings), "embedder", rows=3)
        if fate == "failed":
            raise RuntimeError("odd")
        os.kill(os.getpid(), signal.SIGTERM)
        await made.stop.wait()
        if fate != "stopped":
            await asyncio.sleep(60)

    monkeypatch.setattr(Embedder, "run", run)
    code = asyncio.run(embedder._run(settings, 60.0))
    left = json.loads((places.run(settings) / "embedder.status.json").read_text())
    assert (code, left.get("ended"), left["rows"]) == ((EXIT_AGAIN, None, 3) if fate == "failed" else (0, True, 3))
