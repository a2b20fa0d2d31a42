"""Formats: one JSON value -> which format it is, by its content, and what it says, read by that format's reader.

A file may mix sources: each value is looked at on its own. What is no format of ours is refused as a whole, and so is a
value of one source that somebody says is another's: its ids would be taken for that source's.
"""

from collections.abc import Callable
from typing import Any, Literal

from streams import bluesky, mastodon, xv1, xv2
from streams.reading import Reading, Refusal, RightsOf

Format = Literal["x2", "x1", "jetstream", "mastodon"]
Reader = Callable[[Any, str, RightsOf], Reading]
SOURCES: dict[Format, str] = {"x2": "x", "x1": "x", "jetstream": "bluesky", "mastodon": "mastodon"}
"""Whose posts a format holds, where nobody says otherwise."""
READERS: dict[Format, Reader] = {
    "x2": xv2.read,
    "x1": xv1.read,
    "jetstream": bluesky.read,
    "mastodon": mastodon.read,
}
JETSTREAM_KINDS = ("commit", "identity", "account")


def detect(value: Any) -> Format | None:
    """Tell the format of one value by the fields that only that format has; None for what is no format of ours."""
    if not isinstance(value, dict):
        return None
    if "did" in value and ("time_us" in value or value.get("kind") in JETSTREAM_KINDS):
        return "jetstream"
    if mastodon.is_mastodon(value):
        return "mastodon"
    if xv1.is_v1(value):
        return "x1"
    return "x2" if xv2.is_v2(value) else None


def source_of(value: Any) -> str | None:
    """Name the source of a value's format."""
    form = detect(value)
    return SOURCES[form] if form else None


def read(value: Any, source: str | None, rights_of_source: Callable[[str], RightsOf]) -> Reading:
    """Read one value; `source` overrides whose rights apply and what ids begin with (None: the format's own)."""
    form = detect(value)
    if form is None:
        return _refused("unknown-shape", f"{type(value).__name__} of no format that this program reads", value)
    name = source or SOURCES[form]
    if name != SOURCES[form] and (name in SOURCES.values() or (name == "simulator" and form != "x2")):
        return _refused("wrong-source", f"this is {form}, which is {SOURCES[form]}'s and not {name}'s", value)
    return READERS[form](value, name, rights_of_source(name))


def _refused(reason: str, detail: str, value: Any) -> Reading:
    return Reading(refusals=[Refusal("value", reason, detail, value)])
