"""A step's new version goes on from the old one's state, and the log says from where and from what.

In memory: the whole topology runs, `intake` changes its version twice, and the log is folded again; then one thing of
that log, or of what is kept beside it, is made wrong, and it must be told.
"""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.envelope import Origin, read_headers
from schemas.events import AlertRaised
from schemas.ids import output_id
from schemas.topics import ALERTS, FEEDBACK, SIGNALS
from streams.adopt import beginning
from streams.fold import Fold, Memory, Stage, unpack
from streams.memory import Engine, Logged
from streams.records import outside
from streams.snapshots import Bound
from streams.topology import stages
from streams.verify import ADOPTED, Verdict, adoption, adoptions, memory_hash, verify
from tests.bare_shell import Keys, World
from tests.cluster_worker import kinder
from tests.feeds import feed

WIDTH, NOW_MS = 2, 1_780_000_000_000
Places = dict[tuple[str, int], Any]


def table(version: int) -> tuple[Stage, ...]:
    """Give the table with a version of `intake`: the second is kinder than the first, the third as the first was."""
    steps = {1: {}, 2: {"version": 2, "step": kinder}, 3: {"version": 3}}
    return tuple(replace(one, **steps[version]) if one.name == "intake" else one for one in stages())


def changed(engine: Engine, version: int) -> dict[tuple[str, int], Memory]:
    """Let a drained engine go on with another version of `intake`, as `xinfluencer adopt` does; gives what it began."""
    engine.table = table(version)
    (stage,) = [one for one in engine.table if one.name == "intake"]
    begins = {}
    for partition in range(WIDTH):
        memory = begins["intake", partition] = kept(engine.folds["intake", partition].memory, stage)
        engine.append([outside(adoption(stage, version - 1, partition, memory), "/operator", NOW_MS, WIDTH, Keys())])
        fold = engine.folds["intake", partition] = Fold(stage, partition, WIDTH, Keys())
        fold.memory = kept(memory, stage)
    return begins


def kept(memory: Memory, stage: Stage) -> Memory:
    """Copy a memory as a snapshot does."""
    return unpack(msgspec.msgpack.encode(memory), stage)


def lived(last: int) -> tuple[Engine, Places]:
    """Run version 1 to `last`, each on a feed of its own and on some of the one before, which came twice."""
    engine, begins, before = Engine(table(1), Keys(), width=WIDTH, seed=5), {}, []
    for version in range(1, last + 1):
        begins = changed(engine, version) if version > 1 else {}
        said = list(feed(version, 40, WIDTH, Keys(), NOW_MS))
        engine.append([*said, *before[-40:]])
        before = said
        engine.run()
    return engine, begins


@pytest.fixture(scope="module")
def twice() -> tuple[Engine, Places]:
    return lived(3)


def judged(engine: Engine, begins: Places, version: int = 3, log: Places | None = None) -> Verdict:
    return verify(engine.log if log is None else log, table(version), WIDTH, Keys(), begins)


def test_the_log_of_a_step_that_changed_its_version_holds_what_it_must(twice: tuple[Engine, Places]) -> None:
    once, begins = lived(2)
    found = judged(once, begins, 2)
    assert found.faults == []
    assert found.earlier["intake"] > 5
    engine, begins = twice
    before = {place: memory_hash(memory) for place, memory in begins.items()}
    for _ in range(2):  # the same log gives the same, and what it began with is not used up
        again = judged(engine, begins)
        assert again.faults == []
        assert {place: memory_hash(memory) for place, memory in begins.items()} == before
    assert again.earlier["intake"] > found.earlier["intake"]


def test_an_adoption_is_read_back_as_it_was_said(twice: tuple[Engine, Places]) -> None:
    engine, begins = twice
    told = adoptions(engine.log)
    assert {(stage, version) for stage, _, version in told} == {("intake", 2), ("intake", 3)}
    for (stage, partition), memory in begins.items():
        assert told[stage, partition, 3] == (memory.next, memory_hash(memory))
    forged = AlertRaised(kind=ADOPTED, stage="intake", detail="feedback/0@1: version 3 goes on, trust me")
    log = {(ALERTS.name, 0): laid([outside(forged, "/x", NOW_MS, WIDTH, Keys())])}
    assert adoptions(log) == {}


def laid(records: list[Any]) -> list[Logged]:
    return [Logged(at, one.time_ms, one.key, one.value, list(one.headers)) for at, one in enumerate(records)]


# ---- one thing wrong, which must be told ----------------------------------------------------------------------------


def output(log: Places, begins: Places, after: bool) -> tuple[Logged, Origin]:
    """Find an output of `intake` for a record after, or before, the last adoption."""
    for partition in range(WIDTH):
        for raw in log[SIGNALS.name, partition]:
            _, _, origin = read_headers(raw.headers)
            if origin is not None and origin.stage == "intake":
                began = begins["intake", origin.partition].next
                if (origin.offset >= began) is after:
                    return raw, origin
    raise AssertionError("there is no such output")


def renamed(version: int, after: bool) -> Callable[[Places, Places], None]:
    """Let an output carry the id that another version would have given it."""

    def spoil(log: Places, begins: Places) -> None:
        raw, origin = output(log, begins, after)
        cause = log[FEEDBACK.name, origin.partition][origin.offset]
        name = output_id("intake", version, dict(cause.headers)["ce_id"].decode(), origin.ordinal)
        raw.headers = [(key, name.encode() if key == "ce_id" else value) for key, value in raw.headers]

    return spoil


def strange(log: Places, begins: Places) -> None:
    raw, _ = output(log, begins, after=False)
    raw.headers = [(key, b"0" * 32 if key == "ce_id" else value) for key, value in raw.headers]


def unsaid(log: Places, begins: Places) -> None:
    log[ALERTS.name, 0] = [raw for raw in log[ALERTS.name, 0] if ADOPTED.encode() not in raw.value]


def not_kept(log: Places, begins: Places) -> None:
    begins.clear()


def another_state(log: Places, begins: Places) -> None:
    begins["intake", 0].state["somebody"] = True


def another_place(log: Places, begins: Places) -> None:
    begins["intake", 0].next -= 1


def lost(log: Places, begins: Places) -> None:
    raw, _ = output(log, begins, after=True)
    for records in log.values():
        if raw in records:
            records.remove(raw)


WRONG = {
    "an output of the version before, after the adoption": (renamed(2, after=True), "follows from no input"),
    "an output of this version, before the adoption": (renamed(3, after=False), "from no version before the adoption"),
    "an id that no version gives": (strange, "from no version before the adoption"),
    "versions that take turns": (renamed(2, after=False), "version 1 is behind a later one's"),
    "an output that is missing": (lost, "is missing"),
    "a log that knows of no adoption": (unsaid, "of which the log says nothing"),
    "what it began with is not kept": (not_kept, "with a state that is not kept here"),
    "what it began with was changed": (another_state, "with another state than the log says"),
    "it is kept to have begun elsewhere": (another_place, "with another state than the log says"),
}


@pytest.mark.parametrize("what", WRONG)
def test_whatever_is_wrong_about_a_change_of_version_is_told(twice: tuple[Engine, Places], what: str) -> None:
    engine, begins = twice
    spoil, said = WRONG[what]
    log, kept_here = copy.deepcopy(engine.log), copy.deepcopy(begins)
    spoil(log, kept_here)
    faults = judged(engine, kept_here, 3, log).faults
    assert any(said in fault for fault in faults), faults[:5]


def test_without_what_it_began_with_a_version_would_be_blamed_for_the_one_before(
    twice: tuple[Engine, Places],
) -> None:
    """The control of the whole: why `begins` is there at all."""
    engine, _ = twice
    faults = judged(engine, {}).faults
    assert sum("follows from no input" in fault for fault in faults) > 5
    assert sum("is missing" in fault for fault in faults) > 5


def test_what_retention_took_of_the_alerts_is_not_asked_for(twice: tuple[Engine, Places]) -> None:
    engine, begins = twice
    log = copy.deepcopy(engine.log)
    unsaid(log, begins)
    log[ALERTS.name, 0] = [*log[ALERTS.name, 0], *laid([outside(_other(), "/x", NOW_MS, WIDTH, Keys())])]
    for raw in log[ALERTS.name, 0]:
        raw.offset += 7
    assert judged(engine, begins, 3, log).faults == []


def _other() -> AlertRaised:
    return AlertRaised(kind="step-failed", stage="intake", detail="mended since")


# ---- the worker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [True, False])
def test_a_worker_that_lost_its_snapshots_goes_on_from_what_its_version_began_with(
    tmp_path: Path, copied: bool
) -> None:
    """And not from the first record, which the version before has answered already."""
    (stage,) = [one for one in table(2) if one.name == "intake"]
    world = World(tmp_path, stage)
    fold = Fold(stage, 0, 1, Keys())
    fold.memory.next = 3
    bound = beginning(Bound("intake", 2, 0, "cluster/topic/1", 1))
    if copied:
        world.shell.snapshots.write(fold, bound, world.shell.snapshots.claim(bound))
    assert asyncio.run(world.own()) == (3 if copied else 0)
