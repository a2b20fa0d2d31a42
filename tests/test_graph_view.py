"""Graph view: who is shown as influential is who is, from a snapshot as from the log, and files read back."""

import asyncio
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from agents import graph
from streams import graph_view
from streams.fold import Sent
from streams.kafka import ensure_topics
from streams.reader import reader
from streams.records import outside
from streams.settings import Settings
from streams.supervisor import ticks
from streams.vault import Vault
from tests.folding import T0_MS, act, state_bytes
from tests.graph_acts import HALF_LIFE_MS, LIMITS, said, tick
from tests.harness import Workers, ended, for_ever, settings_for, write

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


@pytest.mark.parametrize("suffix", [".graphml", ".json"])
def test_the_graph_is_written_as_a_file_that_others_read(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"graph{suffix}"
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
    with pytest.raises(ValueError, match=r"ends in \.graphml, \.json, \.png, \.svg"):
        graph_view.run_graph_export(Settings.model_validate({"data": tmp_path}), tmp_path / "graph.pdf")


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

    asyncio.run(ensure_topics(broker.settings, for_ever(own)))
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
