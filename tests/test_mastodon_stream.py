"""Mastodon's stream: it has no cursor, and still nothing is missing without a word."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import AlertRaised, RecordRefused
from schemas.facts import Rights
from schemas.posts import PostDeleted, PostEdited, PostObserved
from streams import mastodon_stream as module
from streams.ingest import Intake
from streams.lines import Line
from streams.live import Arrival, Gap, RateLimited, SourceBroken, SourceRefused
from streams.mastodon import read
from streams.mastodon_owners import Owners
from streams.mastodon_stream import MastodonStream, events
from streams.policy import Policy
from streams.settings import Settings
from tests.ingest_ends import MemoryKeys, Recorder, in_memory
from tests.mastodon_server import T0_MS, MastodonServer, account, event, mastodon_server, number, status
from tests.pumping import pumped

RIGHTS = Rights(index=True, train=False, show=True, policy="mastodon-default")
NOW_MS = T0_MS + 3_600_000
TOKEN = "s3cret-Token_1"


def source(
    server: MastodonServer, stream: str = "public", env: dict[str, str] | None = None, **more: Any
) -> MastodonStream:
    settings = Settings(mastodon_url=server.url, mastodon_stream=stream)
    more = {"stall_s": 15.0, "owners": Owners()} | more
    return MastodonStream(settings, env or {}, clock_ms=lambda: NOW_MS, **more)


async def take(one: MastodonStream, cursor: str | None = None) -> tuple[list[Arrival | Gap], Exception]:
    got: list[Arrival | Gap] = []
    try:
        async with aclosing(one.connect(cursor)) as arrivals:
            async for arrival in arrivals:
                got.append(arrival)  # noqa: PERF401 - what came before the error counts
    except (SourceBroken, SourceRefused) as ended:
        return got, ended
    raise AssertionError("a connection ended without a reason")


def messages(got: list[Arrival | Gap]) -> list[dict[str, Any]]:
    return [json.loads(one.data) for one in got if isinstance(one, Arrival) and one.data]


def ids(got: list[Arrival | Gap]) -> list[str]:
    return [one["payload"]["id"] for one in messages(got)]


def gaps(got: list[Arrival | Gap]) -> list[Gap]:
    return [one for one in got if isinstance(one, Gap)]


def last(got: list[Arrival | Gap]) -> str:
    return next(one.cursor for one in reversed(got) if isinstance(one, Arrival) and one.cursor)


def run(body: Callable[[MastodonServer], Awaitable[None]], **given: Any) -> None:
    async def main() -> None:
        async with mastodon_server(**given) as server:
            await body(server)

    asyncio.run(main())


def updates(*seconds: int) -> bytes:
    return b"".join(event("update", status(T0_MS + second * 1000)) for second in seconds)


def test_what_the_stream_sends_reaches_the_reader_with_the_servers_name() -> None:
    async def body(server: MastodonServer) -> None:
        got, ended = await take(source(server))
        host = server.url.removeprefix("http://")
        kinds = []
        for message in messages(got):
            reading = read(message, "mastodon", lambda owner: RIGHTS)
            assert not reading.refusals
            kinds += [type(one.events[0]) for one in reading.said] or [reading.of_no_use]
            for one in reading.said:
                assert one.events[0].post == f"mastodon:{host}:{number(T0_MS)}"  # type: ignore[attr-defined]
                assert one.events[0].owner == f"mastodon:@{host}:11"  # type: ignore[attr-defined]
        assert kinds == [PostObserved, PostEdited, 1, PostDeleted]
        assert [one for one in got if isinstance(one, Arrival) and one.data is None]  # the heartbeats
        assert type(ended) is SourceBroken
        assert server.asked == [("/api/v1/streaming/public", {}, None)]

    edited = status(edited_at="2026-01-05T01:00:00.000Z", content="<p>other</p>")
    parts = [updates(0), b":thump\n", event("status.update", edited), event("filters_changed", b"undefined")]
    run(body, sends=[[*parts, event("delete", number(T0_MS).encode())]])


@pytest.mark.parametrize(
    ("stream", "path", "params", "pages"),
    [
        ("public", "public", {}, "public"),
        ("public:local", "public/local", {}, "public"),
        ("public:remote:media", "public/remote", {"only_media": "true"}, "public"),
        ("hashtag:tea", "hashtag", {"tag": "tea"}, "tag/tea"),
        ("hashtag:local:茶", "hashtag/local", {"tag": "茶"}, "tag/%E8%8C%B6"),
        ("list:7", "list", {"list": "7"}, "list/7"),
        ("user", "user", {}, "home"),
    ],
)
def test_every_stream_of_posts_is_asked_for_and_caught_up_where_it_is(
    stream: str, path: str, params: dict[str, str], pages: str
) -> None:
    async def body(server: MastodonServer) -> None:
        await take(source(server, stream), f"{number(T0_MS)}@{T0_MS}")
        (first, given, _), (second, _, _) = server.asked
        assert (first, given) == (f"/api/v1/streaming/{path}", params)
        assert second == f"/api/v1/timelines/{pages}"

    run(body)


@pytest.mark.parametrize("stream", ["", "direct", "user:notification", "hashtag:", "hashtag:a/../b", "list:1?x=2", "x"])
def test_a_stream_that_has_no_posts_for_everyone_is_refused(stream: str) -> None:
    with pytest.raises(SourceRefused, match="XINFLUENCER_MASTODON_STREAM"):
        source(MastodonServer(url="http://127.0.0.1:1"), stream)


def test_after_a_cut_what_was_missed_is_fetched_oldest_first_and_then_the_stream_goes_on() -> None:
    async def body(server: MastodonServer) -> None:
        one = source(server)
        got, _ = await take(one)
        assert ids(got) == [number(T0_MS)]
        again, _ = await take(one, last(got))
        wanted = [number(T0_MS + second * 1000) for second in range(100)]
        assert ids(again) == [*wanted, number(T0_MS + 100_000)]
        assert last(again).startswith(number(T0_MS + 100_000) + "@")
        (gap,) = gaps(again)
        assert again[0] is gap  # said before anything behind it
        assert (gap.after_ms, gap.until_ms) == (NOW_MS, NOW_MS)
        assert "deletions" in gap.reason
        paths = [path for path, _, _ in server.asked]
        assert paths[1] == "/api/v1/streaming/public"  # opened first, so that nothing falls between

    seconds = [status(T0_MS + second * 1000) for second in range(100)]
    run(body, sends=[[updates(0)], [updates(100)]], timeline=seconds)


def test_without_fetching_what_was_missed_the_same_cut_loses_posts() -> None:
    """The negative control: a source that only connects again."""

    async def body(server: MastodonServer) -> None:
        one = source(server)
        await take(one)
        again, _ = await take(one, None)
        assert ids(again) == [number(T0_MS + 100_000)]

    run(body, sends=[[updates(0)], [updates(100)]], timeline=[status(T0_MS + 50_000)])


def test_posts_that_come_late_from_other_servers_are_met_by_going_back_a_little() -> None:
    async def body(server: MastodonServer) -> None:
        got, _ = await take(source(server), f"{number(T0_MS)}@{T0_MS}")
        assert ids(got) == [number(T0_MS - 20_000)]
        (gap,) = gaps(got)  # and what came later than that is not there, which is said
        assert "posts of other servers that came more than 30 s after" in gap.reason

    run(body, timeline=[status(T0_MS - 20_000), status(T0_MS - 40_000)])


def test_more_than_the_bound_is_a_gap_that_says_from_when() -> None:
    async def body(server: MastodonServer) -> None:
        got, _ = await take(source(server, pages_max=3), f"{number(T0_MS)}@{T0_MS}")
        assert len(ids(got)) == 7  # 3 pages of two, and the stream
        deletions, bound = gaps(got)
        assert "more than" in bound.reason
        assert (deletions.after_ms, bound.after_ms) == (T0_MS, T0_MS)  # created_at of the last one fetched

    seconds = [status(T0_MS + second * 1000) for second in range(1, 9)]
    run(body, sends=[[updates(100)]], timeline=seconds, page=2)


def test_a_timeline_that_may_not_be_read_costs_what_was_missed_and_not_the_stream() -> None:
    async def body(server: MastodonServer) -> None:
        got, _ = await take(source(server), f"{number(T0_MS)}@{T0_MS}")
        assert ids(got) == [number(T0_MS + 1000)]
        assert "cannot be read" in gaps(got)[1].reason

    run(body, sends=[[updates(1)]], refuse_page=[(422, {}, '{"error": "public preview is off"}')])


def test_a_rate_limit_while_catching_up_ends_the_connection_with_its_wait() -> None:
    async def body(server: MastodonServer) -> None:
        _, ended = await take(source(server), f"{number(T0_MS)}@{T0_MS}")
        assert isinstance(ended, RateLimited)
        assert 3_000 < ended.wait_s <= 3_600

    run(body, refuse_page=[(429, {"X-RateLimit-Reset": "2199-01-01T00:00:00.000Z"}, "")])


def test_a_deletion_names_its_owner_after_a_restart_too(tmp_path: Path) -> None:
    async def body(server: MastodonServer) -> None:
        file = tmp_path / "owners.sqlite"
        owners = Owners(file)
        await take(source(server, owners=owners))
        owners.close()
        got, _ = await take(source(server, owners=Owners(file)))
        known, unknown = messages(got)
        assert known["owner"] == "11"
        assert "owner" not in unknown
        assert read(unknown, "mastodon", lambda owner: RIGHTS).refusals[0].reason == "owner-unknown"

    gone = event("delete", number(T0_MS).encode()) + event("delete", b"404")
    run(body, sends=[[updates(0)], [gone]])


def test_the_newest_owners_are_kept_and_no_more() -> None:
    owners = Owners(statuses_max=3)
    for one in range(10):
        owners.note(f"h:{one}", "7")
    assert [owners.of(f"h:{one}") for one in (0, 1, 2, 3, 7, 8, 9)] == [None] * 4 + ["7"] * 3


@pytest.mark.parametrize(
    ("status_code", "headers", "kind"),
    [
        (401, {}, SourceRefused),
        (403, {}, SourceRefused),
        (404, {}, SourceRefused),
        (422, {}, SourceRefused),
        (429, {"Retry-After": "17"}, RateLimited),
        (429, {"X-RateLimit-Reset": "nonsense"}, RateLimited),
        (503, {"Retry-After": "17"}, RateLimited),
        (500, {}, SourceBroken),
        (503, {}, SourceBroken),
        (301, {"Location": "https://evil.example/api/v1/streaming/public"}, SourceRefused),
        (301, {"Location": "https://127.0.0.1.evil.example/x"}, SourceRefused),
        (302, {"Location": "http://["}, SourceBroken),
        (304, {}, SourceRefused),
    ],
)
def test_what_the_server_answers_decides_whether_to_wait_or_to_give_up(
    status_code: int, headers: dict[str, str], kind: type[Exception]
) -> None:
    async def body(server: MastodonServer) -> None:
        _, ended = await take(source(server, env={module_token: TOKEN}))
        assert type(ended) is kind
        assert TOKEN not in str(ended)
        if isinstance(ended, RateLimited):
            assert ended.wait_s == (17 if "Retry-After" in headers else 300)

    module_token = "XINFLUENCER_MASTODON_TOKEN"
    run(body, refuse=[(status_code, headers, json.dumps({"error": f"no \x1b[31m {TOKEN}"}))])


def test_the_token_goes_to_the_server_and_is_in_no_message(tmp_path: Path) -> None:
    async def body(server: MastodonServer) -> None:
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        one = source(server, env={"XINFLUENCER_MASTODON_TOKEN_FILE": str(file)})
        got, ended = await take(one)
        assert ids(got) == [number(T0_MS)]
        assert server.asked[0][2] == f"Bearer {TOKEN}"
        _, ended = await take(one, last(got))  # it has expired meanwhile, and the server repeats it in its answer
        assert isinstance(ended, SourceRefused)
        assert "XINFLUENCER_MASTODON_TOKEN" in str(ended)
        assert TOKEN not in f"{ended}{ended!r}{one!r}{vars(one)}"
        file.write_text("another")  # and a new one is taken up without a restart
        assert ids((await take(one))[0]) == [number(T0_MS + 1000)]

    run(body, sends=[[updates(0)], [updates(1)]], token=TOKEN, expires_after=1)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"XINFLUENCER_MASTODON_TOKEN": "a b"}, "quotes, spaces"),
        ({"XINFLUENCER_MASTODON_TOKEN": "x", "XINFLUENCER_MASTODON_TOKEN_FILE": "y"}, "only one"),
        ({"XINFLUENCER_MASTODON_TOKEN_FILE": "/nowhere/at/all"}, "cannot be read"),
    ],
)
def test_a_token_that_cannot_be_one_is_refused_and_not_repeated(env: dict[str, str], words: str) -> None:
    async def body(server: MastodonServer) -> None:
        _, ended = await take(source(server, env=env))
        assert isinstance(ended, SourceRefused)
        assert words in str(ended)
        assert not server.asked

    run(body)


@pytest.mark.parametrize(
    "url",
    ["", "mastodon.social", "http://mastodon.social", "https://u:p@h", "https://h/path", "https://h?x=1", "wss://h"],
)
def test_an_address_that_cannot_be_a_servers_is_refused(url: str) -> None:
    with pytest.raises(SourceRefused, match="XINFLUENCER_MASTODON_URL"):
        source(MastodonServer(url=url))


@pytest.mark.parametrize("cursor", ["", "5", "a@", "@5", "1/2@5", "1@5\n", "1@" + "9" * 15])
def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    async def body(server: MastodonServer) -> None:
        _, ended = await take(source(server), cursor)
        assert isinstance(ended, SourceRefused)
        assert not server.asked

    run(body)


def test_a_server_that_falls_silent_is_left_after_three_missing_heartbeats() -> None:
    async def body(server: MastodonServer) -> None:
        got, ended = await take(source(server, stall_s=1.0))
        assert ids(got) == [number(T0_MS)]
        assert type(ended) is SourceBroken
        assert "heartbeat" in str(ended)

    run(body, sends=[[updates(0), None]])


def test_what_is_no_event_stream_is_broken_and_nothing_of_it_is_taken() -> None:
    async def body(server: MastodonServer) -> None:
        got, ended = await take(source(server))
        assert (got, type(ended)) == ([], SourceBroken)

    run(body, sends=[[updates(0)]], content_type="text/html")


def test_a_line_cut_by_the_end_of_the_connection_is_left_out_and_not_half_taken() -> None:
    async def body(server: MastodonServer) -> None:
        got, _ = await take(source(server))
        assert ids(got) == [number(T0_MS)]

    run(body, sends=[[updates(0), updates(1)[:-40]]])


def test_what_is_no_json_or_too_long_is_passed_on_to_be_refused_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(server: MastodonServer) -> None:
        got, _ = await take(source(server))
        data = [one.data for one in got if isinstance(one, Arrival) and one.data]
        assert data[0] == b'{"broken": '
        assert 4000 < len(data[1]) <= 4096
        assert json.loads(data[2])["payload"] == {"id": 5}  # the reader says what is wrong with it
        assert json.loads(data[3])["payload"]["id"] == number(T0_MS)

    monkeypatch.setattr(module, "EVENT_BYTES_MAX", 4096)
    bad = event("update", b'{"broken": ') + event("update", status(content="x" * 9_000)) + event("update", {"id": 5})
    run(body, sends=[[bad, updates(0)]])


def test_a_server_cannot_name_another_one_from_inside_a_payload() -> None:
    async def body(server: MastodonServer) -> None:
        got, _ = await take(source(server))
        data = next(one.data for one in got if isinstance(one, Arrival) and one.data)
        assert b"evil" in data
        with pytest.raises(json.JSONDecodeError):
            json.loads(data)

    run(body, sends=[[event("update", b'{}, "host": "evil.example", "x": {}')]])


def inner(seconds: int, who: str = "77", **changes: Any) -> dict[str, Any]:
    return status(T0_MS - seconds * 1000, account=account(who), content="<p>words</p>", **changes)


def quoting(quoted: Any, **changes: Any) -> dict[str, Any]:
    return status(quote={"state": "accepted", "quoted_status": quoted}, **changes)


@pytest.mark.parametrize(
    ("name", "payload", "posts"),
    [
        ("update", quoting(inner(9)), 2),
        ("update", status(reblog=inner(9)), 2),
        ("update", status(T0_MS + 1, reblog=quoting(inner(9))), 3),
        ("status.update", quoting(status(T0_MS - 5, reblog=inner(9), account=account("78"))), 3),
        ("update", [quoting(inner(9)), status(T0_MS + 1)], 3),
        ("update", json.dumps(quoting(inner(9))), 2),
        ("update", quoting(inner(9), id=5), 1),  # what does not fit costs itself and nothing in it or around it
        ("update", quoting(inner(9), account="p"), 1),
        ("update", quoting(inner(9, created_at="once")), 1),
        ("update", quoting([inner(9)], id=5, reblog=inner(8)), 1),
        ("notification", {"type": "mention", "account": account("22"), "status": quoting(inner(9))}, 2),
    ],
)
def test_whatever_a_message_brings_is_gone_when_its_deletion_is_told(name: str, payload: Any, posts: int) -> None:
    one = MastodonStream(Settings(mastodon_url="https://social.example"), {}, lambda: NOW_MS, owners=Owners())
    intake = Intake("mastodon", Settings(), MemoryKeys(), Policy.load(), in_memory())

    def told(event: str, data: bytes) -> list[Any]:
        return [sent.event for sent in intake.take([Line("made", one._arrival(event, data).data or b"")], NOW_MS)]

    seen = [said for said in told(name, json.dumps(payload).encode()) if isinstance(said, PostObserved)]
    assert len(seen) == posts
    for post in seen:
        gone = told("delete", post.post.rpartition(":")[2].encode())
        assert gone == [PostDeleted(post=post.post, owner=post.owner, source="mastodon")]


SSE = b":)\r\nevent: update\r\ndata: 1\r\ndata:2\r\n\r\n:thump\rdata: x\r\revent: e\n\nevent: b\ndata\n\nid: 4\ndata: y"


@given(st.lists(st.integers(0, len(SSE)), max_size=12))
def test_events_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(SSE)]

    async def pieces() -> Any:
        for begin, end in pairwise(places):
            yield SSE[begin:end]

    async def told() -> list[Any]:
        return [one async for one in events(pieces())]

    expected = [None, ("update", b"1\n2"), None, ("message", b"x"), ("b", b"")]
    assert asyncio.run(told()) == expected


LINE_ENDS = [b"data: a\r\n\ndata: b\n\n", b"data: a\n\r\ndata: b\r\r", b"\r\n\r\ndata: a\r\n\r\n"]


@pytest.mark.parametrize("text", [SSE, *LINE_ENDS])
def test_events_are_the_same_if_each_byte_comes_alone_and_nothing_between_them(text: bytes) -> None:
    async def told(*pieces: bytes) -> list[Any]:
        async def come() -> Any:
            for one in pieces:
                yield one

        return [one async for one in events(come())]

    apart = [piece for at in range(len(text)) for piece in (text[at : at + 1], b"")]
    assert asyncio.run(told(*apart)) == asyncio.run(told(text)) != []


def test_through_every_fault_each_status_is_in_the_log_and_each_reconnection_in_the_alerts(tmp_path: Path) -> None:
    async def body(server: MastodonServer) -> None:
        def whole(end: Recorder) -> bool:
            return len({one.post for one in end.events(PostObserved)}) >= 30

        keys = MemoryKeys()
        summary, end, waits = await pumped(source(server), tmp_path, NOW_MS, whole, keys)
        told = {one.post for one in end.events(PostObserved)}
        host = server.url.removeprefix("http://")
        assert told == {f"mastodon:{host}:{number(T0_MS + second * 1000)}" for second in range(30)}
        assert [one.reason for one in end.events(RecordRefused)] == ["bad-json"]
        assert {one.kind for one in end.events(AlertRaised)} == {"source-gap"}
        assert 17 in waits.asked
        assert summary.unaccounted == 0
        assert {one.post for one in end.events(PostDeleted)} == {f"mastodon:{host}:{number(T0_MS)}"}

    run(
        body,
        sends=[
            [updates(0), event("update", b"{broken")],
            [updates(5)[:-9]],
            [b":thump\n", updates(9)],
            [updates(29), event("delete", number(T0_MS).encode()), None],
        ],
        timeline=[status(T0_MS + second * 1000) for second in range(29)],
        refuse=[(429, {"Retry-After": "17"}, "")],
    )
