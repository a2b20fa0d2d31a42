"""A month later: retention took the older part of topics, and the oracle blames nobody for that, nor forgives a fault.

In memory: lives of the simulation, crashes and all, are cut at offsets that chance names; then one thing above the cut
is made wrong. On a broker: the broker itself deletes records, and the reader says from where on it read.
"""

import asyncio
import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from schemas import topics as t
from schemas.envelope import Origin, Refused, read_headers
from schemas.events import Ticked
from streams.commands import run_verify
from streams.fold import Fold, Memory, Sent, Stage, unpack
from streams.kafka import ensure_topics
from streams.memory import Engine, Logged
from streams.reader import LogUnreadable, Records, reader
from streams.records import outside, tick
from streams.topology import stages
from streams.verify import _PACK, Verdict, adoption, verify
from tests.feeds import feed
from tests.harness import for_ever, settings_for, vault_of, write
from tests.ingest_ends import MemoryKeys
from tests.test_disorder import T0_MS, social
from tests.test_simulation import FAULTS, TUNING, live

WIDTH = 2
LIVES = 24
MONTH = [one.name for one in t.TOPICS if one.keep_ms != t.KEEP_FOR_EVER]
Cut = Callable[[tuple[str, int], int], int]  # (place, length) -> the first offset that stays


class Lived(Engine):
    """Remembers the last engine that lived."""

    last: Engine

    def __post_init__(self) -> None:
        super().__post_init__()
        Lived.last = self


def read(log: dict[tuple[str, int], list[Logged]], cut: Cut) -> Records:
    """Read a log as the reader does after retention passed, and compaction."""
    found = Records()
    for place, raws in copy.deepcopy(log).items():
        begin = cut(place, len(raws)) if place[0] in MONTH else 0
        kept = {raw.key: raw for raw in raws} if t.BY_NAME[place[0]].compacted else {}
        found[place] = [raw for raw in raws if raw.offset >= begin and (not kept or kept[raw.key] is raw)]
        found.begins[place] = begin
    return found


def half(place: tuple[str, int], length: int) -> int:
    return length // 2


def judged(log: Any, engine: Engine, begins: Any = None) -> Verdict:
    return verify(log, engine.table, engine.width, engine.keys, begins or {})


@pytest.fixture(scope="module")
def month() -> Engine:
    """A deployment that crashed at times, all of it of age."""
    keys = MemoryKeys()
    engine = Engine(stages(TUNING), keys, WIDTH, 7, FAULTS)
    for after_ms in range(200_000, 1_400_000, 200_000):
        engine.append(social(after_ms, 60, keys, WIDTH))
        engine.run()
        engine.append([tick(t.SIGNALS, part, T0_MS + after_ms) for part in range(WIDTH)])
        engine.append([tick(t.INTERACTIONS, 0, T0_MS + after_ms), tick(t.PREFERENCES, 0, T0_MS + after_ms)])
        engine.run()
    assert judged(engine.log, engine).faults == []
    return engine


# ---- nothing is wrong -----------------------------------------------------------------------------------------------


def test_what_retention_took_is_named_and_nobody_is_blamed_for_it() -> None:
    repeated = 0
    for seed in range(LIVES):
        assert live(seed, FAULTS, Lived).faults == []
        engine, rng = Lived.last, random.Random(seed)
        for _ in range(4):
            log = read(engine.log, lambda place, length: rng.randint(0, length))  # noqa: B023 - used at once
            verdict = judged(log, engine)
            assert verdict.faults == [], (seed, log.begins)
            for (topic, partition), begin in log.begins.items():
                named = f"{topic}/{partition} before offset {begin}: gone by retention" in verdict.unchecked
                assert named == (begin > 0)
            repeated += sum(verdict.absorbed.values())
            folded = {(s.name, p) for s in engine.table for p in range(t.partitions(s.reads, engine.width))}
            assert folded - verdict.states.keys() == {
                (s, p)
                for s, p in folded
                if log.begins[next(one.reads.name for one in engine.table if one.name == s), p]
            }
    assert repeated > 100, "crashes repeated nothing"


def test_a_log_that_is_whole_leaves_nothing_unchecked(month: Engine) -> None:
    verdict = judged(read(month.log, lambda place, length: 0), month)
    assert (verdict.faults, verdict.unchecked) == ([], [])
    assert verdict.states == judged(month.log, month).states


def test_a_topic_of_which_nothing_is_left_is_named(month: Engine) -> None:
    verdict = judged(read(month.log, lambda place, length: length), month)
    assert verdict.faults == []
    assert len([one for one in verdict.unchecked if "gone by retention" in one]) >= 4 * WIDTH


def test_an_oracle_that_does_not_know_where_the_log_begins_blames_the_innocent(month: Engine) -> None:
    """The control of the whole: why the reader says it."""
    faults = judged(dict(read(month.log, half)), month).faults
    assert sum("is missing" in fault for fault in faults) > 100
    assert sum("follows from no input" in fault for fault in faults) > 5


# ---- one thing is wrong ---------------------------------------------------------------------------------------------


def outputs(log: Records, topic: str, stage: str) -> list[tuple[list[Logged], int, Logged, Origin]]:
    """Find outputs of a stage whose input is there, with partition and index; the first of each source is left out."""
    found = []
    for (name, _), raws in log.items():
        if name != topic:
            continue
        seen: set[bytes] = set()
        sources = set()
        for index, raw in enumerate(raws):
            try:
                _, ident, origin = read_headers(raw.headers)
            except Refused:
                continue
            if origin is None or origin.stage != stage or ident in seen:
                continue
            seen.add(ident)
            if origin[:3] in sources and origin.offset >= log.begins[origin.topic, origin.partition]:
                found.append((raws, index, raw, origin))
            sources.add(origin[:3])
    assert found, (topic, stage)
    return found


def lost(topic: str, stage: str) -> Callable[[Records], None]:
    def spoil(log: Records) -> None:
        raws, _, raw, _ = outputs(log, topic, stage)[-1]
        name = dict(raw.headers)["ce_id"]
        raws[:] = [one for one in raws if dict(one.headers).get("ce_id") != name]

    return spoil


def changed(topic: str, stage: str) -> Callable[[Records], None]:
    def spoil(log: Records) -> None:
        raws, _, raw, _ = outputs(log, topic, stage)[-1]
        for one in raws:
            if one.headers == raw.headers:
                one.value = raw.value.replace(b":", b": ", 1)

    return spoil


def forged(topic: str, stage: str) -> Callable[[Records], None]:
    def spoil(log: Records) -> None:
        _, _, raw, _ = outputs(log, topic, stage)[-1]
        raw.headers = [(key, b"0" * 32 if key == "ce_id" else value) for key, value in raw.headers]

    return spoil


def swapped(topic: str, stage: str) -> Callable[[Records], None]:
    def spoil(log: Records) -> None:
        for raws, index, _, origin in reversed(outputs(log, topic, stage)):
            for other_raws, before, _, other in outputs(log, topic, stage):
                if other_raws is raws and before < index and other[:3] == origin[:3] and other[3:] != origin[3:]:
                    raws[before], raws[index] = raws[index], raws[before]
                    return

    return spoil


def two_payloads(log: Records) -> None:
    raws, _, raw, _ = outputs(log, "rewards", "rewards")[-1]
    raws.append(Logged(raws[-1].offset + 1, raw.timestamp, raw.key, b"{}", raw.headers))


def all_of_one(log: Records) -> None:
    """Hide a loss behind a small cut: all is gone, of which retention can have taken one record."""
    place = max((one for one in log if one[0] == "features"), key=lambda one: len(log[one]))
    log[place].clear()
    log.begins[place] = 1


WRONG = {
    "an output is missing": (lost("features", "metadata"), "is missing"),
    "an output is missing among those of others": (lost("signals", "intake"), "is missing"),
    "an output is missing where nothing was cut": (lost("batches", "batching"), "is missing"),
    "an output says something else": (changed("features", "metadata"), "differs from what its input gives"),
    "an output of another topic says something else": (changed("signals", "metadata"), "differs from what its input"),
    "an output follows from nothing": (forged("signals", "metadata"), "follows from no input"),
    "an output of a step that is not folded follows from nothing": (forged("rewards", "rewards"), "from no input"),
    "another one does": (forged("preferences", "pairing"), "follows from no input"),
    "outputs changed places": (swapped("signals", "metadata"), "arrived behind a later output"),
    "outputs of a step that is not folded did": (swapped("rewards", "rewards"), "arrived behind a later output"),
    "an id carries two payloads": (two_payloads, "carries two payloads"),
    "more is missing than retention took": (all_of_one, "outputs are missing, and retention took only 1 records"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_fault_above_the_cut_is_found(month: Engine, what: str) -> None:
    spoil, said = WRONG[what]
    log = read(month.log, half)
    spoil(log)
    faults = judged(log, month).faults
    assert any(said in fault for fault in faults), faults[:5]
    assert len(faults) < 12, faults[:5]


def test_what_cannot_be_found_is_said_to_be_unchecked(month: Engine) -> None:
    """A reward that is missing follows from records of which some are gone: no fault, and no silence."""
    log = read(month.log, half)
    lost("rewards", "rewards")(log)
    verdict = judged(log, month)
    assert verdict.faults == []
    for partition in range(WIDTH):
        begin = log.begins["signals", partition]
        line = next(one for one in verdict.unchecked if one.startswith(f"rewards on signals/{partition}: its input"))
        assert f"begins at {begin}, so it was not folded" in line
        assert "one that is missing was not looked for" in line
    assert not [one for one in verdict.unchecked if one.startswith(("metadata", "intake", "review", "batching"))]


# ---- a step that changed its version --------------------------------------------------------------------------------


def test_a_step_that_began_above_the_cut_is_folded_from_where_it_began() -> None:
    keys = MemoryKeys()
    engine = Engine(stages(TUNING), keys, WIDTH, 3)
    ticks = iter(range(200_000, 10_000_000, 200_000))

    def on(seed: int) -> None:
        engine.append(social(seed, 120, keys, WIDTH))
        engine.run()
        for after_ms in (next(ticks), next(ticks)):
            engine.append([tick(t.SIGNALS, part, T0_MS + after_ms) for part in range(WIDTH)])
            engine.run()

    on(1)
    (old,) = [one for one in engine.table if one.name == "rewards"]
    new = replace(old, version=old.version + 1)
    engine.table = tuple(new if one is old else one for one in engine.table)
    begins = {}
    for part in range(WIDTH):
        memory = begins["rewards", part] = copied(engine.folds["rewards", part].memory, new)
        engine.append([outside(adoption(new, old.version, part, memory), "/operator", T0_MS, WIDTH, keys)])
        fold = engine.folds["rewards", part] = Fold(new, part, WIDTH, keys)
        fold.memory = copied(memory, new)
    on(2)
    for most in (0, 40, 10**6):  # nothing; some; all alerts, and all that the version before read
        log = read(engine.log, lambda place, length: _before(begins, place, most))  # noqa: B023 - used at once
        assert bool(log.begins["signals", 0]) == bool(most)
        verdict = judged(log, engine, begins)
        assert verdict.faults == []
        assert {("rewards", part) for part in range(WIDTH)} <= verdict.states.keys()
        lost("rewards", "rewards")(log)
        assert any("is missing" in fault for fault in judged(log, engine, begins).faults)
        forged("rewards", "rewards")(log)
        assert any("follows from no" in fault for fault in judged(log, engine, begins).faults)


def _before(begins: Any, place: tuple[str, int], most: int) -> int:
    if place[0] == "alerts":
        return 2 if most > 40 else 0
    return min(most, begins["rewards", place[1]].next) if place[0] == "signals" else 0


def copied(memory: Memory, stage: Stage) -> Memory:
    return unpack(_PACK.encode(memory), stage)


# ---- a broker deletes -----------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_a_broker_that_deleted_records_is_judged_by_what_it_still_has(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, kafka = settings_for(tmp_path / "data", "verify"), broker.settings
    vault = vault_of(settings)
    engine = Engine(stages(settings.tuning), vault, settings.partitions)
    engine.append(feed(11, 60, settings.partitions, vault, T0_MS))
    engine.run()
    laid = [
        Sent(topic, partition, raw.key, raw.value or b"", raw.headers, raw.timestamp, Ticked(at_ms=0))
        for (topic, partition), raws in engine.log.items()
        for raw in raws
    ]

    admin = AdminClient({"bootstrap.servers": broker.bootstrap})

    async def verified() -> tuple[Verdict, Records]:
        async with reader(settings, kafka) as log_reader:
            log = await log_reader.everything(*(topic.name for topic in t.TOPICS))
        return judged(log, engine), log

    async def run() -> None:
        await ensure_topics(kafka, for_ever(settings))
        await write(settings, kafka, laid)
        verdict, log = await verified()
        assert (verdict.faults, verdict.unchecked, set(log.begins.values())) == ([], [], {0})
        async with reader(settings, kafka) as log_reader:
            ends = await log_reader.ends(*MONTH)
            cut = [
                TopicPartition(settings.physical(one), part, end // 2) for (one, part), end in ends.items() if end > 1
            ]
            for future in admin.delete_records(cut).values():
                future.result(20)
            place = max(((one, part) for one, part in ends if one == "signals"), key=lambda one: ends[one])
            assert (await log_reader.begins("signals"))[place] == ends[place] // 2
            with pytest.raises(LogUnreadable, match="0 was deleted by retention"):
                [one async for one in log_reader.records(*place, 0)]
            all_there_are = [one.offset async for one in log_reader.records(*place)]
            assert all_there_are == list(range(ends[place] // 2, ends[place]))
        verdict, log = await verified()
        assert verdict.faults == []
        assert f"signals/{place[1]} before offset {ends[place] // 2}: gone by retention" in verdict.unchecked
        lost("signals", "metadata")(log)
        assert any("is missing" in fault for fault in judged(log, engine).faults)

    asyncio.run(run())
    vault.close()
    monkeypatch.setenv("XINFLUENCER_KAFKA", broker.bootstrap)
    capsys.readouterr()
    run_verify(settings)  # an exit code of 1 would be raised
    said = capsys.readouterr().out
    for words in ("records into memory, about 0.0 GB", "not checked: signals/", "  0 faults; ", "for retention passed"):
        assert words in said
