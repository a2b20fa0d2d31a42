"""Alert cases: a healthy life in figures, and for each rule the life that must fire it -> our tests, and promtool's.

`python -m tests.alert_cases` writes deploy/prometheus/alerts_test.yml, with which `promtool test rules` asks
Prometheus' own evaluator what our tests ask ours. A curve says for each minute what all files say then.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from streams import alerting
from streams.alert_rules import RULES, Rule
from streams.readings import Key, Reading

ROOT = Path(alerting.ROOT)
FILE = Path("deploy/prometheus/alerts_test.yml")
MINUTE = 60
T0 = 1_700_000_000.0
Row = dict[Key, float]
Curve = Callable[[int], Row]  # minute -> what the files say then


def key(name: str, **labels: str) -> Key:
    return name, tuple(sorted(labels.items()))


def sent(event: str, stage: str = "metadata") -> Key:
    return key("xinfluencer_events_sent_total", process="worker-0", stage=stage, event=event)


LAG = key("xinfluencer_lag_records", process="worker-0", topic="signals", partition="1")
NEXT = key("xinfluencer_next_offset", process="worker-0", topic="signals", partition="1")
SINK_LAG = key("xinfluencer_lag_records", process="sink", topic="tweets", partition="0")
SINK_NEXT = key("xinfluencer_next_offset", process="sink", topic="tweets", partition="0")
LETTERS = key("xinfluencer_source_refused_total", stream="bluesky")
RAISED = key("xinfluencer_end_offset", process="sink", topic="alerts", partition="0")
AGE = key("xinfluencer_snapshot_age_seconds", process="worker-0", stage="rewards", partition="2")
GAP_AT = key("xinfluencer_source_gap_timestamp_seconds", stream="bluesky")
SILENT = key("xinfluencer_source_silent_seconds", stream="bluesky")
PARKED = key("xinfluencer_source_parked", stream="bluesky")
FREE = key("xinfluencer_disk_free_bytes", folder="data")
OWED_SINCE = key("xinfluencer_erasure_owed_since_timestamp_seconds", process="embedder")
RESTARTS = key("xinfluencer_process_restarts_total", process="worker")
REFUSED_AT = key("xinfluencer_adapter_refused_timestamp_seconds")
UNRECORDED = key("xinfluencer_records_failed_total")
POSTS = sent("PostDescribed")
WRITTEN = key("xinfluencer_written_timestamp_seconds", process="worker-0")


def reason(name: str) -> Key:
    return key("xinfluencer_record_refused_timestamp_seconds", process="worker-0", stage="intake", reason=name)


def healthy(minute: int) -> Row:
    """A deployment that works: 60 to 100 posts a minute, busier by day; a little lag that moves; a few old letters."""
    day = sum(60 + 40 * (m // 720 % 2) for m in range(0, minute, 60)) * 60
    return {
        LAG: float(minute * 7 % 900),
        NEXT: minute * 400.0,
        SINK_LAG: float(minute * 13 % 3_000),
        SINK_NEXT: minute * 900.0,
        LETTERS: 4.0,
        RAISED: 2.0,
        AGE: float(minute % 3),
        GAP_AT: T0 + 30 * MINUTE if minute > 90 else 0.0,  # one, seen long ago
        SILENT: float(minute % 20),
        PARKED: 0.0,
        FREE: 60e9 - minute * 1e5,
        OWED_SINCE: T0 + (minute - minute % 50) * MINUTE,  # somebody deletes every minute: never is nothing owed
        RESTARTS: float(minute > 300),
        REFUSED_AT: 0.0,
        UNRECORDED: 0.0,
        WRITTEN: T0 + minute * MINUTE - 4,
        sent("PostDescribed"): float(day),
        sent("RewardClosed", "rewards"): day * 1.4,
        sent("RecordRefused"): 7.0,
        sent("PairFormed", "pairing"): day * 0.05,
        sent("BatchClosed", "batching"): day * 0.05 // 64,
        sent("ModelRefused", "releases"): 1.0,
        reason("id-conflict"): 0.0,
        reason("step-failed"): 0.0,
        reason("other"): 0.0,
    }


def at(minute: int) -> float:
    return T0 + minute * MINUTE


def after(minute: int, change: Callable[[int, Row], Mapping[Key, float]]) -> Curve:
    """Healthy until a minute, then with changes that get (minutes since, the healthy row)."""
    return lambda now: {**healthy(now), **(change(now - minute, healthy(now)) if now >= minute else {})}


BREAK = 33 * 60  # minutes of health before it: a whole past for the drifts


def frozen(*keys: Key) -> Curve:
    return after(BREAK, lambda _, row: {one: healthy(BREAK)[one] + (one[0].endswith("lag_records")) for one in keys})


def slowed(times: float, *events: Key) -> Curve:
    """From the break on, so many more or fewer for each of what they are made of."""
    was = healthy(BREAK)
    return after(BREAK, lambda _, row: {one: was[one] + (row[one] - was[one]) * times for one in events})


BROKEN: dict[str, tuple[Curve, int, int]] = {  # rule -> the series, minutes until it must fire, minutes it may not yet
    "XinfluencerStuck": (frozen(LAG, NEXT), 20, 5),
    "XinfluencerBehind": (after(BREAK, lambda m, row: {SINK_LAG: 11_000.0 + m * 50}), 17, 10),
    "XinfluencerDeadLetters": (after(BREAK, lambda m, row: {reason("other"): at(BREAK)}), 2, 0),
    "XinfluencerIdConflict": (after(BREAK, lambda m, row: {reason("id-conflict"): at(BREAK)}), 2, 0),
    "XinfluencerStepFailed": (after(BREAK, lambda m, row: {reason("step-failed"): at(BREAK)}), 2, 0),
    "XinfluencerRewardsDrift": (slowed(0.05, sent("RewardClosed", "rewards")), 8 * 60, 60),
    "XinfluencerRefusalsDrift": (
        after(BREAK, lambda m, row: {sent("RecordRefused"): 7 + 0.2 * (row[POSTS] - healthy(BREAK)[POSTS])}),
        8 * 60,
        5,
    ),
    "XinfluencerPairsDrift": (slowed(6.0, sent("PairFormed", "pairing")), 8 * 60, 30),
    "XinfluencerDiskFilling": (after(BREAK, lambda m, row: {FREE: 4.9e9}), 7, 3),
    "XinfluencerDiskFull": (after(BREAK, lambda m, row: {FREE: 0.9e9}), 3, 0),
    "XinfluencerStaleSnapshot": (after(BREAK, lambda m, row: {AGE: m * 60.0}), 10, 5),
    "XinfluencerReleaseRefused": (after(BREAK, lambda m, row: {sent("ModelRefused", "releases"): 2.0}), 2, 0),
    "XinfluencerSourceGap": (after(BREAK, lambda m, row: {GAP_AT: at(BREAK)}), 2, 0),
    "XinfluencerSourceSilent": (after(BREAK, lambda m, row: {SILENT: m * 60.0}), 6, 2),
    "XinfluencerSourceParked": (after(BREAK, lambda m, row: {PARKED: 1.0}), 3, 0),
    "XinfluencerAdapterRefused": (after(BREAK, lambda m, row: {REFUSED_AT: at(BREAK)}), 2, 0),
    "XinfluencerAnswersUnrecorded": (after(BREAK, lambda m, row: {UNRECORDED: 1.0 + m}), 4, 1),
    "XinfluencerErasureOverdue": (after(BREAK, lambda m, row: {OWED_SINCE: at(BREAK)}), 24 * 60 + 15, 24 * 60),
    "XinfluencerRestarting": (after(BREAK, lambda m, row: {RESTARTS: 1.0 + m}), 5, 1),
    "XinfluencerMetricsStale": (after(BREAK, lambda m, row: {WRITTEN: T0 + BREAK * MINUTE}), 5, 1),
    "XinfluencerAlertRaised": (after(BREAK, lambda m, row: {RAISED: 3.0}), 2, 0),
}  # fmt: skip


NEAR: dict[str, Curve] = {  # rule -> what comes close to it for two hours, and is none of it
    "XinfluencerRestarting": after(BREAK, lambda m, row: {RESTARTS: 1.0 + min(2, m)}),
    "XinfluencerStuck": after(
        BREAK, lambda m, row: {LAG: 50.0, NEXT: healthy(BREAK)[NEXT] + m // 8}
    ),  # slow, and alive
    "XinfluencerBehind": after(BREAK, lambda m, row: {SINK_LAG: 10_000.0 + 500 * (m % 15)}),
    "XinfluencerDiskFull": after(BREAK, lambda m, row: {FREE: 1.0e9}),
    "XinfluencerStaleSnapshot": after(BREAK, lambda m, row: {AGE: m * 60.0 % 360}),
    "XinfluencerSourceSilent": after(BREAK, lambda m, row: {SILENT: 119.0}),
    "XinfluencerMetricsStale": after(BREAK, lambda m, row: {WRITTEN: at(BREAK + m) - 119}),
}


def _readings(rule: Rule) -> list[Reading]:
    return [one for all_of in rule.any_of for compared in all_of for one in compared.readings()]


def _step(rule: Rule) -> int:
    """Choose how many minutes lie between two samples: windows of hours need few, and a file must stay readable."""
    hours = max(*(one.window_s + one.back_s for one in _readings(rule)), rule.for_s) // 3600
    return 15 if hours > 1 else 1


def _values(values: Sequence[float]) -> str:
    """Write a series in promtool's notation: `a+bxn` is a, and n more, each b above the one before."""
    said, at = [], 0
    while at < len(values):
        step = values[at + 1] - values[at] if at + 1 < len(values) else 0.0
        more = 0
        while at + more + 1 < len(values) and values[at + more + 1] - values[at + more] == step:
            more += 1
        said.append(f"{values[at]:.15g}{step:+.15g}x{more}" if more else f"{values[at]:.15g}")
        at += more + 1
    return " ".join(said)


def _labels(rule: Rule, keys: Sequence[Key]) -> dict[str, str]:
    by = _readings(rule)[0].by
    return {name: value for name, value in keys[0][1] if name in by}


def _fires(rule: Rule) -> list[str]:
    curve, by, not_before = BROKEN[rule.name]
    step = _step(rule)
    last = BREAK + -(-by // step) * step
    looks = {BREAK - step: False, BREAK + not_before - step: False, last: True}
    return _test(rule, rule.name, curve, step, looks)


def _silent(name: str) -> list[str]:
    rule = next(rule for rule in RULES if rule.name == name)
    return _test(rule, f"{name}, nearly", NEAR[name], 1, {BREAK + m: False for m in range(10, 121, 10)})


def _test(rule: Rule, name: str, curve: Curve, step: int, looks: Mapping[int, bool]) -> list[str]:
    first = 0 if step > 1 else BREAK - 30
    minutes = range(first, max(looks) + 1, step)
    keys = [key for key in healthy(0) if any(one.wants(key) for one in _readings(rule))]
    lines = [f"  - name: {name}", f"    interval: {step}m", "    input_series:"]
    for key in keys:
        # promtool's time begins at zero.
        begun = at(first) if "timestamp" in key[0] else 0.0
        labels = ",".join(f"{name}={json.dumps(value)}" for name, value in key[1])
        lines += [
            f"      - series: {json.dumps(f'{key[0]}{{{labels}}}')}",
            f"        values: {json.dumps(_values([curve(minute)[key] - begun for minute in minutes]))}",
        ]
    lines += ["    alert_rule_test:"]
    for minute, fires in looks.items():
        lines += [f"      - eval_time: {minute - first}m", f"        alertname: {rule.name}"]
        if not fires:
            lines += ["        exp_alerts: []"]
            continue
        lines += [
            "        exp_alerts:",
            f"          - exp_labels: {json.dumps({'severity': rule.severity, **_labels(rule, keys)})}",
            f"            exp_annotations: {json.dumps(alerting.annotations(rule))}",
        ]
    return lines


def promtool() -> str:
    """Render the file for `promtool test rules`."""
    lines = ["# Written by `python -m tests.alert_cases`; run: promtool test rules deploy/prometheus/alerts_test.yml"]
    lines += ["rule_files: [alerts.yml]", "evaluation_interval: 1m", "tests:"]
    return "\n".join(itertools.chain(lines, *map(_fires, RULES), *map(_silent, NEAR))) + "\n"


if __name__ == "__main__":
    (ROOT / FILE).write_text(promtool())
