"""Kafka metadata: topic names -> cluster id, topic ids and partition counts, by Metadata v12.

aiokafka 0.14 speaks this request up to v5, which knows no topic ids (KIP-516, v10 and later). The two schemas below
teach its own connection, with its TLS and SASL, the later version; the order is that of Kafka's `MetadataRequest.json`.
"""

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import TopicAuthorizationFailedError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_ID_BYTES = 16
_NO_ID = bytes(_ID_BYTES)
_UNKNOWN_TOPIC = 3
_FORBIDDEN_TOPIC = 29
_OPERATIONS = {3: "Read", 4: "Write", 8: "Describe"}  # of Kafka's AclOperation, those that a process of ours needs
_UNTOLD = -(2**31)  # what a broker before 2.3 answers (KIP-430)


class TopicForbidden(TopicAuthorizationFailedError):
    """The cluster does not let this user see a topic."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class TopicMetadata:
    topic_id: str
    partitions: int
    leaders: int  # How many partitions have a leader now; the topic is usable when this is all of them.
    may: frozenset[str]  # What this user may do there: Read, Write, Describe.


@dataclass(frozen=True)
class ClusterMetadata:
    cluster_id: str
    topics: dict[str, TopicMetadata]


async def ask(client: AIOKafkaClient, topics: list[str]) -> ClusterMetadata:
    """Ask any node about `topics`; those that do not exist are absent from the answer.

    Raises TopicForbidden, the aiokafka error of a topic that exists and cannot be described, and NotImplementedError
    before Kafka 3.0.
    """
    answer = await client.send(client.get_random_node(), _Metadata(topics))
    known: dict[str, TopicMetadata] = {}
    for code, name, topic_id, _, partitions, bits, _ in answer.topics:
        if code == _UNKNOWN_TOPIC:
            continue
        if code == _FORBIDDEN_TOPIC:
            raise TopicForbidden(f"This user may not describe topic {name}: `xinfluencer acls` prints the rules.")
        if code and not partitions:
            raise for_code(code)(f"Cannot describe topic {name}.")
        leaders = sum(partition[2] >= 0 for partition in partitions)
        may = frozenset(word for bit, word in _OPERATIONS.items() if bits == _UNTOLD or bits >> bit & 1)
        known[name] = TopicMetadata(_as_text(topic_id), len(partitions), leaders, may)
    return ClusterMetadata(answer.cluster_id, known)


def _as_text(topic_id: bytes) -> str:
    """Write an id as Kafka's own tools do: base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(topic_id).decode().rstrip("=")


class _Uuid(AbstractType[bytes]):
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(_ID_BYTES)


class _MetadataResponseV12(Response):
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestV12(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponseV12
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Metadata(Request[_MetadataRequestV12]):
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequestV12]) -> Any:
        return request_struct_class([(_NO_ID, name, {}) for name in self._topics], False, True, {})
