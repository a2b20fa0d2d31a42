"""X's streams: the real source over real HTTP against a server that misbehaves; and what no connection covered."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import x_stream
from streams.live import Arrival, CursorTooOld, Gap, RateLimited, SourceBroken, SourceRefused
from streams.settings import Settings
from streams.x_api import CONNECTIONS_WAIT_S, WINDOW_S, checked_url, token
from streams.x_rules import PREFIX, Rules, RulesRefused, load_rules
from streams.x_stream import DAY_MS, MARGIN_MS, Request, Splitter, XStream, compliance, every_compliance, filtered, plan
from tests.x_server import TOKEN, XServer, line, now_ms, sends, serving, status

ENV = {"XINFLUENCER_X_TOKEN": TOKEN}
KEEP_ALIVE_S = 0.1  # so that the source gives up after 0.2 s; the server's own is 0.05


def stream(server: XServer, env: dict[str, str] | None = None, backfill: int = 0, **more: Any) -> XStream:
    settings = Settings(x_url=server.url, x_backfill_minutes=backfill)
    return filtered(settings, env or ENV, keep_alive_s=KEEP_ALIVE_S, **more)


async def take(
    source: XStream, cursor: str | None = None, until: Callable[[list[Any]], bool] = lambda got: False
) -> tuple[list[Arrival | Gap], Exception | None]:
    """What one connection gives, until `until` says that it is enough, and how it ended."""
    got: list[Arrival | Gap] = []
    try:
        async with aclosing(source.connect(cursor)) as arrivals:  # type: ignore[type-var]
            async for one in arrivals:
                got.append(one)
                if until(got):
                    return got, None
    except Exception as error:  # noqa: BLE001 - how it ended is what is asked
        return got, error
    return got, None


def data(got: list[Arrival | Gap]) -> list[bytes]:
    return [one.data for one in got if isinstance(one, Arrival) and one.data is not None]


def met(*behaviours: Any, cursor: str | None = None, **more: Any) -> tuple[list[Arrival | Gap], Exception | None]:
    """Connect once to a server that does this."""

    async def run() -> tuple[list[Arrival | Gap], Exception | None]:
        async with serving(script=list(behaviours)) as server:
            return await take(stream(server, **more), cursor)

    return asyncio.run(run())


# ---- lines ----------------------------------------------------------------------------------------------------------


class Careless(Splitter):
    """Negative control: takes every piece for whole lines."""

    def feed(self, piece: bytes) -> list[bytes]:
        return [one for one in piece.split(b"\n") if one]


def split(splitter: Splitter, whole: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    return [one for a, b in pairwise(edges) for one in splitter.feed(whole[a:b])]


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=8),
    cuts=st.lists(st.integers(0)),
)
def test_lines_are_the_same_wherever_the_bytes_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(one + b"\n" for one in lines)
    assert split(Splitter(), whole + b"rest", cuts) == lines


def test_the_test_of_cuts_catches_a_splitter_that_forgets_what_it_held() -> None:
    assert split(Careless(), b"ab\ncd\n", [1, 4]) != [b"ab", b"cd"]


@given(sizes=st.lists(st.integers(0, 60), max_size=6), cuts=st.lists(st.integers(0)))
def test_a_line_too_long_is_cut_at_the_limit_and_costs_no_other(sizes: list[int], cuts: list[int]) -> None:
    whole = b"".join(b"x" * size + b"\n" for size in sizes)
    assert split(Splitter(20), whole, cuts) == [b"x" * min(size, 20) for size in sizes]


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 10**6])
def test_over_http_every_line_arrives_whole_whatever_the_pieces(size: int) -> None:
    sent = [line(number, text=f"é\\n {number}") for number in range(3)]
    whole = b"\r\n".join([sent[0], b"", sent[1], b"", b"", sent[2], b""])
    cut = [whole[at : at + size] for at in range(0, len(whole), size)]
    got, ended = met(sends(*cut, then="end"))
    assert data(got) == sent
    assert isinstance(ended, SourceBroken)


def test_a_drop_in_the_middle_of_a_line_gives_the_lines_before_it_and_no_half_one() -> None:
    got, ended = met(sends(line(1) + b"\r\n" + line(2)[:40]))
    assert [json.loads(one)["data"]["text"] for one in data(got)] == ["post 1"]
    assert isinstance(ended, SourceBroken)


def test_a_line_longer_than_any_is_cut_and_the_next_one_is_whole() -> None:
    huge = b'{"data":"' + b"x" * (17 << 20)
    got, _ = met(sends(huge, huge + b"\r\n" + line(1) + b"\r\n", then="end"))
    first, second = data(got)
    assert len(first) == x_stream.LINE_BYTES_MAX
    assert json.loads(second)["data"]["text"] == "post 1"


# ---- life and silence -----------------------------------------------------------------------------------------------


def test_keep_alives_alone_hold_the_connection_and_move_the_cursor() -> None:
    async def run() -> list[Any]:
        async with serving() as server:
            got, ended = await take(stream(server), None, lambda got: len(got) >= 8)
            assert ended is None
            return got

    got = asyncio.run(run())
    cursors = [int(one.cursor) for one in got]
    assert all(one.data is None for one in got)
    assert cursors == sorted(cursors)
    assert cursors[-1] > cursors[0]


def test_silence_without_keep_alives_is_a_broken_connection() -> None:
    got, ended = met(sends(line(1) + b"\r\n", then="hang"))
    assert len(data(got)) == 1
    assert isinstance(ended, SourceBroken)
    assert "keep-alive" in str(ended)


def test_a_slow_line_is_no_silence() -> None:
    one = line(1)
    got, _ = met(sends(*(bytes([byte]) for byte in one[:6]), one[6:] + b"\n", then="end", gap_s=0.06))
    assert data(got) == [one]


def test_what_x_says_at_the_end_of_a_stream_is_told() -> None:
    bye = {
        "errors": [{
            "title": "operational-disconnect", "disconnect_type": "UpstreamOperationalDisconnect",
            "detail": "This stream has been disconnected upstream for operational reasons.",
            "type": "https://api.twitter.com/2/problems/operational-disconnect",
        }]
    }  # fmt: skip
    got, ended = met(sends(line(1) + b"\r\n" + json.dumps(bye).encode() + b"\r\n" + line(2) + b"\r\n", then="hang"))
    assert len(data(got)) == 1
    assert isinstance(ended, SourceBroken)
    assert "UpstreamOperationalDisconnect" in str(ended)


SURPRISES: list[bytes] = [
    b'{"data": [1, 2]}', b'{"data": {"id": 5}}', b'{"data": {"id": "abc"}}', b"[]", b"null", b"{", b"\xff\xfe", b"{}",
    b'{"data": null, "errors": [{"title": "Not Found Error", "value": "1"}]}', b'{"errors": "text"}', b'{"errors": {}}',
    b'{"data": {"id": "99999999999999999999999"}}', b"[" * 5000, b'{"new": {"field": 1}, "data": {"id": "1"}}',
    b'{"data": {"delete": {"event_at": "2021-99-99T00:00:00.000Z"}}}', b'{"data": {"id": "\\ud800"}}',
]  # fmt: skip


def test_schema_surprises_pass_through_as_they_came() -> None:
    got, ended = met(sends(*(one + b"\r\n" for one in SURPRISES), then="end"))
    assert data(got) == SURPRISES
    assert isinstance(ended, SourceBroken)


def test_the_cursor_is_never_ahead_of_posts_that_wait_in_xs_queue() -> None:
    opened = now_ms()
    times = iter([opened])
    late = line(1, opened + 50_000)
    got, _ = met(sends(late + b"\r\n" + b"\r\n", then="end"), clock_ms=lambda: next(times, opened + 60_000))
    assert [(one.cursor, one.made_ms) for one in got if isinstance(one, Arrival)] == [
        (str(opened), None),
        (str(opened + 50_000), opened + 50_000),
        (str(opened + 60_000), None),  # a keep-alive: the queue is empty
    ]


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (400, SourceRefused, "400"), (401, SourceRefused, "token"), (402, SourceRefused, "plan"),
        (403, SourceRefused, "plan"), (404, SourceRefused, "XINFLUENCER_X_URL"), (302, SourceRefused, "302"),
        (500, SourceBroken, "500"), (503, SourceBroken, "503"), (429, RateLimited, "wait"),
    ],
)  # fmt: skip
def test_every_status_says_what_it_means(code: int, kind: type[Exception], says: str) -> None:
    got, ended = met(status(code, {"title": "Why", "detail": "because"}, location="http://127.0.0.1:9/elsewhere"))
    assert got == []
    assert type(ended) is kind
    assert says in str(ended)
    assert "because" in str(ended)


def test_a_rate_limit_says_how_long_to_wait() -> None:
    reset = str(int(time.time()) + 300)
    for headers, low, high in (
        ({"x_rate_limit_reset": reset}, 290, 301), ({"retry_after": "7"}, 7, 7), ({}, WINDOW_S, WINDOW_S),
        ({"x_rate_limit_reset": "soon"}, WINDOW_S, WINDOW_S), ({"x_rate_limit_reset": "5"}, 1, 1),
    ):  # fmt: skip
        _, ended = met(status(429, None, **headers))
        assert isinstance(ended, RateLimited)
        assert low <= ended.wait_s <= high


def test_too_many_connections_waits_less_than_a_window() -> None:
    problem = {"title": "ConnectionException", "connection_issue": "TooManyConnections", "detail": "maximum allowed"}
    _, ended = met(status(429, problem, x_rate_limit_reset=str(int(time.time()) + 800)))
    assert isinstance(ended, RateLimited)
    assert ended.wait_s == CONNECTIONS_WAIT_S


def test_a_token_that_expires_while_streaming_is_refused_at_the_next_connection() -> None:
    async def run() -> None:
        async with serving() as server:
            source = stream(server)

            def expire(got: list[Any]) -> bool:
                if len(got) == 2:
                    server.token = "another"
                    server.drop_all()
                return False

            _, ended = await take(source, None, expire)
            assert isinstance(ended, SourceBroken)
            _, ended = await take(source, str(now_ms()))
            assert isinstance(ended, SourceRefused)
            assert "401" in str(ended)

    asyncio.run(run())


def test_a_server_that_is_away_is_a_broken_connection() -> None:
    source = filtered(Settings(x_url="http://127.0.0.1:1"), ENV)
    _, ended = asyncio.run(take(source))
    assert isinstance(ended, SourceBroken)


# ---- the token ------------------------------------------------------------------------------------------------------


async def echo(wire: Any) -> None:
    await wire.answer(403, {"title": f"Bearer {TOKEN}", "detail": f"you sent {TOKEN}, {TOKEN}"})


@pytest.mark.parametrize("behaviour", [status(401), status(429), status(503), echo, sends(b"{", then="cut")])
def test_the_token_is_in_no_message_no_repr_and_no_log(behaviour: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async with serving(script=[behaviour]) as server:
            source = stream(server)
            _, ended = await take(source)
            said = [repr(ended), str(ended), repr(ended.__context__), repr(source), repr(vars(source).keys())]
            assert TOKEN not in "".join(said)

    asyncio.run(run())
    assert TOKEN not in caplog.text
    assert TOKEN.partition("%")[0] not in caplog.text


@pytest.mark.parametrize("bad", [TOKEN + "\nX-Other: 1", f'"{TOKEN}"', TOKEN + " b", "é" + TOKEN, "", "x" * 5000])
def test_a_token_that_is_none_is_refused_without_being_shown(bad: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(bad)
    for env in ({"XINFLUENCER_X_TOKEN": bad}, {"XINFLUENCER_X_TOKEN_FILE": str(file)}):
        with pytest.raises(SourceRefused) as refused:
            token(env)
        assert TOKEN not in str(refused.value)
        assert refused.value.__cause__ is None


def test_a_token_comes_from_one_place_and_its_file_is_read_again_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "token"
    env = {"XINFLUENCER_X_TOKEN_FILE": str(file)}
    with pytest.raises(SourceRefused, match="cannot be read"):
        token(env)
    file.write_text(TOKEN + "\n")
    assert token(env) == TOKEN
    with pytest.raises(SourceRefused, match="set one of"):
        token({**env, "XINFLUENCER_X_TOKEN": "a"})
    with pytest.raises(SourceRefused, match="set one of"):
        token({})

    async def run() -> None:
        async with serving(token="new") as server:
            source = stream(server, env)
            assert isinstance((await take(source))[1], SourceRefused)
            file.write_text("new")
            assert (await take(source, None, lambda got: len(got) == 1))[1] is None

    asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "http://api.x.com", "http://127.0.0.1.evil.example", "ftp://x", "https://u:p@x.com", "", "https://[::1",
        "https://a.b:99999999", "https://a.b:x", "https://\u2028a", "https://a\0b", "//", "https://" + "a" * 70_000,
    ],
)  # fmt: skip
def test_the_token_goes_nowhere_in_clear(url: str) -> None:
    with pytest.raises(SourceRefused):
        checked_url(url)


def test_a_redirect_is_not_followed() -> None:
    async def run() -> None:
        async with serving() as other, serving(script=[status(307, None, location=other.url + "/x")]) as server:
            _, ended = await take(stream(server))
            assert isinstance(ended, SourceRefused)
            assert other.asked == []

    asyncio.run(run())


# ---- what no connection covered -------------------------------------------------------------------------------------

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


# ---- what is asked for ----------------------------------------------------------------------------------------------


def test_the_filtered_stream_is_asked_for_with_all_that_ingest_reads() -> None:
    async def run() -> None:
        async with serving() as server:
            await take(stream(server), None, lambda got: True)
            path, params = server.asked[0]
            assert path == "/2/tweets/search/stream"
            asked = set(",".join(params.values()).split(","))
            assert {"note_tweet", "edit_history_tweet_ids", "public_metrics", "referenced_tweets", "entities"} <= asked
            assert {"author_id", "created_at", "verified", "referenced_tweets.id.author_id"} <= asked

    asyncio.run(run())


def test_the_compliance_streams_are_all_their_partitions_and_nothing_else() -> None:
    async def run() -> None:
        async with serving() as server:
            settings = Settings(x_url=server.url)
            all_of_them = every_compliance(settings)
            assert len({one.stream for one in all_of_them}) == len(all_of_them) == 8
            gone = {
                "data": {"delete": {"tweet": {"id": "1", "author_id": "2"}, "event_at": "2026-01-05T00:00:01.000Z"}}
            }
            server.script.append(sends(json.dumps(gone).encode() + b"\r\n"))
            got, _ = await take(compliance(settings, "users", 4, ENV))
            assert server.asked == [("/2/users/compliance/stream", {"partition": "4"})]
            assert got[1].made_ms == 1_767_571_201_000  # type: ignore[union-attr]
            for kind, partition in (("tweets", 0), ("tweets", 5), ("likes", 1)):
                with pytest.raises(SourceRefused):
                    compliance(settings, kind, partition)

    asyncio.run(run())


# ---- rules ----------------------------------------------------------------------------------------------------------


def rules_of(server: XServer) -> Rules:
    return Rules(Settings(x_url=server.url), ENV)


def test_rules_become_those_of_the_file_and_nobody_elses_are_touched(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[rules]\ncats = "cat has:images"\n"two words" = "from:nasa -is:retweet"\n')

    async def run() -> None:
        async with serving() as server:
            server.rules["1"] = {"value": "dog", "tag": "mine"}
            rules = rules_of(server)
            changed = await rules.set(load_rules(file))
            assert (changed.added, changed.deleted, changed.foreign) == (("cats", "two words"), (), 1)
            before = dict(server.rules)
            changed = await rules.set(load_rules(file))
            assert (changed.added, changed.kept) == ((), ("cats", "two words"))
            assert server.rules == before
            # The same query under another name, another query under the same name, and one taken away.
            changed = await rules.set({"kittens": "cat has:images", "cats": "kitten"})
            assert sorted((rule.tag, rule.value) for rule in await rules.all()) == [
                ("mine", "dog"), (f"{PREFIX}cats", "kitten"), (f"{PREFIX}kittens", "cat has:images"),
            ]  # fmt: skip
            assert changed.deleted == ("cats", "two words")

    asyncio.run(run())


def test_a_rule_that_x_refuses_changes_nothing() -> None:
    async def run() -> None:
        async with serving(bad_rules=("bad:",)) as server:
            rules = rules_of(server)
            await rules.set({"old": "cat"})
            before = dict(server.rules)
            with pytest.raises(RulesRefused, match=r"wrong: X refuses it .*no such operator.*nothing was changed"):
                await rules.set({"new": "dog", "wrong": "bad:"})
            server.rules["1"] = before["1"] = {"value": "dog", "tag": ""}
            with pytest.raises(RulesRefused, match="not from here"):
                await rules.set({"new": "dog"})
            assert server.rules == before

    asyncio.run(run())


def test_more_rules_than_fit_a_page_are_all_listed() -> None:
    async def run() -> None:
        async with serving(rules={str(n): {"value": f"v{n}", "tag": ""} for n in range(2_100)}) as server:
            assert len(await rules_of(server).all()) == 2_100

    asyncio.run(run())


@pytest.mark.parametrize(
    "text",
    ["", "rules = 5", "[rules]\na = 5", '[rules]\na = ""', '[other]\na = "b"', '[rules]\na = "b"\n[x]', "[rules",
     '[rules]\na = "b"\nc = "b"', '[rules]\na = "b\\nc"', f'[rules]\na = "{"x" * 3000}"',
     f'[rules]\n{"n" * 120} = "b"'],
)  # fmt: skip
def test_a_file_of_rules_that_is_unclear_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(RulesRefused):
        load_rules(file)


def test_rules_without_a_right_token_say_so() -> None:
    async def run() -> None:
        async with serving(token="another") as server:
            with pytest.raises(SourceRefused, match="401"):
                await rules_of(server).all()

    asyncio.run(run())


def test_margin_is_less_than_a_minute_so_that_a_short_cut_asks_for_one() -> None:
    assert MARGIN_MS < 60_000
    assert plan(NOW, NOW, 5, False).params == {"backfill_minutes": "1"}
