"""Following X: the real source, the real pump, a real broker and real processes, on a bad day; nothing is lost."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import SessionBroker

from schemas import envelope
from schemas.events import AlertRaised
from schemas.posts import PostObserved
from streams import follow as module
from streams import supervisor, x_stream
from streams.backoff import Backoff
from streams.cursors import Cursors
from streams.exits import EXIT_AGAIN, EXIT_REFUSED
from streams.firsts import Firsts
from streams.follow import follow, run_follow
from streams.ingest import Known, Summary
from streams.intents import Intents
from streams.kafka import KafkaSettings, ensure_topics
from streams.policy import Policy
from streams.reader import reader
from streams.sender import Sender
from streams.settings import Settings, SettingsRefused
from streams.supervisor import CannotRun, Deployment
from streams.topics import specs
from streams.x_stream import Request, filtered
from tests.harness import ROOT, settings_for
from tests.ingest_ends import MemoryKeys, Recorder
from tests.x_server import TOKEN, XServer, everything, line, now_ms, sends, serving, status

ENV = {"XINFLUENCER_X_TOKEN": TOKEN}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.01)


async def pump(settings: Settings, log: Any, until: Callable[[], bool], told: list[str]) -> Summary:
    """Follow the filtered stream until `until` holds."""
    stop = asyncio.Event()

    async def watch() -> None:
        async with asyncio.timeout(60):
            while not until():
                await asyncio.sleep(0.005)
        stop.set()

    watching = asyncio.create_task(watch())
    try:
        return await follow(
            filtered(settings, ENV, keep_alive_s=0.1), settings, log, MemoryKeys(), Policy.load(), now_ms, stop,
            told.append, cursors=Cursors(settings.data / "ingest", "log"), known=Known(Intents(), Firsts()),
            backoff=Backoff(random.Random(7), first_s=0.0),
        )  # fmt: skip
    finally:
        watching.cancel()
        (failed,) = await asyncio.gather(watching, return_exceptions=True)
        assert not isinstance(failed, TimeoutError), told


# ---- a second cut while older posts still flow in -------------------------------------------------------------------


async def cut_in_a_backfill(data: Path) -> set[str]:
    """Away for 100 s; killed after the first of six backfilled posts; begun again. What is in the log then."""
    log = Recorder()

    def texts() -> set[str]:
        return {one.content.text for one in log.events(PostObserved)}

    async with serving() as server:
        settings = Settings(data=data, x_url=server.url, x_backfill_minutes=5)
        then = now_ms() - 100_000
        Cursors(data / "ingest", "log").save("x-filtered", str(then), then, then)
        for number in range(6):
            server.post(number, then + 1_000 * (number + 1))
        server.script = [sends(server.feed[0][1] + b"\r\n", then="hang")]
        await pump(settings, log, lambda: bool(texts()), [])
        server.post(6)
        server.script = [everything]
        await pump(settings, log, lambda: {"post 6"} <= texts() or len(server.asked) > 3, [])
    return texts()


def test_a_kill_in_the_middle_of_a_backfill_loses_nothing(tmp_path: Path) -> None:
    assert asyncio.run(cut_in_a_backfill(tmp_path)) == {f"post {number}" for number in range(7)}


def test_the_test_catches_a_source_whose_cursor_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = x_stream.plan

    def wrong(*asked: Any) -> Request:
        request = right(*asked)
        return Request(request.params, request.until_ms, request.gap, catching_up=False)

    monkeypatch.setattr(x_stream, "plan", wrong)
    assert "post 1" not in asyncio.run(cut_in_a_backfill(tmp_path))


def test_without_backfill_every_reconnect_is_a_gap_in_alerts(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = Recorder()
        async with serving(script=[sends(line(1) + b"\r\n"), status(503), sends(line(2) + b"\r\n")]) as server:
            settings = Settings(data=tmp_path, x_url=server.url)
            await pump(settings, log, lambda: len(log.events(AlertRaised)) == 2, [])
        assert [one.kind for one in log.events(AlertRaised)] == ["source-gap"] * 2
        assert "X has no cursor" in log.events(AlertRaised)[0].detail

    asyncio.run(scenario())


# ---- a real server, a real broker -----------------------------------------------------------------------------------


async def in_log(settings: Settings, kafka: KafkaSettings, topic: str = "tweets") -> list[tuple[str, Any]]:
    """(ce_id, event) of every record of a topic."""
    found = []
    async with reader(settings, kafka) as log:
        for records in (await log.everything(topic)).values():
            for one in records:
                record = envelope.decode(topic, one.partition, one.offset, one.timestamp, one.headers, one.value)
                found.append((record.id, record.event))
    return found


def judge(sent: Iterable[bytes], found: list[tuple[str, Any]]) -> None:
    """Every post is in the log, and a reader who knows ids sees each once."""
    posts = [(name, event.post) for name, event in found if type(event) is PostObserved]
    wanted = {f"x:{json.loads(one)['data']['id']}" for one in sent}
    assert {post for _, post in posts} == wanted
    assert len({name for name, _ in posts}) == len(wanted)


def test_a_bad_day_at_x_loses_nothing_and_doubles_nothing_visible(tmp_path: Path, broker: SessionBroker) -> None:
    settings = settings_for(tmp_path, "follow-bad-day", x_backfill_minutes=5)
    posts = [line(number) for number in range(30)]
    bye = json.dumps({"errors": [{"title": "operational-disconnect", "disconnect_type": "Upstream"}]}).encode()

    async def scenario() -> None:
        async with serving() as server:
            for one in posts[:20]:
                server.put(one, now_ms())
            server.script = [
                status(503),
                sends(b"\r\n", posts[0] + b"\r\n" + posts[1][:50]),  # cut in the middle of a line
                status(429, None, retry_after="1"),
                sends(posts[0] + b"\r\n" + posts[1] + b"\r\n" + posts[2] + b"\r\n", posts[3] + b"\r\n" + bye + b"\r\n"),
                sends(*(posts[4][at : at + 40] for at in range(0, 400, 40)), b"", then="cut"),
                sends(b"\r\n", then="hang"),
            ]
            mine = settings.model_copy(update={"x_url": server.url})
            await ensure_topics(broker.settings, specs(settings))
            sender = Sender(settings, broker.settings)

            def through() -> bool:
                if not server.script and len(server.feed) == 20:
                    for one in posts[20:]:
                        server.put(one, now_ms())
                return told(mine)["taken"] >= 30

            summary = await pump(mine, sender, through, [])
            await sender.stop()
            assert summary.unaccounted == 0
            judge(posts, await in_log(settings, broker.settings))
            kept = Cursors(tmp_path / "ingest", "log").load("x-filtered")
            assert kept is not None
            assert abs(int(kept.cursor) - now_ms()) < 60_000
            assert told(mine)["reconnects"] >= 6
            assert told(mine)["gaps"] == 0

    asyncio.run(scenario())


CHILD = """
from streams import parking
from streams.follow import run_follow
from streams.settings import Settings
import sys
parking.PARKED_S_MIN = 0.3
run_follow(Settings.from_env(), sys.argv[1:])
"""


class Child:
    """A real process that follows."""

    def __init__(
        self, settings: Settings, kafka: KafkaSettings, *names: str, log: str = "follow.log", **env: str
    ) -> None:
        own = {"XINFLUENCER_KAFKA": kafka.bootstrap, "XINFLUENCER_X_TOKEN": TOKEN, **env}
        self.path = settings.data / log
        with open(self.path, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *names],
                cwd=ROOT,
                env={**os.environ, **settings.to_env(), **own},
                stderr=output,
            )

    async def ended(self, seconds: float = 90.0) -> int:
        return await asyncio.to_thread(self.process.wait, seconds)

    def log(self) -> str:
        return self.path.read_text()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


async def until(holds: Callable[[], bool], child: Child, seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            assert child.process.poll() is None, child.log()
            await asyncio.sleep(0.02)


def told(settings: Settings, stream: str = "x-filtered") -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((settings.data / "run" / f"follow-{stream}.status.json").read_text())
    except FileNotFoundError:
        return {"taken": 0, "pid": 0}
    return found


def figures(settings: Settings, stream: str = "x-filtered") -> str:
    return (settings.data / "run" / f"follow-{stream}.prom").read_text()


def on_its_way(settings: Settings, before: int) -> bool:
    return told(settings)["pid"] != before and told(settings)["taken"] > 20


def test_killed_in_the_middle_and_at_every_point_nothing_is_lost(tmp_path: Path, broker: SessionBroker) -> None:
    async def feed(server: XServer, sent: list[bytes]) -> None:
        while True:
            sent.append(server.post(len(sent)))
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with serving(keep_alive_s=0.2) as server:
            settings = settings_for(tmp_path, "follow-kill", x_url=server.url, x_backfill_minutes=5)
            await ensure_topics(broker.settings, specs(settings))
            sent: list[bytes] = []
            feeding: asyncio.Task[None] | None = None
            points = ("before-send", "after-send", "after-cursor")
            for crash in (*(f"{point}@{tmp_path / point}" for point in points), ""):
                with Child(settings, broker.settings, "x", XINFLUENCER_CRASH=crash) as child:
                    before = told(settings)["pid"]
                    if feeding is None:
                        async with asyncio.timeout(90):
                            while not server.asked:
                                await asyncio.sleep(0.02)
                        feeding = asyncio.create_task(feed(server, sent))
                    if crash:
                        assert await child.ended() == -signal.SIGKILL, child.log()
                        continue
                    await until(partial(on_its_way, settings, before), child)
                    child.process.kill()
                    await child.ended()
            with Child(settings, broker.settings, "x") as child:
                await until(partial(on_its_way, settings, told(settings)["pid"]), child)
                assert feeding is not None
                feeding.cancel()
                stopped_ms = now_ms()
                # No post is so young: a keep-alive moved it, and whatever was queued is through.
                await until(lambda: int(told(settings).get("cursor") or 0) > stopped_ms, child)
                child.process.send_signal(signal.SIGTERM)
                assert await child.ended(30) == 0, child.log()
            judge(sent, await in_log(settings, broker.settings))
            assert await in_log(settings, broker.settings, "alerts") == []
            assert TOKEN not in child.log()

    asyncio.run(scenario())


def test_one_source_that_is_refused_leaves_the_others_running_and_is_told_of(
    tmp_path: Path, broker: SessionBroker
) -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.always["/2/tweets/search/stream"] = status(403, {"title": "Client Forbidden"})
            settings = settings_for(tmp_path, "follow-refused", x_url=server.url)
            with Child(settings, broker.settings, "x", "x-compliance") as child:
                await until(lambda: told(settings, "x-compliance-users-4").get("connected") is True, child)
                await until(lambda: child.log().count("x-filtered is refused") > 2, child)  # it is tried again
                assert told(settings)["parked"] is True
                assert 'xinfluencer_source_parked{stream="x-filtered"} 1.0' in figures(settings)
                child.process.send_signal(signal.SIGTERM)
                assert await child.ended(30) == 0, child.log()
            (alert,) = [event for _, event in await in_log(settings, broker.settings, "alerts")]
            assert alert.kind == "source-refused"
            assert "403" in alert.detail

    asyncio.run(scenario())


def test_when_every_source_is_refused_the_process_ends_and_its_last_line_says_why(
    tmp_path: Path, broker: SessionBroker
) -> None:
    async def scenario() -> None:
        async with serving(token="another") as server:
            settings = settings_for(tmp_path, "follow-401", x_url=server.url)
            with Child(settings, broker.settings, "x") as child:
                assert await child.ended() == EXIT_REFUSED
                last = child.log().strip().splitlines()[-1]
                assert "does not take the token (401)" in last
                assert TOKEN not in child.log()

    asyncio.run(scenario())


def test_a_supervised_process_waits_for_a_new_token_and_goes_on_where_it_was(
    tmp_path: Path, broker: SessionBroker
) -> None:
    async def scenario() -> None:
        async with serving(token="new", keep_alive_s=0.2) as server:
            settings = settings_for(tmp_path, "follow-expired", x_url=server.url, x_backfill_minutes=5)
            file = tmp_path / "token"
            file.write_text("expired")
            env = {"XINFLUENCER_X_TOKEN": "", "XINFLUENCER_X_TOKEN_FILE": str(file), "XINFLUENCER_SUPERVISED": "1"}
            with Child(settings, broker.settings, "x", **env) as child:
                await until(lambda: told(settings).get("parked") is True, child)
                await until(lambda: len(server.asked) > 2, child)
                sent = [server.post(1)]
                file.write_text("new")
                await until(lambda: told(settings).get("connected") is True, child)
                sent.append(server.post(2))
                await until(lambda: told(settings)["taken"] > 0, child)
                assert told(settings)["parked"] is False
                assert 'xinfluencer_source_parked{stream="x-filtered"} 0.0' in figures(settings)
                child.process.send_signal(signal.SIGTERM)
                assert await child.ended(30) == 0, child.log()
            judge(sent[1:], await in_log(settings, broker.settings))
            alerts = [event for _, event in await in_log(settings, broker.settings, "alerts")]
            assert [one.kind for one in alerts] == ["source-refused"]  # once, however often it is tried
            assert "expired" not in child.log().replace("follow-expired", "")

    asyncio.run(scenario())


@pytest.mark.parametrize("supervised", [False, True])
def test_a_stream_that_another_process_follows_is_refused_in_a_sentence(
    tmp_path: Path, broker: SessionBroker, supervised: bool
) -> None:
    async def scenario() -> None:
        async with serving(keep_alive_s=0.2) as server:
            settings = settings_for(tmp_path, f"follow-twice-{supervised:d}", x_url=server.url)
            more = {"XINFLUENCER_SUPERVISED": "1"} if supervised else {}
            with Child(settings, broker.settings, "x") as first:
                await until(lambda: told(settings).get("connected") is True, first)
                with Child(settings, broker.settings, "x", log="second.log", **more) as second:
                    if not supervised:
                        assert await second.ended() == EXIT_REFUSED
                        assert f"is in use by process {first.process.pid}" in second.log().splitlines()[-1]
                        return
                    await until(lambda: "is in use by process" in second.log(), second)
                    assert told(settings)["pid"] == first.process.pid  # the status is of whoever follows
                    first.process.kill()  # it cannot say that it ends, and its lock goes with it
                    await until(lambda: told(settings)["pid"] == second.process.pid, second)
                    await until(lambda: told(settings).get("connected") is True, second)

    asyncio.run(scenario())


def test_an_expired_token_stops_nothing_else_of_a_deployment(
    tmp_path: Path, broker: SessionBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(token="another") as server:
            settings = settings_for(tmp_path, "follow-up", x_url=server.url, follow=("x",))
            monkeypatch.setenv("XINFLUENCER_KAFKA", broker.bootstrap)
            monkeypatch.setenv("XINFLUENCER_X_TOKEN", TOKEN)
            said: list[str] = []
            deployment = Deployment(settings, {}, said.append)
            await deployment.start("follow", "ticker")
            try:
                async with asyncio.timeout(90):
                    while not (said or deployment.failed.done()):
                        await asyncio.sleep(0.1)
                assert not deployment.failed.done()
                assert "x-filtered is parked, everything else goes on: X does not take the token (401)" in said[0]
                assert "follow" in deployment.pids
                await asyncio.sleep(2.5)
                assert len(said) == 1  # once
            finally:
                await deployment.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("parked", [True, False])
def test_a_process_of_feeds_that_refuses_to_run_is_tried_again_and_any_other_fails_the_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parked: bool
) -> None:
    """The control: the same end of a process that everything stands on."""

    async def scenario() -> None:
        monkeypatch.setenv("XINFLUENCER_KAFKA", "127.0.0.1:1")
        monkeypatch.setattr(supervisor, "PARKED_S", 0.05)
        said: list[str] = []
        runs: list[str] = []

        async def refuses() -> int:
            runs.append("run")
            return EXIT_REFUSED

        deployment = Deployment(settings_for(tmp_path, "parked"), {}, said.append)
        deployment._keep("follow" if parked else "sink", refuses)
        try:
            async with asyncio.timeout(10):
                while len(runs) < 3 and not deployment.failed.done():
                    await asyncio.sleep(0.02)
            assert deployment.failed.done() is not parked
            if parked:
                assert "follow refuses to run, everything else goes on: " in said[0]
                assert deployment.restarts == {}
            else:
                assert isinstance(deployment.failed.exception(), CannotRun)
        finally:
            await deployment.stop()

    asyncio.run(scenario())


def test_without_a_broker_the_process_asks_to_be_started_again(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "follow-nowhere")
    with Child(settings, KafkaSettings(bootstrap="127.0.0.1:1"), "x") as child:
        assert asyncio.run(child.ended(60)) == EXIT_AGAIN
        assert "stopping: " in child.log()


def test_a_name_that_is_no_source_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XINFLUENCER_KAFKA", "127.0.0.1:1")
    for names in (["y"], ["x", "../x"], []):
        with pytest.raises(SettingsRefused):
            run_follow(Settings(data=tmp_path), names)
