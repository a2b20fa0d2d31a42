"""Worker: the process that runs agents; Faust around the shell around the folds."""

import asyncio
import gc
import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import faust

from streams import crash
from streams.access_rules import require
from streams.fold import Stage
from streams.kafka import SESSION_S, KafkaSettings, cluster_id, ensure_topics, topic_ids
from streams.settings import Settings
from streams.shell import Shell
from streams.topics import specs
from streams.topology import stages
from streams.transport import ChunkSchema, Transport

log = logging.getLogger("xinfluencer.worker")

HEARTBEAT_S = 1.5
STATUS_S = 0.5
YOUNG_MAX = 1_000_000  # objects made and not gone yet: more than a chunk and what is read ahead of it
TIDY_S = 5.0  # then whatever is young and in a cycle is found, a hundredth of a second of work
TIDIES_A_FULL = 60  # and as often as this the old is looked at too
CHUNKS_BUFFERED_MAX = 64  # Faust's default of 4096 would count chunks, not records


class Boot(faust.App.BootStrategy):  # type: ignore[misc]
    """Faust's start without Faust's producer: nothing uses it, and it would connect without our TLS and credentials."""

    enable_kafka_producer = False


class ChunkApp(faust.App):  # type: ignore[misc]
    """A Faust app that owns a shell, and closes it after its streams and its consumer are done with it."""

    BootStrategy = Boot
    shell: Shell

    async def on_stop(self) -> None:
        await super().on_stop()
        await self.shell.close()


def chosen(table: Sequence[Stage], names: Sequence[str]) -> tuple[Stage, ...]:
    """Give the stages named, or all; ValueError names what is not in the table."""
    known = {stage.name: stage for stage in table}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no agent {name!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else tuple(table)


def make_app(
    settings: Settings,
    kafka: KafkaSettings,
    table: tuple[Stage, ...],
    logs: dict[str, str],
    group: str,
    instance: str,
    run: Path,
    crash_point: Any,
) -> Any:
    """Build the Faust app: one agent a stage, each a loop over chunks."""
    topics = sorted(settings.physical(stage.reads.name) for stage in table)
    # A static instance id that stays while the topics change is never given the new ones, so the topics are in it.
    static = f"{instance}-{hashlib.sha256(' '.join(topics).encode()).hexdigest()[:12]}"
    app = ChunkApp(
        group,
        broker=[f"kafka://{server}" for server in kafka.servers],
        consumer_group_instance_id=static,
        broker_session_timeout=SESSION_S,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_max_poll_interval=120.0,
        broker_max_poll_records=8_000,
        broker_commit_interval=settings.snapshot_s,
        consumer_max_fetch_size=1 << 20,
        stream_buffer_maxsize=CHUNKS_BUFFERED_MAX,
        stream_wait_empty=True,
        store="memory://",
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        worker_redirect_stdouts=False,
        datadir=run / f"faust-{instance}",
    )
    app.shell = Shell(settings, kafka, table, logs, crash_point)
    app.shell.metrics.begin(f"worker-{instance}")
    app.transport = Transport(app.conf.broker_consumer, app, app.loop)
    for stage in table:
        topic = app.topic(settings.physical(stage.reads.name), schema=ChunkSchema())
        app.agent(topic, name=stage.name, concurrency=1)(_agent(app.shell))

    @app.task  # type: ignore[untyped-decorator]
    async def tell() -> None:
        path = run / f"worker-{instance}.status.json"
        while True:
            if app.shell.consumer is not None and app.shell.owned:
                await app.shell.write_status(path)
            slept_s = app.loop.time()
            await asyncio.sleep(STATUS_S)
            app.shell.metrics.stalled(app.loop.time() - slept_s - STATUS_S)

    @app.task  # type: ignore[untyped-decorator]
    async def tidy() -> None:
        for number in count(1):
            await asyncio.sleep(TIDY_S)
            gc.collect(0 if number % TIDIES_A_FULL else 2)

    return app


def _agent(shell: Shell) -> Callable[[Any], Any]:
    async def agent(stream: Any) -> None:
        async for event in stream.events():
            await shell.handle(event.message.value)

    return agent


def run_worker(settings: Settings, names: Sequence[str] = (), instance: str = "0") -> None:
    """Run until SIGTERM or SIGINT; exits by itself with EXIT_AGAIN when it must start over."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    logging.getLogger("faust").setLevel(logging.WARNING)
    logging.getLogger("mode").setLevel(logging.WARNING)
    kafka = settings.kafka()
    run = settings.data / "run"
    run.mkdir(parents=True, exist_ok=True)

    table = chosen(stages(settings.tuning), names)
    # Workers with other agents are other groups: one that joins must not make the rest let go of what they hold.
    group = settings.group("-".join(("worker", *sorted(names))))

    async def prepare() -> dict[str, str]:
        await ensure_topics(kafka, specs(settings))
        await require(settings, kafka, ":".join(("worker", *([",".join(names)] if names else []))))
        ids = await topic_ids(kafka, [settings.physical(stage.reads.name) for stage in table])
        cluster = await cluster_id(kafka)
        return {topic: f"{cluster}/{topic}/{topic_id}" for topic, topic_id in ids.items()}

    logs = asyncio.run(prepare())
    # A chunk makes a hundred thousand objects that die with it and hardly a cycle: looking for cycles in the middle of
    # one takes a tenth of its time and finds nothing, so `tidy` looks between them.
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 10, 10)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = make_app(settings, kafka, table, logs, group, instance, run, crash.from_env())
    worker = faust.Worker(app, loop=loop, quiet=True, override_logging=False)
    worker.spinner = None  # it writes terminal codes into log files
    worker.execute_from_commandline()
