"""X's streams: what no connection covered is asked for, or told of as a gap."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams import x_stream
from streams.live import Arrival, CursorTooOld, Gap, SourceBroken
from streams.x_stream import DAY_MS, MARGIN_MS, Request, XStream, plan
from tests.x_server import Wire, everything, line, now_ms, sends, serving, status
from tests.x_streaming import data, met, stream, take

NOW = 1_767_571_200_000


def uncovered(request: Request, now: int, cursor: int) -> tuple[int, int] | None:
    """The stretch between cursor and now that is neither asked for nor told of."""
    if "start_time" in request.params:
        since = int(datetime.fromisoformat(request.params["start_time"]).timestamp() * 1000)
    else:
        since = now - 60_000 * int(request.params.get("backfill_minutes", "0"))
    told = max(cursor, request.gap.until_ms) if request.gap is not None and request.gap.after_ms == cursor else cursor
    return None if since <= told else (told, since)


def floor_plan(now: int, cursor: int, backfill: int, recovery: bool) -> Request:
    """Negative control: rounds the minutes down."""
    minutes = (now - cursor) // 60_000
    return Request({"backfill_minutes": str(minutes)}) if 0 < minutes <= backfill else plan(now, cursor, 0, recovery)


away = st.one_of(st.integers(0, 400_000), st.integers(0, 3 * DAY_MS))


@given(away, st.integers(0, 5), st.booleans())
def test_what_is_not_asked_for_is_told_of(away_ms: int, backfill: int, recovery: bool) -> None:
    request = plan(NOW, NOW - away_ms, backfill, recovery)
    assert uncovered(request, NOW, NOW - away_ms) is None
    assert 0 <= int(request.params.get("backfill_minutes", "0")) <= backfill
    assert recovery or "start_time" not in request.params


def test_the_test_of_plans_catches_one_that_rounds_down() -> None:
    assert uncovered(floor_plan(NOW, NOW - 119_000, 5, False), NOW, NOW - 119_000) is not None


def test_the_first_connection_of_all_has_no_gap_and_one_without_backfill_always_has() -> None:
    assert plan(NOW, None, 5, True) == Request({})
    assert plan(NOW, NOW - 1, 0, False).gap == Gap(NOW - 1, NOW, "X has no cursor")
    assert plan(NOW, NOW - 1, 1, False).gap is None


def test_a_gap_is_told_only_once_the_stream_is_open_and_before_anything_else() -> None:
    cursor = str(now_ms() - 60_000)
    assert met(status(503), cursor=cursor)[0] == []
    got, _ = met(sends(line(1) + b"\r\n"), cursor=cursor)
    assert isinstance(got[0], Gap)
    assert got[0].after_ms == int(cursor)
    assert not any(isinstance(one, Gap) for one in met(sends(line(1) + b"\r\n"))[0])


def test_what_is_made_while_the_connection_opens_is_in_the_gap() -> None:
    async def opens_late(wire: Wire) -> None:
        await asyncio.sleep(0.05)
        wire.server.post(1)
        await asyncio.sleep(0.05)
        await everything(wire)

    async def run() -> None:
        async with serving(script=[opens_late]) as server:
            got, _ = await take(stream(server), str(now_ms() - 1_000), lambda got: len(got) == 2)
            gap, opened = got
            assert isinstance(gap, Gap)
            assert gap.after_ms is not None
            assert gap.after_ms < server.feed[0][0] < gap.until_ms
            assert opened == Arrival(None, str(gap.until_ms))

    asyncio.run(run())


class Opening(XStream):
    """X in memory: connections open after these times (ms); what they give is noted as stretches, from when to when."""

    def __init__(self, backfill: int, recovery: bool, whole: bool = True, blind: bool = False) -> None:
        super().__init__("", "x-filtered", {}, backfill, recovery, clock_ms=lambda: self.seen)
        self.now = self.seen = NOW
        self.whole, self.blind = whole, blind  # blind: the negative control does not look at the clock while it opens
        self.opening: list[int] = []
        self.given: list[tuple[int, int]] = []

    async def _lines(self, params: Mapping[str, str]) -> AsyncGenerator[bytes | None, None]:
        self.now += self.opening.pop(0) if self.opening else 300
        self.seen = self.seen if self.blind else self.now
        yield None
        self.seen = self.now
        if "start_time" in params:
            since, until = (int(datetime.fromisoformat(params[f"{end}_time"]).timestamp()) * 1000 for end in WINDOW)
            self.given.append((since, until))
            if self.whole:
                yield line(1, until - 1)
            return
        self.given.append((self.now - 60_000 * int(params.get("backfill_minutes", "0")), NEVER))
        yield line(2, self.now)
        self.seen = self.now = self.now + 20_000
        yield b""
        raise SourceBroken("for a test")


WINDOW = ("start", "end")
NEVER = 2**60


def silently_lost(source: Opening, cursor: int) -> tuple[int, int]:
    """Follow one connection: how many ms below a new cursor were neither given nor told of before it; that cursor."""
    got, _ = asyncio.run(take(source, str(cursor)))
    told: list[tuple[int, int]] = []
    lost, newest = 0, cursor
    for one in got:
        if isinstance(one, Gap):
            assert one.after_ms is not None
            told.append((one.after_ms, one.until_ms))
        elif one.cursor is not None:
            newest, missed, reached = int(one.cursor), 0, cursor
            for since, until in [*sorted([*source.given, *told]), (newest, newest)]:
                missed += max(0, min(since, newest) - reached)
                reached = max(reached, until)
            lost = max(lost, missed)
    return lost, newest


opening = st.lists(st.integers(0, 61_000), max_size=2)  # of a recovery, and of the backfill after it
lives = st.lists(st.tuples(st.one_of(st.integers(0, 400_000), st.integers(0, 2 * DAY_MS)), opening))


@given(lives, st.integers(0, 5), st.booleans(), st.booleans())
@example([(400_123, [300, 61_000])], 1, True, True)  # a recovery ends at a whole second, and so must its cursor
def test_below_every_cursor_all_is_given_or_told_of_however_long_a_connection_takes_to_open(
    awake: list[tuple[int, list[int]]], backfill: int, recovery: bool, whole: bool
) -> None:
    source, cursor = Opening(backfill, recovery, whole), NOW
    for away_ms, opening_ms in awake:  # a life after the other, each from the cursor of the one before
        source.now = source.seen = source.now + away_ms
        source.opening, source.given = list(opening_ms), []
        lost, cursor = silently_lost(source, cursor)
        assert lost == 0


@pytest.mark.parametrize(
    ("backfill", "away_ms", "lost_ms"),
    [(0, 100_000, 50_000), (5, 44_000, 34_000), (5, 280_000, 30_000), (5, 3_600_000, 50_000)],
)
def test_control_a_source_that_is_blind_while_it_opens_loses_that_time(
    backfill: int, away_ms: int, lost_ms: int
) -> None:
    lost = []
    for blind in (True, False):
        source = Opening(backfill, recovery=False, blind=blind)
        source.opening = [50_000]
        lost.append(silently_lost(source, NOW - away_ms)[0])
    assert lost == [lost_ms, 0]


def test_a_post_made_while_a_backfill_opens_says_not_that_older_ones_are_through() -> None:
    source = Opening(5, recovery=False)
    source.opening = [50_000]
    got, _ = asyncio.run(take(source, str(NOW - 10_000)))
    assert [one.cursor for one in got if isinstance(one, Arrival)] == [None, str(NOW + 70_000)]


def test_backfill_is_asked_for_and_the_cursor_waits_until_older_posts_are_through() -> None:
    async def run() -> None:
        async with serving() as server:
            then = now_ms() - 30_000
            for number in range(3):
                server.post(number, then + number)
            got, _ = await take(stream(server, backfill=5), str(then), lambda got: len(data(got)) == 3)
            assert server.asked[-1][1]["backfill_minutes"] == "1"
            assert [one.cursor for one in got if isinstance(one, Arrival)] == [None] * 3
            got, _ = await take(stream(server, backfill=5), str(then), lambda got: len(got) == 5)
            assert got[-1].cursor is not None  # type: ignore[union-attr]  # a keep-alive: nothing older waits

    asyncio.run(run())


def test_a_long_outage_is_recovered_where_the_plan_allows_it_and_a_cut_recovery_begins_again() -> None:
    async def run() -> None:
        async with serving() as server:
            then = now_ms() - 1_800_000
            sent = [server.post(number, then + 1_000 * number) for number in range(3)]
            sent.append(server.post(3, now_ms() - 2_000))  # so near the end that nothing is missing
            source = stream(server, backfill=2)
            source.recovery = True
            server.script.append(sends(sent[0] + b"\r\n"))
            got, ended = await take(source, str(then))
            assert isinstance(ended, SourceBroken)
            assert [one.cursor for one in got if isinstance(one, Arrival)] == [None]
            got, _ = await take(source, str(then), lambda got: len(got) >= 6)
            assert data(got)[:4] == sent
            asked = [params for _, params in server.asked]
            assert asked[0]["start_time"] == asked[1]["start_time"]
            assert asked[2]["backfill_minutes"] == "1"
            assert not any(isinstance(one, Gap) for one in got)

    asyncio.run(run())


def recovered(*ends: int) -> tuple[list[Any], list[Any], int]:
    """What comes of recoveries that X ends, without an error, after so many of twelve posts, one in 15 minutes."""

    async def run() -> tuple[list[Any], list[Any], int]:
        async with serving() as server:
            then = now_ms() - 3 * 3_600_000
            sent = [line(number, then + 60_000 + 15 * 60_000 * number) for number in range(12)]
            server.script = [sends(*(one + b"\r\n" for one in sent[:end]), then="end") for end in ends]
            source = stream(server, backfill=2)
            source.recovery = True
            got, _ = await take(source, str(then), lambda got: len(server.asked) > len(ends))
            return got, [params for _, params in server.asked], then

    return asyncio.run(run())


def test_a_recovery_that_ends_early_is_asked_for_again_and_what_never_comes_is_a_gap() -> None:
    got, asked, then = recovered(4, 8, 8)
    starts = [int(datetime.fromisoformat(params["start_time"]).timestamp() * 1000) for params in asked[:3]]
    wanted = [-MARGIN_MS, 46 * 60_000 - MARGIN_MS, 106 * 60_000 - MARGIN_MS]
    assert [start - then for start in starts] == pytest.approx(wanted, abs=999)
    (gap,) = [one for one in got if isinstance(one, Gap)]
    assert gap.after_ms == then + 60_000 + 7 * 15 * 60_000
    assert abs(gap.until_ms - now_ms()) < 30_000
    after = got[got.index(gap) + 1]  # and only then the cursor passes it
    assert after == Arrival(None, str(gap.until_ms))
    assert not any(one.cursor for one in got[: got.index(gap)])


def test_a_recovery_of_nothing_at_all_is_a_gap() -> None:
    got, _, then = recovered(0)
    (gap,) = [one for one in got if isinstance(one, Gap)]
    assert gap.after_ms == then


def test_control_a_source_that_believes_every_end_loses_hours_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x_stream, "NEAR_MS", DAY_MS)
    got, _, _ = recovered(4)
    assert not any(isinstance(one, Gap) for one in got)
    assert len(data(got)) == 4


def test_the_last_line_of_a_whole_answer_needs_no_end_and_half_a_line_of_a_cut_one_is_none() -> None:
    got, _ = met(sends(line(1) + b"\r\n" + line(2), then="end"))
    assert len(data(got)) == 2
    assert len(data(met(sends(line(1) + b"\r\n" + line(2), then="cut"))[0])) == 1


def test_a_cursor_of_another_kind_is_refused() -> None:
    for bad in ("x", "-5", "1" * 30, ""):
        _, ended = met(cursor=bad)
        assert isinstance(ended, CursorTooOld)


def test_margin_is_less_than_a_minute_so_that_a_short_cut_asks_for_one() -> None:
    assert MARGIN_MS < 60_000
    assert plan(NOW, NOW, 5, False).params == {"backfill_minutes": "1"}
