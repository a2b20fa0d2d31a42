"""One suite for every place that snapshots are kept in: a folder, memory, files through fsspec, an S3 server.

The S3 server is moto's: it speaks the protocol, and honours `If-None-Match: *` on a put. The wrong stores at the end
show what these tests would say of one that does not.
"""

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.seal import Unpunctured
from schemas.topics import TWEETS
from streams import object_snapshots, shell
from streams.fold import Fold, Sent
from streams.object_snapshots import KEPT_MAX, SnapshotStore, StoreRefused
from streams.settings import Settings
from streams.shell import PUTS_MAX, Owned, Shell
from streams.snapshots import Bound, ClaimLost, SnapshotFolder, SnapshotRefused, encode, state_hash
from streams.topology import stages
from streams.transport import Chunk
from tests.bare_shell import KAFKA, STAGES, Keys, people
from tests.feeds import feed
from tests.s3_server import s3_server

METADATA = stages()[0]
BOUND = Bound("metadata", 1, 0, "cluster-1/tweets", 3)
PLACES = ("folder", "memory", "file", "s3")
BUCKET = "snapshots"


class NoKeys(Unpunctured):
    """Nothing here is sealed."""

    def get(self, owner: str) -> bytes | None:
        return None

    make = get


@dataclass
class Place:
    """Somewhere snapshots are kept, and what a test may do behind their back."""

    kind: str
    url: str
    options: dict[str, Any]

    def open(self) -> Any:
        """Come to the same place as another process would."""
        return SnapshotFolder(Path(self.url), fsync=False) if self.kind == "folder" else self.store()

    def store(self) -> SnapshotStore:
        return SnapshotStore(self.url, **self.options)

    def whole_names(self) -> list[str]:
        """Name the snapshots, the newest first."""
        if self.kind == "folder":
            folder = Path(self.url) / "metadata-0"
            return [str(folder / name) for name in ("snapshot", "snapshot.previous") if (folder / name).exists()]
        store = self.store()
        found = store.files.ls(f"{store.root}/metadata-0", detail=False)
        return sorted((path for path in found if "/snapshot-" in path), reverse=True)

    def damage(self, name: str, change: Callable[[bytes], bytes]) -> None:
        if self.kind == "folder":
            Path(name).write_bytes(change(Path(name).read_bytes()))
        else:
            files = self.store().files
            files.pipe_file(name, change(files.cat_file(name)))


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """An S3 server with one bucket; gives the options that reach it."""
    with s3_server(BUCKET) as options:
        yield options


def place_of(kind: str, folder: Path, s3: dict[str, Any]) -> Place:
    """Make a place that nobody used before."""
    name = uuid.uuid4().hex
    return {
        "folder": Place(kind, str(folder / name), {}),
        "memory": Place(kind, f"memory://{name}", {}),
        "file": Place(kind, f"file://{folder}/{name}", {}),
        "s3": Place(kind, f"s3://{BUCKET}/{name}", s3),
    }[kind]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: dict[str, Any]) -> Place:
    return place_of(request.param, tmp_path, s3)


def fold_at(offset: int, size: int = 0) -> Fold:
    """Make a fold that stands at an offset; `size` fills its state."""
    fold = Fold(METADATA, 0, 3, NoKeys())
    fold.memory.next = offset
    fold.memory.applied = {"stage/topic/0": (offset, 1)}
    fold.memory.state.deleted = {f"post {i} of {offset}": True for i in range(size)}
    return fold


def loaded(place: Place) -> tuple[int | None, int]:
    """Give where the snapshot stands (None: there is none) and how many were found broken."""
    memory, broken = place.open().load(fold_at(0), BOUND)
    return memory.next if memory else None, len(broken)


# ---- the suite ------------------------------------------------------------------------------------------------------


def test_a_snapshot_gives_back_all_that_a_fold_knows(place: Place) -> None:
    fold = fold_at(7, size=50)
    assert loaded(place) == (None, 0)
    keeper = place.open()
    keeper.write(fold, BOUND, keeper.claim(BOUND))
    memory, broken = place.open().load(fold_at(0), BOUND)
    assert (memory, broken) == (fold.memory, [])
    assert state_hash(memory) == state_hash(fold.memory)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1] + bytes([data[-1] ^ 1])],
    ids=["empty", "half", "flipped"],
)
def test_a_torn_snapshot_is_reported_and_the_one_before_it_used(place: Place, damage: Callable[[bytes], bytes]) -> None:
    keeper = place.open()
    claim = keeper.claim(BOUND)
    for offset in (1, 2):
        keeper.write(fold_at(offset), BOUND, claim)
    place.damage(place.whole_names()[0], damage)
    assert loaded(place) == (1, 1)
    place.damage(place.whole_names()[1], damage)
    assert loaded(place) == (None, 2)
    keeper.write(fold_at(3), BOUND, claim)
    assert loaded(place) == (3, 0)


def test_a_snapshot_of_another_log_is_refused_with_what_to_do(place: Place) -> None:
    keeper = place.open()
    other = Bound("metadata", 2, 0, "cluster-2/tweets", 3)
    keeper.write(fold_at(5), other, keeper.claim(other))
    with pytest.raises(SnapshotRefused, match=r"cluster-2/tweets, version 2.*drain it first"):
        keeper.load(fold_at(0), BOUND)


def test_partitions_do_not_see_each_other(place: Place) -> None:
    other = Bound("metadata", 1, 1, "cluster-1/tweets", 3)
    keeper = place.open()
    keeper.write(fold_at(5), BOUND, keeper.claim(BOUND))
    assert keeper.load(fold_at(0), other) == (None, [])
    assert (keeper.claim(other), keeper.claim(BOUND)) == (1, 2)


def test_an_older_claim_writes_nothing(place: Place) -> None:
    zombie, owner = place.open(), place.open()
    first = zombie.claim(BOUND)
    zombie.write(fold_at(1), BOUND, first)
    second = owner.claim(BOUND)
    with pytest.raises(ClaimLost, match=f"metadata-0: claim {first}, but {second} was taken"):
        zombie.write(fold_at(9), BOUND, first)
    assert loaded(place) == (1, 0)
    owner.write(fold_at(2), BOUND, second)
    assert loaded(place) == (2, 0)


def test_nobody_writes_without_a_claim(place: Place) -> None:
    with pytest.raises(ClaimLost):
        place.open().write(fold_at(9), BOUND, 1)
    assert loaded(place) == (None, 0)


def claims_at_once(open_place: Callable[[], Any], owners: int = 4, each: int = 6) -> list[int]:
    """Claim from several threads that begin together."""
    claims: list[int] = []
    begin = threading.Barrier(owners)

    def work() -> None:
        keeper = open_place()
        begin.wait()
        claims.extend(keeper.claim(BOUND) for _ in range(each))

    threads = [threading.Thread(target=work) for _ in range(owners)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sorted(claims)


def test_no_two_owners_ever_get_the_same_claim(place: Place) -> None:
    if place.kind == "memory":
        pytest.skip("fsspec's memory looks and then puts, in two steps of one process: only for tests without threads")
    assert claims_at_once(place.open) == list(range(1, 25))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.just(0)),
        st.tuples(st.just("write"), st.integers(0, 3)),
        st.tuples(st.just("rot"), st.integers(0, 1)),
    ),
    min_size=4,
    max_size=30,
)


@pytest.mark.parametrize("kind", PLACES)
@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS)
def test_whatever_owners_and_rot_do_the_newest_whole_one_is_found(
    kind: str, operations: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory, s3: dict[str, Any]
) -> None:
    """Against a model: only the newest claim writes, and of the last two snapshots the newest whole one is loaded."""
    place = place_of(kind, tmp_path_factory.getbasetemp(), s3)
    keeper = place.open()
    claims: list[int] = []
    kept: list[tuple[int, bool]] = []  # (offset, whole)
    for step, (what, which) in enumerate(operations, 1):
        if what == "claim":
            claims.append(keeper.claim(BOUND))
            assert claims == list(range(1, len(claims) + 1))
        elif what == "write" and which < len(claims):
            claim = claims[-1 - which]
            if which == 0:
                keeper.write(fold_at(step), BOUND, claim)
                kept.append((step, True))
            else:
                with pytest.raises(ClaimLost):
                    keeper.write(fold_at(step), BOUND, claim)
        elif what == "rot" and which < len(kept):
            place.damage(place.whole_names()[which], lambda data: data[:-3])
            kept[-1 - which] = (kept[-1 - which][0], False)
        found, _ = loaded(place)
        whole = [offset for offset, is_whole in kept[-2:] if is_whole]
        if whole:
            assert found == whole[-1]
        else:  # an older one than the last two is a true state too, where it is still kept
            assert found in (None, *(offset for offset, is_whole in kept if is_whole))


def test_whoever_only_looks_sees_what_is_kept_and_when_it_was_written(place: Place) -> None:
    assert list(place.open().kept()) == []
    keeper = place.open()
    began_ms = time.time() * 1000
    claim = keeper.claim(BOUND)
    for offset in (1, 2, 3):
        keeper.write(fold_at(offset), BOUND, claim)
    keeper.claim(msgspec.structs.replace(BOUND, stage="intake"))  # claimed, and nothing written yet
    (one,) = place.open().kept()
    assert one.name == "metadata-0"
    assert one.files == [encode(fold_at(offset), BOUND) for offset in (3, 2)]
    assert -2_000 < one.written_ms - began_ms < 600_000, "S3 says it in whole seconds"


# ---- what only a store has to fear ----------------------------------------------------------------------------------


@pytest.fixture(params=("memory", "file", "s3"))
def remote(request: pytest.FixtureRequest, tmp_path: Path, s3: dict[str, Any]) -> Place:
    return place_of(request.param, tmp_path, s3)


def raws(count: int) -> list[Any]:
    """Make one partition of a log."""
    made = [one for one in feed(5, count, 1, Keys(), 1_000_000) if one.topic == TWEETS.name]
    return [
        SimpleNamespace(offset=at, timestamp=one.time_ms, headers=one.headers, value=one.value)
        for at, one in enumerate(made)
    ]


def run_to(fold: Fold, log: list[Any], end: int) -> list[Sent]:
    """Take a log's records up to `end`."""
    sent = fold.take(log[fold.memory.next : end])
    fold.memory.next = end
    return sent


@pytest.mark.parametrize("owner_does", ["claims", "claims and loads", "claims, loads and writes"])
def test_a_zombies_late_write_changes_nothing_of_what_follows(
    remote: Place, owner_does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zombie looked, and slept before its put; whoever comes next finds a true fold of the log, and ends the same.

    What the log shows: each output once, because a reader knows the origin of what was sent twice.
    """
    log = raws(60)
    bound = Bound("metadata", 1, 0, "cluster-1/tweets", 1)
    clean = Fold(METADATA, 0, 1, Keys())
    wanted = {dict(one.headers)["ce_id"]: one.value for one in run_to(clean, log, len(log))}

    zombie, store = Fold(METADATA, 0, 1, Keys()), remote.store()
    first = store.claim(bound)
    sent = run_to(zombie, log, 20)
    store.write(zombie, bound, first)
    sent += run_to(zombie, log, 50)  # sent; and now it is kept, late

    owner, others = Fold(METADATA, 0, 1, Keys()), remote.store()
    right = store.files.pipe_file

    def late(path: str, data: bytes, **more: Any) -> None:
        monkeypatch.setattr(store.files, "pipe_file", right)
        second = others.claim(bound)
        if "loads" in owner_does:
            owner.memory, _ = others.load(owner, bound)
            assert owner.memory.next == 20
        if "writes" in owner_does:
            sent.extend(run_to(owner, log, 30))
            others.write(owner, bound, second)
        right(path, data, **more)

    monkeypatch.setattr(store.files, "pipe_file", late)
    store.write(zombie, bound, first)
    with pytest.raises(ClaimLost):
        store.write(zombie, bound, first)

    last, third = Fold(METADATA, 0, 1, Keys()), remote.store()
    third.claim(bound)
    last.memory, broken = third.load(last, bound)
    assert broken == []
    assert last.memory.next == (30 if "writes" in owner_does else 50)
    sent += run_to(last, log, len(log))
    assert state_hash(last.memory) == state_hash(clean.memory)
    assert {dict(one.headers)["ce_id"]: one.value for one in sent} == wanted


def test_old_snapshots_are_dropped_and_the_newest_two_never(remote: Place) -> None:
    store = remote.store()
    claim = store.claim(BOUND)
    for offset in range(1, 40):
        store.write(fold_at(offset), BOUND, claim)
        assert len(remote.whole_names()) <= KEPT_MAX + 1
        assert loaded(remote) == (offset, 0)
        if offset > 1:
            assert [int(name[-12:]) for name in remote.whole_names()[:2]] == [offset, offset - 1]


def test_old_claims_are_dropped_and_the_numbers_go_on(remote: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_snapshots, "CLAIM_TRIES_MAX", 3)
    store = remote.store()
    assert [store.claim(BOUND) for _ in range(9)] == list(range(1, 10))
    assert len(store._look(store._place(BOUND))[0]) == 4
    store.write(fold_at(5), BOUND, 9)
    for path in store.files.ls(store._place(BOUND), detail=False):
        if "/claim-" in path:
            store.files.rm_file(path)  # a person tidied up
    assert store.claim(BOUND) == 10, "a lower number than the snapshots' would never be loaded from"


def test_a_snapshot_dropped_between_list_and_get_is_looked_for_again(
    remote: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, owner = remote.store(), remote.store()
    claim = owner.claim(BOUND)
    owner.write(fold_at(1), BOUND, claim)
    right = store.files.cat_file

    def meanwhile(path: str, **more: Any) -> Any:
        monkeypatch.setattr(store.files, "cat_file", right)
        owner.write(fold_at(2), BOUND, claim)
        owner.files.rm_file(path)
        return right(path, **more)

    monkeypatch.setattr(store.files, "cat_file", meanwhile)
    memory, broken = store.load(fold_at(0), BOUND)
    assert memory is not None
    assert (memory.next, broken) == (2, [])


def test_a_store_that_is_away_is_an_os_error_and_nothing_is_lost(s3: dict[str, Any]) -> None:
    """The shell goes on after an OSError of a write: nothing is committed, the old snapshot stands, it tries again."""
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    store = SnapshotStore(url, **s3)
    claim = store.claim(BOUND)
    store.write(fold_at(1), BOUND, claim)
    away = SnapshotStore(url, **{**s3, "endpoint_url": "http://127.0.0.1:1"})
    for ask in (lambda: away.claim(BOUND), lambda: away.write(fold_at(2), BOUND, claim)):
        with pytest.raises(OSError, match="connect"):
            ask()
    with pytest.raises(OSError, match="connect"):
        away.load(fold_at(0), BOUND)
    store.write(fold_at(2), BOUND, claim)
    memory, _ = store.load(fold_at(0), BOUND)
    assert memory is not None
    assert memory.next == 2


def test_a_bucket_with_a_typing_error_is_not_made(s3: dict[str, Any]) -> None:
    store = SnapshotStore("s3://snapshosts/here", **s3)
    with pytest.raises(FileNotFoundError, match="bucket"):
        store.claim(BOUND)
    assert not store.files.exists("snapshosts")


def test_a_key_in_the_url_is_refused_without_being_said(s3: dict[str, Any]) -> None:
    with pytest.raises(StoreRefused) as refused:
        SnapshotStore("s3://key:hunter2@bucket/here")
    assert "hunter2" not in str(refused.value)


def test_a_store_whose_client_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, "s3", raising=False)  # it remembers what it imported
    with pytest.raises(StoreRefused, match=r"pip install 'xinfluencer\[s3\]'"):
        SnapshotStore("s3://bucket/here")


# ---- a store that is slow, under the worker's shell ------------------------------------------------------------------


class Slow(SnapshotStore):
    """A store of this process whose puts last until they are let through."""

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid.uuid4().hex}")
        self.waiting: dict[str, threading.Event] = {}
        self.patience_s = 20.0  # in which the loop must turn, or the test has found what it is for
        self.late = False

    def put(self, bound: Bound, claim: int, at: int, data: bytes) -> int:
        let_through = self.waiting[f"{bound.partition}@{at}"] = threading.Event()
        if not let_through.wait(self.patience_s):
            self.late = True
            raise TimeoutError("nobody came by while this was on its way")
        return super().put(bound, claim, at, data)


class OnTheLoop(Shell):
    """Wrong on purpose: it waits for the store, as for a disk of its own."""

    def _snapshot(self, owned: Owned) -> None:
        try:
            self.snapshots.put(owned.bound, owned.claim, owned.fold.memory.next, encode(owned.fold, owned.bound))  # type: ignore[union-attr]
        except OSError as error:
            self._not_kept(owned, error, 0.0)


class FirstOnesFirst(Shell):
    """Wrong on purpose: whoever stands first in the table is written first, however lately it was."""

    def committable(self) -> dict[TP, int]:
        for owned in self.owned.values():
            if owned.dirty and self._due(owned):
                self._snapshot(owned)
        return {tp: owned.covered for tp, owned in self.owned.items() if owned.covered > owned.committed}


class Flow:
    """A shell that owns partitions of `feedback` over a slow store; what is sent is acknowledged at once."""

    def __init__(self, data: Path, store: Slow, kind: type[Shell], partitions: int) -> None:
        self.tps = [TP("feedback", partition) for partition in range(partitions)]
        given = Settings(data=data, partitions=partitions, snapshot_s=1e-6)
        self.shell = kind(given, KAFKA, (STAGES["intake"],), {"feedback": "cluster/topic/1"})
        self.shell.snapshots = self.store = store
        self.shell.sender = self  # type: ignore[assignment]
        self.at = dict.fromkeys(self.tps, 0)
        self.log = people(100)

    async def send(self, records: Any, crash_point: Any = None) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def own(self) -> None:
        zero: dict[TP, int] = dict.fromkeys(self.tps, 0)
        await self.shell.own(set(self.tps), zero, dict.fromkeys(self.tps, 100), zero)
        self.shell.begin(1)

    async def read(self, tp: TP, number: int = 5) -> None:
        at, self.at[tp] = self.at[tp], self.at[tp] + number
        await self.shell.handle(Chunk(tp, at, at + number, self.log[at : at + number], 1))

    async def under_way(self, number: int) -> None:
        async with asyncio.timeout(20):
            while len(self.store.waiting) < number:
                await asyncio.sleep(0.001)

    async def let_through(self) -> None:
        """Let all that is under way arrive."""
        for one in [self.store.waiting.pop(name) for name in list(self.store.waiting)]:
            one.set()
        async with asyncio.timeout(20):
            while self.shell._puts:
                await asyncio.sleep(0.001)


def test_a_put_that_takes_long_stops_neither_the_flow_nor_what_the_commit_may_say(tmp_path: Path) -> None:
    async def life(kind: type[Shell], patience_s: float) -> Flow:
        flow = Flow(tmp_path / kind.__name__, Slow(), kind, 1)
        flow.store.patience_s = patience_s
        (tp,) = flow.tps
        await flow.own()
        await flow.read(tp)
        assert flow.shell.committable() == {}
        await flow.under_way(1)
        await flow.read(tp)
        assert flow.shell.owned[tp].fold.memory.next == 10
        assert flow.shell.committable() == {}, "nothing is committed that is still on its way"
        assert list(flow.store.waiting) == ["0@5"], "one at a time of a partition"
        await flow.let_through()
        return flow

    async def whole() -> None:
        flow = await life(Shell, 20.0)
        assert flow.shell.committable() == {flow.tps[0]: 5}, "what was read meanwhile is not in it"
        await flow.under_way(1)
        await flow.let_through()
        assert flow.shell.committable() == {flow.tps[0]: 10}
        await flow.read(flow.tps[0])
        closing = asyncio.create_task(flow.shell.close())
        await flow.under_way(1)
        await flow.let_through()
        await closing
        memory, _ = flow.store.load(Fold(STAGES["intake"], 0, 1, NoKeys()), flow.shell.owned[flow.tps[0]].bound)
        assert memory is not None
        assert memory.next == 15, "a clean stop keeps the last"
        assert not flow.store.late

    asyncio.run(whole())
    assert asyncio.run(life(OnTheLoop, 0.2)).store.late, "the control: nobody can come by who waits for it"


@pytest.mark.parametrize(("kind", "all_kept"), [(Shell, True), (FirstOnesFirst, False)])
def test_every_partition_has_its_turn_however_slow_the_store_is(
    tmp_path: Path, kind: type[Shell], all_kept: bool
) -> None:
    async def life() -> set[TP]:
        flow = Flow(tmp_path, Slow(), kind, 3 * PUTS_MAX)
        await flow.own()
        for _ in range(3):
            for tp in flow.tps:
                await flow.read(tp)
            flow.shell.committable()
            await flow.under_way(PUTS_MAX)
            assert len(flow.store.waiting) == len(flow.shell._puts) == PUTS_MAX
            await flow.let_through()
        return {tp for tp in flow.tps if flow.shell.owned[tp].covered}

    assert (len(asyncio.run(life())) == 3 * PUTS_MAX) is all_kept


def test_a_store_that_fails_at_a_put_is_asked_again_later_and_a_lost_claim_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(shell, "stop_process", ended.append)

    async def life() -> None:
        flow = Flow(tmp_path, Slow(), Shell, 1)
        (tp,) = flow.tps
        flow.store.patience_s = 0.01
        await flow.own()
        await flow.read(tp)
        flow.shell.committable()
        await asyncio.wait(flow.shell._puts)
        owned = flow.shell.owned[tp]
        assert (owned.covered, owned.dirty, owned.putting) == (0, True, False)
        assert not flow.shell._due(owned), "not at once"
        owned.cost_s, flow.store.patience_s = 0.0, 20.0
        flow.store.claim(owned.bound)  # by another process
        flow.store.waiting.clear()
        flow.shell.committable()
        await flow.under_way(1)
        await flow.let_through()
        assert owned.covered == 0

    asyncio.run(life())
    assert ended == ["intake-0: claim 1, but 2 was taken"]


# ---- wrong stores, which the tests above must find ------------------------------------------------------------------


class Unconditional(SnapshotStore):
    """Puts claims without the condition."""

    def _create(self, path: str) -> bool:
        self.files.pipe_file(path, b"taken")
        return True


def test_without_the_condition_two_claimers_get_one_number(s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: both look before either puts."""

    def race(kind: type[SnapshotStore]) -> tuple[int, int]:
        url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        first, second = kind(url, **s3), kind(url, **s3)
        claims: list[int] = []
        right = second._look

        def look(place: str) -> tuple[list[int], list[str]]:
            seen = right(place)
            if not claims:
                claims.append(first.claim(BOUND))
            return seen

        monkeypatch.setattr(second, "_look", look)
        later = second.claim(BOUND)
        return claims[0], later

    assert race(SnapshotStore) == (1, 2)
    with pytest.raises(StoreRefused, match="ignores `If-None-Match"):
        race(Unconditional)  # found by asking twice, before any harm
    # And without asking twice: one number for two owners.
    monkeypatch.setattr(object_snapshots.SnapshotStore, "claim", _claim_once)
    assert race(Unconditional) == (1, 1)
    assert race(SnapshotStore) == (1, 2)


def _claim_once(self: SnapshotStore, bound: Bound) -> int:
    while True:
        number = 1 + max(self._look(self._place(bound))[0], default=0)
        if self._create(f"{self._place(bound)}/claim-{number:012}"):
            return number


def test_a_store_that_forgot_to_look_at_the_claim_is_found(remote: Place) -> None:
    """The control of the older claim: without the look, a zombie's state is what the next one loads."""
    owner, zombie = remote.store(), remote.store()
    first = zombie.claim(BOUND)
    zombie.write(fold_at(1), BOUND, first)
    second = owner.claim(BOUND)
    zombie._look = lambda place: ([first], [])  # type: ignore[method-assign]
    zombie.write(fold_at(9), BOUND, first)
    assert loaded(remote) == (9, 0)
    owner.write(fold_at(2), BOUND, second)
    assert loaded(remote) == (2, 0), "names keep it from standing above the owner's, whatever it does"
