"""Trainer: killed anywhere it ends at the same adapter, announced once, and no half version is ever readable.

The real trainer process, forked from the real zygote, on a real broker and a seeded two-layer Llama.
"""

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from schemas import envelope
from schemas.learned import ModelTrained
from streams import places
from streams.dataset import BatchBroken, closed_batches, load
from streams.exits import EXIT_REFUSED
from streams.kafka import KafkaSettings
from streams.reader import reader
from streams.settings import Settings
from streams.vault import Vault
from tests.feeds import feed
from tests.harness import ROOT, Workers, ended, finish, settings_for, write

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

SEED = 5
POINTS = (
    "before-step",
    "before_step-0",
    "in_step-0",
    "before_save",
    "half_written",
    "before_rename",
    "after_rename",
    "before-transaction",
    "in-transaction",
    "after-transaction",
)


class Zygote:
    """The process that has imported torch, and forks trainers for us."""

    def __init__(self, settings: Settings, kafka: KafkaSettings) -> None:
        env = {**os.environ, **settings.to_env(), "XINFLUENCER_KAFKA": kafka.bootstrap, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "streams.cli", "zygote"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.heard()["event"] == "ready"

    def heard(self) -> dict[str, Any]:
        """Wait for what it says next."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], 240)
        assert readable, "the zygote says nothing for four minutes"
        line = self.process.stdout.readline()
        assert line, "the zygote ended"
        said: dict[str, Any] = json.loads(line)
        return said

    def start(self, **env: str) -> int:
        """Fork a trainer; give its pid."""
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps({"start": "trainer", "env": {"XINFLUENCER_CRASH": "", **env}}).encode() + b"\n"
        )
        self.process.stdin.flush()
        return int(self.heard()["pid"])

    def end_of_trainer(self) -> int:
        """Wait until the trainer ended; give its exit code."""
        return int(self.heard()["code"])

    def kill_trainer(self, pid: int) -> None:
        """End a trainer from outside."""
        os.kill(pid, signal.SIGKILL)
        assert self.end_of_trainer() == -signal.SIGKILL


class Bench:
    """A log with closed batches, and what is asked of it."""

    def __init__(self, settings: Settings, kafka: KafkaSettings) -> None:
        self.settings = settings
        self.kafka = kafka
        self.zygote = Zygote(settings, kafka)

    def versions(self, first: int = 0) -> list[tuple[int, ModelTrained]]:
        """Read the trained versions in `candidates` from an offset on, as a committed reader sees them."""

        async def read() -> list[tuple[int, ModelTrained]]:
            found = []
            async with reader(self.settings, self.kafka) as log_reader:
                async for raw in log_reader.records("candidates", 0, first):
                    record = envelope.decode("candidates", 0, raw.offset, raw.timestamp, raw.headers, raw.value)
                    if isinstance(record.event, ModelTrained) and record.event.adapter:
                        found.append((raw.offset, record.event))
            return found

        return asyncio.run(read())

    def batches(self) -> int:
        """Count the closed batches."""

        async def read() -> int:
            async with reader(self.settings, self.kafka) as log_reader:
                return len(await closed_batches(log_reader))

        return asyncio.run(read())

    def trained(self, after: int, number: int) -> list[ModelTrained]:
        """Wait until `number` versions were announced after an offset."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = self.versions(after)
            if len(found) >= number:
                return [event for _, event in found]
            time.sleep(0.3)
        raise AssertionError((places.logs(self.settings) / "trainer.log").read_text()[-3000:])

    def forget(self) -> int:
        """Let the next trainer begin from nothing; give the offset after all that was announced so far."""
        shutil.rmtree(places.adapter_store(self.settings), ignore_errors=True)
        admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap})
        group = self.settings.group("trainer")
        for future in admin.delete_consumer_groups([group]).values():
            try:
                future.result()
            except Exception as error:
                if "GROUP_ID_NOT_FOUND" not in str(error):
                    raise
        return max((offset for offset, _ in self.versions()), default=-1) + 1


@pytest.fixture(scope="module")
def bench(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    from tests.tiny_llama import build

    base = tmp_path_factory.mktemp("tiny") / "base"
    build(base)
    settings = settings_for(
        tmp_path_factory.mktemp("trainer"), "c8", base=str(base), cache=base.parent / "cache", threads=1
    )
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    workers = Workers(settings, broker.settings)

    async def fill() -> None:
        now = int(time.time() * 1000)
        await write(settings, broker.settings, feed(SEED, 30, settings.partitions, vault, now, doubled=0.0))
        workers.start()
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)

    with ended(workers):
        asyncio.run(fill())
    made = Bench(settings, broker.settings)
    assert made.batches() >= 1
    yield made
    made.zygote.process.terminate()
    made.zygote.process.wait(10)


@pytest.fixture(scope="module")
def uninterrupted(bench: Bench) -> list[str]:
    """The versions of a run that nobody disturbed."""
    after = bench.forget()
    pid = bench.zygote.start()
    found = bench.trained(after, bench.batches())
    bench.zygote.kill_trainer(pid)
    return [event.version for event in found]


def test_the_base_is_announced_once_however_often_the_trainer_starts(bench: Bench, uninterrupted: list[str]) -> None:
    async def bases() -> int:
        async with reader(bench.settings, bench.kafka) as log_reader:
            return len([raw async for raw in log_reader.records("candidates") if b'"adapter"' not in raw.value])

    assert uninterrupted
    before = asyncio.run(bases())
    pid = bench.zygote.start()
    time.sleep(2)
    bench.zygote.kill_trainer(pid)
    assert before == asyncio.run(bases()) == 1


@pytest.mark.parametrize("point", POINTS)
def test_a_trainer_killed_at_a_named_point_ends_at_the_same_adapter(
    bench: Bench, uninterrupted: list[str], tmp_path: Path, point: str
) -> None:
    """C8."""
    from models import adapters

    after = bench.forget()
    bench.zygote.start(XINFLUENCER_CRASH=f"{point}@{tmp_path / 'died'}")
    assert bench.zygote.end_of_trainer() == -signal.SIGKILL, f"it did not die at {point}"
    store = places.adapter_store(bench.settings)
    for name in adapters.stored(store):
        adapters.open_verified(store, name)  # what can be seen is whole
    pid = bench.zygote.start()
    found = bench.trained(after, len(uninterrupted))
    time.sleep(0.5)
    bench.zygote.kill_trainer(pid)
    assert [event.version for event in found] == uninterrupted
    assert [event.version for _, event in bench.versions(after)] == uninterrupted, "a version was announced twice"
    for name in uninterrupted:
        adapters.open_verified(store, name)


def test_of_two_trainers_one_publishes_and_the_other_is_fenced_and_says_so(
    bench: Bench, uninterrupted: list[str]
) -> None:
    """C9."""
    after = bench.forget()
    first = bench.zygote.start()
    time.sleep(0.3)
    second = bench.zygote.start()
    found = bench.trained(after, len(uninterrupted))
    assert [event.version for event in found] == uninterrupted
    alive = {first, second}
    ended_trainer = bench.zygote.heard()
    assert ended_trainer["event"] == "exited"
    assert ended_trainer["code"] == EXIT_REFUSED
    log = (places.logs(bench.settings) / "trainer.log").read_text()
    assert "another trainer started" in log[-6000:]
    for pid in alive:
        if _runs(pid):
            bench.zygote.kill_trainer(pid)
    assert [event.version for _, event in bench.versions(after)] == uninterrupted


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_version_names_what_it_learned_from_and_the_log_still_gives_it(
    bench: Bench, uninterrupted: list[str]
) -> None:
    from models.rows import dataset_sha256

    event = next(event for _, event in reversed(bench.versions()) if event.version == uninterrupted[-1])
    assert event.base
    assert event.root
    assert event.measured

    async def again() -> str:
        async with reader(bench.settings, bench.kafka) as log_reader:
            known = {batch.batch: batch for _, batch in await closed_batches(log_reader)}
            vault = Vault(bench.settings.data / "vault" / "keys.sqlite")
            dataset = await load(log_reader, [known[name] for name in event.batches], vault)
            rows, held = dataset.split()
            assert len(rows) == event.trained
            assert len(held) == event.held_back
            return dataset_sha256(rows)

    assert asyncio.run(again()) == event.dataset_sha256


def test_a_batch_whose_leaf_is_not_its_pair_is_refused(bench: Bench) -> None:
    async def forged() -> None:
        async with reader(bench.settings, bench.kafka) as log_reader:
            (_, batch), *_ = await closed_batches(log_reader)
            wrong = batch.pairs[0].model_copy(update={"leaf": "0" * 64})
            vault = Vault(bench.settings.data / "vault" / "keys.sqlite")
            await load(log_reader, [batch.model_copy(update={"pairs": (wrong, *batch.pairs[1:])})], vault)

    with pytest.raises(BatchBroken, match="root"):
        asyncio.run(forged())


def test_an_erased_author_is_withheld_and_the_root_still_verifies(bench: Bench, tmp_path: Path) -> None:
    async def rows(vault: Vault) -> tuple[int, dict[str, int]]:
        async with reader(bench.settings, bench.kafka) as log_reader:
            batches = [batch for _, batch in await closed_batches(log_reader)]
            dataset = await load(log_reader, batches, vault)
            return len(dataset.rows), dataset.withheld

    copy = tmp_path / "keys.sqlite"
    source = Vault(bench.settings.data / "vault" / "keys.sqlite")
    source._db.execute("vacuum into ?", (str(copy),))
    vault = Vault(copy)
    whole, _ = asyncio.run(rows(vault))
    for index in range(3):
        vault.destroy(f"x:@{index}")
    fewer, withheld = asyncio.run(rows(vault))
    assert fewer < whole
    assert withheld == {"words-gone": whole - fewer}
