"""Commands: the short ones, each a few lines around a function that does it."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from schemas.learned import ReleaseCommanded
from schemas.topics import TOPICS
from streams import topology
from streams.access import log_access
from streams.access_rules import require
from streams.dataset import closed_batches, load
from streams.kafka import end_offsets, ensure_topics
from streams.reader import reader
from streams.records import outside
from streams.sender import Sender
from streams.settings import PREFIX, Settings
from streams.show import Screen
from streams.supervisor import deployment
from streams.topics import specs
from streams.vault import Vault
from streams.verify import BYTES_A_RECORD, verify

if TYPE_CHECKING:
    from streams.ingest import Summary


def _vault(settings: Settings) -> Vault:
    return Vault(settings.data / "vault" / "keys.sqlite")


def run_ticker(settings: Settings) -> None:
    """Write log time until a signal."""
    from streams.supervisor import tick_for_ever

    async def run() -> None:
        kafka = settings.kafka()
        await ensure_topics(kafka, specs(settings))
        await require(settings, kafka, "ticker")
        ticking = asyncio.ensure_future(tick_for_ever(settings, kafka))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ticking.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await ticking

    asyncio.run(run())


def run_ingest(settings: Settings, file: str, source: str | None) -> None:
    """Write a file's posts to the log and say what became of them."""
    from streams.ingest import Known, ingest
    from streams.lines import read_lines
    from streams.policy import Policy

    screen = Screen()
    lines = read_lines(file)

    async def run() -> None:
        async with log_access(settings, screen.say, make=True) as kafka:
            await ensure_topics(kafka, specs(settings))
            await require(settings, kafka, "ingest")
            sender = Sender(settings, kafka)
            policy = Policy.load(settings.policy)
            known = await Known.at(settings, kafka)
            with contextlib.closing(known), screen.progress("posts taken in") as advance:
                summary = await ingest(
                    lines,
                    source,
                    settings,
                    sender,
                    _vault(settings),
                    policy,
                    _now_ms,
                    lambda now: advance(now.posts, 0),
                    known,
                )
            await sender.stop()
            for line in told(summary):
                screen.say(f"  {line}")

    asyncio.run(run())


def _now_ms() -> int:
    return int(time.time() * 1000)


def told(summary: "Summary") -> list[str]:
    """Say what was taken in and what became of it."""
    rest = {
        "reactions": summary.reactions,
        "reactions undone": summary.retractions,
        "declared intents": summary.intents,
        "met before": summary.repeated,
        "accounts hidden or shown": summary.hidden + summary.shown,
        "of no use": summary.of_no_use,
    }
    said = [
        (
            f"{summary.posts} posts, {summary.engagements} reaction counts, {summary.deletions} deletions, "
            f"{summary.erased} erased accounts from {summary.lines} lines"
        ),
        "under "
        + (", ".join(f"{name}: {number}" for name, number in sorted(summary.by_policy.items())) or "no policy"),
    ]
    if any(rest.values()):
        said.append(", ".join(f"{number} {name}" for name, number in rest.items() if number))
    if summary.withheld:
        may = ", ".join(f"{purpose}: {number}" for purpose, number in sorted(summary.withheld.items()))
        said.append(f"posts that the policy keeps from each purpose: {may}")
    if summary.errors_reported:
        said.append(f"{summary.errors_reported} partial errors that the source itself reported")
    if summary.refused:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in sorted(summary.refused.items()))
        said.append(f"refused, each with its reason in `dead-letters` unless nothing of it may be kept: {reasons}")
    return said


def run_broker(settings: Settings) -> None:
    """Run only the broker, until a signal."""
    screen = Screen()

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with deployment(settings, {}, screen.say) as running:
            if os.environ.get("XINFLUENCER_KAFKA"):
                raise ValueError("XINFLUENCER_KAFKA names a cluster: unset it to run the embedded broker")
            await running.start_broker(lambda done, of, what: None)
            screen.say(f"Kafka at {running.kafka.bootstrap}; Ctrl-C stops it")
            waiting: set[asyncio.Future[Any]] = {asyncio.create_task(stop.wait()), running.failed}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if running.failed.done():
                running.failed.result()

    asyncio.run(run())


def print_topology(png: Path | None) -> None:
    """Print the graph that runs, and draw it."""
    screen = Screen()
    table = topology.stages()
    screen.table(
        ("agent", "reads", "writes"),
        [(s.name, s.reads.name, ", ".join(t.name for t in s.writes if t not in topology.ALWAYS)) for s in table],
    )
    screen.say(f"  every agent may also write {' and '.join(t.name for t in topology.ALWAYS)}\n")
    screen.table(
        ("process", "reads", "writes"),
        [(p.name, ", ".join(t.name for t in p.reads), ", ".join(t.name for t in p.writes)) for p in topology.OUTSIDE],
    )
    if png is not None:
        from streams.drawing import draw

        draw(table, png)
        screen.say(f"\n  drawn to {png}")


def print_topics(settings: Settings) -> None:
    """Print the topic table, with counts where a log can be reached."""
    screen = Screen()

    async def counts() -> dict[str, int]:
        async with log_access(settings, screen.say) as kafka:
            found: dict[str, int] = {}
            for tp, end in (await end_offsets(kafka, [settings.physical(t.name) for t in TOPICS])).items():
                name = settings.logical(tp.topic)
                found[name] = found.get(name, 0) + end
            return found

    try:
        ends: dict[str, Any] = dict(asyncio.run(counts()))
    except Exception as error:  # noqa: BLE001 - the table is worth printing whatever keeps the counts away
        screen.say(f"  (no counts: {error})")
        ends = {}
    rows = []
    for topic in TOPICS:
        kept = (
            "compacted" if topic.compacted else "for ever" if topic.keep_ms < 0 else f"{topic.keep_ms // 86_400_000} d"
        )
        wide = settings.partitions if topic.wide else 1
        rows.append((topic.name, topic.key or "-", wide, kept, ends.get(topic.name, "-"), topic.about))
    screen.table(("topic", "key", "partitions", "kept", "records", "holds"), rows)


def create_topics(settings: Settings) -> None:
    """Create the topics that are missing."""

    async def run() -> None:
        async with log_access(settings, Screen().say, make=True) as kafka:
            await ensure_topics(kafka, specs(settings))

    asyncio.run(run())


def run_adopt(settings: Settings, name: str, before: int) -> None:
    """Let a new version of an agent go on from where the one before ended."""
    from streams.adopt import adopt
    from streams.object_snapshots import keeper

    screen = Screen()
    stage = next((one for one in topology.stages(settings.tuning) if one.name == name), None)
    if stage is None:
        raise ValueError(f"there is no agent {name!r}")

    async def run() -> None:
        kept = keeper(settings.snapshots, settings.data / "snapshots")
        async with log_access(settings, screen.say) as kafka:
            taken = await adopt(settings, kafka, kept, stage, before, _vault(settings), settings.group("worker"))
        for partition, offset in taken.items():
            screen.say(f"  {name} version {stage.version} goes on at {stage.reads.name}/{partition}@{offset}")

    asyncio.run(run())


def run_replay(settings: Settings, out: Path) -> None:
    """Rebuild the training set of all closed batches; written whole or not at all."""
    from models.rows import canonical, dataset_sha256

    screen = Screen()

    async def run() -> None:
        async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log_reader:
            batches = [batch for _, batch in await closed_batches(log_reader)]
            with screen.progress("reading the log"):
                dataset = await load(log_reader, batches, _vault(settings))
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.writelines(canonical(row) for row in dataset.rows)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        for batch in batches:
            screen.say(f"  batch {batch.sequence}: {len(batch.pairs)} pairs, root {batch.root} verifies")
        for reason, number in sorted(dataset.withheld.items()):
            screen.say(f"  {number} pairs withheld: {reason}")
        screen.say(f"  {len(dataset.rows)} rows in {out}, sha256 {dataset_sha256(dataset.rows)}")

    asyncio.run(run())


def run_verify(settings: Settings) -> None:
    """Fold the log again and name what retention took out of sight; exit code 1 if it does not hold what it must.

    The log is read into memory, 1 GB for every 330,000 records.
    """
    from streams.adopt import begun
    from streams.object_snapshots import keeper

    screen = Screen()
    table = topology.stages(settings.tuning)

    async def run() -> None:
        async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log_reader:
            names = [topic.name for topic in TOPICS]
            number = sum((await log_reader.ends(*names)).values()) - sum((await log_reader.begins(*names)).values())
            screen.say(f"  reading {number} records into memory, about {number * BYTES_A_RECORD / 1e9:.1f} GB")
            log = await log_reader.everything(*names)
            kept = keeper(settings.snapshots, settings.data / "snapshots")
            begins = await begun(settings, kafka, kept, table, _vault(settings))
        verdict = verify(log, table, settings.partitions, _vault(settings), begins)
        rows = [(name, seen, verdict.absorbed[name]) for name, seen in verdict.visible.items()]
        screen.table(("topic", "visible", "duplicates absorbed"), rows)
        for name, number in verdict.earlier.items():
            screen.say(f"  {number} outputs of {name} are of earlier versions: told by their ids, not made again")
        for line in verdict.unchecked:
            screen.say(f"  not checked: {line}")
        for fault in verdict.faults[:20]:
            screen.say(f"  FAULT {fault}")
        beside = f"; {len(verdict.unchecked)} things not checked, for retention passed" if verdict.unchecked else ""
        screen.say(f"  {len(verdict.faults)} faults{beside}")
        if verdict.faults:
            sys.exit(1)

    asyncio.run(run())


def run_command(settings: Settings, what: str, version: str, reason: str) -> None:
    """Write an operator's command to `candidates`."""
    kinds = get_args(ReleaseCommanded.model_fields["command"].annotation)
    if what not in kinds:
        raise ValueError(f"a command is one of {', '.join(kinds)}")
    if not re.fullmatch("[0-9a-f]{64}", version):
        raise ValueError(f"{version!r} is no version: give all 64 digits, as `xinfluencer report models` lists them")
    by = os.environ.get("USER", "operator")
    event = ReleaseCommanded.model_validate({"command": what, "version": version, "by": by, "reason": reason})
    screen = Screen()

    async def run() -> None:
        async with log_access(settings, screen.say) as kafka:
            sender = Sender(settings, kafka)
            now = _now_ms()
            name = f"command-{now}-{os.getpid()}"
            await sender.send([outside(event, "/operator", now, settings.partitions, _vault(settings), name)])
            await sender.stop()
        screen.say(f"  {what} {version[:12]} written; `models` will say what became of it")

    asyncio.run(run())


def print_settings(settings: Settings) -> None:
    """Print every setting with its variable."""
    rows = [
        (PREFIX + name.upper(), str(getattr(settings, name)), field.description or "")
        for name, field in type(settings).model_fields.items()
    ]
    Screen().table(("variable", "value", "what"), rows)
