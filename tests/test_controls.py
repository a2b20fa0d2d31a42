"""Negative controls: the same oracle must turn red, for the right reason, on each trap that Faust's manual leaves open.

Without them the green of the fault tests means nothing. Two more are proved beside the stores that they are about:
LanceDB without the primary-key metadata (test_vectors.py) and an aggregating view (test_tables.py).
"""

import asyncio
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from streams.kafka import committed_offsets, end_offsets, ensure_topics
from streams.topics import specs
from streams.verify import Verdict
from tests.feeds import feed
from tests.harness import ROOT, Workers, ended, judge, killed_run, now_ms, settings_for, vault_of, write
from tests.plain_worker import stage_of
from tests.proof import SCALE, SEED, Say

night = pytest.mark.skipif(SCALE == "ci", reason="a slow control: run by `make night`, or with XINFLUENCER_PROOF=night")
QUIET_S, QUIET_S_MAX = 3, 60  # nothing new for so long: all that comes has come

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("variant", "point", "found"),
    [
        ("agent_raises", "", "is missing"),
        ("unawaited_send", "after-send", "is missing"),
        ("random_ids", "", "follows from no input"),
        pytest.param("ids_per_chunk", "after-send", "follows from no input", marks=night),
    ],
)
def test_the_oracle_finds_a_wrong_worker(
    broker: Any, tmp_path: Path, variant: str, point: str, found: str, proof: Say
) -> None:
    case = proof("CONTROL", f"{variant.replace('_', ' ')} (our worker, made wrong)", 1, "variants")
    settings = settings_for(tmp_path, f"wrong-{variant.replace('_', '-')}")
    script = str(Path(__file__).with_name("wrong_worker.py"))
    env = {"PYTHONPATH": str(ROOT)}
    if point:
        env["XINFLUENCER_CRASH"] = f"{point}:{SEED}:0.05"
    workers = Workers(settings, broker.settings, (sys.executable, script, variant), env)
    records = feed(SEED, 600, settings.partitions, vault_of(settings), now_ms())
    verdict = killed_run(settings, broker.settings, records, 3, SEED, workers)
    assert any(found in fault for fault in verdict.faults), (verdict.faults[:5], workers.log()[-2000:])
    case.detail = f"{len(verdict.faults)} faults, such as '{found}'"


def plain_run(broker: Any, tmp_path: Path, variant: str, how: int, times: int, posts: int, **env: str) -> Any:
    """Run a stage in plain Faust, end it `times` times by a signal while it works, and judge it by the same oracle."""
    settings = settings_for(tmp_path, f"plain-{variant.replace('_', '-')}", partitions=1)
    stage = stage_of(variant)
    script = str(Path(__file__).with_name("plain_worker.py"))
    env = {"PYTHONPATH": str(ROOT), **env}
    workers = Workers(settings, broker.settings, (sys.executable, script, variant), env)
    kafka, signals = broker.settings, [settings.physical("signals")]
    fed = feed(SEED, posts, settings.partitions, vault_of(settings), now_ms(), doubled=0.0)
    records = [one for one in fed if one.topic == "feedback"]
    rng = random.Random(SEED)

    async def made() -> int:
        return sum((await end_offsets(kafka, signals)).values())

    async def moved(before: int) -> None:
        for _ in range(900):
            if await made() > before:
                return
            workers.keep()
            await asyncio.sleep(0.1)
        raise AssertionError(workers.log()[-3000:])

    async def passed() -> None:
        """Wait until a commit has passed the first record, which one of the two still holds."""
        async with asyncio.timeout(60):
            while not any((await committed_offsets(kafka, settings.group("plain"))).values()):
                await asyncio.sleep(0.1)

    async def through() -> bool:
        done = await committed_offsets(kafka, settings.group("plain"))
        ends = await end_offsets(kafka, [settings.physical("feedback")])
        return all(done.get(place, 0) >= end for place, end in ends.items())

    async def run() -> tuple[Verdict, int]:
        await ensure_topics(kafka, specs(settings))
        await write(settings, kafka, records)
        workers.start()
        for _ in range(times):
            await moved(await made())
            if variant == "concurrency_2":
                await passed()
            else:
                await asyncio.sleep(rng.uniform(0.4, 1.0))
            await asyncio.to_thread(workers.signal, how)
            workers.keep()
        before, still = -1, 0
        while still < QUIET_S or (still < QUIET_S_MAX and not await through()):
            workers.keep()
            await asyncio.sleep(1.0)
            now = await made()
            before, still = now, still + 1 if now == before else 0
        await asyncio.to_thread(workers.signal, signal.SIGKILL)
        return await judge(settings, kafka, (stage,)), len(records)

    with ended(workers):
        verdict, number = asyncio.run(run())
    return verdict, number, workers.log()[-3000:]


SLOW = {"XINFLUENCER_SLOW_S": "0.02"}  # so that a signal finds it at work


def test_plain_faust_without_a_trap_is_green(broker: Any, tmp_path: Path, proof: Say) -> None:
    """The control of the controls: the traps below are the reason for the red, and nothing else of plain Faust."""
    case = proof("CONTROL", "none: plain Faust, each send awaited, our ids; killed, it must be green", 1, "variants")
    verdict, number, log = plain_run(broker, tmp_path, "plain", signal.SIGKILL, 3, 300, **SLOW)
    assert verdict.faults == [], log
    assert verdict.visible["signals"] == number
    assert verdict.absorbed["signals"] > 0, "nothing was read twice: the kills came at no good time"
    case.detail = f"green, {verdict.absorbed['signals']} duplicates absorbed by id"


@pytest.mark.parametrize(
    ("variant", "how", "times", "env", "found"),
    [
        ("take_and_raise", signal.SIGKILL, 0, {}, "is missing"),
        ("concurrency_2", signal.SIGKILL, 1, {"XINFLUENCER_SLOW_S": "60", "XINFLUENCER_SLOW_EVERY": "999999"},
         "is missing"),
        pytest.param("does_not_wait", signal.SIGTERM, 3, SLOW, "is missing", marks=night),
        ("counter_in_a_table", signal.SIGKILL, 3, SLOW, "carries two payloads"),
    ],
)  # fmt: skip
def test_the_oracle_finds_a_trap_of_plain_faust(
    broker: Any, tmp_path: Path, variant: str, how: int, times: int, env: dict[str, str], found: str, proof: Say
) -> None:
    named = "stream_wait_empty=False" if variant == "does_not_wait" else variant.replace("_", " ")
    case = proof("CONTROL", f"{named} (plain Faust)", 1, "variants")
    verdict, number, log = plain_run(broker, tmp_path, variant, how, times, 300, **env)
    reasons = [fault for fault in verdict.faults if found in fault]
    assert reasons, (verdict.faults[:5], log)
    case.detail = f"{len(reasons)} of {number} '{found}'"


@night
@pytest.mark.parametrize("kills", [0, 3])
def test_faust_s_exactly_once_in_place_of_ids_shows_events_twice(
    broker: Any, tmp_path: Path, kills: int, proof: Say
) -> None:
    """Its transactions promise that a reader of committed records needs no ids. Never killed that is so; killed not."""
    what = "exactly_once in place of ids (plain Faust)" if kills else "none: plain Faust's exactly_once, never killed"
    case = proof("CONTROL", what, 1, "variants")
    verdict, number, log = plain_run(broker, tmp_path, "exactly_once", signal.SIGKILL, kills, 300, **SLOW)
    twice, missing = verdict.absorbed["signals"], len(verdict.faults)
    case.detail = f"{twice} of {number} visible twice without ids, {missing} missing"
    assert bool(twice or missing) == bool(kills), log
