"""Graph view: the log -> who is influential, who acts towards whom, and the graph as a file or a picture.

It folds the stage `graph` from its newest snapshot, or from the start of `interactions` where there is none, and shows
the last measure. Ids are data: on a screen and in a picture without control characters, in files as labels.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from agents import influence
from agents.acts import KINDS, NONE, Rows
from agents.graph import PLACES, State, compact
from streams.access import log_access
from streams.fold import Fold
from streams.kafka import KafkaSettings, cluster_id, topic_ids
from streams.object_snapshots import keeper
from streams.reader import reader
from streams.settings import Settings
from streams.show import Screen, clean
from streams.snapshots import Bound, SnapshotRefused
from streams.topology import stages
from streams.vault import Vault

CHUNK = 2_000
STRONGEST = 10  # edges and acts shown of one author
PICTURES = (".png", ".svg")
SUFFIXES = (".graphml", ".json", *PICTURES)


@dataclass
class View:
    """The graph at its last measure: acts and edges by author number, places one an author (percentile NaN: none)."""

    names: list[str]
    rows: Rows
    edges: influence.Edges
    places: Any  # a numpy array of PLACES
    measured_ms: int | None


async def read_state(
    settings: Settings, kafka: KafkaSettings, tell: Callable[[str], None] = lambda text: None
) -> State:
    """Fold the graph's state as the log stands now. Raises LogUnreadable where the log does not give what it must."""
    stage = next(one for one in stages(settings.tuning) if one.name == "graph")
    physical = settings.physical(stage.reads.name)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    try:
        fold = Fold(stage, 0, settings.partitions, vault)
        log = f"{await cluster_id(kafka)}/{physical}/{(await topic_ids(kafka, [physical]))[physical]}"
        bound = Bound(stage.name, stage.version, 0, log, settings.partitions)
        try:
            memory, _ = keeper(settings.snapshots, settings.data / "snapshots").load(fold, bound)
        except SnapshotRefused as refused:
            tell(f"reading the log from its start: {refused}")
            memory = None
        fold.memory = memory or fold.memory
        chunk: list[Any] = []
        async with reader(settings, kafka) as log_reader:
            async for raw in log_reader.records(stage.reads.name, 0, fold.memory.next):
                chunk.append(raw)
                if len(chunk) == CHUNK:
                    fold.take(chunk)
                    chunk = []
        if chunk:
            fold.take(chunk)
    finally:
        vault.close()
    state: State = fold.memory.state
    return state


def view(state: State, every_ms: int, half_life_ms: int) -> View:
    """Make a state readable; authors are numbered anew in it."""
    compact(state, None)
    rows = state.acts.table()
    measured_ms = state.next_ms - every_ms if state.places and state.next_ms else None
    edges = influence.edges(rows, len(state.acts.names), measured_ms or 0, half_life_ms)
    return View(state.acts.names, rows, edges, np.frombuffer(bytes(state.places), PLACES), measured_ms)


def _view(settings: Settings, screen: Screen) -> View:
    async def run() -> State:
        async with log_access(settings, screen.say) as kafka:
            return await read_state(settings, kafka, screen.say)

    found = view(asyncio.run(run()), settings.graph_every_ms, settings.graph_half_life_ms)
    placed = ~np.isnan(found.places["percentile"])
    if not placed.any():
        days = influence.HORIZON_HALF_LIVES * settings.graph_half_life_ms / 86_400_000
        screen.say(f"  nobody is in the graph: {len(found.rows)} acts in the log, none measured that is younger than")
        screen.say(f"  {days:.0f} days. For an archive set XINFLUENCER_GRAPH_HALF_LIFE_MS before its log is made.")
    else:
        communities = len(np.unique(found.places["community"][placed]))
        screen.say(f"  at {told(found.measured_ms)}: {placed.sum()} authors, {communities} communities")
    return found


def ranked(found: View) -> list[int]:
    """List the authors who have a place, the most influential first, ties in the order of names."""
    first = np.argsort(-found.places["influence"], kind="stable")
    return [int(number) for number in first if not np.isnan(found.places["percentile"][number])]


def run_graph_top(settings: Settings, number: int) -> None:
    """Print the most influential authors."""
    screen = Screen()
    found = _view(settings, screen)
    acted_on_by = np.bincount(found.edges.target, minlength=len(found.names))
    rows = [(*_place(found, author), int(acted_on_by[author])) for author in ranked(found)[:number]]
    screen.table(("author", "influence", "percentile", "community", "acted on by"), rows)


def run_graph_author(settings: Settings, name: str) -> None:
    """Print one author's place, strongest edges with their kinds, and newest acts."""
    screen = Screen()
    found = _view(settings, screen)
    if name not in found.names:
        raise ValueError(f"{clean(name)} is in no act in the log; `xinfluencer graph top` lists who is")
    author = found.names.index(name)
    screen.table(("author", "influence", "percentile", "community"), [_place(found, author)])
    for title, rows in (
        ("acts towards", edges_of(found, author, True)),
        ("is acted on by", edges_of(found, author, False)),
    ):
        screen.say(f"\n  {title}")
        screen.table(("author", "weight", "acts"), rows)
    screen.say("\n  newest acts")
    screen.table(("at", "kind", "from", "to"), acts_of(found, author))


def edges_of(found: View, author: int, out: bool) -> list[tuple[str, float, str]]:
    """List the strongest edges from (or to) an author: (who, weight, kinds with their number)."""
    own, other = (found.edges.source, found.edges.target) if out else (found.edges.target, found.edges.source)
    here = np.flatnonzero(own == author)
    here = here[np.argsort(-found.edges.weight[here], kind="stable")][:STRONGEST]
    mine, theirs = ("actor", "target") if out else ("target", "actor")
    acts = found.rows[found.rows[mine] == author]
    return [
        (found.names[other[i]], float(found.edges.weight[i]), _kinds(acts["kind"][acts[theirs] == other[i]]))
        for i in here.tolist()
    ]


def acts_of(found: View, author: int) -> list[tuple[str, str, str, str]]:
    """List an author's newest acts, theirs and those towards them: (time, kind, from, to)."""
    mine = found.rows[(found.rows["actor"] == author) | (found.rows["target"] == author)]
    newest = mine[np.argsort(-mine["at_ms"], kind="stable")][:STRONGEST]
    return [
        (
            told(int(act["at_ms"])),
            KINDS[act["kind"]],
            found.names[act["actor"]],
            found.names[act["target"]] if act["target"] != NONE else "(not known)",
        )
        for act in newest
    ]


def run_graph_export(settings: Settings, file: Path) -> None:
    """Write the graph: GraphML or node-link JSON with every author and edge, or a picture of the strongest."""
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: give a file that ends in {', '.join(SUFFIXES)}")
    screen = Screen()
    found = _view(settings, screen)
    if file.suffix in PICTURES:
        from streams.graph_picture import draw

        graph = draw(found, file)
    else:
        graph = export(found, file)
    screen.say(f"  {graph.number_of_nodes()} authors and {graph.number_of_edges()} edges are in {file}")


def export(found: View, file: Path) -> Any:
    """Write every author with a place and every edge between them; gives the graph."""
    import networkx as nx

    graph = to_networkx(found, ranked(found))
    if file.suffix == ".json":
        file.write_text(json.dumps(nx.node_link_data(graph, edges="edges")) + "\n")
    else:
        nx.write_graphml_xml(graph, file, encoding="utf-8")
    return graph


def to_networkx(found: View, authors: list[int]) -> Any:
    """Give a networkx.DiGraph of some authors; ids are labels of numbered nodes, so any id can be in any format."""
    import networkx as nx

    graph = nx.DiGraph()
    for author in authors:
        name, influence_, percentile, community = _place(found, author)
        graph.add_node(author, label=clean(name), influence=influence_, percentile=percentile, community=community)
    kinds: dict[tuple[int, int], list[int]] = {}
    for act in found.rows[["actor", "target", "kind"]].tolist():
        kinds.setdefault(act[:2], []).append(act[2])
    for source, target, weight in zip(*(column.tolist() for column in found.edges[:3]), strict=True):
        if source in graph and target in graph:
            graph.add_edge(source, target, weight=round(weight, 6), acts=_kinds(kinds[source, target]))
    return graph


def _place(found: View, author: int) -> tuple[str, float, float, int]:
    if author >= len(found.places) or np.isnan(found.places["percentile"][author]):
        return found.names[author], 0.0, 0.0, -1
    place = found.places[author]
    return found.names[author], float(place["influence"]), float(place["percentile"]), int(place["community"])


def _kinds(kinds: Any) -> str:
    counted = Counter(KINDS[kind] for kind in kinds)
    return ", ".join(f"{kind} {number}" for kind, number in counted.most_common())


def told(at_ms: int | None) -> str:
    """Write a time as a person reads it."""
    if at_ms is None or not 0 <= at_ms <= 253_402_300_799_999:
        return "no time"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
