"""Containers: our processes on the images that are deployed, and the whole deployment as Compose starts it.

Needs a container engine; skipped with its reason where none answers, unless XINFLUENCER_DOCKER_REQUIRED is set: then
that fails. The containers of the first half are made from docker-compose.yml, hardening and all.
"""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.compose import DockerCompose
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import HttpWaitStrategy, LogMessageWaitStrategy

from schemas.posts import PostDeleted, PostObserved
from streams.kafka import KafkaSettings, cluster_id
from streams.vault import Vault
from tests.deployed import ROOT, read_yaml
from tests.feeds import feed
from tests.harness import Workers, ended, finish, judge, killed_run, settings_for, write

SEED = 5
POSTS = 200
IMAGE_S_MAX = 3600  # building downloads about 7 GB
READY_S_MAX = 600.0  # the base is converted at the first start
LOST_S_MAX = 120.0  # a silent worker: 30 s, three looks, and Docker's patience before it starts it again

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]


def missing(reason: str) -> None:
    if os.environ.get("XINFLUENCER_DOCKER_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def engine() -> Any:
    """Connect to the engine, or say why not."""
    import docker

    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        missing(f"no container engine answers: {error}")
    return client


@pytest.fixture(scope="session")
def compose_command() -> list[str]:
    """Find Compose, which needs no engine to read a file."""
    command = ["docker", "compose"]
    try:
        found = subprocess.run([*command, "version"], capture_output=True, timeout=60, check=False).returncode
    except OSError:
        found = 1
    if found:
        missing("`docker compose` is not installed")
    return command


def wait(done: Callable[[], bool], what: str, seconds_max: float) -> None:
    deadline = time.monotonic() + seconds_max
    while not done():
        assert time.monotonic() < deadline, f"after {seconds_max:.0f} s: {what}"
        time.sleep(1.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def container(name: str, inside: int, port: int) -> DockerContainer:
    """Make a service's container as the compose file says, one port of it on 127.0.0.1."""
    compose = read_yaml("docker-compose.yml")
    service = compose["services"][name]
    made = DockerContainer(service["image"])
    for variable, value in service["environment"].items():
        made.with_env(variable, str(value))
    for place in service["tmpfs"]:
        made.with_tmpfs_mount(*place.split(":", 1))
    for config in service["configs"]:
        made.with_volume_mapping(ROOT / compose["configs"][config["source"]]["file"], config["target"], "ro")
    made.ports[f"{inside}/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]
    hardening = ("user", "read_only", "cap_drop", "security_opt", "mem_limit", "pids_limit")
    return made.with_kwargs(**{option: service[option] for option in hardening})


class Broker:
    """Kafka in a container, on a port of its own that stays over restarts."""

    def __init__(self) -> None:
        port = free_port()
        self.settings = KafkaSettings(bootstrap=f"127.0.0.1:{port}")
        self.container = container("kafka", 9092, port)
        self.container.with_env("KAFKA_ADVERTISED_LISTENERS", f"BROKER://127.0.0.1:{port}")
        self.container.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(120))

    def kill(self) -> None:
        """kill -9, and start the same container again."""
        self.container.get_wrapped_container().kill()
        self.container.get_wrapped_container().wait()
        self.container.get_wrapped_container().start()

    def answers(self) -> bool:
        try:
            return bool(asyncio.run(cluster_id(self.settings)))
        except Exception:  # noqa: BLE001 - whatever it is, it does not answer yet
            return False


@pytest.fixture(scope="module")
def kafka(engine: Any) -> Iterator[Broker]:
    broker = Broker()
    with broker.container:
        wait(broker.answers, "Kafka does not answer", 60)
        yield broker


def records(settings: Any) -> list[Any]:
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    return list(feed(SEED, POSTS, settings.partitions, vault, int(time.time() * 1000)))


def test_a_feed_reaches_rewards_on_a_kafka_container_while_workers_are_killed(kafka: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "workers")
    workers = Workers(settings, kafka.settings)
    verdict = killed_run(settings, kafka.settings, records(settings), 3, SEED, workers)
    assert verdict.faults == [], workers.log()[-3000:]
    assert verdict.visible["rewards"] > 0
    assert verdict.visible["preferences"] > 0


def test_a_kafka_container_that_is_killed_loses_nothing_that_was_acknowledged(kafka: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "broker-killed")
    workers = Workers(settings, kafka.settings)
    sent = records(settings)

    async def run() -> Any:
        await write(settings, kafka.settings, sent[: len(sent) // 2])
        workers.start()
        await asyncio.to_thread(kafka.kill)
        await asyncio.to_thread(wait, kafka.answers, "Kafka does not come back", 90)
        await write(settings, kafka.settings, sent[len(sent) // 2 :])
        await finish(settings, kafka.settings, workers, 180.0)
        await asyncio.to_thread(workers.signal, 15)
        return await judge(settings, kafka.settings)

    with ended(workers):
        verdict = asyncio.run(run())
    assert verdict.faults == [], workers.log()[-3000:]
    assert verdict.visible["tweets"] == len({dict(one.headers)["ce_id"] for one in sent if one.topic == "tweets"})


@pytest.fixture(scope="module")
def clickhouse(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """ClickHouse in a container; gives the settings that lead there."""
    port = free_port()
    password = tmp_path_factory.mktemp("secrets") / "clickhouse"
    password.write_text(secrets.token_hex(16))
    password.chmod(0o444)
    password.parent.chmod(0o755)
    made = container("clickhouse", 8123, port)
    made.with_volume_mapping(password, "/run/secrets/clickhouse-password", "ro")
    made.waiting_for(HttpWaitStrategy(8123, "/ping").with_startup_timeout(120))
    with made:
        yield {
            "XINFLUENCER_CLICKHOUSE": f"http://127.0.0.1:{port}/xinfluencer",
            "XINFLUENCER_CLICKHOUSE_USER": "xinfluencer",
            "XINFLUENCER_CLICKHOUSE_PASSWORD_FILE": str(password),
        }


def test_the_sink_fills_clickhouse_once_however_often_it_is_killed(
    kafka: Broker, clickhouse: dict[str, str], tmp_path: Path
) -> None:
    from streams.tables import TABLES

    settings = settings_for(tmp_path, "sink")
    workers = Workers(settings, kafka.settings)
    sink = Workers(settings, kafka.settings, (sys.executable, "-m", "streams.cli", "sink"), clickhouse)
    env = {**os.environ, **settings.to_env(), "XINFLUENCER_KAFKA": kafka.settings.bootstrap, **clickhouse}

    def ask(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "streams.cli", *words]
        return subprocess.run(
            command, cwd=ROOT, env={**env, **more}, capture_output=True, text=True, timeout=120, check=False
        )

    sent = records(settings)
    deleted = {one.event.post for one in sent if isinstance(one.event, PostDeleted)}
    left = {one.event.post for one in sent if isinstance(one.event, PostObserved)} - deleted
    count = f"SELECT count() AS posts, uniqExact(post) AS different FROM {TABLES[PostObserved].name} FINAL"

    def posts() -> list[str]:
        return ask("sql", count, "--format", "csv").stdout.split("\n")[1:2]

    async def run() -> None:
        await write(settings, kafka.settings, sent)
        workers.start()
        sink.start()
        for _ in range(3):
            await asyncio.sleep(2.0)
            await asyncio.to_thread(sink.signal, 9)
            sink.start()
        await finish(settings, kafka.settings, workers)

    with ended(workers), ended(sink):
        asyncio.run(run())
        wait(lambda: posts() == [f"{len(left)},{len(left)}"], f"of {len(left)} posts the tables hold other", 90)
        chart = tmp_path / "daily.png"
        report = ask("report", "daily", "--png", str(chart))
        assert report.returncode == 0, report.stderr
        assert chart.read_bytes().startswith(b"\x89PNG")
        wrong = ask("sql", "SELECT 1", XINFLUENCER_CLICKHOUSE_USER="nobody")
        assert wrong.returncode != 0
        assert "Traceback" not in wrong.stderr


# ---- the whole deployment -------------------------------------------------------------------------------------------


def test_compose_reads_the_file_and_names_a_secret_that_is_missing(compose_command: list[str], tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.endswith(("_FILE", "PUBLISHED_PORT"))}
    command = [*compose_command, "--env-file", os.devnull, "--profile", "*", "config", "--format", "json"]
    without = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert without.returncode != 0
    assert "CLICKHOUSE_PASSWORD_FILE" in without.stderr
    env["CLICKHOUSE_PASSWORD_FILE"] = str(tmp_path / "password")
    read = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout)["services"].keys() == read_yaml("docker-compose.yml")["services"].keys()


class Deployment:
    """The deployment as Compose started it."""

    def __init__(self, compose: DockerCompose, engine: Any, port: int) -> None:
        self.compose, self.engine, self.port = compose, engine, port

    def cli(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [*self.compose.compose_command_property, "--profile", "cli", "run", "--rm", "-T", "cli", *words]
        return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, timeout=300, check=False)

    def containers(self) -> dict[str, Any]:
        return {str(one.Service): self.engine.containers.get(one.ID) for one in self.compose.get_containers()}

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except OSError as error:
            return getattr(error, "code", 0), str(error)

    def count(self, topic: str) -> int:
        said = self.cli("topics").stdout.decode()
        line = next((line.split() for line in said.splitlines() if line.split()[:1] == [topic]), [])
        return next((int(word) for word in line[4:] if word.isdigit()), -1)


@pytest.fixture(scope="module")
def deployment(
    engine: Any, compose_command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    folder.chmod(0o755)
    password = folder / "clickhouse"
    password.write_text(secrets.token_hex(16))
    password.chmod(0o444)
    port = free_port()
    variables = {"COMPOSE_PROJECT_NAME": f"xinfluencer-test-{os.getpid()}", "CLICKHOUSE_PASSWORD_FILE": password}
    variables |= {"PUBLISHED_PORT": port, "XINFLUENCER_TAG": "test"}
    env = folder / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    compose = DockerCompose(ROOT, "docker-compose.yml", build=True, env_file=str(env))
    try:
        compose.start()
        yield Deployment(compose, engine, port)
    except subprocess.CalledProcessError as error:
        said = "".join(compose.get_logs())[-5000:]
        pytest.fail(f"{error.stderr.decode(errors='replace')[-3000:]}\n{said}")
    finally:
        compose.stop()


@pytest.mark.timeout(IMAGE_S_MAX)
def test_posts_go_through_the_deployment_and_its_log_verifies(deployment: Deployment) -> None:
    posts = [
        {
            "id": str(10**18 + n),
            "author_id": str(n % 5 + 1),
            "text": f"post {n}",
            "created_at": "2026-01-05T00:00:00.000Z",
        }
        for n in range(20)
    ]
    said = deployment.cli("ingest", "-", stdin=b"".join(json.dumps(post).encode() + b"\n" for post in posts))
    assert said.returncode == 0, said.stderr.decode()
    assert b"20 posts" in said.stdout
    wait(lambda: deployment.count("features") == 20, "the worker does not get through", 120)
    verified = deployment.cli("verify")
    assert verified.returncode == 0, verified.stdout.decode()
    assert b"0 faults" in verified.stdout


@pytest.mark.timeout(IMAGE_S_MAX)
def test_the_server_gets_ready_and_answers_on_this_machine_only(deployment: Deployment) -> None:
    wait(lambda: deployment.get("/readyz")[0] == 200, f"the server: {deployment.get('/readyz')}", READY_S_MAX)
    published = {
        name: [bound["HostIp"] for bindings in one.ports.values() for bound in bindings or ()]
        for name, one in deployment.containers().items()
    }
    assert published.pop("server") == ["127.0.0.1"]
    assert not any(published.values())


@pytest.mark.timeout(IMAGE_S_MAX)
def test_every_container_runs_without_rights_and_only_where_it_may_go(deployment: Deployment) -> None:
    for name, one in deployment.containers().items():
        host = one.attrs["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["Privileged"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert not any(mount["Destination"].endswith("docker.sock") for mount in one.attrs["Mounts"]), name
        assert one.exec_run(["id", "-u"]).output.strip() != b"0", name
        assert one.exec_run(["touch", "/written"]).exit_code != 0, name
        routes = one.exec_run(["cat", "/proc/net/route"]).output.decode().splitlines()[1:]
        leads_out = any(route.split()[1] == "00000000" for route in routes)
        assert leads_out == (name == "server"), f"{name}: {routes}"


@pytest.mark.timeout(IMAGE_S_MAX)
def test_a_worker_that_stands_still_is_ended_by_its_health_check_and_started_again(deployment: Deployment) -> None:
    worker = deployment.containers()["worker"]
    stop = "import json, os, signal; told = json.load(open('/data/run/worker-0.status.json')); os.kill(told['pid'], 19)"
    assert worker.exec_run(["python", "-c", stop]).exit_code == 0

    def restarted() -> bool:
        worker.reload()
        return bool(worker.attrs["RestartCount"])

    wait(restarted, "the worker is still stopped", LOST_S_MAX)
    wait(lambda: deployment.containers()["worker"].health == "healthy", "the worker is not healthy again", LOST_S_MAX)
