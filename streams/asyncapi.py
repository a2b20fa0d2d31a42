"""AsyncAPI: the topic table and the topology -> one AsyncAPI 3.0 document, the same bytes each time.

Channels are topics with Kafka's bindings (0.5.0), messages are events with their CloudEvents headers, operations are
what each agent and process receives and sends. docs/asyncapi.json is this document; a test holds it to the table.
`python -m streams.asyncapi` writes it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.envelope import TYPE_PREFIX
from schemas.facts import Event
from schemas.render import json_schema
from schemas.topics import KINDS, TOPICS, Topic
from streams.settings import Settings
from streams.topology import OUTSIDE, stages

FILE = Path(__file__).parent.parent / "docs" / "asyncapi.json"
BINDING = "0.5.0"
HEADERS = {
    "ce_specversion": "1.0",
    "ce_id": "what caused it, hashed: the same event has the same id",
    "ce_source": "who wrote it, as a path",
    "ce_type": f"{TYPE_PREFIX}<kind>.v<version>",
    "ce_time": "RFC 3339, the record's timestamp",
    "ce_traceparent": "W3C Trace Context: the trace of the record that caused it",
    "ce_origin": "stage/topic/partition/offset/ordinal of the record that caused it; only on what stages write",
}


def document() -> dict[str, Any]:
    """Render everything; addresses are the table's names, to which a deployment may add a namespace."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Xinfluencer",
            "version": "0.1.0",
            "description": "Posts and reactions in, a language model that keeps learning out. Text is sealed; "
            "unknown fields must be ignored; a new VERSION of an event is a new message.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS},
        "operations": dict(sorted(_operations())),
        "components": {
            "messages": {name: _message(kind) for name, kind in sorted(KINDS.items())},
            "schemas": dict(sorted(_schemas())),
        },
    }


def text() -> str:
    """Write the document as JSON."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _channel(topic: Topic) -> dict[str, Any]:
    width = Settings.model_fields["partitions"].default if topic.wide else 1
    configured = {"cleanup.policy": ["compact" if topic.compacted else "delete"], "retention.ms": topic.keep_ms}
    return {
        "address": topic.name,
        "title": topic.name,
        "description": topic.about,
        "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in topic.events},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": width,
                "replicas": Settings.model_fields["replication"].default,
                "topicConfiguration": configured,
                "bindingVersion": BINDING,
            }
        },
        "x-key": topic.key or "none",
    }


def _message(kind: type[Event]) -> dict[str, Any]:
    topic = next(topic for topic in TOPICS if kind in topic.events)
    return {
        "name": f"{TYPE_PREFIX}{kind.__name__}.v{kind.VERSION}",
        "title": kind.__name__,
        "summary": (kind.__doc__ or "").partition("\n")[0],
        "headers": {"$ref": "#/components/schemas/CloudEvent"},
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": topic.key} if topic.key else {"type": "null"},
                "bindingVersion": BINDING,
            }
        },
    }


def _schemas() -> Iterator[tuple[str, Any]]:
    yield (
        "CloudEvent",
        {
            "type": "object",
            "required": ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time"],
            "properties": {name: {"type": "string", "description": about} for name, about in HEADERS.items()},
        },
    )
    for name, kind in KINDS.items():
        schema = json.loads(json_schema(kind).replace("#/$defs/", "#/components/schemas/"))
        for word in ("$schema", "$id"):
            schema.pop(word)
        yield from schema.pop("$defs", {}).items()
        yield name, schema


def _operations() -> Iterator[tuple[str, Any]]:
    table = [(stage.name, (stage.reads,), stage.writes) for stage in stages()]
    for name, reads, writes in [*table, *((one.name, one.reads, one.writes) for one in OUTSIDE)]:
        for action, topics in (("receive", reads), ("send", writes)):
            for topic in topics:
                yield (
                    f"{name}-{action}s-{topic.name}",
                    {"action": action, "channel": {"$ref": f"#/channels/{topic.name}"}},
                )


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(FILE)
