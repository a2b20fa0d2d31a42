"""Readings: samples of metrics over time -> what a rule compares; each form is evaluated here and written as PromQL.

Only what both can do is allowed: one metric, picked by labels, looked at over a window, summed up by labels; shares of
two; a comparison. So a rule that our tests fire says the same to Prometheus (which extrapolates an increase to the
edges of its window, where we do not: a few per cent).
"""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

Key = tuple[str, tuple[tuple[str, str], ...]]  # a metric's name and its labels, sorted
Vector = dict[tuple[str, ...], float]  # by the values of the labels that are kept
Over = Literal["", "increase", "delta", "changes", "age"]
_OPS = {">": operator.gt, "<": operator.lt, "==": operator.eq}
_FOLDS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}


@dataclass
class History:
    """Samples, oldest first: when (Unix seconds), and the value of each series then."""

    times: list[float] = field(default_factory=list)
    rows: list[Mapping[Key, float]] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)  # of every row, and maybe of some that are gone

    def __post_init__(self) -> None:
        self.keys.update(*self.rows)

    def add(self, time_s: float, row: Mapping[Key, float]) -> None:
        """Take the next sample; what lies in the future (the clock was set back) is dropped."""
        keep = bisect_left(self.times, time_s)
        self.times[keep:], self.rows[keep:] = [time_s], [row]
        self.keys.update(row)

    def between(self, from_s: float, to_s: float) -> Sequence[Mapping[Key, float]]:
        """Give the samples of a window, both ends included."""
        return self.rows[bisect_left(self.times, from_s) : bisect_right(self.times, to_s)]


def span(seconds: int) -> str:
    """Write a length of time as Prometheus does."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


@dataclass(frozen=True)
class Reading:
    """One metric: `where` picks series (a|b: either), `over` looks at a window that ended `back_s` ago."""

    metric: str
    by: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    over: Over = ""
    window_s: int = 0
    back_s: int = 0
    fold: str = "sum"

    def promql(self) -> str:
        """Write it for Prometheus."""
        picked = ",".join(f'{name}{"=~" if "|" in value else "="}"{value}"' for name, value in self.where)
        series = f"{self.metric}{{{picked}}}" if picked else self.metric
        if self.over == "age":
            series = f"time() - {series}"
        elif self.over:
            back = f" offset {span(self.back_s)}" if self.back_s else ""
            series = f"{self.over}({series}[{span(self.window_s)}]{back})"
        return f"{self.fold} by ({', '.join(self.by)}) ({series})" if self.by else f"{self.fold}({series})"

    def wants(self, key: Key) -> bool:
        """Say whether a series is one of those picked."""
        if key[0] != self.metric:
            return False
        found = dict(key[1])
        return all(found.get(label) in value.split("|") for label, value in self.where)

    def values(self, history: History, now_s: float) -> Vector:
        """Evaluate it as of `now_s`."""
        end = now_s - self.back_s
        rows = history.between(end - self.window_s, end) if self.window_s else history.rows[-1:]
        found: dict[tuple[str, ...], list[float]] = {}
        for key in filter(self.wants, history.keys):
            seen = [row[key] for row in rows if key in row]
            value = self._over(seen, now_s) if seen else None
            if value is not None:
                labels = dict(key[1])
                found.setdefault(tuple(labels.get(one, "") for one in self.by), []).append(value)
        return {labels: float(_FOLDS[self.fold](values)) for labels, values in found.items()}

    def _over(self, seen: list[float], now_s: float) -> float | None:
        pairs = pairwise(seen)
        match self.over:
            case "changes":  # one look cannot tell that a thing stands still (Prometheus would say 0)
                return float(sum(a != b for a, b in pairs)) if len(seen) > 1 else None
            case "increase":  # a counter that fell began again at zero
                return sum(b - a if b >= a else b for a, b in pairs) if len(seen) > 1 else None
            case "delta":
                return seen[-1] - seen[0] if len(seen) > 1 else None
            case "age":
                return now_s - seen[-1]
        return seen[-1]


@dataclass(frozen=True)
class Share:
    """One reading to another; nothing where the other is 0."""

    top: Reading
    bottom: Reading

    def promql(self) -> str:
        """Write it for Prometheus."""
        return f"{self.top.promql()} / {self.bottom.promql()}"

    def values(self, history: History, now_s: float) -> Vector:
        """Evaluate it as of `now_s`."""
        top, bottom = self.top.values(history, now_s), self.bottom.values(history, now_s)
        return {labels: value / bottom[labels] for labels, value in top.items() if bottom.get(labels)}


@dataclass(frozen=True)
class Compare:
    """Something read, against a number, or against something else read `times` over."""

    left: Reading | Share
    op: str
    right: float | Reading | Share
    times: float = 1.0

    def promql(self) -> str:
        """Write it for Prometheus."""
        right = (
            f"{self.right:g}" if isinstance(self.right, int | float) else f"{self.times:g} * ({self.right.promql()})"
        )
        return f"{self.left.promql()} {self.op} {right}"

    def readings(self) -> Iterable[Reading]:
        """Give every reading in it."""
        for side in (self.left, self.right):
            if isinstance(side, Share):
                yield from (side.top, side.bottom)
            elif isinstance(side, Reading):
                yield side

    def values(self, history: History, now_s: float) -> Vector:
        """Give what stands on the left where it is true."""
        left, holds = self.left.values(history, now_s), _OPS[self.op]
        if isinstance(self.right, int | float):
            return {labels: value for labels, value in left.items() if holds(value, self.right)}
        right = self.right.values(history, now_s)
        return {k: value for k, value in left.items() if k in right and holds(value, right[k] * self.times)}


def holds(alternatives: Sequence[Sequence[Compare]], history: History, now_s: float) -> Vector:
    """Give, by labels, what the first comparison of an alternative read, where all of that alternative are true."""
    found: Vector = {}
    for together in alternatives:
        first, *others = [one.values(history, now_s) for one in together]
        found.update({labels: value for labels, value in first.items() if all(labels in one for one in others)})
    return found


def promql(alternatives: Sequence[Sequence[Compare]]) -> str:
    """Write alternatives of comparisons for Prometheus; `and` binds tighter than `or`."""
    return " or ".join(" and ".join(one.promql() for one in together) for together in alternatives)
