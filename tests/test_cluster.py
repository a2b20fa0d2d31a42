"""Cluster mode on one machine: least rights, three workers, a rolling restart, a new version of a step."""

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from confluent_kafka import TopicCollection

from agents import reactions
from schemas import learned, posts
from schemas import topics as t
from schemas.topics import partitions
from streams.access_rules import PROCESSES, Rule, lines, rules
from streams.adopt import CannotAdopt, adopt, begins, carried, since
from streams.dataset import closed_batches, load
from streams.fold import Fold, Sent, Stage
from streams.kafka import KafkaSettings, LogInRefused, cluster_id, committed_offsets, ensure_topics, topic_ids
from streams.object_snapshots import SnapshotStore
from streams.reader import reader
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.settle import settled
from streams.shell import EXIT_REFUSED
from streams.snapshots import Bound, SnapshotFolder
from streams.supervisor import ticks
from streams.topics import specs
from streams.topology import stages
from streams.trainer import Trainer
from streams.vault import Vault
from streams.verify import Verdict, verify
from tests import harness
from tests.cluster_worker import next_stages
from tests.feeds import RIGHTS, feed
from tests.harness import AGES_MS, Workers, ended, finish, judge, settings_for, write
from tests.s3_server import s3_env, s3_server
from tests.secure_broker import SecureBroker, env_of

SEED = 17
PREFIX = "p-"
LACKING = {
    "metadata": ("topic", "secure.tweets", "Read"),
    "intake": ("group", "secure.xinfluencer-worker-intake", "Read"),
    "reactions": ("topic", "secure.signals", "Write"),
    "pairing": ("topic", "secure.models", "Describe"),
}

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]


def now_ms() -> int:
    return int(time.time() * 1000)


def vault_of(settings: Settings) -> Vault:
    return Vault(settings.data / "vault" / "keys.sqlite")


# ---- least rights ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[SecureBroker]:
    users = [f"{PREFIX}{process}" for process in PROCESSES] + [f"{PREFIX}worker-{name}" for name in LACKING]
    running = SecureBroker(tmp_path_factory.mktemp("secure"), cache, [*users, "stranger"])
    yield running
    running.stop()


@pytest.fixture(scope="module")
def deployed(secure: SecureBroker, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Rules for everybody, then topics, made by the operator with the operator's rights."""
    settings = settings_for(tmp_path_factory.mktemp("data"), "secure", partitions=2)
    for process in PROCESSES:
        secure.allow(rules(settings, process, PREFIX))
    asyncio.run(ensure_topics(secure.settings(f"{PREFIX}operator"), specs(settings)))
    return settings


def everything(settings: Settings, vault: Vault) -> dict[str, list[Sent]]:
    """Make, by who writes it, a feed that leads to a record in every topic that the agents write."""
    now = now_ms()
    by: dict[str, list[Sent]] = {"ingest": [], "server": [], "operator": []}
    for one in feed(SEED, 80, settings.partitions, vault, now):
        by["ingest" if one.topic == t.TWEETS.name else "server"].append(one)
    first = by["ingest"][0]
    like = posts.ReactionObserved(
        act="b:like-1", owner="b:2", source="bluesky", kind="like", target="b:1", post="b:post-1", rights=RIGHTS
    )
    by["ingest"] += [
        outside(posts.AuthorErased(owner="x:@1", source="x"), "/sources/x", now, settings.partitions, vault),
        outside(like, "/sources/bluesky", now, settings.partitions, vault),
        first._replace(value=first.value + b" "),  # the same id, another payload: a dead letter and an alert
    ]
    base = learned.ModelTrained(version="0" * 64, base="0" * 64, base_name="none")
    by["operator"] += [outside(base, "/operator", now, settings.partitions, vault)]
    return by


@pytest.fixture(scope="module")
def ran(secure: SecureBroker, deployed: Settings) -> Verdict:
    """A feed's way through a worker, each process with its own user; judged by the oracle."""
    worker = secure.settings(f"{PREFIX}worker")
    operator = secure.settings(f"{PREFIX}operator")
    workers = Workers(deployed, worker, env=env_of(worker))

    async def run() -> Verdict:
        for who, records in everything(deployed, vault_of(deployed)).items():
            await write(deployed, secure.settings(f"{PREFIX}{who}"), records)
        workers.start()
        await ensure_topics(secure.settings(f"{PREFIX}ticker"), specs(deployed))  # as `xinfluencer ticker` does
        clock = Sender(deployed, secure.settings(f"{PREFIX}ticker"))
        for _ in range(2):
            await settled(deployed, operator, 60)
            await asyncio.sleep(AGES_MS[0] / 1000 + 0.2)
            await clock.send(ticks(deployed, now_ms()))
        await settled(deployed, operator, 60)
        await clock.stop()
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(deployed, operator)

    with ended(workers):
        return asyncio.run(run())


def test_workers_with_least_rights_run_a_feed_and_use_every_right_they_have(
    secure: SecureBroker, deployed: Settings, ran: Verdict
) -> None:
    """What was asked for, allowed and refused is read from the broker's own record."""
    assert ran.faults == [], (deployed.data / "worker.log").read_text()[-3000:]
    done, refused = secure.asked(f"{PREFIX}worker")
    assert refused == set()
    assert set(rules(deployed, "worker", PREFIX)) <= done, "a right that nothing needed"
    for who in ("ticker", "ingest"):
        assert not secure.asked(f"{PREFIX}{who}")[1]
    assert set(rules(deployed, "ticker", PREFIX)) <= secure.asked(f"{PREFIX}ticker")[0]


def test_the_trainer_reads_publishes_and_skips_with_its_rights_and_uses_each(
    secure: SecureBroker, deployed: Settings, ran: Verdict
) -> None:
    """Its own code but for the training: what it reads of a batch, its transaction with the offset, its alert."""
    kafka = secure.settings(f"{PREFIX}trainer")
    (deployed.data / "run").mkdir(exist_ok=True)

    async def run() -> None:
        await ensure_topics(kafka, specs(deployed))
        trainer = Trainer(deployed, kafka, lambda name: None)
        trainer.producer = AIOKafkaProducer(**kafka.client_kwargs(), transactional_id=trainer.group)
        await trainer.producer.start()
        async with reader(deployed, kafka) as log_reader:
            known = await closed_batches(log_reader)
            assert known, "the feed before closed a batch"
            dataset = await load(log_reader, [batch for _, batch in known], trainer.vault)
            assert dataset.rows
            await log_reader.records(t.ANSWERS.name, 0, 0, 0).aclose()
            assert [one async for one in log_reader.records(t.CANDIDATES.name)]
        await trainer._publish(learned.ModelTrained(version="1" * 64, base="0" * 64, base_name="none"), known[0][0])
        await trainer._skip(known[0][0], "not this one")
        assert (await committed_offsets(kafka, trainer.group))[trainer.batches] == known[0][0] + 1
        await trainer.producer.stop()

    asyncio.run(run())
    done, refused = secure.asked(f"{PREFIX}trainer")
    assert refused == set()
    assert set(rules(deployed, "trainer", PREFIX)) - done <= {
        Rule(f"{PREFIX}trainer", "topic", deployed.physical(t.ANSWERS.name), "Read")  # no answer was judged here
    }


def test_nobody_may_do_more_to_a_topic_than_the_table_says(secure: SecureBroker, deployed: Settings) -> None:
    """The broker's own answer to "what may I do here" (KIP-430), of every user for every topic."""
    names = [spec.name for spec in specs(deployed)]
    for process in PROCESSES:
        user = f"{PREFIX}{process}"
        admin = secure.admin(user)
        told = admin.describe_topics(TopicCollection(names), include_authorized_operations=True)
        for name, future in told.items():
            may = {operation.name.title().replace("_", "") for operation in future.result(20).authorized_operations}
            given = {
                one.operation for one in rules(deployed, process, PREFIX) if (one.kind, one.name) == ("topic", name)
            }
            assert may == given | {"Describe"}, (process, name)
        cluster = admin.describe_cluster(include_authorized_operations=True).result(20)
        assert not cluster.authorized_operations, process


def test_what_is_not_given_is_refused(secure: SecureBroker, deployed: Settings) -> None:
    async def read(user: str, topic: str) -> None:
        async with AIOKafkaConsumer(**secure.settings(user).client_kwargs()) as consumer:
            consumer.assign([TopicPartition(deployed.physical(topic), 0)])
            await consumer.seek_to_beginning()
            async with asyncio.timeout(20):
                await consumer.getone()

    async def send(user: str, topic: str) -> None:
        async with AIOKafkaProducer(**secure.settings(user).client_kwargs()) as producer:
            await producer.send_and_wait(deployed.physical(topic), b"no", partition=0)

    asyncio.run(send("p-server", "feedback"))
    asyncio.run(read("p-sink", "feedback"))  # the control: whoever may, can
    for attempt in (read("p-ingest", "feedback"), send("p-worker", "tweets")):
        with pytest.raises(TopicAuthorizationFailedError):
            asyncio.run(attempt)
    with pytest.raises(TopicAuthorizationFailedError, match="may not describe topic secure"):
        asyncio.run(ensure_topics(secure.settings("stranger"), specs(deployed)))
    more = settings_for(deployed.data, "elsewhere")
    with pytest.raises(TopicAuthorizationFailedError):
        asyncio.run(ensure_topics(secure.settings("p-worker"), specs(more)))


def test_a_wrong_password_or_authority_is_one_sentence_that_says_what_to_set(
    secure: SecureBroker, deployed: Settings
) -> None:
    right = secure.settings("p-worker")
    for wrong, said in (
        (secure.settings("p-worker", "guess"), "refused user p-worker: check XINFLUENCER_KAFKA_SASL_USERNAME"),
        (secure.settings("nobody"), "refused user nobody"),
        (replace(right, ssl_cafile=None), "not trusted .*XINFLUENCER_KAFKA_SSL_CAFILE"),
        (replace(right, bootstrap=right.bootstrap.replace("127.0.0.1", "localhost")), "not valid for 'localhost'"),
    ):
        with pytest.raises(LogInRefused, match=said) as refused:
            asyncio.run(ensure_topics(wrong, specs(deployed)))
        assert "guess" not in str(refused.value)
    with pytest.raises(KafkaError):  # no TLS on a port that speaks it
        asyncio.run(ensure_topics(KafkaSettings(right.bootstrap), specs(deployed)))


def test_a_worker_that_lacks_one_right_ends_and_says_which(secure: SecureBroker, deployed: Settings) -> None:
    """One of each kind; each worker has other agents, so another user and another group, and all run at once."""
    running: dict[str, Workers] = {}
    for agent, lacking in LACKING.items():
        kafka = secure.settings(f"{PREFIX}worker-{agent}")
        given = rules(deployed, f"worker:{agent}", PREFIX)
        kind, name, operation = lacking
        kept = {one for one in given if (one.kind, one.name, one.operation) != lacking}
        assert len(kept) == len(given) - 1
        if operation != "Describe" and kind == "topic":
            kept.add(Rule(kafka.sasl_username or "", kind, name, "Describe"))
        secure.allow(kept)
        settings = deployed.model_copy(update={"data": deployed.data / agent})
        (settings.data / "vault").mkdir(parents=True)
        command = (sys.executable, "-m", "streams.cli", "worker", agent)
        running[agent] = Workers(settings, kafka, command, env_of(kafka))
        running[agent].start()
    try:
        for agent, worker in running.items():
            assert worker.process is not None
            assert worker.process.wait(40) == EXIT_REFUSED
            _, name, operation = LACKING[agent]
            said = f"may not ({operation}|{operation.lower()}) .*{name}.*: `xinfluencer acls"
            assert re.search(said, worker.log()), worker.log()
            assert "Traceback" not in worker.log()
    finally:
        for worker in running.values():
            assert worker.process is not None
            worker.process.kill()


def test_rules_name_every_resource_whole_and_render_as_kafkas_own_tool_takes_them() -> None:
    settings = Settings(namespace="n")
    found = rules(settings, "worker:graph,intake", "x-")
    assert {one.user for one in found} == {"x-worker-graph-intake"}
    assert Rule("x-worker-graph-intake", "group", "n.xinfluencer-worker-graph-intake", "Read") in found
    assert all(one.name.startswith("n.") and "*" not in one.name for one in found)
    said = lines(rules(settings, "trainer"))
    assert "--add --allow-principal User:trainer --topic n.candidates --operation Read --operation Write" in said
    assert "--add --allow-principal User:trainer --transactional-id n.xinfluencer-trainer --operation Write" in said
    for wrong in ("nobody", "trainer:graph", "worker:none"):
        with pytest.raises(ValueError, match="there is no"):
            rules(settings, wrong)


# ---- three workers --------------------------------------------------------------------------------------------------


class Fleet:
    """Workers of one group, by name; those that should run are started again when they end."""

    def __init__(self, settings: Settings, kafka: KafkaSettings, env: dict[str, str], *more: str) -> None:
        script = str(Path(__file__).with_name("cluster_worker.py"))
        path = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), **env}
        self.settings = settings
        self.workers = {
            name: Workers(settings, kafka, (sys.executable, script, name, *more), path) for name in ("0", "1", "2")
        }
        self.wanted: set[str] = set()

    def start(self, *names: str) -> None:
        for name in names:
            self.wanted.add(name)
            self.workers[name].start()

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        self.wanted.discard(name)
        self.workers[name].signal(number)

    def keep(self) -> None:
        for name in self.wanted:
            self.workers[name].keep()

    def owned(self) -> dict[str, int]:
        """Count the partitions that each running worker says it owns."""
        counts = {}
        for name in self.wanted:
            process = self.workers[name].process
            try:
                told = json.loads((self.settings.data / "run" / f"worker-{name}.status.json").read_text())
            except (OSError, ValueError):
                continue
            if process is not None and told["pid"] == process.pid:
                counts[name] = len(told["partitions"])
        return counts

    async def share(self, count: int) -> None:
        """Wait until so many workers own something, and all partitions are somebody's."""
        total = sum(partitions(stage.reads, self.settings.partitions) for stage in stages())
        async with asyncio.timeout(60):
            while len(owned := self.owned()) != count or not all(owned.values()) or sum(owned.values()) != total:
                self.keep()
                await asyncio.sleep(0.1)

    def log(self) -> str:
        return self.workers["0"].log()

    def kill(self) -> None:
        for one in self.workers.values():
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.wait(10)


def test_one_worker_then_three_restarted_one_by_one_then_one_again_change_nothing(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C5 and a rolling restart, under load, with the snapshots in an object store."""
    settings = settings_for(tmp_path, "fleet", partitions=3)
    records = list(feed(SEED, 900, 3, vault_of(settings), now_ms()))
    more = iter([records[at : at + 60] for at in range(0, len(records), 60)])

    with s3_server("fleet") as options:
        url = "s3://fleet/snapshots"
        monkeypatch.setattr(harness, "SnapshotFolder", lambda folder: SnapshotStore(url, **options))
        fleet = Fleet(settings, broker.settings, {"XINFLUENCER_SNAPSHOTS": url, **s3_env(options)})

        async def run() -> Any:
            sender = Sender(settings, broker.settings)
            feeding = asyncio.Event()

            async def load() -> None:
                while not feeding.is_set() and (chunk := next(more, None)):
                    await sender.send(chunk)
                    await asyncio.sleep(0.5)

            await write(settings, broker.settings, next(more))
            fleet.start("0")
            loading = asyncio.create_task(load())
            await fleet.share(1)
            fleet.start("1", "2")
            await fleet.share(3)
            for name, number in (("0", signal.SIGTERM), ("1", signal.SIGKILL), ("2", signal.SIGTERM)):
                await asyncio.to_thread(fleet.end, name, number)
                fleet.start(name)
                await fleet.share(3)
            await asyncio.to_thread(fleet.end, "0", signal.SIGKILL)
            await asyncio.to_thread(fleet.end, "2")
            await fleet.share(1)
            feeding.set()
            await loading
            for chunk in more:
                await sender.send(chunk)
            await sender.stop()
            await finish(settings, broker.settings, fleet)  # type: ignore[arg-type]
            await asyncio.to_thread(fleet.end, "1")
            return await judge(settings, broker.settings)

        try:
            verdict = asyncio.run(run())
        finally:
            fleet.kill()
    assert verdict.faults == [], fleet.log()[-3000:]
    assert verdict.visible["preferences"] > 0
    assert not (tmp_path / "snapshots").exists(), "the snapshots were to be in the store"


# ---- a new version of a step ----------------------------------------------------------------------------------------


def test_a_step_changes_its_version_on_a_drained_log_and_each_part_is_what_its_version_makes(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop the inputs, get through, stop the workers, adopt, start the new ones; no other way is let through."""
    kafka = broker.settings
    settings = settings_for(tmp_path, "next", partitions=2)
    vault = vault_of(settings)
    early = list(feed(SEED, 60, 2, vault, now_ms()))
    late = [*feed(SEED + 1, 60, 2, vault, now_ms()), *early[-60:]]  # some of it comes twice, over the change
    keeper = SnapshotFolder(tmp_path / "snapshots")
    (intake,) = [one for one in next_stages(settings.tuning) if one.name == "intake"]
    group = settings.group("worker")
    old, new = Fleet(settings, kafka, {}), Fleet(settings, kafka, {}, "next")

    async def change() -> dict[int, int]:
        return await adopt(settings, kafka, keeper, intake, 1, vault, group)

    async def run() -> tuple[Any, Any, dict[int, int], str]:
        await write(settings, kafka, early)
        old.start("0")
        await settled(settings, kafka)
        await asyncio.to_thread(old.end, "0")
        before = await judge(settings, kafka)
        await write(settings, kafka, late[:30])
        new.workers["0"].start()
        with pytest.raises(CannotAdopt, match=r"feedback/\d@\d+ waits: start version 1 again"):
            await change()
        assert await asyncio.to_thread(new.workers["0"].process.wait, 40) == EXIT_REFUSED  # type: ignore[union-attr]
        old.start("0")
        await settled(settings, kafka)
        await asyncio.to_thread(old.end, "0")
        with monkeypatch.context() as patch:
            patch.setattr(keeper, "write", dies_at_write(3, keeper.write))
            with pytest.raises(OSError, match="killed here"):
                await change()
        offsets = await change()
        assert await change() == offsets  # again, and nothing more
        new.start("0")
        await write(settings, kafka, late[30:])
        await finish(settings, kafka, new)  # type: ignore[arg-type]
        await asyncio.to_thread(new.end, "0")
        physical = settings.physical(intake.reads.name)
        name = f"{await cluster_id(kafka)}/{physical}/{(await topic_ids(kafka, [physical]))[physical]}"
        async with reader(settings, kafka) as log_reader:
            return before, await log_reader.everything(*t.BY_NAME), offsets, name

    try:
        before, log, offsets, name = asyncio.run(run())
    finally:
        old.kill()
        new.kill()
    assert before.faults == []
    assert all(offsets.values())
    others = [one for one in stages(settings.tuning) if one.name != "intake"]
    assert verify(log, others, 2, vault).faults == []
    newer = since(log, intake, offsets)
    # The control: without what version 1 knew, what came twice over the change counts twice.
    assert any("is missing" in fault for fault in verify(newer, [intake], 2, vault).faults)

    def begun(stage: Stage, partition: int, width: int, keys: Any) -> Fold:
        fold = Fold(stage, partition, width, keys)
        memory = begins(keeper, fold, Bound("intake", 2, partition, name, width))
        assert memory is not None
        assert memory.next == offsets[partition]
        fold.memory = memory
        return fold

    monkeypatch.setattr("streams.verify.Fold", begun)
    assert verify(newer, [intake], 2, vault).faults == []
    for wrong in (replace(intake, version=1), replace(intake, step=stages()[3].step)):  # the controls of that
        faults = verify(newer, [wrong], 2, vault).faults
        assert any("follows from no input" in fault or "is missing" in fault for fault in faults)


def dies_at_write(number: int, write: Any) -> Any:
    """Let so many writes pass, less one."""
    passed = iter(range(1, number))

    def dying(*given: Any) -> int:
        if next(passed, None) is None:
            raise OSError("killed here")
        return int(write(*given))

    return dying


class Grown(reactions.State):
    """A state with one field more, and a default for what was not known before."""

    loud: int = 0


class Broken(reactions.State, kw_only=True):
    """The same without a default."""

    loud: int


def test_a_state_may_grow_by_fields_with_a_default_and_not_otherwise(tmp_path: Path) -> None:
    keeper = SnapshotFolder(tmp_path)
    stage = stages()[1]
    fold = Fold(stage, 0, 1, vault_of(settings_for(tmp_path, "grown")))
    fold.memory.next = 9
    bound = Bound("reactions", 1, 0, "cluster/reactions", 1)
    keeper.write(fold, bound, keeper.claim(bound))
    later = msgspec.structs.replace(bound, version=2)

    def ended(state: type[reactions.State]) -> Any:
        newer = Fold(replace(stage, version=2, state=reactions.State, state_type=state), 0, 1, fold.keys)
        return carried(keeper, newer, later, 1)

    assert ended(Grown).next == 9
    assert ended(Grown).state.loud == 0
    with pytest.raises(CannotAdopt, match="give new fields a default"):
        ended(Broken)
