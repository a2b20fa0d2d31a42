"""The sink's loop, on a log in memory: however the log is cut, read again or ended, the tables hold the same."""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from schemas import posts as ps
from schemas.facts import Event, Where
from streams import forgetting as forgetting_module
from streams import sink
from streams.analytics import socket_path
from streams.fold import Sent
from streams.forgetting import HIDDEN, Request
from streams.kafka import KafkaSettings
from streams.memory import Logged
from streams.settings import Settings
from streams.sink import Batch
from streams.warehouse import locked
from tests.sink_acts import Killed, edited, logged, post, status
from tests.small_world import LOGS
from tests.test_analytics import clients_are_waited_for
from tests.warehouses import settings_in

Receipts = list[tuple[str, int]]


class Polled:
    """Stands where the consumer stands: each poll gives one cut of a partition; `idle` is asked after the last."""

    def __init__(self, cuts: Iterable[Sequence[Logged]], at: int, end: int, idle: Callable[[], None]) -> None:
        self.cuts, self.at, self.end, self.idle = deque(cuts), at, end, idle
        self.place = TopicPartition("tweets", 0)

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, Sequence[Logged]]:
        await asyncio.sleep(0.001)
        if not self.cuts:
            self.idle()
        some = self.cuts.popleft() if self.cuts else []
        self.at = some[-1].offset + 1 if some else self.at
        return {self.place: some} if some else {}

    def assignment(self) -> list[TopicPartition]:
        return [self.place]

    async def position(self, _: TopicPartition) -> int:
        return self.at

    def last_stable_offset(self, _: TopicPartition) -> int:
        return self.end


@contextlib.contextmanager
def living(
    settings: Settings, receipts: Receipts, crash_point: Callable[[str], None] = lambda name: None
) -> Iterator[sink.Sink]:
    """A sink without a broker: what it says in the log lies in `receipts`, and old parts are gone at once."""
    one = sink.Sink(settings, KafkaSettings(bootstrap="127.0.0.1:1"), crash_point)

    async def send(records: Iterable[Sent]) -> None:
        receipts.extend((dict(raw.headers)["ce_id"].decode(), raw.event.rows) for raw in records)  # type: ignore[attr-defined]

    one.sender.send = send  # type: ignore[assignment,method-assign]
    one.forgetting._inactive = frozenset  # type: ignore[method-assign]
    one.logs = dict(LOGS)
    try:
        yield one
    finally:
        one._thread.shutdown()
        one.vault.close()
        one.warehouse.client.close()


async def follow(one: sink.Sink, cuts: Iterable[Sequence[Logged]], end: int) -> None:
    """Copy these cuts and erase what they ask for, then stop."""
    place = ("tweets", 0)
    at = one.taken[place] = one.written.setdefault(place, 0)
    one.ends[place] = end
    one.stopping.clear()

    def idle() -> None:
        if one.written[place] == end and not one.forgetting.asked and not one.forgetting.erased:
            one.stopping.set()

    await one._follow(Polled(cuts, at, end, idle))  # type: ignore[arg-type]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every poll is a batch, and whatever is asked for is erased in the next turn."""
    for module, name in ((sink, "FLUSH_S"), (sink, "STATUS_S"), (forgetting_module, "ERASE_EVERY_S")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(forgetting_module, "ERASE_COST_SHARE", 1e9)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("point", ["after-insert", "before-checkpoint"])
@pytest.mark.parametrize(
    "taken_back",
    [
        [ps.AuthorErased(owner="x:@a", source="x")],
        [ps.AuthorHidden(owner="x:@a", source="x", reason="r"), ps.AuthorShown(owner="x:@a", source="x")],
    ],
    ids=["erased", "hidden and shown"],
)
def test_a_request_that_is_read_again_is_counted_once_and_has_one_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, taken_back: list[Event]
) -> None:
    settings, receipts = settings_in(tmp_path), Receipts()
    said = logged([post("x:1", "x:@a"), post("x:2", "x:@a"), post("x:9", "x:@b")])
    asked = logged(taken_back, len(said))
    log = said + asked

    class FromMemory:
        async def at(self, places: Iterable[Where]) -> dict[tuple[str, int, int], Logged]:
            return {(one.topic, one.partition, one.offset): log[one.offset] for one in places}

    @contextlib.asynccontextmanager
    async def from_memory(*_: Any) -> AsyncIterator[FromMemory]:
        yield FromMemory()

    monkeypatch.setattr(sink, "reader", from_memory)

    def dying(name: str) -> None:
        if name == point:
            raise Killed

    def life(cuts: list[list[Logged]], end: int, crash_point: Callable[[str], None] = lambda name: None) -> None:
        with living(settings, receipts, crash_point) as one:

            async def run() -> None:
                await one._resume(one._prepare())
                assert one.written.get(("tweets", 0), 0) == (0 if end == len(said) else len(said))
                await follow(one, cuts, end)

            asyncio.run(run())
            posts = one.warehouse.rows("SELECT post FROM post_observed WHERE owner = 'x:@a'")
            assert bool(posts) is (end == len(said))

    with locked(settings):
        life([said], len(said))
        with pytest.raises(Killed):
            life([asked], len(log), dying)
        life([[], [], [], asked], len(log))  # the broker takes a while: there is time to erase before it is read again
    assert [rows for _, rows in receipts] == [2]
    assert status(settings)["to_erase"] == 0


def a_history(rng: random.Random, mark: str) -> list[Event]:
    """What two authors said, took back and declared, in any order, under names of its own."""
    said: list[Event] = []
    for _ in range(20):
        number = rng.randrange(12)
        name, owner = f"x:{mark}.{number}", f"x:@{mark}{number % 2}"
        version = f"{name}r{rng.randrange(3)}"
        yes = rng.choice((True, None))
        said += rng.choices(
            (
                post(name, owner),
                edited(name, version, owner),
                ps.PostDeleted(post=rng.choice((name, version)), owner=owner, source="x"),
                ps.AuthorHidden(owner=owner, source="x", reason="r"),
                ps.AuthorShown(owner=owner, source="x"),
                ps.IntentDeclared(owner=owner, source="x", index=False),
                ps.IntentDeclared(owner=owner, source="x", index=yes, train=False),
            ),
            (12, 3, 1, 2, 3, 1, 2),
        )
    for owner in (f"x:@{mark}0", f"x:@{mark}1"):  # and at last something that stays
        said += [
            ps.AuthorShown(owner=owner, source="x"),
            ps.IntentDeclared(owner=owner, source="x", index=True),
            post(f"x:{mark}.last{owner[-1]}", owner),
        ]
    return said


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(2))
def test_any_cut_of_a_log_into_batches_gives_the_same_rows(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each poll is a batch, and taking hides down is slow, so that they are still being written when the next comes."""
    settings = settings_in(tmp_path)
    found = []
    with locked(settings), living(settings, []) as one:
        one._prepare()
        ask_now = one.forgetting.ask

        def ask_slowly(requests: Sequence[Request]) -> None:
            time.sleep(0.01 if requests else 0.0)
            ask_now(requests)

        monkeypatch.setattr(one.forgetting, "ask", ask_slowly)
        start = 0
        for cut in (1, 3, 20):
            mark = f"{cut}c"
            log = logged(a_history(random.Random(seed), mark), start)
            start += len(log)
            cuts = [log[i : i + cut] for i in range(0, len(log), cut)]
            monkeypatch.setattr(sink, "STATUS_S", 0.0 if cut < 3 else 0.5)
            asyncio.run(follow(one, cuts, start))
            names = one.warehouse.rows(
                "SELECT post, named FROM post_observed WHERE position(post, {m:String}) > 0 UNION ALL "
                "SELECT post, named FROM post_edited WHERE position(post, {m:String}) > 0",
                m=f"x:{mark}.",
            )
            found.append(sorted(str(row).replace(mark, "") for row in names))
    assert len(found[0]) >= 2, "nothing is left to compare"
    assert all(rows == found[0] for rows in found[1:])


def test_what_is_said_after_being_shown_is_there_though_it_came_in_the_same_batch(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    hidden = ps.AuthorHidden(owner="x:@h", source="x", reason="r")
    after = [f"x:{i}" for i in range(2, 12)]
    log = logged(
        [post("x:1", "x:@h"), hidden, ps.AuthorShown(owner="x:@h", source="x"), *(post(one, "x:@h") for one in after)]
    )
    with locked(settings), living(settings, []) as one:
        one._prepare()
        asyncio.run(follow(one, [log], len(log)))
        assert {name for (name,) in one.warehouse.rows("SELECT post FROM post_observed")} == set(after)
        assert one.written == one.taken == {("tweets", 0): len(log)}


def test_a_batch_ends_behind_whoever_is_let_in_again_and_behind_nobody_else() -> None:
    shown, hidden = ps.AuthorShown(owner="x:@h", source="x"), ps.AuthorHidden(owner="x:@h", source="x", reason="r")
    yes = ps.IntentDeclared(owner="x:@h", source="x", index=True)
    log = logged([shown, yes, hidden, yes, shown, post("x:1", "x:@h")])
    batch = Batch()
    rest = batch.take("tweets", 0, log)
    assert (len(rest), batch.lift, batch.rows, batch.next) == (1, ("x:@h", HIDDEN), 5, {("tweets", 0): 5})
    assert len(Batch(lambda owner, why: True).take("tweets", 0, log)) == 5, "hidden by a batch before this one"


def test_only_the_status_of_a_sink_that_ended_by_itself_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "STATUS_S", 0.0)
    settings = settings_in(tmp_path)
    seen = []
    with locked(settings), living(settings, []) as one:
        one._prepare()
        tell = one._tell

        async def look(*given: Any, **more: Any) -> None:
            await tell(*given, **more)
            seen.append(status(settings)["ended"])

        monkeypatch.setattr(one, "_tell", look)
        log = logged([post("x:1", "x:@a")])
        asyncio.run(follow(one, [log], len(log)))
    assert len(seen) > 1
    assert seen == [False] * (len(seen) - 1) + [True]


def test_a_sink_ends_though_somebody_holds_its_socket_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients_are_waited_for(monkeypatch)
    settings = settings_in(tmp_path)
    began = []
    with locked(settings), living(settings, []) as one, contextlib.ExitStack() as links:

        async def copy() -> None:
            while not socket_path(settings).exists():
                await asyncio.sleep(0.01)
            links.callback((await asyncio.open_unix_connection(socket_path(settings)))[1].close)
            await asyncio.sleep(0.05)
            began.append(time.monotonic())
            one.stopping.set()

        monkeypatch.setattr(one, "_copy", copy)
        asyncio.run(asyncio.wait_for(one.run(), 10.0))
        assert time.monotonic() - began[0] < 2.0
        links.pop_all()  # their loop is closed
