"""Alerting: the table of rules -> Prometheus' file, the operator's page, and what fires now without Prometheus.

`python -m streams.alerting` writes deploy/prometheus/alerts.yml and docs/OPERATING.md; a test holds them to the table.
`xinfluencer alerts` samples the metrics of all processes, keeps a day and a half of them in run/alerts.json, and says
what fires. The supervisor samples each minute; where none runs, cron may run the command.
"""

import asyncio
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from streams import machine_metrics, metrics, places
from streams.alert_rules import DRIFT_NOW_S, DRIFT_PAST_S, RULES, Rule
from streams.readings import History, Key, Reading, holds, promql, span
from streams.runbook import page
from streams.settings import Settings

log = logging.getLogger("xinfluencer.alerting")

ROOT = Path(__file__).parent.parent
ALERTS, PAGE = Path("deploy/prometheus/alerts.yml"), Path("docs/OPERATING.md")
FILE = "alerts.json"
MEASURE_S = 10.0  # between two writings of run/machine.prom
SAMPLE_S = 60.0
DENSE_S, SPARSE_S = 70 * 60.0, 15 * 60.0  # of the last 70 minutes every sample is kept, of older ones one in 15 minutes
KEPT_S = DRIFT_NOW_S + DRIFT_PAST_S + 2 * SPARSE_S


@dataclass(frozen=True)
class Firing:
    """A rule that fires: for which labels, what was read, since when (Unix seconds) it is true."""

    rule: Rule
    labels: tuple[tuple[str, str], ...]
    value: float
    since_s: float


@dataclass
class Watch:
    """What was seen, and which conditions are true since when."""

    history: History = field(default_factory=History)
    since: dict[str, float] = field(default_factory=dict)

    def look(self, row: Mapping[Key, float], now_s: float, rules: Sequence[Rule] = RULES) -> list[Firing]:
        """Take a sample and give what fires, the worst first."""
        by_name: dict[str, list[Reading]] = {}
        for one in (one for rule in rules for all_of in rule.any_of for one in all_of):
            for reading in one.readings():
                by_name.setdefault(reading.metric, []).append(reading)
        kept = {key: value for key, value in row.items() if any(one.wants(key) for one in by_name.get(key[0], ()))}
        self.history.add(now_s, kept)
        self._thin(now_s)
        firing: list[Firing] = []
        true: dict[str, float] = {}
        for rule in rules:
            by = next(iter(rule.any_of[0][0].readings())).by
            for values, value in holds(rule.any_of, self.history, now_s).items():
                labels = tuple(zip(by, values, strict=True))
                name = json.dumps([rule.name, labels])
                since_s = true[name] = min(self.since.get(name, now_s), now_s)
                if now_s - since_s >= rule.for_s:
                    firing.append(Firing(rule, labels, value, since_s))
        self.since = true
        return sorted(firing, key=lambda one: ("critical", "warning", "info").index(one.rule.severity))

    def _thin(self, now_s: float) -> None:
        kept: list[tuple[float, Mapping[Key, float]]] = []
        for time_s, row in zip(self.history.times, self.history.rows, strict=True):
            age_s = now_s - time_s
            if age_s > KEPT_S or (age_s > DENSE_S and kept and time_s - kept[-1][0] < SPARSE_S):
                continue
            kept.append((time_s, row))
        self.history = History([time_s for time_s, _ in kept], [row for _, row in kept])

    @classmethod
    def load(cls, path: Path) -> "Watch":
        """Read what `save` wrote; a file that is missing or damaged is an empty past."""
        try:
            kept = json.loads(path.read_text())
            keys = [(name, tuple(sorted(labels.items()))) for name, labels in kept["series"]]
            rows: list[Mapping[Key, float]] = [
                {key: value for key, value in zip(keys, row, strict=True) if value is not None} for row in kept["rows"]
            ]
            return cls(History([float(one) for one in kept["times"]], rows), dict(kept["since"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def save(self, path: Path) -> None:
        """Write it as columns, through a temporary name."""
        keys = sorted({key for row in self.history.rows for key in row})
        kept = {
            "series": [[name, dict(labels)] for name, labels in keys],
            "times": [round(one, 1) for one in self.history.times],
            "rows": [[row.get(key) for key in keys] for row in self.history.rows],
            "since": self.since,
        }
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(kept, separators=(",", ":")))
        temporary.replace(path)


def look(settings: Settings, now_s: float | None = None) -> list[Firing]:
    """Sample the metrics of this data folder as they are now, and give what fires. OSError if the disk is full."""
    path = places.run(settings) / FILE
    watch = Watch.load(path)
    row = {key: value for key, value in metrics.read(settings).values().items() if math.isfinite(value)}
    firing = watch.look(row, time.time() if now_s is None else now_s)
    watch.save(path)
    return firing


async def measure_for_ever(settings: Settings, restarts: Callable[[], Mapping[str, int]]) -> None:
    """Write what no process says of itself, and each minute see which alerts fire, until cancelled."""
    firing: set[str] = set()
    looked_s = -SAMPLE_S
    try:
        while True:
            try:
                await asyncio.to_thread(machine_metrics.write, settings, restarts())
                if time.monotonic() - looked_s >= SAMPLE_S:
                    looked_s = time.monotonic()
                    found = {one.rule.name for one in await asyncio.to_thread(look, settings)}
                    for name in sorted(found - firing):
                        log.warning("alert %s: `xinfluencer alerts` says what to do", name)
                    firing = found
            except Exception as error:  # noqa: BLE001 - who measures must outlive what is measured
                log.warning("no measures: %r", error)
            await asyncio.sleep(MEASURE_S)
    finally:
        (places.run(settings) / machine_metrics.FILE).unlink(missing_ok=True)  # left only by one that died


def run_alerts(settings: Settings) -> None:
    """Print what fires and what to do; exit code 1 if anything does."""
    firing = look(settings)
    for one in firing:
        where = "".join(f" {name}={value}" for name, value in one.labels)
        print(f"{one.rule.severity.upper()} {one.rule.name}{where}: {one.rule.means}")
        since = datetime.fromtimestamp(one.since_s, UTC).isoformat(timespec="minutes")
        print(f"  since {since}\n  look: {one.rule.look}\n  do:   {one.rule.do}")
    if firing:
        sys.exit(1)
    watch = Watch.load(places.run(settings) / FILE)
    past = (watch.history.times[-1] - watch.history.times[0]) / 3600
    print(f"nothing fires ({len(RULES)} rules, {len(watch.since)} pending, {past:.1f} h of samples)")


# ---- what is rendered -----------------------------------------------------------------------------------------------


def annotations(rule: Rule) -> dict[str, str]:
    """Give what Prometheus hands on with an alert."""
    return {"summary": rule.means, "description": rule.do, "runbook": f"docs/OPERATING.md#{rule.name.lower()}"}


def prometheus() -> str:
    """Render the rules for Prometheus (promtool check rules): YAML, scalars quoted as JSON, which YAML contains."""
    lines = [
        "# Written by `python -m streams.alerting` from streams/alert_rules.py.",
        "groups:",
        "  - name: xinfluencer",
    ]
    lines += ["    rules:"]
    for rule in RULES:
        lines += [
            f"      - alert: {rule.name}",
            f"        expr: {json.dumps(promql(rule.any_of))}",
            *([f"        for: {span(rule.for_s)}"] if rule.for_s else []),
            "        labels:",
            f"          severity: {rule.severity}",
            "        annotations:",
            *[f"          {name}: {json.dumps(text)}" for name, text in annotations(rule).items()],
        ]
    return "\n".join(lines) + "\n"


def main(root: Path = ROOT) -> None:
    """Write both files."""
    for path, text in ((ALERTS, prometheus()), (PAGE, page())):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


if __name__ == "__main__":
    main()
