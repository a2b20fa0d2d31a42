"""Alerts: every rule fires on a series as it would really be, is silent on a healthy one, and is told alike to all."""

import asyncio
import importlib.util
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from streams import alert_rules, alerting, cli, doctor, doctor_folder, doctor_machine, supervisor
from streams.alert_rules import RULES, Rule
from streams.alerting import KEPT_S, Firing, Watch
from streams.exits import EXIT_AGAIN, EXIT_REFUSED
from streams.machine_metrics import write
from streams.readings import Compare, History, Reading, Share, holds, span
from streams.runbook import ADVICE, CODES, DEATHS, KINDS
from streams.settings import Settings
from tests import alert_cases
from tests.alert_cases import (
    BREAK,
    BROKEN,
    FREE,
    MINUTE,
    NEAR,
    RESTARTS,
    ROOT,
    T0,
    UNRECORDED,
    Curve,
    healthy,
    key,
    sent,
)

HOUR = 3_600


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


@pytest.mark.parametrize("name", NEAR)
def test_what_only_comes_close_does_not_fire(name: str) -> None:
    assert lived(NEAR[name], BREAK + 121, tuple(rule for rule in RULES if rule.name == name)) == {}


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
        history.add(T0 + at, {UNRECORDED: float(value)})
    reading = Reading(UNRECORDED[0], (), (), "increase", 60)
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


def test_promtool_is_asked_what_our_tests_ask() -> None:
    assert (ROOT / alert_cases.FILE).read_text() == alert_cases.promtool(), "python -m tests.alert_cases writes it"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed; it comes with Prometheus")
@pytest.mark.parametrize("said", [("check", "rules", alerting.ALERTS), ("test", "rules", alert_cases.FILE)])
def test_promtool_itself_agrees(said: tuple[str, str, Path]) -> None:
    subprocess.run(["promtool", *said[:2], ROOT / said[2]], check=True)


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
    assert set(ADVICE) == {rule.name for rule in RULES}
    for rule in RULES:
        section = page.split(f"## {rule.name}\n")[1].split("\n## ")[0]
        said = [part.split(" ")[0] for part in section.split("\n\n**")[1:]]
        assert [f"**{one}" for one in said] == ["**At", "**Look:**", "**Do:**", "**Over"]
        assert all(text in section for text in (rule.means, rule.look, rule.do, *ADVICE[rule.name]))
        assert f"(#{rule.name.lower()})" in page
    raised = set()
    for path in [*(ROOT / "streams").glob("*.py"), *(ROOT / "agents").glob("*.py")]:
        raised |= set(re.findall(r"""(?:AlertRaised\(kind=|\balert\(|_complain\()"([a-z-]+)\"""", path.read_text()))
    assert raised == set(KINDS)


def parse(command: str) -> None:
    """Let the command line's own parser read it, as far as it would before it does anything. Raises what it says."""
    words = shlex.split(command.partition("|")[0])
    assert words.pop(0) == "xinfluencer"
    found: Any = typer.main.get_command(cli.app)
    context = None
    while True:
        context = found.make_context(found.name or "xinfluencer", words, parent=context)
        if not hasattr(found, "commands"):
            return
        _, found, words = found.resolve_command(context, [*context._protected_args, *context.args])


def commands(page: str) -> set[str]:
    return set(re.findall(r"`(xinfluencer [^`]+)`", page))


def test_every_command_on_the_page_is_one_that_can_be_typed() -> None:
    found = commands(alerting.page())
    assert len(found) > 15
    for command in found:
        parse(command)
    for module, _ in re.findall(r"`python -m ([a-z_.]+)( [A-Z]+)?`", alerting.page()):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize(
    "wrong",
    ["xinfluencer alert", "xinfluencer dead-letters", "xinfluencer dead-letters show", "xinfluencer backup STORE --all",
     "xinfluencer command roll-back VERSION", "xinfluencer ingest"],
)  # fmt: skip
def test_a_command_that_cannot_be_typed_would_be_seen(wrong: str) -> None:
    with pytest.raises(Exception, match=r"Usage:|Missing (argument|option|parameter)|No such (command|option)"):
        parse(wrong)


def test_what_the_page_says_of_the_program_is_so() -> None:
    page = alerting.page()
    checks = {doctor.name_of(one) for one in (*doctor.HERE, *doctor.ASKED)}
    for named in re.findall(r"`xinfluencer doctor` \(([a-z, ]+)\)", page):
        assert set(named.split(", ")) <= checks, named
    assert {"0", "1", str(EXIT_AGAIN), str(EXIT_REFUSED), "130"} <= {code for code, _ in CODES}
    known = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert {name for names, _ in DEATHS for name in names.split(", ")} <= known | {*supervisor.APART}
    for report in re.findall(r"xinfluencer report ([a-z]+)", page):
        assert report in tomllib.loads((ROOT / "streams" / "reports.toml").read_text())
    assert f"after {supervisor.STILL_S_MAX:.0f} seconds" in page
    assert f"within {supervisor.BACKOFF_S_MAX:.0f} seconds" in page


def test_limits_that_doctor_has_too_are_doctors() -> None:
    assert alert_rules.DISK_BYTES_LOOK == doctor_machine.DISK_BYTES_LOOK
    assert alert_rules.DISK_BYTES_MIN == doctor_machine.DISK_BYTES_MIN
    assert alert_rules.STALE_S_MAX * 1000 == doctor_folder.STALE_MS_LOOK


def test_writing_the_files_needs_nothing_but_the_table(tmp_path: Path) -> None:
    alerting.main(tmp_path)
    assert (tmp_path / alerting.PAGE).read_text() == alerting.page()
    code = "import sys, streams.alerting; assert not {'torch', 'faust', 'lancedb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
