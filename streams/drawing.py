"""Drawing: the topology table -> a picture of it, left to right in the direction everything flows."""

from collections.abc import Sequence
from pathlib import Path

from schemas.topics import TOPICS
from streams.fold import Stage
from streams.topology import ALWAYS, OUTSIDE, edges

TOPIC_COLOUR, AGENT_COLOUR, PROCESS_COLOUR = "#dbeafe", "#dcfce7", "#fef3c7"


def layers(table: Sequence[Stage]) -> dict[str, int]:
    """Give each topic and each reader or writer its column: one more than the furthest thing before it."""
    quiet = {topic.name for topic in ALWAYS}
    links: list[tuple[str, str]] = []
    for read, who, written in edges(table):
        if written not in quiet:
            links += [(f"topic {read}", who)] * bool(read) + [(who, f"topic {written}")]
    column = {name: 0 for link in links for name in link}
    for _ in column:  # the graph has no cycle, so this settles within as many rounds as there are nodes
        for before, after in links:
            column[after] = max(column[after], column[before] + 1)
    return column


def draw(table: Sequence[Stage], path: Path) -> None:
    """Write the picture as PNG. Topics that every agent may write to are left out; the caption says so."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    column = layers(table)
    order = [f"topic {topic.name}" for topic in TOPICS] + [s.name for s in table] + [o.name for o in OUTSIDE]
    place: dict[str, tuple[float, float]] = {}
    for at in sorted(set(column.values())):
        here = sorted((name for name, c in column.items() if c == at), key=order.index)
        for row, name in enumerate(here):
            place[name] = (at * 2.3, (len(here) - 1) / 2 - row)
    figure, axes = plt.subplots(figsize=(2.1 * (max(column.values()) + 1), 6.5))
    colours = dict.fromkeys(place, PROCESS_COLOUR) | {s.name: AGENT_COLOUR for s in table}
    for name, (x, y) in place.items():
        topic = name.startswith("topic ")
        axes.text(
            x, y, name.removeprefix("topic "), ha="center", va="center", fontsize=10, zorder=5,
            bbox={"boxstyle": "square,pad=0.5" if topic else "round,pad=0.5",
                  "facecolor": TOPIC_COLOUR if topic else colours[name], "edgecolor": "#475569"},
        )  # fmt: skip
    quiet = {topic.name for topic in ALWAYS}
    seen = set()
    for read, who, written in edges(table):
        for link in [(f"topic {read}", who)] * bool(read) + [(who, f"topic {written}")] * (written not in quiet):
            if link not in seen:
                seen.add(link)
                style = {"arrowstyle": "-|>", "color": "#64748b", "shrinkA": 24, "shrinkB": 26}
                axes.annotate("", xy=place[link[1]], xytext=place[link[0]], arrowprops=style)
    axes.set_xlim(-1.2, max(x for x, _ in place.values()) + 1.2)
    axes.set_ylim(min(y for _, y in place.values()) - 0.8, max(y for _, y in place.values()) + 0.8)
    axes.axis("off")
    axes.set_title(
        "blue: topics, green: agents, yellow: other processes; every agent may also write dead-letters and alerts"
    )
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
