"""Fixtures: one embedded broker for the whole test session."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch beside a broker and workers, as the command line sets it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as budget

from streams import broker as embedded
from streams.kafka import KafkaSettings
from tests.proof import (  # noqa: F401 - hooks and fixtures of the fault catalogue
    mark,
    proof,
    proof_round,
    pytest_configure,
    pytest_generate_tests,
    pytest_runtest_makereport,
    pytest_runtest_setup,
)

# A stall of a busy machine is no finding; all else is as in the profile before it, and a test's own settings win.
budget.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
budget.load_profile("unhurried")

LONG = (
    "test_faults.py", "test_faults_broker.py", "test_sink.py", "test_access.py", "test_cluster.py", "test_trainer.py",
    "test_backup.py", "test_controls.py", "test_simulation.py", "test_embedder.py", "test_training.py", "test_demo.py",
    "test_ingest_faults.py", "test_mutants.py", "test_faults_data.py", "test_doctor_log.py", "test_assignment.py",
)  # fmt: skip
"""Files that take a minute or more: begun last, one of two processes would wait for them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what proves something, and begin with the long files."""
    mark(items)
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.broker)
    order = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


EAGER = "log.retention.check.interval.ms=500\nlog.initial.task.delay.ms=500\n"
"""Kafka looks for what is too old every five minutes: a test that forgot its records are would fail once in a while."""


class SessionBroker:
    """A real broker in a temporary folder; a test that kills it brings it back before it ends."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.cache = cache
        self.process: subprocess.Popen[bytes] | None = None
        self.restart()

    @property
    def bootstrap(self) -> str:
        return self.prepared.bootstrap

    @property
    def settings(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=self.bootstrap)

    def kill(self) -> None:
        """kill -9, and wait until the kernel has let go of its port."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            embedded.stop(self.process)

    def restart(self) -> None:
        """Bring the broker back on its folder, after a stop when it still runs."""
        self.stop()
        self.prepared = embedded.prepare(self.folder, self.cache, more=EAGER)
        self.process = embedded.start(self.prepared)
        embedded.wait_ready(self.prepared, self.process)


@pytest.fixture(scope="session")
def cache() -> Path:
    """The folder that keeps the downloaded jars between sessions."""
    return Path(os.environ.get("XINFLUENCER_CACHE") or Path.home() / ".cache" / "xinfluencer")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[SessionBroker]:
    running = SessionBroker(tmp_path_factory.mktemp("broker"), cache)
    yield running
    running.stop()
