"""Kafka: environment variables -> client settings, and the few questions we ask a cluster.

The settings work for the embedded broker and for any cluster; a password never shows in a repr, and never travels in
clear beyond this machine. Every function opens its connection, asks, and closes it.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaConnectionError,
    KafkaError,
    NotCoordinatorForGroupError,
    SaslAuthenticationFailed,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest

from streams import header_names, metadata_pace
from streams.kafka_metadata import ClusterMetadata, ask

SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TOPIC_READY_S_MAX = 15.0  # a created topic has its leaders within tens of milliseconds; this is for trouble
SESSION_S = 6.0  # a worker that has not said for so long that it lives has lost its partitions
_TOPIC_EXISTS = 36
_REPLICATION = 38  # more replicas than brokers; also while the brokers there are have not come up yet
_LOADING = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)
_PASSING = (7, 41, 89)  # it timed out, its controller moved, it is throttled: a later try may do
COORDINATOR_READY_S_MAX = 30.0  # a broker makes the topic of groups when the first one asks, and that takes seconds
_POLL_S = 0.05
_ASK_MS = 5_000
_PREFIX = "XINFLUENCER_KAFKA"
_CAFILE = f"{_PREFIX}_SSL_CAFILE names the authority that must have signed it, for this address."
_PASSWORD = f"check {_PREFIX}_SASL_USERNAME and {_PREFIX}_SASL_PASSWORD."

header_names.allow_any()  # no consumer is made without settings from here
metadata_pace.keep()


class KafkaSettingsRefused(ValueError):
    """The environment's Kafka settings are missing, contradictory or unsafe; the message names the variable."""


class TopicMismatch(Exception):
    """An existing topic has another partition count than its spec: counts are frozen, for keys would move."""


class TopicUnknown(Exception):
    """A topic that was asked about does not exist."""


class TopicRefused(Exception):
    """The cluster refused to create a topic; the message carries its reason."""


class Unreachable(KafkaConnectionError):
    """No server of the cluster let us in; the message says for each of them why."""

    def __str__(self) -> str:
        return str(self.args[0])


class LogInRefused(Unreachable):
    """A server was there and refused us, or we it: starting again will not help."""


@dataclass(frozen=True)
class TopicSpec:
    name: str
    partitions: int
    configs: dict[str, str] = field(default_factory=dict)
    replication: int = 1


@dataclass(frozen=True)
class KafkaSettings:
    bootstrap: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None

    def __post_init__(self) -> None:
        if not self.bootstrap.strip():
            raise KafkaSettingsRefused(f"Set {_PREFIX} to one or more host:port, separated by commas.")
        if self.security_protocol not in SECURITY_PROTOCOLS:
            raise KafkaSettingsRefused(f"{_PREFIX}_SECURITY_PROTOCOL must be one of {', '.join(SECURITY_PROTOCOLS)}.")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise KafkaSettingsRefused(f"{_PREFIX}_SSL_KEYFILE needs {_PREFIX}_SSL_CERTFILE beside it.")
        if not self.security_protocol.startswith("SASL"):
            if self.sasl_password is not None or self.sasl_username is not None:
                raise KafkaSettingsRefused(
                    f"A SASL user or password is set but {_PREFIX}_SECURITY_PROTOCOL is {self.security_protocol}: "
                    "set it to SASL_SSL, or remove the user and password."
                )
            return
        if self.sasl_mechanism not in SASL_MECHANISMS:
            raise KafkaSettingsRefused(f"{_PREFIX}_SASL_MECHANISM must be one of {', '.join(SASL_MECHANISMS)}.")
        if not self.sasl_username or not self.sasl_password:
            raise KafkaSettingsRefused(f"SASL needs {_PREFIX}_SASL_USERNAME and {_PREFIX}_SASL_PASSWORD (or _FILE).")
        if self.security_protocol == "SASL_PLAINTEXT" and not all(map(_is_loopback, self.servers)):
            raise KafkaSettingsRefused(
                f"SASL_PLAINTEXT would send the password unencrypted to {self.bootstrap}: "
                f"set {_PREFIX}_SECURITY_PROTOCOL to SASL_SSL; without TLS only loopback addresses are allowed."
            )

    @property
    def servers(self) -> list[str]:
        return [server.strip() for server in self.bootstrap.split(",") if server.strip()]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "KafkaSettings":
        """Read `XINFLUENCER_KAFKA` and the variables that begin with it. Raises KafkaSettingsRefused."""

        def read(name: str) -> str | None:
            return env.get(f"{_PREFIX}_{name}") or None

        password, password_file = read("SASL_PASSWORD"), read("SASL_PASSWORD_FILE")
        if password and password_file:
            raise KafkaSettingsRefused(f"Set only one of {_PREFIX}_SASL_PASSWORD and {_PREFIX}_SASL_PASSWORD_FILE.")
        if password_file:
            try:
                password = Path(password_file).read_text(encoding="utf-8").rstrip("\r\n")
            except OSError as error:
                raise KafkaSettingsRefused(f"{_PREFIX}_SASL_PASSWORD_FILE cannot be read: {error.strerror}.") from error
        return cls(
            bootstrap=env.get(_PREFIX, ""),
            security_protocol=(read("SECURITY_PROTOCOL") or "PLAINTEXT").upper(),
            sasl_mechanism=(read("SASL_MECHANISM") or "PLAIN").upper(),
            sasl_username=read("SASL_USERNAME"),
            sasl_password=password,
            ssl_cafile=read("SSL_CAFILE"),
            ssl_certfile=read("SSL_CERTFILE"),
            ssl_keyfile=read("SSL_KEYFILE"),
        )

    def client_kwargs(self) -> dict[str, Any]:
        """Return the arguments that every aiokafka client takes. Raises OSError when a certificate cannot be read."""
        kwargs: dict[str, Any] = {"bootstrap_servers": self.servers, "security_protocol": self.security_protocol}
        if self.security_protocol.endswith("SSL"):
            context = ssl.create_default_context(cafile=self.ssl_cafile)
            if self.ssl_certfile:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
            kwargs["ssl_context"] = context
        if self.security_protocol.startswith("SASL"):
            kwargs["sasl_mechanism"] = self.sasl_mechanism
            kwargs["sasl_plain_username"] = self.sasl_username
            kwargs["sasl_plain_password"] = self.sasl_password
        return kwargs


def _is_loopback(server: str) -> bool:
    host = server.rpartition(":")[0].strip("[]") or server
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def cluster_id(settings: KafkaSettings) -> str:
    """Return the id that the cluster was formatted with. Raises KafkaConnectionError when nothing answers."""
    return (await _describe(settings, [])).cluster_id


async def topic_ids(settings: KafkaSettings, topics: Iterable[str]) -> dict[str, str]:
    """Return each topic's id, which changes when a topic is deleted and made again. Raises TopicUnknown."""
    found = await _describe(settings, topics)
    return {name: topic.topic_id for name, topic in found.topics.items()}


async def allowed(settings: KafkaSettings, topics: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return what this user may do with each topic: Read, Write, Describe. Raises TopicUnknown, TopicForbidden."""
    found = await _describe(settings, topics)
    return {name: topic.may for name, topic in found.topics.items()}


async def ensure_topics(settings: KafkaSettings, specs: Iterable[TopicSpec]) -> None:
    """Create the topics that are missing, and return when every partition has a leader.

    Raises TopicMismatch, before anything is created, when an existing topic has another number of partitions;
    TopicRefused when the cluster declines; TimeoutError when it cannot just now, or leaders do not appear. Settings of
    existing topics stay.
    """
    wanted = {spec.name: spec for spec in specs}
    async with _connected(settings) as client:
        found = await ask(client, list(wanted))
        _check_counts(wanted, found)
        missing = [spec for name, spec in wanted.items() if name not in found.topics]
        if missing:
            await _create(settings, missing)
        async with asyncio.timeout(TOPIC_READY_S_MAX):
            while any(
                name not in found.topics or found.topics[name].leaders < found.topics[name].partitions
                for name in wanted
            ):
                await asyncio.sleep(_POLL_S)
                found = await ask(client, list(wanted))
        # Another process may have created one of them meanwhile, from another spec.
        _check_counts(wanted, found)
    if missing:
        # Metadata names a leader some milliseconds before it serves; this asks the leaders themselves, with retries.
        await end_offsets(settings, [spec.name for spec in missing])


async def end_offsets(
    settings: KafkaSettings, topics: Iterable[str], *, read_committed: bool = True
) -> dict[TopicPartition, int]:
    """Return the offset after the last record of every partition of the topics.

    With `read_committed` it is the last stable offset: what follows cannot be read before an open transaction ends.
    Without, it is the high watermark. Raises TopicUnknown.
    """
    found = await _describe(settings, topics)
    partitions = [TopicPartition(name, p) for name, topic in found.topics.items() for p in range(topic.partitions)]
    isolation = "read_committed" if read_committed else "read_uncommitted"
    consumer = AIOKafkaConsumer(**settings.client_kwargs(), isolation_level=isolation)
    await consumer.start()
    try:
        return await consumer.end_offsets(partitions)
    finally:
        await stopped(consumer)


async def committed_offsets(settings: KafkaSettings, group: str) -> dict[TopicPartition, int]:
    """Return what the group has committed, by partition; empty for a group that never committed.

    A broker that has just begun has no coordinator for some seconds, and one that has just taken a group over has not
    read what it committed: both are waited for. Raises the aiokafka error of a group that we may not describe.
    """
    async with _admin(settings) as admin, asyncio.timeout(COORDINATOR_READY_S_MAX):
        while True:
            try:
                # aiokafka 0.14's own question overlooks the error of the whole: "I still load" reads as "nothing".
                asked = OffsetFetchRequest(group, None)
                answer = await admin._send_request(asked, await admin.find_coordinator(group))
                for code in (answer.error_code, *(code for _, parts in answer.topics for *_, code in parts)):
                    if code:
                        raise for_code(code)(f"the offsets of group {group}")
                break
            except _LOADING:
                await asyncio.sleep(_POLL_S)
    return {TopicPartition(topic, part): at for topic, parts in answer.topics for part, at, *_ in parts}


async def stopped(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer. While the broker is away aiokafka throws a cancellation of its own at who stops one.

    That would take the place of the error for which it is stopped, and a task that is cancelled ends without a word.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait({stopping})
    if stopping.cancelled():
        await consumer._client.close()
    else:
        stopping.result()


async def _create(settings: KafkaSettings, specs: list[TopicSpec]) -> None:
    async with _admin(settings) as admin:
        answer = await admin.create_topics(
            [NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=spec.configs) for spec in specs]
        )
    for name, code, message in answer.topic_errors:
        if code in _PASSING or (code == _REPLICATION and "fenced" in (message or "")):
            raise TimeoutError(f"The cluster could not make topic {name} just now (error {code}): {message}")
        if code not in (0, _TOPIC_EXISTS):
            raise TopicRefused(f"The cluster refused topic {name} (error {code}): {message}")


def _check_counts(wanted: Mapping[str, TopicSpec], found: ClusterMetadata) -> None:
    for name, topic in found.topics.items():
        if topic.partitions != wanted[name].partitions:
            raise TopicMismatch(
                f"Topic {name} has {topic.partitions} partitions and its spec says {wanted[name].partitions}: "
                "partition counts are frozen, so use the first number or a new topic."
            )


async def _describe(settings: KafkaSettings, topics: Iterable[str]) -> ClusterMetadata:
    names = list(topics)
    async with _connected(settings) as client:
        found = await ask(client, names)
    for name in names:
        if name not in found.topics:
            raise TopicUnknown(f"Topic {name} does not exist in cluster {found.cluster_id}.")
    return found


@asynccontextmanager
async def _connected(settings: KafkaSettings) -> AsyncIterator[AIOKafkaClient]:
    client = AIOKafkaClient(**settings.client_kwargs())
    try:
        try:
            await client.bootstrap()
        except KafkaConnectionError as error:
            raise await _reason(settings) from error
        yield client
    finally:
        await client.close()


async def _reason(settings: KafkaSettings) -> Unreachable:
    """Ask each server once more: the client that gave up only says that it did."""
    given = settings.client_kwargs()
    servers = given.pop("bootstrap_servers")
    said, refused = [], False
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            connection = await create_conn(host.strip("[]"), int(port), request_timeout_ms=_ASK_MS, **given)
        except ssl.SSLCertVerificationError as error:
            said.append(f"{server} shows a certificate that is not trusted ({error.verify_message}): {_CAFILE}")
            refused = True
        except (AuthenticationFailedError, SaslAuthenticationFailed):
            said.append(f"{server} refused user {settings.sasl_username}: {_PASSWORD}")
            refused = True
        except (KafkaError, OSError, ValueError, TimeoutError) as error:
            said.append(f"{server}: {error!r}")
        else:
            connection.close()
            said.append(f"{server} answers, but not to this")
    sentence = f"Cannot connect to the cluster. {'; '.join(said)}"
    return LogInRefused(sentence) if refused else Unreachable(sentence)


@asynccontextmanager
async def _admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**settings.client_kwargs())
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()
