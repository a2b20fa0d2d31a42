"""Reactions: single likes, reposts, replies and quotes -> the counts that a source does not give itself.

An act counts once, under its own name, and can be undone. Keyed by the post reacted to.
"""

from collections.abc import Sequence

import msgspec

from schemas.envelope import Out, Record


class State(msgspec.Struct):
    """What one partition remembers."""


def step(chunk: Sequence[Record], state: State) -> tuple[list[Out], State]:
    """Fold a chunk of `reactions`."""
    return [], state
