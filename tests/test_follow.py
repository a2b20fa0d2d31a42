"""The pump: whatever a source and a broker do, nothing is skipped, and what is repeated is not seen twice."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from schemas.events import AlertRaised
from schemas.posts import PostObserved
from streams import follow as module
from streams import inbox as limits
from streams.backoff import WAIT_S_MAX, Backoff
from streams.broker import FolderInUse
from streams.cursors import CursorRefused, Cursors
from streams.firsts import Firsts
from streams.fold import Sent
from streams.follow import Pump, follow
from streams.inbox import Inbox, Window
from streams.ingest import Known, Summary
from streams.intents import Intents
from streams.live import Arrival, Gap, RateLimited, Source, SourceBroken, SourceRefused
from streams.policy import Policy
from streams.pulse import Pulse
from streams.settings import Settings
from tests.ingest_ends import MemoryKeys, Recorder
from tests.x_server import line, now_ms

NOW = 1_767_571_200_000
AT_ONCE = 0.0


def at_once() -> Backoff:
    return Backoff(random.Random(7), first_s=AT_ONCE)


class Scripted:
    """A source with a true cursor, in memory: messages by number; each connection runs the next plan."""

    name = "x"
    stream = "scripted"

    def __init__(self, size: int, plans: Iterable[Any] = ()) -> None:
        self.messages = [line(number, NOW + number) for number in range(size)]
        self.plans = list(plans)
        self.given = 0
        self.connections: list[str | None] = []

    async def connect(self, cursor: str | None) -> AsyncIterator[Arrival | Gap]:
        self.connections.append(cursor)
        plan = self.plans.pop(0) if self.plans else {}
        start = max(0, int(cursor or 0) - plan.get("again", 0))  # a source may repeat what it sent
        if "raise" in plan:
            raise plan["raise"]
        if "gap" in plan:
            yield plan["gap"]
        for number in range(start, len(self.messages)):
            if number - start >= plan.get("cut", len(self.messages) + 1):
                raise SourceBroken("cut")
            self.given += 1
            yield Arrival(self.messages[number], str(number + 1), NOW + number)
            if number % 7 == 0:
                await asyncio.sleep(0)
        if "then" in plan:
            raise plan["then"]
        await asyncio.Event().wait()


class Fragile(Recorder):
    """A log that fails at some sends, before or after it wrote: what a kill of broker or process leaves."""

    def __init__(self, failing: Iterable[tuple[int, bool]] = ()) -> None:
        super().__init__()
        self.failing = dict(failing)
        self.sends = 0

    async def send(self, records: Iterable[Sent]) -> None:
        self.sends += 1
        wrote = self.failing.get(self.sends)
        if wrote is not False:
            await super().send(records)
        if wrote is not None:
            raise ConnectionError("the log is away")

    def texts(self) -> list[str]:
        return [one.event.content.text for one in self.records if isinstance(one.event, PostObserved)]


class Run:
    """One deployment in a folder; each `pump` is a process that begins anew."""

    def __init__(self, data: Path, kind: type[Pump] = Pump, log: str = "cluster/tweets/1") -> None:
        self.settings = Settings(data=data)
        self.cursors = Cursors(data / "ingest", log)
        self.keys = MemoryKeys()
        self.kind = kind
        self.told: list[str] = []
        self.known = Known(Intents(), Firsts())

    async def pump(
        self,
        source: Source,
        log: Any,
        until: Callable[[], bool],
        from_now: bool = False,
        backoff: Backoff | None = None,
    ) -> Summary:
        """Follow until `until` holds, or until it ends by itself."""
        stop = asyncio.Event()

        async def watch() -> None:
            try:
                async with asyncio.timeout(20):
                    while not until():
                        await asyncio.sleep(0.002)
            finally:
                stop.set()  # what is waited for in vain ends the pump too, and the test is red

        watching = asyncio.create_task(watch())
        keep = module.Pump
        module.Pump = self.kind  # type: ignore[misc]
        try:
            return await follow(
                source, self.settings, log, self.keys, Policy.load(), now_ms, stop, self.told.append, from_now,
                cursors=self.cursors, backoff=backoff or at_once(), known=self.known,
            )  # fmt: skip
        finally:
            module.Pump = keep  # type: ignore[misc]
            watching.cancel()
            (failed,) = await asyncio.gather(watching, return_exceptions=True)
            assert not isinstance(failed, TimeoutError), self.told

    def kept(self) -> int:
        kept = self.cursors.load("scripted")
        return int(kept.cursor) if kept is not None else 0

    def status(self, stream: str = "scripted") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.settings.data / "run" / f"follow-{stream}.status.json").read_text())
        return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    monkeypatch.setattr(limits, "CHUNK_RECORDS_MAX", 16)


# ---- nothing is skipped ---------------------------------------------------------------------------------------------

plans = st.lists(
    st.one_of(
        st.builds(lambda cut, again: {"cut": cut, "again": again}, st.integers(0, 25), st.integers(0, 12)),
        st.just({"raise": SourceBroken("not there")}),
        st.just({"raise": RateLimited("later", AT_ONCE)}),
    ),
    max_size=6,
)
failures = st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=4)


async def to_the_end(run: Run, source: Scripted, log: Fragile) -> None:
    """Start the pump again whenever the log kills it, as the supervisor does."""
    last = f"post {len(source.messages) - 1}"
    for _ in range(10):
        try:
            await run.pump(source, log, lambda: last in log.texts() and run.kept() == len(source.messages))
        except ConnectionError:
            assert run.kept() == 0 or set(log.texts()) >= {f"post {n}" for n in range(run.kept())}
        else:
            return
    raise AssertionError("it never came to an end")


def lost_and_doubled(source: Scripted, log: Fragile) -> tuple[int, int]:
    """Posts that are not in the log, and posts that a reader who knows ids sees twice."""
    posts = [one for one in log.records if isinstance(one.event, PostObserved)]
    ids = {one.event.post: dict(one.headers)["ce_id"] for one in posts if isinstance(one.event, PostObserved)}
    return len(source.messages) - len(set(log.texts())), len({dict(one.headers)["ce_id"] for one in posts}) - len(ids)


@effort(max_examples=60, deadline=None)
@given(st.integers(1, 60), plans, failures)
def test_whatever_source_and_log_do_every_message_is_taken_and_none_is_seen_twice(
    tmp_path_factory: pytest.TempPathFactory, size: int, script: list[Any], failing: list[tuple[int, bool]]
) -> None:
    run, source, log = Run(tmp_path_factory.mktemp("run")), Scripted(size, script), Fragile(failing)
    asyncio.run(to_the_end(run, source, log))
    assert lost_and_doubled(source, log) == (0, 0)
    assert run.kept() == size


class Hasty(Pump):
    """Negative control: keeps the cursor before the log has acknowledged."""

    async def _take(self, batch: list[Arrival | Gap]) -> None:
        for one in batch:
            if isinstance(one, Arrival) and one.cursor:
                self._keep(one.cursor, None)
        await super()._take(batch)


def test_the_test_catches_a_pump_that_keeps_the_cursor_too_early(tmp_path: Path) -> None:
    run, source, log = Run(tmp_path, Hasty), Scripted(40), Fragile([(2, False)])
    with pytest.raises(AssertionError):
        asyncio.run(to_the_end(run, source, log))
    assert lost_and_doubled(source, log)[0] > 0


def test_a_gap_is_in_alerts_before_the_cursor_passes_it(tmp_path: Path) -> None:
    gap = Gap(NOW - 60_000, NOW, "for a test")
    run, log = Run(tmp_path), Fragile([(1, False)])
    with pytest.raises(ConnectionError):
        asyncio.run(run.pump(Scripted(3, [{"gap": gap}]), log, lambda: False))
    assert run.kept() == 0
    asyncio.run(run.pump(Scripted(3, [{"gap": gap}]), log, lambda: run.kept() == 3))
    (alert,) = log.events(AlertRaised)
    assert alert.kind == "source-gap"
    assert "from 2026-01-04T23:59:00+00:00 to 2026-01-05T00:00:00+00:00 may be missing: for a test" in alert.detail
    assert run.status()["gaps"] == 1


def test_what_was_in_hand_when_the_source_refuses_is_taken_first(tmp_path: Path) -> None:
    run, log = Run(tmp_path), Fragile()
    with pytest.raises(SourceRefused, match="wrong token"):
        asyncio.run(run.pump(Scripted(5, [{"then": SourceRefused("wrong token")}]), log, lambda: False))
    assert len(log.texts()) == 5
    assert run.kept() == 5


def test_a_stop_takes_what_is_in_hand_and_keeps_its_cursor(tmp_path: Path) -> None:
    run, log, source = Run(tmp_path), Fragile(), Scripted(500)
    summary = asyncio.run(run.pump(source, log, lambda: source.given > 40))
    assert run.kept() == len(log.texts()) == summary.posts
    assert run.kept() > 0


def test_messages_that_cannot_be_used_become_dead_letters_and_the_stream_goes_on(tmp_path: Path) -> None:
    run, log, source = Run(tmp_path), Fragile(), Scripted(3)
    source.messages[1] = b'{"data": {"id": "5", "text": "nobody\'s"}}'
    summary = asyncio.run(run.pump(source, log, lambda: run.kept() == 3))
    assert log.texts() == ["post 0", "post 2"]
    assert [reason for _, reason in log.letters()] == ["no-author"]
    assert summary.unaccounted == 0
    assert run.status()["refused"] == {"no-author": 1}


# ---- repetition and limits ------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=2), max_size=60), st.integers(1, 10))
def test_the_window_remembers_the_newest_and_no_more(messages: list[bytes], size: int) -> None:
    window, order = Window(size), list[bytes]()
    for one in messages:
        new = window.is_new(one)
        assert new == (one not in order)
        if new:
            order = [*order, one][-size:]
        assert len(window._seen) == len(window._order) <= size


def test_what_is_repeated_after_a_reconnect_is_counted_and_not_sent_again(tmp_path: Path) -> None:
    run, log, source = Run(tmp_path), Fragile(), Scripted(30, [{"cut": 10}, {"cut": 15, "again": 5}, {"again": 20}])
    asyncio.run(run.pump(source, log, lambda: run.kept() == 30))
    assert log.texts() == [f"post {number}" for number in range(30)]
    assert run.status()["duplicates"] == 25
    assert run.status()["reconnects"] == 2
    assert run.status()["taken"] == 30


def test_reading_pauses_while_the_log_is_slow(tmp_path: Path) -> None:
    class Stuck(Recorder):
        async def send(self, records: Iterable[Sent]) -> None:
            await free.wait()
            await super().send(records)

    async def scenario() -> None:
        source, log = Scripted(1_000), Stuck()
        pumping = asyncio.create_task(run.pump(source, log, lambda: run.kept() == 1_000))
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert source.given <= 2 * limits.CHUNK_RECORDS_MAX + 1  # a batch at the log, a batch waiting, one in hand
        free.set()
        await pumping

    run, free = Run(tmp_path), asyncio.Event()
    asyncio.run(scenario())


def test_an_inbox_is_bounded_by_bytes_too() -> None:
    async def scenario() -> None:
        inbox = Inbox(asyncio.Event())
        await inbox.put(Arrival(bytes(limits.CHUNK_BYTES_MAX)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inbox.put(Arrival(b"x")), 0.01)
        assert len(inbox.take()) == 1
        await inbox.put(Arrival(b"x"))

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e9)), max_size=20), st.integers())
def test_waits_grow_within_a_ceiling_and_are_never_less_than_asked_for(lives: list[Any], seed: int) -> None:
    backoff, failures_ = Backoff(random.Random(seed)), 0
    for lived_s, asked_s in lives:
        failures_ = 0 if lived_s >= 20 else failures_
        least = min(asked_s, WAIT_S_MAX)
        assert least <= backoff.after(lived_s, asked_s) <= least + min(60.0, 2.0**failures_)
        failures_ += 1


def test_a_rate_limit_is_honoured(tmp_path: Path) -> None:
    run, waits = Run(tmp_path), list[float]()

    class Noting(Backoff):
        def after(self, lived_s: float, asked_s: float = 0.0) -> float:
            waits.append(asked_s)
            return 0.0

    source = Scripted(2, [{"raise": RateLimited("later", 77.0)}, {"raise": SourceBroken("no")}])
    asyncio.run(run.pump(source, Fragile(), lambda: run.kept() == 2, backoff=Noting(random.Random(1))))
    assert waits == [77.0, 0.0]


# ---- cursors --------------------------------------------------------------------------------------------------------


def test_a_cursor_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    cursors = Cursors(tmp_path, "log")
    assert cursors.load("s") is None
    for number in range(3):
        cursors.save("s", f"c{number}", number, NOW)
    kept = cursors.load("s")
    assert kept is not None
    assert (kept.cursor, kept.made_ms, kept.saved_ms) == ("c2", 2, NOW)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["cursor"]


@given(st.integers(0), st.integers(0, 255))
def test_a_cursor_that_rotted_is_refused_and_never_believed(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    cursors = Cursors(tmp_path_factory.mktemp("cursors"), "log")
    cursors.save("s", "1234", None, NOW)
    path = cursors.folder / "s" / "cursor"
    data = bytearray(path.read_bytes())
    before = bytes(data)
    data[at % len(data)] = byte
    path.write_bytes(data)
    if data == before:
        assert cursors.load("s") is not None
    else:
        with pytest.raises(CursorRefused, match="--from-now"):
            cursors.load("s")
    path.write_bytes(before[: at % len(before)])
    with pytest.raises(CursorRefused):
        cursors.load("s")


def followed_after_a_wipe(folder: Path) -> tuple[str, list[str | None]]:
    """Follow into a new log with the cursors of the old one: what the refusal says, and how it connected."""
    asyncio.run(Run(folder).pump(source := Scripted(3), Fragile(), lambda: source.given == 3))
    again = Scripted(3)
    try:
        asyncio.run(Run(folder, log="another").pump(again, Fragile(), lambda: bool(again.connections)))
    except CursorRefused as refused:
        return str(refused), again.connections
    return "", again.connections


def test_a_log_that_was_wiped_is_noticed(tmp_path: Path) -> None:
    said, connections = followed_after_a_wipe(tmp_path)
    assert "belongs to the log cluster/tweets/1, this is another" in said
    assert not connections


def test_control_cursors_that_do_not_know_their_log_would_skip_what_the_wiped_one_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Cursors.load
    monkeypatch.setattr(Cursors, "load", lambda self, stream: load(Cursors(self.folder, "cluster/tweets/1"), stream))
    assert followed_after_a_wipe(tmp_path) == ("", ["3"])


def test_starting_from_now_is_a_gap_that_is_told(tmp_path: Path) -> None:
    run, log = Run(tmp_path), Fragile()
    asyncio.run(run.pump(Scripted(3), log, lambda: run.kept() == 3, from_now=True))
    assert log.events(AlertRaised) == []  # nothing was left behind
    source = Scripted(1)
    asyncio.run(run.pump(source, log, lambda: run.kept() == 1, from_now=True))
    assert source.connections == [None]
    other = Run(tmp_path, log="another")
    asyncio.run(other.pump(Scripted(2), log, lambda: bool(log.events(AlertRaised)[1:]), from_now=True))
    told = [alert.detail for alert in log.events(AlertRaised)]
    assert "as the operator asked" in told[0]
    assert "belongs to the log" in told[1]


@pytest.mark.parametrize("name", ["../up", "a/b", "", "A", "x" * 65, "a\0b", ".", "a b"])
def test_only_names_become_folders(name: str, tmp_path: Path) -> None:
    cursors = Cursors(tmp_path / "ingest", "log")
    for act in (lambda: cursors.load(name), lambda: cursors.save(name, "c", None, 0), cursors.claim(name).__enter__):
        with pytest.raises(CursorRefused):
            act()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_follow_one_stream(tmp_path: Path) -> None:
    cursors = Cursors(tmp_path, "log")
    with cursors.claim("s"), cursors.claim("t"), pytest.raises(FolderInUse), cursors.claim("s"):
        pass


def test_a_full_disk_stops_the_cursor_and_not_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run, log = Run(tmp_path), Fragile()
    monkeypatch.setattr(Cursors, "save", full)
    asyncio.run(run.pump(Scripted(40), log, lambda: len(log.texts()) == 40))
    assert run.kept() == 0
    assert "No space left" in run.status()["last_error"]


# ---- figures --------------------------------------------------------------------------------------------------------


def test_the_figures_say_the_same_to_people_and_to_prometheus(tmp_path: Path) -> None:
    run, log = Run(tmp_path), Fragile()
    asyncio.run(run.pump(Scripted(20, [{"cut": 5, "again": 0}]), log, lambda: run.kept() == 20))
    told = run.status()
    assert (told["messages"], told["taken"], told["reconnects"], told["waiting"]) == (20, 20, 1, 0)
    assert told["cursor"] == "20"
    assert told["newest_ms"] == NOW + 19
    assert abs(told["lag_ms"] - (now_ms() - NOW)) < 60_000
    text = (tmp_path / "run" / "follow-scripted.prom").read_text()
    figures = {
        sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert figures["xinfluencer_source_messages_total"] == 20
    assert figures["xinfluencer_source_reconnects_total"] == 1
    assert figures["xinfluencer_source_connected"] == 0
    assert figures["xinfluencer_source_lag_seconds"] == told["lag_ms"] / 1000


def test_what_policy_does_not_let_in_is_counted_and_is_no_dead_letter(tmp_path: Path) -> None:
    """An author who opts out, or was erased, posts on: that is no trouble, and nothing of it is kept."""
    run, log = Run(tmp_path), Fragile()
    run.keys.keys["x:@7001"] = None
    source = Scripted(4)
    source.messages[2] = b'{"data": {"id": "5", "text": "nobody\'s"}}'
    asyncio.run(run.pump(source, log, lambda: run.kept() == 4))
    assert run.status()["refused"] == {"owner-erased": 1, "no-author": 1}
    assert [reason for _, reason in log.letters()] == ["no-author"]
    text = (tmp_path / "run" / "follow-scripted.prom").read_text()
    assert 'xinfluencer_source_refused_total{stream="scripted"} 1.0' in text
    assert 'xinfluencer_source_not_permitted_total{stream="scripted"} 1.0' in text


def test_the_rate_is_over_the_last_half_minute(tmp_path: Path) -> None:
    pulse = Pulse("s", tmp_path)
    assert pulse.rate() == 0.0
    for second in range(100):
        pulse._samples.append((float(second), second * 50))
    assert pulse.rate() == 50.0
