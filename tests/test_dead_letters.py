"""Dead letters: a step that fails on one record loses that record alone, until the step is mended (D3).

What is replayed is each record once, however often it was refused, and one that is gone keeps no other from it.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from schemas import envelope
from schemas.envelope import Out, Record
from schemas.events import FeedbackGiven, RecordRefused
from schemas.posts import PostObserved
from schemas.topics import DEAD_LETTERS
from streams import dead_letters
from streams.dead_letters import (
    NoSuchLetter,
    Replayed,
    head_of,
    letters,
    place_of,
    replay,
    run_list,
    run_replay_letters,
)
from streams.fold import Fold, Sent, Stage, StepFailed
from streams.memory import Logged
from streams.reader import Reader, reader
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.snapshots import state_hash
from streams.topology import stages
from streams.trouble import ATTEMPTS_MAX, Trouble
from streams.vault import Vault
from streams.written import Written
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


def test_stretches_that_overlap_are_joined_so_that_the_record_stays_inside(tmp_path: Path) -> None:
    """Chunks are cut otherwise at each start: what the first one held may be behind the next one's begin or end."""
    trouble = Trouble(tmp_path)
    assert [trouble.failed("t", 0, *cut) for cut in ((10, 20), (18, 30), (12, 19))] == [1, 2, 3]
    assert trouble.touches("t", 0, 10, 11)
    assert trouble.touches("t", 0, 29, 30)
    assert not trouble.touches("t", 0, 30, 31)
    for torn in (b"", b"{", b"\0" * 40):
        next(tmp_path.iterdir()).write_bytes(torn)
        assert not trouble.touches("t", 0, 10, 30)
        assert trouble.failed("t", 0, 10, 20) == 1


# ---- what is replayed -----------------------------------------------------------------------------------------------


@dataclass
class Held:
    """A log in memory, as the real Reader sees a broker through its client; what is sent is appended to it."""

    logs: dict[tuple[str, int], list[Logged]] = field(default_factory=dict)
    first: dict[tuple[str, int], int] = field(default_factory=dict)  # what retention took ends here
    sent: list[Sent] = field(default_factory=list)
    at: int = 0
    place: Any = None

    def __post_init__(self) -> None:
        self._client = SimpleNamespace(add_topic=self.add_topic)

    async def add_topic(self, topic: str) -> None: ...

    def log(self, place: TopicPartition) -> list[Logged]:
        return self.logs.get((place.topic, place.partition), [])

    async def end_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: len(self.log(place)) for place in places}

    async def beginning_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self.first.get((place.topic, place.partition), 0) for place in places}

    def assign(self, places: Sequence[TopicPartition]) -> None:
        (self.place,) = places

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at = offset

    async def position(self, place: TopicPartition) -> int:
        return self.at

    async def getmany(self, place: TopicPartition, timeout_ms: int, max_records: int) -> dict[Any, list[Logged]]:
        found = self.log(place)[self.at : self.at + max_records]
        self.at += len(found)
        return {place: found}

    async def send(self, records: Sequence[Sent]) -> None:
        for one in records:
            self.sent.append(one)
            log = self.logs.setdefault((one.topic, one.partition), [])
            log.append(Logged(len(log), one.time_ms, one.key, one.value, list(one.headers)))

    async def stop(self) -> None: ...

    def refuse(self, stage: Stage, keys: Vault, first: int) -> list[Sent]:
        """Let a stage read from an offset on, and keep what it refuses; gives what else it says."""
        fold = Fold(stage, 0, 1, keys)
        said = []
        for raw in self.logs[stage.reads.name, 0][first:]:
            said += fold.take_with_care([raw])
        refused = [one for one in said if isinstance(one.event, RecordRefused)]
        asyncio.run(self.send([one._replace(partition=0) for one in refused]))
        return [one for one in said if one not in refused]


def held(vault: Vault, names: Sequence[str]) -> Held:
    return Held({("feedback", 0): logged(vault, names)})


def reading(log: Held) -> Reader:
    return Reader(Settings(partitions=1), log)  # type: ignore[arg-type]


def of(log: Held, reason: str = "step-failed") -> list[RecordRefused]:
    every = [one.event for one in asyncio.run(letters(reading(log))).found]
    return [one for one in every if isinstance(one, RecordRefused) and one.reason == reason]


def again(log: Held, chosen: Sequence[RecordRefused], replayed: Written | None = None) -> Replayed:
    return asyncio.run(replay(reading(log), log, chosen, replayed or Written(None, "log")))  # type: ignore[arg-type]


def junk(offset: int) -> Logged:
    return Logged(offset, 1_000, None, b"junk", [("ce_id", b"x"), ("ce_type", b"nope")])


def test_a_record_that_is_no_letter_hides_none(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    log = held(vault, ["f:0", "f:1"])
    log.logs["dead-letters", 0] = [junk(0)]
    log.refuse(failing(intake(), "f:1"), vault, 0)
    log.logs["dead-letters", 0].append(junk(2))
    found = asyncio.run(letters(reading(log)))
    assert ([one.event.place for one in found.found], found.unreadable) == ([of(log)[0].place], 2)  # type: ignore[attr-defined]
    one = junk(0)
    with pytest.raises(envelope.Refused):  # the control: this is what made every command end
        envelope.decode(DEAD_LETTERS.name, 0, one.offset, one.timestamp, one.headers, one.value)


def test_while_the_cause_stands_a_replay_writes_each_record_once_and_not_each_letter(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    log = held(vault, [f"f:{i % 3}" for i in range(3)])
    broken = failing(intake(), "f:1")
    log.refuse(broken, vault, 0)
    for turn in range(4):
        end = len(log.logs["feedback", 0])
        chosen = of(log)
        assert len(chosen) == turn + 1, "a letter for each time that it was refused"
        assert again(log, chosen) == Replayed(1, turn, 0, [])
        assert len(log.logs["feedback", 0]) == end + 1
        log.refuse(broken, vault, end)
    assert {place_of(one).offset for one in of(log)} == {1, 3, 4, 5, 6}  # type: ignore[union-attr]


def test_two_records_that_look_alike_but_for_their_name_are_both_written(tmp_path: Path) -> None:
    """What is told apart is the record, and not the sum of its body that the letter gives."""
    vault = Vault(tmp_path / "keys")
    log = held(vault, ["f:1", "f:1"])
    one, other = log.logs["feedback", 0]
    log.logs["feedback", 0] = [one, replace(other, timestamp=one.timestamp, headers=[
        (name, b"0" * 32 if name == "ce_id" else value) for name, value in one.headers])]  # fmt: skip
    log.refuse(failing(intake(), "f:1"), vault, 0)
    assert len({one.sha256 for one in of(log)}) == 1
    assert again(log, of(log)) == Replayed(2, 0, 0, [])


def test_a_record_is_written_again_under_its_name_and_without_its_origin(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    log = held(vault, ["f:0", "f:1"])
    given = log.logs["feedback", 0][1]
    log.logs["feedback", 0][1] = replace(given, headers=[*given.headers, ("ce_origin", b"intake/feedback/0/9/0")])
    log.refuse(failing(intake(), "f:1"), vault, 0)
    assert again(log, of(log)).written == 1
    (sent,) = [one for one in log.sent if one.topic == "feedback"]
    assert (sent.partition, sent.key, sent.value, sent.time_ms) == (0, given.key, given.value, given.timestamp)
    assert list(sent.headers) == list(given.headers), "the id is what it was; an origin would hide it"
    whole = log.refuse(intake(), vault, 2)
    assert [getattr(one.event, "feedback", None) for one in whole] == ["f:1"]


def test_what_is_gone_is_named_and_keeps_no_other_from_being_replayed(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    log = held(vault, ["f:1", "f:0"] * 8)
    log.logs["feedback", 0] = [replace(one, headers=[
        (name, f"{i:032}".encode() if name == "ce_id" else value) for name, value in one.headers])
        for i, one in enumerate(log.logs["feedback", 0])]  # fmt: skip
    log.refuse(failing(intake(), "f:1"), vault, 0)
    chosen = of(log)
    assert [place_of(one).offset for one in chosen] == list(range(0, 16, 2))  # type: ignore[union-attr]
    log.first["feedback", 0] = 7
    done = again(log, chosen)
    assert (done.written, done.doubles, done.never_there) == (4, 0, 0)
    assert [line.partition(":")[0] for line in done.gone] == [f"feedback/0/{offset}" for offset in (0, 2, 4, 6)]
    assert "deleted by retention" in done.gone[1]
    nowhere = [chosen[0].model_copy(update={"place": place}) for place in ("feedback/0/20", "feedback/9/0")]
    done = again(log, [*nowhere, chosen[-1]])  # of a log that was made anew, or of nobody's
    assert (done.written, done.gone) == (1, [f"feedback/{at}: the log ends before it" for at in ("0/20", "9/0")])
    log.first["feedback", 0] = 16 + 4
    done = again(log, chosen)
    assert (done.written, len(done.gone)) == (0, 8)


@pytest.mark.parametrize(
    ("stage", "place"),
    [("ingest", "feedback/0/1"), ("intake", "elsewhere/0/1"), ("intake", "feedback/0"), ("intake", "feedback/\u00b2/1"),
     ("intake", "../feedback/0/1"), ("intake", "line 7"), ("intake", "feedback/0/-1"), ("intake", "feedback/0/1\n"),
     ("intake", "feedback/0/" + "9" * 18)],
)  # fmt: skip
def test_a_letter_that_names_no_place_in_the_log_is_never_read_for(stage: str, place: str, tmp_path: Path) -> None:
    letter = RecordRefused(
        owner="refused:x", reason="bad", detail="d", stage=stage, place=place, size=1, sha256="0" * 64
    )
    assert place_of(letter) is None
    log = held(Vault(tmp_path / "keys"), ["f:0"])
    assert again(log, [letter]) == Replayed(0, 0, 1, [])


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    """The commands on a log in memory: one unreadable record, one letter of a record that is there, one of one gone."""
    vault = Vault(tmp_path / "keys")
    log = held(vault, ["f:1", "f:0"])
    log.refuse(failing(intake(), "f:1"), vault, 0)
    log.logs["dead-letters", 0].append(junk(1))

    @asynccontextmanager
    async def here(*_: Any) -> Any:
        yield reading(log)

    monkeypatch.setattr(dead_letters, "log_access", here)
    monkeypatch.setattr(dead_letters, "reader", here)

    async def name(*_: Any) -> str:
        return "log"

    monkeypatch.setattr(dead_letters, "Sender", lambda *_: log)
    monkeypatch.setattr(dead_letters, "log_of", name)
    return log


def test_a_reason_replays_each_record_once_however_much_later(tmp_path: Path) -> None:
    """Letters stay, and a step remembers its newest ids only: the same command half a year later must not say it all
    again under the old names. An id given by hand is written as often as it is asked for."""
    vault = Vault(tmp_path / "keys")
    log = held(vault, [f"f:{number}" for number in range(6)])
    for unlucky in ("f:1", "f:4"):
        log.refuse(failing(intake(), unlucky), vault, 0)
    file = tmp_path / "ingest" / "replayed.sqlite"
    known = Written(file, "log")
    assert again(log, of(log), known).written == 2
    known.close()
    log.refuse(failing(intake(), "f:2"), vault, 0)
    known = Written(file, "log")  # another process
    done = again(log, of(log), known)
    assert (done.written, done.before) == (1, 2)
    assert again(log, of(log), known) == Replayed(0, 0, 0, [], 3)
    assert asyncio.run(replay(reading(log), log, of(log), known, again_too=True)).written == 3  # type: ignore[arg-type]
    assert again(log, of(log), Written(file, "another log")).written == 3, "the control: who notes nothing writes all"


def test_the_commands_say_what_they_left_out(opened: Held, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data=tmp_path)
    run_list(settings, None)
    said = capsys.readouterr().out
    assert "1 records in dead-letters are no letters of ours" in said
    assert "step-failed" in said
    run_replay_letters(settings, [], "step-failed")
    assert "1 records written again" in capsys.readouterr().out
    run_replay_letters(settings, [], "step-failed")
    said = capsys.readouterr().out
    assert "0 records written again" in said
    assert "1 were written again before and are left out" in said
    opened.first["feedback", 0] = 1
    name = asyncio.run(letters(reading(opened))).found[0].id
    with pytest.raises(SystemExit) as ended_with:
        run_replay_letters(settings, [name], None)
    assert ended_with.value.code == 1
    said = capsys.readouterr().out
    assert "0 records written again" in said
    assert "feedback/0/0: " in said
    with pytest.raises(NoSuchLetter, match="no dead letter has the reason 'nothing'"):
        run_replay_letters(settings, [], "nothing")
    with pytest.raises(ValueError, match="say which"):
        run_replay_letters(settings, [], None)


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
        sender = Sender(settings, broker.settings)  # somebody writes past our edge: every reader goes on
        headers = [("ce_id", b"x"), ("ce_type", b"nope")]
        await sender.send([Sent(DEAD_LETTERS.name, 0, None, b"junk", headers, 1_000, None)])  # type: ignore[arg-type]
        await sender.stop()
        async with reader(settings, broker.settings) as log:
            every = await letters(log)
            assert every.unreadable == 1
            return await judge(settings, broker.settings), every.found

    async def mended(chosen: list[RecordRefused]) -> Any:
        async with reader(settings, broker.settings) as log:
            sender = Sender(settings, broker.settings)
            never = chosen[0].model_copy(update={"place": f"tweets/0/{10**9}"})
            done = await replay(log, sender, [never, *chosen], Written(None, "log"))
            assert (done.written, len(done.gone)) == (len(chosen), 1)
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
