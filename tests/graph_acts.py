"""Graph acts: events of authors towards each other, and what the step `graph` says of them."""

from typing import Any

from agents import graph
from schemas import events as e
from tests.folding import T0_MS, of, run

HALF_LIFE_MS = 1_000_000

LIMITS = graph.Limits(every_ms=1000, half_life_ms=HALF_LIFE_MS)


def tick(after_ms: int) -> e.Ticked:
    return e.Ticked(at_ms=T0_MS + after_ms)


def said(*events: Any, state: graph.State | None = None, limits: graph.Limits = LIMITS) -> list[Any]:
    return run(graph.step, state if state is not None else graph.State(), *events, limits=limits)


def measured(*events: Any) -> e.GraphMeasured:
    return of(e.GraphMeasured, said(*events))[-1]
