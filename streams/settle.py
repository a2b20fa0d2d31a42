"""Settle: wait until every agent has read all there is, and nothing is on its way between them.

Ends are read, then commits are waited for, then ends are read again: if all that was there is committed (a commit
comes after the outputs were acknowledged) and nothing new came, nothing is in flight. Topics that transactions write
to are left out: their last offset is a marker that no commit reaches.
"""

import asyncio
import logging
import time

from aiokafka.errors import KafkaError

from streams.kafka import KafkaSettings, committed_offsets, end_offsets
from streams.settings import Settings
from streams.topology import stages

log = logging.getLogger("xinfluencer.settle")

TRANSACTIONAL = ("candidates", "batches")
POLL_S = 0.25


class NotSettled(Exception):
    """The agents did not get through in time."""


async def settled(settings: Settings, kafka: KafkaSettings, seconds_max: float = 120.0, group: str = "worker") -> None:
    """Return when the agents are through; NotSettled with what they are behind on after `seconds_max`."""
    names = [settings.physical(s.reads.name) for s in stages(settings.tuning) if s.reads.name not in TRANSACTIONAL]
    deadline = time.monotonic() + seconds_max
    behind: dict[str, int] = {}
    before = None
    while time.monotonic() < deadline:
        try:
            ends = await end_offsets(kafka, names)
            done = await committed_offsets(kafka, settings.group(group))
        except (KafkaError, OSError, LookupError, TimeoutError) as error:
            log.info("cannot ask the cluster: %r", error)
            before = None
            await asyncio.sleep(1.0)
            continue
        behind = {
            f"{tp.topic}/{tp.partition}": end - done.get(tp, 0) for tp, end in ends.items() if end > done.get(tp, 0)
        }
        if not behind and ends == before:
            return
        before = ends if not behind else None
        await asyncio.sleep(POLL_S)
    raise NotSettled(f"after {seconds_max:.0f} s the agents are still behind: {behind}")
