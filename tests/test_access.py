"""Least rights: every process on a real broker with TLS, SCRAM and access rules, each as a user that may no more.

What was asked for, allowed and refused is read from the broker's own record.
"""

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from confluent_kafka import TopicCollection

from schemas import learned, posts
from schemas import topics as t
from streams.access_rules import PROCESSES, NotAllowed, Rule, lines, rules
from streams.dataset import closed_batches, load
from streams.exits import EXIT_REFUSED
from streams.fold import Sent
from streams.kafka import KafkaSettings, LogInRefused, committed_offsets, ensure_topics
from streams.reader import reader
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.settle import settled
from streams.supervisor import ticks
from streams.topics import specs
from streams.trainer import Trainer
from streams.vault import Vault
from streams.verify import Verdict
from tests.feeds import RIGHTS, feed
from tests.harness import AGES_MS, ROOT, Workers, ended, finish, judge, now_ms, settings_for, vault_of, write
from tests.jetstream_server import jetstream_server, message
from tests.proof import Say
from tests.secure_broker import SecureBroker, env_of
from tests.tiny_llama import build

SEED = 17
PREFIX = "p-"
LACKING = {  # agents of a worker -> the right that is taken from it
    "metadata": ("topic", "secure.tweets", "Read"),
    "intake": ("group", "secure.xinfluencer-worker-intake", "Read"),
    "reactions": ("topic", "secure.signals", "Write"),
    "pairing": ("topic", "secure.models", "Describe"),
}
LACKING_OF = {  # another process -> the same; `tweets.jsonl` is made for ingest
    "trainer": ("candidates", "Write"),
    "server": ("alerts", "Write"),
    "embedder": ("tweets", "Read"),
    "sink": ("features", "Read"),
    "follow": ("dead-letters", "Write"),
    "ingest": ("tweets", "Write"),
    "ticker": ("signals", "Write"),
}
ARGUMENTS = {"follow": ("bluesky",), "ingest": ("tweets.jsonl",)}
UNUSED = {  # what a day without trouble does not ask for
    "trainer": {("alerts", "Write"), ("answers", "Read")},
    "server": {("alerts", "Write")},
    "embedder": {("alerts", "Write"), ("erasures", "Write")},
    "sink": {("alerts", "Write"), ("erasures", "Write")},
    "ingest": {("alerts", "Write"), ("dead-letters", "Write")},
    "follow": {("alerts", "Write"), ("dead-letters", "Write")},
}

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

# ---- the worker, and what everybody may ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[SecureBroker]:
    users = [f"{PREFIX}{process}" for process in PROCESSES] + [f"{PREFIX}worker-{name}" for name in LACKING]
    users += [f"l-{process}" for process in LACKING_OF]
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
            await settled(deployed, operator, 240)
            await asyncio.sleep(AGES_MS[0] / 1000 + 0.2)
            await clock.send(ticks(deployed, now_ms()))
        await settled(deployed, operator, 240)
        await clock.stop()
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(deployed, operator)

    with ended(workers):
        return asyncio.run(run())


def test_workers_with_least_rights_run_a_feed_and_use_every_right_they_have(
    secure: SecureBroker, deployed: Settings, ran: Verdict, proof: Say
) -> None:
    proof("CLUSTER", "a worker runs a feed with its least rights and uses each", len(rules(deployed, "worker")),
          "rights", SEED)  # fmt: skip
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


def test_nobody_may_do_more_to_a_topic_than_the_table_says(
    secure: SecureBroker, deployed: Settings, proof: Say
) -> None:
    """The broker's own answer to "what may I do here" (KIP-430), of every user for every topic."""
    names = [spec.name for spec in specs(deployed)]
    proof("CLUSTER", "nobody may do more to a topic than the table says", len(names) * len(PROCESSES), "answers", SEED)
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


def test_a_worker_that_lacks_one_right_ends_and_says_which(
    secure: SecureBroker, deployed: Settings, proof: Say
) -> None:
    """One of each kind; each worker has other agents, so another user and another group, and all run at once."""
    proof("CLUSTER", "control: a process that lacks one right ends with 78 and names it", len(LACKING), "rights", SEED)
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
    groups = "--add --allow-principal User:operator --group n.xinfluencer-worker --operation Describe"
    assert f"{groups} --resource-pattern-type prefixed" in lines(rules(settings, "operator"))
    for wrong in ("nobody", "trainer:graph", "worker:none"):
        with pytest.raises(ValueError, match="there is no"):
            rules(settings, wrong)


# ---- every other process --------------------------------------------------------------------------------------------


def run_process(settings: Settings, kafka: KafkaSettings, *arguments: str) -> subprocess.Popen[bytes]:
    """Start one as a user of its own; what it says lies in NAME.log."""
    env = {**os.environ, **settings.to_env(), **env_of(kafka), "HF_HUB_OFFLINE": "1"}
    with open(settings.data / f"{arguments[0]}.log", "ab") as log:
        command = [sys.executable, "-m", "streams.cli", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                                if arguments[0] == "zygote" else log, stderr=log)  # fmt: skip


class Models:
    """The zygote, and the processes that it forks, each with the credentials of its own user."""

    def __init__(self, settings: Settings, secure: SecureBroker) -> None:
        self.secure = secure
        self.process = run_process(settings, secure.settings(f"{PREFIX}trainer"), "zygote")

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 120)[0], "the zygote says nothing"
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def start(self, name: str) -> None:
        assert self.process.stdin is not None
        order = {"start": name, "env": env_of(self.secure.settings(f"{PREFIX}{name}"))}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        assert self.heard()["event"] == "started"


async def until(what: str, true: Callable[[], Awaitable[bool]], log: Path, seconds_max: float = 120.0) -> None:
    """Wait for something; else show what the process said."""
    deadline = time.monotonic() + seconds_max
    while not await true():
        assert time.monotonic() < deadline, f"{what}: {log.read_text(errors='replace')[-3000:]}"
        await asyncio.sleep(0.3)


def told(settings: Settings, name: str) -> dict[str, Any]:
    """Read a file in run/, {} if there is none yet."""
    try:
        return dict(json.loads((settings.data / "run" / name).read_text()))
    except (OSError, ValueError):
        return {}


async def asked(settings: Settings) -> bool:
    """Ask the server and judge its answer."""
    url = told(settings, "server.json").get("url")
    if url is None:
        return False
    body = {"messages": [{"role": "user", "content": "Who may do what?"}], "max_tokens": 4}
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        if (await client.get("/readyz")).status_code != 200:
            return False
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        judged = {"subject": answer.json()["xinfluencer"]["subjects"][0], "kind": "thumb", "value": 1, "rater": "r:1"}
        found = await client.post("/v1/feedback", json=judged)
        assert found.status_code == 200, found.text
    return True


def test_every_process_does_its_work_with_its_least_rights(secure: SecureBroker, tmp_path: Path, proof: Say) -> None:
    """All at once, on one log, each as a user of its own; then the oracle folds that log again."""
    settings = settings_for(
        tmp_path, "least", partitions=2, base=str(build(tmp_path / "tiny").path), cache=tmp_path / "cache", threads=1,
        port=0, tick_s=0.5,
    )  # fmt: skip
    given = {process: rules(settings, process, PREFIX) for process in PROCESSES}
    proof("CLUSTER", "every process works with its least rights, and nothing is refused to it",
          sum(map(len, given.values())), "rights", SEED)  # fmt: skip
    for some in given.values():
        secure.allow(some)
    operator, worker = secure.settings(f"{PREFIX}operator"), secure.settings(f"{PREFIX}worker")
    workers = Workers(settings, worker, env=env_of(worker))
    before = {process: secure.asked(f"{PREFIX}{process}")[1] for process in LACKING_OF}
    running: list[subprocess.Popen[bytes]] = []
    file = tmp_path / "tweets.jsonl"
    file.write_text(json.dumps(message(now_ms() * 1000)) + "\n")

    async def trained() -> bool:
        async with reader(settings, operator) as log_reader:
            return any([b'"adapter"' in raw.value async for raw in log_reader.records(t.CANDIDATES.name)])

    async def embedded() -> bool:
        return bool(told(settings, "embedder.status.json").get("rows"))

    async def copied() -> bool:
        places = told(settings, "sink.status.json").get("partitions", {}).values()
        return bool(places) and all(written for written, _, _, end in places if end)  # ticks never end

    async def run() -> Verdict:
        await ensure_topics(operator, specs(settings))
        async with jetstream_server(close_with=None, now_us=now_ms() * 1000) as source:
            own = settings.model_copy(update={"bluesky_url": source.url})
            running.append(run_process(own, secure.settings(f"{PREFIX}follow"), "follow", "bluesky"))
            running.append(run_process(settings, secure.settings(f"{PREFIX}sink"), "sink"))
            running.append(run_process(settings, secure.settings(f"{PREFIX}ticker"), "ticker"))
            models = await asyncio.to_thread(Models, settings, secure)
            running.append(models.process)
            for who, records in everything(settings, vault_of(settings)).items():
                # Of the operator's only what says nothing of a base: the trainer is to announce its own.
                await write(settings, secure.settings(f"{PREFIX}{who}"), [] if who == "operator" else records)
            workers.start()
            assert (await asyncio.to_thread(models.heard))["event"] == "ready"
            ingesting = run_process(settings, secure.settings(f"{PREFIX}ingest"), "ingest", str(file))
            running.append(ingesting)
            for name in ("trainer", "server", "embedder"):
                await asyncio.to_thread(models.start, name)
            assert await asyncio.to_thread(ingesting.wait, 60) == 0, (tmp_path / "ingest.log").read_text()

            async def followed() -> bool:
                await source.live.put(message(now_ms() * 1000))
                return told(settings, "follow-bluesky-jetstream.status.json").get("taken", 0) > 0

            logs = tmp_path / "logs"
            await until("follow", followed, tmp_path / "follow.log")
            await until("embedder", embedded, logs / "embedder.log")
            await until("trainer", trained, logs / "trainer.log")
            await until("server", lambda: asked(settings), logs / "server.log")
            await until("sink", copied, tmp_path / "sink.log")
            for one in running:
                one.terminate()
            for one in running:
                await asyncio.to_thread(one.wait, 20)
        await finish(settings, operator, workers)
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(settings, operator)

    with ended(workers):
        try:
            verdict = asyncio.run(run())
        finally:
            for one in running:
                one.kill()
    assert verdict.faults == []
    assert verdict.visible["answers"]
    assert verdict.visible["models"]
    for process in LACKING_OF:
        done, refused = secure.asked(f"{PREFIX}{process}")
        assert refused == before[process], process  # a test above asks what each may, of the cluster too
        unused = {(settings.logical(one.name), one.operation) for one in set(given[process]) - done}
        assert unused <= UNUSED.get(process, set()), f"{process} has rights that nothing needed"


def test_a_process_that_lacks_one_right_ends_with_78_and_says_which(
    secure: SecureBroker, tmp_path: Path, proof: Say
) -> None:
    """The control of the test above: each of its processes with one right less, all at once."""
    proof("CLUSTER", "control: a process that lacks one right ends with 78 and names it", len(LACKING_OF), "rights",
          SEED)  # fmt: skip
    given = settings_for(tmp_path, "lacking", partitions=1, port=0)
    secure.allow(rules(given, "operator", PREFIX))
    asyncio.run(ensure_topics(secure.settings(f"{PREFIX}operator"), specs(given)))
    running = {}
    for process, (topic, operation) in LACKING_OF.items():
        settings = given.model_copy(update={"data": tmp_path / process})
        settings.data.mkdir()
        kept = set(rules(settings, process, "l-"))
        kept.remove(Rule(f"l-{process}", "topic", settings.physical(topic), operation))
        kept.add(Rule(f"l-{process}", "topic", settings.physical(topic), "Describe"))
        secure.allow(kept)
        more = [str(settings.data / one) if "." in one else one for one in ARGUMENTS.get(process, ())]
        (settings.data / "tweets.jsonl").write_text(json.dumps(message(1)) + "\n")
        running[process] = run_process(settings, secure.settings(f"l-{process}"), process, *more)
    try:
        for process, one in running.items():
            topic, operation = LACKING_OF[process]
            code = one.wait(90)
            said = (tmp_path / process / f"{process}.log").read_text(errors="replace")
            assert code == EXIT_REFUSED, f"{process}: {code} {said[-3000:]}"
            wanted = f"User l-{process} may not {operation} topic lacking.{topic}: `xinfluencer acls {process}`"
            assert wanted in said, said[-3000:]
            assert "Traceback" not in said
    finally:
        for one in running.values():
            one.kill()


def test_a_trainer_without_its_transactional_id_says_so(secure: SecureBroker, tmp_path: Path) -> None:
    """Nobody can be asked whether one may: taking the id is the only way to know."""
    settings = settings_for(tmp_path, "untold", partitions=1)
    kafka = secure.settings("l-trainer")
    (settings.data / "run").mkdir()

    async def begin() -> None:
        trainer = Trainer(settings, kafka, lambda name: None)
        trainer.producer = AIOKafkaProducer(**kafka.client_kwargs(), transactional_id=trainer.group)
        await trainer._begin()

    group = settings.group("trainer")
    with pytest.raises(NotAllowed, match=f"l-trainer may not Write transactional-id {re.escape(group)}: `xinfl"):
        asyncio.run(begin())
