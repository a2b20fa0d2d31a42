"""Every agent decides the same however its records are cut into chunks, and has no clock, no chance and no disk."""

import ast
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import batching, graph, metadata
from schemas import events as e
from schemas import facts
from schemas.envelope import Out, Record
from streams.fold import Fold, Stage
from streams.snapshots import Bound, decode, encode
from streams.topology import Tuning, stages
from tests import strategies
from tests.folding import (
    BETTER,
    MANY,
    T0_MS,
    NoKeys,
    act,
    command,
    gone,
    gone_pair,
    noted,
    pair,
    post,
    prompt_noted,
    reacted,
    record,
    reward,
    state_bytes,
    subject,
    trained,
)

NAMES = ("a", "b", "c")
RECORDS_MAX = 14
TUNING = Tuning(
    ages_ms=(500, 1500),
    margin_min=0.05,
    measuring=graph.Limits(every_ms=300, half_life_ms=500),
    limits=batching.Limits(pairs_max=3, pairs_min=1, age_ms=300),
)
TABLE = stages(TUNING)


def each_stage(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("stage", TABLE, ids=lambda stage: stage.name)(test)


def likely(stage: str) -> st.SearchStrategy[Any] | None:
    """Give events that make sense to a stage, so that the nonsense around them meets a state with something in it."""
    name, sub = st.sampled_from(NAMES), st.sampled_from(["p/a", "p/b", "p/c", "p/p"])
    tick = st.builds(lambda at: e.Ticked(at_ms=T0_MS + at), st.integers(0, 4000))
    makes: dict[str, list[st.SearchStrategy[Any]]] = {
        "metadata": [
            st.builds(
                lambda seen, source: seen.model_copy(update={"source": source}),
                st.builds(
                    post, name, st.just("ann"), parent=st.none() | name, claimed_ms=st.integers(T0_MS, T0_MS + 9)
                ),
                st.sampled_from(["x", "bluesky"]),
            ),
            st.builds(gone, name),
        ],
        "rewards": [
            st.builds(subject, sub),
            st.builds(noted, st.sampled_from(["thumb", "report"]), rater=name, subject=sub),
            st.builds(lambda other: noted("choice", 1, other), st.sampled_from(["p/b", "p/c"])),
            st.builds(reacted, st.integers(0, 99), st.sampled_from([None, 500]), sub),
            st.builds(lambda sub, score: e.NetworkNoted(prompt="p", subject=sub, score=score), sub, st.floats(-1, 1)),
            tick,
            st.just(prompt_noted()),
        ],
        "graph": [
            st.builds(act, name, name, name, st.sampled_from(["reply", "like", "follow", "block"])),
            st.builds(act, name, name, target_post=name),
            st.builds(lambda post, owner: e.PostNoted(post=post, prompt="p", owner=owner, source="x"), name, name),
            tick,
        ],
        "pairing": [
            st.builds(reward, sub, st.floats(-1, 1)),
            st.builds(reward, sub, st.floats(-1, 1)),
            st.builds(lambda which: e.RewardWithdrawn(prompt="p", subject=which, reason="post-deleted"), sub),
        ],
        "batching": [st.builds(pair, st.integers(0, 5)), st.builds(gone_pair, st.integers(0, 5))],
        "releases": [
            st.builds(trained, st.sampled_from("0123"), st.sampled_from([BETTER, None])),
            st.builds(command, st.sampled_from(["release", "roll-back", "retract"]), st.sampled_from("0123")),
        ],
    }
    return st.one_of(makes[stage]) if stage in makes else None


def sequences(stage: Stage) -> st.SearchStrategy[list[Record]]:
    return strategies.records(stage.reads.name, stage.reads.events, NAMES, RECORDS_MAX, likely(stage.name))


@each_stage
def test_splitting_a_chunk_anywhere_changes_nothing(stage: Stage) -> None:
    @MANY
    @given(sequences(stage), st.data())
    def check(records: list[Record], data: st.DataObject) -> None:
        whole, state = stage.step(records, stage.state())
        cuts = sorted(data.draw(st.sets(st.integers(0, len(records)))))
        parts: list[Out] = []
        split = stage.state()
        for start, end in pairwise([0, *cuts, len(records)]):
            outs, split = stage.step(records[start:end], split)
            parts.extend(outs)
        assert parts == whole
        assert state_bytes(split) == state_bytes(state)

    check()


@each_stage
def test_what_is_generated_makes_an_agent_say_all_that_it_can_say(stage: Stage) -> None:
    said: set[type[facts.Event]] = set()

    @settings(MANY, max_examples=300, derandomize=True, database=None)
    @given(sequences(stage))
    def gather(records: list[Record]) -> None:
        said.update(type(out.event) for out in stage.step(records, stage.state())[0])

    gather()
    faults = (e.RecordRefused, e.AlertRaised)
    can = {kind for topic in stage.writes for kind in topic.events if kind not in (*faults, e.Ticked)}
    shares = {  # several write to `signals`: what is somebody else's share of it
        "graph": {e.NetworkNoted, e.GraphMeasured},
        "intake": {e.FeedbackNoted, e.FeedbackWithdrawn},
        "reactions": {e.EngagementNoted},
        "review": {e.PromptNoted, e.SubjectNoted},
    }
    can &= shares.get(stage.name, can)
    if stage.name == "metadata":
        can -= {e.NetworkNoted, e.FeedbackNoted, e.FeedbackWithdrawn, e.CopyErased}
    assert said - set(faults) == can


def test_a_step_that_counts_chunks_would_be_noticed() -> None:
    def step(chunk: Sequence[Record], state: dict[str, int]) -> tuple[list[Out], dict[str, int]]:
        return [], {"chunks": state.get("chunks", 0) + 1}

    records = [record(e.Ticked(at_ms=1))] * 2
    _, whole = step(records, {})
    _, half = step(records[:1], {})
    _, split = step(records[1:], half)
    assert state_bytes(whole) != state_bytes(split)


@each_stage
def test_a_state_taken_from_a_snapshot_goes_on_as_if_nothing_had_happened(stage: Stage) -> None:
    bound = Bound(stage.name, stage.version, 0, "memory", 3)

    @MANY
    @given(sequences(stage), st.data())
    def check(records: list[Record], data: st.DataObject) -> None:
        whole, state = stage.step(records, stage.state())
        cut = data.draw(st.integers(0, len(records)))
        first = Fold(stage, 0, 3, NoKeys())
        outs, first.memory.state = stage.step(records[:cut], first.memory.state)
        second = Fold(stage, 0, 3, NoKeys())
        memory = decode(encode(first, bound), second, bound)
        assert memory is not None
        assert type(memory.state) is type(stage.state())
        assert memory.state == first.memory.state
        rest, after = stage.step(records[cut:], memory.state)
        assert outs + rest == whole
        assert state_bytes(after) == state_bytes(state)

    check()


@each_stage
def test_what_an_agent_says_belongs_in_its_row_and_fits_its_own_model(stage: Stage) -> None:
    @MANY
    @given(sequences(stage))
    def check(records: list[Record]) -> None:
        outs, _ = stage.step(records, stage.state())
        order = [out.cause.offset for out in outs]
        assert order == sorted(order)
        for out in outs:
            assert any(type(out.event) in topic.events for topic in stage.writes)
            kind = type(out.event)
            assert kind.model_validate_json(out.event.model_dump_json(exclude_none=True)) == out.event

    check()


FORBIDDEN_MODULES = {
    "aiohttp", "asyncio", "faust", "httpx", "io", "multiprocessing", "os", "pathlib", "random", "requests", "secrets",
    "select", "shutil", "signal", "socket", "sqlite3", "ssl", "streams", "subprocess", "sys", "tempfile", "threading",
    "time", "torch", "urllib", "uuid", "websockets",
}  # fmt: skip
FORBIDDEN_CALLS = {"open", "input", "print", "eval", "exec", "__import__", "id", "hash"}
FORBIDDEN_METHODS = {"now", "utcnow", "today", "random", "shuffle", "choice", "urandom", "uuid4"}


def impurities(source: str) -> list[str]:
    """List what in a file could make a step depend on anything but its records."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(node.func.id)
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_METHODS:
            found.append(node.attr)
        elif isinstance(node, ast.Global):
            found.append("global")
    return found


@pytest.mark.parametrize("path", sorted(Path(metadata.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_an_agent_has_no_clock_no_chance_and_no_disk(path: Path) -> None:
    assert impurities(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from random import choice",
        "from datetime import datetime\nat = datetime.now()",
        "from datetime import date\nat = date.today()",
        "import numpy as np\nnp.random.rand()",
        "def f():\n    return open('x')",
        "def f(x):\n    return hash(x)",
        "def f():\n    global x\n    x = 1",
        "from streams.fold import Fold",
    ],
)
def test_an_impure_agent_would_be_noticed(source: str) -> None:
    assert impurities(source)
