"""The peer of `chain` and `latency`: the same steps as plain Faust agents, one record at a time, gathered sends.

Each agent decodes a record, runs the project's own step on it, and sends what comes out with Faust's producer, as the
Faust manual shows. No dedupe, no snapshot, no origin: after a kill it would lose or double. Ours pays for those.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import faust

from schemas import envelope, seal
from schemas.ids import output_id, partition_of
from schemas.topics import HOME, partitions
from streams.fold import Stage
from streams.settings import Settings
from streams.topology import stages
from streams.vault import Vault

GATHER = 500  # sends in flight before they are awaited; one by one would be slower still


def main() -> None:
    """Run the agents named on the command line until killed."""
    names, sys.argv[1:] = sys.argv[1:], []
    settings = Settings.from_env()
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    app = faust.App(
        settings.group("-".join(("plain", *names))),
        broker=f"kafka://{os.environ['XINFLUENCER_KAFKA']}",
        store="memory://",
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=settings.partitions,
        producer_acks=-1,
        broker_commit_interval=settings.snapshot_s,
        web_enabled=False,
        datadir=settings.data / f"faust-{names[0]}",
        consumer_auto_offset_reset="earliest",
    )
    for stage in stages(settings.tuning):
        if stage.name in names:
            reads = _topic(app, settings, stage.reads.name)
            app.agent(reads, name=stage.name)(_agent(app, stage, settings, vault))
    faust.Worker(app, quiet=True, override_logging=False).execute_from_commandline()


def _topic(app: Any, settings: Settings, name: str) -> Any:
    return app.topic(settings.physical(name), key_type=bytes, value_type=bytes, value_serializer="raw")


def _agent(app: Any, stage: Stage, settings: Settings, vault: Vault) -> Callable[[Any], Any]:
    states: dict[int, Any] = {}
    targets = {topic.name: _topic(app, settings, topic.name) for topic in stage.writes}

    async def agent(stream: Any) -> None:
        pending: list[Any] = []
        async for event in stream.events():
            message = event.message
            headers = list((message.headers or {}).items()) if isinstance(message.headers, dict) else message.headers
            record = envelope.decode(
                stage.reads.name, message.partition, message.offset, int(message.timestamp * 1000), headers, event.value
            )
            state = states.get(message.partition)
            outs, states[message.partition] = stage.step([record], stage.state() if state is None else state)
            for ordinal, out in enumerate(outs):
                topic = HOME[type(out.event)]
                name = output_id(stage.name, stage.version, record.id, ordinal)
                key = topic.key_of(out.event)
                pending.append(
                    await targets[topic.name].send(
                        key=key.encode() if key is not None else None,
                        value=envelope.body(seal.seal(out.event, name, vault)),
                        partition=partition_of(key, partitions(topic, settings.partitions)) if key is not None else 0,
                        timestamp=record.time_ms / 1000,
                        headers=dict(envelope.headers(out.event, name, f"/stages/{stage.name}", record.time_ms)),
                    )
                )
            if len(pending) >= GATHER:
                await asyncio.gather(*pending)
                pending.clear()

    return agent


if __name__ == "__main__":
    main()
