"""Forgetting, without the engine: who is asked for, what is held back, and when a receipt may be sent.

What happens to rows and to their bytes is in tests/test_sink.py, on the real engine.
"""

from typing import Any

import pytest

from schemas.facts import Where
from schemas.posts import PostDeleted
from streams.forgetting import ASKED, COUNTED, DONE, Forgetting, Request, parts_of

DID = "bluesky:@did:plc:a"
POST = "bluesky:did:plc:a~3k"


class Notes:
    """Stands where the warehouse stands: keeps rows, and says which old parts the engine still holds."""

    def __init__(self) -> None:
        self.kept: dict[str, list[tuple[Any, ...]]] = {"sink_erasure": [], "sink_forgotten": []}
        self.old: set[tuple[str, str]] = set()

    def keep(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        self.kept[table] += rows

    def rows(self, sql: str, **_: Any) -> list[tuple[Any, ...]]:
        if "system.parts" in sql:
            return list(self.old)
        if "sink_forgotten" in sql:
            return [(name,) for name, _ in reversed(self.kept["sink_forgotten"])]
        last = {row[:3]: row for row in self.kept["sink_erasure"]}
        return [row for row in last.values() if row[3] < DONE]


def asked(offset: int, owner: str, post: str | None = None) -> Request:
    return Request(Where(topic="tweets", partition=0, offset=offset), owner, post)


@pytest.fixture
def notes() -> Notes:
    return Notes()


def forgetting(notes: Notes) -> Forgetting:
    found = Forgetting(notes)  # type: ignore[arg-type]
    found.load()
    return found


def test_whoever_is_forgotten_is_hidden_under_every_name_that_an_id_holds(notes: Notes) -> None:
    one = forgetting(notes)
    assert not one.hides(POST)
    one.ask([asked(1, DID), asked(2, "x:@9", "x:7")])
    for hidden in (DID, POST, f"x:1/{POST}", f"{POST}/x:1", "x:7", "x:7/x:8", "x:8/x:7"):
        assert one.hides(hidden), hidden
        assert forgetting(notes).hides(hidden), f"{hidden}, in the next life"
    for shown in (None, "", "x:@9", "x:70", "x:9", "bluesky:did:plc:ab~3k", "bluesky:did:plc:a"):
        assert not one.hides(shown), shown
    assert DID not in str(notes.kept), "no file holds a name"


def test_an_author_and_a_post_of_one_number_are_two(notes: Notes) -> None:
    assert not set(asked(1, "x:@12").names) & set(parts_of("x:12"))
    one = forgetting(notes)
    one.ask([asked(1, "x:@12")])
    assert not one.hides("x:12")


def test_a_request_that_comes_again_keeps_its_count(notes: Notes) -> None:
    one = forgetting(notes)
    one.ask([asked(1, DID)])
    one.asked["tweets", 0, 1].rows = 5
    one.ask([asked(1, DID), asked(2, DID)])
    assert {key[2]: request.rows for key, request in one.asked.items()} == {1: 5, 2: None}
    assert [row[2] for row in notes.kept["sink_erasure"] if row[3] == ASKED] == [1, 2]


def test_what_was_counted_before_a_crash_is_not_counted_again(notes: Notes) -> None:
    notes.keep("sink_erasure", [("tweets", 0, 1, ASKED, 0, 7), ("tweets", 0, 1, COUNTED, 5, 7)])
    notes.keep(
        "sink_erasure", [("tweets", 0, 2, ASKED, 0, 8), ("tweets", 0, 3, ASKED, 0, 9), ("tweets", 0, 3, DONE, 1, 9)]
    )
    one = Forgetting(notes)  # type: ignore[arg-type]
    places = one.load()
    assert sorted(where.offset for where in places) == [1, 2], "what has its receipt is not asked for again"
    for where in places:
        one.resume(where, PostDeleted(post="x:7", owner="x:@9", source="x"))
    found = {key[2]: (request.rows, request.asked_ms) for key, request in one.asked.items()}
    assert found[1] == (5, 7), "counted when the rows were there; now they may be gone"
    assert found[2][0] is None


def test_no_receipt_is_due_while_an_old_part_lies_on_the_disk(notes: Notes) -> None:
    one = forgetting(notes)
    one.erased = [asked(1, DID)]
    one._old_parts = frozenset({("post_observed", "all_1_1_0"), ("post_edited", "all_2_2_0")})
    notes.old = {("post_edited", "all_2_2_0"), ("post_edited", "all_9_9_0")}
    assert one.gone() == []
    notes.old = {("post_edited", "all_9_9_0")}  # a later merge's, which never held the bytes
    assert one.gone() == one.erased
    one.done()
    assert one.gone() == []
    assert [row[3] for row in notes.kept["sink_erasure"]] == [DONE]
