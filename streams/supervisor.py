"""Supervisor: the processes of one machine, kept alive from outside.

Every process of ours may die at any moment and is started again with a back-off; nothing inside them tries to recover.
A watchdog ends a worker that is alive but stands still: its own status says that records wait and none are applied.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from schemas.topics import partitions
from streams import alerting, healthy, places, records
from streams import broker as embedded
from streams.exits import EXIT_REFUSED
from streams.kafka import SESSION_S, KafkaSettings, ensure_topics
from streams.sender import Sender
from streams.settings import Settings
from streams.topics import specs
from streams.topology import TICKED, stages

log = logging.getLogger("xinfluencer.supervisor")

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 10.0
FORGOTTEN_S = SESSION_S + 1.0  # until a group knows nothing more of a member that is gone
HEALTHY_S = 20.0  # after this long alive, the next back-off starts from the beginning
STOP_S_MAX = 10.0
STILL_S_MAX = 45.0  # records wait and none is applied for so long: end it
APART = ("graph",)  # agents that may block for seconds, so they have a process of their own
FORKED = ("trainer", "server", "embedder")  # they need torch
START_S_MAX = 20.0  # a start takes 3 s, and several times that on a busy machine
SILENT_S_MAX = 30.0  # no status for so long: end it
PARKED = ("follow",)  # a feed that is refused stops nothing else
PARKED_S = 600.0  # so seldom that it is no restart worth an alert


class PortTaken(Exception):
    """Something else listens where the server would."""


class CannotRun(Exception):
    """A process refuses to run; a person must act. The message says what it said last."""


@dataclass
class Deployment:
    """What runs on this machine: the broker (unless a cluster is configured), the worker, the trainer, the server."""

    settings: Settings
    env: dict[str, str] = field(default_factory=dict)  # for children, beside the settings
    tell: Callable[[str], None] = print
    pids: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stopping = False
        self._stood_still: set[str] = set()  # and was ended for it
        self._tasks: list[asyncio.Task[None]] = []
        measuring = alerting.measure_for_ever(self.settings, lambda: {**dict.fromkeys(self.pids, 0), **self.restarts})
        # Beside it the clock and the watchdog: they need the broker, so they end first.
        self._beside: list[asyncio.Task[None]] = [asyncio.create_task(measuring)]
        self._zygote: asyncio.subprocess.Process | None = None
        self._forked: dict[str, asyncio.Future[int]] = {}
        self._prepared: embedded.Prepared | None = None
        self._broker_up = asyncio.Event()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def child_env(self) -> dict[str, str]:
        """The environment that children get: ours, the settings, the broker's address, no telemetry."""
        return {
            **os.environ,
            **self.settings.to_env(),
            "XINFLUENCER_KAFKA": self.kafka.bootstrap,
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1" if self.settings.base == "smollm2" else "0"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            "XINFLUENCER_SUPERVISED": "1",
            **self.env,
        }

    @property
    def kafka(self) -> KafkaSettings:
        """The cluster: the one configured, or ours."""
        if self._prepared is not None:
            return KafkaSettings(bootstrap=self._prepared.bootstrap)
        return self.settings.kafka()

    async def start_broker(self, progress: Callable[[int, int, str], None]) -> None:
        """Start the embedded broker if no cluster is configured, and keep it running."""
        if os.environ.get("XINFLUENCER_KAFKA"):
            return
        self._prepared = await asyncio.to_thread(
            embedded.prepare, self.settings.data / "broker", self.settings.cache, progress
        )
        self._keep("broker", self._run_broker)
        await self._first(self._broker_up.wait())

    async def start(self, *names: str) -> None:
        """Start and keep `worker`, the agents of APART, `ticker`, what the zygote forks, and any other command."""
        if set(FORKED) & set(names):
            self._keep("models", self._run_zygote)
        for name in names:
            if name == "worker" or name in APART:
                instance = "0" if name == "worker" else name
                agents = _agents(name, names)
                self._keep(name, partial(self._run_child, name, ["worker", *agents, "--instance", instance]))
                status = places.run(self.settings) / f"worker-{instance}.status.json"
                self._beside.append(asyncio.create_task(self._watch(name, status)))
            elif name == "ticker":
                self._beside.append(asyncio.create_task(tick_for_ever(self.settings, self.kafka)))
            elif name in FORKED:
                self._keep(name, partial(self._run_forked, name))
            else:
                self._keep(name, partial(self._run_child, name, [name]))
                if name in PARKED:
                    self._beside.append(asyncio.create_task(self._watch_parked(name)))

    async def stop(self) -> None:
        """End everything, the broker last."""
        self._stopping = True
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        last = ("models", "broker")
        await asyncio.gather(*(self._end(name) for name in list(self.pids) if name not in last))
        for name in last:
            await self._end(name)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def _keep(self, name: str, run: Callable[[], Awaitable[int]]) -> None:
        self._tasks.append(asyncio.create_task(self._keep_running(name, run)))

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[int]]) -> None:
        backoff = BACKOFF_S_MIN
        while not self._stopping:
            began = time.monotonic()
            try:
                code = await run()
            except Exception as error:  # noqa: BLE001 - a supervisor outlives what it supervises
                log.warning("%s could not be started: %r", name, error)
                code = 1
            self.pids.pop(name, None)
            if self._stopping:
                return
            if code == EXIT_REFUSED and name in PARKED:
                self.tell(f"{name} refuses to run, everything else goes on: {self._last_line(name)}")
                await asyncio.sleep(PARKED_S)
                continue
            if code == EXIT_REFUSED:
                self._fail(f"{name} refuses to run: {self._last_line(name)}")
                return
            if time.monotonic() - began > HEALTHY_S:
                backoff = BACKOFF_S_MIN
            self.restarts[name] = self.restarts.get(name, 0) + 1
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            # What it stood still with may be what its group gave it, and would give it again.
            pause_s = max(backoff, FORGOTTEN_S if name in self._stood_still else 0.0)
            self._stood_still.discard(name)
            self.tell(f"{name} ended {how}; starting it again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)
            backoff = min(BACKOFF_S_MAX, backoff * 2)

    def _started(self, name: str, pid: int) -> None:
        """Remember a process, also in run/processes.json for whoever looks from outside."""
        self.pids[name] = pid
        folder = places.run(self.settings)
        temporary = folder / "processes.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps(self.pids))
            temporary.replace(folder / "processes.json")
        except OSError as error:  # a full disk: it runs all the same, and another one beside it must not be started
            log.warning("who runs could not be written: %s", error)

    def _fail(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(CannotRun(reason))

    async def _first(self, waiting: Awaitable[object]) -> None:
        """Wait for something, or for the deployment to fail."""
        task = asyncio.ensure_future(waiting)
        both: set[asyncio.Future[Any]] = {task, self.failed}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            task.cancel()
            self.failed.result()

    def _last_line(self, name: str) -> str:
        try:
            lines = (places.logs(self.settings) / f"{name}.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return "it left no log"
        return lines[-1][-400:] if lines else "it said nothing"

    async def _end(self, name: str) -> None:
        pid = self.pids.get(name)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S_MAX
        while self.pids.get(name) == pid and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self.pids.get(name) == pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # ---- the processes ----------------------------------------------------------------------------------------------

    async def _run_broker(self) -> int:
        assert self._prepared is not None
        process = embedded.start(self._prepared)
        self._started("broker", process.pid)
        try:
            await asyncio.to_thread(embedded.wait_ready, self._prepared, process)
        except Exception as error:  # noqa: BLE001 - whatever kept it from serving, it is ended and started again
            await asyncio.to_thread(embedded.stop, process)
            if not self._broker_up.is_set() and self.restarts.get("broker", 0) >= 2:
                self._fail(f"the broker does not start: {error}")
            return 1
        self._broker_up.set()
        return await asyncio.to_thread(process.wait)

    async def _run_child(self, name: str, arguments: list[str]) -> int:
        command = [sys.executable, "-m", "streams.cli", *arguments]
        folder = places.logs(self.settings)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / f"{name}.log", "ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command, env=self.child_env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._started(name, process.pid)
        return await process.wait()

    async def _run_zygote(self) -> int:
        folder = places.logs(self.settings)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / "models.log", "ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "streams.cli",
                "zygote",
                env=self.child_env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._started("models", process.pid)
        assert process.stdout is not None
        async for line in process.stdout:
            self._heard(process, json.loads(line))
        self._zygote = None
        code = await process.wait()
        for ended in self._forked.values():
            if not ended.done():
                ended.set_result(-signal.SIGKILL)
        return code

    def _heard(self, process: asyncio.subprocess.Process, said: Mapping[str, object]) -> None:
        name = str(said.get("name"))
        if said["event"] == "ready":
            self._zygote = process
        elif said["event"] == "started":
            self._started(name, int(str(said["pid"])))
        elif said["event"] == "exited" and not self._forked[name].done():
            self._forked[name].set_result(int(str(said["code"])))

    async def _run_forked(self, name: str) -> int:
        while self._zygote is None:
            await asyncio.sleep(0.1)
        assert self._zygote.stdin is not None
        ended = self._forked[name] = asyncio.get_running_loop().create_future()
        self._zygote.stdin.write(json.dumps({"start": name}).encode() + b"\n")
        return await ended

    # ---- time and watching ------------------------------------------------------------------------------------------

    async def _watch(self, name: str, status: Path) -> None:
        moved, applied = time.monotonic(), -1
        begun, known = time.monotonic(), None
        while not self._stopping:
            await asyncio.sleep(1.0)
            pid = self.pids.get(name)
            if pid != known:
                begun, known = time.monotonic(), pid
            try:
                told = healthy.read(status)
            except (OSError, ValueError, KeyError, TypeError):
                told = {}
            places = told.get("partitions", {}).values()
            behind = any(at < handed or position < end for at, handed, position, end in places)
            if pid is None or told.get("pid") != pid or told.get("applied") != applied or not behind:
                moved, applied = time.monotonic(), told.get("applied", -1)
            # One that never says a word hangs in its start: aiokafka may, if the broker dies while a group is joined.
            silent = time.time() - told["time"] if told.get("pid") == pid else time.monotonic() - begun - START_S_MAX
            if pid is not None and (time.monotonic() - moved > STILL_S_MAX or silent > SILENT_S_MAX):
                begun = moved = time.monotonic()
                self.tell(f"{name} stands still; ending it")
                self._stood_still.add(name)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def _watch_parked(self, name: str) -> None:
        """Say which live streams wait for a person, and why, and which go on again."""
        said: dict[str, str] = {}
        while not self._stopping:
            await asyncio.sleep(1.0)
            for path in places.run(self.settings).glob(f"{name}-*.status.json"):
                try:
                    told = json.loads(path.read_text())
                    pid, stream, why = told["pid"], told["stream"], told["last_error"]
                    parked, connected = told["parked"], told["connected"]
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # of before, or being replaced
                if pid == self.pids.get(name) and parked and said.get(stream) != why:
                    said[stream] = why
                    self.tell(f"{stream} is parked, everything else goes on: {why}")
                elif pid == self.pids.get(name) and connected and said.pop(stream, ""):
                    self.tell(f"{stream} is followed again")


async def tick_for_ever(settings: Settings, kafka: KafkaSettings) -> None:
    """Write log time into the topics whose agents wait for an age, until cancelled."""
    sender = Sender(settings, kafka)
    there = False
    try:
        while True:
            try:
                if not there:
                    await ensure_topics(kafka, specs(settings))
                    there = True
                await sender.send(ticks(settings, int(time.time() * 1000)))
                healthy.tell(places.run(settings), "ticker")
            except Exception as error:  # noqa: BLE001 - the next tick makes up for this one
                log.warning("no tick: %r", error)
                await sender.stop()
            await asyncio.sleep(settings.tick_s)
    finally:
        await sender.stop()


def _agents(name: str, names: Sequence[str]) -> list[str]:
    """Give the agents that a worker runs beside those of APART: none named means all."""
    apart = [one for one in APART if one in names]
    if name in apart:
        return [name]
    return [stage.name for stage in stages() if stage.name not in apart] if apart else []


def require_port(settings: Settings) -> None:
    """Raise PortTaken, before anything starts, if the server could not listen; port 0 always can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise PortTaken(
                f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}): stop what listens there, "
                "or set XINFLUENCER_PORT to another port (0 picks a free one)"
            ) from None


def ticks(settings: Settings, at_ms: int) -> list[records.Sent]:
    """Make one tick for each partition of the topics that need log time."""
    return [
        records.tick(topic, partition, at_ms)
        for topic in TICKED
        for partition in range(partitions(topic, settings.partitions))
    ]


@contextlib.asynccontextmanager
async def deployment(settings: Settings, env: dict[str, str], tell: Callable[[str], None]) -> AsyncIterator[Deployment]:
    """Hold the folder's lock, run what is started, end everything on the way out."""
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with embedded.FolderLock(settings.data):
        settings.keep()
        running = Deployment(settings, env, tell)
        try:
            yield running
        finally:
            await running.stop()
