"""Row: one measured comparison, with all that is needed to measure it again."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

# Units in which less is better; in every other one more is.
TIMES = ("s", "ms", "us", "ns")


@dataclass(frozen=True)
class Row:
    """`ours` and `peer` are medians of `n` runs in `unit`; `ratio` above 1 means that ours is better."""

    what: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float
    n: int
    command: str
    versions: dict[str, str]


def row(
    what: str,
    ours: float,
    peer: float,
    peer_name: str,
    unit: str,
    *,
    n: int,
    command: str,
    packages: Iterable[str] = (),
    better: Literal["less", "more"] | None = None,
) -> Row:
    """A row whose ratio follows from its unit: times are better when less, rates when more; `better` overrules.

    Raises ValueError if a figure is not a positive finite number: a ratio of it would mean nothing.
    """
    for name, figure in (("ours", ours), ("peer", peer)):
        if not (math.isfinite(figure) and figure > 0):
            raise ValueError(f"{name} must be a positive number, not {figure}")
    less = better == "less" if better else unit in TIMES
    ratio = peer / ours if less else ours / peer
    return Row(what, ours, peer, peer_name, unit, ratio, n, command, versions(packages))


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Python, machine, cores and the versions of the named distributions; "absent" for one not installed."""
    found = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def medians_ms(n: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Median milliseconds of n runs of each call, after one that is not counted.

    The calls take turns, so that a noisy moment of the machine falls on all of them alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(n):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}
