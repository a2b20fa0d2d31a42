"""Graph picture: the most influential authors and those nearest to them, coloured by community, on one page.

Who is drawn, where they stand and where their names stand are functions of the graph and a seed, so two exports of one
log are one picture. Nothing lies on a name. What is left out is counted in the caption.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streams.graph_view import View, ranked, told
from streams.lettering import families, fitted

HUBS_MAX = 40  # the most influential
NEAR_MAX = 9  # the strongest neighbours of each, so that a hub is seen with what makes it one
TOGETHER_MIN = 3  # authors: a pair that touches nobody else is counted, not drawn
LABELS_MAX = 25
LABEL_CHARS_MAX = 26
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")  # Okabe and Ito 2008
REST = "#B8BEC8"
INK, SOFT, LINE = "#1f2937", "#6b7280", "#64748b"
DOTS_PER_INCH = 160
SIZE_IN = (10.0, 6.4)  # 1,600 pixels wide
PAGE = (0.01, 0.085, 0.77, 0.825)  # of the figure: what the graph may use; the legend stands beside it
RADIUS_PX = (4.5, 24.0)
SEED = 7
TURNS = 120  # of the spring layout, and of pushing discs apart

Place = tuple[float, float]


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    low: float
    right: float
    high: float

    def meets(self, other: "Box") -> bool:
        """Say whether two rectangles have a point in common."""
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


def core(found: View) -> tuple[Any, int]:
    """Give what is drawn as a networkx.Graph (weight: both directions together), and how many hubs are set aside."""
    import networkx as nx

    source, target = found.edges.source.astype(np.int64), found.edges.target.astype(np.int64)
    hubs = ranked(found)[:HUBS_MAX]
    drawn = set(hubs)
    for hub in hubs:
        here = np.flatnonzero((source == hub) | (target == hub))
        strongest = here[np.argsort(-found.edges.weight[here], kind="stable")][:NEAR_MAX]
        drawn.update((source[strongest] + target[strongest] - hub).tolist())
    graph = nx.Graph()
    graph.add_nodes_from(sorted(drawn))
    inside = np.isin(source, list(drawn)) & np.isin(target, list(drawn))
    for one, other, weight in zip(source[inside].tolist(), target[inside].tolist(), found.edges.weight[inside].tolist(),
                                  strict=True):  # fmt: skip
        graph.add_edge(one, other, weight=weight + graph.get_edge_data(one, other, {"weight": 0.0})["weight"])
    small = {one for some in nx.connected_components(graph) if len(some) < TOGETHER_MIN for one in some}
    if len(small) == len(graph):
        return graph, 0  # there is nothing larger: then they are the picture
    graph.remove_nodes_from(small)
    return graph, len(small & set(hubs))


def arranged(graph: Any, radius: dict[int, float], wide: float, high: float) -> dict[int, Place]:
    """Place each author within wide x high pixels: springs within what is connected, the largest part in the middle."""
    import networkx as nx

    parts = sorted(nx.connected_components(graph), key=lambda some: (-len(some), min(some)))
    inside, around = [], []
    for some in parts:
        part = graph.subgraph(sorted(some))
        spread = nx.spring_layout(part, k=2.2 / math.sqrt(len(part)), iterations=TURNS, seed=SEED, weight=None)
        at = np.array([spread[one] for one in part])
        at -= (at.max(axis=0) + at.min(axis=0)) / 2
        furthest = max(1e-9, float(np.hypot(*at.T).max()))
        room = 1.15 * math.sqrt(sum((radius[one] + 9) ** 2 for one in part)) + 12
        inside.append(dict(zip(part, (at / furthest * room).tolist(), strict=True)))
        around.append(room + 18)
    centres = packed(around, wide / high)
    place = {
        one: (x + cx, y + cy) for (cx, cy), some in zip(centres, inside, strict=True) for one, (x, y) in some.items()
    }
    at = np.array(list(place.values())).reshape(-1, 2)
    at -= (at.max(axis=0) + at.min(axis=0)) / 2
    margin = max(radius.values()) + 14
    scale = min((wide / 2 - margin, high / 2 - margin) / np.maximum(np.abs(at).max(axis=0), 1e-9))
    at = at * min(scale, 2.5) + (wide / 2, high / 2)
    at = apart(at, np.array([radius[one] for one in place]), (wide, high))
    return dict(zip(place, map(tuple, at.tolist()), strict=True))


def packed(radii: Sequence[float], aspect: float) -> list[Place]:
    """Place circles, the largest first, each at the first free turn of a spiral `aspect` times as wide as high."""
    done: list[tuple[float, float, float]] = []
    step = min(radii, default=1.0) / 2
    for radius in radii:
        for turn in itertools.count():
            away = step * math.sqrt(turn)
            x, y = away * math.cos(turn * 2.399963) * aspect, away * math.sin(turn * 2.399963)  # the golden angle
            if all(math.hypot(x - cx, y - cy) >= radius + other for cx, cy, other in done):
                done.append((x, y, radius))
                break
    return [(x, y) for x, y, _ in done]


def apart(at: Any, radius: Any, page: Place, gap: float = 5.0) -> Any:
    """Push discs apart until none lies on another, or for TURNS turns; all stay on the page."""
    need = radius[:, None] + radius[None, :] + gap
    for _ in range(TURNS):
        between = at[:, None, :] - at[None, :, :]
        far = np.hypot(between[..., 0], between[..., 1])
        np.fill_diagonal(far, np.inf)
        short = np.maximum(0.0, need - far)
        if not short.any():
            break
        at = at + (between / np.maximum(far, 1e-6)[..., None] * short[..., None] / 2).sum(axis=1)
        at = np.clip(at, radius[:, None] + 2, np.array(page) - radius[:, None] - 2)
    return at


def lettered(
    names: Iterable[tuple[int, float, float]], place: dict[int, Place], radius: dict[int, float], page: Place
) -> Iterator[tuple[int, Box]]:
    """Give a free rectangle to each name (author, width, height) in turn: near its disc, on no disc and no other name.

    Sides are tried before corners, near before far; a name for which nothing is free is left out.
    """
    taken = [Box(x - radius[one], y - radius[one], x + radius[one], y + radius[one]) for one, (x, y) in place.items()]
    for author, wide, high in names:
        x, y = place[author]
        for away, turn in itertools.product(
            (3, 14, 30, 50, 75), (0, 8, 4, 12, 2, 6, 14, 10, 1, 3, 5, 7, 9, 11, 13, 15)
        ):
            dx, dy = math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)
            cx, cy = x + dx * (radius[author] + away + wide / 2), y + dy * (radius[author] + away + high / 2)
            box = Box(cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2)
            on_page = box.left >= 0 and box.low >= 0 and box.right <= page[0] and box.high <= page[1]
            if on_page and not any(box.meets(other) for other in taken):
                taken.append(box)
                yield author, box
                break


def draw(found: View, file: Path) -> Any:
    """Draw it as PNG or SVG, by the file's suffix; gives the networkx.Graph that was drawn. OSError: not written."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    look = {"font.family": list(families()), "text.parse_math": False, "svg.hashsalt": "xinfluencer"}
    with plt.rc_context(look):
        graph, aside = core(found)
        figure = plt.figure(figsize=SIZE_IN, dpi=DOTS_PER_INCH)
        try:
            _page(figure, found, graph, aside)
            kind = file.suffix.removeprefix(".")
            figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata={"Date": None} if kind == "svg" else None)
        finally:
            plt.close(figure)
    return graph


def _page(figure: Any, found: View, graph: Any, aside: int) -> None:
    from matplotlib.collections import EllipseCollection, LineCollection
    from matplotlib.patheffects import withStroke

    wide, high = SIZE_IN[0] * DOTS_PER_INCH * PAGE[2], SIZE_IN[1] * DOTS_PER_INCH * PAGE[3]
    axes = figure.add_axes(PAGE, xlim=(0, wide), ylim=(0, high))
    axes.axis("off")
    influence = {one: float(found.places["influence"][one]) for one in graph}
    most = max(influence.values(), default=0.0) or 1.0
    radius = {one: max(RADIUS_PX[0], RADIUS_PX[1] * math.sqrt(share / most)) for one, share in influence.items()}
    place = arranged(graph, radius, wide, high) if len(graph) else {}
    members = Counter(found.places["community"][~np.isnan(found.places["percentile"])].tolist())
    community = {one: int(found.places["community"][one]) for one in graph}
    weighs = dict.fromkeys(community.values(), 0.0)
    for one, share in influence.items():
        weighs[community[one]] += share
    first = sorted(weighs, key=lambda one: (-weighs[one], one))[: len(COLOURS)]
    colour = dict(zip(first, COLOURS, strict=False))

    edges = sorted(graph.edges(data="weight"), key=lambda edge: edge[2])
    heaviest = edges[-1][2] if edges else 1.0
    strength = [(weight / heaviest) ** 0.5 for *_, weight in edges]
    lines = [(place[one], place[other]) for one, other, _ in edges]
    shades = [(*(int(LINE[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.2 + 0.6 * one) for one in strength]
    axes.add_collection(LineCollection(lines, colors=shades, linewidths=[0.4 + 2.0 * one for one in strength]))
    order = sorted(graph, key=lambda one: influence[one])
    across = [2 * radius[one] for one in order]
    axes.add_collection(EllipseCollection(
        across, across, [0] * len(order), units="xy", offsets=[place[one] for one in order],
        offset_transform=axes.transData, facecolors=[colour.get(community[one], REST) for one in order],
        edgecolors="white", linewidths=0.6, zorder=2,
    ))  # fmt: skip

    halo = [withStroke(linewidth=2.2, foreground="white")]
    texts = {
        one: axes.text(0, 0, fitted(found.names[one], LABEL_CHARS_MAX), fontsize=7, color=INK, zorder=4,
                       ha="center", va="center", path_effects=halo)
        for one in sorted(graph, key=lambda one: (-influence[one], one))[:LABELS_MAX]
    }  # fmt: skip
    extents = ((one, text.get_window_extent()) for one, text in texts.items())
    sizes = [(one, box.width + 4, box.height + 2) for one, box in extents]
    named = dict(lettered(sizes, place, radius, (wide, high)))
    for one, text in texts.items():
        if one not in named:
            text.remove()
            continue
        box, (x, y) = named[one], place[one]
        text.set_position(((box.left + box.right) / 2, (box.low + box.high) / 2))
        near = (min(max(x, box.left), box.right), min(max(y, box.low), box.high))
        if math.dist(near, (x, y)) > radius[one] + 10:
            axes.plot(*zip((x, y), near, strict=True), color=INK, linewidth=0.5, zorder=1.5)
    _legend(figure, found, first, colour, members, influence, community)
    _words(figure, found, graph, aside, len(named), len(members))


def _legend(
    figure: Any, found: View, first: list[int], colour: dict[int, str], members: Counter[int],
    influence: dict[int, float], community: dict[int, int],
) -> None:  # fmt: skip
    from matplotlib.lines import Line2D

    def dot(shade: str, text: str) -> Any:
        return Line2D([], [], linestyle="", marker="o", markersize=7, markeredgecolor="white", color=shade, label=text)

    lead = {
        one: max((a for a in community if community[a] == one), key=lambda author: (influence[author], -author))
        for one in first
    }
    dots = [dot(colour[one], f"{fitted(found.names[lead[one]], 22)}\n{members[one]:,} authors") for one in first]
    others = len(set(community.values())) - len(first)
    if others:
        dots.append(dot(REST, f"{others:,} other communities"))
    figure.legend(
        handles=dots, loc="center left", bbox_to_anchor=(PAGE[0] + PAGE[2] + 0.005, 0.5), frameon=False, fontsize=7.5,
        title="Communities, by their\nmost influential author", title_fontsize=8, labelspacing=0.9, alignment="left",
        handletextpad=0.3, labelcolor=INK,
    )  # fmt: skip


def _words(figure: Any, found: View, graph: Any, aside: int, named: int, communities: int) -> None:
    figure.text(0.015, 0.955, "Who acts towards whom", fontsize=13, fontweight="bold", color=INK, va="center")
    everyone = int((~np.isnan(found.places["percentile"])).sum())
    figure.text(
        0.015, 0.922, f"{everyone:,} authors, {len(found.edges.source):,} edges and {communities:,} communities at "
        f"{told(found.measured_ms)}", fontsize=8.5, color=SOFT, va="center",
    )  # fmt: skip
    left = everyone - len(graph)
    caption = (
        f"Drawn: {len(graph):,} authors and {graph.number_of_edges():,} edges: the {HUBS_MAX} most influential, each "
        f"with up to {NEAR_MAX} of the strongest neighbours. Not drawn: {left:,} authors"
        + (f", {aside:,} of them among the {HUBS_MAX} but in pairs apart from all others" if aside else "")
        + f".\nArea: influence. Lines: acts in both directions, wider and darker with weight. Named: {named} of the "
        f"{min(LABELS_MAX, len(graph))} most influential."
    )
    figure.text(0.015, 0.04, caption, fontsize=7, color=SOFT, va="center", linespacing=1.5)
