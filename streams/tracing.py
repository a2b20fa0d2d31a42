"""Tracing: which record began it -> one trace from a post to a release; generation as spans in a file, if wanted.

Every record carries `ce_traceparent` (W3C Trace Context, CloudEvents' distributed tracing extension). It holds nothing
that a retry would make anew: the trace's id is the id of the record that began it, the span's id is the first half of
the record's own. A client that brings a valid `traceparent` is followed instead. An output is in the trace of the
record that caused it. Where many make one, that is the record that closed it: for a batch the last pair, for what log
time closes (most rewards, a batch that comes of age) the tick, whose trace begins there. The body names, by places
in the log, what it was made of, and streams/lineage.py makes links of that: from a release back to every post.

Spans are OTLP/JSON, one line each (OpenTelemetry Protocol File Exporter), with the GenAI semantic conventions' names.
XINFLUENCER_TRACES names their folder; without it none are made. They hold numbers and names, never words.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from schemas.envelope import Record
from schemas.ids import digest

log = logging.getLogger("xinfluencer.tracing")

FILE_BYTES_MAX = 8 << 20  # of one process, and the file before it: about 10,000 spans each
VARIABLE = "XINFLUENCER_TRACES"
SCOPE = "xinfluencer"

# Later versions may add fields after the flags; of them only the first four are ours to read (Trace Context, 4).
_PLAIN = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]").fullmatch  # as we write them: quicker
_GIVEN = re.compile(
    rb"(?:00|(?!ff)[0-9a-f]{2}(?=.{53}(?:-|\Z)))-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])"
)
_ID = re.compile(r"(?!0{16})[0-9a-f]{32}")
_UNSAMPLED = b"-00"


def trace(given: bytes | None, event_id: str, ours: bool = False) -> tuple[bytes, bytes]:
    """Go on with the trace that `given` names, or, where it names none, with the one that this event began.

    Gives what stands before the span's id in a traceparent of this trace, and what stands after it. What a stage of
    `ours` wrote is believed, as its origin is.
    """
    if given is not None:
        if (ours and len(given) == 55) or _PLAIN(given):
            return given[:36], given[52:]
        if (found := _GIVEN.match(given)) and (len(given) == 55 or given[:2] != b"00"):
            return b"00-%b-" % found[1], b"-01" if found[3] in b"13579bdf" else _UNSAMPLED
    return f"00-{_name(event_id)}-".encode(), _UNSAMPLED  # unsampled: nobody recorded it, and nobody need


def header(given: bytes | None, event_id: str) -> bytes:
    """Write the traceparent of an event that nothing of ours caused; `given` may say which trace it belongs to."""
    before, after = trace(given, event_id)
    return before + span_id(event_id).encode() + after


def span_id(event_id: str) -> str:
    """Name the span in which an event was made (16 hex digits)."""
    return _name(event_id)[:16]


def _name(event_id: str) -> str:
    """Give the id where it is a hash of ours; an id of others is hashed."""
    return event_id if _ID.fullmatch(event_id) else digest("trace", event_id)


def of(record: Record) -> bytes:
    """Give a record's traceparent; one that was written without is given what it would have had."""
    return header(record.traceparent, record.id)


def given(headers: Sequence[tuple[str, bytes]] | None) -> bytes | None:
    """Find the traceparent among a raw record's headers."""
    return next((value for name, value in headers or () if name == "ce_traceparent"), None)


def parent(traceparent: bytes | None) -> str | None:
    """Give the span that a valid traceparent from outside names."""
    found = _GIVEN.match(traceparent) if traceparent is not None else None
    return found[2].decode() if found else None


# ---- spans ----------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """One thing done: `traceparent` is what its event carries; times are nanoseconds of the wall clock."""

    name: str
    traceparent: bytes
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int | float | Sequence[str]]
    parent: str | None = None
    error: str = ""  # the class of error it ended with
    links: Sequence[bytes] = ()  # traceparents of what it was made of beside its parent
    kind: int = 1  # INTERNAL: the model runs in this process

    def line(self, service: str) -> str:
        """Render as one line of OTLP/JSON (opentelemetry-proto, TracesData)."""
        _, trace_id, own, _ = self.traceparent.decode().split("-")
        span: dict[str, Any] = {
            "traceId": trace_id,
            "spanId": own,
            "name": self.name,
            "kind": self.kind,
            "startTimeUnixNano": str(self.began_ns),
            "endTimeUnixNano": str(self.ended_ns),
            "attributes": _attributes({**self.attributes, **({"error.type": self.error} if self.error else {})}),
            "status": {"code": 2} if self.error else {},
        }
        if self.parent is not None:
            span["parentSpanId"] = self.parent
        if self.links:
            parts = [link.decode().split("-") for link in self.links]
            span["links"] = [{"traceId": one[1], "spanId": one[2]} for one in parts]
        resource = {"attributes": _attributes({"service.namespace": "xinfluencer", "service.name": service})}
        scoped = [{"scope": {"name": SCOPE}, "spans": [span]}]
        return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scoped}]}, separators=(",", ":"))


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [_value(one) for one in value]}}


class Spans:
    """The file of one process; at FILE_BYTES_MAX it becomes the file before, and the one before that goes."""

    def __init__(self, folder: Path | None, service: str) -> None:
        self.service = service
        self.path = folder / f"{service}.jsonl" if folder is not None else None
        self._lock = threading.Lock()

    def write(self, span: Span) -> None:
        """Append a span, if anybody wants them; a full disk loses the span and nothing else."""
        if self.path is None:
            return
        line = span.line(self.service) + "\n"
        try:
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if self.path.exists() and self.path.stat().st_size + len(line) > FILE_BYTES_MAX:
                    self.path.replace(self.path.with_suffix(".before.jsonl"))
                with open(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
                    file.write(line)
        except OSError as error:
            log.warning("a span could not be written: %s", error)


def from_env(service: str, env: Mapping[str, str] | None = None) -> Spans:
    """Make a process's file as XINFLUENCER_TRACES says: in that folder, or none."""
    folder = (os.environ if env is None else env).get(VARIABLE)
    return Spans(Path(folder).expanduser() if folder else None, service)
