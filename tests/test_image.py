"""Image: the Dockerfile and the workflow held to rules, each shown a text that breaks it; nothing is built here."""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import yaml

from tests.deployed import ROOT, Line, dockerfile, read_yaml

SECRET = re.compile(r"PASSWORD|TOKEN(?!IZER)|SECRET|CREDENTIAL|API_?KEY", re.IGNORECASE)
PINNED = re.compile(r"[\w./-]+:\d+(\.\d+)+[\w.-]*(@sha256:[0-9a-f]{64})?( AS \w+)?")


@pytest.fixture(scope="module")
def image() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def removed(lines: list[Line]) -> list[str]:
    """Name the packages that the build takes out again."""
    return next(
        line.words.partition("uv pip uninstall ")[2].split() for line in lines if "uv pip uninstall" in line.words
    )


def faults(text: str) -> Iterator[str]:
    """Say what breaks our rules in a Dockerfile."""
    lines = dockerfile(text)
    stages = [number for number, line in enumerate(lines) if line.instruction == "FROM"]
    last = lines[stages[-1] :]
    for line in lines:
        if line.instruction == "FROM" and not PINNED.fullmatch(line.words):
            yield f"{line.words} is no pinned image"
        if line.instruction == "ADD":
            yield "ADD fetches and unpacks: COPY says what it does"
        if line.instruction in ("ENV", "ARG", "LABEL") and SECRET.search(line.words):
            yield f"{line.instruction} would keep a secret in the image"
        if line.instruction == "RUN" and re.search(r"\b(curl|wget|git clone|chmod 777|sudo)\b", line.words):
            yield "it fetches what no hash names, or opens what is closed"
        for command in re.split(r"&&|;", line.words) if line.instruction == "RUN" else ():
            local = re.search(r"pip install --no-deps --no-build-isolation \.", command)
            if "pip install" in command and "--require-hashes" not in command and not local:
                yield f"{command.strip()} installs without hashes"
        if line.instruction == "COPY" and not line.words.startswith("--from=build "):
            for source in line.words.split()[:-1]:
                if source in (".", "./") or not (ROOT / source).exists():
                    yield f"COPY {source} takes everything, or nothing"
    users = [line.words for line in last if line.instruction == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1]):
        yield "its user is not a fixed number, or is root"
    if len(stages) < 2 or any(line.instruction == "COPY" and "--from=build" not in line.words for line in last):
        yield "what builds it is in it"
    if any(re.search(r"\b(apt-get|apk|gcc|g\+\+|make)\b", line.words) for line in last if line.instruction == "RUN"):
        yield "what builds it is in it"
    if not any(line.instruction == "ENTRYPOINT" and line.words == '["xinfluencer"]' for line in last):
        yield "it does not start the command line"


def test_the_dockerfile_keeps_our_rules(image: str) -> None:
    assert list(faults(image)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.11.16-trixie", "python:latest", "python:latest AS build is no pinned image"),
        ("python:3.11.16-slim-trixie", "python:3", "python:3 is no pinned image"),
        ("COPY native native", "ADD https://example.org/native.tar native", "ADD fetches"),
        ("COPY native native", "COPY . .", "COPY . takes everything"),
        ("COPY native native", "COPY natvie native", "COPY natvie takes everything, or nothing"),
        ("STOPSIGNAL SIGTERM", "ENV XINFLUENCER_X_TOKEN=x", "ENV would keep a secret"),
        ("STOPSIGNAL SIGTERM", "ARG PASSWORD", "ARG would keep a secret"),
        ("USER 10001:10001", "", "its user is not a fixed number"),
        ("USER 10001:10001", "USER root", "its user is not a fixed number"),
        ("USER 10001:10001", "USER 10001:10001\nUSER 0:0", "its user is not a fixed number"),
        ("--require-hashes -r constraints.txt", "-r constraints.txt", "uv pip install -r constraints.txt installs"),
        ("groupadd", "curl -s https://example.org | sh && groupadd", "it fetches what no hash names"),
        ("groupadd", "apt-get update && groupadd", "what builds it is in it"),
        ("COPY --from=build /opt", "COPY native /n\nCOPY --from=build /opt", "what builds it is in it"),
        ('ENTRYPOINT ["xinfluencer"]', "ENTRYPOINT xinfluencer", "it does not start the command line"),
    ],
)
def test_each_rule_finds_a_dockerfile_that_breaks_it(image: str, old: str, new: str, fault: str) -> None:
    assert old in image
    found = list(faults(image.replace(old, new)))
    assert any(one.startswith(fault) for one in found), found


def test_the_image_holds_every_package_of_the_wheel_and_a_python_that_it_allows(
    image: str, project: dict[str, Any]
) -> None:
    lines = dockerfile(image)
    copied = {source for line in lines if line.instruction == "COPY" for source in line.words.split()[:-1]}
    assert set(project["tool"]["scikit-build"]["wheel"]["packages"]) <= copied
    assert {
        *project["project"]["license-files"],
        "pyproject.toml",
        "constraints.txt",
        "constraints-nodeps.txt",
    } <= copied
    versions = {line.words.split("-")[0] for line in lines if line.instruction == "FROM"}
    debians = {line.words.split(" ")[0].rpartition("-")[2] for line in lines if line.instruction == "FROM"}
    assert len(versions) == len(debians) == 1, "what is built in one stage is run in the other"
    assert re.fullmatch(r"python:3\.(11|12|13)\.\d+", versions.pop())


def test_only_what_is_copied_is_sent_to_the_builder(image: str) -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    lines = dockerfile(image)
    copied = {
        s for one in lines if one.instruction == "COPY" and "--from" not in one.words for s in one.words.split()[:-1]
    }
    assert allowed == copied


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def needed_by(names: set[str]) -> dict[str, list[str]]:
    """Say for packages which other installed ones need them when they run."""
    found: dict[str, list[str]] = {}
    for one in metadata.distributions():
        user = one.metadata["Name"].lower().replace("_", "-")
        for requirement in one.requires or ():
            if "extra ==" not in requirement and name_of(requirement) in names and user not in names:
                found.setdefault(name_of(requirement), []).append(user)
    return found


def test_nothing_that_is_needed_is_taken_out_of_the_image(image: str, project: dict[str, Any]) -> None:
    groups = project["dependency-groups"]
    tools = {name_of(one) for one in [*groups["dev"], *groups["build"]] if isinstance(one, str)}
    out = removed(dockerfile(image))
    assert set(out) - {"pip"} <= tools
    assert not set(out) & {name_of(one) for one in project["project"]["dependencies"]}
    assert needed_by(set(out)) == {}
    assert needed_by({"numpy"})["numpy"], "the question finds nothing at all"


# ---- the workflow ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workflow() -> str:
    return (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def workflow_faults(text: str) -> Iterator[str]:
    """Say what breaks our rules in the workflow."""
    found = yaml.safe_load(text)
    begins = found[True]  # YAML 1.1 reads the key `on` as true
    if found.get("permissions") != {"contents": "read"} or any("permissions" in job for job in found["jobs"].values()):
        yield "it may do more than read"
    if set(begins) - {"push", "pull_request"}:
        yield "it is begun by more than a push and a pull request"
    if "secrets." in text or "inherit" in text:
        yield "it is given secrets"
    for name, job in found["jobs"].items():
        if not re.fullmatch(r"[a-z]+-\d\d\.\d\d", job["runs-on"]):
            yield f"{name} runs on whatever is newest"
        if "timeout-minutes" not in job:
            yield f"{name} may run for six hours"
        for step in job["steps"]:
            used = step.get("uses", "")
            if used and not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", used):
                yield f"{used} is not pinned, or not GitHub's own"
            if used.startswith("actions/checkout@") and step.get("with", {}).get("persist-credentials") is not False:
                yield f"{name} leaves its token in the checkout"
            if used.startswith("actions/cache@") and step["with"]["path"] != "~/.cache/xinfluencer/kafka-4.1.0":
                yield "it keeps more than Kafka's jars"
            if "${{" in step.get("run", ""):
                yield f"{name} puts what others wrote into a shell"


def test_the_workflow_keeps_our_rules(workflow: str) -> None:
    assert list(workflow_faults(workflow)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("contents: read", "contents: write", "it may do more than read"),
        ("permissions:\n  contents: read\n", "", "it may do more than read"),
        (
            "    timeout-minutes: 60\n",
            "    permissions: write-all\n    timeout-minutes: 60\n",
            "it may do more than read",
        ),
        ("  pull_request:", "  pull_request_target:", "it is begun by more"),
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7", "actions/checkout@v7 is not pinned"),
        ("actions/cache@", "someone/cache@", "someone/cache@"),
        ("persist-credentials: false", "fetch-depth: 0", "test leaves its token"),
        ("ubuntu-24.04", "ubuntu-latest", "test runs on whatever is newest"),
        ("    timeout-minutes: 90\n", "", "containers may run for six hours"),
        ("~/.cache/xinfluencer/kafka-4.1.0", "~", "it keeps more than Kafka's jars"),
        (
            "make venv PYTHON=python",
            "echo ${{ github.event.head_commit.message }}",
            "containers puts what others wrote",
        ),
        ('"not docker"', "${{ secrets.X }}", "it is given secrets"),
    ],
)
def test_each_rule_finds_a_workflow_that_breaks_it(workflow: str, old: str, new: str, fault: str) -> None:
    assert old in workflow
    found = list(workflow_faults(workflow.replace(old, new)))
    assert any(one.startswith(fault) for one in found), found


def test_the_workflow_runs_every_test_on_every_python_and_the_containers_once(project: dict[str, Any]) -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["project"]["requires-python"]).groups()  # type: ignore[union-attr]
    allowed = [f"3.{minor}" for minor in range(int(low), int(high))]
    assert jobs["test"]["strategy"]["matrix"]["python"] == allowed
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs["test"] == ["make test PYTHON=python"]
    assert jobs["test"]["steps"][-1]["env"] == {"PYTEST_ADDOPTS": '-m "not docker"'}
    assert runs["containers"][-1].endswith("pytest -m docker -rs")
    assert jobs["containers"]["steps"][-1]["env"] == {"XINFLUENCER_DOCKER_REQUIRED": "1"}
    markers = project["tool"]["pytest"]["ini_options"]["markers"]
    assert any(marker.startswith("docker:") for marker in markers)
