"""X's streams: the real source over real HTTP against a server that misbehaves."""

import asyncio
import json
import logging
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import x_stream
from streams.live import Arrival, RateLimited, SourceBroken, SourceRefused
from streams.settings import Settings
from streams.x_api import CONNECTIONS_WAIT_S, WINDOW_S, checked_url, token
from streams.x_stream import Splitter, compliance, every_compliance, filtered
from tests.x_server import TOKEN, line, now_ms, sends, serving, status
from tests.x_streaming import ENV, data, met, stream, take

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
    # The whole takes 1.2 s, and no gap in it comes near the second after which the source gives up.
    got, _ = met(sends(*(bytes([byte]) for byte in one[:6]), one[6:] + b"\n", then="end", gap_s=0.2))
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
    times = iter([opened - 5_000, opened])  # asked for, and open
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
