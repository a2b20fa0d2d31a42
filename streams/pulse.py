"""Pulse: what a live stream's pump counts -> a status file for people and one for Prometheus.

`run/follow-STREAM.status.json` and `run/follow-STREAM.prom` (for a node exporter's textfile collector), written
through a temporary name. Times are milliseconds of the wall clock unless a name says seconds.
"""

import atexit
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from streams.letters import UNLETTERED
from streams.metrics import Grown, written

STATUS_S = 1.0
RATE_SAMPLES_MAX = 30  # one a STATUS_S: the rate is over the last half minute


@dataclass(eq=False)
class Pulse:
    """One stream's figures since its process began."""

    stream: str
    folder: Path
    connected: bool = False
    parked: bool = False  # refused: tried again later, and a person must act
    messages: int = 0  # all that came, keep-alives left out
    taken: int = 0  # acknowledged by the log
    duplicates: int = 0
    connections: int = 0
    gaps: int = 0
    waiting: int = 0  # received, not yet acknowledged
    lag_ms: int | None = None  # of the newest message, when it was acknowledged
    newest_ms: int | None = None  # when the source says it was made
    heard_s: float = field(default_factory=time.monotonic)
    cursor: str | None = None
    last_error: str = ""
    refused: dict[str, int] = field(default_factory=dict)
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_SAMPLES_MAX))
    _written_s: float = 0.0
    _gap: Grown = field(default_factory=Grown)
    _leaves: bool = False

    @property
    def reconnects(self) -> int:
        """Connections after the first."""
        return max(0, self.connections - 1)

    def rate(self) -> float:
        """Messages acknowledged a second, over the last half minute."""
        if len(self._samples) < 2:
            return 0.0
        (then_s, then), (now_s, now) = self._samples[0], self._samples[-1]
        return (now - then) / max(now_s - then_s, 1e-3)

    def status(self, now_ms: int) -> dict[str, Any]:
        """Give what stands in the file."""
        return {
            "time": now_ms / 1000,
            "pid": os.getpid(),
            "stream": self.stream,
            "connected": self.connected,
            "parked": self.parked,
            "messages": self.messages,
            "taken": self.taken,
            "per_s": round(self.rate(), 2),
            "waiting": self.waiting,
            "lag_ms": self.lag_ms,
            "newest_ms": self.newest_ms,
            "silent_s": round(time.monotonic() - self.heard_s, 1),  # a keep-alive is a sound too
            "reconnects": self.reconnects,
            "duplicates": self.duplicates,
            "gaps": self.gaps,
            "refused": self.refused,
            "cursor": self.cursor,
            "last_error": self.last_error,
        }

    def _sum(self, unlettered: bool) -> int:
        return sum(number for reason, number in self.refused.items() if (reason in UNLETTERED) == unlettered)

    def write(self, now_ms: int, due: bool = False) -> None:
        """Write both files, at most once in STATUS_S unless it is `due`; OSError if the disk is full."""
        now_s = time.monotonic()
        if not due and now_s - self._written_s < STATUS_S:
            return
        self._written_s = now_s
        self._samples.append((now_s, self.taken))
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"follow-{self.stream}.status.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.status(now_ms)))
        temporary.replace(path)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        path = self.folder / f"follow-{self.stream}.prom"
        write_to_textfile(str(path), registry)
        if not self._leaves:  # one that dies leaves the file, and the alert that its figures are old
            self._leaves = True
            atexit.register(path.unlink, missing_ok=True)

    def collect(self) -> Iterator[Metric]:
        """Give the figures in Prometheus' names and units (prometheus_client's Collector)."""
        yield written(f"follow-{self.stream}", time.time())
        for name, about, value in (
            ("messages", "Messages that came from a live stream, keep-alives left out.", self.messages),
            ("taken", "Messages of a live stream that the log acknowledged.", self.taken),
            ("duplicates", "Messages that came again within the window.", self.duplicates),
            ("reconnects", "Connections to a live stream after the first.", self.reconnects),
            ("gaps", "Times that messages of a live stream may be missing.", self.gaps),
            ("refused", "Messages of a live stream that became dead letters.", self._sum(False)),
            (
                "not_permitted",
                "Parts of messages that policy or author do not let in; nothing is kept.",
                self._sum(True),
            ),
        ):
            counter = CounterMetricFamily(f"xinfluencer_source_{name}", about, labels=["stream"])
            counter.add_metric([self.stream], value)
            yield counter
        for name, about, figure in (
            ("connected", "1 while a live stream is connected.", float(self.connected)),
            ("parked", "1 while a live stream is refused and waits for a person.", float(self.parked)),
            ("waiting_messages", "Received and not yet acknowledged by the log.", float(self.waiting)),
            ("silent_seconds", "Since anything came, a keep-alive too.", time.monotonic() - self.heard_s),
            ("lag_seconds", "Age of the newest message when it was acknowledged.", (self.lag_ms or 0) / 1000),
            (
                "gap_timestamp_seconds",
                "When messages were last found missing, Unix time; 0 if never.",
                self._gap.look(self.gaps, time.time()),
            ),
        ):
            gauge = GaugeMetricFamily(f"xinfluencer_source_{name}", about, labels=["stream"])
            gauge.add_metric([self.stream], figure)
            yield gauge
