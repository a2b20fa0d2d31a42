"""Embedder without a broker: chunks cut anywhere, each begun again at any time, end at the same rows."""

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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
from schemas.facts import Event
from streams import crash
from streams.embed_plan import Plan
from streams.embedder import Embedder
from streams.fold import Sent
from streams.kafka import KafkaSettings
from streams.records import outside
from streams.vault import Vault
from streams.vector_ledger import Ledger, Place
from streams.vectors import VectorStore, folder
from tests.embedded import NOW, POINTS, SHOWN, SHY, UNINDEXED, Oracle, gone, post
from tests.harness import settings_for
from tests.test_vectors import bytes_on_disk

pytestmark = [pytest.mark.timeout(300)]


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

owned = st.sampled_from(NAMES).map(lambda name: (name, OWNERS[int(name[-1]) % 2]))

acts = st.one_of(
    st.builds(
        lambda who, text, revision, rights: post(*who, text, revision, rights),
        owned,
        st.sampled_from(("river", "stone", " ")),
        st.integers(1, 3),
        st.sampled_from((SHOWN, SHOWN, SHOWN, UNINDEXED)),
    ),
    st.builds(lambda who: gone(*who), owned),
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
@given(st.lists(acts, max_size=14), st.lists(st.sampled_from((None, *POINTS[:5])), max_size=6), st.randoms())
def test_chunks_cut_anywhere_and_begun_again_after_a_crash_end_at_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], crashes: list[str | None], rng: random.Random
) -> None:
    made = bare(tmp_path_factory.mktemp("cut"))
    oracle = Oracle()
    for event in events:
        oracle.take(event)
    read(made, records(events, made.vault), rng.randint, crashes)
    assert kept(made.store, NAMES) == oracle.rows
    assert made.store.count() == len(oracle.rows)
    assert {(one.owner, one.post) for one, _ in made.ledger.owed()} == oracle.asked
    closed(made)


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
