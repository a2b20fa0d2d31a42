"""Shelf: however many versions are asked for at once, no more lie in memory than there is room for."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from streams import shelf
from streams.problems import Problem
from streams.settings import Settings
from streams.shelf import VERSIONS_LOADED_MAX, Known, Shelf

BASE = "b" * 64
ROOM = VERSIONS_LOADED_MAX + 1


class Weights:
    """What generates, as far as the shelf sees it: names that lie in memory, and the most that ever did."""

    base = SimpleNamespace(sha256=BASE)

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.most = 0

    def load(self, name: str, folder: Path) -> None:
        assert name not in self.names
        self.names.add(name)
        self.most = max(self.most, len(self.names))

    def unload(self, name: str) -> None:
        self.names.remove(name)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Shelf, Weights]]:
    monkeypatch.setattr(shelf, "open_verified", lambda store, name: tmp_path)
    made, weights = Shelf(Settings(data=tmp_path)), Weights()
    made._generator = weights  # type: ignore[assignment]
    yield made, weights
    made._thread.shutdown()


def known(number: int) -> Known:
    return Known(number, f"{number:064x}", BASE, "base", f"{number:064x}", 0)


async def tried(made: Shelf, one: Known) -> bool:
    try:
        await made.hold(one)
    except Problem as busy:
        return (busy.status, busy.code) != (429, "busy_versions")
    return True


def test_who_asks_for_one_version_too_many_is_told_to_come_back(here: tuple[Shelf, Weights]) -> None:
    made, weights = here

    async def life() -> None:
        held = await asyncio.gather(*(tried(made, known(number)) for number in range(32)))
        assert sum(held) == ROOM == weights.most
        made.pointed = lambda: {known(99).adapter or ""}
        await made.hold(known(99), whatever=True)  # a new release is never refused for it
        assert len(weights.names) == ROOM + 1
        for number in (number for number in range(32) if held[number]):
            made.release(known(number))
        made.release(known(99))
        await asyncio.gather(*made._tasks)
        assert known(99).adapter in weights.names
        assert len(weights.names) == VERSIONS_LOADED_MAX

    asyncio.run(life())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_and_goes_what_is_held_is_there_and_the_room_is_kept(
    here: tuple[Shelf, Weights], seed: int
) -> None:
    made, weights = here
    chance = random.Random(seed)

    async def ask(number: int) -> None:
        await asyncio.sleep(chance.random() / 100)
        if await tried(made, known(number)):
            for _ in range(3):
                assert known(number).adapter in weights.names
                await asyncio.sleep(chance.random() / 500)
            made.release(known(number))

    async def life() -> None:
        await asyncio.gather(*(ask(chance.randrange(8)) for _ in range(60)))
        await asyncio.gather(*made._tasks)
        assert len(weights.names) <= VERSIONS_LOADED_MAX

    asyncio.run(life())
    assert VERSIONS_LOADED_MAX < weights.most <= ROOM
