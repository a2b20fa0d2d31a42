"""The quick reader: what it reads, the strict one reads alike; what that one refuses, it leaves."""

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import envelope
from schemas.envelope import Origin, Refused
from schemas.facts import Event
from schemas.seal import seal
from schemas.topics import HOME, KINDS, TOPICS
from streams import tables as t
from streams.quick import fields_of
from tests.small_world import Keyring
from tests.strategies import model

HEADERS = [("ce_type", b""), ("ce_id", b"name"), ("ce_source", b"/sources/x")]
ODD: tuple[Any, ...] = (
    None, "", " ", "a b", "a/b", "a\n", "\x00", "x" * 600, 0, -1, 1, 1.0, 1.5, 2**31, 2**53, 2**64, 10**40, 1e300, True,
    [], {}, ["a", "a"], [[]], {"a": 1}, {"a": "b"}, "\u2028", "v1.abc", "v1.abc\n", "0" * 32, "A" * 64, "0" * 64 + "\n",
    "like", -0.0,
)  # fmt: skip


def headers(kind: type[Event], **more: bytes) -> list[tuple[str, bytes]]:
    named = {**dict(HEADERS), "ce_type": f"xinfluencer.{kind.__name__}.v{kind.VERSION}".encode(), **more}
    return list(named.items())


def strict(topic: str, raw_headers: Any, value: bytes | None, time_ms: int = 1) -> envelope.Record | Refused:
    try:
        return envelope.decode(topic, 0, 0, time_ms, raw_headers, value)
    except Refused as refused:
        return refused


def agree(topic: str, raw_headers: Any, value: bytes | None, time_ms: int = 1) -> bool:
    """Hold both readers against each other; says whether the quick one read it."""
    found, expected = fields_of(topic, time_ms, raw_headers, value), strict(topic, raw_headers, value, time_ms)
    if found is None:
        return False
    assert isinstance(expected, envelope.Record), f"refused by the strict reader: {expected}"
    kind, event_id, writer, event = found
    assert (kind, event_id) == (type(expected.event), expected.id)
    if expected.origin is not None:
        assert writer == expected.origin.stage
    table = t.TABLES[kind]
    ours, theirs = t.values(table, [event]), t.values(table, [expected.event])
    for name, values in ours.items():
        assert repr(_plain(values)) == repr(_plain(theirs[name])), name  # repr tells 1 from True and 0.0 from -0.0
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    # A whole number where a number with a point belongs is the same number in the table.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else value


@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_our_own_programs_write_is_read_quickly_and_alike(data: st.DataObject) -> None:
    for kind in KINDS.values():
        event = seal(data.draw(model(kind)), "name", Keyring())
        topic = HOME[kind].name if kind in HOME else "signals"
        assert agree(topic, headers(kind), envelope.body(event)), event


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(deeper for key, value in inside for deeper in places(value, (*path, key)))]


@given(data=st.data(), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_body_with_something_odd_in_it_is_never_read_otherwise(data: st.DataObject, seed: int) -> None:
    rng = random.Random(seed)
    for kind in rng.sample(list(KINDS.values()), 6):
        topic = HOME[kind].name if kind in HOME else "signals"
        tree = json.loads(envelope.body(seal(data.draw(model(kind)), "name", Keyring())))
        for _ in range(8):
            changed = json.loads(json.dumps(tree))
            *way, last = rng.choice(places(changed)[1:] or [("x",)])
            node = changed
            for step in way:
                node = node[step]
            if rng.random() < 0.2 and isinstance(node, dict):
                node.pop(last, None)
                node["unknown"] = rng.choice(ODD)
            else:
                node[last] = rng.choice(ODD)
            agree(topic, headers(kind), json.dumps(changed, ensure_ascii=rng.random() < 0.5).encode())


@given(data=st.data(), cut=st.floats(0, 1), noise=st.binary(max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_broken_bytes_are_never_read_otherwise(data: st.DataObject, cut: float, noise: bytes) -> None:
    kind = data.draw(st.sampled_from(list(KINDS.values())))
    topic = HOME[kind].name if kind in HOME else "signals"
    body = envelope.body(seal(data.draw(model(kind)), "name", Keyring()))
    at = int(cut * len(body))
    for value in (
        body[:at],
        body[:at] + noise + body[at:],
        body[:at] + noise + body[at + len(noise) :],
        noise,
        body + noise,
    ):
        agree(topic, headers(kind), value)


@pytest.mark.parametrize(
    "raw_headers",
    [
        None,
        [],
        [("ce_type", None), ("ce_id", b"a")],
        [("ce_type", b"xinfluencer.AuthorShown.v1")],
        [("ce_type", b"xinfluencer.AuthorShown.v2"), ("ce_id", b"a")],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"")],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", None)],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"\xff")],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a" * 257)],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a"), ("ce_origin", b"")],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a"), ("ce_origin", b"a/b/1/2")],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a"), ("ce_origin", b"a/b/1/2/-3")],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a"), ("ce_origin", "a/b/1/2/³".encode())],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a"), ("ce_origin", "é/b/1/2/3".encode())],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a"), ("ce_origin", b"a b/c/1/2/3")],
        [("ce_type", b"xinfluencer.FeedbackGiven.v1"), ("ce_id", b"a")],
        [("ce_type", b"xinfluencer.AuthorShown.v1"), ("ce_id", b"a"), ("ce_origin", b"?"), ("ce_origin", b"a/b/1/2/3")],
    ],
)
def test_headers_that_are_not_as_we_write_them_are_never_read_otherwise(raw_headers: Any) -> None:
    agree("tweets", raw_headers, b'{"owner":"x:@1","source":"x"}')


def test_times_sizes_tombstones_topics_and_open_words_are_left_to_the_strict_reader() -> None:
    kind = KINDS["AuthorShown"]
    body = b'{"owner":"x:@1","source":"x"}'
    assert agree("tweets", headers(kind, ce_origin=Origin("a", "b", 1, 2, 3).text().encode()), body)
    for time_ms in (-1, 2**62):
        assert not agree("tweets", headers(kind), body, time_ms)
    for value in (None, b"", b" " * 1_000_001):
        assert not agree("tweets", headers(kind), value)
    for topic in TOPICS:
        if topic.name != "tweets":
            assert not agree(topic.name, headers(kind), body)
    opened = json.dumps({"head": "words"})
    refused = (
        f'{{"owner":"o","reason":"abc","detail":"","stage":"","place":"","size":1,"sha256":"{"0" * 64}","content":'
    )
    assert agree("dead-letters", headers(KINDS["RecordRefused"]), f'{refused}"v1.abc"}}'.encode())
    assert not agree("dead-letters", headers(KINDS["RecordRefused"]), f"{refused}{opened}}}".encode())
    assert not agree("dead-letters", headers(KINDS["RecordRefused"]), f'{refused}"words"}}'.encode())


def test_control_a_reader_without_the_patterns_would_read_what_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the same reader, its names unchecked, is found out by the comparison."""
    import msgspec

    from streams import quick

    class Loose(msgspec.Struct):
        owner: str
        source: str

    kind = KINDS["AuthorShown"]
    key = ("tweets", b"xinfluencer.AuthorShown.v1")
    monkeypatch.setitem(quick._KIND, key, (kind, msgspec.json.Decoder(Loose).decode))
    with pytest.raises(AssertionError, match="refused by the strict reader"):
        agree("tweets", headers(kind), b'{"owner":"a b","source":"x"}')
