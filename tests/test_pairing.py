"""Final rewards under one prompt become pairs, and leave with what they were made of."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import pairing
from schemas import events as e
from schemas import facts, learned
from tests.folding import (
    reward,
    run,
)


def pairs(*events: facts.Event, state: pairing.State | None = None) -> list[Any]:
    return run(pairing.step, state or pairing.State(), *events, margin_min=0.05)


def test_the_better_is_chosen_whichever_closed_first() -> None:
    low, high = reward("p/a", 0.1), reward("p/b", 0.7)
    for order in ((low, high), (high, low)):
        (pair,) = pairs(*order)
        assert (pair.chosen.subject, pair.rejected.subject) == ("p/b", "p/a")
        assert (pair.margin, pair.weight, pair.origin, pair.simulated) == (0.6, 0.6, "feedback", False)
    assert pairs(low, high)[0].pair == pairs(high, low)[0].pair


def test_siblings_weigh_half() -> None:
    (pair,) = pairs(reward("p/a", 0.1, "reply"), reward("p/b", 0.7, "reply"))
    assert (pair.weight, pair.origin) == (0.3, "siblings")


@pytest.mark.parametrize(
    "more",
    [
        {"final": False},
        {"trainable": False},
        {"kind": "root"},
        {"prompt_hash": None},
        {"components": facts.Components(content=0.9, temporal=0.9)},
        {"kind": "reply"},
        {"text_hash": (b"p/a".hex() + "0" * 64)[:64]},
    ],
    ids=str,
)
def test_what_the_policy_or_the_measure_does_not_allow_makes_no_pair(more: dict[str, Any]) -> None:
    assert len(pairs(reward("p/a", 0.1), reward("p/b", 0.7))) == 1
    assert pairs(reward("p/a", 0.1), reward("p/b", 0.7, **more)) == []


def test_rewards_that_hardly_differ_make_no_pair() -> None:
    assert pairs(reward("p/a", 0.1), reward("p/b", 0.149)) == []
    assert len(pairs(reward("p/a", 0.1), reward("p/b", 0.16))) == 1
    assert pairs(reward("p/a", 0.1), reward("q/b", 0.9)) == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.data())
def test_n_siblings_make_at_most_n_minus_one_pairs_and_no_one_is_paired_with_itself(
    totals: list[float], data: st.DataObject
) -> None:
    events = [reward(f"p/{i}", total) for i, total in enumerate(totals)]
    again = data.draw(st.lists(st.sampled_from(events), max_size=4))
    said = pairs(*events, *again)
    assert len(said) <= len(totals) - 1
    assert len({pair.pair for pair in said}) == len(said)
    for pair in said:
        assert pair.chosen.reward >= pair.rejected.reward + 0.05
    if max(totals) - min(totals) >= 0.05:
        assert said


def test_a_withdrawn_subject_takes_its_pairs_with_it() -> None:
    state = pairing.State()
    formed = pairs(reward("p/a", 0.1), reward("p/b", 0.7), reward("p/c", 0.9), state=state)
    assert [pair.rejected.subject for pair in formed] == ["p/a", "p/a"]
    away = e.RewardWithdrawn(prompt="p", subject="p/c", reason="post-deleted")
    assert pairs(away, state=state) == [learned.PairWithdrawn(pair=formed[1].pair, reason="post-deleted")]
    assert pairs(away, state=state) == []
    (pair,) = pairs(reward("p/d", -0.9), state=state)
    assert "p/c" not in (pair.chosen.subject, pair.rejected.subject)


def test_a_prompt_that_is_deleted_takes_every_pair_under_it() -> None:
    state = pairing.State()
    formed = pairs(reward("p/a", 0.1), reward("p/b", 0.7), reward("p/c", 0.9), reward("q/a", 0), state=state)
    said = pairs(e.RewardWithdrawn(prompt="p", subject="p/p", reason="post-deleted"), state=state)
    assert [one.pair for one in said] == [one.pair for one in formed]


def test_a_simulated_judgement_marks_the_pair() -> None:
    assert pairs(reward("p/a", 0.1, simulated=1), reward("p/b", 0.7))[0].simulated
    assert pairs(reward("p/a", 0.1), reward("p/b", 0.7, policy="simulator"))[0].simulated
