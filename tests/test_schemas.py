"""Every event survives the trip to a record and back, nothing is guessed, and no word lies in the open."""

import hashlib
import inspect
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Union, get_args, get_origin

import pytest
import strategies
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from cloudevents.core.bindings import kafka as cloudevents_kafka
from cloudevents.core.v1.event import CloudEvent
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas import envelope, facts, ids, learned, merkle, render, seal, topics
from schemas import events as e
from schemas import posts as ps
from schemas.envelope import Origin, Refused
from schemas.topics import HOME, KINDS, TOPICS
from streams.fold import Fold
from streams.memory import Engine, Logged
from streams.records import content_id, outside, tick
from streams.topology import OUTSIDE, Tuning, cycle, edges, stages
from tests.feeds import worded

RIGHTS = facts.Rights(index=True, train=True, show=True, policy="test")
VERSION = "a" * 64
POST = ps.PostObserved(
    post="p:1",
    owner="x:@ann",
    source="x",
    raw_sha256="0" * 64,
    rights=RIGHTS,
    content=facts.PostContent(text="the words of a post", hashtags=("words",)),
)
ANSWER = e.AnswerGiven(
    prompt="q:1",
    owner="u:1",
    items=("i:1",),
    release=0,
    version=VERSION,
    seed=1,
    rights=RIGHTS,
    prompt_hash="0" * 64,
    words=(),
    content=facts.AnswerContent(messages=(facts.Turn(role="user", content="why?"),), texts=("because",)),
)
QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


class Keyring:
    """Keys in memory; `gone` are destroyed."""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    def get(self, owner: str) -> bytes | None:
        return None if owner in self.gone else hashlib.sha512(owner.encode()).digest()

    make = get


def all_kinds() -> set[type[facts.Event]]:
    found: set[type[facts.Event]] = set()
    waiting = [facts.Event]
    while waiting:
        children = waiting.pop().__subclasses__()
        found.update(kind for kind in children if kind.__module__.startswith("schemas."))
        waiting.extend(children)
    return found


def written(event: facts.Event, event_id: str = "id-1", keys: Keyring | None = None) -> tuple[envelope.Headers, bytes]:
    sealed = seal.seal(event, event_id, keys or Keyring())
    return envelope.headers(event, event_id, "/sources/test", 1_700_000_000_123), envelope.body(sealed)


def home(event: facts.Event) -> str:
    return topics.SIGNALS.name if isinstance(event, e.Ticked) else HOME[type(event)].name


def reason_of(topic: str, headers: Any, value: bytes | None, time_ms: int = 1) -> str:
    with pytest.raises(Refused) as caught:
        envelope.decode(topic, 0, 0, time_ms, headers, value)
    return caught.value.reason


# ---- the trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_an_event_survives_being_sealed_written_read_and_opened(kind: type[facts.Event]) -> None:
    @QUICK
    @given(strategies.model(kind), st.integers(0, facts.MS_MAX), st.integers(0, 2**53))
    def trip(event: Any, time_ms: int, offset: int) -> None:
        keys = Keyring()
        name = content_id(event)
        origin = Origin("stage", "topic", 3, offset, 2)
        sealed = seal.seal(event, name, keys)
        headers = envelope.headers(event, name, "/stages/stage", time_ms, origin)
        record = envelope.decode(home(event), 3, offset, time_ms, headers, envelope.body(sealed))
        assert seal.unseal(record.event, record.id, keys) == event
        assert (record.id, record.origin, record.unknown_fields) == (name, origin, 0)
        assert (record.offset, record.time_ms, record.partition) == (offset, time_ms, 3)
        assert envelope.body(seal.seal(event, name, keys)) == envelope.body(sealed)

    trip()


@QUICK
@given(strategies.model(ps.PostObserved), strategies.model(ps.PostObserved))
def test_two_events_have_one_id_exactly_when_they_say_the_same(one: Any, other: Any) -> None:
    assert (content_id(one) == content_id(other)) == (one == other)
    assert content_id(one) == content_id(one.model_copy())
    assert content_id(one) != content_id(one.model_copy(update={"post": one.post + "x"}))


def test_an_edit_and_an_observation_with_the_same_fields_have_different_ids() -> None:
    assert content_id(POST) != content_id(ps.PostEdited(**dict(POST)))


# ---- CloudEvents ----------------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=150)
@given(st.sampled_from(list(KINDS.values())).flatmap(strategies.model), st.integers(0, facts.MS_MAX))
def test_the_cloudevents_package_reads_what_we_write(event: Any, time_ms: int) -> None:
    value = envelope.body(seal.seal(event, "id-1", Keyring()))
    headers = envelope.headers(event, "id-1", "/stages/rewards", time_ms, Origin("rewards", "signals", 1, 2, 3))
    assert len(dict(headers)) == len(headers)
    read = cloudevents_kafka.from_binary_event(cloudevents_kafka.KafkaMessage(dict(headers), b"key", value))
    assert read.get_type() == f"xinfluencer.{type(event).__name__}.v{event.VERSION}"
    assert (read.get_id(), read.get_source(), read.get_specversion()) == ("id-1", "/stages/rewards", "1.0")
    assert read.get_datacontenttype() == "application/json"
    assert read.get_extension("origin") == "rewards/signals/1/2/3"
    at = read.get_time()
    assert isinstance(at, datetime)
    assert at.utcoffset() is not None
    assert round(at.timestamp() * 1000) == time_ms
    assert read.get_data() == json.loads(value)


@settings(QUICK, max_examples=150)
@given(st.sampled_from(list(KINDS.values())).flatmap(strategies.model))
def test_we_read_what_the_cloudevents_package_writes(event: Any) -> None:
    keys = Keyring()
    attributes = {
        "id": "id-1",
        "source": "/somewhere",
        "type": f"xinfluencer.{type(event).__name__}.v1",
        "datacontenttype": "application/json",
        "subject": "an attribute that we do not know",
        "origin": "rewards/signals/1/2/3",
    }
    data = json.loads(envelope.body(seal.seal(event, "id-1", keys)))
    message = cloudevents_kafka.to_binary_event(CloudEvent(attributes, data))
    record = envelope.decode(home(event), 0, 0, 1, list(message.headers.items()), message.value)
    assert seal.unseal(record.event, record.id, keys) == event
    assert record.origin == Origin("rewards", "signals", 1, 2, 3)


def test_the_cloudevents_package_and_we_both_refuse_headers_of_http() -> None:
    headers, value = written(POST)
    http = [(name.replace("ce_", "ce-"), data) for name, data in headers]
    assert reason_of("tweets", http, value) == "no-envelope"
    with pytest.raises(Exception, match="type"):
        cloudevents_kafka.from_binary_event(cloudevents_kafka.KafkaMessage(dict(http), None, value))


# ---- frozen schemas -------------------------------------------------------------------------------------------------


def frozen_fault(kind: type[facts.Event]) -> str | None:
    """Say what is wrong with a kind's golden file, and what to do about it."""
    path = render.path_of(kind)
    if not path.exists():
        return f"{path.name} is missing: run `python -m schemas.render` and commit schemas/golden"
    if path.read_text("utf-8") != render.json_schema(kind):
        return (
            f"The shape of {kind.__name__} v{kind.VERSION} changed. If records of the old shape still fit it, run "
            "`python -m schemas.render` and commit schemas/golden; if they do not, raise VERSION first and keep a "
            "reader for the old one."
        )
    return None


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_the_shape_of_an_event_is_frozen(kind: type[facts.Event]) -> None:
    fault = frozen_fault(kind)
    assert fault is None, fault
    for version in range(1, kind.VERSION):
        assert render.path_of(kind, version).exists(), f"{kind.__name__}.v{version}.json was removed: readers need it"


def test_a_changed_shape_is_noticed_and_the_sentence_says_what_to_do() -> None:
    changed = type(
        "PairWithdrawn", (learned.PairWithdrawn,), {"__annotations__": {"why": str}, "__module__": "elsewhere"}
    )
    assert "raise VERSION first" in (frozen_fault(changed) or "")
    reworded = type("PairWithdrawn", (learned.PairWithdrawn,), {"__doc__": "Other words.", "__module__": "elsewhere"})
    assert frozen_fault(reworded) is None
    newer = type("PairWithdrawn", (learned.PairWithdrawn,), {"VERSION": 2, "__module__": "elsewhere"})
    assert "is missing" in (frozen_fault(newer) or "")


def test_the_golden_folder_holds_nothing_else() -> None:
    names = {path.name for path in render.GOLDEN.iterdir()}
    assert names == {render.path_of(kind, n).name for kind in KINDS.values() for n in range(1, kind.VERSION + 1)}


# ---- what is not ours to guess --------------------------------------------------------------------------------------


@settings(QUICK, max_examples=100)
@given(
    st.sampled_from(list(KINDS.values())).flatmap(strategies.model),
    st.lists(
        st.text(strategies.CHARS, min_size=1, max_size=8).map("new ".__add__), min_size=1, max_size=3, unique=True
    ),
    st.recursive(
        st.none() | st.integers() | st.text(strategies.CHARS), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    ),
)
def test_unknown_fields_at_the_top_are_counted_and_left_out(event: Any, names: list[str], junk: Any) -> None:
    keys = Keyring()
    headers, value = written(event, keys=keys)
    value = json.dumps({**dict.fromkeys(names, junk), **json.loads(value)}).encode()
    record = envelope.decode(home(event), 0, 0, 1, headers, value)
    assert record.unknown_fields == len(names)
    assert seal.unseal(record.event, record.id, keys) == event


def test_unknown_fields_inside_are_counted_and_left_out() -> None:
    headers, value = written(POST)
    tree = json.loads(value)
    tree["rights"]["sell"] = True
    tree["author"] = {"followers": 3, "mood": {"deep": [1]}}
    tree["newer"] = None
    record = envelope.decode("tweets", 0, 0, 1, headers, json.dumps(tree).encode())
    assert record.unknown_fields == 3
    assert record.event.author == facts.AuthorFacts(followers=3)
    assert record.event.rights == RIGHTS

    ref = facts.PairRef(pair="0" * 32, leaf="1" * 64, offset=1)
    batch = learned.BatchClosed(
        batch="2" * 32,
        sequence=0,
        pairs=(ref, ref),
        first_offset=1,
        last_offset=1,
        root="3" * 64,
        closed_by="age",
        opened_ms=1,
        closed_ms=2,
    )
    headers, value = written(batch)
    tree = json.loads(value)
    tree["pairs"][1]["PairRef"] = tree["pairs"][0]["pairs"] = {"a": 1}
    record = envelope.decode("batches", 0, 0, 1, headers, json.dumps(tree).encode())
    assert (record.event, record.unknown_fields) == (batch, 2)


def test_unknown_fields_inside_sealed_words_are_left_out() -> None:
    keys = Keyring()
    token = seal.seal_bytes(keys.make("x:@ann"), b'{"text": "hi", "mood": "new"}', b"PostObserved/id-1")
    opened = seal.unseal(POST.model_copy(update={"content": token}), "id-1", keys)
    assert opened.content == facts.PostContent(text="hi")


def test_sealed_words_of_another_shape_are_refused_and_stop_nobody() -> None:
    keys = Keyring()
    token = seal.seal_bytes(keys.make("x:@ann"), b'{"text": 5}', b"PostObserved/id-1")
    with pytest.raises(Refused, match="bad-shape"):
        seal.unseal(POST.model_copy(update={"content": token}), "id-1", keys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h, v: ([], v), "no-envelope"),
        (lambda h, v: (None, v), "no-envelope"),
        (lambda h, v: ([one for one in h if one[0] != "ce_id"], v), "no-envelope"),
        (lambda h, v: ([one for one in h if one[0] != "ce_type"], v), "no-envelope"),
        (lambda h, v: ([*h, ("ce_id", None)], v), "no-envelope"),
        (lambda h, v: ([*h, ("ce_type", None)], v), "no-envelope"),
        (lambda h, v: ([*h, ("ce_id", b"")], v), "bad-id"),
        (lambda h, v: ([*h, ("ce_id", b"x" * 257)], v), "bad-id"),
        (lambda h, v: ([*h, ("ce_id", b"\xff")], v), "bad-header"),
        (lambda h, v: ([*h, ("ce_type", b"\xff\xfe")], v), "bad-header"),
        (lambda h, v: ([*h, ("ce_type", b"xinfluencer.PostObserved.v2")], v), "unknown-version"),
        (lambda h, v: ([*h, ("ce_type", b"xinfluencer.PostObserved.v0")], v), "unknown-version"),
        (lambda h, v: ([*h, ("ce_type", b"xinfluencer.PostObserved.v01")], v), "unknown-version"),
        (lambda h, v: ([*h, ("ce_type", b"PostObserved")], v), "unknown-type"),
        (lambda h, v: ([*h, ("ce_type", b"xinfluencer.PostLoved.v1")], v), "unknown-type"),
        (lambda h, v: ([*h, ("ce_type", b"")], v), "unknown-type"),
        (lambda h, v: ([*h, ("ce_type", b"xinfluencer.FeedbackGiven.v1")], v), "wrong-topic"),
        (lambda h, v: ([*h, ("ce_type", b"xinfluencer.Ticked.v1")], v), "wrong-topic"),
        (lambda h, v: (h, None), "no-body"),
        (lambda h, v: (h, b""), "bad-json"),
        (lambda h, v: (h, v[:-1]), "bad-json"),
        (lambda h, v: (h, b"\xff" + v), "bad-json"),
        (lambda h, v: (h, b"[]"), "bad-shape"),
        (lambda h, v: (h, b"null"), "bad-shape"),
        (lambda h, v: (h, b"[" * 100_000), "bad-json"),
        (lambda h, v: (h, b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "bad-json"),
        (lambda h, v: (h, v.replace(b'"media":0', b'"media":NaN')), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"media":0', b'"media":1' + b"0" * 400)), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"media":0', b'"media":"0"')), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"media":0', b'"media":true')), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"p:1"', b'"p 1"')), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"p:1"', b'"p/1"')), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"p:1"', b'"p\\u0000"')), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"p:1"', b'"\\ud800"')), "bad-json"),
        (lambda h, v: (h, v.replace(b'"post":', b'"pust":')), "bad-shape"),
        (lambda h, v: (h, v.replace(b'"v1.', b'"v2.')), "bad-shape"),
        (lambda h, v: (h, v[:-1] + b" " * topics.RECORD_BYTES_MAX + b"}"), "too-large"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_right_reason(change: Any, reason: str) -> None:
    headers, value = written(POST)
    assert envelope.decode("tweets", 0, 0, 1, headers, value).id == "id-1"
    assert reason_of("tweets", *change(headers, value)) == reason


@pytest.mark.parametrize(
    "text", ["", "a/b/1/2", "a/b/1/2/3/4", "a/b/x/2/3", "a/b/1/-2/3", "a/b/1/ 2/3", "a/b/1/1_0/3", "a/b/١/2/3"]
)
def test_an_origin_that_we_did_not_write_is_refused(text: str) -> None:
    headers, value = written(POST)
    assert reason_of("tweets", [*headers, ("ce_origin", text.encode())], value) == "bad-origin"
    assert Origin.parse("a/b/1/2/3").text() == "a/b/1/2/3"


@pytest.mark.parametrize("time_ms", [-1, facts.MS_MAX + 1, 2**62, -(2**62)])
def test_a_timestamp_that_is_no_time_is_refused_and_stops_nobody(time_ms: int) -> None:
    headers, value = written(POST)
    assert reason_of("tweets", headers, value, time_ms) == "bad-time"
    fold = Fold(stages()[0], 0, 3, Keyring())
    (letter,) = fold.take([Logged(0, time_ms, None, value, headers)])
    assert (letter.event.reason, letter.time_ms) == ("bad-time", 0)


def test_a_header_without_a_value_becomes_a_dead_letter_and_stops_nobody() -> None:
    headers, value = written(POST)
    fold = Fold(stages()[0], 0, 3, Keyring())
    broken = [Logged(0, 1, None, value, [*headers, ("ce_id", None)]), Logged(1, 1, None, None, [("ce_id", None)])]
    assert [sent.event.reason for sent in fold.take(broken)] == ["no-envelope", "no-envelope"]


@pytest.mark.parametrize("event", [POST, ANSWER], ids=["post", "answer"])
def test_open_words_are_refused(event: Any) -> None:
    headers, _ = written(event)
    assert reason_of(home(event), headers, envelope.body(event)) == "not-sealed"
    assert envelope.decode(home(event), 0, 0, 1, headers, envelope.body(event.model_copy(update={"content": None})))


def test_what_would_be_refused_by_readers_is_refused_at_our_edge() -> None:
    def answer(texts: int) -> e.AnswerGiven:
        content = facts.AnswerContent(messages=(), texts=("x" * 100_000,) * texts)
        return ANSWER.model_copy(update={"content": content})

    headers, value = written(answer(6))
    assert envelope.decode("answers", 0, 0, 1, headers, value)
    for texts in (7, 8, 20):
        with pytest.raises(Refused, match="too-large"):
            written(answer(texts))
    with pytest.raises(Refused, match="too-large"):
        envelope.body(POST.model_copy(update={"content": None, "mentions": tuple(f"x:{i}" for i in range(200_000))}))


@settings(QUICK, max_examples=300)
@given(st.data())
def test_the_decoder_only_ever_refuses(data: st.DataObject) -> None:
    headers, value = written(data.draw(st.sampled_from([POST, ANSWER])))
    raw = bytearray(value)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    taken = data.draw(
        st.sampled_from([headers, [], headers[:3], headers[3:], [*headers, ("ce_origin", bytes(raw[:9]))]])
    )
    for topic in ("tweets", "answers"):
        try:
            envelope.decode(topic, 0, 0, 1, taken, bytes(raw))
        except Refused as refused:
            letter = e.RecordRefused.model_validate(
                {
                    "owner": "o",
                    "reason": refused.reason,
                    "detail": refused.detail,
                    "stage": "s",
                    "place": "p",
                    "size": 0,
                    "sha256": "0" * 64,
                }
            )
            assert letter.detail.isprintable()


# ---- words only where they may be erased ----------------------------------------------------------------------------


def open_strings(annotation: Any, marks: Sequence[Any] = ()) -> list[int | None]:
    """List the longest lengths of the strings without a pattern that a field can hold (None: no limit)."""
    if get_origin(annotation) is not None and hasattr(annotation, "__metadata__"):
        more = [mark for one in annotation.__metadata__ for mark in getattr(one, "metadata", ())]
        return open_strings(get_args(annotation)[0], more)
    if annotation is str:
        if any(getattr(mark, "pattern", None) for mark in marks):
            return []
        return [next((mark.max_length for mark in marks if hasattr(mark, "max_length")), None)]
    if inspect.isclass(annotation) and issubclass(annotation, facts.Fact):
        return [
            size
            for field in annotation.model_fields.values()
            for size in open_strings(field.annotation, field.metadata)
        ]
    return [size for one in get_args(annotation) for size in open_strings(one)]


def can_hold_words(kind: type[facts.Fact]) -> bool:
    return any(size is None or size > 512 for size in open_strings(kind))


def test_only_sealed_content_has_room_for_words() -> None:
    sealed = {kind for kind in KINDS.values() if "content" in kind.model_fields}
    assert sealed == set(seal.CONTENT)
    assert {HOME[kind].name for kind in sealed} == {"tweets", "answers", "dead-letters"}
    for kind in set(KINDS.values()) - sealed - {learned.ModelTrained}:  # its settings are the operator's
        assert not can_hold_words(kind), f"{kind.__name__} has a field that could hold somebody's words"
    for kind in seal.CONTENT:
        assert can_hold_words(kind)
        others = {name: field for name, field in kind.model_fields.items() if name != "content"}
        assert all((size or 513) <= 512 for f in others.values() for size in open_strings(f.annotation, f.metadata))
        assert "owner" in kind.model_fields


def said_with_canaries(open_words: bool = False) -> tuple[Engine, list[str]]:
    """Run posts, answers, feedback and broken records through every stage; gives the engine and the words used."""
    keys = Keyring()
    engine = Engine(stages(Tuning(ages_ms=(1000,))), keys, 2, seed=1)
    words = [f"canary{hashlib.sha256(str(i).encode()).hexdigest()[:12]}" for i in range(12)]
    t0 = 1_700_000_000_000
    said: list[facts.Event] = []
    for i in range(6):
        content = facts.PostContent(
            text=f"{words[i]} and more words", username=words[6], hashtags=(words[7],), links=(words[8],)
        )
        said.append(
            ps.PostObserved(
                post=f"p:{i}",
                owner=f"x:@{i % 3}",
                source="x",
                raw_sha256="0" * 64,
                rights=RIGHTS,
                parent="p:0" if i else None,
                content=content,
            )
        )
        said.append(
            ps.EngagementObserved(
                post=f"p:{i}", owner=f"x:@{i % 3}", source="x", parent="p:0", likes=9**i, rights=RIGHTS
            )
        )
    turn = facts.Turn(role="user", content=words[9])
    for texts in ((words[10], words[11]), (words[10],)):  # the second is refused: two items, one text
        content = facts.AnswerContent(messages=(turn,), texts=texts)
        said.append(ANSWER.model_copy(update={"items": ("i:1", "i:2"), "content": content, "seed": len(texts)}))
    said.append(e.FeedbackGiven(feedback="f", subject="q:1/i:1", rater="r", kind="choice", other="q:1/i:2"))
    engine.append([outside(worded(event), "/sources/x", t0, 2, keys) for event in said])
    for place in engine.log.values():
        place += [Logged(len(place) + i, t0, None, one.value[:-2], one.headers) for i, one in enumerate(place[:2])]
    if open_words:
        headers = envelope.headers(POST, "open", "/sources/x", t0)
        value = envelope.body(POST.model_copy(update={"content": facts.PostContent(text=words[0])}))
        engine.log["tweets", 0].append(Logged(len(engine.log["tweets", 0]), t0, None, value, headers))
    engine.run()
    engine.append([tick(topics.SIGNALS, p, t0 + 5000) for p in range(2)])
    engine.run()
    return engine, words


def holding(engine: Engine, words: list[str]) -> list[tuple[str, int, int]]:
    """Find the records whose bytes hold one of the words."""
    found = []
    for (topic, partition), records in engine.log.items():
        for raw in records:
            data = b"\0".join([raw.key or b"", raw.value or b"", *(value or b"" for _, value in raw.headers)])
            if any(word.encode() in data for word in words):
                found.append((topic, partition, raw.offset))
    return found


def test_no_word_of_a_post_or_an_answer_lies_open_in_any_record() -> None:
    engine, words = said_with_canaries()
    assert holding(engine, words) == []
    assert all(engine.log[topic, 0] for topic in ("preferences", "dead-letters", "interactions"))
    opened = set()
    for topic in ("tweets", "answers"):
        for partition in range(2):
            for raw in engine.log[topic, partition]:
                try:
                    record = envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
                except Refused:
                    continue
                text = str(getattr(seal.unseal(record.event, record.id, engine.keys), "content", ""))
                opened |= {word for word in words if word in text}
    assert opened == set(words)


def test_a_word_that_somebody_wrote_in_the_open_is_found_and_goes_no_further() -> None:
    engine, words = said_with_canaries(open_words=True)
    assert holding(engine, words) == [("tweets", 0, len(engine.log["tweets", 0]) - 1)]


# ---- ids, hashes, seals ---------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=300)
@given(st.binary(max_size=40), st.integers(1, 64))
@example(b"", 1)
def test_a_key_lands_where_every_kafka_client_puts_it(data: bytes, partitions: int) -> None:
    assert ids.murmur2(data) == aiokafka_murmur2(data) & 0xFFFFFFFF
    expected = DefaultPartitioner()(data, list(range(partitions)), [])
    assert (ids.murmur2(data) & 0x7FFFFFFF) % partitions == expected
    text = data.hex()
    assert ids.partition_of(text, partitions) == DefaultPartitioner()(text.encode(), list(range(partitions)), [])


def test_another_hash_would_be_noticed() -> None:
    keys = [str(i).encode() for i in range(64)]
    other = [(int.from_bytes(hashlib.md5(key).digest()[:4], "big") & 0x7FFFFFFF) % 7 for key in keys]
    assert other != [DefaultPartitioner()(key, list(range(7)), []) for key in keys]


@settings(QUICK, max_examples=300)
@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
@example(["ab", "c"], ["a", "bc"])
@example(["a", ""], ["a"])
@example([], [""])
def test_parts_of_an_id_do_not_run_together(one: list[str], other: list[str]) -> None:
    assert (ids.digest(*one) == ids.digest(*other)) == (one == other)


@settings(QUICK, max_examples=300)
@given(
    *[st.tuples(st.sampled_from(["a", "ab"]), st.integers(0, 12), st.text("1|2", max_size=4), st.integers(0, 12))] * 2
)
@example(("a", 1, "2|3", 4), ("a", 1, "2", 34))
@example(("a", 1, "1|1", 1), ("a", 11, "1", 1))
def test_the_causes_of_an_output_do_not_run_together(one: Any, other: Any) -> None:
    assert (ids.output_id(*one) == ids.output_id(*other)) == (one == other)


@settings(QUICK, max_examples=200)
@given(*[st.tuples(st.text("ab", min_size=1, max_size=2), st.text("ab\0", max_size=3))] * 2)
@example(("a", "b"), ("ab", ""))
def test_a_text_and_its_owner_do_not_run_together(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (ids.text_hash(*one) == ids.text_hash(*other)) == (one == other)


@settings(QUICK, max_examples=100)
@given(strategies.model(e.PromptNoted), st.text(strategies.ID_CHARS, min_size=1, max_size=9))
def test_a_subject_gives_its_prompt_back(noted: Any, item: str) -> None:
    subject = ids.subject_id(noted.prompt, item)
    assert ids.prompt_of(subject) == noted.prompt
    given = e.FeedbackGiven(feedback="f", subject=subject, rater="r", kind="thumb")
    assert topics.FEEDBACK.key_of(given) == topics.SIGNALS.key_of(noted)


def naive_root(data: list[bytes]) -> bytes:
    """Hash as RFC 6962 section 2.1 words it."""
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = 1 << (len(data) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + naive_root(data[:k]) + naive_root(data[k:])).digest()


def naive_path(m: int, data: list[bytes]) -> list[bytes]:
    """List the audit path as RFC 6962 section 2.1.1 words it."""
    if len(data) <= 1:
        return []
    k = 1 << (len(data) - 1).bit_length() - 1
    if m < k:
        return [*naive_path(m, data[:k]), naive_root(data[k:])]
    return [*naive_path(m - k, data[k:]), naive_root(data[:k])]


def test_roots_and_proofs_are_those_of_the_rfc() -> None:
    for count in range(70):
        data = [bytes([i]) * (i % 5) for i in range(count)]
        leaves = [merkle.leaf(one) for one in data]
        assert merkle.root(leaves) == naive_root(data)
        for index in range(count):
            path = merkle.proof(leaves, index)
            assert [sibling for sibling, _ in path] == naive_path(index, data)
            assert merkle.verify(leaves[index], path, naive_root(data))
    with pytest.raises(IndexError):
        merkle.proof([], 0)


def test_a_root_is_that_of_certificate_transparency() -> None:
    texts = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [merkle.leaf(bytes.fromhex(text)) for text in texts]
    assert merkle.root(leaves[:3]).hex() == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert merkle.root(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_a_proof_of_anything_else_does_not_hold() -> None:
    data = [bytes([i]) for i in range(11)]
    leaves = [merkle.leaf(one) for one in data]
    whole = merkle.root(leaves)
    rng = random.Random(0)
    for index in range(11):
        path = merkle.proof(leaves, index)
        assert not merkle.verify(merkle.leaf(b"other"), path, whole)
        assert not merkle.verify(leaves[(index + 1) % 11], path, whole)
        at = rng.randrange(len(path))
        sibling, on_left = path[at]
        flipped = bytes([sibling[0] ^ 1]) + sibling[1:]
        assert not merkle.verify(leaves[index], [*path[:at], (flipped, on_left), *path[at + 1 :]], whole)
        assert not merkle.verify(leaves[index], [*path[:at], (sibling, not on_left), *path[at + 1 :]], whole)
        assert not merkle.verify(leaves[index], path[:-1], whole)
    assert merkle.root(leaves[:2] + leaves[:1]) != merkle.root(leaves[:2])
    # A node passed off as a leaf, which the prefixes are there to stop.
    assert merkle.root(leaves[:2]) != merkle.leaf(leaves[0] + leaves[1])


def test_a_tree_that_doubles_its_last_node_would_be_noticed() -> None:
    def doubling(level: list[bytes]) -> bytes:
        while len(level) > 1:
            level = level + level[-1:] * (len(level) % 2)
            level = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    data = [b"a", b"b", b"c"]
    assert doubling([merkle.leaf(one) for one in data[:2]]) == naive_root(data[:2])
    assert doubling([merkle.leaf(one) for one in data]) != naive_root(data)


def test_a_seal_opens_only_where_it_was_made() -> None:
    keys = Keyring()
    token = seal.seal(POST, "id-1", keys).content
    sealed = POST.model_copy(update={"content": token})
    assert seal.unseal(sealed, "id-1", keys) == POST
    edited = ps.PostEdited(**dict(sealed))
    moved = sealed.model_copy(update={"owner": "x:@bob"})
    for event, name in ((sealed, "id-2"), (edited, "id-1"), (moved, "id-1")):
        with pytest.raises(Refused, match="seal-broken"):
            seal.unseal(event, name, keys)


def test_a_seal_with_any_bit_flipped_is_refused() -> None:
    import base64

    key = Keyring().make("o")
    token = seal.seal_bytes(key, b"words", b"aad")
    raw = base64.urlsafe_b64decode(token[3:] + "=" * (-len(token[3:]) % 4))
    assert seal.open_bytes(key, token, b"aad") == b"words"
    for bit in range(len(raw) * 8):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused, match="seal-broken"):
            seal.open_bytes(key, "v1." + base64.urlsafe_b64encode(broken).decode().rstrip("="), b"aad")
    for short in ("v1.", "v1.A", "v1.AAAA", token[:-8]):
        with pytest.raises(Refused, match="seal-broken"):
            seal.open_bytes(key, short, b"aad")
    with pytest.raises(Refused, match="seal-broken"):
        seal.open_bytes(Keyring().make("other"), token, b"aad")


@settings(QUICK, max_examples=100)
@given(*[st.tuples(st.binary(max_size=3), st.binary(max_size=3))] * 2)
@example((b"a", b"bc"), (b"ab", b"c"))
@example((b"a", b"words"), (b"b", b"words"))
def test_equal_nonces_mean_equal_words_in_the_same_event(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> None:
    key = Keyring().make("o")
    first, second = (seal.seal_bytes(key, words, aad) for aad, words in (one, other))
    assert first == seal.seal_bytes(key, one[1], one[0])
    assert (first[:19] == second[:19]) == (one == other)  # "v1." and 16 characters: the 96 bits of the nonce


def test_words_of_an_erased_owner_are_none_and_nothing_of_theirs_is_taken_in() -> None:
    keys = Keyring()
    headers, value = written(POST, keys=keys)
    keys.gone.add("x:@ann")
    record = envelope.decode("tweets", 0, 0, 1, headers, value)
    assert seal.unseal(record.event, record.id, keys).content is None
    with pytest.raises(Refused, match="owner-erased"):
        seal.seal(POST, "id-2", keys)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_every_kind_of_event_has_exactly_one_topic_but_ticked() -> None:
    for kind in all_kinds():
        homes = [topic.name for topic in TOPICS if kind in topic.events]
        assert homes == (["interactions", "signals", "preferences"] if kind is e.Ticked else [HOME[kind].name])
    assert all_kinds() == set(KINDS.values())
    assert len({topic.name for topic in TOPICS}) == len(TOPICS)


def test_every_event_has_the_field_that_its_topic_is_ordered_by() -> None:
    for topic in TOPICS:
        if topic.key is not None:
            assert all(topic.key in kind.model_fields for kind in topic.events if kind is not e.Ticked), topic.name
            assert topic.wide or topic.compacted, f"{topic.name} has a key and one partition"
        else:
            assert not topic.wide, f"{topic.name} has partitions and nothing to choose one by"


def test_an_agent_reads_one_topic_that_nobody_else_reads() -> None:
    table = stages()
    reads = [stage.reads.name for stage in table]
    assert all(isinstance(stage.reads, topics.Topic) for stage in table)
    assert len(set(reads)) == len(reads)
    assert len({stage.name for stage in table}) == len(table)


def misplaced(table: Sequence[Any]) -> list[str]:
    """List the stages that read what nothing above them writes."""
    before = {
        topic.name for process in OUTSIDE if not process.reads or process.name == "server" for topic in process.writes
    }
    found = []
    for stage in table:
        ready = {process.name: process for process in OUTSIDE if all(topic.name in before for topic in process.reads)}
        before |= {topic.name for process in ready.values() for topic in process.writes}
        if stage.reads.name not in before:
            found.append(stage.name)
        before |= {topic.name for topic in stage.writes}
    return found


def test_a_topic_is_written_above_the_stage_that_reads_it() -> None:
    table = stages()
    assert misplaced(table) == []
    assert misplaced([stage for stage in table if stage.name != "pairing"]) == []  # its ticks still come
    assert misplaced([stage for stage in table if stage.name != "rewards"]) == ["pairing"]
    assert "pairing" in misplaced(table[::-1])


def test_every_topic_is_written_by_somebody() -> None:
    assert {written for _, _, written in edges(stages())} == {topic.name for topic in TOPICS}


def test_no_stage_writes_where_origins_are_not_believed() -> None:
    for stage in stages():
        assert not [topic.name for topic in stage.writes if topic.outside], stage.name


def test_everything_flows_one_way() -> None:
    table = stages()
    assert cycle(table) == []
    batching = next(stage for stage in table if stage.name == "batching")
    planted = replace(batching, writes=(*batching.writes, topics.SIGNALS))
    found = cycle([planted if stage is batching else stage for stage in table])
    assert found[0] == found[-1]
    assert set(found) == {"signals", "rewards", "preferences"}
    itself = replace(batching, writes=(topics.PREFERENCES,))
    assert cycle([itself]) == ["preferences", "preferences"]


def test_a_type_name_and_version_are_what_others_filter_by() -> None:
    for kind in KINDS.values():
        headers = dict(envelope.headers(kind.model_construct(), "i", "/s", 0))
        assert re.fullmatch(rb"xinfluencer\.[A-Z][A-Za-z]+\.v[1-9][0-9]*", headers["ce_type"])


def test_nested_unions_hide_no_open_string() -> None:
    assert open_strings(facts.PostContent | None) != []
    assert open_strings(Union[facts.Hash, None]) == []  # noqa: UP007
    assert open_strings(dict[str, int]) == [None]
