"""Alerts: every rule fires on a series as it would really be, is silent on a healthy one, and is told alike to all."""

import asyncio
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from streams import alert_rules, alerting, doctor_folder, doctor_machine
from streams.alert_rules import KINDS, RULES, Rule
from streams.alerting import KEPT_S, Firing, Watch
from streams.machine_metrics import write
from streams.readings import Compare, History, Key, Reading, Share, holds, span
from streams.settings import Settings

ROOT = Path(alerting.ROOT)
MINUTE, HOUR = 60, 3_600
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
LETTERS = key("xinfluencer_end_offset", process="sink", topic="dead-letters", partition="0")
RAISED = key("xinfluencer_end_offset", process="sink", topic="alerts", partition="0")
AGE = key("xinfluencer_snapshot_age_seconds", process="worker-0", stage="rewards", partition="2")
GAPS = key("xinfluencer_source_gaps_total", stream="bluesky")
SILENT = key("xinfluencer_source_silent_seconds", stream="bluesky")
FREE = key("xinfluencer_disk_free_bytes", folder="data")
OWED = key("xinfluencer_erasures_owed", process="embedder")
RESTARTS = key("xinfluencer_process_restarts_total", process="worker")
REFUSED = key("xinfluencer_adapter_refusals_total")
UNRECORDED = key("xinfluencer_records_failed_total")
POSTS = sent("PostDescribed")
WRITTEN = key("xinfluencer_written_timestamp_seconds", process="worker-0")


def reason(name: str) -> Key:
    return key("xinfluencer_records_refused_total", process="worker-0", stage="intake", reason=name)


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
        GAPS: 0.0,
        SILENT: float(minute % 20),
        FREE: 60e9 - minute * 1e5,
        OWED: float(minute % 50 != 0) * 3,  # emptied by each upkeep
        RESTARTS: float(minute > 300),
        REFUSED: 0.0,
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
    }


def after(minute: int, change: Callable[[int, Row], Mapping[Key, float]]) -> Curve:
    """Healthy until a minute, then with changes that get (minutes since, the healthy row)."""
    return lambda now: {**healthy(now), **(change(now - minute, healthy(now)) if now >= minute else {})}


BREAK = 33 * 60  # minutes of health before it: a whole past for the drifts


def frozen(*keys: Key) -> Curve:
    return after(BREAK, lambda _, row: {one: healthy(BREAK)[one] + (one[0].endswith("lag_records")) for one in keys})


def slowed(times: float, *events: Key) -> Curve:
    """From the break on, so many more or fewer for each of what they are made of."""
    at = healthy(BREAK)
    return after(BREAK, lambda _, row: {one: at[one] + (row[one] - at[one]) * times for one in events})


BROKEN: dict[str, tuple[Curve, int, int]] = {  # rule -> the series, minutes until it must fire, minutes it may not yet
    "XinfluencerStuck": (frozen(LAG, NEXT), 20, 5),
    "XinfluencerBehind": (after(BREAK, lambda m, row: {SINK_LAG: 11_000.0 + m * 50}), 17, 10),
    "XinfluencerDeadLetters": (after(BREAK, lambda m, row: {sent("RecordRefused"): 8.0}), 2, 0),
    "XinfluencerIdConflict": (after(BREAK, lambda m, row: {reason("id-conflict"): 1.0}), 2, 0),
    "XinfluencerStepFailed": (after(BREAK, lambda m, row: {reason("step-failed"): 1.0}), 2, 0),
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
    "XinfluencerSourceGap": (after(BREAK, lambda m, row: {GAPS: 1.0}), 2, 0),
    "XinfluencerSourceSilent": (after(BREAK, lambda m, row: {SILENT: m * 60.0}), 6, 2),
    "XinfluencerAdapterRefused": (after(BREAK, lambda m, row: {REFUSED: 1.0}), 2, 0),
    "XinfluencerAnswersUnrecorded": (after(BREAK, lambda m, row: {UNRECORDED: 1.0 + m}), 4, 1),
    "XinfluencerErasureOverdue": (after(BREAK, lambda m, row: {OWED: 1.0}), 24 * 60 + 60, 22 * 60),
    "XinfluencerRestarting": (after(BREAK, lambda m, row: {RESTARTS: 1.0 + m}), 5, 1),
    "XinfluencerMetricsStale": (after(BREAK, lambda m, row: {WRITTEN: T0 + BREAK * MINUTE}), 5, 1),
    "XinfluencerAlertRaised": (after(BREAK, lambda m, row: {RAISED: 3.0}), 2, 0),
}  # fmt: skip


def lived(curve: Curve, minutes: int, rules: tuple[Rule, ...] = RULES) -> dict[str, int]:
    """Sample a life each minute, a long health before it each quarter of an hour; gives when each rule fired first."""
    watch, fired = Watch(), {}
    quiet = range(0, BREAK - 180, 15) if minutes > BREAK else range(0)
    for minute in itertools.chain(quiet, range(quiet.stop, minutes)):
        for one in watch.look(curve(minute), T0 + minute * MINUTE, rules):
            fired.setdefault(one.rule.name, minute)
    return fired


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_fires_when_its_case_happens_and_not_before(rule: Rule) -> None:
    curve, by, not_before = BROKEN[rule.name]
    fired = lived(curve, BREAK + by + 1, (rule,))
    assert rule.name in fired, f"it never fired in {by} minutes"
    assert BREAK + not_before <= fired[rule.name] <= BREAK + by


def test_nothing_fires_while_all_is_well_from_the_first_look_on_and_after_days() -> None:
    assert lived(healthy, 300) == {}
    assert lived(healthy, BREAK + 300) == {}


def test_one_case_does_not_set_off_what_is_not_about_it() -> None:
    """A small table of what comes together; everything else must stay silent."""
    together = {
        "XinfluencerDiskFull": {"XinfluencerDiskFilling"},
        "XinfluencerRefusalsDrift": {"XinfluencerDeadLetters"},
    }
    for name in ("XinfluencerDiskFull", "XinfluencerStuck", "XinfluencerSourceGap", "XinfluencerRestarting"):
        curve, by, _ = BROKEN[name]
        fired = set(lived(curve, BREAK + by + 1))
        assert {name} <= fired <= {name} | together.get(name, set())


def test_every_rule_has_its_case_and_a_name_of_its_own() -> None:
    assert {rule.name for rule in RULES} == set(BROKEN)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_counter_that_began_again_is_no_negative_increase_and_a_restart_no_alert() -> None:
    history = History()
    for at, value in enumerate((5, 6, 0, 2)):
        history.add(T0 + at, {REFUSED: float(value)})
    reading = Reading(REFUSED[0], (), (), "increase", 60)
    assert reading.values(history, T0 + 3) == {(): 3.0}


def test_a_condition_that_was_broken_off_begins_its_time_again() -> None:
    rule = next(rule for rule in RULES if rule.name == "XinfluencerDiskFilling")
    watch, low, high = Watch(), {FREE: 1.5e9}, {FREE: 9e9}
    fired = [bool(watch.look(row, T0 + m * MINUTE, (rule,))) for m, row in enumerate([low] * 5 + [high] + [low] * 6)]
    assert fired == [False] * 11 + [True]


def test_a_rule_without_patience_would_fire_on_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of `for`."""
    rule = next(rule for rule in RULES if rule.name == "XinfluencerDiskFilling")
    assert Watch().look({FREE: 1.5e9}, T0, (rule,)) == []
    hasty = Rule(rule.name, rule.severity, rule.any_of, 0, rule.means, rule.look, rule.do)
    assert len(Watch().look({FREE: 1.5e9}, T0, (hasty,))) == 1


@pytest.mark.parametrize("name", ["XinfluencerRewardsDrift", "XinfluencerPairsDrift", "XinfluencerRefusalsDrift"])
def test_a_drift_needs_enough_to_compare(name: str) -> None:
    rule = next(rule for rule in RULES if rule.name == name)
    curve, by, _ = BROKEN[name]
    few = {sent("PostDescribed"), sent("RewardClosed", "rewards"), sent("RecordRefused"), sent("PairFormed", "pairing"),
           sent("BatchClosed", "batching")}  # fmt: skip
    small = lived(lambda m: {k: v / 2_000 if k in few else v for k, v in curve(m).items()}, BREAK + by + 1, (rule,))
    assert small == {}


def test_what_is_kept_is_bounded_and_comes_back_as_it_was(tmp_path: Path) -> None:
    watch = Watch()
    for minute in range(0, 40 * 60, 3):
        watch.look(healthy(minute), T0 + minute * MINUTE)
    assert len(watch.history.times) < 170
    assert watch.history.times[0] >= T0 + 40 * HOUR - KEPT_S - HOUR
    watch.save(tmp_path / "alerts.json")
    assert (tmp_path / "alerts.json").stat().st_size < 200_000
    again = Watch.load(tmp_path / "alerts.json")
    assert again.history.rows[-1] == watch.history.rows[-1]
    assert again.since == watch.since
    (tmp_path / "alerts.json").write_text('{"series": [')
    assert Watch.load(tmp_path / "alerts.json").history.times == []
    assert Watch.load(tmp_path / "missing").history.times == []


def test_a_clock_that_was_set_back_leaves_no_samples_of_the_future() -> None:
    history = History()
    for at in (1.0, 2.0, 3.0, 2.5):
        history.add(at, {FREE: at})
    assert history.times == [1.0, 2.0, 2.5]


def test_comparisons_join_on_their_labels_and_a_share_of_nothing_is_nothing() -> None:
    a, b = (lambda n, f: key(n, folder=f)), "xinfluencer_b"
    history = History()
    history.add(T0, {a("xinfluencer_a", "x"): 2.0, a("xinfluencer_a", "y"): 2.0, a(b, "x"): 0.0, a(b, "y"): 4.0})
    one, two = Reading("xinfluencer_a", ("folder",)), Reading(b, ("folder",))
    assert Share(one, two).values(history, T0) == {("y",): 0.5}
    assert holds([[Compare(one, ">", 1), Compare(two, ">", 1)]], history, T0) == {("y",): 2.0}
    assert holds([[Compare(one, ">", two, 0.4)], [Compare(two, "==", 4)]], history, T0) == {("x",): 2.0, ("y",): 4.0}


# ---- on a folder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, cache=tmp_path)


def test_the_command_says_what_fires_where_and_what_to_do(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    write(settings, {})
    text = (settings.data / "run" / "machine.prom").read_text()
    small = re.sub(r"(disk_free_bytes\{folder=\"data\"\}) .*", r"\1 4e9", text)
    small = re.sub(r"(disk_free_bytes\{folder=\"cache\"\}) .*", r"\1 9e9", small)
    (settings.data / "run" / "machine.prom").write_text(small)
    assert alerting.look(settings, T0) == []
    found = alerting.look(settings, T0 + 301)
    assert [(one.rule.name, one.labels) for one in found] == [("XinfluencerDiskFilling", (("folder", "data"),))]
    assert found[0].value == 4e9
    Path(settings.data / "run" / "alerts.json").unlink()
    alerting.run_alerts(settings)
    assert capsys.readouterr().out.startswith("nothing fires")


def test_the_command_ends_with_1_if_anything_fires(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    firing = [Firing(RULES[0], (("process", "worker-0"),), 1.0, T0)]
    monkeypatch.setattr(alerting, "look", lambda settings: firing)
    with pytest.raises(SystemExit) as ended:
        alerting.run_alerts(settings)
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert said.startswith("CRITICAL XinfluencerStuck process=worker-0: Records wait")
    assert RULES[0].do in said


def test_the_supervisor_measures_and_looks_until_it_ends_and_leaves_no_old_figures(settings: Settings) -> None:
    run = settings.data / "run"

    async def measure() -> None:
        task = asyncio.create_task(alerting.measure_for_ever(settings, lambda: {"worker": 3}))
        while not (run / alerting.FILE).exists():
            await asyncio.sleep(0.01)
        assert 'xinfluencer_process_restarts_total{process="worker"} 3.0' in (run / "machine.prom").read_text()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(measure())
    assert not (run / "machine.prom").exists()
    assert RESTARTS in Watch.load(run / alerting.FILE).history.keys


def test_every_metric_that_a_rule_reads_is_one_that_somebody_writes() -> None:
    code = "".join(path.read_text() for path in (ROOT / "streams").glob("*.py") if path.name != "alert_rules.py")
    live = "xinfluencer_source_{name}"
    assert live in code
    wanted = {r.metric for rule in RULES for all_of in rule.any_of for one in all_of for r in one.readings()}
    for name in wanted:
        made = name.removesuffix("_total")
        assert made in code or made.removeprefix("xinfluencer_source_") in code, name
    kinds = {
        dict(r.where).get("event") for rule in RULES for all_of in rule.any_of for one in all_of for r in one.readings()
    }
    from schemas.topics import KINDS as EVENTS

    assert kinds - {None} <= set(EVENTS)


# ---- what is rendered -----------------------------------------------------------------------------------------------


def test_the_files_in_the_project_are_those_of_the_table() -> None:
    assert (ROOT / alerting.ALERTS).read_text() == alerting.prometheus(), "python -m streams.alerting writes them"
    assert (ROOT / alerting.PAGE).read_text() == alerting.page()


def test_prometheus_can_read_the_rules() -> None:
    """The structure that promtool checks: groups, names, durations, labels; and expressions of our own grammar."""
    told = yaml.safe_load(alerting.prometheus())
    assert set(told) == {"groups"}
    assert [set(group) for group in told["groups"]] == [{"name", "rules"}]
    for rule, said in zip(RULES, told["groups"][0]["rules"], strict=True):
        assert set(said) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"[A-Za-z_:][A-Za-z0-9_:]*", said["alert"])
        assert re.fullmatch(r"\d+[smhd]", said.get("for", "0s"))
        assert said.get("for", "0s") == span(rule.for_s)
        assert said["labels"] == {"severity": rule.severity}
        assert said["annotations"]["summary"] == rule.means
        assert "{{" not in json.dumps(said), "Prometheus would take that for a template"
        for one in re.split(r" (?:and|or) ", said["expr"]):
            assert EXPRESSION.fullmatch(one), one


SERIES = r'[a-z_]+(\{[a-z]+=~?"[A-Za-z|-]+"(,[a-z]+=~?"[A-Za-z|-]+")*\})?'
VECTOR = (
    rf"(sum|max|min)( by \([a-z, ]+\) )?\(((increase|delta|changes)\({SERIES}\[\d+[smhd]\]( offset \d+[smhd])?\)"
    rf"|(time\(\) - )?{SERIES})\)"
)
EXPRESSION = re.compile(rf"{VECTOR}( / {VECTOR})? (>|<|==) ([0-9.e+]+|[0-9.]+ \* \({VECTOR}( / {VECTOR})?\))")


@pytest.mark.parametrize(
    "wrong", ["sum(a) >", "sum(increase(a)) > 1", "sum(a[5m]) > 1", "a > 1", "sum(a) > 1 1", "rate(a[5m]) > 1"]
)
def test_the_judge_of_expressions_sees_what_is_none(wrong: str) -> None:
    assert not EXPRESSION.fullmatch(wrong)


def test_the_page_has_a_section_for_every_alert_and_a_line_for_every_kind_that_is_raised() -> None:
    page = alerting.page()
    for rule in RULES:
        section = page.split(f"## {rule.name}\n")[1].split("\n## ")[0]
        assert rule.do in section
        assert "**Look:**" in section
    raised = set()
    for path in [*(ROOT / "streams").glob("*.py"), *(ROOT / "agents").glob("*.py")]:
        raised |= set(re.findall(r"""(?:AlertRaised\(kind=|\balert\(|_complain\()"([a-z-]+)\"""", path.read_text()))
    assert raised == set(KINDS)


def test_limits_that_doctor_has_too_are_doctors() -> None:
    assert alert_rules.DISK_BYTES_LOOK == doctor_machine.DISK_BYTES_LOOK
    assert alert_rules.DISK_BYTES_MIN == doctor_machine.DISK_BYTES_MIN
    assert alert_rules.STALE_S_MAX * 1000 == doctor_folder.STALE_MS_LOOK


def test_writing_the_files_needs_nothing_but_the_table(tmp_path: Path) -> None:
    alerting.main(tmp_path)
    assert (tmp_path / alerting.PAGE).read_text() == alerting.page()
    code = "import sys, streams.alerting; assert not {'torch', 'faust', 'lancedb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
