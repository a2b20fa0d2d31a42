"""Faults of what the worker stands on: the broker killed, asleep, absent at the start; a disk that is full.

The feed is written as a source writes it: what was not acknowledged is written again. Judged as in test_faults.py, and
what was acknowledged must be in the log.
"""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from models import adapters
from schemas.posts import PostDeleted
from streams.exits import EXIT_REFUSED
from streams.kafka import KafkaSettings
from streams.shell import SNAPSHOTS_WAIT_S_MAX
from streams.supervisor import BACKOFF_S_MIN, Deployment
from tests.feeds import feed
from tests.harness import (
    ROOT,
    Workers,
    attacked_run,
    finish,
    judge,
    now_ms,
    said,
    settings_for,
    vault_of,
    write,
    write_stubbornly,
)
from tests.proof import SEED, Say, size
from tests.test_models import CARD_FACTS, a_save, in_child

PRODUCER_S_MAX = 15.0  # streams.sender's request timeout: what is not acknowledged by then has failed
PAUSE_S = 20.0

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1200)]


def test_what_was_acknowledged_outlives_a_broker_that_is_killed_and_one_that_sleeps(
    broker: Any, tmp_path: Path, proof: Say
) -> None:
    """C6: kill -9 with an outage longer than the producer waits, more at random, then SIGSTOP for 20 s; under load."""
    kills, pauses = size("broker kills"), size("broker pauses")
    case = proof("C6", f"kill -9 of the broker under load, and {pauses} x SIGSTOP for 20 s", kills, "kills")
    settings = settings_for(tmp_path, "c6")
    records = list(feed(SEED, 300 * (kills + pauses), settings.partitions, vault_of(settings), now_ms()))
    workers = Workers(settings, broker.settings)
    rng = random.Random(SEED)
    feeding = threading.Event()

    async def keeping() -> None:
        while True:
            workers.keep()
            await asyncio.sleep(1.0)

    async def breaking() -> None:
        for number in range(kills):
            await workers.back()
            await asyncio.sleep(rng.uniform(0.5, 2.0))
            broker.kill()
            await asyncio.sleep(PRODUCER_S_MAX + 3 if number == 0 else rng.uniform(0, 5))
            broker.restart()  # in the main thread: the kernel ends a JVM with the thread that started it
        for _ in range(pauses):
            await workers.back()
            await asyncio.sleep(rng.uniform(0.5, 2.0))
            broker.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(PAUSE_S)
            broker.process.send_signal(signal.SIGCONT)
        feeding.set()

    async def writing() -> None:
        # The last tenth waits for the last fault, so that there is load around each.
        many = len(records) * 9 // 10
        await write_stubbornly(settings, broker.settings, records[:many], 10.0 * (kills + pauses) / (many / 100))
        while not feeding.is_set():
            await asyncio.sleep(0.2)
        await write_stubbornly(settings, broker.settings, records[many:], 0.0)

    async def attack() -> None:
        keeper = asyncio.create_task(keeping())
        await asyncio.gather(writing(), breaking())
        keeper.cancel()

    try:
        verdict = attacked_run(settings, broker.settings, workers, attack)
    finally:
        if broker.process.poll() is not None:
            broker.restart()
        broker.process.send_signal(signal.SIGCONT)
    assert verdict.faults == [], workers.log()[-3000:]
    logged = {one.id for one in asyncio.run(said(settings, broker.settings, "tweets", "feedback"))}
    written = {dict(one.headers)["ce_id"].decode() for one in records}
    assert written <= logged, "what was acknowledged is not in the log"
    case.detail = f"{len(workers.ended)} restarts of the worker, {sum(verdict.absorbed.values())} duplicates absorbed"


def test_without_a_broker_the_supervisor_waits_longer_each_time_says_why_and_comes_through(
    broker: Any, tmp_path: Path, proof: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C7: the worker is started before the broker; then the broker comes."""
    proof("C7", "no broker at the start", 1, "runs")
    settings = settings_for(tmp_path, "c7")
    records = list(feed(SEED, 60, settings.partitions, vault_of(settings), now_ms()))
    workers = Workers(settings, broker.settings)  # only to read what is told; the supervisor starts it
    told: list[str] = []
    monkeypatch.setenv("XINFLUENCER_KAFKA", broker.bootstrap)
    broker.stop()

    async def run() -> Any:
        deployment = Deployment(settings, {}, told.append)
        await deployment.start("worker")
        try:
            while len(told) < 3:
                await asyncio.sleep(0.1)
            broker.restart()
            await write(settings, broker.settings, records)
            await finish(settings, broker.settings, workers)
        finally:
            await deployment.stop()
        return await judge(settings, broker.settings)

    try:
        verdict = asyncio.run(run())
    finally:
        if broker.process.poll() is not None:
            broker.restart()
    assert verdict.faults == []
    assert verdict.visible["rewards"] > 0
    waits = [line.rsplit("in ", 1)[1] for line in told[:3]]
    assert waits == [f"{BACKOFF_S_MIN * 2**turn:.1f} s" for turn in range(3)], told
    log = (settings.data / "logs" / "worker.log").read_text()
    assert "xinfluencer: " in log, log[-2000:]
    assert broker.bootstrap in log, "the line names what did not answer"
    assert "Traceback" not in log


# ---- C10: a full disk -----------------------------------------------------------------------------------------------
# A limit on the size of files (RLIMIT_FSIZE) is a disk that is full for one process: any write beyond it fails, which
# needs no rights to mount anything, and it can be lifted while the process runs.


def fill(pid: int, bytes_max: int = resource.RLIM_INFINITY) -> None:
    """Let a process write no file longer than this; without a number: free again."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY))


def test_a_worker_on_a_full_disk_goes_on_and_comes_through_when_it_is_freed(
    broker: Any, tmp_path: Path, proof: Say
) -> None:
    """C10 on the real worker: outputs flow, no snapshot is written; at a deletion it ends; freed, all is there."""
    case = proof(
        "C10", "the disk of a running worker fills up; ended at a deletion, started on the full disk, then freed", 1
    )
    settings = settings_for(tmp_path, "c10")
    fed = list(feed(SEED, 300, settings.partitions, vault_of(settings), now_ms()))
    # A deletion needs the disk: its receipt must not stand over a key that is still there, so the worker ends at it.
    records = [one for one in fed if not isinstance(one.event, PostDeleted)]
    deletions = [one for one in fed if isinstance(one.event, PostDeleted)]
    workers = Workers(settings, broker.settings)
    third = len(records) // 3

    def snapshots() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (settings.data / "snapshots").glob("*/snapshot")}

    async def attack() -> None:
        await workers.back()
        await write(settings, broker.settings, records[:third])
        await finish(settings, broker.settings, workers)
        assert workers.process is not None
        before = snapshots()
        assert len(before) > 4
        fill(workers.process.pid, 0)
        await write(settings, broker.settings, records[third : 2 * third])
        await _moves_on(settings, broker.settings)
        await asyncio.sleep(SNAPSHOTS_WAIT_S_MAX + 1)  # it tries, and cannot even say so in its log
        assert snapshots() == before
        assert workers.process.poll() is None, "it ended, and need not have"
        await write(settings, broker.settings, deletions)
        assert await asyncio.to_thread(workers.process.wait, 60) not in (0, EXIT_REFUSED), "nobody need act"
        workers.start()
        fill(workers.process.pid, 0)
        assert await asyncio.to_thread(workers.process.wait, 60) not in (0, EXIT_REFUSED), "nobody need act"
        assert snapshots() == before
        workers.start()  # on a disk that was freed
        await write(settings, broker.settings, records[2 * third :])

    verdict = attacked_run(settings, broker.settings, workers, attack)
    assert verdict.faults == [], workers.log()[-3000:]
    case.detail = f"{sum(verdict.absorbed.values())} duplicates absorbed"


# A small file system of its own, mounted where the worker alone sees it (Linux, unprivileged namespaces).
OWN_DISK = ("unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"')


def own_disks() -> bool:
    """Say whether a process may have a file system of its own here."""
    try:
        return subprocess.run((*OWN_DISK, "/mnt", "true"), capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not own_disks(), reason="no file system may be mounted in a namespace of its own here")
def test_a_worker_whose_file_system_has_no_byte_left_goes_on_and_writes_again_when_it_has(
    broker: Any, tmp_path: Path, proof: Say
) -> None:
    """C10 with ENOSPC itself: the folder of the snapshots is a file system of a megabyte that something else filled."""
    proof("C10", "no space left on the device under the snapshots of a running worker, then there is", 1)
    settings = settings_for(tmp_path, "c10-enospc")
    records = list(feed(SEED, 300, settings.partitions, vault_of(settings), now_ms()))
    folder = settings.data / "snapshots"
    folder.mkdir(parents=True)
    workers = Workers(
        settings, broker.settings, (*OWN_DISK, str(folder), sys.executable, "-m", "streams.cli", "worker")
    )
    third = len(records) // 3

    def within() -> Path:
        assert workers.process is not None
        return Path(f"/proc/{workers.process.pid}/root{folder}")

    def snapshots() -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in within().glob("*/snapshot")}

    async def attack() -> None:
        await workers.back()
        await write(settings, broker.settings, records[:third])
        await finish(settings, broker.settings, workers)
        before = snapshots()
        assert len(before) > 4
        filler = within() / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(2 << 20))
        await write(settings, broker.settings, records[third : 2 * third])
        await _moves_on(settings, broker.settings)
        await _until(lambda: "No space left" in workers.log(), "it never tried to write a snapshot")
        assert snapshots() == before
        filler.unlink()
        await write(settings, broker.settings, records[2 * third :])
        await finish(settings, broker.settings, workers)
        await _until(lambda: snapshots() != before, "it never wrote a snapshot again")

    verdict = attacked_run(settings, broker.settings, workers, attack)
    assert verdict.faults == [], workers.log()[-3000:]


async def _until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, otherwise
        await asyncio.sleep(0.2)


async def _moves_on(settings: Any, kafka: KafkaSettings) -> None:
    """Wait until outputs of what was written on the full disk are there."""
    from streams.reader import reader

    async with reader(settings, kafka) as log_reader:
        before = sum((await log_reader.ends("signals")).values())
        deadline = time.monotonic() + 30
        while sum((await log_reader.ends("signals")).values()) < before + 20:
            assert time.monotonic() < deadline, "nothing came out on the full disk"
            await asyncio.sleep(0.1)


def test_no_half_adapter_is_readable_after_a_full_disk_and_the_next_attempt_makes_the_same(
    tmp_path: Path, proof: Say
) -> None:
    """C10: the disk ends at every 97th byte of what is written."""
    store = tmp_path / "store"
    expected = adapters.write(tmp_path / "oracle", a_save(), CARD_FACTS)
    largest = max(path.stat().st_size for path in (tmp_path / "oracle" / expected).iterdir())
    cuts = range(0, largest, 97)
    proof("C10", "the disk fills up anywhere in an adapter, then is freed", len(cuts), "cuts", 0)

    def on_a_full_disk(cut: int) -> None:
        fill(0, cut)
        try:
            adapters.write(store, a_save(), CARD_FACTS)
        except (OSError, SafetensorError):
            os._exit(75)

    for cut in cuts:
        assert in_child(lambda cut=cut: on_a_full_disk(cut)) == 75, f"cut at {cut}"
        assert adapters.stored(store) == [], f"cut at {cut}"
    assert adapters.write(store, a_save(), CARD_FACTS) == expected
    adapters.open_verified(store, expected)


VECTORS_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from streams.vectors import VectorReader, VectorStore
from tests.test_vectors import ENCODER, WIDTH, row, units

def fill(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

folder = Path(sys.argv[1])
store = VectorStore(folder, ENCODER, WIDTH)
failed = 0
for turn, cut in enumerate([0, 100, 1_000, 4_000, 9_000]):
    rows = [row(f"x:{turn}-{n}") for n in range(50)]
    fill(cut)
    try:
        store.upsert(rows, units(50, turn))
    except Exception:
        failed += 1
        found = VectorReader(folder).find(rows[0].post)
        assert found is None and store.count() == 50 * turn, (cut, store.count())
    finally:
        fill(resource.RLIM_INFINITY)
    store.upsert(rows, units(50, turn))
    assert store.count() == 50 * (turn + 1)
    assert VectorReader(folder).find(rows[7].post)[0] == rows[7]
assert store.tidy()
print(failed)
"""


def test_vectors_on_a_full_disk_are_written_whole_or_not_at_all(tmp_path: Path, proof: Say) -> None:
    """C10: LanceDB with its disk full at several sizes; freed, the same rows are written, each once."""
    proof("C10", "the disk fills up under LanceDB, then is freed", 5, "cuts", 0)
    done = subprocess.run(
        [sys.executable, "-c", VECTORS_ON_A_FULL_DISK, str(tmp_path / "vectors")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 3, "the disk was never full"
