"""Counts that go back to an earlier value are written, and a message taken in again is not, whatever dies between."""

import asyncio
import sqlite3
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import metadata
from schemas.envelope import Record
from schemas.events import EngagementNoted
from schemas.posts import EngagementObserved
from streams import ingest as module
from streams.fold import Sent
from streams.ingest import Intake, Known, ingest
from streams.policy import Policy
from streams.records import content_id
from streams.settings import Settings
from streams.written import Written
from tests.ingest_ends import NOW_MS, MemoryKeys, Recorder, as_lines, dump, in_memory, page, post, take
from tests.mastodon_server import HOST, account, number, status

POLL = [10, 5000, 10, 10, 5000]


def poll(likes: int, hour: int, post_number: int = 1) -> dict[str, Any]:
    """A page as somebody polled it: when, is in it."""
    return page(post(post_number, public_metrics={"like_count": likes}), meta={"asked": hour})


def remembered(path: Path | None = None, **more: Any) -> Known:
    return in_memory()._replace(written=Written(path, "log", **more))


def counted(end: Recorder) -> list[int]:
    return [one.likes for one in end.events(EngagementObserved)]


def seen(end: Recorder) -> dict[str, Any]:
    """What readers keep: an id that comes again is absorbed (streams/fold.py)."""
    found: dict[str, Any] = {}
    for one in end.records:
        found.setdefault(dict(one.headers)["ce_id"].decode(), one.event)
    return found


def newest(end: Recorder) -> dict[str, int]:
    """What the first step tells the rewards of each subject, last."""
    records = [Record("tweets", 0, at, NOW_MS, *one) for at, one in enumerate(seen(end).items())]
    outs, _ = metadata.step(records, metadata.State())
    return {one.event.subject.split("/")[1]: one.event.likes for one in outs if isinstance(one.event, EngagementNoted)}


@pytest.mark.parametrize("apart", [True, False], ids=["one by one", "in one file"])
def test_counts_that_go_back_are_written_and_what_says_the_same_is_not(apart: bool) -> None:
    known, lines = remembered(), as_lines(dump(*(poll(likes, hour) for hour, likes in enumerate(POLL))))
    end = Recorder()
    for batch in [[one] for one in lines] if apart else [lines]:
        end.records += take(batch, known=known)[1].records
    assert counted(end) == [10, 5000, 10, 5000]
    assert len(seen(end)) == 5
    assert newest(end) == {f"x:{10**18 + 1}": 5000}
    assert newest(take(lines[:3], known=remembered())[1]) == {f"x:{10**18 + 1}": 10}


def test_control_without_what_was_written_the_peak_is_kept() -> None:
    end = take(as_lines(dump(*(poll(likes, hour) for hour, likes in enumerate(POLL[:3])))))[1]
    assert newest(end) == {f"x:{10**18 + 1}": 5000}


def test_what_boosts_tell_of_a_status_at_different_times_counts() -> None:
    def boosted(likes: int, at: int) -> dict[str, Any]:
        inner = status(account=account("77"), favourites_count=likes)
        outer = status(id=number(NOW_MS, at), reblog=inner, uri=f"https://{HOST}/{at}")
        return {"host": HOST, "event": "update", "payload": outer}

    known = remembered()
    lines = as_lines(dump(*(boosted(likes, at) for at, likes in enumerate((3, 4, 3)))))
    _, end = take(lines, "mastodon", known=known)
    assert counted(end) == [3, 4, 3]
    assert take(lines, "mastodon", known=known)[1].records == []


@pytest.mark.parametrize("same", [False, True], ids=["each message its own", "messages equal in every byte"])
def test_a_file_taken_in_again_adds_nothing_whatever_came_between(same: bool) -> None:
    known = remembered()
    lines = as_lines(dump(*(poll(likes, 0 if same else hour) for hour, likes in enumerate(POLL))))
    _, first = take(lines, known=known)
    assert counted(first) == ([10, 5000] if same else [10, 5000, 10, 5000])  # one message is heard once
    for between in (None, 7, 10, None):
        if between is not None:
            take(as_lines(dump(poll(between, 100 + between))), known=known)
        summary, again = take(lines, known=known)
        assert again.records == []
        assert (summary.repeated, summary.engagements, summary.unaccounted) == (len(POLL), 0, 0)


def test_sights_that_say_nothing_new_are_noted_too() -> None:
    known = remembered()
    take(as_lines(dump(poll(10, 0))), known=known)
    same = as_lines(dump(poll(10, 1)))
    assert take(same, known=known)[1].records == []
    assert counted(take(as_lines(dump(poll(5000, 2))), known=known)[1]) == [5000]
    assert take(same, known=known)[1].records == [], "heard before the newest, and not after it"


def test_sights_that_say_nothing_new_are_noted_before_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_RECORDS_MAX", 20)
    known, most = remembered(), 0
    intake = Intake("x", Settings(), MemoryKeys(), Policy.load(), known)
    for one in intake.records(as_lines(dump(*(poll(10, hour) for hour in range(500))))):
        assert intake.polls is not None
        most = max(most, len(intake.polls))
        if one is None:
            intake.acknowledged([])
    assert most < 30


class Broken(Recorder):
    """The log, away after some records; a chunk may be there in part."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    async def send(self, records: Iterable[Sent]) -> None:
        for one in records:
            if self.left == 0:
                raise ConnectionError("the broker is away")
            self.left -= 1
            await super().send([one])


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_crash_anywhere_repeats_under_the_same_names(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = as_lines(dump(*(poll(likes, hour) for hour, likes in enumerate(POLL))))
    whole = seen(take(lines, known=remembered())[1])
    monkeypatch.setattr(module, "CHUNK_RECORDS_MAX", chunk)
    for left in range(len(whole) + 1):
        end, file = Broken(left), tmp_path / f"{left}.sqlite"
        for _ in range(3):
            known = remembered(file)
            run = ingest(lines, "x", Settings(), end, MemoryKeys(), Policy.load(), lambda: NOW_MS, known=known)
            try:
                asyncio.run(run)
            except ConnectionError:
                end.left = 10**9
            known.close()
        assert list(seen(end).items()) == list(whole.items())


SIGHTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=25)


@given(SIGHTS, st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_the_newest_counts_are_the_last_that_anybody_told(sights: list[tuple[int, int]], cut: int) -> None:
    lines = as_lines(dump(*(poll(likes, hour, which) for hour, (which, likes) in enumerate(sights))))
    known, end = remembered(), Recorder()
    for begin in range(0, len(lines), cut):
        end.records += take(lines[begin : begin + cut], known=known)[1].records
    assert newest(end) == {f"x:{10**18 + which}": likes for which, likes in sights}
    told = [(one.post, one.likes) for one in end.events(EngagementObserved)]
    per_post = [[likes for post, likes in told if post == f"x:{10**18 + which}"] for which in range(3)]
    assert all(one != other for each in per_post for one, other in pairwise(each))
    assert take(lines, known=known)[1].records == []
    whole = take(lines, known=remembered())[1]
    assert list(seen(whole)) == list(seen(end)), "wherever the chunks are cut"


def test_the_first_of_any_counts_has_the_name_that_it_always_had() -> None:
    _, end = take(as_lines(dump(*(poll(likes, hour) for hour, likes in enumerate(POLL)))), known=remembered())
    assert [name == content_id(one) for name, one in seen(end).items()] == [True, True, True, False, False]


def test_a_file_from_before_goes_on_and_writes_nothing_twice(tmp_path: Path) -> None:
    file, lines = tmp_path / "written.sqlite", as_lines(dump(poll(10, 0), poll(5000, 1), poll(10, 2)))
    known = remembered(file)
    _, end = take(lines, known=known)
    known.close()
    db = sqlite3.connect(file)
    db.execute("drop table newest")
    contents = [bytes.fromhex(content_id(one.event)) for one in end.records]
    for one in (0, 1):
        marks = ", ".join("?" * len(contents))
        db.execute(f"delete from written{one} where id not in ({marks})", contents)
    db.commit()
    db.close()
    known = remembered(file)
    assert take(lines, known=known)[1].records == []
    assert counted(take(as_lines(dump(poll(7, 3))), known=known)[1]) == [7]
    assert counted(take(as_lines(dump(poll(10, 4))), known=known)[1]) == [10]


def test_the_newest_counts_last_make_room_and_belong_to_one_log(tmp_path: Path) -> None:
    file = tmp_path / "written.sqlite"
    memory = Written(file, "log", posts_max=10)
    for post_number in range(95):
        memory.note([f"{post_number:032x}"], {f"x:{post_number}": f"{post_number:032x}"})
    memory.close()
    memory = Written(file, "log", posts_max=10)
    assert [memory.newest(f"x:{at}") for at in range(90, 95)] == [f"{at:032x}" for at in range(90, 95)]
    assert sum(memory.newest(f"x:{at}") is not None for at in range(95)) <= 20
    memory.close()
    assert Written(file, "another").newest("x:94") is None
