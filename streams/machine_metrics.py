"""Machine metrics: what no process counts of itself: disks, restarts, and what others' status files say in numbers.

The supervisor writes run/machine.prom; where none runs, `xinfluencer metrics` looks by itself, and a cron job may write
it for Prometheus (`python -m streams.machine_metrics`). A status of a process that is no more says nothing about what
it does now, so that is left out; but what it owed when it ended, it owes, and unless it ended as asked, how far it was
and when it said so stay, for the alerts about it.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from streams import places
from streams.doctor_check import read
from streams.metrics import written
from streams.settings import Settings
from streams.worker_metrics import positions

FILE = "machine.prom"
GAUGES = {
    "embedder": (
        ("rows", "xinfluencer_vectors", "Vectors in the store."),
        ("unindexed", "xinfluencer_vectors_unindexed", "Vectors that no index holds yet."),
        ("tidying_s", "xinfluencer_vectors_tidying_seconds", "Time that the last upkeep of the store took."),
    ),
    "sink": (("rows_per_s", "xinfluencer_sink_rate_rows_per_second", "Rows a second, lately."),),
    "trainer": (
        ("step", "xinfluencer_training_step_number", "Step that the present training is at, 0 when there is none."),
        ("steps", "xinfluencer_training_last_step_number", "Last step of the present training."),
    ),
}
COUNTERS = {
    "embedder": (
        ("encoded", "xinfluencer_vectors_encoded", "Posts encoded since the process began."),
        ("unchanged", "xinfluencer_vectors_unchanged", "Posts that needed no new vector."),
    ),
    "sink": (
        ("applied", "xinfluencer_sink_rows", "Rows written since the process began."),
        ("too_late", "xinfluencer_sink_rows_dropped", "Rows of what was forgotten, which came too late."),
    ),
}
OWED = {"embedder": "receipts_owed", "sink": "to_erase"}
FRESH_S = 30.0  # a status so young is of a process that lives, though in another container its number means nothing
QUIET = ("trainer",)  # says nothing for half an hour when it evaluates, so its silence means nothing


class Machine:
    """One data folder, looked at from outside (prometheus_client's Collector)."""

    def __init__(
        self,
        settings: Settings,
        restarts: Mapping[str, int] | None = None,
        written_s: float | None = None,  # when a supervisor last wrote the file
        usage: Callable[[Path], Any] = shutil.disk_usage,
        lives: Callable[[Any], bool] = lambda pid: isinstance(pid, int) and bool(psutil.pid_exists(pid)),
    ) -> None:
        self.settings = settings
        self.restarts = restarts
        self.written_s = written_s
        self.usage = usage
        self.lives = lives

    def collect(self) -> Iterator[Metric]:
        """Give the figures."""
        free = GaugeMetricFamily("xinfluencer_disk_free_bytes", "Free where a folder lies.", labels=["folder"])
        size = GaugeMetricFamily("xinfluencer_disk_size_bytes", "Size of the disk of a folder.", labels=["folder"])
        for name, folder in (("data", self.settings.data), ("cache", self.settings.cache)):
            there = next(path for path in (folder, *folder.parents) if path.exists())
            found = self.usage(there)
            free.add_metric([name], found.free)
            size.add_metric([name], found.total)
        yield from (free, size)
        if self.restarts is not None:
            restarts = CounterMetricFamily(
                "xinfluencer_process_restarts", "How often a process ended and was started again.", labels=["process"]
            )
            for name, number in self.restarts.items():
                restarts.add_metric([name], number)
            yield restarts
        yield from self._statuses()

    def _statuses(self) -> Iterator[Metric]:
        run = places.run(self.settings)
        left = {name: one for name in GAUGES if (one := read(run / f"{name}.status.json"))}
        now_s = time.time()
        followed = {name: one for name, one in left.items() if not one.get("ended")}
        told = {
            name: one
            for name, one in followed.items()
            if self.lives(one.get("pid")) or now_s - one.get("time", 0) < FRESH_S
        }
        since = GaugeMetricFamily(
            "xinfluencer_erasure_owed_since_timestamp_seconds",
            "When the oldest request to forget came that has no receipt yet, Unix time; absent if none.",
            labels=["process"],
        )
        for name, status in left.items():
            if status.get("owed_since_s"):
                since.add_metric([name], status["owed_since_s"])
        owed = GaugeMetricFamily(
            "xinfluencer_erasures_owed", "Requests to forget without a receipt from a store yet.", labels=["process"]
        )
        skipped = CounterMetricFamily(
            "xinfluencer_records_skipped", "Records that a store could not use.", labels=["process", "reason"]
        )
        memory = GaugeMetricFamily(
            "xinfluencer_resident_memory_bytes", "Memory that a process holds.", labels=["process"]
        )
        found: list[Metric] = []
        seen: dict[str, list[Metric]] = {}
        if self.written_s is not None:
            family = written("supervisor", self.written_s)
            seen[family.name] = [family]
        for name, status in followed.items():
            said = () if name in QUIET else (written(name, status.get("time", 0)),)
            for family in (*said, *positions(name, status.get("partitions", {}))):
                seen.setdefault(family.name, []).append(family)
        for name, status in told.items():
            found += [GaugeMetricFamily(called, about, value=status.get(key, 0)) for key, called, about in GAUGES[name]]
            found += [
                CounterMetricFamily(called, about, value=status.get(key, 0))
                for key, called, about in COUNTERS.get(name, ())
            ]
            if name in OWED:
                owed.add_metric([name], status.get(OWED[name], 0))
            if "rss_bytes" in status:
                memory.add_metric([name], status["rss_bytes"])
            for reason, number in status.get("skipped", {}).items():
                skipped.add_metric([name, reason], number)
        for families in seen.values():
            for more in families[1:]:
                families[0].samples.extend(more.samples)
            found.append(families[0])
        yield from (*found, owed, since, skipped, memory)


def write(settings: Settings, restarts: Mapping[str, int]) -> None:
    """Write run/machine.prom; OSError if the disk is full."""
    run = places.run(settings)
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Machine(settings, restarts, time.time()))
    write_to_textfile(str(run / FILE), registry)


if __name__ == "__main__":
    write(Settings.from_env(), {})
