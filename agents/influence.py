"""Influence: acts -> a decayed weighted graph -> PageRank and communities; numbers only, no names.

What one author can give another is bounded three times over, because influence is part of a reward:

1. Acts of one author towards one other add up to s (decayed, by kind) and weigh s / (1 + s / GIVEN_MAX): never more
   than GIVEN_MAX however often they repeat. Acts towards oneself never count. A block takes back what its author gave
   and no more: if it took what others gave, blocking in a crowd would be a weapon.
2. An author who acted little hands on little: a weight is a share of at least FULL, and what is not handed on goes back
   to everyone. So nobody gives one other more than GIVEN_MAX / FULL of their own influence.
3. What everyone begins with depends on how long their acts have stood in the log: a newcomer has NEWCOMER of what one
   has after a half life. Arrival counts, not the time that a payload claims.

The limit: who owns very many accounts and lets them age a week can still buy a place. That costs time, no more;
identity is not checked here. tests/test_influence.py has the figures.

PageRank (Brin and Page 1998, damping 0.85) is a power iteration over columns, which needs a hundredth of the memory of
a graph of Python objects; a test holds it against networkx. Communities are networkx's Louvain (Blondel et al. 2008)
of the strongest COMMUNITY_EDGES_MAX edges; who is only in weaker ones joins their strongest neighbour.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.acts import GONE, KINDS, LASTING, NONE

WEIGHTS = {"like": 1.0, "mention": 1.0, "reply": 1.5, "repost": 2.0, "quote": 2.0, "follow": 2.0}
GIVEN_MAX = 3.0
FULL = 10.0
NEWCOMER = 0.1
DAMPING = 0.85
CHANGE_MIN = 1e-10  # of all influence, in one turn: below that the iteration has ended
TURNS_MAX = 100  # 0.85^100 < 10^-7
HORIZON_HALF_LIVES = 8  # an act that weighs less than 1/256 is dropped
STEPS = 256  # of fading in a half life: a table, because exp2 differs in its last digit between processors
COMMUNITY_EDGES_MAX = 30_000  # about 1.5 s and 50 MB of networkx; ten times that is a quarter of a minute
SEED = 7  # of Louvain's order of visits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.uint32 | np.int64]
_WEIGHT_OF = np.array([WEIGHTS.get(kind, 0.0) for kind in KINDS])
_FADE = np.array([0.5 ** (step / STEPS) for step in range(STEPS * HORIZON_HALF_LIVES + 1)])


class Edges(NamedTuple):
    """Who gave whom how much, by author number; one edge a pair, in order. `standing` in 0..1 is an author's age."""

    source: Ints
    target: Ints
    weight: Floats
    standing: Floats


class Places(NamedTuple):
    """The measure: one item an author that is in an edge; influence 1 is the mean."""

    author: Ints
    influence: Floats
    percentile: Floats  # mid-rank, 0..1
    community: Ints  # 0 is the largest
    acted_on_by: Ints
    modularity: float


def fading(rows: npt.NDArray[np.void], now_ms: int, half_life_ms: int) -> Floats:
    """Give each act's weight at a moment: by kind, halved each half life; follows do not fade."""
    age = np.maximum(now_ms - rows["at_ms"], 0)
    steps = np.minimum(age // max(1, half_life_ms // STEPS), len(_FADE) - 1)
    return np.asarray(_WEIGHT_OF[rows["kind"]] * np.where(np.isin(rows["kind"], LASTING), 1.0, _FADE[steps]))


def expired(rows: npt.NDArray[np.void], now_ms: int, half_life_ms: int) -> npt.NDArray[np.bool_]:
    """Mark the acts that faded below the horizon."""
    old = rows["at_ms"] < now_ms - HORIZON_HALF_LIVES * half_life_ms
    return np.asarray(old & ~np.isin(rows["kind"], LASTING))


def edges(rows: npt.NDArray[np.void], authors: int, now_ms: int, half_life_ms: int) -> Edges:
    """Add up the acts of each pair of authors; `rows` as Acts.table() gives them after compacting."""
    rows = rows[(rows["target"] != NONE) & (rows["kind"] != GONE)]
    pair = rows["actor"].astype(np.int64) * authors + rows["target"]
    blocked = np.unique(pair[rows["kind"] == KINDS.index("block")])
    pairs, which = np.unique(pair, return_inverse=True)
    given = np.bincount(which, fading(rows, now_ms, half_life_ms), len(pairs))
    kept = (given > 0) & ~np.isin(pairs, blocked)
    pairs, given = pairs[kept], given[kept]
    source, target = (pairs // max(1, authors)).astype(np.uint32), (pairs % max(1, authors)).astype(np.uint32)
    since = np.full(authors, now_ms, np.int64)
    np.minimum.at(since, rows["actor"], rows["arrived_ms"])
    # In steps, as fading is: a measure a second later gives the same numbers, and the same log the same rewards.
    standing = np.minimum((now_ms - since) // max(1, half_life_ms // STEPS), STEPS) / STEPS
    return Edges(source, target, given / (1 + given / GIVEN_MAX), standing)


def pagerank(source: Ints, target: Ints, weight: Floats, standing: Floats) -> Floats:
    """Give each of len(standing) authors their influence, 1 the mean; authors are numbered 0..n-1."""
    n = len(standing)
    begin = NEWCOMER + (1 - NEWCOMER) * standing
    begin /= begin.sum()
    share = weight / np.maximum(np.bincount(source, weight, n), FULL)[source]
    kept = 1.0 - np.bincount(source, share, n)
    rank = begin
    for _ in range(TURNS_MAX):
        given = np.bincount(target, share * rank[source], n) + (kept * rank).sum() * begin
        after = DAMPING * given + (1 - DAMPING) * begin
        change, rank = np.abs(after - rank).sum(), after
        if change < CHANGE_MIN:
            break
    return np.asarray(rank * n)


def communities(source: Ints, target: Ints, weight: Floats, authors: int) -> tuple[Ints, float]:
    """Give each author's community, the largest 0, and the modularity of the edges that were looked at."""
    import networkx as nx  # here: half a second and 30 MB that only the process with the graph should pay

    pair = np.minimum(source, target).astype(np.int64) * authors + np.maximum(source, target)
    pairs, which = np.unique(pair, return_inverse=True)
    both = np.bincount(which, weight, len(pairs))
    strongest = np.argsort(-both, kind="stable")  # ties in the order of pairs
    one, two = (pairs[strongest] // authors).astype(np.uint32), (pairs[strongest] % authors).astype(np.uint32)
    heaviest = both[strongest[:COMMUNITY_EDGES_MAX]].tolist()
    del pair, pairs, which, both, strongest  # 40 MB at a million edges, and networkx is about to want as much
    graph = nx.Graph()
    some = slice(COMMUNITY_EDGES_MAX)
    graph.add_weighted_edges_from(zip(one[some].tolist(), two[some].tolist(), heaviest, strict=True))
    found = nx.community.louvain_communities(graph, weight="weight", seed=SEED)
    modularity = float(nx.community.modularity(graph, found, weight="weight"))
    label = np.full(authors, -1)
    for number, members in enumerate(sorted(found, key=lambda some: (-len(some), min(some)))):
        label[list(members)] = number
    return _join(label, one, two), modularity


def _join(label: Ints, one: Ints, two: Ints) -> Ints:
    """Give who has no label (-1) that of their strongest neighbour with one, from near to far; a new one otherwise."""
    while True:
        edge, from_one = np.flatnonzero((label[one] == -1) != (label[two] == -1)), label[one] != -1
        if not len(edge):
            break
        joining = np.where(from_one[edge], two[edge], one[edge])
        joining, first = np.unique(joining, return_index=True)  # edges stand strongest first
        label[joining] = np.maximum(label[one], label[two])[edge][first]
    alone = np.flatnonzero(label == -1)
    label[alone] = label.max(initial=-1) + 1 + np.arange(len(alone))
    return label


def measure(given: Edges) -> Places:
    """Measure the graph; authors without an edge are in no place."""
    used = np.zeros(len(given.standing), bool)
    used[given.source] = used[given.target] = True
    authors = np.flatnonzero(used)
    number = (np.cumsum(used) - 1).astype(np.uint32)
    source, target = number[given.source], number[given.target]
    if not len(authors):
        none = np.zeros(0, np.int64)
        return Places(none, np.zeros(0), np.zeros(0), none, none, 0.0)
    rank = np.round(pagerank(source, target, given.weight, given.standing[authors]), 6)
    _, place, ties = np.unique(rank, return_inverse=True, return_counts=True)
    percentile = np.round((np.cumsum(ties) - ties / 2)[place] / len(authors), 6)
    community, modularity = communities(source, target, given.weight, len(authors))
    return Places(
        authors, rank, percentile, community, np.bincount(target, minlength=len(authors)), round(modularity, 6)
    )
