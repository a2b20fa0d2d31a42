"""The graph agent's measure of 1,000,000 acts of 100,000 authors against the same numbers through networkx objects.

Each side runs in a process of its own. PageRank: ours adds up the acts and iterates over columns, the peer builds a
networkx.DiGraph of the finished edges and calls networkx.pagerank on it. Communities: both are networkx's Louvain on as
many edges; ours also adds up both directions, computes the modularity and lets the authors of weaker edges join, so it
costs more. Peak memory is what each needs beyond the acts; ours is that of a whole measure. Linux only.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from agents import graph, influence
from bench.rows import Row, row
from schemas.envelope import Record
from schemas.events import InteractionObserved, Ticked

ROOT = Path(__file__).resolve().parent.parent
AUTHORS, ACTS, RUNS = 100_000, 1_000_000, 3
T = TypeVar("T")
T0_MS = 1_700_000_000_000
LIMITS = graph.Limits()


def run() -> list[Row]:
    """Measure RUNS runs of each, in turns."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for _ in range(RUNS):
        for side, taken in found.items():
            done = subprocess.run(
                [sys.executable, "-m", "bench.graph", side], cwd=ROOT, capture_output=True, text=True, check=True
            )
            taken.append(json.loads(done.stdout))
    rows = []
    for name, what, unit in (
        ("pagerank_s", "PageRank from acts", "s"),
        ("communities_s", f"communities of the {influence.COMMUNITY_EDGES_MAX:,} strongest edges", "s"),
        ("peak_mb", "peak memory of one measure", "MB"),
    ):
        ours, peer = (statistics.median(one[name] for one in found[side]) for side in ("ours", "peer"))
        rows.append(
            row(
                f"{what}, {ACTS:,} acts of {AUTHORS:,} authors",
                ours,
                peer,
                "networkx",
                unit,
                n=RUNS,
                command="python -m bench graph",
                packages=("networkx", "numpy", "scipy"),
                better="less",
            )
        )
    return rows


def _state() -> graph.State:
    """Acts with a heavy tail: a few authors get most of them."""
    rng = np.random.default_rng(7)
    actors = rng.integers(0, AUTHORS, ACTS)
    targets = rng.permutation(AUTHORS)[np.minimum(rng.pareto(1.2, ACTS) * AUTHORS / 200, AUTHORS - 1).astype(int)]
    state = graph.State()
    for i, (actor, target) in enumerate(zip(actors.tolist(), targets.tolist(), strict=True)):
        event = InteractionObserved.model_construct(
            kind="reply", source="x", actor=f"x:@{actor}", target=f"x:@{target}", post=f"x:{i}", at_ms=T0_MS
        )
        graph.step([Record("interactions", 0, i, T0_MS, "", event)], state, LIMITS)
    return state


def _side(side: str) -> dict[str, float]:
    state = _state()
    graph.compact(state, None)
    before = _peak_mb(True)
    authors = len(state.acts.names)
    given, edges_s = _timed(lambda: influence.edges(state.acts.table(), authors, T0_MS, LIMITS.half_life_ms))
    if side == "ours":
        _, rank_s = _timed(lambda: influence.pagerank(*given))
        _, communities_s = _timed(lambda: influence.communities(*given[:3], authors))
        graph.step([Record("interactions", 0, ACTS, T0_MS, "", Ticked(at_ms=T0_MS))], state, LIMITS)
        return {"pagerank_s": edges_s + rank_s, "communities_s": communities_s, "peak_mb": _peak_mb() - before}
    import networkx as nx

    whole = nx.DiGraph()
    _, build_s = _timed(
        lambda: whole.add_weighted_edges_from(zip(*(column.tolist() for column in given[:3]), strict=True))
    )
    _, rank_s = _timed(lambda: nx.pagerank(whole))

    def communities() -> object:
        strongest = sorted(whole.edges(data="weight"), key=lambda edge: -edge[2])
        few = nx.Graph()
        few.add_weighted_edges_from(strongest[: influence.COMMUNITY_EDGES_MAX])
        return nx.community.louvain_communities(few, seed=influence.SEED)

    _, communities_s = _timed(communities)
    return {"pagerank_s": build_s + rank_s, "communities_s": communities_s, "peak_mb": _peak_mb() - before}


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def _peak_mb(reset: bool = False) -> float:
    """Read the highest resident size so far (Linux); with `reset`, begin anew from the present one."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(_side(sys.argv[1])))
