"""The picture of the graph: nothing lies on a name, what is apart is counted, and it is drawn the same again."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import graph
from streams import graph_picture as picture
from streams.graph_view import View, view
from streams.lettering import drawable, fitted, letters
from tests.folding import T0_MS, act, run

HALF_LIFE_MS = 1_000_000
WIDE, HIGH = 900.0, 600.0
FULL = settings(max_examples=60, deadline=None)


def of_pairs(pairs: Sequence[tuple[str, str]]) -> View:
    """Measure a graph in which each pair is a reply."""
    from schemas.events import Ticked

    limits, state = graph.Limits(every_ms=1000, half_life_ms=HALF_LIFE_MS), graph.State()
    events = [act(f"p{i}", one, other) for i, (one, other) in enumerate(pairs)]
    run(graph.step, state, *events, Ticked(at_ms=T0_MS), limits=limits)
    return view(state, limits.every_ms, HALF_LIFE_MS)


def stars(number: int, rays: int) -> list[tuple[str, str]]:
    return [(f"x:@{hub}-{ray}", f"x:@{hub}") for hub in range(number) for ray in range(rays)]


def names_drawn(found: View, drawn: Any) -> set[str]:
    return {found.names[one] for one in drawn}


def test_a_hub_is_drawn_with_its_neighbours_and_a_pair_apart_is_only_counted() -> None:
    found = of_pairs([*stars(3, 6), ("x:@lone", "x:@pair")])
    drawn, aside = picture.core(found)
    assert len(drawn) == 21
    assert aside == 2
    assert not names_drawn(found, drawn) & {"x:@lone", "x:@pair"}
    assert all(degree for _, degree in drawn.degree())


def test_where_there_are_only_pairs_the_pairs_are_the_picture() -> None:
    found = of_pairs([("a", "b"), ("c", "d")])
    drawn, aside = picture.core(found)
    assert (names_drawn(found, drawn), aside) == ({"a", "b", "c", "d"}, 0)


def test_however_large_the_graph_a_bounded_part_of_it_is_drawn_with_the_strongest_neighbours() -> None:
    weak = [(f"fan{i}", f"hub{i % 60}") for i in range(3_000)]
    strong = [(f"friend{i}", f"hub{i % 60}") for i in range(60) for _ in range(5)]
    found = of_pairs([*weak, *strong])
    drawn, _ = picture.core(found)
    assert len(drawn) <= picture.HUBS_MAX * (1 + picture.NEAR_MAX)
    hubs = {one for one in names_drawn(found, drawn) if one.startswith("hub")}
    assert len(hubs) == picture.HUBS_MAX
    assert {f"friend{hub[3:]}" for hub in hubs} <= names_drawn(found, drawn)


def test_acts_in_both_directions_are_one_line() -> None:
    found = of_pairs([("a", "b"), ("b", "a"), ("c", "a")])
    drawn, _ = picture.core(found)
    a, b, c = (found.names.index(one) for one in "abc")
    assert drawn[a][b]["weight"] == pytest.approx(2 * drawn[a][c]["weight"])


# ---- where things stand ---------------------------------------------------------------------------------------------


def overlaps(boxes: Sequence[picture.Box]) -> int:
    return sum(one.meets(other) for one, other in combinations(boxes, 2))


def discs(place: dict[int, Any], radius: dict[int, float]) -> list[picture.Box]:
    return [picture.Box(x - radius[a], y - radius[a], x + radius[a], y + radius[a]) for a, (x, y) in place.items()]


def crowd(seed: int, number: int) -> tuple[dict[int, Any], dict[int, float], list[tuple[int, float, float]]]:
    """Scatter discs that do not overlap, and names for all of them."""
    rng = random.Random(seed)
    place: dict[int, Any] = {}
    radius = {one: rng.uniform(4, 20) for one in range(number)}
    for one in radius:
        for _ in range(50):
            at = (rng.uniform(25, WIDE - 25), rng.uniform(25, HIGH - 25))
            if all(math.dist(at, place[other]) > radius[one] + radius[other] for other in place):
                place[one] = at
                break
    return place, radius, [(one, rng.uniform(20, 160), rng.uniform(10, 20)) for one in place]


@FULL
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_no_name_lies_on_another_nor_on_a_disc_nor_off_the_page(seed: int, number: int) -> None:
    place, radius, names = crowd(seed, number)
    found = dict(picture.lettered(names, place, radius, (WIDE, HIGH)))
    boxes = list(found.values())
    assert overlaps(boxes) == 0
    assert not any(box.meets(disc) for box in boxes for disc in discs(place, radius))
    assert all(box.left >= 0 and box.low >= 0 and box.right <= WIDE and box.high <= HIGH for box in boxes)
    if names:
        assert names[0][0] in found or number > 20  # the first has the first choice


def centred(
    names: Sequence[tuple[int, float, float]], place: dict[int, Any], radius: dict[int, float], page: Any
) -> Iterator[tuple[int, picture.Box]]:
    """Negative control: each name under its disc, as the picture had it once."""
    for one, wide, high in names:
        x, y = place[one]
        low = y - radius[one] - 3 - high
        yield one, picture.Box(x - wide / 2, low, x + wide / 2, low + high)


def test_control_names_under_their_discs_do_overlap() -> None:
    place, radius, names = crowd(5, 60)
    assert overlaps([box for _, box in centred(names, place, radius, (WIDE, HIGH))]) > 0


@FULL
@given(st.lists(st.floats(5, 80), min_size=1, max_size=40), st.floats(0.5, 3))
def test_packed_circles_do_not_overlap(radii: list[float], aspect: float) -> None:
    radii = sorted(radii, reverse=True)
    centres = picture.packed(radii, aspect)
    for (one, a), (other, b) in combinations(zip(centres, radii, strict=True), 2):
        assert math.dist(one, other) >= a + b - 1e-6


@pytest.mark.parametrize("parts", [[40], [9, 9, 9, 9], [30, 12, 3, 3], [1]])
def test_no_disc_lies_on_another_and_all_are_on_the_page(parts: list[int]) -> None:
    drawn = nx.disjoint_union_all([nx.star_graph(size - 1) for size in parts])
    radius = {one: 4 + one % 7 for one in drawn}
    place = picture.arranged(drawn, radius, WIDE, HIGH)
    for one, other in combinations(drawn, 2):
        assert math.dist(place[one], place[other]) >= radius[one] + radius[other]
    for one, (x, y) in place.items():
        assert radius[one] <= x <= WIDE - radius[one]
        assert radius[one] <= y <= HIGH - radius[one]


# ---- the files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.filterwarnings("error")  # matplotlib warns of a letter that it has no glyph for
def test_the_same_graph_is_the_same_file_byte_for_byte_whatever_its_names_hold(suffix: str, tmp_path: Path) -> None:
    odd = [
        ("$\\frac{1}{0}$", "x:@0"),
        ("日本語" * 20, "x:@0"),
        ("<b>&amp;", "x:@1"),
        ("ev\x9bil", "x:@2"),
        ("😀", "x:@2"),
    ]
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        drawn = picture.draw(of_pairs([*stars(12, 8), *odd, ("x:@0", "x:@1"), ("x:@1", "x:@2")]), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(drawn) > 100
    if suffix == ".png":
        assert int.from_bytes(files[0].read_bytes()[16:20], "big") == 1_600


def test_an_empty_graph_is_a_page_that_says_so(tmp_path: Path) -> None:
    picture.draw(of_pairs([]), tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")


# ---- letters --------------------------------------------------------------------------------------------------------


@FULL
@given(st.text(max_size=60), st.integers(5, 40))
def test_what_is_drawn_has_a_glyph_for_each_letter_and_keeps_to_its_length(text: str, chars_max: int) -> None:
    assert all(ord(one) in letters() for one in drawable(text))
    assert len(fitted(text, chars_max)) <= chars_max


def test_letters_without_a_glyph_are_counted_and_ids_differ_after_they_were_cut() -> None:
    assert drawable("\U00013000\U00013001") == "[2 letters]"  # hieroglyphs
    assert drawable("two\nlines \x1b[31m") == "two lines \N{REPLACEMENT CHARACTER}[31m"
    did = "bluesky:did:plc:"
    assert fitted(f"{did}{'a' * 22}xy", 30) != fitted(f"{did}{'a' * 22}zw", 30)
