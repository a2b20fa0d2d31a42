"""Topology: the table that runs; it is also what is drawn, checked for cycles and rendered.

Each agent reads exactly one topic. Everything flows one way: a topic is only ever written because of topics above it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from agents import batching, graph, intake, metadata, pairing, reactions, releases, review, rewards
from schemas import topics as t
from streams.fold import Stage

TICKED = (t.SIGNALS, t.INTERACTIONS, t.PREFERENCES)  # topics whose agents wait for log time
ALWAYS = (t.DEAD_LETTERS, t.ALERTS)  # every stage may say that something was wrong


@dataclass(frozen=True)
class Outside:
    """A process that is no agent: what it reads and writes."""

    name: str
    reads: tuple[t.Topic, ...]
    writes: tuple[t.Topic, ...]


@dataclass(frozen=True)
class Tuning:
    """What an operator may set of the agents. It is part of a stage's version: change it on a drained log."""

    ages_ms: tuple[int, ...] = (900_000, 21_600_000)  # 15 minutes, 6 hours
    margin_min: float = 0.05
    measuring: graph.Limits = field(default_factory=graph.Limits)
    limits: batching.Limits = field(default_factory=batching.Limits)


OUTSIDE = (
    Outside("ingest", (), (t.TWEETS, t.DEAD_LETTERS, t.ALERTS)),
    Outside("people", (), (t.FEEDBACK,)),
    Outside("server", (t.MODEL_RELEASES,), (t.ANSWERS, t.FEEDBACK, t.ALERTS)),
    Outside("ticker", (), TICKED),
    Outside("embedder", (t.TWEETS,), (t.ERASURES, t.ALERTS)),
    Outside("sink", (t.TWEETS,), (t.ERASURES, t.ALERTS)),
    Outside("trainer", (t.BATCHES,), (t.CANDIDATES, t.ALERTS)),
    Outside("operator", (), (t.CANDIDATES,)),
)
"""The sink copies every topic into tables; only what it erases there follows from what it reads.

The circle closes outside the program, through people: the server's reading of releases makes no cycle because
nobody's answer becomes a preference without a person's (or, marked so, a simulated person's) judgement."""


def stages(tuning: Tuning | None = None) -> tuple[Stage, ...]:
    """Give the table with the operator's tuning in it."""
    tuning = tuning or Tuning()
    return (
        Stage(
            "metadata",
            4,
            t.TWEETS,
            (t.FEATURES, t.REACTIONS, t.INTERACTIONS, t.SIGNALS, t.ERASURES, *ALWAYS),
            metadata.State,
            metadata.State,
            metadata.step,
        ),
        Stage("reactions", 1, t.REACTIONS, (t.SIGNALS, *ALWAYS), reactions.State, reactions.State, reactions.step),
        Stage(
            "graph",
            1,
            t.INTERACTIONS,
            (t.SIGNALS, t.GRAPH, *ALWAYS),
            graph.State,
            graph.State,
            partial(graph.step, limits=tuning.measuring),
        ),
        Stage("intake", 1, t.FEEDBACK, (t.SIGNALS, *ALWAYS), dict, intake.State, intake.step),
        Stage("review", 1, t.ANSWERS, (t.SIGNALS, *ALWAYS), dict, review.State, review.step),
        Stage(
            "rewards",
            3,
            t.SIGNALS,
            (t.REWARDS, *ALWAYS),
            rewards.State,
            rewards.State,
            partial(rewards.step, ages_ms=tuning.ages_ms),
        ),
        Stage(
            "pairing",
            1,
            t.REWARDS,
            (t.PREFERENCES, *ALWAYS),
            pairing.State,
            pairing.State,
            partial(pairing.step, margin_min=tuning.margin_min),
        ),
        Stage(
            "batching",
            1,
            t.PREFERENCES,
            (t.BATCHES, *ALWAYS),
            batching.State,
            batching.State,
            partial(batching.step, limits=tuning.limits),
        ),
        Stage(
            "releases",
            1,
            t.CANDIDATES,
            (t.MODELS, t.MODEL_RELEASES, *ALWAYS),
            releases.State,
            releases.State,
            releases.step,
        ),
    )


def edges(table: Iterable[Stage]) -> list[tuple[str, str, str]]:
    """List (topic read, who, topic written) for stages and outside processes; '' where nothing is read."""
    found = [(stage.reads.name, stage.name, topic.name) for stage in table for topic in stage.writes]
    for process in OUTSIDE:
        for topic in process.writes:
            found.extend(
                (read.name if process.name != "server" else "", process.name, topic.name) for read in process.reads
            )
            if not process.reads:
                found.append(("", process.name, topic.name))
    return found


def cycle(table: Iterable[Stage]) -> list[str]:
    """Find a cycle of topics, or give []. Promised: always []."""
    ahead: dict[str, set[str]] = {}
    for read, _, written in edges(table):
        ahead.setdefault(read, set()).add(written)
    done: set[str] = set()

    def walk(topic: str, path: list[str]) -> list[str]:
        if topic in path:
            return path[path.index(topic) :] + [topic]
        if topic in done:
            return []
        for following in sorted(ahead.get(topic, ())):
            found = walk(following, [*path, topic])
            if found:
                return found
        done.add(topic)
        return []

    for topic in sorted(ahead):
        found = walk(topic, [])
        if found:
            return found
    return []
