"""D1 and D7 at the edge: whatever the bytes are, they become events or refusals, in bounded memory, one by one.

Seeded; FUZZ_CASES sets how many cases each source gets, 50,000 by default.
"""

import copy
import json
import os
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas import envelope
from schemas.envelope import Origin, Record, Refused
from schemas.facts import Rights
from schemas.posts import PostObserved
from schemas.topics import BY_NAME, KINDS, RECORD_BYTES_MAX
from streams import formats, x_stream, xv1
from streams.formats import detect, read
from streams.jetstream import Jetstream
from streams.letters import UNLETTERED
from streams.lines import LINE_BYTES_MAX, Damage, Line, parse, read_lines
from streams.live import SourceBroken
from streams.mastodon_owners import Owners
from streams.mastodon_stream import MastodonStream
from streams.settings import Settings
from tests.ingest_ends import (
    MemoryKeys,
    as_lines,
    declaration,
    in_memory,
    jetstream,
    page,
    post,
    post_v1,
    status,
    take,
    user,
)

JETSTREAM = Jetstream(Settings())
MASTODON = MastodonStream(Settings(), {}, owners=Owners())
CASES = int(os.environ.get("FUZZ_CASES", "50000"))
SEED = 20_260_105
RIGHTS = Rights(index=True, train=False, show=True, policy="x-default")
NASTY: list[Any] = [
    None, True, 0, -1, 2**31, 2**53, 2**64, 10**30, 10**399, 1e308, float("nan"), float("inf"), "", "\0", "a\0b",
    "\ud800", "\udfff\ud800", "x" * 600, "é" * 5000, "1" * 19, "1" * 21, "../..", "a/b", "<|im_end|>", "\x1b[2J",
    "=1+1", [], {}, [[]], [None], [5], ["x"], {"id": None}, {"": ""}, [{}], {"data": []}, {"delete": {}},
    "2026-13-45T99:99:99Z",
    "Thu Jan 01 00:00:00 +0000 1970", "Fri Dec 31 23:59:60 +0000 2100", "99999-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
    "\u202eevil\u202c", "e\u0301\u200d\U0001f469", "\ufeff", "\u2028", "a" * 300_000, -0.0, 1.5, 4102444800000, 2**63,
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z",
]  # fmt: skip
ODD_KEYS = (
    "id",
    "id_str",
    "data",
    "user",
    "did",
    "account",
    "event",
    "delete",
    "\0",
    "\ud800",
    "",
    "__class__",
    "$type",
)
POISON = [
    b"", b"\0", b"\xff\xfe{}", b"\xed\xa0\x80", b'{"data": "\xc3("}', b"NaN", b"-Infinity", b'{"data": [NaN]}',
    b"1" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b"1e999999", b"[" * 100_000, b'{"data":' * 50_000,
    b"[" * 900 + b"]" * 900, b'{"data": [{"text": ' + b"[" * 900 + b"]" * 900 + b"}]}", b'{"a":1,"a":2}',
    b'{"text":"a","text":"b","id":"1","author_id":"2"}', b'{"text":"\\ud800","id":"1","author_id":"2"}',
    b'{"text":"\\u0000","id":"1","author_id":"2"}', b'"\\ud83d\\ude00"', b"{'a': 1}", b"{}{}", b"null", b"true", b'"',
    b"\\", b"\xef\xbb\xbf\xef\xbb\xbf{}", b'{"id":"1","author_id":"2","text":"a"}\x00',
    b"{" + b'"a":1,' * 9999 + b'"a":1}',
]  # fmt: skip


def of_x2(rng: random.Random) -> Any:
    raw = post(rng.randrange(99))
    raw["entities"] = {
        "hashtags": [{"tag": "t"}], "mentions": [{"id": "5", "start": 3}], "urls": [{"expanded_url": "https://a.b"}],
        "cashtags": [{"tag": "c"}],
    }  # fmt: skip
    raw["referenced_tweets"] = [{"type": rng.choice(["replied_to", "quoted", "retweeted"]), "id": "5"}]
    raw["note_tweet"] = {"text": "whole", "entities": {}}
    raw["attachments"] = {"media_keys": ["3_1"]}
    came = {"users": [user(7000), user(7001)], "tweets": [post(101)], "media": [{"media_key": "3_1", "type": "photo"}]}
    whole = page(raw, post(100), includes=came, errors=[{}])
    kind = rng.choice(["delete", "withheld", "user_suspend", "user_unprotect", "scrub_geo"])
    gone = {kind: {"tweet": {"id": "5", "author_id": "7"}, "user": {"id": "7"}}}
    return rng.choice([whole, whole, whole, raw, {"endpoint": "e", "body": whole}, gone, {"data": gone}, [raw, gone]])


def of_x1(rng: random.Random) -> Any:
    entities = {"hashtags": [{"text": "t"}], "symbols": [{"text": "c"}], "urls": [{"expanded_url": "https://a.b"}],
                "user_mentions": [{"id_str": "5"}], "media": [{"type": "photo"}]}  # fmt: skip
    raw = post_v1(
        rng.randrange(99), entities=entities, in_reply_to_status_id_str="5", extended_tweet={"full_text": "w"}
    )
    raw[rng.choice(["retweeted_status", "quoted_status"])] = post_v1(200, quoted_status=post_v1(201))
    gone = {rng.choice(["delete", "scrub_geo"]): {"status": {"id_str": "5", "user_id_str": "7"}}}
    return rng.choice([raw, raw, {"statuses": [raw, post_v1(3)]}, gone, {"user_withheld": {"id": 5}}, [raw, gone]])


def of_jetstream(rng: random.Random) -> Any:
    at = "at://did:plc:b/app.bsky.feed.post/3k"
    record = {
        "$type": "app.bsky.feed.post", "text": "hi #tag", "createdAt": "2026-01-05T12:00:00.000Z", "langs": ["en"],
        "reply": {"parent": {"uri": at, "cid": "c"}, "root": {"uri": at, "cid": "c"}},
        "facets": [{"index": {"byteStart": 3, "byteEnd": 7}, "features": [
            {"$type": "app.bsky.richtext.facet#tag", "tag": "tag"}]}],
        "embed": {"$type": "app.bsky.embed.record", "record": {"uri": at, "cid": "c"}},
    }  # fmt: skip
    act = rng.choice(["feed.like", "feed.repost", "graph.follow", "graph.block"])
    subject: Any = {"uri": at, "cid": "c"} if act.startswith("feed") else "did:plc:b"
    liked = jetstream(f"app.bsky.{act}", {"subject": subject, "createdAt": "2026-01-05T12:00:00Z"})
    gone = jetstream(operation="delete")
    account = {"did": "did:plc:b", "time_us": 5, "kind": "account", "account": {"active": False, "status": "deleted"}}
    written = jetstream(record=record, operation=rng.choice(["create", "update"]))
    return rng.choice([written, written, liked, gone, account, declaration(rng.choice([True, False, None]))])


def of_mastodon(rng: random.Random) -> Any:
    raw = status(
        rng.randrange(99), reblog=rng.choice([None, status(5)]), in_reply_to_id="6", in_reply_to_account_id="5"
    )
    event = {"event": rng.choice(["update", "status.update", "delete"]), "stream": ["public"]}
    return rng.choice([raw, raw, {**event, "payload": json.dumps(raw)}, {**event, "payload": "5"}])


Make = Callable[[random.Random], Any]
FORMATS: dict[str, Make] = {"x2": of_x2, "x1": of_x1, "jetstream": of_jetstream, "mastodon": of_mastodon}


def sample(rng: random.Random) -> Any:
    return rng.choice(list(FORMATS.values()))(rng)


def places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        found.append((node, key))
        places(node[key], found)
    return found


def damaged(rng: random.Random, make: Make = sample) -> Any:
    """A payload in which a few values are another's, missing, or nasty."""
    value = make(rng)
    for _ in range(rng.randint(1, 3)):
        spots = places(value, [])
        if not spots:
            continue
        node, key = rng.choice(spots)
        how = rng.random()
        if how < 0.15:
            del node[key]
        elif how < 0.25:  # what stands elsewhere in it, or in a payload of another format
            other, at = rng.choice(spots if how < 0.2 else places(sample(rng), []))
            node[key] = copy.deepcopy(other[at])
        elif how < 0.3 and isinstance(node, dict):
            node[rng.choice(ODD_KEYS)] = node[key]
        elif how < 0.33:
            node[key] = nested(rng.choice((3, 40, 400)))
        else:
            node[key] = copy.deepcopy(rng.choice(NASTY))
    return value


def nested(depth: int) -> Any:
    value: Any = "deep"
    for number in range(depth):
        value = [value] if number % 2 else {"data": value}
    return value


def scrambled(rng: random.Random, make: Make = sample) -> bytes:
    """The bytes of a payload with a few of them changed, cut or doubled; or bytes of no meaning."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(POISON)
    if kind < 0.15:
        return rng.randbytes(rng.randrange(300))
    data = bytearray(json.dumps(make(rng), ensure_ascii=rng.random() < 0.5).encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 1, 1, 9))] = rng.choice(
            (b"", rng.randbytes(1), rng.randbytes(3), b'"', b"{", b"\\u0000", b"\\ud800", b"NaN", b"1e400", b"9" * 450)
        )
    return bytes(data)


def rights_of(source: str) -> Callable[[str], Rights]:
    return lambda owner: RIGHTS


def check(value: Any) -> None:
    for source in (None, "own"):
        reading = read(value, source, rights_of)
        posts = sum(isinstance(one.events[0], PostObserved) for one in reading.said)
        assert reading.posts_in == posts + sum(one.what == "post" for one in reading.refusals) + reading.repeated


@contextmanager
def deep() -> Iterator[None]:
    """Let a case be nested deeper than Python goes by itself; what is tested runs without it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def each(cases: int, case: Callable[[random.Random], Any], test: Callable[[Any], Any], salt: int) -> None:
    """Run seeded cases; one that raises, or fails to account for a post, is named by its number."""
    for number in range(cases):
        with deep():
            made = case(random.Random(f"{SEED}/{salt}/{number}"))
        try:
            test(made)
        except Exception as error:
            raise AssertionError(f"case {number} of seed {SEED}/{salt}: {error!r}: {made!r:.2000}") from error


def peek(data: bytes) -> None:
    """What live sources read of a message before ingest does."""
    with suppress(SourceBroken):  # X says goodbye
        x_stream._made_ms(data)
    JETSTREAM._time_us(data)
    for event in ("update", "status.update", "delete", "notification"):
        MASTODON._arrival(event, data)


def parsed(data: bytes) -> None:
    peek(data)
    try:
        value = parse(data)
    except Refused:
        return
    for one in value if isinstance(value, list) else [value]:
        check(one)


@pytest.mark.parametrize("form", FORMATS)
def test_d1_damaged_values_of_each_source_are_events_or_refusals(form: str) -> None:
    each(CASES * 7 // 10, partial(damaged, make=FORMATS[form]), check, 1)


@pytest.mark.parametrize("form", FORMATS)
def test_d1_scrambled_lines_of_each_source_are_events_or_refusals(form: str) -> None:
    each(CASES * 3 // 10, partial(scrambled, make=FORMATS[form]), parsed, 2)


@pytest.mark.parametrize("form", FORMATS)
def test_d1_the_cases_reach_both_sides_of_each_source(form: str) -> None:
    met: Counter[str] = Counter()
    for number in range(1_000):
        value = damaged(random.Random(f"{SEED}/1/{number}"), FORMATS[form])
        for one in value if isinstance(value, list) else [value]:
            if detect(one) == form:
                reading = read(one, None, rights_of)
                met.update(said=bool(reading.said), refused=bool(reading.refusals))
    assert min(met["said"], met["refused"]) > 100


def test_d1_both_readers_of_json_agree_where_both_can_read() -> None:
    from streams.lines import _TOLERANT  # the slow one is the truth

    def agree(value: Any) -> None:
        text = json.dumps(value)
        assert json.dumps(parse(text.encode())) == json.dumps(_TOLERANT.decode(text))

    each(500, sample, agree, 3)
    assert parse(b'{"a":1,"a":2}') == {"a": 2} == _TOLERANT.decode('{"a":1,"a":2}')


@pytest.mark.parametrize("poison", POISON, ids=range(len(POISON)))
def test_d1_a_poisoned_line_costs_itself_and_nothing_after_it(poison: bytes) -> None:
    summary, end = take(as_lines([poison, json.dumps(post(50)).encode()]))
    assert summary.unaccounted == 0
    assert end.events(PostObserved)[-1].content.text == "post 50"


def test_d1_all_that_is_accepted_can_be_read_back_and_every_line_left_a_trace() -> None:
    keys = MemoryKeys()
    lines = as_lines(scrambled(random.Random(f"{SEED}/4/{number}")) for number in range(3000))
    summary, end = take(lines, source=None, keys=keys)
    assert (summary.lines, summary.unaccounted) == (3000, 0)
    assert [one.event for one in end.read(keys)] == [one.event for one in end.records if one.topic == "tweets"]
    lettered = sum(number for reason, number in summary.refused.items() if reason not in UNLETTERED)
    assert len(end.read(keys, "dead-letters")) == lettered > 500
    assert summary.posts > 500


SENT = take(as_lines([json.dumps(sample(random.Random(number))).encode() for number in range(40)]), None)[1].records


def _record(rng: random.Random) -> tuple[Any, Any]:
    """Headers and body of a record as anybody might write one."""
    sent = rng.choice(SENT)
    headers, body = list(sent.headers), bytearray(sent.value)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(headers) or 1)
        kind = rng.choice(list(KINDS))
        headers[at : at + 1] = rng.choice([
            [], [("ce_type", rng.randbytes(9))], [("ce_id", rng.randbytes(4))], [("ce_id", b"")], [("ce_type", None)],
            [("ce_type", f"xinfluencer.{kind}.v{rng.randrange(3)}".encode())], [("ce_origin", b"a/b/c/d/e")],
            [("ce_origin", rng.randbytes(12))], [("ce_origin", b"a/b/1/2/" + b"9" * 5000)],
        ])  # fmt: skip
    how = rng.random()
    if how < 0.1:
        return headers, rng.choice([None, b"", *POISON])
    if how < 0.5:
        tree = json.loads(bytes(body))
        for _ in range(rng.randint(1, 2)):
            node, key = rng.choice(places(tree, []))
            node[rng.choice([key, "new"]) if isinstance(node, dict) else key] = copy.deepcopy(rng.choice(NASTY))
        return headers, json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(rng.randint(1, 3)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return headers, bytes(body)


def test_d1_a_record_that_anybody_wrote_is_read_or_refused() -> None:
    accepted: list[Record] = []

    def decode(made: tuple[Any, Any]) -> None:
        try:
            record = envelope.decode("tweets", 0, 5, 7, *made)
        except Refused:
            return
        accepted.append(record)
        assert type(record.event) in BY_NAME["tweets"].events
        assert record.origin is None or isinstance(record.origin, Origin)

    each(CASES // 5, _record, decode, 5)
    assert 0.02 < len(accepted) / (CASES // 5) < 0.5  # the cases reach both sides


def test_control_a_reader_that_raises_is_noticed() -> None:
    with pytest.raises(AssertionError, match="case"):
        each(1000, damaged, lambda value: value["data"][0]["text"].lower(), 1)


def test_control_a_reader_that_loses_a_refused_post_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(value: Any, source: str, rights: Any) -> Any:
        reading = xv1.read(value, source, rights)
        reading.refusals.clear()
        return reading

    monkeypatch.setitem(formats.READERS, "x1", losing)
    with pytest.raises(AssertionError, match="case"):
        each(1000, lambda rng: of_x1(rng) if rng.random() < 0.5 else damaged(rng), check, 6)


def test_d1_years_beyond_reason_are_refused_or_set_aside_and_the_rest_goes_on() -> None:
    values: list[Any] = []
    for at in ("1970-01-01T00:00:00.000Z", "2100-01-01T00:00:00.000Z", "0000-01-01T00:00:00Z", "99999-01-01T00:00:00Z"):
        values += [post(1, created_at=at), status(1, created_at=at),
                   jetstream(record={"text": "t", "createdAt": at}, rkey=str(len(values)))]  # fmt: skip
    values += [post_v1(1, created_at=f"Thu Jan 01 00:00:00 +0000 {year}") for year in ("1970", "2100", "0000")]
    summary, end = take(as_lines([json.dumps(one).encode() for one in values]), None)
    assert (summary.posts_in, summary.unaccounted) == (len(values), 0)
    times = {one.claimed_ms for one in end.events(PostObserved)}
    assert {0, 4_102_444_800_000} <= times
    assert all(one is None or 0 <= one <= 253_402_300_799_999 for one in times)


def test_d7_a_declaration_inside_a_flood_of_nonsense_still_counts() -> None:
    known = in_memory()
    noise = [scrambled(random.Random(number)) for number in range(300)]
    lines = as_lines([*noise, json.dumps(declaration(False)).encode(), *noise])
    take(lines, None, known=known)
    assert known.intents.declared(f"bluesky:@{declaration(False)['did']}").train is False


# ---- D7: sizes ------------------------------------------------------------------------------------------------------


def with_mentions(number: int) -> bytes:
    ids = [{"id": str(10**18 + n)} for n in range(number)]
    return json.dumps(post(1, public_metrics=None, entities={"mentions": ids})).encode()


def with_links(number: int) -> bytes:
    urls = [{"expanded_url": f"https://example.org/{n:04}/" + "x" * 1000} for n in range(number)]
    return json.dumps(post(1, public_metrics=None, entities={"urls": urls})).encode()


@pytest.mark.parametrize("make", [with_mentions, with_links])
def test_d7_the_largest_record_is_read_back_and_one_a_little_larger_is_refused(make: Callable[[int], bytes]) -> None:
    fits, over = 1, 60_000
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if take(as_lines([make(middle)]))[0].posts else (fits, middle)
    keys = MemoryKeys()
    _, end = take(as_lines([make(fits)]), keys=keys)
    assert 0.88 * RECORD_BYTES_MAX < len(end.records[0].value) <= RECORD_BYTES_MAX
    assert end.read(keys)[0].event == end.events()[0]
    summary, end = take(as_lines([make(over), json.dumps(post(2)).encode()]))
    assert summary.refused == {"too-large": 1}
    assert summary.posts == 1


def test_d7_a_line_of_100_mb_is_refused_in_bounded_memory_and_the_next_is_read(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    with open(file, "wb") as out:
        out.write(b'{"text": "')
        out.writelines(b"x" * 1_000_000 for _ in range(100))
        out.write(b'"}\n' + json.dumps(post(1)).encode() + b"\n")
    tracemalloc.start()
    found = list(read_lines(str(file)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    long, short = found
    assert isinstance(long, Damage)
    assert (long.reason, long.size) == ("too-large", 100_000_012)
    assert isinstance(short, Line)
    assert short.place == "long.jsonl:2"
    assert peak < 4 * LINE_BYTES_MAX


def test_d7_a_value_of_100_mb_in_an_array_ends_the_reading_in_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "long.json"
    with open(file, "wb") as out:
        out.write(b"[" + json.dumps(post(1)).encode() + b',{"text": "')
        out.writelines(b"x" * 1_000_000 for _ in range(100))
        out.write(b'"}]')
    tracemalloc.start()
    summary, end = take(read_lines(str(file)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.posts == 1
    assert end.letters() == [("long.json:1", "too-large")]
    assert peak < 10 * LINE_BYTES_MAX
