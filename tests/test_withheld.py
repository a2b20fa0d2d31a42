"""B1: what was taken back is not trained on, though every step forgot the post: the log is asked, up to a cut.

The whole topology in memory, with memories so small that every post is forgotten long before it is deleted.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agents import metadata, pairing, rewards
from models.rows import dataset_sha256
from schemas import posts as ps
from schemas.events import FeedbackGiven, PostForgotten, SubjectWithdrawn
from schemas.facts import Event
from schemas.learned import BatchClosed, PairWithdrawn
from schemas.topics import BATCHES, KINDS, PREFERENCES, SIGNALS
from streams.dataset import Dataset, load, load_at
from streams.memory import Engine
from streams.records import outside, tick
from streams.topology import Tuning, stages
from streams.withheld import Withheld
from tests.bare_shell import T0_MS, Keys, said_by
from tests.test_survivors import LogReader

PAIRS = 9
WIDTH = 2


class Asked:
    """A log with one closed batch whose posts no step remembers, and what is said after it."""

    def __init__(self, forget: Callable[[], None]) -> None:
        self.engine = Engine(stages(Tuning(ages_ms=(1_000,), margin_min=0.01)), Keys(), width=WIDTH)
        for number in range(PAIRS):
            prompt = said_by(f"x:{number}", f"x:@asks{number}")
            good, bad = (said_by(f"x:{number}{one}", f"x:@{one}{number}", prompt.post) for one in ("good", "bad"))
            self.say(prompt, good, bad, *(thumb(prompt, one, at) for at, one in enumerate((bad, good))), run=False)
        self.engine.run()
        self.tick(60_000, SIGNALS)
        forget()
        for number in range(20):  # so much more that all of it is forgotten, by the time of the first deletion
            root = said_by(f"x:later{number}", f"x:@later{number % 3}")
            more = said_by(f"x:more{number}", f"x:@more{number % 3}", root.post)
            self.say(root, more, thumb(root, more, 1), run=False)
        self.engine.run()
        self.tick(120_000, SIGNALS)
        self.tick(10**8, PREFERENCES)
        (self.batch,) = [one for one in self.events(BATCHES.name) if isinstance(one, BatchClosed)]
        assert len(self.batch.pairs) == PAIRS

    def say(self, *events: Event, run: bool = True) -> None:
        self.engine.append(outside(one, "/sources/x", T0_MS, WIDTH, self.engine.keys) for one in events)
        if run:
            self.engine.run()

    def tick(self, after_ms: int, topic: Any) -> None:
        parts = [part for name, part in self.engine.log if name == topic.name]
        self.engine.append(tick(topic, part, T0_MS + after_ms) for part in parts)
        self.engine.run()

    def events(self, topic: str) -> list[Event]:
        found = []
        for (name, _), raws in self.engine.log.items():
            for raw in raws if name == topic else ():
                kind = KINDS[dict(raw.headers)["ce_type"].decode().split(".")[1]]
                found.append(kind.model_validate_json(raw.value or b""))
        return found

    @property
    def reader(self) -> Any:
        return LogReader(self.engine)

    def load(self, withheld: Withheld | None = None) -> Dataset:
        return asyncio.run(load(self.reader, [self.batch], self.engine.keys, withheld))

    def at(self, cut: Any) -> Dataset:
        return asyncio.run(load_at(self.reader, [self.batch], self.engine.keys, cut, Withheld()))


def thumb(prompt: Any, post: Any, value: int) -> FeedbackGiven:
    return FeedbackGiven(
        feedback=f"f:{post.post}",
        subject=f"{prompt.post}/{post.post}",
        rater="r",
        kind="thumb",
        value=value * 2 - 1,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    def forget() -> None:
        for module, name in ((metadata, "POSTS_MAX"), (pairing, "PROMPTS_MAX"), (rewards, "PROMPTS_MAX")):
            monkeypatch.setattr(module, name, 2)

    return Asked(forget)


def deleted(post: str, owner: str) -> ps.PostDeleted:
    return ps.PostDeleted(post=post, owner=owner, source="x")


def revision(post: str, owner: str, named: str) -> ps.PostEdited:
    return ps.PostEdited(**{**dict(said_by(post, owner)), "revision": 2, "named": named})


TAKING_BACK: list[tuple[str, list[Event], str]] = [
    ("the better text deleted", [deleted("x:3good", "x:@good3")], "post-deleted"),
    ("the worse text deleted", [deleted("x:3bad", "x:@bad3")], "post-deleted"),
    ("the prompt deleted", [deleted("x:3", "x:@asks3")], "post-deleted"),
    ("an edit deleted", [revision("x:3bad", "x:@bad3", "x:3b2"), deleted("x:3b2", "x:@bad3")], "post-deleted"),
    ("deleted, then the edit", [deleted("x:3b2", "x:@bad3"), revision("x:3bad", "x:@bad3", "x:3b2")], "post-deleted"),
    ("an author erased", [ps.AuthorErased(owner="x:@good3", source="x")], "author-erased"),
    ("the asker erased", [ps.AuthorErased(owner="x:@asks3", source="x")], "author-erased"),
    ("an author hidden", [ps.AuthorHidden(owner="x:@bad3", source="x", reason="suspended")], "author-hidden"),
    ("an author's no", [ps.IntentDeclared(owner="x:@bad3", source="x", train=False)], "intent-declared"),
    (
        "hidden and shown again",
        [
            ps.AuthorHidden(owner="x:@bad3", source="x", reason="suspended"),
            ps.AuthorShown(owner="x:@bad3", source="x"),
        ],
        "author-hidden",
    ),
    (
        "a no, then a yes",
        [ps.IntentDeclared(owner="x:@bad3", source="x", train=one) for one in (False, True)],
        "intent-declared",
    ),
]
OF_NO_MATTER: list[Event] = [
    deleted("x:3bad2", "x:@bad3"),
    ps.IntentDeclared(owner="x:@bad3", source="x", train=True, index=True),
    ps.AuthorShown(owner="x:@bad3", source="x"),
    ps.AuthorErased(owner="x:@bad33", source="x"),
]


@pytest.mark.parametrize(("events", "reason"), [one[1:] for one in TAKING_BACK], ids=[one[0] for one in TAKING_BACK])
def test_what_is_taken_back_is_withheld_though_no_step_remembers_it(
    asked: Asked, events: list[Event], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asked.load()
    assert (len(before.rows), before.withheld) == (PAIRS, {})
    asked.say(*events)
    assert not [one for one in asked.events(PREFERENCES.name) if isinstance(one, PairWithdrawn)], "it is known"
    after = asked.load()
    assert after.withheld == {reason: 1}
    (gone,) = {row.id for row in before.rows} - {row.id for row in after.rows}
    pair = after.pairs[gone]
    assert pair.prompt == "x:3"
    monkeypatch.setattr(Withheld, "reason", lambda self, where, event: None)
    assert len(asked.load().rows) == PAIRS, "control: without asking the log it is trained on"


def test_what_takes_nothing_back_withholds_nothing(asked: Asked) -> None:
    asked.say(*OF_NO_MATTER)
    assert (len(asked.load().rows), asked.load().withheld) == (PAIRS, {})


def test_the_rows_are_a_function_of_the_log_up_to_the_cut(asked: Asked) -> None:
    at = asked.load()
    asked.say(deleted("x:3bad", "x:@bad3"))
    then = asked.load()
    asked.say(deleted("x:5bad", "x:@bad5"))
    for cut, rows in ((at.cut, at.rows), (then.cut, then.rows)):
        assert dataset_sha256(asked.at(cut).rows) == dataset_sha256(rows)
    assert [len(one.rows) for one in (at, then, asked.load())] == [PAIRS, PAIRS - 1, PAIRS - 2]


def test_reading_on_gives_what_reading_from_the_beginning_gives(asked: Asked) -> None:
    """The trainer keeps what it read between two batches."""
    kept = Withheld()
    for _, events, _ in TAKING_BACK:
        asked.say(*events)
        fresh = Withheld()
        on, anew = asked.load(kept), asked.load(fresh)
        assert kept == fresh
        assert (dataset_sha256(on.rows), on.withheld) == (dataset_sha256(anew.rows), anew.withheld)


def test_a_key_that_went_ahead_of_the_cut_makes_a_new_cut(asked: Asked) -> None:
    """The worker destroys a key after it read why; whoever unseals between the two must not say that nobody knows."""
    reads = 0

    class Late(LogReader):
        async def ends(self, *topics: str) -> dict[tuple[str, int], int]:
            nonlocal reads
            found = await super().ends(*topics)
            if not reads:
                found = {place: end for place, end in ends_before.items() if place in found}
            reads += 1
            return found

    class Ahead(Keys):
        def leaf(self, owner: str, name: str) -> bytes | None:
            return None if name == "post/x:3bad" else super().leaf(owner, name)

    ends_before = asyncio.run(asked.reader.ends(*{topic for topic, _ in asked.engine.log}))
    asked.say(deleted("x:3bad", "x:@bad3"))
    late: Any = Late(asked.engine)
    found = asyncio.run(load(late, [asked.batch], Ahead()))
    assert (found.withheld, reads) == ({"post-deleted": 1}, 3)
    nobody_says_why = asyncio.run(load_at(asked.reader, [asked.batch], Ahead(), ends_before, Withheld()))
    assert nobody_says_why.withheld == {"words-gone": 1}


def test_the_key_of_a_post_that_nobody_remembers_goes_with_a_receipt_and_nothing_else_is_said(asked: Asked) -> None:
    before = len(asked.events(SIGNALS.name))
    asked.say(deleted("x:3bad", "x:@bad3"), deleted("x:never", "x:@never"))
    receipts = [one for one in asked.events("erasures") if isinstance(one, PostForgotten)]
    assert {(one.owner, one.post) for one in receipts} == {("x:@bad3", "x:3bad"), ("x:@never", "x:never")}
    assert len(asked.events(SIGNALS.name)) == before
    assert not [one for one in asked.events(SIGNALS.name) if isinstance(one, SubjectWithdrawn)]
