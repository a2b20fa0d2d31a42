"""Influence: the ranks are those of the paper, communities those of the graph, and a crowd buys little."""

import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from agents import acts, graph, influence
from tests.folding import T0_MS, act
from tests.graph_acts import measured, tick

ROOT = Path(__file__).resolve().parent.parent


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
