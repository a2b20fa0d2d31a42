"""Plain worker: one stage as the Faust manual would write it, with one of Faust's traps in it, by name.

Run as `python tests/plain_worker.py VARIANT`. It names its outputs as our fold does and gives their origin, so that the
same oracle can judge it: what is then missing, doubled or contradicting is the trap's doing. `plain` has no trap.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import faust

from schemas import envelope
from schemas.envelope import Origin, Out, Record
from schemas.events import EngagementNoted, FeedbackGiven
from schemas.ids import output_id, partition_of, prompt_of
from schemas.topics import FEEDBACK, HOME, SIGNALS, partitions
from streams.fold import Stage
from streams.settings import Settings
from streams.topology import ALWAYS, stages

SLOW_S = float(os.environ.get("XINFLUENCER_SLOW_S", "0"))  # for each record whose offset divides by SLOW_EVERY
SLOW_EVERY = int(os.environ.get("XINFLUENCER_SLOW_EVERY", "1"))
FAIL_EVERY = 97  # the one record in so many on which `take_and_raise` raises


def counted(chunk: Sequence[Record], state: dict[str, int]) -> tuple[list[Out], dict[str, int]]:
    """Count judgements by subject, aloud."""
    outs = []
    for record in chunk:
        if isinstance(record.event, FeedbackGiven):
            subject = record.event.subject
            state[subject] = state.get(subject, 0) + 1
            outs.append(Out(record, _count(subject, state[subject])))
    return outs, state


def _count(subject: str, number: int) -> EngagementNoted:
    return EngagementNoted(prompt=prompt_of(subject), subject=subject, likes=number)


COUNTING = Stage("counting", 1, FEEDBACK, (SIGNALS, *ALWAYS), dict, dict[str, int], counted)
INTAKE = next(stage for stage in stages() if stage.name == "intake")


def stage_of(variant: str) -> Stage:
    """Give the stage that a variant runs: only the counter has a state."""
    return COUNTING if variant == "counter_in_a_table" else INTAKE


class Plain:
    """One app with one agent."""

    def __init__(self, variant: str) -> None:
        self.settings = settings = Settings.from_env()
        self.variant = variant
        self.stage = stage_of(variant)
        more: dict[str, Any] = {}
        if variant == "exactly_once":
            more["processing_guarantee"] = "exactly_once"
        if variant == "does_not_wait":
            more["stream_wait_empty"] = False
        self.app = faust.App(
            settings.group("plain"),
            broker=f"kafka://{os.environ['XINFLUENCER_KAFKA']}",
            store="memory://",
            topic_disable_leader=True,
            topic_allow_declare=variant == "counter_in_a_table",
            topic_partitions=settings.partitions,
            topic_replication_factor=1,
            producer_acks=-1,
            broker_commit_interval=0.3,
            broker_session_timeout=6.0,
            broker_heartbeat_interval=1.0,
            consumer_group_instance_id="0",
            consumer_auto_offset_reset="earliest",
            web_enabled=False,
            datadir=settings.data / "faust",
            **more,
        )
        self.source = self._topic(FEEDBACK.name)
        self.target = self._topic(SIGNALS.name)
        self.counts = self.app.Table("counts", default=int) if variant == "counter_in_a_table" else None
        agent = {"take_and_raise": self.in_tens}.get(variant, self.by_record)
        self.app.agent(self.source, concurrency=2 if variant == "concurrency_2" else 1)(agent)

    def _topic(self, name: str) -> Any:
        return self.app.topic(self.settings.physical(name), key_type=bytes, value_type=bytes, value_serializer="raw")

    async def by_record(self, stream: Any) -> None:
        """Read, step, send, and wait for the acknowledgement, as the manual shows."""
        async for event in stream.events():
            if SLOW_S and event.message.offset % SLOW_EVERY == 0:
                await asyncio.sleep(SLOW_S)
            await self.answer(event.message, event.value)

    async def in_tens(self, stream: Any) -> None:
        """Read ten at a time; one record in many makes the agent raise, and Faust starts it again."""
        async for events in stream.take_events(10, within=0.2):
            if any(event.message.offset % FAIL_EVERY == 13 for event in events):
                raise ValueError("a bug that one record finds")
            for event in events:
                await self.answer(event.message, event.value)

    async def answer(self, message: Any, value: bytes) -> None:
        """Run the step on one record and send what comes of it."""
        headers = list(message.headers.items()) if isinstance(message.headers, dict) else list(message.headers or ())
        record = envelope.decode(
            FEEDBACK.name, message.partition, message.offset, int(message.timestamp * 1000), headers, value
        )
        for ordinal, event in enumerate(self.said(record)):
            topic = HOME[type(event)]
            key = topic.key_of(event)
            assert key is not None
            name = output_id(self.stage.name, self.stage.version, record.id, ordinal)
            origin = Origin(self.stage.name, FEEDBACK.name, message.partition, message.offset, ordinal)
            sent = await self.target.send(
                key=key.encode(),
                value=envelope.body(event),
                partition=partition_of(key, partitions(topic, self.settings.partitions)),
                timestamp=record.time_ms / 1000,
                headers=envelope.headers(event, name, f"/stages/{self.stage.name}", record.time_ms, origin),
            )
            await sent

    def said(self, record: Record) -> list[Any]:
        """Give what follows from a record."""
        if self.counts is not None and isinstance(record.event, FeedbackGiven):
            self.counts[record.event.subject] += 1
            return [_count(record.event.subject, self.counts[record.event.subject])]
        outs, _ = self.stage.step([record], {})
        return [out.event for out in outs]


if __name__ == "__main__":
    made = Plain(sys.argv[1])
    sys.argv[1:] = []
    faust.Worker(made.app, quiet=True, override_logging=False).execute_from_commandline()
