"""Every event survives the trip to a record and back, and nothing is guessed."""

import json
from datetime import datetime
from typing import Any

import pytest
from cloudevents.core.bindings import kafka as cloudevents_kafka
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import envelope, facts, learned, render, seal, topics
from schemas import events as e
from schemas.envelope import Origin, Refused
from schemas.topics import HOME, KINDS
from streams.fold import Fold
from streams.memory import Logged
from streams.records import content_id
from streams.topology import stages
from tests import strategies
from tests.wire import ANSWER, POST, QUICK, RIGHTS, Keyring, written


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
