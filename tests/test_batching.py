"""Pairs close into batches whose root does not depend on the order of arrival."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import batching
from schemas import learned, merkle
from tests.folding import (
    T0_MS,
    WHERE,
    gone_pair,
    pair,
    run,
    ticked,
)

LIMITS = batching.Limits(pairs_max=3, pairs_min=2, age_ms=1000, chars_max=1000)


def batches(*events: Any, state: batching.State | None = None, limits: batching.Limits = LIMITS) -> list[Any]:
    return run(batching.step, state or batching.State(), *events, limits=limits)


def test_a_batch_closes_by_count() -> None:
    one, two = batches(*[pair(i) for i in range(7)])
    assert [(b.sequence, b.closed_by, len(b.pairs)) for b in (one, two)] == [(0, "count", 3), (1, "count", 3)]
    assert (one.first_offset, one.last_offset, two.first_offset, two.last_offset) == (0, 2, 3, 5)


def test_a_batch_closes_by_age_in_log_time_and_only_with_enough_pairs() -> None:
    assert batches(pair(0), ticked(60_000)) == []
    assert batches((pair(0), T0_MS), (pair(1), T0_MS + 900), ticked(999)) == []
    (batch,) = batches((pair(0), T0_MS), (pair(1), T0_MS + 900), ticked(1000), ticked(9999))
    assert (batch.closed_by, batch.opened_ms, batch.closed_ms) == ("age", T0_MS, T0_MS + 1000)
    assert batches(ticked(60_000)) == []


def test_a_batch_closes_by_its_budget_of_characters() -> None:
    (batch,) = batches(pair(0, chars=600), pair(1, chars=400))
    assert (batch.closed_by, len(batch.pairs)) == ("budget", 2)
    away = gone_pair(0)
    assert batches(pair(0, chars=600), away, pair(1, chars=400)) == []
    assert batches(pair(0, chars=600), pair(1, chars=100), away, pair(2, chars=400)) == []


@settings(max_examples=100, deadline=None)
@given(st.permutations([pair(i) for i in range(6)]))
def test_the_root_does_not_depend_on_the_order_of_arrival(some: list[learned.PairFormed]) -> None:
    limits = batching.Limits(pairs_max=6)
    (batch,) = batches(*some, limits=limits)
    (other,) = batches(*[pair(i) for i in range(6)], limits=limits)
    assert (batch.root, batch.batch) == (other.root, other.batch)
    assert [ref.pair for ref in batch.pairs] == sorted(one.pair for one in some)
    assert [some[ref.offset].pair for ref in batch.pairs] == [ref.pair for ref in batch.pairs]
    assert batch.root == merkle.root([batching.pair_leaf(pair(i)) for i in range(6)]).hex()


def test_a_withdrawn_pair_leaves_the_open_batch_and_no_closed_one() -> None:
    away = gone_pair(0)
    (batch,) = batches(pair(0), pair(1), away, pair(2), pair(3))
    assert [ref.pair for ref in batch.pairs] == [pair(i).pair for i in (1, 2, 3)]
    assert len(batches(pair(0), pair(1), pair(2), away)[0].pairs) == 3


def test_a_pair_said_twice_is_in_the_batch_once() -> None:
    (batch,) = batches(pair(0), pair(0), pair(1), pair(2))
    assert len(batch.pairs) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"pair": "f" * 32},
        {"prompt": "q"},
        {"prompt_hash": "e" * 64},
        {"weight": 0.25},
        {"chosen": pair(0).rejected},
        {"rejected": pair(0).chosen},
        {"chosen": pair(0).chosen.model_copy(update={"text_hash": "e" * 64})},
        {"rejected": pair(0).rejected.model_copy(update={"text_hash": "e" * 64})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_leaf_pins_what_makes_a_pair_this_pair(change: dict[str, Any]) -> None:
    assert batching.pair_leaf(pair(0).model_copy(update=change)) != batching.pair_leaf(pair(0))


def test_a_leaf_says_nothing_of_place_and_time() -> None:
    moved = pair(0).chosen.model_copy(update={"where": WHERE.model_copy(update={"offset": 77})})
    assert batching.pair_leaf(pair(0).model_copy(update={"chosen": moved})) == batching.pair_leaf(pair(0))
    known = "\n".join([f"{0:032x}", "p", "b" * 64, "p/a", "d" * 64, "p/b", "d" * 64, "0.500000"])
    assert batching.pair_leaf(pair(0)) == merkle.leaf(known.encode())
