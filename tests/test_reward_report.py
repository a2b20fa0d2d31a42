"""The reward report says how often a component was there, and never lets simulated judgements stand for real ones."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import reward_report as rr
from schemas import events as e
from schemas import facts
from tests.folding import reward


def judged(number: int, human: float | None, simulated: int = 0, **parts: Any) -> e.RewardClosed:
    parts = {"content": 0.0, **parts}
    return reward(f"p/{number}", 0.0, components=facts.Components(human=human, **parts), simulated=simulated)


def row(events: list[Any], component: str) -> rr.ReportRow:
    return next(one for one in rr.reward_report(events) if one.component == component)


def test_a_component_has_its_share_its_mean_and_its_agreement() -> None:
    events = [judged(i, human, network=network) for i, (human, network) in enumerate([(-1, -0.5), (0, 0.1), (1, 0.4)])]
    found = row([*events, judged(9, None)], "network")
    assert (found.present, found.mean) == (0.75, pytest.approx(0.0))
    assert found.real.n == 3
    assert found.real.pearson == pytest.approx(np.corrcoef([-1, 0, 1], [-0.5, 0.1, 0.4])[0, 1])
    assert found.real.spearman == pytest.approx(1.0)
    assert found.simulated == rr.Agreement(0, None, None)


def test_real_and_simulated_judgements_are_kept_apart_and_mixed_ones_are_in_neither() -> None:
    real = [judged(i, i / 5, network=i / 5) for i in range(5)]
    simulated = [judged(10 + i, i / 5, 1, network=-i / 5) for i in range(5)]
    mixed = reward("p/20", 0.0, components=facts.Components(human=0.5, network=0.5), simulated=1).model_copy(
        update={"judgements": 2}
    )
    found = row([*real, *simulated, mixed], "network")
    assert (found.real.n, found.simulated.n) == (5, 5)
    assert (found.real.pearson, found.simulated.pearson) == (pytest.approx(1), pytest.approx(-1))


def test_two_subjects_or_no_variance_say_nothing() -> None:
    two = [judged(i, i / 2, network=i / 2) for i in range(2)]
    assert row(two, "network").real == rr.Agreement(2, None, None)
    flat = [judged(i, i / 5, network=0.3) for i in range(5)]
    assert row(flat, "network").real == rr.Agreement(5, None, None)
    assert row(flat, "network").cells() == ("network", "1.000", "0.300", "5", "-", "-", "0", "-", "-")
    assert row([], "human").cells() == ("human", "-", "-", "0", "-", "-", "0", "-", "-")


def test_the_newest_reward_of_a_subject_counts_and_a_withdrawn_one_does_not() -> None:
    events = [judged(1, 0.5, content=0.1), judged(1, 0.5, content=0.9), judged(2, 0.5, content=0.5)]
    away = e.RewardWithdrawn(prompt="p", subject="p/2", reason="post-deleted")
    assert row([*events, away], "content").mean == pytest.approx(0.9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30))
def test_the_correlations_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with sentence-transformers")
    a, b = np.array(pairs, float).T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert rr.pearson(a, b) is None
        return
    assert rr.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert rr.pearson(rr.mid_ranks(a), rr.mid_ranks(b)) == pytest.approx(stats.spearmanr(a, b).statistic)
