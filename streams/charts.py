"""Charts: an answer and how it is to be seen -> a PNG; one measure a panel, with its unit, and nothing more.

Each measure has an axis of its own, since two on one axis cannot both be read. Labels are data: drawn with letters that
the fonts have, a long one cut in its middle (ids differ at their ends), never read as mathematics.
"""

import datetime as dt
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.analytics import Answer, columns_of
from streams.lettering import drawable, families, fitted

INK, SOFT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
COLOUR, LIGHT = "#2563eb", "#93c5fd"
LABEL_CHARS_MAX = 42  # an id of Bluesky's is 40
PLACE_CHARS_MAX = 16  # under a standing bar
BESIDE_CHARS_MAX = 30  # label and second label on one line; longer, and the second has a line of its own
WIDTH_IN, ROW_IN, LINE_IN, PANEL_IN = 9.0, 0.3, 0.16, 1.35
DOTS_PER_INCH = 180  # 1,620 pixels wide


class ChartRefused(Exception):
    """It cannot be drawn there; the message says why."""


@dataclass(frozen=True)
class Chart:
    """What to draw of an answer. `values` are its columns, a panel each; `units` say what their numbers are.

    kind: bars (lying, one a row), columns (standing, in order), days (lines over dates), spread (low, middle, high).
    """

    kind: str
    title: str
    label: str
    values: list[str]
    units: list[str] | None = None
    also: str = ""  # a second column of the label
    against: list[str] | None = None  # a column beside each value, drawn as a mark
    against_name: str = ""
    note: str = ""  # spread: a column written at the side
    note_unit: str = ""
    log: bool = False
    whole: int = 0  # columns: the places there are, from 0, drawn or not (24 hours)


def draw(answer: Answer, chart: Chart, path: Path, about: str = "") -> None:
    """Draw an answer with at least one row into a PNG file, `about` under its title. ChartRefused: not written."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = columns_of(answer)
    look = {
        "font.size": 9, "axes.edgecolor": SOFT, "axes.labelcolor": SOFT, "text.color": INK, "xtick.color": SOFT,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "text.parse_math": False, "figure.constrained_layout.use": True, "font.family": list(families()),
        "figure.dpi": DOTS_PER_INCH,
    }  # fmt: skip
    with plt.rc_context(look):
        kind = {"bars": _bars, "columns": _columns, "days": _days, "spread": _spread}[chart.kind]
        figure = kind(plt, columns, chart)
        _head(figure, chart.title, about)
        try:
            figure.savefig(path, format="png")
        except OSError as error:
            raise ChartRefused(f"{path} cannot be written: {error.strerror}") from None
        finally:
            plt.close(figure)


def _head(figure: Any, title: str, about: str) -> None:
    """Write the title and what it says at the top, where the panels leave room for them."""
    lines = textwrap.wrap(drawable(about), 120)
    high = 0.34 + LINE_IN * len(lines)  # inches
    inches = figure.get_figheight() + high
    figure.set_figheight(inches)
    figure.get_layout_engine().set(rect=(0.004, 0.01, 0.99, 0.99 - high / inches), w_pad=0.1)
    figure.text(0.008, 1 - 0.08 / inches, drawable(title), va="top", fontsize=12, fontweight="bold")
    figure.text(0.008, 1 - 0.33 / inches, "\n".join(lines), va="top", fontsize=8.5, color=SOFT)


def _labels(columns: dict[str, list[Any]], chart: Chart, chars_max: int = LABEL_CHARS_MAX) -> list[str]:
    texts = [fitted(one, chars_max) for one in columns[chart.label]]
    if chart.also:
        # A yes or no says its own name, so that "thumb, True" needs no guess.
        seconds = [chart.also if one is True else "" if one is False else fitted(one, chars_max)
                   for one in columns[chart.also]]  # fmt: skip
        breaks = max(len(one) + len(two) for one, two in zip(texts, seconds, strict=True)) > BESIDE_CHARS_MAX
        between = "\n" if breaks else ", "
        texts = [f"{one}{between}{two}" if two else one for one, two in zip(texts, seconds, strict=True)]
    return texts


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _unit(chart: Chart, index: int) -> str:
    return chart.units[index] if chart.units else chart.values[index].replace("_", " ")


def _bars(plt: Any, columns: dict[str, list[Any]], chart: Chart) -> Any:
    labels, rows = _labels(columns, chart), range(len(columns[chart.label]))
    row_in = ROW_IN + LINE_IN * any("\n" in one for one in labels)
    figure, panels = plt.subplots(
        1, len(chart.values), sharey=True, squeeze=False,
        figsize=(WIDTH_IN, 0.55 + 0.3 * bool(chart.against) + row_in * max(2, len(labels))),
    )  # fmt: skip
    for index, (axes, name) in enumerate(zip(panels[0], chart.values, strict=True)):
        values = [value or 0 for value in columns[name]]
        axes.barh(rows, values, color=COLOUR, height=0.62)
        if chart.log and any(value > 0 for value in values):
            axes.set_xscale("log")
        against = chart.against[index] if chart.against else ""
        if against:
            axes.scatter(columns[against], rows, marker="|", s=160, color=INK, lw=2, label=chart.against_name)
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
        for row, value in enumerate(columns[name]):
            right = max(values[row], 0, (columns[against][row] or 0) if against else 0)
            axes.annotate(
                "none" if value is None else _number(value), (right or (axes.get_xlim()[0] if chart.log else 0), row),
                xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=SOFT,
            )  # fmt: skip
        axes.margins(x=0.28)
        _quiet(axes, "x", _unit(chart, index), chart.log)
        if min(values) < 0:
            axes.axvline(0, color=SOFT, linewidth=0.8)
            axes.spines["left"].set_visible(False)
    panels[0][0].set_yticks(rows, labels)
    few = max(0, 2 - len(labels)) / 2  # a bar alone is no thicker than others, and in the middle
    panels[0][0].set_ylim(len(labels) - 0.5 + few, -0.5 - few)
    return figure


def _columns(plt: Any, columns: dict[str, list[Any]], chart: Chart) -> Any:
    labels, places = _labels(columns, chart, PLACE_CHARS_MAX), columns[chart.label]
    # Numbers stand at their places: an hour without a post is a gap.
    at = places if all(isinstance(one, int) for one in places) else list(range(len(places)))
    figure, panels = plt.subplots(
        len(chart.values), 1, sharex=True, squeeze=False, figsize=(WIDTH_IN, 0.45 + PANEL_IN * len(chart.values))
    )
    for index, name in enumerate(chart.values):
        axes, values = panels[index][0], [value or 0 for value in columns[name]]
        axes.bar(at, values, color=COLOUR, width=0.7)
        axes.set_title(_unit(chart, index), loc="left", fontsize=9, color=SOFT)
        _quiet(axes, "y", "")
        if min(values) < 0:
            axes.axhline(0, color=SOFT, linewidth=0.8)
            axes.spines["bottom"].set_visible(False)
    if chart.whole:
        at, labels = list(range(chart.whole)), [str(place) for place in range(chart.whole)]
    panels[-1][0].set_xticks(at, labels)
    panels[-1][0].set_xlim(min(at) - 0.8, max(at) + 0.8)
    panels[-1][0].set_xlabel(chart.label)
    return figure


def _days(plt: Any, columns: dict[str, list[Any]], chart: Chart) -> Any:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    days = [dt.date.fromisoformat(str(one)) for one in columns[chart.label]]
    deep = -(-len(chart.values) // 2)
    figure, panels = plt.subplots(deep, 2, sharex=True, squeeze=False, figsize=(WIDTH_IN, 0.45 + PANEL_IN * deep))
    for index, name in enumerate(chart.values):
        axes = panels[index // 2][index % 2]
        axes.plot(days, columns[name], color=COLOUR, marker="o", markersize=3, linewidth=1.4)
        axes.set_ylim(0, 1.15 * max(1, *columns[name]))
        axes.set_title(_unit(chart, index), loc="left", fontsize=9, color=SOFT)
        _quiet(axes, "y", "")
        axes.set_xmargin(0.03)
        locator = AutoDateLocator(minticks=1, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    for axes in panels.flat[len(chart.values) :]:
        axes.axis("off")
    if len(days) == 1:
        panels[0][0].set_xticks(days, [str(days[0])])
    return figure


def _spread(plt: Any, columns: dict[str, list[Any]], chart: Chart) -> Any:
    low, middle, high = (columns[name] for name in chart.values)
    labels = _labels(columns, chart)
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 0.55 + ROW_IN * max(3, len(labels))))
    for row, value in enumerate(middle):
        if value is not None:
            axes.plot([low[row], high[row]], [row, row], color=LIGHT, linewidth=7, solid_capstyle="butt")
            axes.plot(value, row, "o", color=COLOUR)
        if chart.note:
            text = f"{_number(columns[chart.note][row])} {chart.note_unit}"
            axes.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=SOFT)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.set_xlim(-1.05, 1.05)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    _quiet(axes, "x", _unit(chart, 0))
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    return figure


def _quiet(axes: Any, along: str, unit: str, log: bool = False) -> None:
    """Leave a few round numbers along the measure, a light grid, and the unit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(numticks=5) if log else MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.grid(axis=along, color=GRID, linewidth=0.7)
    axes.tick_params(length=0)
    axes.spines["left" if along == "y" else "bottom"].set_visible(False)
    if unit:
        axes.set_xlabel(unit)
