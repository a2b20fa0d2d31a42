"""Envelope: event <-> one Kafka record, as a CloudEvent in Kafka's binary mode.

Attributes travel as `ce_*` headers and the event as the JSON body (CloudEvents 1.0.2, Kafka Protocol Binding 3.2).
`ce_origin` is an extension of ours: which stage wrote it, because of which record; `ce_traceparent` is CloudEvents'
distributed tracing extension, and nothing is decided by it. Decoding never guesses: an unknown type or version, a body
that does not fit, or sealed words under another id is a `Refused` with a reason; fields that we do not know are
counted and left out.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from schemas.facts import MS_MAX, Event, Fact
from schemas.topics import BY_NAME, KINDS, RECORD_BYTES_MAX, Topic

F = TypeVar("F", bound=Fact)
Headers = list[tuple[str, bytes]]
TYPE_PREFIX = "xinfluencer."
DETAIL_CHARS_MAX = 300
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Refused(ValueError):
    """A record that cannot be used. `reason` is a short name for counting, `detail` says what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = "".join(c if c.isprintable() else "?" for c in detail[:DETAIL_CHARS_MAX])


class Origin(NamedTuple):
    """Which stage sent a record, because of which input, and as the how-manieth output of it."""

    stage: str
    topic: str
    partition: int
    offset: int
    ordinal: int

    def text(self) -> str:
        """Render as stage/topic/partition/offset/ordinal."""
        return f"{self.stage}/{self.topic}/{self.partition}/{self.offset}/{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Read what `text` rendered; anything else is Refused."""
        try:
            place, offset, ordinal = text.rsplit("/", 2)
            if not (text.isascii() and offset.isdigit() and ordinal.isdigit()):
                raise ValueError
            return cls(*_place(place), int(offset), int(ordinal))
        except ValueError:
            raise Refused("bad-origin", f"ce_origin is {text!r}") from None


@lru_cache(maxsize=4096)
def _place(text: str) -> tuple[str, str, int]:
    """Read the part of an origin that all records of one stage's partition share; ValueError if it is none."""
    stage, topic, partition = text.split("/")
    if not (partition.isascii() and partition.isdigit()):
        raise ValueError(text)
    return stage, topic, int(partition)


class Record(NamedTuple):
    """One event as read from the log: where it stood, when it was written, who caused it."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    id: str
    event: Event
    origin: Origin | None = None
    unknown_fields: int = 0
    traceparent: bytes | None = None  # as it stands in its header, not looked at


class Out(NamedTuple):
    """What a step says, and the record that made it say so."""

    cause: Record
    event: Event


@lru_cache(maxsize=4096)
def time_header(time_ms: int) -> tuple[str, bytes]:
    """Write the header that says when (RFC 3339, UTC, milliseconds)."""
    text = (EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds")
    return "ce_time", text.replace("+00:00", "Z").encode()


WORDED = frozenset(kind for kind in KINDS.values() if "content" in kind.model_fields)
"""The events that carry words, which must be sealed wherever they lie."""

_TYPES = {kind: f"{TYPE_PREFIX}{name}.v{kind.VERSION}".encode() for name, kind in KINDS.items()}
JSON = ("content-type", b"application/json")
SPEC = ("ce_specversion", b"1.0")


def type_header(kind: type[Event]) -> tuple[str, bytes]:
    """Write the header that says what kind of event this is."""
    return "ce_type", _TYPES[kind]


def headers(
    event: Event,
    event_id: str,
    source: str,
    time_ms: int,
    origin: Origin | str | None = None,
    traceparent: bytes | None = None,
) -> Headers:
    """Write the CloudEvents headers; `source` is a path such as /stages/metadata; an origin may be rendered already."""
    out = [
        SPEC,
        ("ce_id", event_id.encode()),
        ("ce_source", source.encode()),
        type_header(type(event)),
        time_header(time_ms),
        JSON,
    ]
    if origin is not None:
        text = origin if isinstance(origin, str) else origin.text()
        out.append(("ce_origin", text.encode()))
    if traceparent is not None:
        out.append(("ce_traceparent", traceparent))
    return out


def body(event: Event) -> bytes:
    """Write the JSON body; None fields are left out, so that adding an optional field changes no older bytes."""
    data = event.__pydantic_serializer__.to_json(event, exclude_none=True)
    if len(data) > RECORD_BYTES_MAX:
        raise Refused("too-large", f"{len(data)} bytes; at most {RECORD_BYTES_MAX}")
    return data


def read_headers(raw: Any) -> tuple[type[Event], str, Origin | None]:
    """Read kind, id and origin out of a record's headers, or say why not (Refused)."""
    return _read_headers(raw)[:3]


def _read_headers(raw: Any) -> tuple[type[Event], str, Origin | None, bytes | None]:
    found = dict(raw or ())
    if len(found) != len(raw or ()):  # of a name that comes twice the last counts, but every origin must be one
        for name, value in raw:
            if name == "ce_origin":
                Origin.parse(_text(value))
    kind_text, event_id = found.get("ce_type"), found.get("ce_id")
    origin = Origin.parse(_text(found["ce_origin"])) if "ce_origin" in found else None
    if kind_text is None or event_id is None:
        raise Refused("no-envelope", "ce_type or ce_id is missing: not a CloudEvent in binary mode")
    kind = _kind_of(kind_text)
    if kind is None:
        raise _unknown(_text(kind_text))
    name = _text(event_id)
    if not 0 < len(name) <= 256:
        raise Refused("bad-id", f"ce_id has {len(name)} characters")
    return kind, name, origin, found.get("ce_traceparent")


_KIND_OF = {text: kind for kind, text in _TYPES.items()}


def _kind_of(text: bytes) -> type[Event] | None:
    return _KIND_OF.get(text)


def _unknown(text: str) -> Refused:
    name, _, version = text.removeprefix(TYPE_PREFIX).rpartition(".v")
    if name in KINDS:
        return Refused("unknown-version", f"{name} version {version}; this program reads {KINDS[name].VERSION}")
    return Refused("unknown-type", f"ce_type is {text!r}")


def _text(value: bytes | None) -> str:
    try:
        return (value or b"").decode()
    except UnicodeDecodeError:
        raise Refused("bad-header", "a header is not UTF-8") from None


def parse(kind: type[F], data: bytes | None) -> tuple[F, int]:
    """Read a body as `kind`; gives the event and how many unknown fields were left out."""
    if data is None:
        raise Refused("no-body", "the record is a tombstone")
    if len(data) > RECORD_BYTES_MAX:
        raise Refused("too-large", f"{len(data)} bytes; at most {RECORD_BYTES_MAX}")
    try:
        return kind.__pydantic_validator__.validate_json(data), 0
    except ValidationError as error:
        return _parse_with_unknown_fields(kind, data, error)


def _parse_with_unknown_fields(kind: type[F], data: bytes, error: ValidationError) -> tuple[F, int]:
    """Leave out what is unknown and read again: an item that was closed for it may have counted as missing before."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    unknown = [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]
    if not unknown:
        raise _misfit(error)
    tree = from_json(data)
    for location in unknown:
        node: Any = tree
        for step in location[:-1]:
            # A union adds the name of its branch to the location; it is no step in the tree.
            inside = isinstance(step, int) if isinstance(node, list) else isinstance(node, dict) and step in node
            if inside:
                node = node[step]
        if isinstance(node, dict):
            node.pop(location[-1], None)
    try:
        return kind.__pydantic_validator__.validate_json(to_json(tree)), len(unknown)
    except ValidationError as again:
        raise _misfit(again) from None


def _misfit(error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "body"
    return Refused("bad-json" if first["type"] == "json_invalid" else "bad-shape", f"{place}: {first['msg']}")


def decode(topic: str, partition: int, offset: int, time_ms: int, raw_headers: Any, value: bytes | None) -> Record:
    """Read one record of `topic` (its table name), or raise Refused. Sealed content stays sealed."""
    if not 0 <= time_ms <= MS_MAX:
        raise Refused("bad-time", f"the record's timestamp is {time_ms}")
    kind, event_id, origin, traceparent = _read_headers(raw_headers)
    home: Topic = BY_NAME[topic]
    if kind not in home.events:
        raise Refused("wrong-topic", f"{kind.__name__} does not belong in {topic}")
    event, unknown = parse(kind, value)
    if kind in WORDED and not isinstance(event.content, str | None):  # type: ignore[attr-defined]
        raise Refused("not-sealed", f"{kind.__name__} carries open text; text must be sealed before it is written")
    return Record(topic, partition, offset, time_ms, event_id, event, origin, unknown, traceparent)
