"""Mangling: a payload and a seed -> the same payload with something in it that should not be there."""

import copy
import pickle
import random
from typing import Any

from schemas import envelope
from schemas.posts import PostObserved
from streams.lines import Unreadable
from streams.reading import Reading

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**53, 10**30, 1.5, float("nan"), "", "x", "5", "a\0b", "\ud800", "\udcff", "é" * 600,
    "x" * 100_001, [], {}, [None], [[]], {"": None}, {"uri": 5}, "at://did:plc:x/app.bsky.feed.post/y", "at://h.example/",
    "1969-12-31T23:59:59Z", "2100-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z", "2026-01-05T00:00:00", "<p", "&#xd800;",
    "did:plc:zzzz", "../../x", "a/b", "a b", ["en"], [{"type": []}], Unreadable(),
)  # fmt: skip


def mangled(rng: random.Random, value: Any) -> Any:
    """Change one to three places, at any depth: replace, remove, double, or nest."""
    value = pickle.loads(pickle.dumps(value))  # a copy, in a tenth of copy's time
    for _ in range(rng.randint(1, 3)):
        found = _place(rng, value)
        if found is None:
            return rng.choice(JUNK)
        holder, key = found
        act = rng.random()
        if act < 0.6:
            holder[key] = copy.deepcopy(rng.choice(JUNK))
        elif act < 0.75 and isinstance(holder, dict):
            del holder[key]
        elif act < 0.9:
            holder[key] = [holder[key]] * 2
        else:
            holder[key] = {"id": "5", **(holder[key] if isinstance(holder[key], dict) else {})}
    return value


def _place(rng: random.Random, value: Any) -> tuple[Any, Any] | None:
    """Walk in from the top, further in more often than not."""
    found = None
    while isinstance(value, dict | list) and value and (found is None or rng.random() < 0.7):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        found = value, key
        value = value[key]
    return found


def accounted(reading: Reading) -> bool:
    """Say whether every post has one fate, and everything said can be written; the balance of streams/reading.py."""
    for said in reading.said:
        for event in said.events:
            envelope.body(event)
    posts = sum(isinstance(one.events[0], PostObserved) for one in reading.said)
    return reading.posts_in == posts + sum(one.what == "post" for one in reading.refusals) + reading.repeated
