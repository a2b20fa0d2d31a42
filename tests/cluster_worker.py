"""Cluster worker: the worker, and the worker with a later version of one step.

Run as `python tests/cluster_worker.py INSTANCE [next]`.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agents import intake
from schemas.envelope import Out, Record
from schemas.events import FeedbackGiven
from streams import worker
from streams.fold import Stage
from streams.settings import Settings
from streams.topology import Tuning, stages


def kinder(chunk: Sequence[Record], state: Any) -> tuple[list[Out], Any]:
    """Fold `feedback` as version 2 does: it does not take in what was judged below zero."""
    kept = [one for one in chunk if not (isinstance(one.event, FeedbackGiven) and one.event.value < 0)]
    return intake.step(kept, state)


def next_stages(tuning: Tuning | None = None) -> tuple[Stage, ...]:
    """Give the table with version 2 of `intake`."""
    return tuple(replace(one, version=2, step=kinder) if one.name == "intake" else one for one in stages(tuning))


if __name__ == "__main__":
    if "next" in sys.argv:
        worker.stages = next_stages
    worker.run_worker(Settings.from_env(), instance=sys.argv[1])
