"""Asking: a question only reads, reaches nothing but tables, and its answer harms neither terminal nor spreadsheet."""

import asyncio
import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.posts import AuthorHidden
from streams import analytics as an
from streams import reports as module
from streams import tables as t
from streams.guard import QUERY_CHARS_MAX, QueryRefused, guarded
from streams.settings import Settings
from streams.sink import types_of
from streams.warehouse import WarehouseRefused, locked, server_of
from tests.small_world import fill, world
from tests.warehouses import opened, settings_in

HARM = ("=1+1", "+1", "-1", "@a", "\x1b[31mred\x1b[0m", "a\rb", "plain")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_in(tmp_path_factory.mktemp("asking"))
    table = t.TABLES[AuthorHidden]
    events = [AuthorHidden(owner=f"x:@{i}", source="x", reason=text) for i, text in enumerate(HARM)]
    record = {
        "id": [f"{i}" for i in range(len(HARM))], "topic": ["tweets"] * len(HARM), "partition": [0] * len(HARM),
        "offset": list(range(len(HARM))), "time_ms": [253_402_300_799_999] * len(HARM), "writer": ["t"] * len(HARM),
        "bytes": [1] * len(HARM),
    }  # fmt: skip
    with opened(settings) as found:
        found.migrate()
        for _ in range(2):  # a replay
            found.insert(table.name, {**record, **t.values(table, events)}, types_of(table))
    return settings


@pytest.fixture(scope="module")
def asker(house: Settings) -> Iterator[an.Asker]:
    with locked(house):
        found = an.Asker(house)
        yield found
        found.close()


ANSWERED = (
    "SELECT count() FROM author_hidden",
    "with 1 as one select one",
    "(SELECT 1)",
    "SHOW TABLES",
    "DESCRIBE post_observed;",
    "EXPLAIN SELECT 1",
    "EXISTS TABLE post_observed",
    "SELECT ';', 'INTO OUTFILE', 'file(1)' -- file('/etc/passwd')",
    "SELECT /* ; */ format('{} {}', 'a', 'b')",
    "SELECT number FROM numbers(3)",
    "SELECT settings, `index` FROM (SELECT 1 AS settings, 2 AS `index`)",
)
REFUSED = (
    "INSERT INTO author_hidden SELECT * FROM author_hidden",
    "DROP TABLE author_hidden",
    "ALTER TABLE author_hidden DELETE WHERE 1",
    "TRUNCATE TABLE author_hidden",
    "CREATE TABLE mine (a UInt8) ENGINE = Memory",
    "SYSTEM FLUSH LOGS",
    "KILL QUERY WHERE 1",
    "USE system",
    "SET readonly = 0",
    "SELECT 1; DROP TABLE author_hidden",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 0",
    "SELECT file('/etc/passwd')",
    "SELECT FILE ('/etc/passwd')",
    "SELECT file/**/('/etc/passwd')",
    "SELECT `file`('/etc/passwd')",
    "SELECT \"f\\x69le\"('/etc/passwd')",
    "SELECT * FROM file('/etc/passwd', 'LineAsString', 'line String')",
    "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
    "SELECT * FROM s3('http://127.0.0.1:1/a', 'CSV', 'a String')",
    "SELECT * FROM remote('127.0.0.1', 'system', 'one')",
    "SELECT * FROM executable('ls', 'CSV', 'a String')",
    "SELECT * FROM Python(settings)",
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT aiGenerate('x', 'y')",
    "SELECT 1 INTO OUTFILE '/tmp/x'",
    "SELECT 1 into /* */ outfile '/tmp/x'",
    "EXPLAIN AST SELECT 1 INTO OUTFILE '/tmp/x'",
    "SELECT 1 FORMAT JSON",
    "SELECT 'open",
    "SELECT $a$x$a$",
    "SELECT “x”",
    "SELECT no_such_column FROM author_hidden",
    "",
    "   -- nothing",
    "x" * (QUERY_CHARS_MAX + 1),
)


@pytest.mark.parametrize("query", ANSWERED)
def test_questions_are_answered(asker: an.Asker, query: str) -> None:
    assert asker.ask(query, {}, 10).rows or "EXISTS" not in query


@pytest.mark.parametrize("query", REFUSED)
def test_whatever_changes_or_reaches_out_is_refused_with_a_reason(asker: an.Asker, query: str) -> None:
    with pytest.raises(QueryRefused, match=r"\w"):
        asker.ask(query, {}, 10)
    assert asker.ask("SELECT count() FROM author_hidden", {}, 1).rows == [[len(HARM)]]


def test_control_without_the_guard_the_engine_alone_reads_a_file(asker: an.Asker, tmp_path: Path) -> None:
    """Negative control: the readonly mode of the engine has this gap, which is what the guard is for."""
    (tmp_path / "secret").write_text("canary")
    sql = f"SELECT file('{tmp_path / 'secret'}')"
    assert asker._client.query(sql).result_rows == [("canary",)]
    with pytest.raises(QueryRefused):
        asker.ask(sql, {}, 1)


def test_control_the_engine_itself_refuses_to_write_even_past_the_guard(asker: an.Asker) -> None:
    for sql in ("DROP TABLE author_hidden", "INSERT INTO author_hidden (id) VALUES ('x')", "SET readonly = 0"):
        with pytest.raises(Exception, match="READONLY"):
            asker._client.command(sql)


@given(st.text(max_size=40), st.sampled_from(["file('a')", "INTO OUTFILE 'a'", "; DROP TABLE a", "url('a')"]))
def test_no_string_or_comment_hides_what_is_refused(noise: str, harm: str) -> None:
    """Noise inside quotes changes nothing; noise that closes them makes it unreadable, or is refused all the same."""
    escaped = noise.replace("\\", "\\\\").replace("'", "\\'")
    with pytest.raises(QueryRefused):
        guarded(f"SELECT '{escaped}', 1 {harm}", ["url"])
    with pytest.raises(QueryRefused):
        guarded(f"SELECT 1 /* {noise.replace('*/', '')} */ {harm}", ["url"])


def test_a_long_answer_is_cut_and_says_so(asker: an.Asker) -> None:
    found = asker.ask("SELECT number FROM numbers(100000000)", {}, 5)
    assert [row[0] for row in found.rows] == [0, 1, 2, 3, 4]
    assert found.cut


def test_every_kind_of_value_becomes_json(asker: an.Asker) -> None:
    sql = (
        "SELECT nan, -inf, toDecimal64(1.5, 2), now64(3), today(), [1, NULL], map('a', 1.5), NULL, true, "
        "toUUID('00000000-0000-0000-0000-000000000001'), toIPv4('127.0.0.1'), unhex('ff'), "
        "18446744073709551615, (1, 'a')"
    )
    row = json.loads(json.dumps(asker.ask(sql, {}, 1).rows))[0]
    assert row[:3] == [None, None, "1.50"] or row[:3] == [None, None, "1.5"]
    assert row[5:9] == [[1, None], {"a": 1.5}, None, True]
    assert row[12] == 18446744073709551615


def test_a_moment_beyond_the_engine_s_calendar_is_shown_as_its_last(asker: an.Asker) -> None:
    found = asker.ask("SELECT toString(max(time)), max(time_ms) FROM author_hidden", {}, 1).rows
    assert found == [["2299-12-31 23:59:59.999", 253_402_300_799_999]]


# ---- what a person sees ---------------------------------------------------------------------------------------------


def printed(settings: Settings, query: str, form: str, capsys: Any) -> str:
    an.run_sql(settings, query, form)
    return str(capsys.readouterr().out)


@pytest.fixture
def free(house: Settings, asker: an.Asker, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Answers come from the open connection, as they would from a sink's."""

    def ask_sink(settings: Settings, query: str, rows_max: int, parameters: Any) -> an.Answer:
        return asker.ask(query, parameters, rows_max)

    monkeypatch.setattr(an, "_ask_sink", ask_sink)
    return house


def test_csv_runs_no_formula_and_no_terminal_obeys_it(free: Settings, capsys: Any) -> None:
    out = printed(free, "SELECT reason, -1 AS number FROM author_hidden ORDER BY offset", "csv", capsys)
    assert out.splitlines()[:5] == ["reason,number", "'=1+1,-1", "'+1,-1", "'-1,-1", "'@a,-1"]
    assert "\x1b" not in out
    assert "\r" not in out


def test_json_is_a_line_a_row_and_a_table_is_clean(free: Settings, capsys: Any) -> None:
    sql = "SELECT owner, reason FROM author_hidden ORDER BY offset"
    lines = [json.loads(line) for line in printed(free, sql, "json", capsys).splitlines()]
    assert [line["reason"] for line in lines] == list(HARM)
    assert "\x1b" not in printed(free, sql, "table", capsys)
    with pytest.raises(QueryRefused, match="--format"):
        an.run_sql(free, sql, "xml")


def test_the_socket_is_ours_alone_and_survives_nonsense(house: Settings, asker: an.Asker, tmp_path: Path) -> None:
    stopping, loop, ready = asyncio.Event(), asyncio.new_event_loop(), threading.Event()
    answering = an.Answering(house)
    answering._asker = asker
    task = threading.Thread(target=lambda: loop.run_until_complete(answering.serve(stopping)))
    task.start()
    path = an.socket_path(house)
    try:
        for _ in range(100):
            if path.exists():
                break
            ready.wait(0.05)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert an.ask(house, "SELECT 1 + {a:UInt8} AS two", a=1).rows == [[2]]
        with pytest.raises(QueryRefused, match="not allowed"):
            an.ask(house, "SELECT file('/etc/passwd')")
        for nonsense in (b"\n", b"{}\n", b"\xff\n", b'{"query": 1}\n', b"[]\n", b"x" * 100_000):
            with contextlib.closing(an.socket.socket(an.socket.AF_UNIX)) as link:
                link.connect(str(path))
                link.sendall(nonsense)
                link.shutdown(an.socket.SHUT_WR)
                reply = link.makefile("rb").readline()
                assert b"refused" in reply
        assert an.ask(house, "SELECT 2").rows == [[2]]
    finally:
        loop.call_soon_threadsafe(stopping.set)
        task.join(10)
    assert not path.exists()


def clients_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `wait_closed` wait until every client is gone, on any Python as from 3.12 on."""
    if sys.version_info < (3, 12):

        async def wait_closed(server: Any) -> None:
            while server._active_count:
                await asyncio.sleep(0.01)

        monkeypatch.setattr(asyncio.base_events.Server, "wait_closed", wait_closed)


@pytest.mark.parametrize("how", ["told to stop", "cancelled"])
def test_a_client_that_says_nothing_keeps_nobody_from_ending(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients_are_waited_for(monkeypatch)
    settings = settings_in(tmp_path)
    path = an.socket_path(settings)

    async def ends() -> bool:
        stopping = asyncio.Event()
        task = asyncio.create_task(an.Answering(settings).serve(stopping))
        while not path.exists():
            await asyncio.sleep(0.01)
        _, silent = await asyncio.open_unix_connection(path)
        await asyncio.sleep(0.05)
        if how == "cancelled":  # as when the other task of the sink fails
            task.cancel()
        stopping.set()
        done, _ = await asyncio.wait({task}, timeout=1.0)
        silent.close()
        return bool(done)

    assert asyncio.run(ends())
    assert not path.exists()


def test_a_path_too_long_for_a_socket_goes_to_a_folder_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    far = settings_in(tmp_path / ("x" * 120))
    path = an.socket_path(far)
    assert path.parent == tmp_path / f"xinfluencer-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WarehouseRefused, match="somebody else"):
        an._private(path.parent)


def test_without_a_database_the_sentence_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(an.NothingThere, match="xinfluencer up"):
        an.ask(settings_in(tmp_path), "SELECT 1")


# ---- a server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "env", "reason"),
    [
        ("ftp://a/b", {}, "http"),
        ("http://user:secret@a/b", {}, "_PASSWORD"),
        ("http://a:x/b", {}, "http"),
        ("http://a/b;c", {}, "letters"),
        ("http://db.example/b", {"XINFLUENCER_CLICKHOUSE_PASSWORD": "secret"}, "https"),
        (
            "https://a/b",
            {"XINFLUENCER_CLICKHOUSE_PASSWORD": "secret", "XINFLUENCER_CLICKHOUSE_PASSWORD_FILE": "f"},
            "only one",
        ),
        ("https://a/b", {"XINFLUENCER_CLICKHOUSE_PASSWORD_FILE": "/nowhere"}, "cannot be read"),
    ],
)
def test_a_server_s_address_is_checked_and_no_secret_is_said(url: str, env: dict[str, str], reason: str) -> None:
    with pytest.raises(WarehouseRefused, match=reason) as refused:
        server_of(settings_in(Path("x"), clickhouse=url), env)
    assert "secret" not in str(refused.value)


def test_a_server_s_password_comes_from_the_environment_and_is_never_printed(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    env = {"XINFLUENCER_CLICKHOUSE_USER": "sink", "XINFLUENCER_CLICKHOUSE_PASSWORD_FILE": str(tmp_path / "password")}
    server = server_of(settings_in(tmp_path, clickhouse="https://db.example/feed"), env)
    assert server is not None
    assert (server.host, server.port, server.database, server.user, server.password) == (
        "db.example",
        8443,
        "feed",
        "sink",
        "secret",
    )
    assert "secret" not in repr(server)
    assert server_of(settings_in(tmp_path), env) is None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """ClickHouse's HTTP as far as we speak it; not a real one (see tests/clickhouse_http.py)."""
    script = Path(__file__).with_name("clickhouse_http.py")
    folder = tmp_path_factory.mktemp("server")
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([sys.executable, script, folder / "chdb"], stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/feed"
    finally:
        process.kill()
        process.wait()


def test_a_server_over_http_is_filled_asked_and_kept_from_harm(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XINFLUENCER_CLICKHOUSE_USER", "sink")
    monkeypatch.setenv("XINFLUENCER_CLICKHOUSE_PASSWORD", "secret")
    settings = settings_in(tmp_path, clickhouse=server)
    with opened(settings) as house:
        assert house.remote
        fill(world(1, 60, 1_780_000_000_000, days=1), house)
        (posts,) = house.rows("SELECT count() FROM post_observed")
        assert house.migrate() == 0
        assert house.places()["tweets", 0][0] == "log"
    assert an.ask(settings, "SELECT count() FROM post_observed WHERE source = {s:String}", s="x").rows == [list(posts)]
    assert len(module.report(settings, "daily", 36_500, 1_790_000_000_000).rows) >= 1
    with pytest.raises(QueryRefused, match="readonly"):
        an.ask(settings, "SELECT 1 SETTINGS max_execution_time = 0")
    with pytest.raises(QueryRefused, match="not allowed"):
        an.ask(settings, "SELECT file('/etc/passwd')")
    monkeypatch.setenv("XINFLUENCER_CLICKHOUSE_PASSWORD", "canary")
    with pytest.raises(WarehouseRefused, match="Authentication failed") as refused:
        an.ask(settings, "SELECT 1")
    assert "canary" not in str(refused.value)
    assert not (tmp_path / "analytics").exists(), "a server needs no folder here"
