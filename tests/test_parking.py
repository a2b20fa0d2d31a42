"""Parking: a stream that is refused waits and is tried again, and is told of; everything else goes on."""

import asyncio
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from streams import parking
from streams.ingest import Summary
from streams.live import SourceRefused
from streams.pulse import Pulse

NOW = 1_767_571_200_000


def parked(
    monkeypatch: pytest.MonkeyPatch, lives: list[list[bool]], patient: bool = False
) -> tuple[list[int], list[str]]:
    """How often each stream was tried, at most four times, and what was told: a life says whether it is refused."""

    async def scenario() -> tuple[list[int], list[str]]:
        stop, tries, told = asyncio.Event(), [0] * len(lives), list[str]()
        monkeypatch.setattr(parking, "PARKED_S_MIN", 0.01)
        monkeypatch.setattr(parking, "LOOK_S", 0.005)

        async def alert(text: str) -> None:
            told.append(text)

        park = parking.Parking(patient, stop, alert, lambda: NOW)

        async def keep(number: int) -> None:
            async def follow() -> Summary:
                tries[number] += 1
                if max(tries) > 3:
                    stop.set()
                if lives[number].pop(0) if lives[number] else False:
                    raise SourceRefused("wrong token")
                await stop.wait()
                return Summary()

            await park.keep(Pulse(f"s{number}", tmp), follow)

        park.going.update(f"s{number}" for number in range(len(lives)))
        async with asyncio.timeout(10):
            await asyncio.gather(*map(keep, range(len(lives))))
        return tries, told

    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        return asyncio.run(scenario())


def test_a_refused_stream_is_tried_again_while_others_go_on_and_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parked(monkeypatch, [[True] * 9, []]) == ([4, 1], ["s0 is refused: wrong token"])


def test_when_nothing_is_left_a_process_that_nobody_supervises_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tries, told = parked(monkeypatch, [[True] * 9, [True] * 9])
    assert sum(tries) == 2 == len(told)
    tries, _ = parked(monkeypatch, [[True] * 9, [True] * 9], patient=True)
    assert max(tries) == 4


def test_waits_of_what_is_parked_grow_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def scenario() -> None:
        stop = asyncio.Event()

        async def wait(self: parking.Parking, seconds: float, pulse: Pulse | None) -> None:
            waits.append(seconds)
            if len(waits) == 8:
                stop.set()

        async def refused() -> Summary:
            raise SourceRefused("no")

        async def alert(text: str) -> None:
            pass

        monkeypatch.setattr(parking.Parking, "_wait", wait)
        await parking.Parking(True, stop, alert, lambda: NOW).keep(Pulse("s", Path()), refused)

    asyncio.run(scenario())
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0, 600.0]


def told_of(monkeypatch: pytest.MonkeyPatch, lives_s: list[float]) -> list[str]:
    """What is told of a stream that is refused with the same words after each of these lives."""
    told, clock = list[str](), [0.0]

    async def scenario() -> None:
        stop, left = asyncio.Event(), list(lives_s)

        async def follow() -> Summary:
            clock[0] += left.pop(0)
            if not left:
                stop.set()
            raise SourceRefused("wrong token")

        async def wait(self: parking.Parking, seconds: float, pulse: Pulse | None) -> None:
            clock[0] += seconds

        async def alert(text: str) -> None:
            told.append(text)

        monkeypatch.setattr(parking.Parking, "_wait", wait)
        monkeypatch.setattr(parking, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        await parking.Parking(True, stop, alert, lambda: NOW).keep(Pulse("s", Path()), follow)

    asyncio.run(scenario())
    return told


def test_a_stream_that_was_well_and_is_refused_again_is_told_of_again(monkeypatch: pytest.MonkeyPatch) -> None:
    a_day = 86_400.0
    assert told_of(monkeypatch, [1.0, 1.0, 1.0]) == ["s is refused: wrong token"]
    assert told_of(monkeypatch, [1.0, a_day, 1.0, a_day, 1.0]) == ["s is refused: wrong token"] * 3
