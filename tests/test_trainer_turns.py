"""Trainer's turns, without torch and a broker: which batch is next, from what, and what ends it."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import ProducerFenced

from schemas.ids import digest
from schemas.learned import BatchClosed, ModelTrained, PairRef
from streams import trainer as module
from streams.dataset import BatchBroken
from streams.settings import Settings
from streams.trainer import Fenced, Trainer
from tests.bare_shell import KAFKA, ZERO
from tests.folding import BASE, T0_MS

CLOSED = {at: digest("batch", str(at)) for at in (1, 3, 5, 9)}  # offset -> batch; transactions' markers lie between


def batch(name: str) -> BatchClosed:
    pairs = (PairRef(pair=digest(name), leaf=ZERO, offset=9),)
    return BatchClosed(
        batch=name, sequence=0, pairs=pairs, first_offset=0, last_offset=0, root=ZERO, closed_by="count",
        opened_ms=T0_MS, closed_ms=T0_MS,
    )  # fmt: skip


class Turns(Trainer):
    """The trainer, but for the training and for the producer: notes of what it did."""

    def __init__(self, settings: Settings, broken: tuple[str, ...] = ()) -> None:
        super().__init__(settings, KAFKA, lambda name: None)
        self.base = SimpleNamespace(sha256=BASE, name="base")  # type: ignore[assignment]
        self.broken, self.done, self.notes = broken, 0, list[tuple[Any, ...]]()

    async def _train(self, log_reader: Any, batches: list[BatchClosed]) -> ModelTrained:
        names = [one.batch for one in batches]
        if names[-1] in self.broken:
            raise BatchBroken("a leaf is not its pair's")
        return ModelTrained(version=ZERO, base=BASE, base_name="base", adapter=ZERO, batches=tuple(names))

    async def _trace(self, log_reader: Any, offset: int) -> None:  # type: ignore[override]
        return None

    async def _publish(self, event: ModelTrained, offset: int | None, traceparent: bytes | None = None) -> None:
        self.notes.append(("version", offset, *event.batches))
        self.done = self.done if offset is None else offset + 1

    async def _skip(self, offset: int, reason: str) -> None:
        self.notes.append(("skipped", offset, reason))
        self.done = offset + 1


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    async def closed(reader: Any) -> list[tuple[int, BatchClosed]]:
        return [(at, batch(name)) for at, name in CLOSED.items()]

    monkeypatch.setattr(module, "closed_batches", closed)
    monkeypatch.setattr(module, "POLL_S", 0.0)
    return Settings(data=tmp_path, train_window=256)


def turns(trainer: Turns, number: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    async def committed(*_: Any) -> dict[Any, int]:
        return {trainer.batches: trainer.done}

    async def run() -> None:
        for _ in range(number):
            await trainer._next(None)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "committed_offsets", committed)
    asyncio.run(run())
    trainer.vault.close()
    return trainer.notes


def test_every_batch_makes_a_version_in_order_of_itself_and_those_before_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(CLOSED.values())
    expected = [("version", at, *names[: i + 1]) for i, at in enumerate(CLOSED)]
    assert turns(Turns(settings), 6, monkeypatch) == expected
    later = Turns(settings)
    later.done = 3
    assert turns(later, 2, monkeypatch) == expected[1:3], "the batch that stands at the commit is not done"


def test_a_broken_batch_is_passed_once_and_the_next_one_is_trained_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = turns(Turns(settings, (CLOSED[3],)), 5, monkeypatch)
    assert [one[:2] for one in found] == [("version", 1), ("skipped", 3), ("version", 5), ("version", 9)]
    assert found[1][2] == "a leaf is not its pair's"


class Held:
    def __init__(self, *values: bytes | None) -> None:
        self.values = values

    async def records(self, topic: str) -> AsyncIterator[Any]:
        for value in self.values:
            yield SimpleNamespace(value=value)


def test_the_base_is_announced_once_and_another_base_again(settings: Settings) -> None:
    trainer = Turns(settings)
    for values, said in (((), 1), ((None, b'{"version":"' + BASE.encode() + b'"}'), 0), ((b"f" * 64,), 1)):
        trainer.notes.clear()
        asyncio.run(trainer._announce_base(Held(*values)))  # type: ignore[arg-type]
        assert trainer.notes == [("version", None)] * said
    trainer.vault.close()


def test_a_coordinator_that_answers_from_before_makes_no_batch_wait_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit of a transaction is read a moment after its end, and one that moved may know nothing for a while."""
    trainer, answers = Turns(settings), iter((0, 0, 2, 0, 4))

    async def committed(*_: Any) -> dict[Any, int]:
        return {trainer.batches: next(answers)}

    async def run() -> None:
        for _ in range(5):
            await trainer._next(None)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "committed_offsets", committed)
    asyncio.run(run())
    trainer.vault.close()
    assert [note[1] for note in trainer.notes] == list(CLOSED)


@pytest.mark.parametrize(("age_s", "expected"), [(0.0, Fenced), (60.0, ProducerFenced)])
def test_a_transaction_that_took_too_long_is_no_second_trainer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, age_s: float, expected: type[Exception]
) -> None:
    """Kafka says the same of both, and only one of them needs a person."""

    async def nothing(*_: Any) -> None:
        return None

    async def fenced(trainer: Trainer, _: Any) -> None:
        trainer._begun_s = time.monotonic() - age_s
        raise ProducerFenced

    @asynccontextmanager
    async def reading(*_: Any) -> AsyncIterator[None]:
        yield

    monkeypatch.setitem(sys.modules, "models.base", SimpleNamespace(prepare_base=lambda *_: None))
    for name in ("ensure_topics", "require"):
        monkeypatch.setattr(module, name, nothing)
    monkeypatch.setattr(module, "reader", reading)
    monkeypatch.setattr(module, "AIOKafkaProducer", lambda **_: SimpleNamespace(start=nothing, stop=nothing))
    monkeypatch.setattr(Turns, "_announce_base", nothing)
    monkeypatch.setattr(Turns, "_next", fenced)
    trainer = Turns(settings)
    with pytest.raises(expected):
        asyncio.run(trainer.run())
    trainer.vault.close()
