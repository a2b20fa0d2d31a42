"""Tracing: one trace from a post to a release, the same in every life; and spans that hold numbers and no words."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from hypothesis import given
from hypothesis import strategies as st

from schemas import envelope
from schemas import events as e
from schemas.facts import Where
from schemas.learned import BatchClosed, ModelTrained, PairFormed
from streams import crash, tracing
from streams import lineage as lineages
from streams.fold import Fold, Sent
from streams.kafka import ensure_topics
from streams.lineage import Lineage, lineage, run_trace
from streams.memory import Engine, Logged
from streams.reader import LogUnreadable, reader
from streams.records import outside
from streams.sender import Sender
from streams.settings import Settings
from streams.topics import specs
from streams.topology import stages
from streams.tracing import Span, Spans
from streams.trainer import Trainer
from tests.harness import for_ever
from tests.serving import ASKED, Deployed, World, eventually
from tests.small_world import Keyring, world

FORM = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]")
CLIENTS = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EVENT = e.FeedbackGiven(feedback="f:1", subject="q:1/a:1", rater="r:1", kind="thumb")
ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def lived() -> Engine:
    return world(3, 120, 1_700_000_000_000, days=3)


def records(engine: Engine, *topics: str) -> Iterator[tuple[Logged, envelope.Record]]:
    for (topic, partition), raws in engine.log.items():
        for raw in raws if not topics or topic in topics else ():
            yield raw, envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)


def trace_of(record: envelope.Record) -> str:
    return tracing.of(record).decode().split("-")[1]


def at(engine: Engine, where: Where | envelope.Origin) -> envelope.Record:
    raw = engine.log[where.topic, where.partition][where.offset]
    return envelope.decode(where.topic, where.partition, raw.offset, raw.timestamp, raw.headers, raw.value)


# ---- the header -----------------------------------------------------------------------------------------------------


def test_every_record_of_a_life_has_a_valid_traceparent_of_its_own_span(lived: Engine) -> None:
    number = 0
    for _, record in records(lived):
        number += 1
        assert record.traceparent is not None
        assert FORM.fullmatch(record.traceparent), record
        assert record.traceparent == tracing.of(record)
        assert record.traceparent.decode().split("-")[2] == tracing.span_id(record.id)
    assert number > 500


def test_an_output_is_in_the_trace_of_the_record_that_caused_it_up_to_what_came_from_outside(lived: Engine) -> None:
    seen, depth = set(), 0
    for _, record in records(lived):
        steps, cause = 0, record
        while cause.origin is not None:
            seen.add(cause.origin.stage)
            cause, steps = at(lived, cause.origin), steps + 1
            assert trace_of(cause) == trace_of(record)
        assert trace_of(record) == tracing._name(cause.id), "the trace is named after what began it"
        depth = max(depth, steps)
    assert {"metadata", "rewards", "pairing", "batching", "releases"} <= seen
    assert depth >= 2  # most rewards and batches are closed by a tick, and a tick begins a trace


def test_a_release_can_be_walked_back_to_the_posts_it_was_made_of(lived: Engine) -> None:
    """Where many make one, the header names the last of them; the bodies name the others."""
    batches = {one.event.batch: one for _, one in records(lived, "batches") if isinstance(one.event, BatchClosed)}
    pairs = {one.offset: one for _, one in records(lived, "preferences") if isinstance(one.event, PairFormed)}
    walked = 0
    for _, trained in records(lived, "candidates"):
        assert isinstance(trained.event, ModelTrained)
        said = [one for _, one in records(lived, "models", "model-releases") if trace_of(one) == trace_of(trained)]
        assert said, "what a release says is in the trace of the version"
        for name in trained.event.batches:
            for ref in batches[name].event.pairs:  # type: ignore[attr-defined]
                pair = pairs[ref.offset].event
                assert isinstance(pair, PairFormed)
                for where in (pair.prompt_where, pair.chosen.where, pair.rejected.where):
                    root = at(lived, where)
                    assert root.origin is None
                    mine = [one for _, one in records(lived, "signals") if trace_of(one) == trace_of(root)]
                    assert mine, "the signals of a post are in its trace"
                    walked += 1
            if walked > 20:
                return
    assert walked


def test_two_lives_give_the_same_headers() -> None:
    first, second = ([raw.headers for raw, _ in records(world(4, 40, 1_700_000_000_000, days=2))] for _ in range(2))
    assert first == second


def test_a_record_written_before_there_were_traces_is_read_and_its_outputs_join_its_trace() -> None:
    intake = next(stage for stage in stages() if stage.name == "intake")
    sent = outside(EVENT, "/people", 1_700_000_000_000, 1, Keyring())
    old = [header for header in sent.headers if header[0] != "ce_traceparent"]
    assert len(old) == len(sent.headers) - 1
    new_out, old_out = (
        Fold(intake, 0, 1, Keyring()).take([Logged(0, sent.time_ms, sent.key, sent.value, headers)])
        for headers in (sent.headers, old)
    )
    assert new_out == old_out


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"00",
        CLIENTS[:-1],
        CLIENTS.upper(),
        CLIENTS + b"-more",  # version 00 has no more
        CLIENTS.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32),
        CLIENTS.replace(b"00f067aa0ba902b7", b"0" * 16),
        b"ff" + CLIENTS[2:],
        b"01" + CLIENTS[2:] + b"more",
        b"\xff" * 55,
        CLIENTS + b"\n",
        b"00_" + CLIENTS[3:],
    ],
)
def test_a_traceparent_that_the_standard_forbids_begins_a_new_trace(given: bytes) -> None:
    assert tracing.header(given, ID) == f"00-{ID}-{ID[:16]}-00".encode()


def test_a_valid_one_is_followed_with_its_flag_and_also_of_a_later_version() -> None:
    expected = f"00-4bf92f3577b34da6a3ce929d0e0e4736-{ID[:16]}-01".encode()
    assert tracing.header(CLIENTS, ID) == expected
    assert tracing.header(CLIENTS[:-2] + b"ff", ID) == expected
    assert tracing.header(b"cc" + CLIENTS[2:], ID) == expected
    assert tracing.header(b"cc" + CLIENTS[2:] + b"-later", ID) == expected
    assert tracing.header(CLIENTS[:-2] + b"02", ID) == expected[:-2] + b"00"


@given(given=st.none() | st.binary(max_size=80), name=st.text(min_size=1, max_size=60))
def test_whatever_comes_in_what_goes_out_is_valid_and_the_same_again(given: bytes | None, name: str) -> None:
    made = tracing.header(given, name)
    assert FORM.fullmatch(made)
    assert made == tracing.header(given, name)
    assert FORM.fullmatch(tracing.header(made, name))
    assert tracing.header(made, name).split(b"-")[1] == made.split(b"-")[1]


def test_nothing_of_an_id_that_others_chose_is_in_the_header() -> None:
    assert b"ann" not in tracing.header(None, "bluesky:did:plc:ann~post")


def test_the_header_decides_nothing() -> None:
    """Neither what a record is nor whether it is the same again: a retry by a client brings another traceparent."""
    intake = next(stage for stage in stages() if stage.name == "intake")
    fold = Fold(intake, 0, 1, Keyring())
    once, again = (outside(EVENT, "/people", 1_700_000_000_000, 1, Keyring(), None, tp) for tp in (None, CLIENTS))
    raws = [Logged(n, s.time_ms, s.key, s.value, s.headers) for n, s in enumerate((once, again))]
    assert len(fold.take(raws)) == 1
    assert fold.memory.ignored == 1


def test_random_traces_would_be_seen() -> None:
    """Negative control of the comparison of two lives: a trace made by chance differs between them."""
    import secrets

    def wrong(engine: Engine) -> list[Any]:
        return [
            [
                (n, b"00-%b-%b-00" % (secrets.token_hex(16).encode(), b"1" * 16) if n == "ce_traceparent" else v)
                for n, v in raw.headers
            ]
            for raw, _ in records(engine)
        ]

    engine = world(4, 10, 1_700_000_000_000, days=1)
    assert wrong(engine) != [raw.headers for raw, _ in records(engine)]


# ---- from a version back to the posts -------------------------------------------------------------------------------


class Kept:
    """A life in memory as lineage reads it; what `gone` names was taken by retention."""

    def __init__(self, engine: Engine, *gone: str) -> None:
        self.log, self.gone = engine.log, gone

    async def records(self, topic: str) -> Any:
        for raw in self.log[topic, 0]:
            yield raw

    async def at(self, places: Any) -> dict[tuple[str, int, int], Any]:
        if any(one.topic in self.gone for one in places):
            raise LogUnreadable("deleted by retention")
        return {(w.topic, w.partition, w.offset): self.log[w.topic, w.partition][w.offset] for w in places}


def versions(engine: Engine) -> list[ModelTrained]:
    found = [one.event for _, one in records(engine, "candidates")]
    return [one for one in found if isinstance(one, ModelTrained) and one.batches]


def told(found: Lineage) -> list[dict[str, Any]]:
    lines = [json.loads(span.line(service)) for service, span in found.spans()]
    return [line["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for line in lines]


def reached(spans: list[dict[str, Any]], links: bool = True) -> set[tuple[str, str]]:
    """Walk as a person does in a viewer of traces, from the first span by parents and links; gives (trace, span)."""
    by_id = {(one["traceId"], one["spanId"]): one for one in spans}
    ahead, seen = [next(iter(by_id))], set()
    while ahead:
        at = ahead.pop()
        if at in seen or at not in by_id:
            continue
        seen.add(at)
        span = by_id[at]
        if "parentSpanId" in span:
            ahead.append((span["traceId"], span["parentSpanId"]))  # a parent is always in the same trace
        ahead += [(one["traceId"], one["spanId"]) for one in span.get("links", ()) if links]
    return seen


def posts_of(engine: Engine, version: ModelTrained) -> set[tuple[str, str]]:
    """What it was made of, read from the bodies: the posts and answers of every pair of every batch."""
    batches = [one.event for _, one in records(engine, "batches") if isinstance(one.event, BatchClosed)]
    offsets = {ref.offset for one in batches if one.batch in version.batches for ref in one.pairs}
    pairs = [one.event for _, one in records(engine, "preferences") if one.offset in offsets]
    wheres = [w for p in pairs if isinstance(p, PairFormed) for w in (p.prompt_where, p.chosen.where, p.rejected.where)]
    return {(trace_of(at(engine, where)), tracing.span_id(at(engine, where).id)) for where in wheres}


def test_parents_and_links_lead_from_a_version_to_every_post_it_was_made_of(lived: Engine) -> None:
    for version in versions(lived):
        found = asyncio.run(lineage(Kept(lived), version.version))
        posts = posts_of(lived, version)
        assert posts
        assert posts <= reached(told(found))
        assert {(trace_of(one), tracing.span_id(one.id)) for one in found.roots()} >= posts
        topics = {one.record.topic for one in found.steps.values()}
        assert {"models", "candidates", "batches", "preferences", "rewards", "signals", "tweets"} <= topics
        assert not found.gone
        assert not posts & reached(told(found), links=False), "without links a trace ends at the tick"


def test_every_span_of_a_lineage_is_the_one_that_its_record_carries_in_the_log(lived: Engine) -> None:
    found = asyncio.run(lineage(Kept(lived), versions(lived)[-1].version))
    for one, span in zip(found.steps.values(), told(found), strict=True):
        raw = lived.log[one.record.topic, one.record.partition][one.record.offset]
        assert dict(raw.headers)["ce_traceparent"].decode().split("-")[1:3] == [span["traceId"], span["spanId"]]
        assert span["kind"] == 4
        assert len(span.get("links", ())) <= lineages.LINKS_MAX
    text = "".join(span.line(service) for service, span in found.spans())
    assert not re.search(r"x:|m:\d|@", text), "ids that others chose are not told"


def test_a_lineage_is_a_function_of_the_log() -> None:
    lines = []
    for _ in range(2):
        engine = world(3, 120, 1_700_000_000_000, days=3)
        found = asyncio.run(lineage(Kept(engine), versions(engine)[-1].version))
        lines.append([span.line(service) for service, span in found.spans()])
    assert lines[0] == lines[1]
    assert len(lines[0]) > 20


def test_a_lineage_is_bounded_and_says_what_it_left_out(lived: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    version = versions(lived)[-1].version
    whole = asyncio.run(lineage(Kept(lived), version))
    assert max(len(span.get("links", ())) for span in told(whole)) > 2
    monkeypatch.setattr(lineages, "LINKS_MAX", 2)
    found = asyncio.run(lineage(Kept(lived), version))
    assert max(len(span.get("links", ())) for span in told(found)) == 2
    assert found.steps.keys() == whole.steps.keys(), "what a span cannot link to is in the lineage all the same"
    assert not found.left_out
    monkeypatch.setattr(lineages, "RECORDS_MAX", 10)
    found = asyncio.run(lineage(Kept(lived), version))
    assert len(found.steps) <= 10
    assert found.left_out


def test_what_retention_took_is_counted_and_the_links_lead_past_it(lived: Engine) -> None:
    version = versions(lived)[-1]
    found = asyncio.run(lineage(Kept(lived, "signals", "rewards"), version.version))
    assert {place[0] for place in found.gone} <= {"signals", "rewards"}
    assert found.gone
    assert posts_of(lived, version) <= reached(told(found))


def test_a_version_that_is_not_known_is_a_clear_no(lived: Engine) -> None:
    for name, why in (("0" * 64, "no version begins"), ("", "no version begins")):
        with pytest.raises(LookupError, match=why):
            asyncio.run(lineage(Kept(lived), name))


# ---- spans ----------------------------------------------------------------------------------------------------------


def span(**more: Any) -> Span:
    values = {"name": "chat default", "traceparent": tracing.header(CLIENTS, ID), "began_ns": 5, "ended_ns": 9}
    return Span(**{**values, "attributes": {"a": "b", "n": 1, "f": 0.5, "l": ("stop", "length"), "t": True}, **more})


def test_a_span_is_a_line_of_otlp_json(tmp_path: Path) -> None:
    Spans(tmp_path, "server").write(span(parent=tracing.parent(CLIENTS), links=(CLIENTS,), error="busy"))
    told = json.loads((tmp_path / "server.jsonl").read_text())
    assert set(told) == {"resourceSpans"}
    one = told["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (one["traceId"], one["spanId"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", ID[:16])
    assert one["parentSpanId"] == "00f067aa0ba902b7"
    assert (one["startTimeUnixNano"], one["endTimeUnixNano"]) == ("5", "9"), "64-bit numbers are text in JSON"
    values = {each["key"]: each["value"] for each in one["attributes"]}
    assert values["n"] == {"intValue": "1"}
    assert values["t"] == {"boolValue": True}
    assert values["f"] == {"doubleValue": 0.5}
    assert values["l"] == {"arrayValue": {"values": [{"stringValue": "stop"}, {"stringValue": "length"}]}}
    assert values["error.type"] == {"stringValue": "busy"}
    assert one["status"] == {"code": 2}
    assert one["links"] == [{"traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "spanId": "00f067aa0ba902b7"}]


def test_without_the_setting_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracing.from_env("server", {}).write(span())
    assert not list(tmp_path.iterdir())


def test_the_file_is_bounded_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FILE_BYTES_MAX", 2_000)
    spans = tracing.from_env("server", {tracing.VARIABLE: str(tmp_path / "traces")})
    for _ in range(40):
        spans.write(span())
    files = sorted((tmp_path / "traces").iterdir())
    assert [path.name for path in files] == ["server.before.jsonl", "server.jsonl"]
    for path in files:
        assert path.stat().st_size <= 2_000
        assert path.stat().st_mode & 0o077 == 0
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_folder_that_cannot_be_written_loses_the_span_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("in the way")
    Spans(tmp_path / "traces", "server").write(span())


# ---- on a broker ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv(tracing.VARIABLE, str(folder / "traces"))
        made = World.make(folder / "world")
        settings = Settings(data=folder / "data", cache=made.cache, base=made.spec, namespace="traced", partitions=2)
        deployed = Deployed(made, settings, broker.settings)
        deployed.release(0, None)
        deployed.start()
        eventually(lambda: deployed.get("/readyz").status_code == 200)
        yield deployed
        deployed.stop()


def header_of(served: Deployed, topic: str, event_id: str) -> bytes:
    found = [raw for raw in served.read(topic) if dict(raw.headers)["ce_id"] == event_id.encode()]
    return bytes(dict(found[0].headers)["ce_traceparent"])


def spans_of(served: Deployed) -> dict[str, Any]:
    path = served.settings.data.parent / "traces" / "server.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    spans = [line["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for line in lines]
    return {one["spanId"]: one for one in spans}


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_goes_on_with_the_clients_trace_and_its_span_is_its_child(served: Deployed, streamed: bool) -> None:
    asked = {"messages": ASKED, "max_tokens": 12, "temperature": 1.0, "stream": streamed, "user": "ann-lee"}
    body = served.post("/v1/chat/completions", asked, traceparent=CLIENTS.decode())
    assert body.status_code == 200
    first = json.loads(body.text.split("\n\n")[0].removeprefix("data: ")) if streamed else body.json()
    answer = first["id"].removeprefix("chatcmpl-")
    assert header_of(served, "answers", answer) == tracing.header(CLIENTS, answer)
    span = spans_of(served)[tracing.span_id(answer)]
    assert span["traceId"] == CLIENTS.decode().split("-")[1]
    assert span["parentSpanId"] == CLIENTS.decode().split("-")[2]
    assert span["name"] == "chat default"
    values = {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}
    assert values["gen_ai.operation.name"] == "chat"
    assert ("gen_ai.request.stream" in values, "gen_ai.response.time_to_first_chunk" in values) == (streamed, streamed)
    assert "gen_ai.request.choice.count" not in values, "it is told when it is not 1"
    assert values["gen_ai.response.id"] == first["id"]
    assert values["gen_ai.response.model"] == body.headers["x-xinfluencer-version"]
    assert int(values["gen_ai.usage.output_tokens"]) > 0
    assert int(span["endTimeUnixNano"]) > int(span["startTimeUnixNano"])
    assert b"zebracorns" not in json.dumps(span).encode()
    assert "ann-lee" not in json.dumps(span)


def test_without_a_trace_of_its_own_an_answer_begins_one_and_a_retry_begins_the_same(served: Deployed) -> None:
    answers = {served.ask("the same key").json()["id"].removeprefix("chatcmpl-") for _ in range(2)}
    (answer,) = answers
    headers = {dict(raw.headers)["ce_traceparent"] for raw in served.read("answers")
               if dict(raw.headers)["ce_id"] == answer.encode()}  # fmt: skip
    assert headers == {f"00-{answer}-{answer[:16]}-00".encode()}


def test_a_judgement_goes_on_with_the_clients_trace(served: Deployed) -> None:
    subject = served.ask().json()["xinfluencer"]["subjects"][0]
    said = {"subject": subject, "kind": "thumb", "value": 1, "user": "bob"}
    assert served.post("/v1/feedback", said, traceparent=CLIENTS.decode()).status_code == 200
    traces = {bytes(dict(raw.headers)["ce_traceparent"]).split(b"-")[1] for raw in served.read("feedback")}
    assert traces == {CLIENTS.split(b"-")[1]}


def test_generation_is_counted_under_opentelemetrys_names_and_no_name_that_a_client_chose(served: Deployed) -> None:
    version = served.world.base.sha256
    for model in ("default", version[:20], version[:33]):
        assert served.ask(model=model).status_code == 200
    assert served.ask(messages=[{"role": "user", "content": "long " * 3_000}]).status_code == 400
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "xinfluencer"}
    count = "gen_ai_server_request_duration_seconds_count"
    assert served.metric(count, **labels, gen_ai_request_model="version", error_type="") == 2
    assert served.metric(count, **labels, error_type="unreadable") == 1
    assert served.metric("gen_ai_client_token_usage_sum", **labels, gen_ai_token_type="output") > 0
    assert served.metric("gen_ai_server_time_to_first_token_seconds_count", **labels) > 0
    text = served.get("/metrics").text
    assert version[:12] not in text
    assert (served.settings.data / "run" / "server.prom").exists()


def test_what_the_trainer_announces_is_in_the_trace_of_its_batch(served: Deployed, lived: Engine) -> None:
    raw, closed = next(iter(records(lived, "batches")))
    version = ModelTrained(version="1" * 64, base="2" * 64, base_name="tiny")

    async def announce() -> None:
        await ensure_topics(served.kafka, specs(served.settings))
        sender = Sender(served.settings, served.kafka)
        await sender.send([Sent("batches", 0, raw.key, raw.value or b"", raw.headers, raw.timestamp, closed.event)])
        await sender.stop()
        trainer = Trainer(served.settings, served.kafka, crash.nowhere)
        trainer.producer = AIOKafkaProducer(**served.kafka.client_kwargs(), transactional_id="traced")
        await trainer.producer.start()
        async with reader(served.settings, served.kafka) as log:
            await trainer._publish(version, None, await trainer._trace(log, 0))
        await trainer.producer.stop()
        trainer.vault.close()

    asyncio.run(announce())
    eventually(lambda: bool(served.read("candidates")))  # a commit is visible a moment after it was acknowledged
    (said,) = served.read("candidates")
    assert dict(said.headers)["ce_traceparent"].split(b"-")[1] == tracing.of(closed).split(b"-")[1]


def test_a_version_is_walked_back_over_a_real_log(
    broker: Any, lived: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command reads from a broker what the same life in memory says, byte for byte."""
    settings = Settings(data=tmp_path, cache=tmp_path, namespace="lineage", partitions=2)
    monkeypatch.setenv("XINFLUENCER_KAFKA", broker.bootstrap)

    async def copy() -> None:
        await ensure_topics(broker.settings, for_ever(settings))
        sender = Sender(settings, broker.settings)
        for (topic, partition), raws in lived.log.items():
            await sender.send([Sent(topic, partition, raw.key, raw.value or b"", raw.headers, raw.timestamp, EVENT)
                               for raw in raws])  # fmt: skip
        await sender.stop()

    asyncio.run(copy())
    version = versions(lived)[-1]
    run_trace(settings, version.version[:12], tmp_path / "lineage.jsonl")
    expected = asyncio.run(lineage(Kept(lived), version.version))
    lines = (tmp_path / "lineage.jsonl").read_text().splitlines()
    assert lines == [span.line(service) for service, span in expected.spans()]
    spans = [json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for line in lines]
    assert posts_of(lived, version) <= reached(spans)
    assert "BatchClosed" in capsys.readouterr().out
