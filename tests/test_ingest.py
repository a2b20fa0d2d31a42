"""Taking in: every line and every post is an event or a dead letter, and taking it in twice changes nothing."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ingest_ends import NOW_MS, SHARED, MemoryKeys, Recorder, as_lines, dump, page, post, take, take_values, user

from agents import metadata
from schemas.events import RecordRefused, SubjectNoted
from schemas.ids import digest
from schemas.posts import AuthorErased, EngagementObserved, PostDeleted, PostEdited, PostObserved
from streams import ingest as module
from streams.ingest import CHUNK_BYTES_MAX, CHUNK_RECORDS_MAX, ingest
from streams.lines import IngestRefused, read_lines
from streams.policy import Policy
from streams.reading import Reading
from streams.records import outside
from streams.settings import Settings
from streams.simulator import Simulator
from streams.xv2 import read

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
    def clocked(event: Any, source: str, time_ms: int, *rest: Any) -> Any:
        return outside(event, source, time_ms, *rest, event_id=digest(str(time_ms), str(event)))

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
    for source, name, train in (("x", "x-default", False), ("own", "own", True), ("gab", "unknown-source", False)):
        summary, end = take(as_lines(dump(post(1))), source)
        assert summary.by_policy == {name: 1}
        assert {one.rights.train for one in end.events()} == {train}


def test_an_erased_author_never_comes_in_again_and_no_letter_quotes_them() -> None:
    keys = MemoryKeys()
    keys.keys["x:@7001"] = None
    repost = post(4, author_id="7001", referenced_tweets=[{"type": "retweeted", "id": "5"}])
    summary, end = take(as_lines(dump(page(post(1), post(2), repost))), keys=keys)
    assert summary.refused == {"owner-erased": 2}
    assert (summary.posts, summary.engagements, summary.refused_posts, summary.unaccounted) == (1, 1, 2, 0)
    assert [one.content for one in end.events(RecordRefused)] == [None, None]


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

    asyncio.run(module.ingest_values(slow(), "x", Settings(), end, MemoryKeys(), Policy.load(), lambda: NOW_MS))
    assert seen == [2]
    assert len(end.records) == 4


def test_what_the_sender_raises_stops_the_intake() -> None:
    class Broken(Recorder):
        async def send(self, records: Any) -> None:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(ingest(as_lines(dump(post(1))), "x", Settings(), Broken(), MemoryKeys(), Policy.load(), int))


@pytest.mark.parametrize("source", ["", "X", "x y", "../x", "x" * 41, "é"])
def test_a_source_that_cannot_be_one_is_refused(source: str) -> None:
    with pytest.raises(IngestRefused, match="cannot be a source"):
        take([], source)


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
    assert (summary.lines, summary.without_posts, summary.errors_reported) == (162, 62, 439)
    assert (summary.posts_in, summary.posts, summary.repeated, summary.engagements) == (15644, 15143, 501, 8231)
    assert (dict(summary.refused), summary.unaccounted) == ({}, 0)
    outs, _ = metadata.step(end.read(keys), metadata.State())
    noted = [one.event for one in outs if isinstance(one.event, SubjectNoted)]
    originals = {one.post for one in end.events(PostObserved) if one.reposted is None}
    assert {one.subject.split("/")[1] for one in noted} == originals
    assert sum(one.temporal is not None for one in noted) > 1000
    assert not any(isinstance(one.event, RecordRefused) for one in outs)


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
