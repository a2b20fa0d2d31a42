"""Doctor: each thing is broken on purpose, and its line must say so; on a healthy deployment no line may."""

import asyncio
import json
import os
import shutil
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
from safetensors.numpy import save_file

from models import adapters
from streams import doctor, doctor_folder, doctor_machine
from streams.cursors import Cursors
from streams.doctor import examine
from streams.doctor_check import Check, Context
from streams.java import JavaMissing
from streams.settings import Settings
from streams.trouble import ATTEMPTS_MAX, Trouble
from streams.vault import Vault
from tests.logfolder import CLUSTER, stopped
from tests.patients import Broken, context_of, flip, named, only, snapshot, torn


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


def cursor(settings: Settings, log: str = CLUSTER) -> Path:
    Cursors(settings.data / "ingest", f"{log}/tweets/id").save("bluesky", "17", 1_000, 2_000)
    return settings.data / "ingest" / "bluesky" / "cursor"


def status(settings: Settings, name: str, **what: Any) -> None:
    told = {"time": time.time(), "pid": os.getpid(), **what}
    (settings.data / "run").mkdir(exist_ok=True)
    path = settings.data / "run" / f"{name}.status.json"
    path.write_text(json.dumps(told))
    os.utime(path, (told["time"],) * 2)  # written when it says


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
        ("processes", silent, "wrong", "sink (process 1) has said nothing for 6"),
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
