"""Dead letters: a step that fails on one record loses that record alone, until the step is mended (D3)."""

import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import Out, Record
from schemas.events import FeedbackGiven, RecordRefused
from schemas.posts import PostObserved
from streams.dead_letters import head_of, letters, place_of, replay
from streams.fold import Fold, Sent, Stage, StepFailed
from streams.memory import Logged
from streams.reader import reader
from streams.records import outside
from streams.sender import Sender
from streams.snapshots import state_hash
from streams.topology import stages
from streams.trouble import ATTEMPTS_MAX, Trouble
from streams.vault import Vault
from tests.feeds import feed
from tests.harness import ROOT, Workers, ended, finish, judge, settings_for, write

SEED = 5


class Bug(Exception):
    pass


def failing(stage: Stage, unlucky: str) -> Stage:
    """The stage with a step that raises on one piece of feedback, after having taken it in."""

    def step(chunk: Sequence[Record], state: Any) -> tuple[list[Out], Any]:
        outs, state = stage.step(chunk, state)
        for record in chunk:
            state[f"saw {record.id}"] = True  # so that a state which was not put back is seen
            if getattr(record.event, "feedback", None) == unlucky:
                raise Bug(unlucky)
        return outs, state

    return replace(stage, step=step)


def logged(vault: Vault, names: Sequence[str]) -> list[Logged]:
    found = []
    for offset, name in enumerate(names):
        given = FeedbackGiven(feedback=name, subject="q:1/a:1", rater=f"r:{name}", kind="thumb", value=1)
        sent = outside(given, "/people", 1_000 + offset, 1, vault)
        found.append(Logged(offset, sent.time_ms, sent.key, sent.value, list(sent.headers)))
    return found


def intake() -> Stage:
    return next(stage for stage in stages() if stage.name == "intake")


def test_the_one_record_that_fails_is_found_and_nothing_else_changes(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    raws = logged(vault, [f"f:{i}" for i in range(23)])
    for unlucky in range(23):
        fold = Fold(failing(intake(), f"f:{unlucky}"), 0, 1, vault)
        with pytest.raises(StepFailed):
            fold.take(raws)
        fold = Fold(failing(intake(), f"f:{unlucky}"), 0, 1, vault)
        said = fold.take_with_care(raws)
        refused = [one.event for one in said if isinstance(one.event, RecordRefused)]
        assert [(one.reason, one.place) for one in refused] == [("step-failed", f"feedback/0/{unlucky}")]
        rest = [raw for raw in raws if raw.offset != unlucky]
        alone = Fold(failing(intake(), "f:none"), 0, 1, vault)
        expected = alone.take(rest)
        assert [one.value for one in said if not isinstance(one.event, RecordRefused)] == [x.value for x in expected]
        assert state_hash(fold.memory) == state_hash(alone.memory)


def test_taken_without_care_a_failed_step_leaves_a_state_that_nobody_may_go_on_with(tmp_path: Path) -> None:
    """The negative control of the test above: its comparison sees a state that was not put back."""
    vault = Vault(tmp_path / "keys")
    raws = logged(vault, ["f:0", "f:1", "f:2"])
    fold, alone = Fold(failing(intake(), "f:1"), 0, 1, vault), Fold(failing(intake(), "f:none"), 0, 1, vault)
    with pytest.raises(StepFailed):
        fold.take(raws)
    alone.take([raws[0], raws[2]])
    assert state_hash(fold.memory) != state_hash(alone.memory)


def test_trouble_is_counted_over_restarts_where_stretches_overlap_and_only_there(tmp_path: Path) -> None:
    assert [Trouble(tmp_path).failed("t", 0, 10, 20 + n) for n in range(ATTEMPTS_MAX)] == [1, 2, 3]
    trouble = Trouble(tmp_path)
    assert trouble.touches("t", 0, 5, 11)
    assert trouble.touches("t", 0, 21, 30)
    assert not trouble.touches("t", 0, 22, 30)
    assert not trouble.touches("t", 0, 0, 10)
    assert not trouble.touches("t", 1, 10, 20)
    assert not trouble.touches("u", 0, 10, 20)
    assert trouble.failed("t", 0, 50, 60) == 1
    assert not trouble.touches("t", 0, 50, 60)


@pytest.mark.broker
def test_a_step_that_fails_on_one_post_loses_only_that_and_a_replay_makes_it_whole(broker: Any, tmp_path: Path) -> None:
    """D3 on real processes: bounded attempts, a dead letter, the rest goes on; mended, replayed, whole."""
    settings = settings_for(tmp_path, "d3")
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    records: list[Sent] = list(feed(SEED, 60, settings.partitions, vault, int(time.time() * 1000)))
    posts = [one.event.post for one in records if isinstance(one.event, PostObserved)]
    unlucky = posts[20]
    script = str(Path(__file__).with_name("failing_worker.py"))
    workers = Workers(settings, broker.settings, (sys.executable, script, unlucky), {"PYTHONPATH": str(ROOT)})

    async def broken() -> tuple[Any, list[Record]]:
        await write(settings, broker.settings, records)
        workers.start()
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        async with reader(settings, broker.settings) as log:
            return await judge(settings, broker.settings), await letters(log)

    async def mended(chosen: list[RecordRefused]) -> Any:
        async with reader(settings, broker.settings) as log:
            sender = Sender(settings, broker.settings)
            assert await replay(log, sender, chosen) == len(chosen)
            await sender.stop()
        right.start()
        await finish(settings, broker.settings, right)
        await asyncio.to_thread(right.signal, signal.SIGTERM)
        return await judge(settings, broker.settings)

    with ended(workers):
        verdict, found = asyncio.run(broken())
    assert verdict.faults == [], workers.log()[-3000:]
    failed = [one for one in found if isinstance(one.event, RecordRefused) and one.event.reason == "step-failed"]
    of_it = {record.event.post for record in records if getattr(record.event, "post", None) == unlucky}
    assert failed
    assert of_it == {unlucky}
    assert all("Bug" in one.event.detail for one in failed if isinstance(one.event, RecordRefused))
    assert all(head_of(one, vault) for one in failed)
    events = [one.event for one in failed if isinstance(one.event, RecordRefused)]
    assert all(place_of(one) is not None for one in events)
    assert ATTEMPTS_MAX <= len(workers.ended) <= 3 * ATTEMPTS_MAX, "attempts are bounded, and more than one"
    before = verdict.visible["signals"]
    right = Workers(settings, broker.settings)
    with ended(right):
        verdict = asyncio.run(mended(events))
    assert verdict.faults == [], right.log()[-3000:]
    assert verdict.visible["signals"] > before
    assert right.ended == []
