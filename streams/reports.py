"""Reports: a name -> a table from the analytics database and a picture of it; both are said in streams/reports.toml."""

import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from streams import tables as t
from streams.analytics import Answer, ask, cell_text
from streams.charts import Chart, draw
from streams.settings import Settings
from streams.show import Screen

DAY_MS = 86_400_000
EVERY_TABLE = "({})".format(
    " UNION ALL ".join(f"SELECT topic, bytes, time_ms FROM `{table.name}`" for table in t.TABLES.values())
)


class ReportUnknown(Exception):
    """There is no report of this name; the message lists those there are."""


@dataclass(frozen=True)
class Report:
    """A named question."""

    name: str
    about: str
    sql: str
    chart: Chart


@cache
def reports() -> Mapping[str, Report]:
    """Read the table of reports, in its order."""
    found = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        name: Report(name, one["about"], one["sql"].strip().replace("$every_table", EVERY_TABLE), Chart(**one["chart"]))
        for name, one in found.items()
    }


def report(settings: Settings, name: str, days: int, now_ms: int) -> Answer:
    """Ask one of them about the last `days` days before `now_ms`."""
    found = reports().get(name)
    if found is None:
        raise ReportUnknown(f"there is no report {name!r}; there are {', '.join(reports())}")
    return ask(settings, found.sql, since=max(0, now_ms - days * DAY_MS))


def run_report(settings: Settings, name: str | None, days: int, png: Path | None) -> None:
    """Print a report, or all names; draw it into `png` if given."""
    screen = Screen()
    if name is None:
        screen.table(("report", "says"), [(one.name, one.about) for one in reports().values()])
        return
    answer = report(settings, name, days, int(time.time() * 1000))
    one = reports()[name]
    about = f"{one.about} Last {days} days." if days > 1 else f"{one.about} Last day."
    screen.say(f"  {about}\n")
    if not answer.rows:
        screen.say("  nothing yet")
        return
    screen.table(answer.columns, _aligned(answer))
    if png is not None:
        draw(answer, one.chart, png, about)
        screen.say(f"\n  drawn to {png}")


def _aligned(answer: Answer) -> list[list[str]]:
    """Give numbers as the question rounded them, to the right; the screen alone would give each three digits."""
    rows = [
        [f"{cell:.12g}" if isinstance(cell, float) else str(cell_text(cell)) for cell in row] for row in answer.rows
    ]
    for index, name in enumerate(answer.columns):
        if all(isinstance(row[index], int | float | None) for row in answer.rows):
            width = max(len(name), *(len(row[index]) for row in rows))
            for row in rows:
                row[index] = row[index].rjust(width)
    return rows
