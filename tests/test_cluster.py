"""Cluster mode on one machine: three workers come and go, restarts one by one, a new version of a step.

Least rights on a secured broker are in test_access.py.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache as once
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents import reactions
from schemas.events import AlertRaised
from schemas.topics import partitions
from streams import doctor_folder
from streams.adopt import CannotAdopt, adopt, carried
from streams.commands import run_verify
from streams.doctor_check import Context
from streams.exits import EXIT_REFUSED
from streams.fold import Fold, Memory
from streams.graph_view import read_state
from streams.kafka import KafkaSettings
from streams.object_snapshots import SnapshotStore
from streams.sender import Sender
from streams.settings import Settings
from streams.settle import settled
from streams.snapshots import Bound, SnapshotFolder, state_hash
from streams.topology import stages
from streams.verify import ADOPTED, Verdict
from tests import harness
from tests.cluster_worker import next_stages
from tests.feeds import feed
from tests.harness import Workers, finish, judge, now_ms, settings_for, vault_of, write
from tests.proof import Say
from tests.s3_server import s3_env, s3_server

SEED = 17

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]


# ---- three workers --------------------------------------------------------------------------------------------------


class Fleet:
    """Workers of one group, by name; those that should run are started again when they end."""

    def __init__(self, settings: Settings, kafka: KafkaSettings, env: dict[str, str], *more: str) -> None:
        script = str(Path(__file__).with_name("cluster_worker.py"))
        path = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), **env}
        self.settings = settings
        self.workers = {
            name: Workers(settings, kafka, (sys.executable, script, name, *more), path) for name in ("0", "1", "2")
        }
        self.wanted: set[str] = set()

    def start(self, *names: str) -> None:
        for name in names:
            self.wanted.add(name)
            self.workers[name].start()

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        self.wanted.discard(name)
        self.workers[name].signal(number)

    def keep(self) -> None:
        for name in self.wanted:
            self.workers[name].keep()

    def owned(self) -> dict[str, int]:
        """Count the partitions that each running worker says it owns."""
        counts = {}
        for name in self.wanted:
            process = self.workers[name].process
            try:
                told = json.loads((self.settings.data / "run" / f"worker-{name}.status.json").read_text())
            except (OSError, ValueError):
                continue
            if process is not None and told["pid"] == process.pid:
                counts[name] = len(told["partitions"])
        return counts

    async def share(self, count: int) -> None:
        """Wait until so many workers own something, and all partitions are somebody's."""
        total = sum(partitions(stage.reads, self.settings.partitions) for stage in stages())
        async with asyncio.timeout(180):
            while len(owned := self.owned()) != count or not all(owned.values()) or sum(owned.values()) != total:
                self.keep()
                await asyncio.sleep(0.1)

    def log(self) -> str:
        return self.workers["0"].log()

    def kill(self) -> None:
        for one in self.workers.values():
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.wait(10)


@dataclass
class Lived:
    """What three workers on one log came through: how many were started or ended, under how much that was written."""

    settings: Settings
    kafka: KafkaSettings
    verdict: Verdict
    log: str
    joined: int = 0
    left: int = 0
    restarted: int = 0
    fed: int = 0  # records written while they came and went
    idle: int = 0  # comings and goings during which nothing was written


@pytest.fixture(scope="module")
def fleet(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Lived]]:
    """Give the run, made by the first test that asks, so that its time is in that test's row."""
    data = tmp_path_factory.mktemp("fleet")
    with s3_server("fleet") as options, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_env(options).items():
            patch.setenv(name, value)
        settings = settings_for(data, "fleet", partitions=3, snapshots="s3://fleet/snapshots")
        yield once(lambda: lived(settings, broker.settings))


def lived(settings: Settings, kafka: KafkaSettings) -> Lived:
    """Let one worker run, then three, restart each, end two; somebody writes all the time."""
    vault = vault_of(settings)
    chunks = (list(feed(SEED + number, 12, 3, vault, now_ms())) for number in count())
    fleet = Fleet(settings, kafka, {})
    found = Lived(settings, kafka, Verdict(), "")

    async def run() -> Verdict:
        sender = Sender(settings, kafka)
        full = asyncio.Event()

        async def load() -> None:
            while not full.is_set():
                chunk = next(chunks)
                await sender.send(chunk)
                found.fed += len(chunk)
                await asyncio.sleep(0.3)

        async def share(number: int) -> None:
            before = found.fed
            await fleet.share(number)
            found.idle += found.fed == before

        await write(settings, kafka, next(chunks))
        fleet.start("0")
        loading = asyncio.create_task(load())
        await share(1)
        fleet.start("1", "2")
        found.joined += 2
        await share(3)
        for name, number in (("0", signal.SIGTERM), ("1", signal.SIGKILL), ("2", signal.SIGTERM)):
            await asyncio.to_thread(fleet.end, name, number)
            fleet.start(name)
            found.restarted += 1
            await share(3)
        for name, number in (("0", signal.SIGKILL), ("2", signal.SIGTERM)):
            await asyncio.to_thread(fleet.end, name, number)
            found.left += 1
        await share(1)
        full.set()
        await loading
        await sender.stop()
        await finish(settings, kafka, fleet)  # type: ignore[arg-type]
        await asyncio.to_thread(fleet.end, "1")
        return await judge(settings, kafka)

    try:
        found.verdict = asyncio.run(run())
    finally:
        fleet.kill()
    found.log = fleet.log()
    return found


def test_one_worker_then_three_then_one_again_change_nothing(fleet: Callable[[], Lived], proof: Say) -> None:
    """C5."""
    proof("C5", "1 -> 3 -> 1 workers under load", 4, "joins and leaves", SEED)
    found = fleet()
    proof("C5", "1 -> 3 -> 1 workers under load", found.joined + found.left, "joins and leaves", SEED,
          f"{found.fed:,} records written meanwhile")  # fmt: skip
    assert found.verdict.faults == [], found.log[-3000:]
    assert found.verdict.visible["preferences"] > 0
    assert (found.joined, found.left, found.idle) == (2, 2, 0), "nothing was written while somebody came or went"


def test_workers_restarted_one_by_one_change_nothing(fleet: Callable[[], Lived], proof: Say) -> None:
    """The same run: one after the other, each waited for until all three own something again; one by kill -9."""
    found = fleet()
    proof("CLUSTER", "rolling restart of three workers under load, one by kill -9", found.restarted, "restarts", SEED,
          "in the run of C5")  # fmt: skip
    assert found.verdict.faults == [], found.log[-3000:]


def test_snapshots_in_an_object_store_serve_workers_and_whoever_looks(fleet: Callable[[], Lived], proof: Say) -> None:
    """The same run: every snapshot is in the store, equals a clean rebuild, and is what doctor and graph read."""
    found = fleet()
    kept = list(SnapshotStore(found.settings.snapshots).kept())
    proof("CLUSTER", "snapshots in an S3-compatible store equal a clean rebuild", len(kept), "partitions", SEED,
          "in the run of C5")  # fmt: skip
    assert not (found.settings.data / "snapshots").exists()
    assert found.verdict.faults == [], "the verdict holds each snapshot against a clean rebuild"
    read = ("metadata", "intake", "graph", "rewards", "pairing", "batching")  # the others had nothing to read here
    wanted = {f"{one.name}-{part}" for one in stages() if one.name in read for part in range(partitions(one.reads, 3))}
    assert {one.name for one in kept} == wanted
    seen = doctor_folder.check_snapshots(Context(found.settings))
    assert (seen.verdict, seen.seen.split(",")[0]) == ("ok", f"{len(kept)} partitions"), seen
    words: list[str] = []
    state = asyncio.run(read_state(found.settings, found.kafka, words.append))
    assert words == []
    assert found.verdict.states["graph", 0] == state_hash(Memory(state))
    store = SnapshotStore(found.settings.snapshots)
    (rotten,) = [path for path in store.files.ls(f"{store.root}/graph-0", detail=False) if "/snapshot-" in path][-1:]
    right = store.files.cat_file(rotten)
    store.files.pipe_file(rotten, right[:-1])
    try:  # the control: what lies in the store is what is looked at
        assert "graph-0 is torn" in doctor_folder.check_snapshots(Context(found.settings)).seen
    finally:
        store.files.pipe_file(rotten, right)


# ---- a new version of a step ----------------------------------------------------------------------------------------


def test_a_step_changes_its_version_on_a_drained_log_and_each_part_is_what_its_version_makes(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], proof: Say
) -> None:
    """Stop the inputs, get through, stop the workers, adopt, start the new ones; no other way is let through."""
    proof("CLUSTER", "a step changes its version: drained, adopted, killed at each write on the way", 4, "kills", SEED)
    kafka = broker.settings
    settings = settings_for(tmp_path, "next", partitions=2)
    vault = vault_of(settings)
    early = list(feed(SEED, 60, 2, vault, now_ms()))
    late = [*feed(SEED + 1, 60, 2, vault, now_ms()), *early[-60:]]  # some of it comes twice, over the change
    keeper = SnapshotFolder(tmp_path / "snapshots")
    table = next_stages(settings.tuning)
    (intake,) = [one for one in table if one.name == "intake"]
    group = settings.group("worker")
    old, new = Fleet(settings, kafka, {}), Fleet(settings, kafka, {}, "next")

    async def change() -> dict[int, int]:
        return await adopt(settings, kafka, keeper, intake, 1, vault, group)

    async def run() -> tuple[Verdict, Verdict]:
        await write(settings, kafka, early)
        old.start("0")
        await settled(settings, kafka)
        await asyncio.to_thread(old.end, "0")
        before = await judge(settings, kafka)
        await write(settings, kafka, late[:30])
        new.workers["0"].start()
        with pytest.raises(CannotAdopt, match=r"feedback/\d@\d+ waits: start version 1 again"):
            await change()
        assert await asyncio.to_thread(new.workers["0"].process.wait, 40) == EXIT_REFUSED  # type: ignore[union-attr]
        old.start("0")
        await settled(settings, kafka)
        await asyncio.to_thread(old.end, "0")
        for number in range(1, 5):
            with monkeypatch.context() as patch:
                patch.setattr(keeper, "write", dies_at_write(number, keeper.write))
                with pytest.raises(OSError, match="killed here"):
                    await change()
        offsets = await change()
        assert all(offsets.values())
        assert await change() == offsets  # again, and nothing more
        new.start("0")
        await write(settings, kafka, late[30:])
        await finish(settings, kafka, new)  # type: ignore[arg-type]
        await asyncio.to_thread(new.end, "0")
        return before, await judge(settings, kafka, table)

    try:
        before, after = asyncio.run(run())
    finally:
        old.kill()
        new.kill()
    assert before.faults == []
    assert after.faults == [], new.log()[-3000:]
    assert after.earlier["intake"] > 20
    alerts = asyncio.run(harness.said(settings, kafka, "alerts"))
    adopted = {one.id for one in alerts if isinstance(one.event, AlertRaised) and one.event.kind == ADOPTED}
    assert len(adopted) == 2, "each partition's is in the log, under one id however often it was said"

    monkeypatch.setenv("XINFLUENCER_KAFKA", kafka.bootstrap)
    monkeypatch.setattr("streams.topology.stages", next_stages)
    run_verify(settings)
    said = capsys.readouterr().out
    assert f"{after.earlier['intake']} outputs of intake are of earlier versions" in said
    assert "  0 faults" in said
    other = tuple(replace(one, step=stages()[3].step) if one.name == "intake" else one for one in table)
    faults = asyncio.run(judge(settings, kafka, other)).faults  # the control: version 2 with the step of version 1
    assert any("follows from no input" in fault or "is missing" in fault for fault in faults)


def dies_at_write(number: int, write: Any) -> Any:
    """Let so many writes pass, less one."""
    passed = iter(range(1, number))

    def dying(*given: Any) -> int:
        if next(passed, None) is None:
            raise OSError("killed here")
        return int(write(*given))

    return dying


class Grown(reactions.State):
    """A state with one field more, and a default for what was not known before."""

    loud: int = 0


class Broken(reactions.State, kw_only=True):
    """The same without a default."""

    loud: int


def test_a_state_may_grow_by_fields_with_a_default_and_not_otherwise(tmp_path: Path) -> None:
    keeper = SnapshotFolder(tmp_path)
    stage = stages()[1]
    fold = Fold(stage, 0, 1, vault_of(settings_for(tmp_path, "grown")))
    fold.memory.next = 9
    bound = Bound("reactions", 1, 0, "cluster/reactions", 1)
    keeper.write(fold, bound, keeper.claim(bound))
    later = msgspec.structs.replace(bound, version=2)

    def ended(state: type[reactions.State]) -> Any:
        newer = Fold(replace(stage, version=2, state=reactions.State, state_type=state), 0, 1, fold.keys)
        return carried(keeper, newer, later, 1)

    assert ended(Grown).next == 9
    assert ended(Grown).state.loud == 0
    with pytest.raises(CannotAdopt, match="give new fields a default"):
        ended(Broken)
