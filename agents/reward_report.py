"""Reward report: closed rewards -> how often each component was there, and whether it agrees with people.

Pure, over RewardClosed and RewardWithdrawn in the order of the log: of each subject the newest reward counts, a
withdrawn one does not. Simulated judgements never stand for real ones: subjects judged only by people and subjects
judged only by simulated raters are correlated apart, mixed ones in neither.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.rewards import WEIGHTS
from schemas.events import RewardClosed, RewardWithdrawn
from schemas.facts import Event

CORRELATED_MIN = 3  # with two points every correlation is 1 or -1
COLUMNS = (
    "component", "present", "mean",
    "real n", "real Pearson", "real Spearman",
    "simulated n", "simulated Pearson", "simulated Spearman",
)  # fmt: skip


class Agreement(NamedTuple):
    """Correlation with the human component over n subjects; None where it says nothing (n < 3 or no variance)."""

    n: int
    pearson: float | None
    spearman: float | None


class ReportRow(NamedTuple):
    """One component: the share of subjects that have it, its mean there, and its agreement with judgements."""

    component: str
    present: float | None
    mean: float | None
    real: Agreement
    simulated: Agreement

    def cells(self) -> tuple[str, ...]:
        """Render for a table under COLUMNS; "-" where there is nothing to say."""
        numbers = (self.present, self.mean, *self.real, *self.simulated)
        return (
            self.component,
            *("-" if one is None else str(one) if isinstance(one, int) else f"{one:.3f}" for one in numbers),
        )


def reward_report(events: Iterable[Event]) -> list[ReportRow]:
    """Give a row for each component, in the order of their weights."""
    newest: dict[str, RewardClosed] = {}
    for event in events:
        if isinstance(event, RewardClosed):
            newest[event.subject] = event
        elif isinstance(event, RewardWithdrawn):
            newest.pop(event.subject, None)
    closed = list(newest.values())
    judged = [one for one in closed if one.components.human is not None]
    real = [one for one in judged if one.simulated == 0]
    simulated = [one for one in judged if one.simulated == one.judgements]
    rows = []
    for component in WEIGHTS:
        values = [value for one in closed if (value := getattr(one.components, component)) is not None]
        rows.append(
            ReportRow(
                component,
                len(values) / len(closed) if closed else None,
                float(np.mean(values)) if values else None,
                _agreement(real, component),
                _agreement(simulated, component),
            )
        )
    return rows


def _agreement(judged: Sequence[RewardClosed], component: str) -> Agreement:
    both = [
        (one.components.human, value)
        for one in judged
        if (value := getattr(one.components, component)) is not None and one.components.human is not None
    ]
    if component == "human" or len(both) < CORRELATED_MIN:  # with itself it is always 1
        return Agreement(len(both), None, None)
    human, own = np.array(both, np.float64).T
    return Agreement(len(both), pearson(human, own), pearson(mid_ranks(human), mid_ranks(own)))


def mid_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rank from 0; equal values share the mean of their ranks."""
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(ties) - (ties + 1) / 2)[place])


def pearson(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float | None:
    """Give the correlation coefficient; None where one of the two does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), -1.0, 1.0))
