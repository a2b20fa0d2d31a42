"""Compose: the deployment held to the published schema and to our rules; each rule is shown a file it must refuse.

Nothing is started here, but Kafka itself: with the settings that the compose file gives it. What needs a container
engine is in tests/test_containers.py.
"""

import functools
import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import typer
import yaml

from streams import broker as embedded
from streams import kafka
from streams.broker_settings import server_properties
from streams.jars import KAFKA_VERSION
from streams.settings import PREFIX, Settings
from streams.topology import OUTSIDE, stages
from tests.deployed import OURS, ROOT, Missing, filled, kafka_properties, read_yaml, words

Compose = dict[Any, Any]
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|PRIVATE|API_?KEY|(?<!_PUBLIC)_KEY$")
UsageError: Any = typer.BadParameter.__base__  # typer has no public name for what it raises on a wrong option
BESIDE_CLICKHOUSE = ("sink", "cli")  # in its network: a password is sent without TLS on 127.0.0.1 only
SHORT_LIVED = ("cli",)  # started for one command: nobody watches it


@pytest.fixture(scope="module")
def compose() -> Compose:
    return read_yaml("docker-compose.yml")


# ---- the schema -----------------------------------------------------------------------------------------------------


def schema_faults(found: Compose) -> list[str]:
    schema = json.loads((ROOT / "tests" / "compose_schema.json").read_text(encoding="utf-8"))
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(found)]


def test_the_file_is_what_the_compose_specification_allows(compose: Compose) -> None:
    assert schema_faults(compose) == []


@pytest.mark.parametrize(
    "text",
    [
        "services: {a: {image: b, healthchek: {test: [CMD, x]}}}",
        "services: {a: {image: b, cap_drop: ALL}}",
        "services: {a: {image: b, read_only: [1]}}",
        "services: [a]",
        "volume: {a: {}}",
    ],
)
def test_the_schema_refuses_what_is_misspelt_or_of_another_shape(text: str) -> None:
    assert schema_faults(yaml.safe_load(text))


def test_a_needed_secret_that_is_missing_is_named_with_what_to_do() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    with pytest.raises(Missing, match=r"CLICKHOUSE_PASSWORD_FILE: set it to the path of a file"):
        filled(text, {})
    assert yaml.safe_load(filled(text, {"CLICKHOUSE_PASSWORD_FILE": "/x"}))["secrets"]["clickhouse-password"] == {
        "file": "/x"
    }
    assert yaml.safe_load(filled(text, {"CLICKHOUSE_PASSWORD_FILE": "/x"}))["secrets"]["x-token"] == {
        "file": "/dev/null"
    }


# ---- our rules ------------------------------------------------------------------------------------------------------


@functools.cache
def commands() -> dict[str, Any]:
    from streams.cli import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def command_faults(line: list[str]) -> list[str]:
    """Parse a command line of ours without running it."""
    if not line or line[0] == "--help":
        return []
    known = commands()
    if line[0] not in known:
        return [f"there is no command {line[0]}"]
    try:
        known[line[0]].make_context(line[0], list(line[1:]))
    except UsageError as error:
        return [f"{' '.join(line)}: {error.format_message()}"]
    return []


@functools.cache
def known_variables() -> set[str]:
    """Settings, what streams/kafka.py reads, and secrets that some module of ours names, alone or as a file."""
    names = {PREFIX + name.upper() for name in Settings.model_fields} | {f"{PREFIX}KAFKA"}
    source = Path(kafka.__file__).read_text(encoding="utf-8")
    names |= {f"{PREFIX}KAFKA_{name}" for name in re.findall(r'read\("(\w+)"\)', source)}
    for path in sorted((ROOT / "streams").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        own = re.search(rf'^_PREFIX = "({PREFIX}\w+)"', source, re.MULTILINE)
        said = [f"{own[1]}_{rest}" for rest in re.findall(r"\{_PREFIX\}_(\w+)", source)] if own else []
        for name in [*said, *re.findall(rf"\b{PREFIX}\w+", source)]:
            if SECRET.search(name) or name.endswith("_USER"):
                names |= {name, f"{name}_FILE"}
    return names


def agents_of(line: list[str]) -> list[str]:
    """Name the agents that a worker's command line runs; all if it names none."""
    context = commands()["worker"].make_context("worker", line[1:])
    return list(context.params["agents"] or (stage.name for stage in stages()))


def hardening_faults(name: str, one: Compose, found: Compose) -> Iterator[str]:
    for forbidden in ("privileged", "network_mode", "pid", "ipc", "userns_mode", "devices", "cap_add", "extends"):
        beside = forbidden == "network_mode" and name in BESIDE_CLICKHOUSE and one[forbidden] == "service:clickhouse"
        if forbidden in one and not beside:
            yield f"it has {forbidden}"
    if one.get("cap_drop") != ["ALL"]:
        yield "it keeps capabilities"
    if "no-new-privileges:true" not in one.get("security_opt", []):
        yield "it may gain privileges"
    if one.get("read_only") is not True:
        yield "its root file system can be written"
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(one.get("user", ""))):
        yield "its user is not a fixed number, or is root"
    if not one.get("mem_limit") or not one.get("pids_limit"):
        yield "its memory or its processes have no limit"
    if one.get("restart") != ("no" if name in SHORT_LIVED else "unless-stopped"):
        yield "it is not started again when it ends"
    if name not in SHORT_LIVED and not one.get("healthcheck", {}).get("test"):
        yield "nobody looks whether it is healthy"
    if not re.fullmatch(r"[\w./-]+:(\d+(\.\d+)+|\$\{\w+:-local\})", one.get("image", "")):
        yield "its image has no version"
    for port in one.get("ports", []):
        if not isinstance(port, str) or not port.startswith("127.0.0.1:"):
            yield f"port {port} is open to others"
    for volume in one.get("volumes", []):
        source = volume.partition(":")[0] if isinstance(volume, str) else volume.get("source", "")
        if source not in found["volumes"]:
            yield f"{source} is no volume of this file"


def environment_faults(one: Compose) -> Iterator[str]:
    mounted = {f"/run/secrets/{name}" for name in one.get("secrets", [])}
    for name, value in one.get("environment", {}).items():
        if SECRET.search(name.removesuffix("_FILE")) and not (name.endswith("_FILE") and value in mounted):
            yield f"{name} is no file of a secret that is given to it"
        if name.startswith(PREFIX) and name not in known_variables():
            yield f"{name} is no setting"


def our_faults(name: str, one: Compose) -> Iterator[str]:
    line = words(one["command"])
    yield from command_faults(line)
    if one.get("depends_on", {}).get("kafka") != {"condition": "service_healthy"}:
        yield "it does not wait for Kafka"
    if one.get("init") is not True:
        yield "its process is process 1, which its health check cannot end"
    shared = {f"{PREFIX}KAFKA": "kafka:9092", f"{PREFIX}DATA": "/data", f"{PREFIX}CACHE": "/cache"}
    if not shared.items() <= one.get("environment", {}).items() or "data:/data" not in one.get("volumes", []):
        yield "it does not share log and data with the others"
    if name not in SHORT_LIVED and not command_faults(line):
        instance = commands()[line[0]].make_context(line[0], line[1:]).params.get("instance")
        status = {"worker": f"worker-{instance}", "follow": "follow-*"}.get(line[0], line[0])
        if one.get("healthcheck", {}).get("test", [])[:5] != ["CMD", "python", "-m", "streams.healthy", status]:
            yield f"its health check does not look at {status}"


def faults(found: Compose) -> list[str]:
    """Say what breaks our rules, a sentence each."""
    said = []
    services = found["services"]
    ours = {name: one for name, one in services.items() if one.get("image", "").startswith(OURS)}
    for name, one in services.items():
        own = our_faults(name, one) if name in ours else ()
        said += [
            f"{name}: {fault}"
            for fault in itertools.chain(hardening_faults(name, one, found), environment_faults(one), own)
        ]
    lines = [words(one["command"]) for one in ours.values()]
    running = sorted(
        agent for line in lines if line[0] == "worker" and not command_faults(line) for agent in agents_of(line)
    )
    if running != sorted(stage.name for stage in stages()):
        said.append(f"the workers run {running}: not each agent exactly once")
    needed = {one.name for one in OUTSIDE} - {"ingest", "people", "operator"}  # those act by a command or a request
    if missing := needed - {line[0] for line in lines}:
        said.append(f"nobody runs {', '.join(sorted(missing))}")
    if services["kafka"]["image"] != f"apache/kafka:{KAFKA_VERSION}":
        said.append("its Kafka is not the one that the tests run on")
    if found["networks"]["log"] != {"internal": True}:
        said.append("the network `log` leads outside")
    for name, one in services.items():
        leaving = set(one.get("networks", [] if "network_mode" in one else ["default"])) - {"log"}
        allowed = {"server": {"published"}, "follow": {"outside"}}.get(name, set())
        if leaving - allowed:
            said.append(f"{name}: it can be reached, or reach others, through {sorted(leaving - allowed)}")
    for name, one in found["secrets"].items():
        if set(one) != {"file"}:
            said.append(f"secret {name} is not a file")
    return said


def test_the_file_keeps_our_rules(compose: Compose) -> None:
    assert faults(compose) == []


def change(*path: Any) -> Callable[[Compose], None]:
    """Make a mistake: set what lies at all but the last of `path` to the last."""

    def make(found: Compose) -> None:
        *way, last, value = path
        for step in way:
            found = found[step]
        if value is None:
            del found[last]
        else:
            found[last] = value

    return make


@pytest.mark.parametrize(
    ("mistake", "fault"),
    [
        (change("services", "worker", "privileged", True), "worker: it has privileged"),
        (change("services", "kafka", "network_mode", "host"), "kafka: it has network_mode"),
        (change("services", "sink", "network_mode", "host"), "sink: it has network_mode"),
        (change("services", "worker", "network_mode", "service:clickhouse"), "worker: it has network_mode"),
        (change("services", "kafka", "cap_drop", None), "kafka: it keeps capabilities"),
        (change("services", "sink", "cap_add", ["NET_ADMIN"]), "sink: it has cap_add"),
        (change("services", "clickhouse", "security_opt", []), "clickhouse: it may gain privileges"),
        (change("services", "trainer", "read_only", False), "trainer: its root file system can be written"),
        (change("services", "server", "user", "0:0"), "server: its user is not a fixed number"),
        (change("services", "server", "user", "xinfluencer"), "server: its user is not a fixed number"),
        (change("services", "embedder", "mem_limit", None), "embedder: its memory or its processes have no limit"),
        (change("services", "ticker", "restart", None), "ticker: it is not started again"),
        (change("services", "kafka", "healthcheck", None), "kafka: nobody looks whether it is healthy"),
        (change("services", "kafka", "image", "apache/kafka:latest"), "kafka: its image has no version"),
        (change("services", "kafka", "image", "apache/kafka:3.9.1"), "its Kafka is not the one"),
        (change("services", "server", "ports", ["8642:8642"]), "server: port 8642:8642 is open"),
        (change("services", "server", "ports", ["0.0.0.0:1:1"]), "server: port 0.0.0.0:1:1 is open"),
        (change("services", "server", "ports", [{"target": 8642, "published": 1}]), "server: port {"),
        (
            change("services", "worker", "volumes", ["data:/data", "/var/run/docker.sock:/s"]),
            "worker: /var/run/docker.sock is no volume",
        ),
        (
            change("services", "sink", "environment", "XINFLUENCER_CLICKHOUSE_PASSWORD", "x"),
            "sink: XINFLUENCER_CLICKHOUSE_PASSWORD is no file of a secret",
        ),
        (change("services", "clickhouse", "secrets", []), "clickhouse: CLICKHOUSE_PASSWORD_FILE is no file"),
        (
            change("services", "worker", "environment", "XINFLUENCER_PARTITION", 3),
            "worker: XINFLUENCER_PARTITION is no setting",
        ),
        (change("services", "worker", "environment", {}), "worker: it does not share log and data"),
        (change("services", "worker", "command", ["wroker"]), "worker: there is no command wroker"),
        (
            change("services", "graph", "command", ["worker", "graph", "--instanc", "g"]),
            "graph: worker graph --instanc",
        ),
        (change("services", "graph", "command", ["worker"]), "the workers run"),
        (change("services", "graph", "command", ["worker", "rewards"]), "the workers run"),
        (change("services", "graph", "healthcheck", "test", 4, "worker-0"), "graph: its health check does not look at"),
        (change("services", "worker", "depends_on", None), "worker: it does not wait for Kafka"),
        (change("services", "worker", "init", False), "worker: its process is process 1"),
        (change("services", "trainer", None), "nobody runs trainer"),
        (change("networks", "log", {}), "the network `log` leads outside"),
        (change("services", "trainer", "networks", ["log", "outside"]), "trainer: it can be reached"),
        (change("services", "kafka", "networks", None), "kafka: it can be reached"),
        (change("secrets", "x-token", {"environment": "X_TOKEN"}), "secret x-token is not a file"),
    ],
)
def test_each_rule_finds_its_mistake(compose: Compose, mistake: Callable[[Compose], None], fault: str) -> None:
    wrong = json.loads(json.dumps(compose))  # a copy in which services share nothing
    mistake(wrong)
    found = faults(wrong)
    assert any(one.startswith(fault) for one in found), found
    assert len([one for one in found if one not in faults(compose)]) <= 2


def test_files_that_are_mounted_are_there_and_can_be_read_by_other_users(compose: Compose) -> None:
    for one in compose["configs"].values():
        assert (ROOT / one["file"]).stat().st_mode & 0o004
    root = ET.parse(ROOT / compose["configs"]["clickhouse"]["file"]).getroot()
    assert root.tag == "clickhouse"
    assert root.findtext("logger/console") == "1"


# ---- Kafka ----------------------------------------------------------------------------------------------------------


def test_kafka_keeps_what_the_embedded_broker_keeps(compose: Compose) -> None:
    ours = dict(line.split("=", 1) for line in server_properties(1, 2, "data").splitlines() if "=" in line[1:])
    theirs = kafka_properties(compose["services"]["kafka"])
    for name in ("process.roles", "node.id", "auto.create.topics.enable", "log.retention.ms", "log.retention.bytes"):
        assert theirs[name] == ours[name]
    shared = {name: (theirs[name], ours[name]) for name in theirs.keys() & ours.keys()}
    machine = {"listeners", "advertised.listeners", "log.dirs"}
    assert {name for name, (one, other) in shared.items() if one != other} <= machine
    assert len(shared) >= 18


@pytest.mark.broker
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mistake", ["", "process.roles"])
def test_kafka_starts_with_the_settings_of_the_compose_file(
    compose: Compose, tmp_path: Path, cache: Path, mistake: str
) -> None:
    """The jars of the same version, formatted and started as the image does it; without its roles it must refuse."""
    service = compose["services"]["kafka"]
    prepared = embedded.prepare(tmp_path / "broker", cache)  # for its ports, its Java and its class path
    port, controller = json.loads((tmp_path / "broker" / "broker.json").read_text()).values()
    properties = kafka_properties(service)
    for name, value in properties.items():
        for theirs, here in (
            ("kafka:9092", f"127.0.0.1:{port}"),
            (":9092", f"127.0.0.1:{port}"),
            ("9093", str(controller)),
        ):
            value = (
                value.replace(f"BROKER://{theirs}", f"BROKER://{here}")
                if "9092" in theirs
                else value.replace(theirs, here)
            )
        properties[name] = value
    properties["log.dirs"] = str(tmp_path / "log")
    properties.pop(mistake, None)
    settings = tmp_path / "server.properties"
    settings.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    logging = compose["configs"]["kafka-logging"]["file"]
    java = [
        f"-Dlog4j2.configurationFile={ROOT / logging}" if word.startswith("-Dlog4j2") else word
        for word in prepared.command[:-2]
    ]
    java[1:1] = service["environment"]["KAFKA_GC_LOG_OPTS"].split()
    cluster = f"--cluster-id={service['environment']['CLUSTER_ID']}"
    formatted = subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", cluster, "-c", str(settings)],
        env=prepared.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (formatted.returncode == 0) == (not mistake), formatted.stderr
    if mistake:
        return
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen([*java, "kafka.Kafka", str(settings)], env=prepared.env, stdout=said, stderr=said)
    here = embedded.Prepared(
        prepared.command,
        prepared.env,
        f"127.0.0.1:{port}",
        service["environment"]["CLUSTER_ID"],
        tmp_path,
        tmp_path / "said",
    )
    try:
        embedded.wait_ready(here, process)
    finally:
        embedded.stop(process)
    assert "Kafka Server started" in (tmp_path / "said").read_text()  # what test_containers waits for
