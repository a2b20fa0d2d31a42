"""Crash: a named point in the code -> SIGKILL there; faults are inputs of the program, off unless asked for.

XINFLUENCER_CRASH is `point:seed:chance` (each time with that chance, a new draw in each process) or `point@file`
(once: the file is made first, and where it exists nothing happens). Only the fault tests set it.
"""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

CrashPoint = Callable[[str], None]


def nowhere(name: str) -> None:
    """The point of a program that nobody attacks."""


def from_env() -> CrashPoint:
    """Read XINFLUENCER_CRASH."""
    order = os.environ.get("XINFLUENCER_CRASH", "")
    if "@" in order:
        point, _, path = order.partition("@")
        return _once(point, Path(path))
    if order:
        point, seed, chance = order.split(":")
        return _sometimes(point, int(seed), float(chance))
    return nowhere


def _once(point: str, marker: Path) -> CrashPoint:
    def crash(name: str) -> None:
        if name == point and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return crash


def _sometimes(point: str, seed: int, chance: float) -> CrashPoint:
    rng = random.Random(seed ^ os.getpid())

    def crash(name: str) -> None:
        if name == point and rng.random() < chance:
            os.kill(os.getpid(), signal.SIGKILL)

    return crash
