"""Counts that a source does not give are made of its single acts: each counts once, and taking it back is exact."""

from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import reactions
from schemas import events as e
from schemas import facts
from tests.folding import HOUR_MS, T0_MS, record, run, state_bytes

KINDS = ("like", "reply", "repost", "quote")
FIELDS = {"like": "likes", "reply": "replies", "repost": "reposts", "quote": "quotes"}


def placed(post: str = "p", prompt: str = "p", claimed_ms: int | None = None) -> e.PostPlaced:
    return e.PostPlaced(post=post, prompt=prompt, source="bluesky", claimed_ms=claimed_ms)


def noted(act: str, kind: str = "like", post: str = "p") -> e.ReactionNoted:
    return e.ReactionNoted(post=post, act=act, actor="ron", kind=kind)


def withdrawn(act: str, post: str = "p") -> e.ReactionWithdrawn:
    return e.ReactionWithdrawn(post=post, act=act)


def counted(*events: Any) -> list[facts.Event]:
    return run(reactions.step, reactions.State(), *events)


def test_every_change_of_a_count_is_said_with_its_age() -> None:
    said = counted(
        (placed("r", "p", T0_MS), T0_MS), (noted("a", post="r"), T0_MS + HOUR_MS), (withdrawn("a", "r"), T0_MS + 9)
    )
    first = e.EngagementNoted(prompt="p", subject="p/r", age_ms=0)
    assert said == [
        first,
        first.model_copy(update={"likes": 1, "age_ms": HOUR_MS}),
        first.model_copy(update={"age_ms": 9}),
    ]


def test_each_kind_is_counted_for_itself() -> None:
    said = counted(placed(), *[noted(f"{kind}{i}", kind) for kind in KINDS for i in range(KINDS.index(kind) + 1)])
    last = said[-1]
    assert isinstance(last, e.EngagementNoted)
    assert (last.likes, last.replies, last.reposts, last.quotes, last.bookmarks, last.views) == (1, 2, 3, 4, 0, None)


def test_an_act_counts_once_and_what_was_taken_back_does_not_come_again() -> None:
    said = counted(placed(), noted("a"), noted("a"), noted("a", "repost"), withdrawn("a"), withdrawn("a"), noted("a"))
    assert [one.likes for one in said] == [0, 1, 0]
    assert [one.likes for one in counted(placed(), withdrawn("a"), noted("a"), noted("b"))] == [0, 1]


def test_reactions_that_come_before_their_post_wait_for_it() -> None:
    said = counted(noted("a"), noted("b"), withdrawn("a"), placed(), placed(prompt="other"))
    assert [(one.likes, one.subject) for one in said] == [(1, "p/p")]
    assert counted(noted("a"), noted("b", post="q")) == []


@pytest.mark.parametrize("claimed_ms", [None, 0, T0_MS + 10 * HOUR_MS])
def test_a_date_that_cannot_be_gives_no_age(claimed_ms: int | None) -> None:
    (one,) = counted(placed(claimed_ms=claimed_ms))
    assert one.age_ms is None


def test_memory_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("POSTS_MAX", "WAITING_MAX", "ACTS_MAX"):
        monkeypatch.setattr(reactions, limit, 3)
    state = reactions.State()
    run(reactions.step, state, *[placed(f"p{i}") for i in range(9)], *[noted(f"a{i}", post=f"q{i}") for i in range(9)])
    assert (list(state.posts), list(state.waiting), len(state.acts)) == (["p6", "p7", "p8"], ["q6", "q7", "q8"], 3)
    assert run(reactions.step, state, noted("b", post="p0")) == []
    assert [one.likes for one in run(reactions.step, state, noted("c", post="p8"), noted("d", post="p8"))] == [1, 2]
    # An act that was forgotten stays counted.
    run(reactions.step, state, noted("x", post="p7"), noted("y", post="p7"), noted("z", post="p7"))
    assert run(reactions.step, state, withdrawn("c", "p8")) == []
    assert state.posts["p8"].like == 2


NAMES = st.sampled_from("abc")
ACTS = st.one_of(
    st.builds(noted, NAMES, st.sampled_from(KINDS), NAMES),
    st.builds(withdrawn, NAMES, NAMES),
    st.builds(placed, NAMES, st.just("a")),
)


def rule(events: list[facts.Event]) -> dict[str, Counter[str]]:
    """Say by hand what stands: for every post, the first kind of each act that is never withdrawn."""
    gone = {(one.post, one.act) for one in events if isinstance(one, e.ReactionWithdrawn)}
    first: dict[tuple[str, str], str] = {}
    for one in events:
        if isinstance(one, e.ReactionNoted) and (one.post, one.act) not in gone:
            first.setdefault((one.post, one.act), one.kind)
    stands: dict[str, Counter[str]] = {one.post: Counter() for one in events if isinstance(one, e.PostPlaced)}
    for (post, _), kind in first.items():
        if post in stands:
            stands[post][kind] += 1
    return stands


def differs(step: Any, events: list[facts.Event]) -> bool:
    state, last = reactions.State(), {}
    for offset, event in enumerate(events):
        outs, state = step([record(event, offset)], state)
        last.update({out.event.subject: out.event for out in outs})
    found = {
        subject.split("/")[1]: {kind: getattr(one, field) for kind, field in FIELDS.items()}
        for subject, one in last.items()
    }
    return found != {post: {kind: count[kind] for kind in KINDS} for post, count in rule(events).items()}


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTS, max_size=30))
def test_what_was_said_last_of_every_post_is_what_stands(events: list[facts.Event]) -> None:
    assert not differs(reactions.step, events)


def test_control_counting_without_names_would_be_noticed() -> None:
    def forgetful(chunk: Any, state: reactions.State) -> Any:
        state.acts.clear()
        return reactions.step(chunk, state)

    assert differs(forgetful, [placed("a", "a"), noted("b", "like", "a"), noted("b", "like", "a")])
    assert differs(forgetful, [placed("a", "a"), noted("b", "like", "a"), withdrawn("b", "a")])


@settings(max_examples=100, deadline=None)
@given(st.lists(ACTS, max_size=20), st.data())
def test_a_snapshot_anywhere_changes_nothing(events: list[facts.Event], data: st.DataObject) -> None:
    records = [record(event, offset) for offset, event in enumerate(events)]
    whole, state = reactions.step(records, reactions.State())
    cuts = sorted(data.draw(st.sets(st.integers(0, len(records)))))
    parts, kept = [], reactions.State()
    for start, end in pairwise([0, *cuts, len(records)]):
        outs, kept = reactions.step(records[start:end], kept)
        kept = msgspec.msgpack.decode(state_bytes(kept), type=reactions.State)
        parts.extend(outs)
    assert parts == whole
    assert state_bytes(kept) == state_bytes(state)
