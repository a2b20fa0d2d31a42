"""Reports: each asks what it says, on a log that holds nothing and on one that holds everything; pictures are drawn."""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.reward_report import reward_report
from schemas import envelope
from schemas.events import FeedbackGiven, FeedbackRetracted
from streams import analytics as an
from streams import reports as module
from streams import tables as t
from streams.charts import Chart, ChartRefused, draw
from streams.memory import Engine
from streams.settings import Settings
from streams.sink import types_of
from streams.warehouse import Warehouse
from tests.small_world import DAY_MS, fill, world
from tests.warehouses import opened, settings_in

NAMES = tuple(module.reports())


@dataclass
class Small:
    """A log in memory and the tables that were filled from it."""

    settings: Settings
    house: Warehouse
    asker: an.Asker
    engine: Engine


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    settings = settings_in(tmp_path_factory.mktemp("reports"))
    engine = world(5, 300, int(time.time() * 1000) - 7 * DAY_MS)
    with opened(settings) as house:
        fill(engine, house)
        asker = an.Asker(settings)
        yield Small(settings, house, asker, engine)
        asker.close()


@pytest.fixture
def asked(small: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    def ask_sink(settings: Settings, query: str, rows_max: int, parameters: Any) -> an.Answer:
        return small.asker.ask(query, parameters, rows_max)

    monkeypatch.setattr(an, "_ask_sink", ask_sink)
    return small


def row_of(answer: an.Answer, **where: Any) -> dict[str, Any]:
    return next(row for row in an.named(answer) if all(row[name] == value for name, value in where.items()))


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.mark.parametrize("name", NAMES)
def test_a_report_prints_a_table_and_draws_a_picture(
    asked: Small, name: str, tmp_path: Path, capsys: Any, cut: list[str]
) -> None:
    module.run_report(asked.settings, name, 30, tmp_path / "chart.png")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 4, lines
    assert lines[0].strip().startswith(module.reports()[name].about)
    data = (tmp_path / "chart.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    wide, high = struct.unpack(">II", data[16:24])
    assert wide == 1_620
    assert 250 < high < 2_500
    assert not cut


@pytest.mark.parametrize("name", NAMES)
def test_a_report_on_an_empty_period_says_so_and_draws_nothing(
    asked: Small, name: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 20_000_000_000.0)  # a day in 2603
    module.run_report(asked.settings, name, 1, tmp_path / "chart.png")
    assert "nothing yet" in capsys.readouterr().out
    assert not (tmp_path / "chart.png").exists()


def test_reports_are_listed_and_an_unknown_one_names_those_there_are(asked: Small, capsys: Any) -> None:
    module.run_report(asked.settings, None, 30, None)
    assert len(capsys.readouterr().out.splitlines()) == len(NAMES) + 1
    with pytest.raises(module.ReportUnknown, match="daily, authors"):
        module.report(asked.settings, "nothing", 1, now_ms())


def test_what_a_day_counts_is_what_the_log_holds(asked: Small) -> None:
    answer = module.report(asked.settings, "daily", 30, now_ms())
    posts = sum(row["posts"] for row in an.named(answer))
    seen = set(_ids(asked.engine, "tweets", "PostObserved")) - _deleted(asked.engine)
    assert posts == len(seen)


def _decoded(engine: Engine, topic: str) -> Iterator[Any]:
    for (name, partition), records in engine.log.items():
        if name == topic:
            for raw in records:
                yield envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)


def _ids(engine: Engine, topic: str, kind: str) -> Iterator[str]:
    return (one.event.post for one in _decoded(engine, topic) if type(one.event).__name__ == kind)


def _deleted(engine: Engine) -> set[str]:
    return set(_ids(engine, "tweets", "PostDeleted"))


def test_rewards_agree_with_the_report_that_is_computed_without_a_database(asked: Small) -> None:
    """Two programs, one in SQL and one in Python, on the same log. The database has forgotten what was deleted."""
    gone = _deleted(asked.engine)
    events: dict[str, Any] = {}
    for one in _decoded(asked.engine, "rewards"):
        if not gone & set(one.event.subject.split("/")):
            events.setdefault(one.id, one.event)
    answer = module.report(asked.settings, "rewards", 30, now_ms())
    for expected in reward_report(events.values()):
        row = row_of(answer, component=expected.component)
        assert row["coverage_pct"] == pytest.approx(100 * (expected.present or 0), abs=0.06)
        if expected.component != "human":
            for ours, theirs in (("people", expected.real), ("simulated", expected.simulated)):
                assert row[f"n_{ours}"] == theirs.n
                if theirs.pearson is not None:
                    assert row[f"r_{ours}"] == pytest.approx(theirs.pearson, abs=0.002)


LATER_MS = 4_000_000_000_000  # a period of its own, behind everything in the log


def thumb(rater: str, value: int, name: str = "f:1", subject: str = "ask:1/ans:1") -> FeedbackGiven:
    return FeedbackGiven(feedback=name, subject=subject, rater=rater, kind="thumb", value=value)


def choice(rater: str, better: str, worse: str) -> FeedbackGiven:
    subject, other = f"ask:1/ans:{better}", f"ask:1/ans:{worse}"
    return FeedbackGiven(feedback="f:1", subject=subject, rater=rater, kind="choice", value=1, other=other)


@pytest.mark.parametrize(
    ("given", "judgements", "raters", "agreement"),
    [
        ([thumb("r:1", 1)] * 4 + [thumb("r:2", -1)], 5, 2, 0.0),
        ([thumb("r:1", 1)] * 4, 4, 1, None),
        ([thumb("r:1", -1), thumb("r:2", 1), thumb("r:1", 1)], 3, 2, 1.0),
        ([thumb("r:1", 1), thumb("r:2", 1), thumb("r:3", -1)], 3, 3, 0.333),
        ([thumb("r:1", 1), thumb("r:2", 1), thumb("r:2", -1, "f:back")], 2, 2, 1.0),
        ([thumb("r:1", 1, subject=f"ask:1/ans:{i}") for i in range(3)], 3, 1, None),
        ([choice("r:1", "1", "2"), choice("r:1", "1", "3"), choice("r:1", "2", "1")], 3, 1, None),
        ([choice("r:1", "1", "2"), choice("r:2", "2", "1")], 2, 2, 0.0),
        ([choice("r:1", "1", "2"), choice("r:2", "2", "1"), choice("r:1", "2", "1")], 3, 2, 1.0),
    ],
    ids=["repeats and another", "repeats alone", "changes their mind", "two of three", "takes one back",
         "many subjects", "many choices", "opposite choices", "changes their choice"],
)  # fmt: skip
def test_people_agree_with_each_other_and_never_with_themselves(
    asked: Small, given: list[FeedbackGiven], judgements: int, raters: int, agreement: float | None
) -> None:
    back = FeedbackRetracted(feedback="f:back", subject="ask:1/ans:1", rater="r:2")
    try:
        for index, event in enumerate([*given, back]):
            table = t.TABLES[type(event)]
            record = {
                "id": [f"i{index}"], "topic": ["feedback"], "partition": [0], "offset": [index],
                "time_ms": [LATER_MS + index], "writer": ["test"], "bytes": [1],
            }  # fmt: skip
            asked.house.insert(table.name, {**record, **t.values(table, [event])}, types_of(table))
        (row,) = an.named(module.report(asked.settings, "feedback", 1, LATER_MS + module.DAY_MS))
    finally:
        for name in ("feedback_given", "feedback_retracted"):
            alter = f"ALTER TABLE {name} DELETE WHERE time_ms >= {LATER_MS}"
            asked.house.client.command(alter, settings={"mutations_sync": 2})
    assert (row["judgements"], row["raters"], row["agreement"]) == (judgements, raters, agreement)


def test_no_report_has_to_remember_that_each_record_counts_once() -> None:
    assert an.LIMITS["final"] == 1
    assert not any("FINAL" in one.sql for one in module.reports().values())


DID = "bluesky:did:plc:" + "a" * 22
HARD = ["$\\frac{1}{0}$ \x1b[31m", "日本語 " * 30, "<b>😀🦀", f"{DID}xy", f"{DID}zw", ""]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the outlines of all that is drawn of a picture, where they reach over the edge of its page."""
    from matplotlib.figure import Figure

    found: list[str] = []
    write = Figure.savefig

    def look(figure: Any, *given: Any, **more: Any) -> None:
        write(figure, *given, **more)
        wide, high = figure.get_size_inches()
        box = figure.get_tightbbox()
        if box.x0 < 0 or box.y0 < 0 or box.x1 > wide or box.y1 > high:
            found.append(f"{box.extents} on a page of {wide} x {high}")

    monkeypatch.setattr(Figure, "savefig", look)
    return found


@pytest.mark.parametrize("kind", ["bars", "columns", "days", "spread"])
@pytest.mark.filterwarnings("error")  # matplotlib warns of a letter that it has no glyph for
def test_any_label_can_be_drawn_without_a_box_for_a_letter_and_none_is_cut(
    kind: str, tmp_path: Path, cut: list[str]
) -> None:
    """Labels are data: TeX, markup, control characters, other scripts, long ids, a missing value, one row."""
    for labels in [HARD[:1], HARD] if kind != "days" else [["2026-01-01"], ["2026-01-01", "2026-03-01"]]:
        rows = [[label, "日本 refused: " * 9, 1.0, None if kind == "bars" else -0.5, 0.5] for label in labels]
        also = "also" if kind == "bars" else ""
        chart = Chart(kind, "A title with $ and _ and 日本", "label", ["a", "b", "c"], also=also)
        draw(an.Answer(("label", "also", "a", "b", "c"), rows), chart, tmp_path / "chart.png", "What it says. " * 20)
        assert (tmp_path / "chart.png").stat().st_size > 1_000
    assert not cut


def test_control_labels_as_they_are_given_would_be_cut_or_boxes(
    tmp_path: Path, cut: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.charts.fitted", lambda text, chars_max: str(text))
    answer = an.Answer(("label", "a"), [["日本語 " * 30, 1.0], ["word " * 30, 2.0]])
    with pytest.warns(UserWarning, match="missing from font"):
        draw(answer, Chart("columns", "t", "label", ["a"]), tmp_path / "chart.png")
    assert cut


def test_a_picture_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    answer = an.Answer(("label", "a"), [["x", 1]])
    with pytest.raises(ChartRefused, match="No such file"):
        draw(answer, Chart("bars", "t", "label", ["a"]), tmp_path / "nowhere" / "chart.png")
