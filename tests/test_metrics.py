"""Metrics: what a worker, a server and a machine leave behind, read as Prometheus would and held against its rules."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schemas import events as e
from streams import alerting, healthy, metrics
from streams.fold import Fold, Sent
from streams.machine_metrics import FILE, Machine, write
from streams.memory import Logged
from streams.readings import History, Key, Reading
from streams.settings import Settings
from streams.topology import stages
from streams.vector_ledger import Ledger, Request
from streams.worker_metrics import ORDINARY, OTHER, REASONS_MAX, WorkerMetrics, positions
from tests.feeds import feed
from tests.harness import Workers, ended, finish, now_ms, settings_for, vault_of
from tests.harness import write as deliver
from tests.serving import eventually
from tests.small_world import Keyring

T0_MS = 1_700_000_000_000
UNITS = (
    "_seconds",
    "_bytes",
    "_total",
    "_offset",
    "_records",
    "_messages",
    "_waiting",
    "_number",
    "_connected",
    "_parked",
)
COUNTED = ("xinfluencer_vectors", "xinfluencer_vectors_unindexed", "xinfluencer_erasures_owed",
           "xinfluencer_sink_rate_rows_per_second", "gen_ai_client_token_usage")  # fmt: skip
SECRET_IDS = re.compile(r"(^|[^a-z])(x|bluesky|mastodon):|@|[0-9a-f]{16,}")


def faults_of(text: str) -> list[str]:
    """Say what is wrong with an exposition, by Prometheus' naming rules and ours about labels."""
    found = []
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    found += [f"{name} stands twice" for name in set(names) if names.count(name) > 1]
    for family in families:
        if family.name.startswith("process_"):
            continue  # the client library's own
        if not re.fullmatch(r"(xinfluencer|gen_ai)_[a-z0-9_]*[a-z0-9]", family.name):
            found.append(f"{family.name}: not one of our names")
        if len(family.documentation) < 10 or not family.documentation.endswith("."):
            found.append(f"{family.name}: no help")
        counter = family.type == "counter"
        if counter != any(sample.name.endswith("_total") for sample in family.samples) and family.samples:
            found.append(f"{family.name}: only counters end in _total")
        if re.search(r"_(ms|milliseconds|minutes|kb|mb)(_|$)", family.name):
            found.append(f"{family.name}: not in a base unit")
        timed = family.type == "histogram" or re.search(
            r"\b(time|how long|age|seconds)\b", family.documentation.lower()
        )
        if timed and not counter and not re.search(r"_(seconds|usage)$", family.name):
            found.append(f"{family.name}: a time without its unit")
        if not counter and not family.name.endswith(UNITS) and family.name not in COUNTED:
            found.append(f"{family.name}: no unit, and not a plain count")
        for sample in family.samples:
            found += [
                f"{sample.name}: {label}={value!r} may name a person or a post"
                for label, value in sample.labels.items()
                if SECRET_IDS.search(value)
            ]
    keys = [(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples]
    found += [f"{key} stands twice" for key in {key for key in keys if keys.count(key) > 1}]
    return found


def value_of(text: str, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"there is no {name} {labels}"
    return sum(found)


def owned(fold: Fold, **more: Any) -> Any:
    return types.SimpleNamespace(**{"fold": fold, "dirty": False, "since_s": 0.0, "size": 10, "claim": 3, **more})


def worked(folder: Path, process: str = "worker-0", poison: int = 2) -> tuple[WorkerMetrics, Path]:
    """Let a metadata fold take real posts, doubles and poison as the shell does, and write its file."""
    table = stages()
    fold = Fold(table[0], 0, 1, Keyring())
    made = WorkerMetrics(table, lambda: [owned(fold)])
    made.begin(process)
    sent: list[Sent] = feed(5, 30, 1, Keyring(), T0_MS)
    posts = [
        Logged(i, one.time_ms, one.key, one.value, one.headers) for i, one in enumerate(sent) if one.topic == "tweets"
    ]
    records = [*posts, *posts[:4], *[Logged(0, T0_MS, None, b"{", posts[0].headers) for _ in range(poison)]]
    records = [Logged(i, one.timestamp, one.key, one.value, one.headers) for i, one in enumerate(records)]
    before = made.before(fold)
    made.applied(fold, before, len(records), fold.take(records))
    made.snapshotted("metadata", 0.01)
    made.places = {"tweets/0": [len(records), len(records), len(records) + 5, len(records) + 7]}
    path = folder / f"{process}.prom"
    made.write(path)
    return made, path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return Settings(data=tmp_path, cache=tmp_path / "cache")


def status(settings: Settings, name: str, **more: Any) -> None:
    told = {
        "pid": os.getpid(),
        "time": 0,
        "applied": 9,
        "partitions": {"tweets/0": [5, 5, 5, 9]},
        "rss_bytes": 1,
        **more,
    }
    (settings.data / "run" / f"{name}.status.json").write_text(json.dumps(told))


def test_what_a_worker_writes_is_named_and_explained_as_prometheus_asks(settings: Settings) -> None:
    _, path = worked(settings.data / "run")
    text = path.read_text()
    assert faults_of(text) == []
    assert value_of(text, "xinfluencer_duplicates_ignored_total", stage="metadata") >= 4
    assert value_of(text, "xinfluencer_records_refused_total", stage="metadata") == 2
    assert value_of(text, "xinfluencer_events_sent_total", event="RecordRefused", stage="metadata") == 2
    assert value_of(text, "xinfluencer_events_sent_total", event="PostDescribed") > 0
    assert value_of(text, "xinfluencer_lag_records", topic="tweets", partition="0") == 7
    assert value_of(text, "xinfluencer_chunk_seconds_count", stage="metadata") == 1
    assert value_of(text, "xinfluencer_partition_claims_total", stage="metadata", partition="0") == 3


def test_what_may_happen_is_counted_from_zero_so_that_the_first_is_an_increase(tmp_path: Path) -> None:
    table = stages()
    made = WorkerMetrics(table, list)
    made.begin("worker-0")
    made.write(tmp_path / "worker-0.prom")
    text = (tmp_path / "worker-0.prom").read_text()
    for stage in table:
        assert value_of(text, "xinfluencer_records_refused_total", stage=stage.name, reason="id-conflict") == 0
        assert value_of(text, "xinfluencer_events_sent_total", stage=stage.name, event="RecordRefused") == 0


def test_a_partition_that_lacks_a_snapshot_ages_and_one_that_does_not_stays_young() -> None:
    fold = Fold(stages()[0], 0, 1, Keyring())
    for dirty, low, high in ((True, 99, 200), (False, 0, 0)):
        made = WorkerMetrics(stages(), lambda: [owned(fold, dirty=dirty, since_s=time.monotonic() - 100)])  # noqa: B023
        ages = [s.value for f in made.collect() if f.name == "xinfluencer_snapshot_age_seconds" for s in f.samples]
        assert len(ages) == 1
        assert low <= ages[0] <= high


def test_lag_is_zero_after_the_marker_of_a_transaction_that_no_record_reaches() -> None:
    def lag(*place: int) -> float:
        return next(f.samples[0].value for f in positions("p", {"t/0": place}) if f.name == "xinfluencer_lag_records")

    assert lag(5, 5, 6, 6) == 0  # a marker at 5: handed out to 5, the client's position is beyond it
    assert lag(5, 8, 8, 8) == 3
    assert lag(5, 5, 5, 9) == 4


def test_reasons_cannot_grow_into_any_number_of_series(tmp_path: Path) -> None:
    made = WorkerMetrics(stages(), list)
    made.begin("worker-0")
    fold = Fold(stages()[0], 0, 1, Keyring())
    letters = [
        types.SimpleNamespace(event=e.RecordRefused.model_construct(reason=f"made-up-{n}"))
        for n in range(REASONS_MAX * 3)
    ]
    made.applied(fold, made.before(fold), 0, letters)  # type: ignore[arg-type]
    made.write(tmp_path / "w.prom")
    text = (tmp_path / "w.prom").read_text()
    reasons = {
        s.labels["reason"] for f in text_string_to_metric_families(text) for s in f.samples if "reason" in s.labels
    }
    assert len(reasons) <= REASONS_MAX + 1
    assert OTHER in reasons


def test_all_files_together_are_one_exposition_without_a_series_twice(settings: Settings, capsys: Any) -> None:
    run = settings.data / "run"
    worked(run, "worker-0")
    worked(run, "worker-graph")
    metrics.Metrics().write(run)
    status(settings, "embedder", rows=3, unindexed=1, receipts_owed=2, skipped={"bad-json": 1}, encoded=3)
    status(settings, "sink", rows_per_s=2.5, to_erase=1, skipped={"bad-json": 2})
    metrics.run_metrics(settings)
    text = capsys.readouterr().out
    assert faults_of(text) == []
    assert value_of(text, "xinfluencer_records_refused_total", stage="metadata") == 4
    assert value_of(text, "xinfluencer_erasures_owed") == 3
    assert value_of(text, "xinfluencer_lag_records", process="sink") == 4
    assert value_of(text, "xinfluencer_disk_free_bytes", folder="data") > 0


def test_a_torn_file_is_named_and_loses_nothing_else(settings: Settings, capsys: Any) -> None:
    run = settings.data / "run"
    worked(run)
    (run / "follow-x.prom").write_text("xinfluencer_source_gaps_total{stream=")
    metrics.run_metrics(settings)
    said = capsys.readouterr()
    assert "follow-x.prom cannot be read" in said.err
    assert value_of(said.out, "xinfluencer_records_applied_total", stage="metadata") > 0


def test_a_status_of_a_process_that_is_gone_says_nothing_about_now_but_what_it_owes_it_owes(settings: Settings) -> None:
    status(settings, "sink", to_erase=5, owed_since_s=T0_MS / 1000)
    status(settings, "embedder", receipts_owed=0, owed_since_s=None)
    for lives, said in ((True, 2), (False, 0)):
        machine = Machine(settings, lives=lambda pid: lives)  # noqa: B023
        found = {family.name: family.samples for family in machine.collect()}
        assert len(found["xinfluencer_erasures_owed"]) == said
        (since,) = found["xinfluencer_erasure_owed_since_timestamp_seconds"]
        assert (since.labels, since.value) == ({"process": "sink"}, T0_MS / 1000)


@pytest.mark.parametrize("name", ["embedder", "sink"])
def test_a_store_that_died_raises_the_alert_and_one_that_ended_as_asked_does_not(settings: Settings, name: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    now_s = time.time()
    for said, fires in (({}, True), ({"ended": True}, False)):
        (settings.data / "run" / alerting.FILE).unlink(missing_ok=True)
        status(settings, name, pid=dead.pid, time=now_s - 60, **said)
        fired = {one.rule.name for minute in range(5) for one in alerting.look(settings, now_s + 60 * minute)}
        assert ("XinfluencerMetricsStale" in fired) == fires


def test_what_waited_for_a_store_that_died_still_waits_and_what_it_used_is_not_told(settings: Settings) -> None:
    status(settings, "sink", applied=7, to_erase=1, rows_per_s=2.0)
    status(settings, "trainer", step=3, partitions={})

    def found() -> dict[str, int]:
        return {one.name: len(one.samples) for one in Machine(settings, lives=lambda pid: False).collect()}

    left = found()
    assert left["xinfluencer_written_timestamp_seconds"] == left["xinfluencer_lag_records"] == 1
    assert left["xinfluencer_erasures_owed"] == left["xinfluencer_resident_memory_bytes"] == 0
    assert "xinfluencer_sink_rate_rows_per_second" not in left
    healthy.ended(settings.data / "run", "sink")
    ended_as_asked = found()
    assert ended_as_asked.get("xinfluencer_written_timestamp_seconds", 0) == 0
    assert ended_as_asked["xinfluencer_lag_records"] == 0


def test_an_erasure_is_owed_since_it_was_first_asked_for_whatever_is_asked_after_it(settings: Settings) -> None:
    """Both stores say it alike; a ledger from before this was kept counts from when it is opened."""
    ledger = Ledger(settings.data / "vectors")
    assert ledger.owed_since() is None
    ledger.owe([(Request("r1", "o", "p", 0, 3), 1)])
    since = ledger.owed_since()
    assert since is not None
    ledger.owe([(Request("r1", "o", "p", 0, 3), 1), (Request("r2", "o", "q", 0, 4), 1)])
    assert ledger.owed_since() == since
    ledger.sent([Request("r1", "o", "p", 0, 3)])
    assert since < (ledger.owed_since() or 0) <= time.time()
    ledger.close()
    old = sqlite3.connect(settings.data / "vectors" / "ledger.sqlite")
    old.execute("alter table receipt drop column asked_s")
    old.close()
    again = Ledger(settings.data / "vectors")
    assert time.time() - 60 < (again.owed_since() or 0) <= time.time()
    again.close()


def test_what_people_do_too_late_is_no_fault_and_everything_else_that_is_refused_is_told_when(tmp_path: Path) -> None:
    made, fold = WorkerMetrics(stages(), list), Fold(stages()[0], 0, 1, Keyring())
    made.begin("worker-0")
    name = "xinfluencer_record_refused_timestamp_seconds"

    def refuse(reason: str) -> list[float]:
        letter: Any = types.SimpleNamespace(event=e.RecordRefused.model_construct(reason=reason))
        made.applied(fold, made.before(fold), 1, [letter])
        made._written_s = 0.0
        made.write(tmp_path / "w.prom")
        text = (tmp_path / "w.prom").read_text()
        return [value_of(text, name, stage="metadata", reason=one) for one in ("id-conflict", "step-failed", "other")]

    for ordinary in ORDINARY:
        assert refuse(ordinary) == [0, 0, 0]
    assert [value > 0 for value in refuse("bad-json")] == [False, False, True]
    assert [value > 0 for value in refuse("id-conflict")] == [True, False, True]


def test_a_stream_that_ends_takes_its_figures_along_and_one_that_dies_leaves_them(tmp_path: Path) -> None:
    def left(end: str) -> str:
        code = f"""import os, sys, signal, pathlib
from streams.pulse import Pulse
pulse = Pulse("x", pathlib.Path({str(tmp_path)!r}), gaps=1)
pulse.write(0)
{end}"""
        subprocess.run([sys.executable, "-c", code], check=False)
        path = tmp_path / "follow-x.prom"
        return path.read_text() if path.exists() else ""

    assert left("") == ""
    assert left("sys.exit(78)") == ""
    for death in ("os._exit(75)", "os.kill(os.getpid(), signal.SIGKILL)"):
        text = left(death)
        assert faults_of(text) == []
        assert time.time() - value_of(text, "xinfluencer_written_timestamp_seconds", process="follow-x") < 60
        assert time.time() - value_of(text, "xinfluencer_source_gap_timestamp_seconds") < 60, "the first one counts too"


def test_a_count_that_grew_before_anybody_looked_has_a_time_and_a_rule_on_increases_would_have_missed_it() -> None:
    from streams.alerting import Watch

    grown, watch = metrics.Grown(), Watch()
    row: dict[Key, float] = {
        ("xinfluencer_source_gap_timestamp_seconds", (("stream", "x"),)): grown.look(1, 1e9),
        ("xinfluencer_source_gaps_total", (("stream", "x"),)): 1.0,
    }
    assert {one.rule.name for one in watch.look(row, 1e9 + 5)} == {"XinfluencerSourceGap"}
    assert watch.look(row, 1e9 + 901) == []
    assert grown.look(1, 1e9 + 60) == 1e9
    assert grown.look(0, 1e9 + 60) == 1e9, "a count that began again is nothing new"
    rising = Reading("xinfluencer_source_gaps_total", ("stream",), (), "increase", 900)  # negative control
    assert rising.values(History([1e9 + 5, 1e9 + 65], [row, row]), 1e9 + 65) == {("x",): 0.0}


def test_the_supervisors_file_counts_restarts_and_is_used_while_it_is_fresh(settings: Settings) -> None:
    write(settings, {"worker": 2, "server": 0})
    found = metrics.read(settings).values()
    assert found["xinfluencer_process_restarts_total", (("process", "worker"),)] == 2
    path = settings.data / "run" / FILE
    os.utime(path, (1, 1))
    found = metrics.read(settings).values()
    assert ("xinfluencer_process_restarts_total", (("process", "worker"),)) not in found
    assert found["xinfluencer_written_timestamp_seconds", (("process", "supervisor"),)] == 1, "it is dead: that is seen"


def test_a_clean_stop_takes_the_file_away_and_a_death_leaves_it(settings: Settings) -> None:
    made, path = worked(settings.data / "run")
    assert path.exists()
    made.close()
    assert not path.exists()


def test_the_servers_own_page_has_generation_by_opentelemetrys_names() -> None:
    text = metrics.Metrics().text().decode()
    assert faults_of(text) == []
    types_of = {family.name: family.type for family in text_string_to_metric_families(text)}
    for name in (
        "gen_ai_server_request_duration_seconds",
        "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_server_time_per_output_token_seconds",
        "gen_ai_client_token_usage",
    ):
        assert types_of[name] == "histogram"


def exposed(name: str, kind: str = "gauge", labels: str = "", about: str = "Things that are there.") -> str:
    return f"# HELP {name} {about}\n# TYPE {name} {kind}\n{name}{labels} 1\n"


BAD = {
    "an id in a label": exposed("xinfluencer_a_total", "counter", '{author="x:@12"}'),
    "a hash in a label": exposed("xinfluencer_a_total", "counter", f'{{post="{"ab" * 16}"}}'),
    "no help": "# TYPE xinfluencer_a_total counter\nxinfluencer_a_total 1\n",
    "milliseconds": exposed("xinfluencer_lag_ms"),
    "a time without its unit": exposed("xinfluencer_lag_records", about="How long a record waits."),
    "a gauge that ends in total": exposed("xinfluencer_a_total"),
    "a count without a unit": exposed("xinfluencer_things"),
    "a family twice": exposed("xinfluencer_a_bytes") + exposed("xinfluencer_b_bytes") + exposed("xinfluencer_a_bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_judge_of_names_sees_what_is_wrong(name: str) -> None:
    assert faults_of(BAD[name])


def test_the_engine_of_tests_needs_no_metrics_and_gives_the_same() -> None:
    """A fold knows nothing of metrics: counting changes nothing of what is sent."""

    def sent(counted: bool) -> list[bytes]:
        fold = Fold(stages()[0], 0, 1, Keyring())
        made = WorkerMetrics(stages(), list)
        given: Iterable[Sent] = feed(3, 10, 1, Keyring(), T0_MS)
        raws = [Logged(i, s.time_ms, s.key, s.value, s.headers) for i, s in enumerate(given) if s.topic == "tweets"]
        before = made.before(fold)
        out = fold.take(raws)
        if counted:
            made.applied(fold, before, len(raws), out)
        return [one.value for one in out]

    assert sent(True) == sent(False)


def test_a_worker_on_a_broker_leaves_its_figures_and_takes_them_away_at_its_end(broker: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "metrics")
    workers = Workers(settings, broker.settings)
    vault = vault_of(settings)
    records = list(feed(9, 60, settings.partitions, vault, now_ms()))
    path = settings.data / "run" / "worker-0.prom"

    async def live() -> None:
        await deliver(settings, broker.settings, records)
        workers.start()
        await finish(settings, broker.settings, workers)

    with ended(workers):
        asyncio.run(live())
        eventually(lambda: value_of(path.read_text(), "xinfluencer_snapshot_age_seconds") < 1)
        text = path.read_text()
        assert faults_of(text) == []
        for name in ("xinfluencer_records_applied_total", "xinfluencer_next_offset", "xinfluencer_snapshot_size_bytes"):
            assert value_of(text, name) > 0
        assert value_of(text, "xinfluencer_event_loop_stall_seconds") < 30
        posts = sum(one.topic == "tweets" for one in records)
        eventually(lambda: value_of(path.read_text(), "xinfluencer_records_applied_total", stage="metadata") == posts)
        eventually(lambda: value_of(path.read_text(), "xinfluencer_lag_records") == 0)
        for later_s in (0, 61):
            assert alerting.look(settings, time.time() + later_s) == [], "nothing fires in a healthy run"
        workers.signal(signal.SIGTERM)
    assert not path.exists()
    vault.close()
