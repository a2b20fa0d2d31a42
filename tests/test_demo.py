"""Demo: the whole loop in real processes, once in peace and once with every process killed; the result is the same.

On a seeded two-layer Llama: what it says is noise, and noise too must be the same noise.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from tests.tiny_llama import build

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = 6

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1200)]


def demo(data: Path, base: Path, killer: "Killer | None" = None) -> str:
    """Run the demo; give what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XINFLUENCER_KAFKA")}
    env |= {"XINFLUENCER_BASE": str(base), "XINFLUENCER_THREADS": "1", "XINFLUENCER_PORT": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "streams.cli", "--data", str(data), "demo", "--prompts", str(PROMPTS)]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if killer is not None:
        killer.start()
    try:
        said, _ = process.communicate(timeout=1000)
    finally:
        process.kill()
        if killer is not None:
            killer.over.set()
            killer.join()
    logs = "".join(f"\n== {log.name}\n{log.read_text()[-1500:]}" for log in (data / "demo" / "logs").glob("*.log"))
    assert process.returncode == 0, said + logs
    return said


class Killer(threading.Thread):
    """Kills each process of a deployment once, at random moments."""

    def __init__(self, data: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.path = data / "demo" / "run" / "processes.json"
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.killed: list[str] = []

    def run(self) -> None:
        names = ["worker", "broker", "server", "worker", "trainer", "models", "worker"]
        for name in names:
            if self.over.wait(self.random.uniform(2, 6)):
                return
            while not self.over.is_set():
                try:
                    os.kill(json.loads(self.path.read_text())[name], signal.SIGKILL)
                    self.killed.append(name)
                    break
                except (OSError, KeyError, ValueError):
                    time.sleep(0.2)


def result(said: str) -> dict[str, str]:
    """Read the root and the adapter's hash from what the demo printed."""
    found = {
        "root": re.search(r"dataset root ([0-9a-f]{64})", said),
        "adapter": re.search(r"adapter sha256 ([0-9a-f]{64})", said),
    }
    assert all(found.values()), said
    return {name: match.group(1) for name, match in found.items() if match}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "base"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def in_peace(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    data = tmp_path_factory.mktemp("peace")
    return data, demo(data, base)


def test_the_demo_shows_every_part_of_the_loop(in_peace: tuple[Path, str]) -> None:
    _, said = in_peace
    for part in (
        "posts in",
        "rewards:",
        "pairs",
        "batch 0 closed",
        "loss",
        "evaluation",
        "verdict:",
        "go on from here",
    ):
        assert part in said
    assert len(result(said)) == 2


def test_killing_every_process_gives_the_same_root_and_the_same_adapter(
    in_peace: tuple[Path, str], base: Path, tmp_path: Path
) -> None:
    killer = Killer(tmp_path, seed=3)
    said = demo(tmp_path, base, killer)
    assert len(set(killer.killed)) >= 4, f"only {killer.killed} were killed"
    assert result(said) == result(in_peace[1])


def test_what_the_demo_left_replays_to_the_same_bytes_and_verifies(in_peace: tuple[Path, str], tmp_path: Path) -> None:
    data, said = in_peace
    written = []
    for name in ("one", "two"):
        run(data, "replay", "--out", str(tmp_path / name))
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] != b""
    assert all(json.loads(line).keys() >= {"prompt", "chosen", "rejected"} for line in written[0].splitlines())
    report = run(data, "verify")
    assert "  0 faults" in report
    assert result(said)["root"]


def run(data: Path, *arguments: str) -> str:
    """Run a command on the demo's folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XINFLUENCER_KAFKA")}
    command = [sys.executable, "-m", "streams.cli", "--data", str(data / "demo"), *arguments]
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode in (0, 1), found.stderr
    return found.stdout


def test_another_client_reads_release_0_from_what_the_demo_left(in_peace: tuple[Path, str]) -> None:
    data, said = in_peace
    command = [sys.executable, "-m", "streams.cli", "--data", str(data / "demo"), "broker"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("XINFLUENCER_KAFKA")}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        bootstrap = re.search(r"Kafka at (\S+);", line)
        assert bootstrap, line
        consumer = Consumer(
            {"bootstrap.servers": bootstrap.group(1), "group.id": "someone-else", "auto.offset.reset": "earliest"}
        )
        consumer.subscribe(["model-releases"])
        releases = []
        deadline = time.monotonic() + 30
        wanted = 2 if "verdict: released" in said else 1
        while len(releases) < wanted and time.monotonic() < deadline:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                assert message.key() == b"default"
                assert ("ce_specversion", b"1.0") in (message.headers() or [])
                releases.append(json.loads(message.value())["release"])
        consumer.close()
    finally:
        process.terminate()
        process.wait(20)
    assert releases == list(range(wanted))
