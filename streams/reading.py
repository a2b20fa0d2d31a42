"""Reading: one JSON value of a source -> what it said, and a reason for everything in it that cannot be used.

The shape that every format's reader gives (streams/xv2.py, xv1.py, bluesky.py, mastodon.py). Every post in a value has
exactly one fate: said, refused, or met before in the same value. Readers are pure: no clock and no network.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from schemas.facts import Event, Rights

What = Literal["value", "post", "author", "reaction", "compliance"]
RightsOf = Callable[[str], Rights]
"""An author's id (`x:@12`) -> what may be done with their posts: the source's policy and what they declared."""


class Said(NamedTuple):
    """Events of one object, which go together or not at all; the post, the act or the deletion comes first."""

    events: tuple[Event, ...]
    raw: Any


class Refusal(NamedTuple):
    """An object that cannot be used. Only "post" counts among the posts."""

    what: What
    reason: str
    detail: str
    raw: Any


@dataclass(slots=True)
class Reading:
    """What one value held. posts_in = posts said + posts refused + repeated."""

    said: list[Said] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    posts_in: int = 0
    repeated: int = 0
    errors: int = 0  # partial errors that the source itself reported
    of_no_use: int = 0  # understood, and nothing in it for us: a profile, a keep-alive, a location scrubbed
