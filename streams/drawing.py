"""Drawing: the topology table -> a picture of it on one page: everything flows to the right, then back below.

The columns turn round once, so that names stay legible; those of one column stand in the order in which the fewest
lines cross (the barycentre rule of Sugiyama, Tagawa and Toda 1981).
"""

from collections.abc import Sequence
from pathlib import Path

from schemas.topics import TOPICS
from streams.fold import Stage
from streams.topology import ALWAYS, OUTSIDE, edges

COLOURS = {"topic": "#dbeafe", "agent": "#dcfce7", "other process": "#fef3c7"}
INK, SOFT, LINE = "#1f2937", "#6b7280", "#64748b"
SIZE_IN = (10.0, 6.0)
DOTS_PER_INCH = 160
SWEEPS = 6
FOLD = 8  # columns, then the next row of them begins below


def links(table: Sequence[Stage]) -> list[tuple[str, str]]:
    """List what leads to what: topics ("topic NAME") to their readers, readers and writers to topics; each once."""
    quiet = {topic.name for topic in ALWAYS}
    found: list[tuple[str, str]] = []
    for read, who, written in edges(table):
        if written not in quiet:
            found += [(f"topic {read}", who)] * bool(read) + [(who, f"topic {written}")]
        elif read:
            found.append((f"topic {read}", who))
    return list(dict.fromkeys(found))


def layers(table: Sequence[Stage]) -> dict[str, int]:
    """Give each topic and each reader or writer its column: one more than the furthest thing before it."""
    found = links(table)
    column = {name: 0 for link in found for name in link}
    for _ in column:  # the graph has no cycle, so this settles within as many rounds as there are nodes
        for before, after in found:
            column[after] = max(column[after], column[before] + 1)
    return column


def places(table: Sequence[Stage]) -> dict[str, tuple[float, float]]:
    """Place each name: x in columns, y in rows, the second half of the columns below the first and from the right."""
    column, found = layers(table), links(table)
    order = [f"topic {topic.name}" for topic in TOPICS] + [s.name for s in table] + [o.name for o in OUTSIDE]
    rows = {at: sorted((n for n, c in column.items() if c == at), key=order.index) for at in set(column.values())}
    y = {name: float(row) - len(some) / 2 for some in rows.values() for row, name in enumerate(some)}
    for sweep in range(SWEEPS):
        for at in sorted(rows, reverse=bool(sweep % 2)):
            near = {name: [y[a if b == name else b] for a, b in found if name in (a, b)] for name in rows[at]}
            rows[at].sort(key=lambda name: (sum(near[name]) / len(near[name]), order.index(name)))
            y.update({name: row - (len(rows[at]) - 1) / 2 for row, name in enumerate(rows[at])})
    deep = [max((len(some) for at, some in rows.items() if at // FOLD == band), default=0) for band in (0, 1)]
    place = {}
    for name, at in column.items():
        band, x = divmod(at, FOLD)
        place[name] = (float(x if not band else FOLD - 1 - x), -y[name] - band * (sum(deep) / 2 + 0.8))
    return place


def draw(table: Sequence[Stage], path: Path) -> None:
    """Write the picture as PNG. Topics that every agent may write to are left out; the caption says so."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    place, agents = places(table), {stage.name for stage in table}
    figure, axes = plt.subplots(figsize=SIZE_IN, dpi=DOTS_PER_INCH)
    axes.set_position((0.01, 0.06, 0.98, 0.84))
    boxes = {}
    for name, (x, y) in place.items():
        kind = "topic" if name.startswith("topic ") else "agent" if name in agents else "other process"
        box = {"boxstyle": "square,pad=0.4" if kind == "topic" else "round,pad=0.4", "facecolor": COLOURS[kind],
               "edgecolor": LINE, "linewidth": 0.8}  # fmt: skip
        boxes[name] = axes.text(
            x, y, name.removeprefix("topic "), ha="center", va="center", fontsize=8.5, color=INK, zorder=5, bbox=box
        )
    axes.set_xlim(-0.55, FOLD - 0.45)
    axes.set_ylim(min(y for _, y in place.values()) - 0.6, max(y for _, y in place.values()) + 0.6)
    axes.axis("off")
    figure.canvas.draw()  # now the boxes know how large they are, and arrows end at them
    for before, after in links(table):
        style = {
            "arrowstyle": "-|>,head_length=0.35,head_width=0.18", "color": LINE, "linewidth": 0.8, "shrinkA": 1,
            "shrinkB": 1, "patchA": boxes[before].get_bbox_patch(), "patchB": boxes[after].get_bbox_patch(),
            "connectionstyle": "arc3,rad=0.06",
        }  # fmt: skip
        axes.annotate("", xy=place[after], xytext=place[before], arrowprops=style)
    figure.text(0.015, 0.955, "Who reads and writes what", fontsize=13, fontweight="bold", color=INK, va="center")
    figure.legend(
        handles=[Patch(facecolor=colour, edgecolor=LINE, label=kind) for kind, colour in COLOURS.items()],
        loc="center right", bbox_to_anchor=(0.99, 0.955), ncols=3, frameon=False, fontsize=8, labelcolor=INK,
    )  # fmt: skip
    figure.text(
        0.015, 0.03, f"Not drawn: every agent may also write {' and '.join(topic.name for topic in ALWAYS)}.",
        fontsize=8, color=SOFT, va="center",
    )  # fmt: skip
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
    plt.close(figure)
