"""Graph: acts between authors -> who is influential, who belongs together, and how each post's author stands.

The state holds single acts, not sums, so forgetting one is exact. On a schedule of log time the decayed graph is built
from them and measured whole (PageRank, Louvain); in between only the last measure is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from schemas.envelope import Out, Record


@dataclass(frozen=True)
class Limits:
    """When the graph is measured and how fast an act fades."""

    every_ms: int = 60_000
    half_life_ms: int = 7 * 86_400_000


class State(msgspec.Struct):
    """What the one partition remembers."""


def step(chunk: Sequence[Record], state: State, limits: Limits) -> tuple[list[Out], State]:
    """Fold a chunk of `interactions`."""
    return [], state
