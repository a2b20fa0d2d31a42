"""The picture of the topology: everything is on the page, nothing lies on another, and nothing flows backwards."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from schemas.topics import TOPICS
from streams import drawing
from streams.topology import ALWAYS, OUTSIDE, stages

TABLE = stages()


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """Collect each name that is drawn: its text, its outline and its page's, in pixels."""
    from matplotlib.figure import Figure

    found: list[tuple[str, Any, Any]] = []
    write = Figure.savefig

    def look(figure: Any, *given: Any, **more: Any) -> None:
        write(figure, *given, **more)
        names = [text for text in figure.axes[0].texts if text.get_text()]  # an arrow is a text without any
        found.extend((one.get_text(), one.get_bbox_patch().get_window_extent(), figure.bbox) for one in names)

    monkeypatch.setattr(Figure, "savefig", look)
    return found


def test_everything_is_drawn_once_within_the_page_and_nothing_lies_on_another(boxes: list[Any], tmp_path: Path) -> None:
    drawing.draw(TABLE, tmp_path / "topology.png")
    assert int.from_bytes((tmp_path / "topology.png").read_bytes()[16:20], "big") == 1_600
    quiet = {topic.name for topic in ALWAYS}
    drawn = [topic.name for topic in TOPICS if topic.name not in quiet] + [stage.name for stage in TABLE]
    assert set(drawn) | {one.name for one in OUTSIDE} >= {name for name, _, _ in boxes} >= set(drawn)
    for name, box, page in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1, name
        assert page.y0 <= box.y0 < box.y1 <= page.y1, name
    for (one, a, _), (other, b, _) in combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


def test_everything_stands_in_a_later_column_than_what_leads_to_it() -> None:
    column = drawing.layers(TABLE)
    links = drawing.links(TABLE)
    assert len(links) > len(TABLE) * 2
    assert all(column[before] < column[after] for before, after in links)


def test_control_names_on_one_line_would_lie_on_another(
    boxes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = drawing.places
    monkeypatch.setattr(drawing, "places", lambda table: {name: (x, 0.0) for name, (x, _) in places(table).items()})
    drawing.draw(TABLE, tmp_path / "topology.png")
    assert any(a.overlaps(b) for (_, a, _), (_, b, _) in combinations(boxes, 2))
