"""Worker metrics: what one worker's shell does -> run/worker-INSTANCE.prom.

Counters count since the process began, as Prometheus expects; what each partition stands at is read when the file is
written. Every metric says which process it is of, since a partition moves from one to another.
"""

import logging
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from schemas.events import RecordRefused
from streams.fold import Fold, Sent, Stage
from streams.metrics import WRITE_S, written

if TYPE_CHECKING:
    from streams.shell import Owned

log = logging.getLogger("xinfluencer.worker")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)  # a chunk, a snapshot
REASONS_MAX = 64  # label values for reasons: they are words of this program, and this says so
ALWAYS_SAID = ("id-conflict", "step-failed")  # alerts wait for them: counted from zero, and told when last
ORDINARY = ("too-late", "subject-withdrawn")  # people judge what is closed or deleted: recorded, and nobody's fault
OTHER = "other"


class Before(NamedTuple):
    """What a fold had counted before a chunk, and when."""

    time_s: float
    ignored: int
    unknown: int


class WorkerMetrics:
    """One worker's numbers; `owned` is asked when they are read."""

    def __init__(self, stages: Sequence[Stage], owned: "Callable[[], Iterable[Owned]]") -> None:
        self.registry = here = CollectorRegistry(auto_describe=False)
        self.owned = owned
        self.stages = tuple(stages)
        self.places: dict[str, Sequence[int]] = {}  # topic/partition -> applied, handed out, position, end
        self.process = "worker"
        self._reasons: set[str] = set()
        self._written_s = 0.0
        self._path: Path | None = None
        by = ["process", "stage"]
        self.records = Counter("xinfluencer_records_applied", "Records that a stage has read.", by, registry=here)
        self.sent = Counter(
            "xinfluencer_events_sent", "Events that a stage has written, by their kind.", [*by, "event"], registry=here
        )
        self.ignored = Counter(
            "xinfluencer_duplicates_ignored", "Records that came again and changed nothing.", by, registry=here
        )
        self.unknown = Counter(
            "xinfluencer_unknown_fields", "Fields that this program does not know, left out.", by, registry=here
        )
        self.refused = Counter(
            "xinfluencer_records_refused", "Records that became dead letters, by reason.", [*by, "reason"],
            registry=here,
        )  # fmt: skip
        self.refused_at = Gauge(
            "xinfluencer_record_refused_timestamp_seconds",
            "When a record was last refused that should not have been written, Unix time; 0 if never.",
            [*by, "reason"],
            registry=here,
        )
        self.chunk = Histogram(
            "xinfluencer_chunk_seconds",
            "From taking a chunk of records to the acknowledgement of all that follows from it.",
            by,
            buckets=SECONDS,
            registry=here,
        )
        self.snapshot = Histogram(
            "xinfluencer_snapshot_write_seconds", "Time to write one snapshot.", by, buckets=SECONDS, registry=here
        )
        self.failed = Counter(
            "xinfluencer_snapshots_failed", "Snapshots that the disk did not take.", by, registry=here
        )
        self.stall = Gauge(
            "xinfluencer_event_loop_stall_seconds",
            "The longest that the event loop was late since the file was last written.",
            ["process"],
            registry=here,
        )
        here.register(self)

    def begin(self, process: str) -> None:
        """Name this process, and count from zero whatever it may come to say."""
        self.process = process
        for stage in self.stages:
            for one in (self.records, self.ignored, self.unknown, self.chunk, self.snapshot, self.failed):
                one.labels(process, stage.name)
            for topic in stage.writes:
                for kind in topic.events:
                    self.sent.labels(process, stage.name, kind.__name__)
            for reason in ALWAYS_SAID:
                self.refused.labels(process, stage.name, self._reason(reason))
                self.refused_at.labels(process, stage.name, reason)
            self.refused_at.labels(process, stage.name, OTHER)

    def before(self, fold: Fold) -> Before:
        """Remember what a fold had counted; its own counts live in snapshots, and go back with them."""
        return Before(time.monotonic(), fold.memory.ignored, fold.memory.unknown_fields)

    def applied(self, fold: Fold, before: Before, records: int, sent: Sequence[Sent]) -> None:
        """Count a chunk that was applied and sent."""
        labels, memory = (self.process, fold.stage.name), fold.memory
        self.records.labels(*labels).inc(records)
        self.ignored.labels(*labels).inc(max(0, memory.ignored - before.ignored))
        self.unknown.labels(*labels).inc(max(0, memory.unknown_fields - before.unknown))
        self.chunk.labels(*labels).observe(time.monotonic() - before.time_s)
        kinds = Tally(type(one.event) for one in sent)
        for kind, number in kinds.items():
            self.sent.labels(*labels, kind.__name__).inc(number)
        if RecordRefused in kinds:
            reasons = Tally(one.event.reason for one in sent if isinstance(one.event, RecordRefused))
            for reason, number in reasons.items():
                self.refused.labels(*labels, self._reason(reason)).inc(number)
                if reason not in ORDINARY:
                    told = reason if reason in ALWAYS_SAID else OTHER
                    self.refused_at.labels(*labels, told).set_to_current_time()

    def snapshotted(self, stage: str, seconds: float) -> None:
        """Count a snapshot that stands."""
        self.snapshot.labels(self.process, stage).observe(seconds)

    def _reason(self, reason: str) -> str:
        if len(self._reasons) < REASONS_MAX:
            self._reasons.add(reason)
        return reason if reason in self._reasons else OTHER

    def stalled(self, seconds: float) -> None:
        """Note by how much the event loop was late."""
        stall = self.stall.labels(self.process)
        stall.set(max(seconds, stall._value.get()))

    def write(self, path: Path) -> None:
        """Write the file (a .prom), at most once in WRITE_S; a full disk is the log's to say."""
        now_s = time.monotonic()
        if now_s - self._written_s < WRITE_S and self._written_s:
            return
        self._written_s, self._path = now_s, path
        try:
            write_to_textfile(str(path), self.registry)
        except OSError as error:
            log.warning("the metrics could not be written: %s", error)
        self.stall.labels(self.process).set(0.0)

    def close(self) -> None:
        """Take the file away: only one that died leaves it, and the alert that its figures are old."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def collect(self) -> Iterator[Metric]:
        """Give what partitions stand at (prometheus_client's Collector)."""
        yield written(self.process, time.time())
        yield from positions(self.process, self.places)
        by = ["process", "stage", "partition"]
        age = GaugeMetricFamily(
            "xinfluencer_snapshot_age_seconds", "How long the newest snapshot has lacked something applied.", labels=by
        )
        size = GaugeMetricFamily("xinfluencer_snapshot_size_bytes", "Size of the newest snapshot.", labels=by)
        claims = CounterMetricFamily(
            "xinfluencer_partition_claims",
            "How often a process took a partition over; each time the claim before it was lost.",
            labels=by,
        )
        now_s = time.monotonic()
        for one in self.owned():
            labels = [self.process, one.fold.stage.name, str(one.fold.partition)]
            age.add_metric(labels, now_s - one.since_s if one.dirty else 0.0)
            size.add_metric(labels, one.size)
            claims.add_metric(labels, one.claim)
        yield from (age, size, claims)


def positions(process: str, places: dict[str, Sequence[int]]) -> Iterator[Metric]:
    """Give where a reader of the log stands, from what its status says of each partition."""
    by = ["process", "topic", "partition"]
    lag = GaugeMetricFamily("xinfluencer_lag_records", "Records that wait; markers may count as one.", labels=by)
    at = GaugeMetricFamily("xinfluencer_next_offset", "The offset up to which records were applied.", labels=by)
    ends = GaugeMetricFamily("xinfluencer_end_offset", "The offset after the last record.", labels=by)
    for place, (applied, handed, position, end) in places.items():
        labels = [process, *place.split("/")]
        # Markers of transactions are never handed out: only the client's own position passes them.
        lag.add_metric(labels, max(0, end - applied) if applied < handed or position < end else 0)
        at.add_metric(labels, applied)
        ends.add_metric(labels, max(end, 0))
    yield from (lag, at, ends)
