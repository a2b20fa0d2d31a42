"""Doctor with a broker: each thing is broken on purpose, and its line must say so."""

import asyncio
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import AdminClient

from schemas.events import AlertRaised, AuthorForgotten, RecordRefused
from schemas.facts import Where
from schemas.learned import ReleasePointed
from schemas.posts import PostObserved
from schemas.topics import SIGNALS, TOPICS
from streams import doctor, doctor_folder, doctor_log, places
from streams.doctor import answering, run_doctor
from streams.doctor_check import Check, Context
from streams.kafka import end_offsets, ensure_topics, topic_ids
from streams.reader import Reader
from streams.records import outside, tick
from streams.sender import Sender
from streams.settings import Settings
from streams.topics import specs
from streams.vault import Vault
from streams.vector_ledger import Ledger, Place
from streams.vectors import folder
from tests.feeds import feed
from tests.harness import Workers, ended, finish, settings_for, write
from tests.logfolder import stopped
from tests.patients import context_of, named, only, snapshot

ZERO = "0" * 64


# ---- with a broker --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(broker: Any, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Settings:
    """A deployment on the session's broker, whose worker went through a feed and was stopped."""
    data = tmp_path_factory.mktemp("doctor") / "data"
    settings = settings_for(data, "doctor", cache=cache, port=0)
    data.chmod(0o700)
    (data / "broker").symlink_to(broker.folder)
    vault = Vault(data / "vault" / "keys.sqlite")
    records = [
        one
        for one in feed(3, 30, settings.partitions, vault, int(time.time() * 1000))
        if isinstance(one.event, PostObserved)
    ]
    workers = Workers(settings, broker.settings)

    async def run() -> None:
        await write(settings, broker.settings, records)
        workers.start()
        await finish(settings, broker.settings, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)

    with ended(workers):
        asyncio.run(run())
    vault.close()
    return settings


async def context_now(settings: Settings, **more: Any) -> Context:
    context = context_of(settings)
    return context_of(settings, log=await answering(context), **more)


def seen(settings: Settings, name: str, **more: Any) -> Check:
    return only(named(name), asyncio.run(context_now(settings, **more)))


async def say(settings: Settings, *events: Any) -> None:
    context = await context_now(settings)
    assert context.log is not None
    await ensure_topics(context.log.kafka, specs(settings))
    sender, vault = Sender(settings, context.log.kafka), Vault(context.vault)
    now_ms = int(time.time() * 1000)
    await sender.send([outside(event, "/test", now_ms, settings.partitions, vault) for event in events])
    await sender.stop()
    vault.close()


@pytest.fixture
def other(running: Settings, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An empty deployment beside it, to be broken."""
    name = f"dr{abs(hash(request.node.name)) % 10**8}"
    settings = settings_for(tmp_path / "data", name, cache=running.cache, port=0)
    (settings.data / "broker").symlink_to((running.data / "broker").resolve())
    return settings


@pytest.mark.broker
def test_a_healthy_deployment_with_its_broker_running_is_all_well(
    running: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XINFLUENCER_KAFKA", raising=False)
    assert run_doctor(running, as_json=True) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    asked = {doctor.name_of(one) for one in doctor.ASKED} | {"broker", "snapshots", "vault", "clock"}
    assert {name: found[name]["verdict"] for name in asked} == dict.fromkeys(asked, "ok")
    assert run_doctor(running) == 0
    said = capsys.readouterr().out
    assert "0 wrong" in said
    assert "not seen" not in said


@pytest.mark.broker
def test_a_foreign_broker_on_our_port_is_named_and_nothing_of_it_believed(
    running: Settings, tmp_path: Path, broker: Any
) -> None:
    settings = stopped(tmp_path / "data")
    shutil.copy(broker.folder / "broker.json", settings.data / "broker" / "broker.json")
    found = seen(settings, "broker")
    assert found.verdict == "wrong"
    assert f"another broker ({broker.prepared.cluster_id})" in found.seen
    assert asyncio.run(context_now(settings)).log is None
    # The same broker, named as the cluster to use, is ours by that; its snapshots are of another log all the same.
    snapshot(settings, log="BBBB")
    asked = Context(settings, env={"XINFLUENCER_KAFKA": broker.bootstrap})
    cluster = Context(settings, asyncio.run(answering(asked)), asked.env)
    assert only(doctor_log.check_broker, cluster).verdict == "ok"
    assert only(doctor_folder.check_snapshots, cluster).verdict == "wrong"


@pytest.mark.broker
def test_topics_that_are_kept_otherwise_than_the_table_says_are_named(other: Settings, broker: Any) -> None:
    nothing = {one.name: one.verdict for one in asyncio.run(_examined(other))}
    assert set(nothing.values()) == {"ok", "look"}, "an empty log is no fault"
    assert seen(other, "log time").verdict == "ok"
    assert "not made yet" in seen(other, "topics").seen
    asyncio.run(say(other, AlertRaised(kind="disk-full", stage="worker", detail="no room")))
    assert seen(other, "topics").verdict == "ok"

    async def alter() -> None:
        admin = AIOKafkaAdminClient(**broker.settings.client_kwargs())
        await admin.start()
        name = other.physical("tweets")
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "1000"})])
        await admin.close()

    asyncio.run(alter())
    found = seen(other, "topics")
    assert (found.verdict, "tweets has retention.ms=1000, not -1" in found.seen) == ("wrong", True)
    wider = seen(other.model_copy(update={"partitions": 9, "replication": 3}), "topics")
    assert "partitions, not 9" in wider.seen
    assert "1 copies, not 3" in wider.seen


@pytest.mark.broker
def test_letters_alerts_the_forgotten_and_the_release_are_named(other: Settings) -> None:
    where = Where(topic="tweets", partition=0, offset=0)
    refused = RecordRefused(
        owner="x:@1", reason="not-json", detail="d", stage="ingest", place="f:1", size=1, sha256=ZERO
    )
    gone = AuthorForgotten(owner="x:@2", requested=where)
    pointed = ReleasePointed(
        alias="default", release=1, version="a" * 64, base="b" * 64, base_name="b", adapter="a" * 64
    )
    alert = AlertRaised(kind="snapshot-broken", stage="worker", detail="torn")
    asyncio.run(say(other, refused, gone, pointed, alert))
    found = {one.name: one for one in asyncio.run(_examined(other))}
    assert (found["dead letters"].verdict, found["alerts"].verdict) == ("look", "look")
    assert "ingest not-json: 1 in the last day, 1 in all" in found["dead letters"].seen
    assert "snapshot-broken: 1; the last: torn" in found["alerts"].seen
    assert found["forgotten"].verdict == "ok"
    assert (found["release"].verdict, "there is no such adapter" in found["release"].seen) == ("wrong", True)

    Vault(other.data / "vault" / "keys.sqlite").make("x:@2")  # an old vault was put back
    asyncio.run(say(other, refused.model_copy(update={"reason": "step-failed", "stage": "rewards"})))
    found = {one.name: one for one in asyncio.run(_examined(other))}
    assert found["forgotten"].verdict == "wrong"
    assert "1 of 1 forgotten authors have a key again" in found["forgotten"].seen
    assert found["dead letters"].verdict == "wrong"

    week = 7 * 86_400_000
    later = {one.name: one for one in asyncio.run(_examined(other, now_ms=lambda: int(time.time() * 1000) + week))}
    assert (later["dead letters"].verdict, later["alerts"].verdict) == ("ok", "ok")
    assert "0 in the last day, 1 in all" in later["dead letters"].seen


async def _examined(settings: Settings, **more: Any) -> list[Check]:
    """Run what only a running log can answer."""
    context = await context_now(settings, **more)
    slow = doctor_log.check_log_time
    return [await doctor._one(check, context) for check in doctor.ASKED if check is not slow]


@pytest.mark.broker
def test_records_that_no_worker_ever_read_are_named(other: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = seen(other, "lag")
    assert (nothing.verdict, nothing.seen) == (
        "ok", "0 groups, 0 records behind in all; the embedder never ran here; the sink never ran here"
    )  # fmt: skip
    vault = Vault(other.data / "vault" / "keys.sqlite")
    posts = list(feed(5, 4, 1, vault, int(time.time() * 1000)))
    vault.close()

    async def wrote() -> None:
        context = await context_now(other)
        assert context.log is not None
        await write(other, context.log.kafka, posts)

    asyncio.run(wrote())
    found = seen(other, "lag")
    number = sum(one.topic == "tweets" for one in posts)
    assert found.verdict == "look"
    assert f"{number} records of tweets were never read, and no worker reads them" in found.seen
    assert "xinfluencer up" in found.mend
    monkeypatch.setattr(doctor_log, "stages", lambda tuning: ())  # the control: whoever asks the groups alone
    assert seen(other, "lag").verdict == "ok"


@pytest.fixture
def beside(running: Settings, tmp_path: Path) -> Settings:
    """The log of the healthy deployment with a data folder of its own: the worker is through, nobody else ran."""
    settings = running.model_copy(update={"data": tmp_path / "data"})
    settings.data.mkdir()
    (settings.data / "broker").symlink_to((running.data / "broker").resolve())
    return settings


async def tweets_of(settings: Settings) -> tuple[dict[int, int], str]:
    """Give the ends of `tweets` and what a ledger is bound to."""
    context = await context_now(settings)
    assert context.log is not None
    physical = settings.physical("tweets")
    ids = await topic_ids(context.log.kafka, [physical])
    ends = await end_offsets(context.log.kafka, [physical])
    return {tp.partition: end for tp, end in ends.items()}, f"{context.log.cluster}/{physical}/{ids[physical]}"


def said_by(settings: Settings, name: str, pid: int, **more: Any) -> None:
    path = places.run(settings) / f"{name}.status.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": pid, "time": time.time(), **more}))


GONE = 2**22 + 1  # no process has this number


@pytest.mark.broker
def test_an_embedder_that_is_behind_or_of_another_log_is_named(
    beside: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, log = asyncio.run(tweets_of(beside))
    ledger = Ledger(folder(beside))

    def stands(at: dict[int, int], log: str = log) -> Check:
        ledger.commit({part: Place(offset) for part, offset in at.items()}, {"log": log})
        return seen(beside, "lag")

    whole = stands(ends)
    assert (whole.verdict, "the embedder is 0 behind" in whole.seen) == ("ok", True)
    late = stands({**ends, 0: 0})
    assert (late.verdict, late.seen) == ("look", f"the embedder is {ends[0]} behind in tweets, and does not run")
    assert "xinfluencer up" in late.mend
    said_by(beside, "embedder", os.getpid())
    assert stands({**ends, 0: 0}).verdict == "ok", "it works on it"
    monkeypatch.setattr(doctor_log, "LAG_LOOK", ends[0] - 1)
    assert stands({**ends, 0: 0}).seen == f"the embedder is {ends[0]} behind in tweets"
    ahead = stands({**ends, 0: ends[0] + 1})
    assert (ahead.verdict, "tweets/0 up to" in ahead.seen, "put back the log" in ahead.mend) == ("wrong", True, True)
    other = stands(ends, "another/log")
    assert (other.verdict, "belong to another log (another/log)" in other.seen) == ("wrong", True)
    ledger.close()
    (folder(beside) / "ledger.sqlite").write_bytes(b"torn" * 4096)
    torn = seen(beside, "lag")
    assert (torn.verdict, "cannot be read" in torn.seen) == ("wrong", True)


@pytest.mark.broker
def test_a_sink_that_is_behind_is_named(beside: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, _ = asyncio.run(tweets_of(beside))

    async def all_ends() -> dict[str, int]:
        context = await context_now(beside)
        assert context.log is not None
        found = await end_offsets(context.log.kafka, [beside.physical(topic.name) for topic in TOPICS])
        return {f"{beside.logical(tp.topic)}/{tp.partition}": end for tp, end in found.items()}

    whole = asyncio.run(all_ends())

    def stands(pid: int = GONE, **at: int) -> Check:
        told = {place: (end, end, end, end) for place, end in (whole | at).items()}
        said_by(beside, "sink", pid, partitions=told)
        return seen(beside, "lag")

    assert (stands().verdict, "the sink is 0 behind" in stands().seen) == ("ok", True)
    late = stands(**{"tweets/0": ends[0] - 1})
    assert (late.verdict, late.seen) == ("look", "the sink is 1 behind in tweets, and does not run")
    assert "`sink`" in late.mend
    assert stands(os.getpid(), **{"tweets/0": ends[0] - 1}).verdict == "ok", "it works on it"
    assert stands(**{"tweets/0": ends[0] + 1}).verdict == "wrong"
    (places.run(beside) / "sink.status.json").unlink()
    assert seen(beside, "lag").verdict == "ok"
    (beside.data / "analytics").mkdir()
    assert "where the sink stands is not known" in seen(beside, "lag").seen
    begins = Reader.begins

    async def later(self: Reader, *topics: str) -> dict[tuple[str, int], int]:
        return {place: ends[0] if place == ("tweets", 0) else at for place, at in (await begins(self, *topics)).items()}

    monkeypatch.setattr(Reader, "begins", later)
    gone = stands(**{"tweets/0": ends[0] - 1})
    assert (gone.verdict, "retention took 1 records of tweets/0 before the sink" in gone.seen) == ("wrong", True)


@pytest.mark.broker
def test_topics_that_retention_emptied_are_no_trouble_of_the_log(other: Settings, broker: Any) -> None:
    asyncio.run(say(other, AlertRaised(kind="disk-full", stage="worker", detail="no room")))

    async def idle() -> None:
        context = await context_now(other)
        assert context.log is not None
        await write(other, context.log.kafka, [tick(SIGNALS, 0, int(time.time() * 1000))])

    asyncio.run(idle())
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    cut = [ConfluentPartition(other.physical(topic), 0, 1) for topic in ("alerts", "signals")]
    for future in admin.delete_records(cut).values():
        future.result(20)
    assert [seen(other, name).verdict for name in ("log time", "alerts", "lag")] == ["ok"] * 3


@pytest.mark.broker
def test_records_that_nobody_reads_and_a_clock_that_went_back_are_named(running: Settings, broker: Any) -> None:
    async def commit() -> None:
        """Be another group of ours, at the beginning of a topic."""
        place = TopicPartition(running.physical("batches"), 0)
        consumer = AIOKafkaConsumer(**broker.settings.client_kwargs(), group_id=running.group("trainer"))
        await consumer.start()
        consumer.assign([place])
        await consumer.commit({place: 0})
        await consumer.stop()

    asyncio.run(commit())
    assert "2 groups" in seen(running, "lag").seen
    assert seen(running, "lag").verdict == "ok"
    back = seen(running, "log time", now_ms=lambda: int(time.time() * 1000) - 3_600_000)
    assert (back.verdict, "in the future" in back.seen) == ("wrong", True)
    with doctor.embedded.FolderLock(running.data):
        late = seen(running, "log time", now_ms=lambda: int(time.time() * 1000) + 3_600_000)
    assert (late.verdict, "no tick for" in late.seen) == ("look", True)
    vault = Vault(running.data / "vault" / "keys.sqlite")
    posts = list(feed(9, 40, running.partitions, vault, int(time.time() * 1000)))
    vault.close()

    async def more() -> None:
        context = await context_now(running)
        assert context.log is not None
        await write(running, context.log.kafka, posts)

    asyncio.run(more())
    found = seen(running, "lag")
    assert (found.verdict, "and nobody reads" in found.seen) == ("look", True)
