"""Sink acts: what tests of the sink write to a log, and where they look what it came to."""

import json
from collections.abc import Iterable
from typing import Any

from schemas import posts as ps
from schemas.facts import Event
from streams.fold import Sent
from streams.memory import Logged
from streams.records import outside
from streams.settings import Settings
from tests.feeds import RIGHTS, ZERO
from tests.small_world import Keyring

NOW_MS = 1_780_000_000_000


class Killed(Exception):
    """The process dies here."""


def status(settings: Settings) -> dict[str, Any]:
    try:
        return dict(json.loads((settings.data / "run" / "sink.status.json").read_text()))
    except (OSError, ValueError):
        return {}


def post(name: str, owner: str, **more: Any) -> ps.PostObserved:
    given = {"post": name, "owner": owner, "source": "x", "raw_sha256": ZERO, "rights": RIGHTS.model_dump(), **more}
    return ps.PostObserved.model_validate(given)


def edited(first: str, name: str, owner: str, revision: int = 2) -> ps.PostEdited:
    return ps.PostEdited.model_validate({**post(first, owner).model_dump(), "named": name, "revision": revision})


def told(events: Iterable[Event], keys: Any = None) -> list[Sent]:
    return [outside(one, "/test", NOW_MS, 2, keys or Keyring()) for one in events]


def logged(events: Iterable[Event], start: int = 0) -> list[Logged]:
    """The events as they lie in one partition."""
    return [Logged(start + i, NOW_MS, one.key, one.value, list(one.headers)) for i, one in enumerate(told(events))]
