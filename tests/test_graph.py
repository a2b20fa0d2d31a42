"""The graph forgets exactly, measures on schedule and holds no more than its bounds."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import acts, graph, influence
from schemas import events as e
from schemas import facts
from tests.folding import T0_MS, act, of, state_bytes
from tests.graph_acts import HALF_LIFE_MS, measured, said, tick


def undone(post: str, actor: str) -> e.InteractionWithdrawn:
    return e.InteractionWithdrawn(post=post, actor=actor)


def posted(post: str, owner: str, prompt: str | None = None) -> e.PostNoted:
    return e.PostNoted(post=post, prompt=prompt or post, owner=owner, source="x")


def edges_of(*events: Any, after_ms: int = 1000) -> dict[tuple[str, str], float]:
    """Give the edges as a measure sees them."""
    state = graph.State()
    said(*events, tick(after_ms), state=state)
    given_ = influence.edges(state.acts.table(), len(state.acts.names), T0_MS + after_ms, HALF_LIFE_MS)
    names = state.acts.names
    return {(names[a], names[b]): round(float(w), 6) for a, b, w in zip(*given_[:3], strict=True)}


def weighs(total: float) -> float:
    return round(total / (1 + total / influence.GIVEN_MAX), 6)


# ---- deletions are exact --------------------------------------------------------------------------------------------


NAMES = ("ann", "bob", "cat", "dan")

POSTS = tuple(f"p{i}" for i in range(8))  # p0 is ann's, p1 bob's, ...

OWN = st.builds(
    lambda i, target, kind, towards: act(
        f"p{i}", NAMES[i % 4], target if towards is None else None, kind, target_post=towards
    ),
    st.integers(0, 7),
    st.sampled_from(NAMES),
    st.sampled_from(acts.KINDS[1:]),
    st.none() | st.sampled_from(POSTS),
)

NOTED = st.builds(lambda i: posted(f"p{i}", NAMES[i % 4]), st.integers(0, 7))


def after_a_measure(events: Sequence[Any]) -> tuple[bytes, e.GraphMeasured | None]:
    """Give the acts' bytes and what was measured of them; times do not depend on what else is there."""
    state = graph.State()
    measures = of(
        e.GraphMeasured,
        said(*[(one, T0_MS) for one in events], (act("end", "ann", "bob"), T0_MS), tick(10), state=state),
    )
    return state_bytes(state.acts), measures[-1]


@settings(max_examples=200, deadline=None)
@given(st.lists(OWN | NOTED, max_size=20), st.sets(st.sampled_from(POSTS)), st.data())
def test_acts_added_and_taken_back_leave_the_state_that_never_had_them(
    events: list[Any], gone: set[str], data: st.DataObject
) -> None:
    without = [one for one in events if isinstance(one, e.PostNoted) or one.post not in gone]
    with_them = list(events)
    for post in sorted(gone & {one.post for one in events if isinstance(one, e.InteractionObserved)}):
        last = max(i for i, one in enumerate(with_them) if getattr(one, "post", None) == post)
        at = data.draw(st.integers(last + 1, len(with_them)))
        with_them.insert(at, undone(post, NAMES[int(post[1]) % 4]))
    assert after_a_measure(with_them) == after_a_measure(without)


def test_a_state_of_running_sums_would_be_noticed() -> None:
    """The usual shortcut: one number a pair, added to and taken from. It cannot know what an act was worth."""

    def sums(events: Iterable[Any]) -> dict[tuple[str, str], float]:
        total: dict[tuple[str, str], float] = {}
        for one in events:
            if isinstance(one, e.InteractionObserved):
                pair = (one.actor, one.target or "")
                total[pair] = total.get(pair, 0.0) + influence.WEIGHTS[one.kind]
            else:
                pair = next(pair for pair in total if pair[0] == one.actor)
                total[pair] -= influence.WEIGHTS["reply"]
        return {pair: value for pair, value in total.items() if value}

    twice = [act("p0", "ann", "bob"), act("p0", "ann", "bob"), undone("p0", "ann")]  # an edit says its edges again
    other = [act("p0", "ann", "bob", "like"), undone("p0", "ann")]
    for events in (twice, other):
        assert sums(events) != sums([])
        assert edges_of(*events) == {}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_ring_of_acts_holds_what_a_plain_list_would(data: st.DataObject) -> None:
    """Acts against a model of them, through wrapping, forgetting, compacting and coming back from bytes."""
    original, acts.ACTS_MAX = acts.ACTS_MAX, 6
    try:
        ring, model = acts.Acts(), []  # model: [post, actor, kind, target] or None where removed, at most six
        for step in range(data.draw(st.integers(1, 40))):
            post, actor = data.draw(st.sampled_from(POSTS)), data.draw(st.sampled_from(NAMES))
            do = data.draw(st.sampled_from(["add"] * 6 + ["back", "forget", "compact", "bytes"]))
            if do == "add":
                kind, target = data.draw(st.sampled_from(acts.KINDS[1:])), data.draw(st.sampled_from(NAMES))
                mine = [one for one in model if one and one[0] == post]
                fresh = (
                    actor != target and all(one[1] == actor for one in mine) and [post, actor, kind, target] not in mine
                )
                assert ring.add(post, actor, kind, target, None, step, step) == fresh
                if fresh:
                    model = [*model, [post, actor, kind, target]][-6:]
            elif do == "back":
                there = [post, actor] in [one[:2] for one in model if one]
                assert ring.take_back(post, actor) == there
                model = [None if one and one[:2] == [post, actor] else one for one in model]
            elif do == "forget":
                ring.forget(actor)
                model = [None if one and actor in (one[1], one[3]) else one for one in model]
                ring.compact(None, [])  # until then the dead act's name is taken, as the docstring has it
                model = [one for one in model if one]
            elif do == "compact":
                ring.compact(None, [])
                model = [one for one in model if one]
            else:
                ring = msgspec.msgpack.decode(msgspec.msgpack.encode(ring), type=acts.Acts)
            rows = ring.table()
            live = [
                (row["post"], ring.names[row["actor"]], acts.KINDS[row["kind"]], ring.names[row["target"]])
                for row in rows
                if row["kind"] != acts.GONE
            ]
            assert live == [(acts.key(one[0]), *one[1:]) for one in model if one]
    finally:
        acts.ACTS_MAX = original


def test_an_act_taken_back_before_it_was_seen_never_counts() -> None:
    assert edges_of(undone("p", "ann"), act("p", "ann", "bob")) == {}
    assert edges_of(undone("p", "eve"), act("p", "ann", "bob")) != {}


def test_nobody_takes_back_what_another_did() -> None:
    assert edges_of(act("p", "ann", "bob"), undone("p", "eve")) == {("ann", "bob"): weighs(1.5)}


def test_a_forgotten_author_is_in_no_edge_until_they_post_again() -> None:
    before = [act("p", "ann", "bob"), act("q", "bob", "cat"), act("r", "cat", "ann"), posted("s", "bob")]
    gone = [*before, e.AuthorWithdrawn(owner="bob", reason="erased")]
    assert set(edges_of(*gone)) == {("cat", "ann")}
    later = [act("t", "ann", "bob"), act("u", "cat", target_post="s"), act("q", "bob", "cat")]
    assert set(edges_of(*gone, *later)) == {("cat", "ann")}
    back = [posted("v", "bob"), act("w", "ann", "bob"), act("q", "bob", "cat")]
    assert set(edges_of(*gone, *later, *back)) == {("cat", "ann"), ("ann", "bob"), ("bob", "cat")}


# ---- what makes an edge ---------------------------------------------------------------------------------------------


def test_an_act_towards_a_post_finds_its_author_whichever_comes_first() -> None:
    towards = act("r", "ann", target_post="p")
    assert (
        edges_of(posted("p", "bob"), towards) == edges_of(towards, posted("p", "bob")) == {("ann", "bob"): weighs(1.5)}
    )
    assert edges_of(towards) == {}


def test_an_act_whose_post_comes_after_the_first_measure_counts_in_the_second() -> None:
    state = graph.State()
    first = said(act("r", "ann", target_post="p"), tick(0), state=state)
    assert [one.edges for one in first] == [0]
    second = said(posted("p", "bob"), act("q", "bob", "cat"), tick(5000), state=state)
    assert of(e.GraphMeasured, second)[0].edges == 2


def test_acts_towards_oneself_never_count() -> None:
    own = [act("p", "ann", "ann"), act("q", "ann", target_post="o"), posted("o", "ann")]
    assert edges_of(*own, act("r", "bob", "ann")) == {("bob", "ann"): weighs(1.5)}


def test_the_same_act_said_again_counts_once_and_another_of_the_same_post_counts_too() -> None:
    once = edges_of(act("p", "ann", "bob"))
    assert edges_of(act("p", "ann", "bob"), act("p", "ann", "bob")) == once
    assert edges_of(act("p", "ann", "bob"), act("p", "ann", "bob", "mention")) == {("ann", "bob"): weighs(2.5)}


def test_repetition_saturates() -> None:
    often = edges_of(*[act(f"p{i}", "ann", "bob") for i in range(500)])
    assert influence.GIVEN_MAX * 0.99 < often["ann", "bob"] < influence.GIVEN_MAX


def test_a_post_that_mentions_a_crowd_counts_towards_so_many_only() -> None:
    crowd = [act("p", "ann", f"u{i}", "mention") for i in range(acts.ACTS_A_POST_MAX + 20)]
    assert len(edges_of(*crowd)) == acts.ACTS_A_POST_MAX


def test_an_act_fades_by_half_in_a_half_life_and_a_follow_stands() -> None:
    seen = [act("p", "ann", "bob", at_ms=T0_MS), act("q", "ann", "cat", "follow", at_ms=T0_MS)]
    now, later = edges_of(*seen), edges_of(*seen, after_ms=HALF_LIFE_MS)
    assert later == {("ann", "bob"): pytest.approx(weighs(0.75), abs=0.01), ("ann", "cat"): now["ann", "cat"]}
    assert set(edges_of(*seen, after_ms=9 * HALF_LIFE_MS)) == {("ann", "cat")}


def test_a_time_in_the_future_does_not_keep_an_act_fresh() -> None:
    late = act("p", "ann", "bob", at_ms=facts.MS_MAX)
    assert edges_of(late, after_ms=HALF_LIFE_MS) == edges_of(act("p", "ann", "bob"), after_ms=HALF_LIFE_MS)


def test_a_block_takes_back_what_its_author_gave_and_nothing_else() -> None:
    gave = [act("p", "ann", "bob"), act("q", "bob", "ann"), act("r", "cat", "bob")]
    blocked = [*gave, act("b", "ann", "bob", "block")]
    assert set(edges_of(*blocked)) == {("bob", "ann"), ("cat", "bob")}
    assert edges_of(*blocked, undone("b", "ann")) == edges_of(*gave)


# ---- when it is measured, and who hears of it -----------------------------------------------------------------------


def test_the_graph_is_measured_on_the_first_tick_that_is_due_and_only_after_a_change() -> None:
    again = act("q", "bob", "ann")
    told = said(
        act("p", "ann", "bob"), tick(0), again, tick(999), tick(1000), tick(9000), act("r", "cat", "ann"), tick(9001)
    )
    assert [one.at_ms - T0_MS for one in told] == [0, 1000, 9001]
    assert said(tick(0), tick(5000)) == []


def test_a_post_is_scored_at_once_where_its_author_is_known_and_else_at_the_next_measure() -> None:
    state = graph.State()
    assert said(act("p", "ann", "bob"), posted("x", "bob", "prompt"), posted("y", "eve"), state=state) == []
    _, waited = said(tick(0), state=state)
    assert waited == e.NetworkNoted(prompt="prompt", subject="prompt/x", score=0.5)  # 2 * 0.75 - 1, of two authors
    assert said(posted("z", "ann"), state=state) == [e.NetworkNoted(prompt="z", subject="z/z", score=-0.5)]
    assert said(posted("v", "cat"), undone("v", "cat"), posted("w", "cat"), state=state) == []
    told = said(act("q", "cat", "bob"), tick(5000), state=state)
    assert [one.subject for one in of(e.NetworkNoted, told)] == ["w/w"]  # y waited for one measure, v was deleted


def test_an_author_without_an_edge_has_no_score() -> None:
    assert of(e.NetworkNoted, said(posted("x", "eve"), act("p", "ann", "bob"), tick(0), posted("y", "eve"))) == []


def test_who_is_acted_on_more_stands_higher_and_equals_stand_alike() -> None:
    found = measured(act("p", "ann", "bob"), act("q", "cat", "bob"), act("r", "dan", "cat"), tick(0))
    assert (found.authors, found.edges, found.communities) == (4, 3, 2)
    assert [one.author for one in found.top] == ["bob", "cat", "ann", "dan"]
    assert [one.acted_on_by for one in found.top] == [2, 1, 0, 0]
    assert found.top[2].percentile == found.top[3].percentile == 0.25
    assert sum(one.influence for one in found.top) == pytest.approx(4)


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_the_oldest_acts_and_posts_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "ACTS_MAX", 3)
    monkeypatch.setattr(acts, "POSTS_MAX", 2)
    assert set(edges_of(*[act(f"p{i}", f"u{i}", "bob") for i in range(5)])) == {(f"u{i}", "bob") for i in (2, 3, 4)}
    noted = [posted(f"q{i}", f"o{i}") for i in range(4)]
    towards = [act(f"p{i}", "ann", target_post=f"q{i}") for i in range(1, 4)]
    assert set(edges_of(*noted, *towards)) == {("ann", "o2"), ("ann", "o3")}
    twice = [posted("q1", "o1"), posted("q1", "o1"), posted("q2", "o2")]
    assert set(edges_of(*twice, *towards)) == {("ann", "o1"), ("ann", "o2")}


def test_a_million_names_hold_no_more_than_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "AUTHORS_MAX", 20)
    monkeypatch.setattr(graph, "WAITING_MAX", 5)
    state = graph.State()
    for i in range(300):
        said(act(f"p{i}", f"u{i}", f"v{i}"), posted(f"q{i}", f"w{i}"), state=state)
        assert len(state.acts.names) <= 20
        assert len(state.waiting) <= 5
    assert said(tick(0), state=state)[0].authors > 0
    assert "u299" in state.acts.names
