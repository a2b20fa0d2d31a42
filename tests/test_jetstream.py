"""Jetstream: nothing is skipped in silence, whatever the server does."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from schemas.events import AlertRaised, RecordRefused
from schemas.posts import PostObserved
from streams import jetstream as module
from streams.bluesky import COLLECTIONS
from streams.jetstream import HELD_US, OVERLAP_US, Jetstream
from streams.live import Arrival, CursorTooOld, Gap, RateLimited, SourceBroken, SourceRefused
from streams.settings import Settings
from tests.ingest_ends import Recorder
from tests.jetstream_server import DID, T0_US, JetstreamServer, jetstream_server, message
from tests.pumping import pumped

S = 1_000_000
HOUR = 3_600 * S


def source(server: JetstreamServer, now_us: int | None = None, **more: Any) -> Jetstream:
    settings = Settings(bluesky_url=server.url)
    more = {"idle_s": 0.05, "silent_s_max": 15.0} | more
    return Jetstream(settings, clock_ms=lambda: (now_us or server.now_us) // 1000, **more)


async def take(one: Jetstream, cursor: str | None = None) -> tuple[list[Arrival | Gap], Exception]:
    """Read one connection to its end, which for a live source is always an error."""
    got: list[Arrival | Gap] = []
    try:
        async with aclosing(one.connect(cursor)) as arrivals:  # type: ignore[type-var]
            async for arrival in arrivals:
                got.append(arrival)  # noqa: PERF401 - what came before the error counts
    except (SourceBroken, SourceRefused) as ended:
        return got, ended
    raise AssertionError("a connection ended without a reason")


def times(got: list[Arrival | Gap]) -> list[int]:
    return [json.loads(one.data)["time_us"] for one in got if isinstance(one, Arrival) and one.data]


def last(got: list[Arrival | Gap]) -> str:
    """The cursor that a pump would keep."""
    return next(one.cursor for one in reversed(got) if isinstance(one, Arrival) and one.cursor)


def gaps(got: list[Arrival | Gap]) -> list[Gap]:
    return [one for one in got if isinstance(one, Gap)]


def run(body: Callable[[JetstreamServer], Awaitable[None]], **given: Any) -> None:
    async def main() -> None:
        async with jetstream_server(**given) as server:
            await body(server)

    asyncio.run(main())


def posts(*seconds: float) -> list[Any]:
    return [message(T0_US + int(second * S)) for second in seconds]


def test_a_first_connection_asks_for_all_that_is_read_and_begins_now() -> None:
    async def body(server: JetstreamServer) -> None:
        server.close_with = None
        server.live.put_nowait(message(server.now_us))
        got, ended = await take(source(server, silent_s_max=1.0))
        assert times(got) == [server.now_us]
        arrival = next(one for one in got if isinstance(one, Arrival) and one.data)
        assert (arrival.cursor, arrival.made_ms) == (str(server.now_us), server.now_us // 1000)
        assert server.asked[0]["wantedCollections"] == list(COLLECTIONS)
        assert "cursor" not in server.asked[0]
        assert "org.user-intents.declaration" in COLLECTIONS
        assert "said nothing" in str(ended)

    run(body, held=posts(1, 2, 3))


def test_a_cut_connection_goes_on_before_its_cursor_so_that_nothing_is_missing() -> None:
    async def body(server: JetstreamServer) -> None:
        one, cursor, seen = source(server), str(T0_US), list[int]()
        for _ in range(4):
            got, ended = await take(one, cursor)
            seen += times(got)
            cursor = last(got)
            assert isinstance(ended, SourceBroken)
            assert not gaps(got)
        assert sorted(set(seen)) == [T0_US + second * S for second in range(40)]
        assert len(seen) > 40  # the overlap: what ids absorb
        assert [asked["cursor"] for asked in server.asked][:2] == [[str(T0_US - OVERLAP_US)], [str(T0_US + 4 * S)]]

    run(body, held=posts(*range(40)), cut_after=[10, 20, 15])


def test_without_the_overlap_messages_out_of_order_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: times run a little against each other, and a cut falls between two of them."""

    async def body(server: JetstreamServer) -> None:
        one = source(server)
        got, _ = await take(one, str(T0_US))
        cursor = last(got)
        again, _ = await take(one, cursor)
        found.append(len({*times(got), *times(again)}))

    found: list[int] = []
    order = posts(1, 2, 4, 3, 5)
    run(body, held=order, cut_after=[3])
    monkeypatch.setattr(module, "OVERLAP_US", 0)
    run(body, held=order, cut_after=[3])
    assert found == [5, 4]


def test_a_cursor_that_the_server_no_longer_holds_is_an_error_that_names_both_times() -> None:
    async def body(server: JetstreamServer) -> None:
        got, ended = await take(source(server), str(T0_US))
        assert isinstance(ended, CursorTooOld)
        assert not times(got)  # not even the first message is taken as if nothing were missing
        assert "2026-01-04T23:59:55" in str(ended)
        assert "2026-01-05T12:00:00" in str(ended)
        assert "--from-now" in str(ended)

    run(body, held=posts(10, 12 * 3600), held_from_us=T0_US + 11 * HOUR, now_us=T0_US + HELD_US + HOUR)


def test_a_gap_that_the_operator_accepts_is_told_and_the_stream_goes_on_from_the_oldest() -> None:
    async def body(server: JetstreamServer) -> None:
        settings = Settings(bluesky_url=server.url, accept_gaps=True)
        one = Jetstream(settings, clock_ms=lambda: server.now_us // 1000, idle_s=0.05, silent_s_max=0.5)
        got, _ = await take(one, str(T0_US))
        assert times(got) == [T0_US + 12 * HOUR]
        (gap,) = gaps(got)
        assert (gap.after_ms, gap.until_ms) == ((T0_US - 5 * S) // 1000, (T0_US + 12 * HOUR) // 1000)
        assert got.index(gap) == 0

    run(body, held=posts(10, 12 * 3600), held_from_us=T0_US + 11 * HOUR, now_us=T0_US + HELD_US + HOUR)


def test_a_hole_behind_a_younger_cursor_is_a_gap_and_the_stream_goes_on() -> None:
    async def body(server: JetstreamServer) -> None:
        got, _ = await take(source(server), str(T0_US))
        (gap,) = gaps(got)
        assert got[0] is gap  # before the message behind it, so that the cursor cannot pass it unsaid
        assert (gap.after_ms, gap.until_ms) == ((T0_US - OVERLAP_US) // 1000, T0_US // 1000 + 600_000)
        assert times(got) == [T0_US + 600 * S]

    run(body, held=posts(600))


def test_a_quiet_selection_of_accounts_is_no_hole_and_an_old_cursor_of_one_is_a_gap() -> None:
    async def body(server: JetstreamServer) -> None:
        server.url += f"?wantedDids={DID}"
        got, _ = await take(source(server), str(T0_US))
        assert not gaps(got)
        server.now_us = T0_US + HELD_US + HOUR
        assert len(gaps((await take(source(server), str(T0_US)))[0])) == 1
        assert server.asked[0]["wantedDids"] == [DID]

    run(body, held=posts(600))


@pytest.mark.parametrize("cursor", ["", "soon", "12345", "-1", str(T0_US) + "0", "١" * 16])
def test_a_cursor_that_is_none_is_refused_before_it_reaches_the_server(cursor: str) -> None:
    async def body(server: JetstreamServer) -> None:
        _, ended = await take(source(server), cursor)
        assert isinstance(ended, SourceRefused)
        assert not server.asked

    run(body)


def test_a_cursor_from_the_future_is_refused_for_the_server_would_begin_now_and_say_nothing() -> None:
    async def body(server: JetstreamServer) -> None:
        _, ended = await take(source(server), str(server.now_us + HOUR))
        assert isinstance(ended, SourceRefused)
        assert "still to come" in str(ended)

    run(body)


def test_a_message_whose_time_cannot_be_true_is_passed_on_and_does_not_move_the_cursor() -> None:
    async def body(server: JetstreamServer) -> None:
        got, _ = await take(source(server), str(T0_US))
        told = [one for one in got if isinstance(one, Arrival) and one.data]
        assert len(told) == 7
        assert [one.cursor for one in told] == [str(T0_US + S)] * 6 + [str(T0_US + 2 * S)]

    odd = [{"time_us": at} for at in (T0_US + 400 * 24 * HOUR, 5, -1)]
    raw = [b"{broken", json.dumps({"time_us": "x"}).encode(), json.dumps(odd[0]).encode(), json.dumps(odd[1]).encode()]
    run(body, held=[*posts(1), *raw, b"\xff\xfe", *posts(2)])


async def with_a_clock_behind(server: JetstreamServer, one: Jetstream, *times_us: int) -> tuple[int, Exception]:
    """Connect without a cursor, as such a machine always does: how many of these live messages came, and the end."""
    server.close_with = None
    for at_us in times_us:
        server.live.put_nowait(message(at_us))
    got, ended = await take(one)
    assert not gaps(got)
    return len(times(got)), ended


def test_a_clock_that_is_behind_is_told_of_and_not_taken_for_messages_from_the_future() -> None:
    async def body(server: JetstreamServer) -> None:
        sent = [T0_US + 400 * 24 * HOUR, *(T0_US + second * S for second in range(300))]
        came, ended = await with_a_clock_behind(server, source(server, now_us=T0_US - 601 * S), *sent)
        assert type(ended) is SourceRefused
        assert "clock is at least 10 minutes behind" in str(ended)
        assert came == module.AHEAD_MAX - 1

    run(body)


def test_a_quiet_stream_tells_of_a_clock_that_is_behind_too_whichever_connection_its_messages_take() -> None:
    async def body(server: JetstreamServer) -> None:
        behind_us, passed_us = [601 * S], [0]
        one = Jetstream(
            Settings(bluesky_url=server.url), idle_s=0.05, silent_s_max=0.5,
            clock_ms=lambda: (T0_US + passed_us[0] - behind_us[0]) // 1000,
        )  # fmt: skip
        assert type((await with_a_clock_behind(server, one, T0_US, T0_US + S))[1]) is SourceBroken
        passed_us[0] = 7_200 * S
        assert type((await with_a_clock_behind(server, one))[1]) is SourceBroken
        for _ in range(2):  # as often as it is tried again
            assert type((await with_a_clock_behind(server, one, T0_US + passed_us[0]))[1]) is SourceRefused
        behind_us[0] = 0
        came, ended = await with_a_clock_behind(server, one, T0_US + passed_us[0])
        assert (came, type(ended)) == (1, SourceBroken)  # set right, it goes on

    run(body)


def test_odd_times_among_right_ones_are_no_sign_of_the_clock() -> None:
    async def body(server: JetstreamServer) -> None:
        odd, right = [T0_US + 24 * HOUR] * (module.AHEAD_MAX - 1), [T0_US]
        came, ended = await with_a_clock_behind(
            server, source(server, silent_s_max=0.5, now_us=T0_US), *odd, *right, *odd
        )
        assert (came, type(ended)) == (2 * module.AHEAD_MAX - 1, SourceBroken)

    run(body)


def test_a_message_that_is_too_large_costs_that_message_and_is_told_of() -> None:
    async def body(server: JetstreamServer) -> None:
        one = source(server, message_bytes_max=2_000)
        seen: list[int] = []
        cursor = str(T0_US)
        for _ in range(3):
            got, _ = await take(one, cursor)
            seen += times(got)
            told.extend(gaps(got))
            cursor = max([cursor, *(one.cursor for one in got if isinstance(one, Arrival) and one.cursor)])
        assert seen[0] == T0_US + S
        assert T0_US + 20 * S in seen
        assert server.asked[0]["maxMessageSizeBytes"] == ["2000"]

    told: list[Gap] = []
    large = message(T0_US + 3 * S // 2, rkey="x" * 3_000)
    run(body, held=[*posts(1), large, *posts(20)])
    assert len(told) == 1
    assert (told[0].after_ms, told[0].until_ms) == (T0_US // 1000 + 1_000, T0_US // 1000 + 2_000)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (400, {}, SourceRefused),
        (401, {}, SourceRefused),
        (404, {}, SourceRefused),
        (429, {"Retry-After": "17"}, RateLimited),
        (429, {"Retry-After": "soon"}, RateLimited),
        (503, {"Retry-After": "17"}, RateLimited),
        (500, {}, SourceBroken),
        (502, {}, SourceBroken),
    ],
)
def test_what_the_handshake_says_decides_whether_to_wait_or_to_give_up(
    status: int, headers: dict[str, str], kind: type[Exception]
) -> None:
    async def body(server: JetstreamServer) -> None:
        _, ended = await take(source(server))
        assert type(ended) is kind
        assert str(status) in str(ended)
        if isinstance(ended, RateLimited):
            assert ended.wait_s == (17 if headers["Retry-After"] == "17" else module.ASK_AGAIN_S)

    run(body, refuse=[(status, headers, "no\x1b[31m such\nthing")])


def test_a_server_that_closes_says_why_and_is_connected_again() -> None:
    async def body(server: JetstreamServer) -> None:
        _, ended = await take(source(server), str(T0_US))
        assert type(ended) is SourceBroken
        assert "1008" in str(ended)
        assert "too slow" in str(ended)

    run(body, held=posts(1), close_with=(1008, "too slow"))


def test_a_quiet_moment_is_told_so_that_what_came_can_be_sent() -> None:
    async def body(server: JetstreamServer) -> None:
        server.close_with = None
        got, ended = await take(source(server, silent_s_max=1.0), str(T0_US))
        assert [one for one in got if isinstance(one, Arrival) and one.data is None]
        assert type(ended) is SourceBroken

    run(body, held=posts(1))


def test_a_server_that_is_not_there_is_broken_and_not_refused() -> None:
    async def body(server: JetstreamServer) -> None:
        server.url = "ws://127.0.0.1:1/subscribe"
        _, ended = await take(source(server))
        assert type(ended) is SourceBroken

    run(body)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "http://127.0.0.1/subscribe",
        "wss://u:secret@h/subscribe",
        "wss://h/s?compress=true",
        "wss://[x",
        "wss://h:99999999/s",
        "wss://h:x/s",
        "wss://\u2028h/s",
        "wss://[::1",
        "wss://h..h/s",
    ],
)
def test_an_address_that_cannot_be_one_is_refused_without_repeating_it(url: str) -> None:
    async def body(server: JetstreamServer) -> None:
        server.url = url
        _, ended = await take(source(server))
        assert isinstance(ended, SourceRefused)
        assert "XINFLUENCER_BLUESKY_URL" in str(ended)
        assert "secret" not in str(ended)

    run(body)


def test_messages_doubled_by_the_server_are_passed_on_as_they_are() -> None:
    async def body(server: JetstreamServer) -> None:
        got, _ = await take(source(server), str(T0_US))
        assert times(got) == [T0_US + S, T0_US + S, T0_US + 2 * S]

    run(body, held=posts(1, 1, 2))


def test_through_every_fault_each_message_is_in_the_log_and_the_gap_in_the_alerts(tmp_path: Path) -> None:
    async def body(server: JetstreamServer) -> None:
        now_ms = server.now_us // 1000
        server.close_with = None
        server.live.put_nowait(message(T0_US))  # the first thing heard, which gives the cursor
        server.now_us = T0_US  # the server's own clock, so that it replays what follows
        await pumped(source(server, now_us=now_ms * 1000), tmp_path, now_ms, lambda end: bool(end.events(PostObserved)))
        server.now_us = now_ms * 1000
        server.held = [*posts(*range(1, 30)), b"{broken", *posts(*range(29, 40), *range(600, 620))]
        server.cut_after = [7, 20, 3, 30]
        server.refuse = [(500, {}, ""), (429, {"Retry-After": "17"}, "")]

        def whole(end: Recorder) -> bool:
            return len({one.post for one in end.events(PostObserved)}) >= 59

        summary, end, waits = await pumped(source(server, now_us=now_ms * 1000), tmp_path, now_ms, whole)
        told = {one.post for one in end.events(PostObserved)}
        wanted = [*range(1, 40), *range(600, 620)]
        assert told == {f"bluesky:{DID}~k{T0_US + second * S}" for second in wanted}
        assert len(end.events(PostObserved)) == len(told)  # the overlaps were noticed before the log
        assert [one.reason for one in end.events(RecordRefused)] == ["bad-json"]
        assert not end.events(AlertRaised)  # a hole in the middle of a stream is the network's own silence
        assert 17 in waits.asked
        assert summary.unaccounted == 0

    run(body)
