"""Doctor: each thing is broken on purpose, and its line must say so; on a healthy deployment no line may."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from safetensors.numpy import save_file

from models import adapters
from schemas.events import AlertRaised, AuthorForgotten, RecordRefused
from schemas.facts import Where
from schemas.learned import ReleasePointed
from schemas.posts import PostObserved
from streams import doctor, doctor_folder, doctor_log, doctor_machine
from streams.cursors import Cursors
from streams.doctor import answering, examine, run_doctor
from streams.doctor_check import Check, Context
from streams.fold import Fold
from streams.java import JavaMissing
from streams.kafka import ensure_topics
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.snapshots import Bound, SnapshotFolder
from streams.topics import specs
from streams.topology import stages
from streams.trouble import ATTEMPTS_MAX, Trouble
from streams.vault import Vault
from tests.feeds import feed
from tests.harness import Workers, ended, finish, settings_for, write
from tests.logfolder import CLUSTER, stopped

ZERO = "0" * 64
Broken = Callable[[Settings], Context]


def named(name: str) -> doctor.Look:
    return next(one for one in (*doctor.HERE, *doctor.ASKED) if doctor.name_of(one) == name)


def only(check: doctor.Look, context: Context) -> Check:
    """Run one check as the doctor does."""
    return asyncio.run(doctor._one(check, context))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def adapter(store: Path) -> str:
    """Publish a LoRA of one layer."""

    def save(folder: Path) -> None:
        name = "base_model.model.layers.0.q_proj.lora_{}.weight"
        two = {name.format("A"): np.ones((2, 4), np.float32), name.format("B"): np.ones((4, 2), np.float32)}
        save_file(two, folder / adapters.WEIGHTS)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / adapters.CONFIG).write_text(json.dumps(config))

    store.mkdir(parents=True, exist_ok=True)
    return adapters.write(store, save, {"base_model": "none"})


def snapshot(settings: Settings, log: str = CLUSTER, width: int | None = None) -> Path:
    stage = next(one for one in stages() if one.name == "rewards")
    folder = SnapshotFolder(settings.data / "snapshots")
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    fold = Fold(stage, 0, settings.partitions, vault)
    vault.close()
    bound = Bound("rewards", stage.version, 0, f"{log}/signals/id", width or settings.partitions)
    claim = folder.claim(bound)
    for _ in range(2):
        folder.write(fold, bound, claim)
    return settings.data / "snapshots" / "rewards-0" / "snapshot"


def cursor(settings: Settings, log: str = CLUSTER) -> Path:
    Cursors(settings.data / "ingest", f"{log}/tweets/id").save("bluesky", "17", 1_000, 2_000)
    return settings.data / "ingest" / "bluesky" / "cursor"


def status(settings: Settings, name: str, **what: Any) -> None:
    told = {"time": time.time(), "pid": os.getpid(), **what}
    (settings.data / "run").mkdir(exist_ok=True)
    (settings.data / "run" / f"{name}.status.json").write_text(json.dumps(told))


@pytest.fixture
def whole(tmp_path: Path, cache: Path) -> Settings:
    """A small deployment that is stopped, and healthy."""
    settings = stopped(tmp_path / "data")
    shutil.rmtree(settings.data / "models")
    shutil.rmtree(settings.data / "snapshots")
    for path in (settings.data / "run").iterdir():
        path.unlink()
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file({"weight": np.ones((2, 2), np.float32)}, base / "model.safetensors")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kafka-4.1.0").symlink_to(cache / "kafka-4.1.0")
    settings = settings.model_copy(update={"base": str(base), "port": 0, "cache": tmp_path / "cache"})
    snapshot(settings)
    cursor(settings)
    adapter(settings.data / "models" / "adapters")
    return settings


def context_of(settings: Settings, **more: Any) -> Context:
    return Context(settings, env={"PATH": os.environ["PATH"]}, **more)


def test_a_healthy_deployment_that_is_stopped_has_nothing_wrong_and_nothing_is_changed(whole: Settings) -> None:
    def tree() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.data.rglob("*") if path.is_file()}

    before = tree()
    found = asyncio.run(examine(context_of(whole)))
    assert tree().items() >= before.items()
    assert {path.name for path in tree().keys() - before.keys()} <= {"keys.sqlite-wal", "keys.sqlite-shm"}
    assert [one for one in found if one.verdict == "wrong"] == []
    here = {doctor.name_of(one) for one in doctor.HERE}
    # This machine may have other packages than are pinned, no compiler, or little memory; the broker does not run.
    own = {"versions", "instructions", "memory", "disk", "broker"}
    assert [one for one in found if one.verdict == "look" and one.name in here - own] == []
    assert all(one.mend for one in found if one.verdict != "ok")
    assert not any(one.mend for one in found if one.verdict == "ok")


# ---- one thing wrong each -------------------------------------------------------------------------------------------


def old_versions(settings: Settings) -> Context:
    return context_of(settings, version_of=lambda name: "0.0.1")


def no_package(settings: Settings) -> Context:
    def version_of(name: str) -> str:
        if name == "faust-streaming":
            raise PackageNotFoundError(name)
        return "9999"

    return context_of(settings, version_of=version_of)


def little_disk(settings: Settings) -> Context:
    return context_of(settings, free_bytes=lambda path: 900_000_000)


def less_disk(settings: Settings) -> Context:
    return context_of(settings, free_bytes=lambda path: 2_000_000_000)


def clock_back(settings: Settings) -> Context:
    return context_of(settings, now_ms=lambda: int(time.time() * 1000) - 3_600_000)


def changed(path: str, do: Callable[[Path], object]) -> Broken:
    """Break a file, or the first of a pattern."""

    def broken(settings: Settings) -> Context:
        do(next(settings.data.parent.glob(path)))
        return context_of(settings)

    return broken


def with_settings(**update: Any) -> Broken:
    return lambda settings: context_of(settings.model_copy(update=update))


def rotten_vault(path: Path) -> None:
    vault = Vault(path)
    vault.make_all([f"x:@{n}" for n in range(300)])
    vault.close()
    data = bytearray(path.read_bytes())
    data[4096 + 100 : 4096 + 4000] = bytes(3900)
    path.write_bytes(data)


def rotten_base(settings: Settings) -> Context:
    context = context_of(settings)
    assert only(doctor_machine.check_base, context).verdict == "ok"  # hashed, and remembered
    flip(Path(settings.base) / "model.safetensors")
    return context


def own_jars(count: int, rotten: bool) -> Broken:
    """A cache with only so many jars, one of them changed."""

    def broken(settings: Settings) -> Context:
        kept = settings.cache / "kafka-4.1.0"
        found = sorted(kept.resolve().iterdir(), key=lambda path: path.stat().st_size)
        jars = [path for path in found if path.suffix == ".jar"][:count]
        kept.unlink()
        kept.mkdir()
        for path in jars:
            shutil.copy(path, kept / path.name)
        if rotten:
            flip(kept / jars[0].name)
        return context_of(settings)

    return broken


def torn(both: bool) -> Broken:
    def broken(settings: Settings) -> Context:
        path = settings.data / "snapshots" / "rewards-0" / "snapshot"
        flip(path)
        if both:
            flip(path.with_name("snapshot.previous"))
        return context_of(settings)

    return broken


def foreign_snapshot(settings: Settings) -> Context:
    shutil.rmtree(settings.data / "snapshots")
    snapshot(settings, log="BBBB")
    return context_of(settings)


def narrow_snapshot(settings: Settings) -> Context:
    shutil.rmtree(settings.data / "snapshots")
    snapshot(settings, width=9)
    return context_of(settings)


def stale_snapshot(settings: Settings) -> Context:
    status(settings, "worker-0", partitions={"signals/0": [500, 500, 500, 500]})
    for path in (settings.data / "snapshots" / "rewards-0").glob("snapshot*"):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    return context_of(settings)


def foreign_cursor(settings: Settings) -> Context:
    cursor(settings, log="BBBB")
    return context_of(settings)


def cut_source(settings: Settings) -> Context:
    status(settings, "follow-bluesky", connected=False, lag_ms=1_000, last_error="the token is wrong")
    return context_of(settings)


def late_source(settings: Settings) -> Context:
    status(settings, "follow-bluesky", connected=True, lag_ms=3_600_000)
    return context_of(settings)


def failed_step(settings: Settings) -> Context:
    for _ in range(ATTEMPTS_MAX):
        Trouble(settings.data / "run").failed(settings.physical("tweets"), 0, 10, 20)
    return context_of(settings)


def silent(settings: Settings) -> Context:
    # pytest's own process: alive, and older than a minute-old word of its would be only if it is; the parent is.
    status(settings, "sink", pid=1, time=time.time() - 60)
    return context_of(settings)


def unreadable_status(settings: Settings) -> Context:
    (settings.data / "run" / "sink.status.json").write_text("{")
    return context_of(settings)


@pytest.mark.parametrize(
    ("name", "broken", "verdict", "words"),
    [
        ("versions", old_versions, "wrong", "faust-streaming 0.0.1 is not ==0.15.3"),
        ("versions", no_package, "wrong", "faust-streaming is missing"),
        ("jars", own_jars(3, rotten=True), "wrong", "not the pinned bytes"),
        ("jars", own_jars(3, rotten=False), "look", "43 of 46 jars are not in"),
        ("base", rotten_base, "wrong", "has changed since it was hashed"),
        ("base", with_settings(base="somebody/model"), "look", "hub"),
        ("adapters", changed("data/models/adapters/[0-9a-f]*/*.safetensors", flip), "wrong", "hash"),
        ("adapters", changed("data/models/adapters/[0-9a-f]*/README.md", Path.unlink), "wrong", "other files"),
        ("encoder", with_settings(encoder="mine"), "look", "your own"),
        ("policy", with_settings(policy=Path("/none")), "wrong", "cannot be read"),
        ("disk", little_disk, "wrong", "0.9 GB free for data"),
        ("disk", less_disk, "look", "2.0 GB free for cache"),
        ("ports", with_settings(host="0.0.0.0"), "look", "0.0.0.0"),
        ("file modes", changed("data/vault/keys.sqlite", lambda path: path.chmod(0o644)), "wrong", "is 0644"),
        ("file modes", changed("data/vault", lambda path: path.chmod(0o711)), "wrong", "is 0711"),
        ("file modes", changed("data", lambda path: path.chmod(0o755)), "look", "is 0755"),
        ("vault", changed("data/vault/keys.sqlite", rotten_vault), "wrong", "keys.sqlite"),
        ("snapshots", torn(both=False), "look", "the one before it is whole"),
        ("snapshots", torn(both=True), "wrong", "rewards-0 is torn"),
        ("snapshots", foreign_snapshot, "wrong", "belongs to the log BBBB"),
        ("snapshots", narrow_snapshot, "wrong", "9 partitions"),
        ("snapshots", stale_snapshot, "look", "500 records behind its worker"),
        ("troubles", failed_step, "look", "tweets/0 10..20: a step failed 3 times, then set aside"),
        ("processes", silent, "wrong", "sink (process 1) has said nothing for 60"),
        ("processes", unreadable_status, "wrong", "the status of sink cannot be read"),
        ("sources", changed("data/ingest/bluesky/cursor", flip), "wrong", "damaged"),
        ("sources", foreign_cursor, "wrong", "another log"),
        ("sources", cut_source, "look", "not connected, 1.0 s behind (the token is wrong)"),
        ("sources", late_source, "look", "60 min behind"),
        ("clock", clock_back, "wrong", "60 min in the future"),
        ("broker", changed("data/broker", shutil.rmtree), "look", "there is no log"),
        ("broker", context_of, "look", "does not run"),
    ],
)
def test_what_is_broken_is_named(whole: Settings, name: str, broken: Broken, verdict: str, words: str) -> None:
    found = only(named(name), broken(whole))
    assert (found.name, found.verdict) == (name, verdict), found
    assert words in found.seen
    assert found.mend


@pytest.mark.parametrize(
    ("limit", "check", "verdict"),
    [
        ("MEMORY_BYTES_LOOK", doctor_machine.check_memory, "look"),
        ("OPEN_FILES_MIN", doctor_machine.check_open_files, "wrong"),
    ],
)
def test_a_machine_that_is_too_small_is_named(
    whole: Settings, monkeypatch: pytest.MonkeyPatch, limit: str, check: doctor.Look, verdict: str
) -> None:
    assert only(check, context_of(whole)).verdict == "ok"
    monkeypatch.setattr(doctor_machine, limit, 1 << 60)
    assert only(check, context_of(whole)).verdict == verdict


def test_files_of_the_encoder_that_are_not_the_pinned_ones_are_named(
    whole: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "package" / "model"
    fake.mkdir(parents=True)
    (fake / "config.json").write_text("{}")
    spec = type("Spec", (), {"origin": str(fake.parent / "__init__.py")})
    monkeypatch.setattr(doctor_machine, "find_spec", lambda name: spec)
    found = only(doctor_machine.check_encoder, context_of(whole))
    assert found.verdict == "wrong"
    assert "not the file that is pinned" in found.seen


def test_a_missing_java_is_named_and_no_cluster_needs_one(whole: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(env: object) -> Path:
        raise JavaMissing("Kafka needs Java 17 or later, but no Java was found")

    monkeypatch.setattr(doctor_machine, "find_java", missing)
    found = only(doctor_machine.check_java, context_of(whole))
    assert (found.verdict, "no Java was found" in found.seen) == ("wrong", True)
    assert only(doctor_machine.check_java, Context(whole, env={"XINFLUENCER_KAFKA": "x:1"})).verdict == "ok"


def test_numpy_in_place_of_the_extension_is_named(whole: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("native.BACKEND", "reference")
    assert only(doctor_machine.check_instructions, context_of(whole)).verdict == "look"


def test_a_port_that_somebody_else_holds_is_wrong_and_one_of_ours_is_not(whole: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = whole.model_copy(update={"port": taken.getsockname()[1]})
        found = only(doctor_machine.check_ports, context_of(settings))
        assert (found.verdict, "cannot be listened on" in found.seen) == ("wrong", True)
        status(settings, "server")  # this process says that it is the server
        assert only(doctor_machine.check_ports, context_of(settings)).verdict == "ok"


def test_a_process_of_ours_that_other_machines_can_reach_is_named(whole: Settings) -> None:
    code = "import socket; s = socket.create_server(('0.0.0.0', 0)); print(1, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert only(doctor_machine.check_ports, context_of(whole)).verdict == "ok"
        status(whole, "sink", pid=child.pid)
        found = only(doctor_machine.check_ports, context_of(whole))
    finally:
        child.kill()
        child.wait()
    assert (found.verdict, "0.0.0.0" in found.seen) == ("wrong", True)


def test_a_process_that_died_is_wrong_only_while_a_supervisor_should_keep_it(whole: Settings) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    status(whole, "worker-0", pid=child.pid)
    assert only(doctor_folder.check_processes, context_of(whole)).verdict == "ok"
    with doctor.embedded.FolderLock(whole.data):
        (whole.data / "run" / "processes.json").write_text(json.dumps({"trainer": child.pid}))
        found = only(doctor_folder.check_processes, context_of(whole))
    assert found.verdict == "wrong"
    assert "worker-0 ended" in found.seen
    assert f"trainer (process {child.pid}) is not there" in found.seen


def test_a_check_that_fails_is_a_verdict_and_stops_no_other(whole: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_disk(context: Context) -> Check:
        raise RuntimeError("the disk\nis not there")

    async def check_memory(context: Context) -> Check:
        await asyncio.sleep(60)
        raise AssertionError

    before = asyncio.run(examine(context_of(whole)))
    assert [one.name for one in before] == [doctor.name_of(one) for one in (*doctor.HERE, *doctor.ASKED)]
    monkeypatch.setattr(doctor, "ANSWER_S_MAX", 2.0)
    swapped = {"check_disk": check_disk, "check_memory": check_memory}
    monkeypatch.setattr(doctor, "HERE", tuple(swapped.get(one.__name__, one) for one in doctor.HERE))
    after = asyncio.run(examine(context_of(whole)))
    differ = {a.name: a for a, b in zip(after, before, strict=True) if a.verdict != b.verdict}
    assert set(differ) == {"disk", "memory"}
    assert differ["disk"][1:3] == ("wrong", "RuntimeError: the disk")
    assert differ["memory"][1:3] == ("wrong", "TimeoutError: no answer in 2 s")


# ---- with a broker --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(broker: Any, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Settings:
    """A deployment on the session's broker, whose worker went through a feed and was stopped."""
    data = tmp_path_factory.mktemp("doctor") / "data"
    settings = settings_for(data, "doctor", cache=cache, port=0)
    data.chmod(0o700)
    (data / "broker").symlink_to(broker.folder)
    vault = Vault(data / "vault" / "keys.sqlite")
    records = [
        one
        for one in feed(3, 30, settings.partitions, vault, int(time.time() * 1000))
        if isinstance(one.event, PostObserved)
    ]
    workers = Workers(settings, broker.settings)

    async def run() -> None:
        await write(settings, broker.settings, records)
        workers.start()
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)

    with ended(workers):
        asyncio.run(run())
    vault.close()
    return settings


async def context_now(settings: Settings, **more: Any) -> Context:
    context = context_of(settings)
    return context_of(settings, log=await answering(context), **more)


def seen(settings: Settings, name: str, **more: Any) -> Check:
    return only(named(name), asyncio.run(context_now(settings, **more)))


async def say(settings: Settings, *events: Any) -> None:
    context = await context_now(settings)
    assert context.log is not None
    await ensure_topics(context.log.kafka, specs(settings))
    sender, vault = Sender(settings, context.log.kafka), Vault(context.vault)
    now_ms = int(time.time() * 1000)
    await sender.send([outside(event, "/test", now_ms, settings.partitions, vault) for event in events])
    await sender.stop()
    vault.close()


@pytest.fixture
def other(running: Settings, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An empty deployment beside it, to be broken."""
    name = f"dr{abs(hash(request.node.name)) % 10**8}"
    settings = settings_for(tmp_path / "data", name, cache=running.cache, port=0)
    (settings.data / "broker").symlink_to((running.data / "broker").resolve())
    return settings


@pytest.mark.broker
def test_a_healthy_deployment_with_its_broker_running_is_all_well(
    running: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XINFLUENCER_KAFKA", raising=False)
    assert run_doctor(running, as_json=True) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    asked = {doctor.name_of(one) for one in doctor.ASKED} | {"broker", "snapshots", "vault", "clock"}
    assert {name: found[name]["verdict"] for name in asked} == dict.fromkeys(asked, "ok")
    assert run_doctor(running) == 0
    said = capsys.readouterr().out
    assert "0 wrong" in said
    assert "not seen" not in said


@pytest.mark.broker
def test_a_foreign_broker_on_our_port_is_named_and_nothing_of_it_believed(
    running: Settings, tmp_path: Path, broker: Any
) -> None:
    settings = stopped(tmp_path / "data")
    shutil.copy(broker.folder / "broker.json", settings.data / "broker" / "broker.json")
    found = seen(settings, "broker")
    assert found.verdict == "wrong"
    assert f"another broker ({broker.prepared.cluster_id})" in found.seen
    assert asyncio.run(context_now(settings)).log is None
    # The same broker, named as the cluster to use, is ours by that; its snapshots are of another log all the same.
    snapshot(settings, log="BBBB")
    asked = Context(settings, env={"XINFLUENCER_KAFKA": broker.bootstrap})
    cluster = Context(settings, asyncio.run(answering(asked)), asked.env)
    assert only(doctor_log.check_broker, cluster).verdict == "ok"
    assert only(doctor_folder.check_snapshots, cluster).verdict == "wrong"


@pytest.mark.broker
def test_topics_that_are_kept_otherwise_than_the_table_says_are_named(other: Settings, broker: Any) -> None:
    nothing = {one.name: one.verdict for one in asyncio.run(_examined(other))}
    assert set(nothing.values()) == {"ok", "look"}, "an empty log is no fault"
    assert seen(other, "log time").verdict == "ok"
    assert "not made yet" in seen(other, "topics").seen
    asyncio.run(say(other, AlertRaised(kind="disk-full", stage="worker", detail="no room")))
    assert seen(other, "topics").verdict == "ok"

    async def alter() -> None:
        admin = AIOKafkaAdminClient(**broker.settings.client_kwargs())
        await admin.start()
        name = other.physical("tweets")
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "1000"})])
        await admin.close()

    asyncio.run(alter())
    found = seen(other, "topics")
    assert (found.verdict, "tweets has retention.ms=1000, not -1" in found.seen) == ("wrong", True)
    wider = seen(other.model_copy(update={"partitions": 9, "replication": 3}), "topics")
    assert "partitions, not 9" in wider.seen
    assert "1 copies, not 3" in wider.seen


@pytest.mark.broker
def test_letters_alerts_the_forgotten_and_the_release_are_named(other: Settings) -> None:
    where = Where(topic="tweets", partition=0, offset=0)
    refused = RecordRefused(
        owner="x:@1", reason="not-json", detail="d", stage="ingest", place="f:1", size=1, sha256=ZERO
    )
    gone = AuthorForgotten(owner="x:@2", requested=where)
    pointed = ReleasePointed(
        alias="default", release=1, version="a" * 64, base="b" * 64, base_name="b", adapter="a" * 64
    )
    alert = AlertRaised(kind="snapshot-broken", stage="worker", detail="torn")
    asyncio.run(say(other, refused, gone, pointed, alert))
    found = {one.name: one for one in asyncio.run(_examined(other))}
    assert (found["dead letters"].verdict, found["alerts"].verdict) == ("look", "look")
    assert "ingest not-json: 1 in the last day, 1 in all" in found["dead letters"].seen
    assert "snapshot-broken: 1; the last: torn" in found["alerts"].seen
    assert found["forgotten"].verdict == "ok"
    assert (found["release"].verdict, "there is no such adapter" in found["release"].seen) == ("wrong", True)

    Vault(other.data / "vault" / "keys.sqlite").make("x:@2")  # an old vault was put back
    asyncio.run(say(other, refused.model_copy(update={"reason": "step-failed", "stage": "rewards"})))
    found = {one.name: one for one in asyncio.run(_examined(other))}
    assert found["forgotten"].verdict == "wrong"
    assert "1 of 1 forgotten authors have a key again" in found["forgotten"].seen
    assert found["dead letters"].verdict == "wrong"

    week = 7 * 86_400_000
    later = {one.name: one for one in asyncio.run(_examined(other, now_ms=lambda: int(time.time() * 1000) + week))}
    assert (later["dead letters"].verdict, later["alerts"].verdict) == ("ok", "ok")
    assert "0 in the last day, 1 in all" in later["dead letters"].seen


async def _examined(settings: Settings, **more: Any) -> list[Check]:
    """Run what only a running log can answer."""
    context = await context_now(settings, **more)
    slow = doctor_log.check_log_time
    return [await doctor._one(check, context) for check in doctor.ASKED if check is not slow]


@pytest.mark.broker
def test_records_that_nobody_reads_and_a_clock_that_went_back_are_named(running: Settings, broker: Any) -> None:
    async def commit() -> None:
        """Be another group of ours, at the beginning of a topic."""
        place = TopicPartition(running.physical("batches"), 0)
        consumer = AIOKafkaConsumer(**broker.settings.client_kwargs(), group_id=running.group("trainer"))
        await consumer.start()
        consumer.assign([place])
        await consumer.commit({place: 0})
        await consumer.stop()

    asyncio.run(commit())
    assert "2 groups" in seen(running, "lag").seen
    assert seen(running, "lag").verdict == "ok"
    back = seen(running, "log time", now_ms=lambda: int(time.time() * 1000) - 3_600_000)
    assert (back.verdict, "in the future" in back.seen) == ("wrong", True)
    with doctor.embedded.FolderLock(running.data):
        late = seen(running, "log time", now_ms=lambda: int(time.time() * 1000) + 3_600_000)
    assert (late.verdict, "no tick for" in late.seen) == ("look", True)
    vault = Vault(running.data / "vault" / "keys.sqlite")
    posts = list(feed(9, 40, running.partitions, vault, int(time.time() * 1000)))
    vault.close()

    async def more() -> None:
        context = await context_now(running)
        assert context.log is not None
        await write(running, context.log.kafka, posts)

    asyncio.run(more())
    found = seen(running, "lag")
    assert (found.verdict, "and nobody reads" in found.seen) == ("look", True)
