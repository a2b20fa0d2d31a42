"""Records: an event of our own making (a source's, the server's, the ticker's) -> one record, named and sealed.

What a stage makes is named by its cause; what comes from outside is named here, by what it says.
"""

from schemas import envelope, seal
from schemas.events import Ticked
from schemas.facts import Event
from schemas.ids import digest, partition_of
from schemas.topics import HOME, Topic, partitions
from streams import tracing
from streams.fold import Sent


def content_id(event: Event) -> str:
    """Name an event by its kind and everything in it, words included (32 hex digits)."""
    return digest(type(event).__name__, str(event.VERSION), envelope.body(event).decode())


def outside(
    event: Event,
    source: str,
    time_ms: int,
    width: int,
    keys: seal.Keys,
    event_id: str | None = None,
    traceparent: bytes | None = None,
) -> Sent:
    """Make the record of an event from outside the stages; `source` such as /sources/x. Refused if it cannot be.

    It begins a trace, unless a valid `traceparent` says which it belongs to.
    """
    topic = HOME[type(event)]
    name = event_id or content_id(event)
    key = topic.key_of(event)
    return Sent(
        topic.name,
        partition_of(key, partitions(topic, width)) if key is not None else 0,
        key.encode() if key is not None else None,
        envelope.body(seal.seal(event, name, keys)),
        envelope.headers(event, name, source, time_ms, None, tracing.header(traceparent, name)),
        time_ms,
        event,
    )


def tick(topic: Topic, partition: int, at_ms: int) -> Sent:
    """Make the record that tells one partition of one topic that log time reached `at_ms`."""
    event = Ticked(at_ms=at_ms)
    name = digest("tick", topic.name, str(partition), str(at_ms))
    return Sent(
        topic.name,
        partition,
        None,
        envelope.body(event),
        envelope.headers(event, name, "/ticker", at_ms, None, tracing.header(None, name)),
        at_ms,
        event,
    )
