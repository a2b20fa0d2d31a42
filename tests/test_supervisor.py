"""The supervisor's own bookkeeping: what it started it knows, whatever the disk takes; who lives and moves is left."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from streams import places, supervisor
from streams.settings import Settings
from streams.supervisor import Deployment

SHORT_S = 5.0  # the limits of the watchdog here


def alive() -> set[int]:
    """Give the children of this process that have not ended."""
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("XINFLUENCER_KAFKA", "127.0.0.1:1")  # nobody is asked
    return Settings(data=tmp_path, cache=tmp_path)


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every child be a process that only sleeps."""
    program = tmp_path / "sleeper"
    program.write_text("#!/bin/sh\nexec sleep 120\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def in_a_deployment(settings: Settings, story: Callable[[Deployment, list[str]], Awaitable[None]]) -> None:
    """Tell a story of one deployment that measures nothing, and end it."""

    async def life() -> None:
        said: list[str] = []
        deployment = Deployment(settings, {}, said.append)
        for task in deployment._beside:
            task.cancel()
        try:
            await story(deployment, said)
        finally:
            await deployment.stop()

    before = alive()
    try:
        asyncio.run(life())
        assert alive() == before, "something was left behind"
    finally:
        for pid in alive() - before:
            os.kill(pid, signal.SIGKILL)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("sleeper")
@pytest.mark.parametrize("name", ["sink", "models"])
def test_on_a_full_disk_one_child_is_started_and_it_is_known(settings: Settings, name: str) -> None:
    run = places.run(settings)
    run.mkdir(parents=True)
    (run / "processes.tmp").symlink_to("/dev/full")
    before = alive()

    async def story(deployment: Deployment, said: list[str]) -> None:
        if name == "models":
            deployment._keep(name, deployment._run_zygote)
        else:
            await deployment.start(name)
        await until(lambda: bool(alive() - before))
        await asyncio.sleep(4 * supervisor.BACKOFF_S_MIN)
        assert alive() - before == {deployment.pids[name]}
        assert (said, deployment.restarts) == ([], {})

    in_a_deployment(settings, story)
    assert not (run / "processes.json").exists()


@pytest.mark.usefixtures("sleeper")
def test_who_runs_is_written_for_whoever_looks_from_outside(settings: Settings) -> None:
    """The control: the same on a disk with room."""

    async def story(deployment: Deployment, said: list[str]) -> None:
        await deployment.start("sink")
        await until((places.run(settings) / "processes.json").exists)
        assert json.loads((places.run(settings) / "processes.json").read_text()) == deployment.pids

    in_a_deployment(settings, story)


# ---- the watchdog ---------------------------------------------------------------------------------------------------

BEHIND = {"tweets/0": [5, 9, 9, 9]}  # applied to, handed out to, the client's position, the end


@pytest.mark.usefixtures("sleeper")
@pytest.mark.parametrize("how", ["touches", "is silent", "writes and is behind"])
def test_a_worker_that_can_only_touch_its_status_is_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """On a full disk a worker says that it lives, and no more; what it wrote before, of who is behind, is old."""
    monkeypatch.setattr(supervisor, "SILENT_S_MAX", SHORT_S)
    monkeypatch.setattr(supervisor, "STILL_S_MAX", SHORT_S)
    status = places.run(settings) / "worker-0.status.json"

    async def story(deployment: Deployment, said: list[str]) -> None:
        await deployment.start("worker")
        await until(lambda: "worker" in deployment.pids)
        told = {"time": time.time(), "pid": deployment.pids["worker"], "applied": 5, "partitions": BEHIND}
        status.write_text(json.dumps(told))
        if how == "touches":
            # What it wrote last is old.
            status.write_text(json.dumps({**told, "time": told["time"] - 600.0}))
        ends_s = time.monotonic() + (12.0 if how == "touches" else 40.0)
        while not said and time.monotonic() < ends_s:
            if how == "touches":
                os.utime(status)
            elif how == "writes and is behind":
                status.write_text(json.dumps({**told, "time": time.time()}))
            await asyncio.sleep(0.1)
        assert bool(said) is (how != "touches"), said
        if said:
            assert said[0] == "worker stands still; ending it"
            await until(lambda: len(said) > 1)
            assert said[1] == f"worker ended by signal 9; starting it again in {supervisor.FORGOTTEN_S:.1f} s"

    in_a_deployment(settings, story)


@pytest.mark.usefixtures("sleeper")
def test_control_a_worker_that_was_at_work_is_not_waited_for(settings: Settings) -> None:
    """Its group gives it back what it had, at once, and nobody need take it over meanwhile."""

    async def story(deployment: Deployment, said: list[str]) -> None:
        await deployment.start("worker")
        await until(lambda: "worker" in deployment.pids)
        os.kill(deployment.pids["worker"], signal.SIGKILL)
        await until(lambda: bool(said))
        assert said == [f"worker ended by signal 9; starting it again in {supervisor.BACKOFF_S_MIN:.1f} s"]

    in_a_deployment(settings, story)
