"""The graph forgets exactly, measures on schedule, says the same in every process, and is not cheap to buy."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import acts, graph, influence
from schemas import events as e
from schemas import facts
from streams import graph_view
from streams.fold import Sent
from streams.reader import reader
from streams.records import outside
from streams.settings import Settings
from streams.supervisor import ticks
from streams.vault import Vault
from tests.folding import T0_MS, act, of, run, state_bytes
from tests.harness import Workers, ended, settings_for, write

HALF_LIFE_MS = 1_000_000
LIMITS = graph.Limits(every_ms=1000, half_life_ms=HALF_LIFE_MS)
ROOT = Path(__file__).resolve().parent.parent


def undone(post: str, actor: str) -> e.InteractionWithdrawn:
    return e.InteractionWithdrawn(post=post, actor=actor)


def posted(post: str, owner: str, prompt: str | None = None) -> e.PostNoted:
    return e.PostNoted(post=post, prompt=prompt or post, owner=owner, source="x")


def tick(after_ms: int) -> e.Ticked:
    return e.Ticked(at_ms=T0_MS + after_ms)


def said(*events: Any, state: graph.State | None = None, limits: graph.Limits = LIMITS) -> list[Any]:
    return run(graph.step, state if state is not None else graph.State(), *events, limits=limits)


def measured(*events: Any) -> e.GraphMeasured:
    return of(e.GraphMeasured, said(*events))[-1]


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


def test_two_groups_that_hardly_know_each_other_are_two_communities() -> None:
    groups = [[f"{letter}{i}" for i in range(6)] for letter in "ab"]
    inside = [act(f"{a}{b}", a, b) for group in groups for a in group for b in group if a != b]
    found = measured(*inside, act("bridge", "a0", "b0", "like"), tick(0))
    assert found.communities == 2
    assert found.modularity > 0.4
    assert len({(one.author[0], one.community) for one in found.top}) == 2


def test_authors_of_weak_edges_only_join_their_strongest_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influence, "COMMUNITY_EDGES_MAX", 2)
    source, target = np.array([0, 2, 4, 4, 5, 6]), np.array([1, 3, 0, 2, 4, 7])
    weight = np.array([9.0, 8.0, 1.0, 2.0, 0.5, 0.4])
    label, _ = influence.communities(source, target, weight, 8)
    assert label[4] == label[2] == label[3] == label[5] != label[0] == label[1]
    assert len({label[6], label[7], label[0], label[2]}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_ranks_are_those_of_networkx(seed: int) -> None:
    """Our iteration against networkx on the same chain, with what is not handed on written out as edges to everyone."""
    rng = np.random.default_rng(seed)
    n, standing = 40, rng.random(40)
    pairs = rng.permutation([(a, b) for a in range(n) for b in range(n) if a != b])[:150]
    source, target, weight = pairs[:, 0], pairs[:, 1], rng.random(150) * 3
    begin = influence.NEWCOMER + (1 - influence.NEWCOMER) * standing
    begin /= begin.sum()
    chain = nx.DiGraph()
    share = weight / np.maximum(np.bincount(source, weight, n), influence.FULL)[source]
    for author, kept in enumerate(1 - np.bincount(source, share, n)):
        for other in range(n):
            chain.add_edge(author, other, weight=kept * begin[other])
    for a, b, part in zip(source.tolist(), target.tolist(), share.tolist(), strict=True):
        chain[a][b]["weight"] += part
    theirs = nx.pagerank(chain, influence.DAMPING, dict(enumerate(begin)), tol=1e-12, max_iter=500)
    ours = influence.pagerank(source, target, weight, standing)
    assert ours == pytest.approx([theirs[i] * n for i in range(n)], abs=1e-6)


ONE_PROCESS = """
import random, sys
from agents import graph
from schemas import events as e
from schemas.envelope import Record
rng = random.Random(5)
names = [f"x:@{i}" for i in range(80)]
if sys.argv[1] == "as a set":
    names = list(set(names))
events = [
    e.InteractionObserved(kind="reply", source="x", actor=rng.choice(names), target=rng.choice(names), post=f"p{i}")
    for i in range(600)
]
events += [e.PostNoted(post=f"q{name}", prompt="p", owner=name, source="x") for name in names] + [e.Ticked(at_ms=9)]
outs, _ = graph.step([Record("i", 0, i, 0, "id", one) for i, one in enumerate(events)], graph.State(), graph.Limits())
for out in outs:
    print(out.event.model_dump_json())
"""


def test_two_processes_with_different_hash_seeds_say_the_same() -> None:
    def outputs(order: str) -> list[str]:
        return [
            subprocess.run(
                [sys.executable, "-c", ONE_PROCESS, order],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        ]

    one, two = outputs("as a list")
    assert one == two
    assert len(one.splitlines()) == 81  # the measure, and a score for each author's post
    wrong_one, wrong_two = outputs("as a set")  # the control: an order that hangs on hashes is noticed
    assert wrong_one != wrong_two


# ---- what a crowd can buy -------------------------------------------------------------------------------------------

DAY_MS = 86_400_000
AUTHORS, DAYS = 1000, 14


def history(seed: int) -> acts.Acts:
    """Two weeks of 1,000 authors who act 20 times each, most towards the first."""
    rng = random.Random(seed)
    found = acts.Acts()
    for i in range(AUTHORS * 20):
        at = T0_MS + i * DAYS * DAY_MS // (AUTHORS * 20)
        actor, target = f"a{rng.randrange(AUTHORS):04}", f"a{int(AUTHORS * rng.random() ** 3):04}"
        found.add(f"w{i}", actor, rng.choice(acts.KINDS[1:7]), target, None, at, at)
    return found


def influence_of(name: str, more: Iterable[tuple[str, str, str]] = (), plain: bool = False) -> float:
    """Give one author's influence after the history and these acts; `plain` is PageRank of how often who acted."""
    found, now = history(1), T0_MS + DAYS * DAY_MS
    for i, (actor, kind, target) in enumerate(more):
        found.add(f"more{i}", actor, kind, target, None, now, now)
    given_ = influence.edges(found.table(), len(found.names), now, graph.Limits().half_life_ms)
    if not plain:
        return float(influence.pagerank(*given_)[found.ids[name]])
    counted = nx.MultiDiGraph()
    counted.add_edges_from(found.table()[["actor", "target"]].tolist())
    return float(nx.pagerank(nx.DiGraph(counted))[found.ids[name]] * len(found.names))


TARGET = "a0700"  # an ordinary author: influence 0.32, percentile 0.10 of 1,000


def ring(size: int) -> list[tuple[str, str, str]]:
    """Throw-away accounts that follow each other and do nothing but praise: 34 acts each."""
    praise = [("follow", 1), ("like", 30), ("repost", 3)]
    return [
        *[(f"s{i}", kind, TARGET) for i in range(size) for kind, often in praise for _ in range(often)],
        *[(f"s{i}", "follow", f"s{(i + step) % size}") for i in range(size) for step in (1, 2, 3)],
    ]


def readers(number: int) -> list[tuple[str, str, str]]:
    """Ordinary authors of the history who reply once."""
    return [(f"a{900 - i:04}", "reply", TARGET) for i in range(number)]


@pytest.mark.parametrize(("throw_away", "established"), [(30, 10), (100, 30)])
def test_a_ring_of_throw_away_accounts_raises_an_author_less_than_a_third_as_many_readers(
    throw_away: int, established: int
) -> None:
    assert influence_of(TARGET, ring(throw_away)) < influence_of(TARGET, readers(established))
    # The control: PageRank without bounds sells it.
    assert influence_of(TARGET, ring(throw_away), True) > influence_of(TARGET, readers(established), True)


def test_the_limit_is_known_three_hundred_accounts_buy_more_than_thirty_readers_give() -> None:
    assert influence_of(TARGET, ring(300)) > influence_of(TARGET, readers(30))


def test_one_author_gives_one_other_a_bounded_part_of_their_own_influence() -> None:
    friend = "a0000"  # the most influential: 61 times the mean
    much = influence_of(TARGET, [(friend, "repost", TARGET)] * 500) - influence_of(TARGET)
    assert 0 < much < influence_of(friend) * influence.DAMPING * influence.GIVEN_MAX / influence.FULL


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


# ---- the view -------------------------------------------------------------------------------------------------------


def seen() -> graph_view.View:
    state = graph.State()
    events = [
        act("p", "ann", "bob"), act("q", "cat", "bob", "like"), act("r", "cat", "bob", "like"), act("s", "bob", "ann"),
        act("t", "ev\x9bil$", "bob", "follow"), act("u", "ann", target_post="nowhere"),
    ]  # fmt: skip
    said(*events, tick(0), state=state)
    return graph_view.view(state, LIMITS.every_ms, HALF_LIFE_MS)


def test_an_author_is_shown_with_edges_their_kinds_and_newest_acts() -> None:
    found = seen()
    assert found.measured_ms == T0_MS
    assert [found.names[i] for i in graph_view.ranked(found)][:2] == ["bob", "ann"]
    bob = found.names.index("bob")
    assert {(who, kinds) for who, _, kinds in graph_view.edges_of(found, bob, False)} == {
        ("ann", "reply 1"), ("cat", "like 2"), ("ev\x9bil$", "follow 1"),
    }  # fmt: skip
    assert [row[0] for row in graph_view.edges_of(found, bob, True)] == ["ann"]
    newest = graph_view.acts_of(found, found.names.index("ann"))
    assert newest[0] == ("2023-11-14 22:13:20 UTC", "reply", "ann", "(not known)")
    assert len(newest) == 3


@pytest.mark.parametrize("suffix", graph_view.SUFFIXES)
def test_the_graph_is_written_as_a_file_that_others_read(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"graph{suffix}"
    if suffix == ".png":
        graph_view.draw(seen(), file)
        assert file.read_bytes().startswith(b"\x89PNG")
        return
    graph_view.export(seen(), file)
    read = (
        nx.read_graphml(file)
        if suffix == ".graphml"
        else nx.node_link_graph(json.loads(file.read_text()), edges="edges")
    )
    labels = nx.get_node_attributes(read, "label")
    assert set(labels.values()) == {"ann", "bob", "cat", "ev\N{REPLACEMENT CHARACTER}il$"}
    assert {data["acts"] for _, _, data in read.edges(data=True)} == {"reply 1", "like 2", "follow 1"}


def test_another_kind_of_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.graphml, \.json, \.png"):
        graph_view.run_graph_export(Settings.model_validate({"data": tmp_path}), tmp_path / "graph.svg")


@pytest.mark.broker
def test_the_view_is_the_same_from_a_snapshot_and_from_the_log(
    broker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings_for(tmp_path / "data", "graph-view")
    vault = Vault(own.data / "vault" / "keys.sqlite")
    names = [f"x:@{i}" for i in range(20)]

    def sent(first: int) -> list[Sent]:
        events = [act(f"p{i}", names[i % 20], names[i * 7 % 20]) for i in range(first, first + 100)]
        return [
            outside(event, "/test", T0_MS + i, own.partitions, vault, f"act-{first + i}")
            for i, event in enumerate(events)
        ]

    async def measured_once() -> bool:
        async with reader(own, broker.settings) as log:
            return (await log.ends("graph"))["graph", 0] > 0

    async def state() -> bytes:
        return state_bytes((await graph_view.read_state(own, broker.settings)).acts)

    asyncio.run(write(own, broker.settings, [*sent(0), *ticks(own, T0_MS + 1000)]))
    workers = Workers(own, broker.settings, (sys.executable, "-m", "streams.cli", "worker", "graph"))
    workers.start()
    with ended(workers):
        for _ in range(300):
            if asyncio.run(measured_once()):
                break
            time.sleep(0.1)
        workers.signal(signal.SIGTERM)
    asyncio.run(write(own, broker.settings, sent(100)))
    assert (own.data / "snapshots" / "graph-0" / "snapshot").exists(), workers.log()
    from_snapshot = asyncio.run(state())
    monkeypatch.setenv("XINFLUENCER_KAFKA", broker.bootstrap)
    graph_view.run_graph_top(own, 3)
    assert "x:@" in capsys.readouterr().out
    graph_view.run_graph_author(own, "x:@7")
    assert "newest acts" in capsys.readouterr().out
    with pytest.raises(ValueError, match="graph top"):
        graph_view.run_graph_author(own, "nobody")
    shutil.rmtree(own.data / "snapshots")
    assert asyncio.run(state()) == from_snapshot
