"""Taking in: every line and every post is an event or a dead letter, and taking it in twice changes nothing."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import metadata
from schemas.events import RecordRefused, SubjectNoted
from schemas.facts import AuthorFacts
from schemas.ids import digest
from schemas.posts import AuthorErased, EngagementObserved, PostDeleted, PostEdited, PostObserved
from streams import ingest as module
from streams.firsts import Firsts, firsts_file
from streams.formats import read
from streams.ingest import CHUNK_BYTES_MAX, CHUNK_RECORDS_MAX, Intake, ingest
from streams.lines import IngestRefused, read_lines
from streams.policy import Policy
from streams.reading import Reading
from streams.records import outside
from streams.settings import Settings
from streams.simulator import Simulator
from tests.ingest_ends import (
    NOW_MS,
    SHARED,
    MemoryKeys,
    Recorder,
    as_lines,
    dump,
    in_memory,
    page,
    post,
    post_v1,
    take,
    take_values,
    user,
    user_v1,
)

PAGES = SHARED / "v2-academic" / "pages_v2.jsonl.gz"
needs_pages = pytest.mark.skipif(not PAGES.exists(), reason=f"real pages are not on this machine ({PAGES})")


def as_sent(end: Recorder) -> Counter[tuple[Any, ...]]:
    """All that a reader could tell apart, but for the time."""
    return Counter(
        (one.topic, one.partition, one.key, one.value, tuple(pair for pair in one.headers if pair[0] != "ce_time"))
        for one in end.records
    )


# ---- what is taken in -----------------------------------------------------------------------------------------------


def test_a_post_goes_to_its_authors_partition_sealed_and_comes_back_as_it_was() -> None:
    keys = MemoryKeys()
    summary, end = take(as_lines(dump(page(post(1), post(2), includes={"users": [user(7001)]}))), keys=keys)
    assert (summary.lines, summary.posts_in, summary.posts, summary.engagements) == (1, 2, 2, 2)
    assert summary.by_policy == {"x-default": 2}
    assert all(b"post 1" not in one.value and b"p7001" not in one.value for one in end.records)
    assert [record.event for record in end.read(keys)] == end.events()
    assert {one.key for one in end.records} == {b"x:@7001", b"x:@7002"}
    assert dict(end.records[0].headers)["ce_source"] == b"/sources/x"


def test_taking_the_same_bytes_in_again_later_adds_nothing_that_can_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "feed.jsonl"
    file.write_bytes(b"\n".join([*dump(page(post(1), post(2))), b"{broken", *dump(post(3), {"x": 1})]))
    keys = MemoryKeys()
    _, first = take(read_lines(str(file)), keys=keys)
    _, again = take(read_lines(str(file)), keys=keys, clock_ms=lambda: NOW_MS + 86_400_000)
    assert as_sent(first) == as_sent(again)
    assert max(as_sent(first).values()) == 1
    assert {one.time_ms for one in again.records} == {NOW_MS + 86_400_000}


def test_control_an_id_that_holds_the_clock_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def clocked(event: Any, source: str, time_ms: int, width: int, keys: Any, event_id: str | None = None) -> Any:
        return outside(event, source, time_ms, width, keys, digest(str(time_ms), str(event)))

    monkeypatch.setattr(module, "outside", clocked)
    keys, lines = MemoryKeys(), as_lines(dump(post(1)))
    assert as_sent(take(lines, keys=keys)[1]) != as_sent(take(lines, keys=keys, clock_ms=lambda: NOW_MS + 1)[1])


def test_chunks_are_bounded_in_records_and_bytes_and_each_has_the_time_of_its_beginning() -> None:
    ticks = count(NOW_MS)
    summary, end = take(as_lines(dump(page(*(post(n) for n in range(2500))))), clock_ms=lambda: next(ticks))
    assert summary.posts == 2500
    assert end.chunks == [CHUNK_RECORDS_MAX, CHUNK_RECORDS_MAX, 1000]
    assert [one.time_ms for one in end.records][::2000] == [NOW_MS, NOW_MS + 1, NOW_MS + 2]
    summary, end = take(as_lines(dump(*(post(n, text="é" * 100_000) for n in range(80)))))
    assert (summary.posts, len(end.chunks)) == (80, 3)
    sizes = [len(one.value) for one in end.records]
    assert sum(sizes[: end.chunks[0]]) < CHUNK_BYTES_MAX + max(sizes)


def test_what_a_source_may_be_used_for_comes_from_the_policy() -> None:
    for source, name, train in (("x", "x-default", False), ("own", "own", True)):
        summary, end = take(as_lines(dump(post(1))), source)
        assert (summary.by_policy, summary.by_source) == ({name: 1}, {source: 1})
        assert {one.rights.train for one in end.events()} == {train}
        assert summary.withheld == ({} if train else {"train": 1})


def test_an_erased_author_never_comes_in_again_and_no_letter_says_so() -> None:
    keys = MemoryKeys()
    keys.keys["x:@7001"] = None
    repost = post(4, author_id="7001", referenced_tweets=[{"type": "retweeted", "id": "5"}])
    summary, end = take(as_lines(dump(page(post(1), post(2), repost))), keys=keys)
    assert summary.refused == {"owner-erased": 2}
    assert (summary.posts, summary.engagements, summary.refused_posts, summary.unaccounted) == (1, 1, 2, 0)
    assert end.events(RecordRefused) == []  # not even a hash of it


def test_a_post_that_was_deleted_before_it_came_is_counted_and_no_letter_says_so() -> None:
    class Deleted(MemoryKeys):
        def leaf(self, owner: str, name: str) -> bytes | None:
            return None if name == f"post/x:{10**18 + 1}" else super().leaf(owner, name)

    summary, end = take(as_lines(dump(page(post(1), post(2)))), keys=Deleted())
    assert summary.refused == {"deleted": 1}
    assert (summary.posts, summary.refused_posts, summary.unaccounted) == (1, 1, 0)
    assert end.events(RecordRefused) == []


def test_a_line_that_holds_nothing_is_counted() -> None:
    summary, end = take(as_lines([b"[]", b"[[]]"]))
    assert (summary.lines, summary.of_no_use, sum(summary.refused.values())) == (2, 1, 1)
    assert len(end.records) == 1


def test_links_are_kept_and_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def caught(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "create_connection", caught)
    monkeypatch.setattr(socket, "getaddrinfo", caught)
    link = "http://169.254.169.254/latest"
    _, end = take(as_lines(dump(post(1, entities={"urls": [{"expanded_url": link}]}))))
    assert end.events(PostObserved)[0].content.links == (link,)


def test_a_pause_of_the_producer_sends_what_there_is() -> None:
    end = Recorder()
    seen: list[int] = []

    def slow() -> Iterator[dict[str, Any] | None]:
        yield post(1)
        yield None
        seen.append(len(end.records))
        yield post(2)

    keys, policy = MemoryKeys(), Policy.load()
    run = module.ingest_values(slow(), "x", Settings(), end, keys, policy, lambda: NOW_MS, known=in_memory())
    asyncio.run(run)
    assert seen == [2]
    assert len(end.records) == 4


def test_what_the_sender_raises_stops_the_intake() -> None:
    class Broken(Recorder):
        async def send(self, records: Any) -> None:
            raise ConnectionError

    lines, keys, policy = as_lines(dump(post(1))), MemoryKeys(), Policy.load()
    with pytest.raises(ConnectionError):
        asyncio.run(ingest(lines, "x", Settings(), Broken(), keys, policy, int, known=in_memory()))


@pytest.mark.parametrize("source", ["", "X", "x y", "../x", "x" * 41, "é"])
def test_a_source_that_cannot_be_one_is_refused(source: str) -> None:
    with pytest.raises(IngestRefused, match="cannot be a source"):
        take([], source)


# ---- polled again ---------------------------------------------------------------------------------------------------


def seen(end: Recorder) -> list[tuple[str, bytes, bytes]]:
    """What readers tell events by, and what must then be equal: kind, id, body."""
    return [(type(one.event).__name__, dict(one.headers)["ce_id"], one.value) for one in end.records]


POLLS = st.lists(
    st.tuples(
        st.integers(0, 3),  # which post
        st.integers(0, 9),  # likes
        st.none() | st.integers(0, 9),  # the author's followers; None: no user came along
        st.sampled_from(("v2", "v1")),
        st.booleans(),  # the words were changed
    ),
    min_size=1,
    max_size=12,
)


def poll(number: int, likes: int, followers: int | None, form: str, changed: bool) -> dict[str, Any]:
    text = "changed" if changed else "as it was"
    if form == "v1":
        person = user_v1(7000 + number % 3, followers_count=followers or 0)
        return post_v1(number, full_text=text, favorite_count=likes, user=person)
    raw = post(number, text=text, public_metrics={"like_count": likes})
    users = [] if followers is None else [user(7000 + number % 3, public_metrics={"followers_count": followers})]
    return page(raw, includes={"users": users}) if users else page(raw)


@given(POLLS)
@settings(max_examples=60, deadline=None)
def test_a_post_polled_again_is_the_same_event_and_only_its_counts_are_new(polls: list[Any]) -> None:
    keys, known = MemoryKeys(), in_memory()
    _, end = take(as_lines(dump(*(poll(*one) for one in polls))), keys=keys, known=known)
    bodies: dict[bytes, set[tuple[str, bytes]]] = {}
    for kind, name, body in seen(end):
        bodies.setdefault(name, set()).add((kind, body))
    assert all(len(one) == 1 for one in bodies.values())  # no id ever stands over two payloads
    # Without the user no name is known, so the words differ: those two are told apart, and so are the two formats.
    posts = {
        (number, changed, form, form == "v2" and followers is None) for number, _, followers, form, changed in polls
    }
    assert sum(kind == "PostObserved" for kind, _ in (next(iter(one)) for one in bodies.values())) == len(posts)
    _, again = take(as_lines(dump(*(poll(*one) for one in polls))), keys=keys, known=known)
    assert seen(again) == seen(end)


def test_control_without_the_memory_of_first_sights_a_new_follower_makes_another_post() -> None:
    names = [seen(take(as_lines(dump(poll(1, 5, followers, "v2", False))))[1])[0][1] for followers in (1, 2)]
    assert names[0] != names[1]
    known, keys = in_memory(), MemoryKeys()
    both = [take(as_lines(dump(poll(1, 5, one, "v2", False))), keys=keys, known=known)[1] for one in (1, 2)]
    assert seen(both[0]) == seen(both[1])


def test_the_memory_of_first_sights_lasts_and_is_bounded(tmp_path: Path) -> None:
    then, now = AuthorFacts(followers=1), AuthorFacts(followers=2)
    file = firsts_file(tmp_path)
    Firsts(file).author("x:1", then)
    assert Firsts(file).author("x:1", now) == then
    small = Firsts(posts_max=10)
    for number in range(35):
        small.author(f"x:{number}", then)
    assert small.author("x:34", now) == then
    assert small.author("x:0", now) == now


# ---- whole feeds ----------------------------------------------------------------------------------------------------


def test_the_simulators_network_comes_in_whole() -> None:
    simulator = Simulator(11, authors=40, posts=400)
    summary, end = take_values(simulator.events(), "simulator")
    truth = simulator.truth
    assert (summary.refused, summary.unaccounted) == ({}, 0)
    assert summary.by_policy == {"simulator": summary.posts}
    edited = {version: chain[0] for chain in truth.edited for version in chain}
    assert {one.post for one in end.events(PostObserved)} == {f"sim:{edited.get(one, one)}" for one in truth.author}
    assert [one.post for one in end.events(PostDeleted)] == [f"sim:{one}" for one in truth.deleted]
    assert {one.owner for one in end.events(AuthorErased)} == {f"sim:@{one}" for one in truth.erased_authors}
    assert end.events(PostEdited)
    assert {one.post for one in end.events(EngagementObserved)}.isdisjoint(
        f"sim:{copy}" for copies in truth.reposts.values() for copy in copies
    )
    from_file, other = take(as_lines(dump(*simulator.events())), "simulator")
    assert as_sent(other) == as_sent(end)
    assert from_file.posts == summary.posts


@needs_pages
def test_all_real_pages_pass_with_a_fate_for_every_post_and_become_subjects() -> None:
    keys = MemoryKeys()
    summary, end = take(read_lines(str(PAGES)), keys=keys)
    assert (summary.lines, summary.errors_reported) == (162, 439)
    assert (summary.posts_in, summary.posts, summary.repeated, summary.engagements) == (15644, 15143, 501, 8231)
    assert (dict(summary.refused), summary.unaccounted) == ({}, 0)
    outs, _ = metadata.step(end.read(keys), metadata.State())
    noted = [one.event for one in outs if isinstance(one.event, SubjectNoted)]
    originals = {one.post for one in end.events(PostObserved) if one.reposted is None}
    assert {one.subject.split("/")[1] for one in noted} == originals
    assert sum(one.temporal is not None for one in noted) > 1000
    assert not any(isinstance(one.event, RecordRefused) for one in outs)


def test_a_batch_taken_by_hand_is_what_ingest_would_send() -> None:
    lines, keys = as_lines(dump(post(1), post(2))), MemoryKeys()
    intake = Intake(None, Settings(), keys, Policy.load(), in_memory())
    by_hand = [one for item in lines for one in intake.take([item, None], NOW_MS)]
    summary, end = take(lines, source=None, keys=keys)
    assert by_hand == end.records
    assert intake.summary() == summary


def test_what_a_deployment_remembers_lies_beside_its_vault(tmp_path: Path) -> None:
    end, settings = Recorder(), Settings(data=tmp_path)
    asyncio.run(ingest(as_lines(dump(post(1))), None, settings, end, MemoryKeys(), Policy.load(), lambda: NOW_MS))
    assert {one.name for one in (tmp_path / "vault").glob("*.sqlite")} == {"firsts.sqlite", "intents.sqlite"}


# ---- negative controls ----------------------------------------------------------------------------------------------


def test_control_a_parser_that_drops_silently_is_caught_by_the_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = as_lines(dump(page(post(1), post(2), post(3, text=None))))
    assert take(lines)[0].unaccounted == 0

    def dropping(what: str) -> None:
        def wrong(*given: Any) -> Reading:
            reading = read(*given)
            del getattr(reading, what)[0]
            return reading

        monkeypatch.setattr(module, "read", wrong)

    for what in ("said", "refusals"):
        dropping(what)
        assert take(lines)[0].unaccounted == 1
