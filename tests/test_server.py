"""Server: answers by one exact version, in the log before they end, whatever is released, damaged or cut meanwhile."""

import asyncio
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from schemas.events import AlertRaised, AnswerGiven, FeedbackGiven, FeedbackRetracted
from schemas.facts import AnswerContent
from schemas.ids import prompt_of
from schemas.learned import ModelRetracted, ReleasePointed
from streams import places, recorder
from streams.gate import Gate
from streams.metrics import Metrics
from streams.settings import Settings
from streams.speaking import Cut
from streams.vault import Vault
from tests.serving import ASKED, ROOT, SECRET, Deployed, World, eventually, server_process

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # matrices of 32 numbers gain nothing from a second thread
        yield World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def deploy(broker: Any, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Deployed]]:
    made = []

    def one(name: str) -> Deployed:
        settings = Settings(
            data=tmp_path_factory.mktemp(name),
            cache=world.cache,
            base=world.spec,
            namespace=f"srv-{name}",
            partitions=2,
        )
        made.append(Deployed(world, settings, broker.settings))
        return made[-1]

    yield one
    for deployed in made:
        deployed.stop()


@pytest.fixture(scope="module")
def served(deploy: Callable[[str], Deployed], world: World) -> Deployed:
    """A server that follows release 1; tests that change releases make their own."""
    deployed = deploy("shared")
    deployed.release(0, None)
    deployed.release(1, world.adapters[0])
    deployed.start()
    eventually(lambda: deployed.get("/readyz").status_code == 200)
    return deployed


def test_an_answer_names_its_version_and_lies_sealed_in_the_log_before_it_arrives(
    served: Deployed, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    found = served.ask(n=2, seed=5, user="Ann Lee/1")
    version = world.adapters[0]
    body = found.json()
    assert found.status_code == 200
    assert body["model"] == found.headers["x-xinfluencer-version"] == version
    assert body["object"] == "chat.completion"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    events = [event for _, event in served.events("answers") if event.prompt == body["xinfluencer"]["prompt"]]
    event = next(e for e in events if e.owner == "user:Ann%20Lee%2F1")
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert isinstance(event, AnswerGiven)
    assert isinstance(event.content, AnswerContent)
    assert list(event.content.texts) == texts
    assert [turn.model_dump() for turn in event.content.messages] == ASKED
    assert (event.release, event.version, event.seed, event.rights.policy) == (1, version, 5, "server")
    assert body["xinfluencer"]["subjects"] == [f"{event.prompt}/{item}" for item in event.items]
    assert texts == [c.text for c in world.alone.generate(ASKED, version, 2, 24, 1.0, 1.0, 5)]
    raw = b"".join(record.value for record in served.read("answers"))
    assert SECRET not in raw
    assert texts[0].encode() not in raw
    assert SECRET.decode() not in caplog.text
    assert texts[0] not in caplog.text


def test_a_stream_says_what_the_whole_answer_says(served: Deployed, world: World) -> None:
    for n in (1, 2):
        whole = served.ask(n=n, seed=11).json()
        chunks = served.stream(n=n, seed=11, stream_options={"include_usage": True})
        assert chunks[-1]["usage"] == whole["usage"]
        assert chunks[-2]["xinfluencer"]["version"] == chunks[0]["model"] == world.adapters[0]
        texts = [""] * n
        for chunk in chunks:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
        assert texts == [choice["message"]["content"] for choice in whole["choices"]]
        last = {choice["index"]: choice["finish_reason"] for choice in chunks[-2]["choices"]}
        assert list(last.values()) == [choice["finish_reason"] for choice in whole["choices"]]
    pieces = [chunk for chunk in served.stream(temperature=0.0, max_tokens=100) if chunk["choices"]]
    assert len(pieces) > 10, "text comes as it is made"


def test_a_repeated_request_is_the_same_answer_and_one_event(served: Deployed) -> None:
    before = len(served.events("answers"))
    first, again = served.ask("key-1").json(), served.ask("key-1").json()
    streamed = served.stream("key-1")
    assert first["id"] == again["id"] == streamed[0]["id"]
    assert first["choices"] == again["choices"]
    assert first["xinfluencer"] == again["xinfluencer"] == streamed[-1]["xinfluencer"]
    assert len(served.events("answers")) == before + 1
    others = [served.ask("key-1", user="bo"), served.ask("key-1", temperature=0.5), served.ask("key-2"), served.ask()]
    names = {subject for other in others for subject in other.json()["xinfluencer"]["subjects"]}
    assert len(names) == 4
    assert not names & set(first["xinfluencer"]["subjects"]), "another user or parameter is another request"
    assert len(served.events("answers")) == before + 5


def test_stop_words_end_an_answer_and_are_not_in_it(served: Deployed, world: World) -> None:
    seed, text = next((s, t) for s in range(99) if len(t := world.text(world.adapters[0], s)) > 10)
    stop = text[5:7]
    found = served.ask(seed=seed, stop=[stop]).json()["choices"][0]
    assert found == {
        "index": 0,
        "message": {"role": "assistant", "content": text[: text.index(stop)]},
        "logprobs": None,
        "finish_reason": "stop",
    }
    streamed = "".join(c["delta"].get("content", "") for e in served.stream(seed=seed, stop=stop) for c in e["choices"])
    assert streamed == text[: text.index(stop)]


def test_a_stop_word_split_over_pieces_is_held_back_until_it_is_clear() -> None:
    told: list[str] = []
    cut = Cut(("END",), told.append)
    for piece in ("aE", "Nb", "E", "N", "Dc"):
        cut.hear(piece)
    cut.finish()
    assert (told, cut.text, cut.found) == (["a", "ENb"], "aENb", True)


def test_a_version_is_asked_for_by_its_hash_by_alias_or_as_the_base(served: Deployed, world: World) -> None:
    version, base = world.adapters[0], world.base.sha256
    for name, answers in ((version, version), (version[:12], version), ("base", base), (base[:20], base)):
        found = served.ask(model=name, seed=2)
        assert (found.status_code, found.json()["model"]) == (200, answers)
        assert found.json()["choices"][0]["message"]["content"] == world.text(
            None if answers == base else answers, seed=2
        )
    listed = {model["id"]: model for model in served.get("/v1/models").json()["data"]}
    assert (listed[version]["release"], listed[version]["current"], listed[base]["current"]) == (1, True, False)
    assert abs(listed[version]["created"] - time.time()) < 300
    assert served.get("/v1/models/default").json() == listed[version]
    assert served.ask(model=world.adapters[1]).json()["error"]["code"] == "model_not_found"


BAD = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x" * 15_000}] * 2}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 9_000}]}, "messages"),  # more tokens than the model reads
    ({"messages": ASKED * 65}, "messages"),
    ({"n": 9}, "n"),
    ({"n": "2"}, "n"),
    ({"max_tokens": 1025}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"user": ""}, "user"),
    ({"user": "/" * 200}, "user"),
    ({"model": "../../etc/passwd"}, "model"),
    ({"model": "\x00" * 12}, "model"),
    ({"model": "abc"}, "model"),
    ({"model": "0" * 12}, "model"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
def test_what_does_not_fit_is_refused_in_openais_shape(served: Deployed, body: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        found = served.ask(**body, stream=stream)
        error = found.json()["error"]
        assert found.status_code in (400, 404)
        assert error["type"] == "invalid_request_error"
        assert error["param"].startswith(param)
        assert param in error["message"]
        assert "xxxx" not in error["message"]


def test_the_edge_refuses_other_hosts_forms_and_sizes_and_serves_no_page(served: Deployed) -> None:
    url = served.url + "/v1/chat/completions"
    body = json.dumps({"messages": ASKED})
    assert httpx.post(url, content=body, headers={"content-type": "text/plain"}, trust_env=False).status_code == 400
    for raw in (
        b"{",
        b"[]",
        b"",
        b'{"messages": "\xff"}',
        b"[" * 50_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    ):
        found = httpx.post(url, content=raw, headers={"content-type": "application/json"}, trust_env=False)
        assert (found.status_code, found.json()["error"]["type"]) == (400, "invalid_request_error"), raw[:9]
    large = httpx.post(
        url, content=b'{"a": "' + b"x" * 600_000, headers={"content-type": "application/json"}, trust_env=False
    )
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    assert served.get("/readyz", headers={"host": "evil.example"}).status_code == 403
    assert served.get("/healthz", headers={"host": f"localhost:{served.url[-5:]}"}).json() == {"alive": True}
    for path, status in (("/docs", 404), ("/v1/nothing", 404), ("/v1/feedback", 405)):
        found = served.get(path, headers={"origin": "http://other.example"})
        assert (found.status_code, found.headers["content-type"]) == (status, "application/json")
        assert "error" in found.json()
        assert "access-control-allow-origin" not in found.headers


def test_every_kind_of_feedback_arrives_and_nonsense_does_not(served: Deployed) -> None:
    asked = served.ask(n=2).json()["xinfluencer"]
    one, two = asked["subjects"]
    given = [
        {"kind": "thumb", "subject": one, "value": -1, "user": "ann"},
        {"kind": "stars", "subject": one, "value": 4, "rater": "user:bo", "feedback": "mine-1", "simulated": True},
        {"kind": "choice", "subject": one, "other": two},
        {"kind": "choice", "subject": one, "other": two, "value": 0, "user": "bo"},
        {"kind": "report", "subject": two},
        {"kind": "correction", "subject": one, "other": two},
    ]
    said = [served.post("/v1/feedback", body, idempotency_key=f"key {at}") for at, body in enumerate(given)]
    assert [one.status_code for one in said] == [200] * 6
    again = served.post("/v1/feedback", given[0], idempotency_key="key 0").json()
    assert again == said[0].json(), "a request that is sent again is the same judgement"
    assert served.post("/v1/feedback", given[0]).json()["feedback"] != again["feedback"], "one said anew is another"
    judged = {e.feedback: e for _, e in served.events("feedback") if isinstance(e, FeedbackGiven)}
    assert {answer.json()["feedback"] for answer in said} <= set(judged)
    assert judged["mine-1"] == FeedbackGiven(
        feedback="mine-1", subject=one, rater="user:bo", kind="stars", value=4, simulated=True
    )
    assert judged[again["feedback"]].rater == "user:ann"
    back = served.post("/v1/feedback", {"retract": "mine-1", "subject": one, "rater": "user:bo"})
    assert back.status_code == 200
    assert FeedbackRetracted(feedback="mine-1", subject=one, rater="user:bo") in [
        e for _, e in served.events("feedback")
    ]
    nonsense = [
        {"kind": "thumb", "subject": one, "value": 4},
        {"kind": "thumb", "subject": one},
        {"kind": "stars", "subject": one, "value": 0},
        {"kind": "choice", "subject": one},
        {"kind": "choice", "subject": one, "other": "q:other/a:1"},
        {"kind": "choice", "subject": one, "other": one},
        {"kind": "report", "subject": "no slash"},
        {"kind": "report", "subject": one, "rater": "a b"},
        {"kind": "cheer", "subject": one},
        {"kind": "report", "retract": "x", "subject": one},
        {"subject": one},
        {"kind": "report", "subject": one, "valeu": 1},
        {"kind": "thumb", "subject": one, "value": 1, "text": "better"},
    ]
    before = len(served.read("feedback"))
    for body in nonsense:
        assert served.post("/v1/feedback", body).status_code == 400, body
    assert len(served.read("feedback")) == before


def test_a_correction_brings_words_as_an_answer_by_a_person(served: Deployed) -> None:
    subject = served.ask().json()["xinfluencer"]["subjects"][0]
    body = {"kind": "correction", "subject": subject, "text": "They sing zebracorns.", "messages": ASKED, "user": "ann"}
    found = served.post("/v1/feedback", body, idempotency_key="sent twice").json()
    assert served.post("/v1/feedback", body, idempotency_key="sent twice").json() == found
    words = [e for _, e in served.events("answers") if f"{e.prompt}/{e.items[0]}" == found["other"]]
    assert len(words) == 1
    assert words[0].content.texts == ("They sing zebracorns.",)
    assert (words[0].owner, words[0].version, words[0].prompt) == ("user:ann", "0" * 64, prompt_of(subject))
    assert SECRET not in b"".join(raw.value for raw in [*served.read("answers"), *served.read("feedback")])
    other = [{"role": "user", "content": "Something else?"}]
    for bad in ({**body, "messages": other}, {**body, "messages": None}, {**body, "other": f"{subject}x"}):
        assert served.post("/v1/feedback", bad).status_code == 400


def test_whoever_asked_to_be_forgotten_is_not_answered(served: Deployed) -> None:
    assert served.ask(user="carl").status_code == 200
    vault = Vault(served.settings.data / "vault" / "keys.sqlite")
    vault.destroy("user:carl")
    vault.close()
    before = len(served.read("answers"))
    found = served.ask(user="carl")
    assert (found.status_code, found.json()["error"]["code"]) == (403, "owner_erased")
    assert len(served.read("answers")) == before
    assert [e.content for _, e in served.events("answers") if e.owner == "user:carl"] == [None]


def test_a_client_that_leaves_stops_its_answer_and_leaves_no_record(served: Deployed) -> None:
    before, tokens = len(served.read("answers")), served.metric("xinfluencer_tokens_total", kind="completion")
    body = {"messages": ASKED, "max_tokens": 1024, "temperature": 0.0, "stream": True}
    with httpx.stream("POST", served.url + "/v1/chat/completions", json=body, trust_env=False) as response:
        next(response.iter_bytes())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(served.url + "/v1/chat/completions", json={**body, "stream": False}, timeout=0.1, trust_env=False)
    served.ask(max_tokens=1)
    made = served.metric("xinfluencer_tokens_total", kind="completion") - tokens
    assert made < 1024
    assert len(served.read("answers")) == before + 1


def test_metrics_are_prometheus_text_with_help(served: Deployed) -> None:
    found = served.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(found.text)}
    for name in (
        "xinfluencer_requests",
        "xinfluencer_tokens",
        "xinfluencer_generation_seconds",
        "xinfluencer_requests_waiting",
        "xinfluencer_release_number",
        "xinfluencer_release_swaps",
        "xinfluencer_adapter_refusals",
        "process_resident_memory_bytes",
    ):
        assert families[name].documentation.endswith("."), name
    assert served.metric("xinfluencer_release_number", alias="default") == 1
    assert served.metric("xinfluencer_requests_total", path="/v1/chat/completions", code="200") > 0
    served.get("/secret-scan/zebracorns")
    assert "zebracorns" not in served.get("/metrics").text


def test_a_swap_under_load_fails_no_request_and_mixes_no_version(
    deploy: Callable[[str], Deployed], world: World
) -> None:
    deployed = deploy("swap")
    deployed.release(0, None)
    deployed.start()
    eventually(lambda: deployed.get("/readyz").status_code == 200)
    done = threading.Event()
    found: list[tuple[int, str, str]] = []

    def ask(worker: int) -> None:
        seed = worker
        while not done.is_set():
            seed += 8
            if seed % 3:
                answer = deployed.ask(seed=seed)
                assert answer.status_code == 200, answer.text
                found.append((seed, answer.json()["model"], answer.json()["choices"][0]["message"]["content"]))
            else:
                chunks = deployed.stream(seed=seed)
                assert len({chunk["model"] for chunk in chunks}) == 1
                text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
                found.append((seed, chunks[0]["model"], text))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, worker) for worker in range(8)]
        turns = [*world.adapters, None, world.adapters[0]]  # more than are kept loaded, the base, and one again
        waits = []
        try:
            for number, adapter in enumerate(turns, start=1):
                deployed.release(number, adapter)
                began = time.monotonic()
                eventually(lambda version=adapter or world.base.sha256: deployed.follows(version))
                waits.append(time.monotonic() - began)
                time.sleep(0.3)
        finally:
            done.set()
        for one in asking:
            one.result()
    print(f"{len(found)} answers over {len(turns)} swaps; slowest swap {max(waits):.2f} s")
    assert {version for _, version, _ in found} == {*world.adapters, world.base.sha256}
    for seed, version, text in found:
        assert text == world.text(None if version == world.base.sha256 else version, seed), (seed, version)
    assert len(deployed.events("answers")) == len(found)
    eventually(lambda: len(deployed.app.state.answering.shelf.generator.loaded) <= 2)


def flip(path: Path) -> None:
    """Turn over one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_damaged_adapter_is_refused_and_the_release_before_goes_on(
    deploy: Callable[[str], Deployed], world: World
) -> None:
    deployed = deploy("damage")
    good, bad, third, _ = world.adapters
    store = places.adapter_store(deployed.settings)
    deployed.release(0, None)
    deployed.release(1, good)
    deployed.start()
    eventually(lambda: deployed.follows(good))
    shutil.copytree(world.store / bad, store / bad)
    flip(store / bad / "adapter_model.safetensors")
    deployed.release(2, bad)
    eventually(lambda: deployed.metric("xinfluencer_adapter_refusals_total") == 1)
    assert deployed.ask().json()["model"] == good
    by_name = deployed.ask(model=bad)
    assert (by_name.status_code, by_name.json()["error"]["code"]) == (409, "version_refused")
    eventually(lambda: len(deployed.read("alerts")) == 1)
    (alert,) = [event for _, event in deployed.events("alerts")]
    assert isinstance(alert, AlertRaised)
    assert (alert.kind, alert.stage) == ("adapter-refused", "server")
    assert bad[:12] in alert.detail
    assert deployed.get("/readyz").status_code == 200
    # A server that starts now has nothing yet: it takes the release before, and never one that is retracted.
    deployed.stop()
    deployed.start()
    eventually(lambda: deployed.follows(good))
    # A later release heals; another base's does not come in.
    deployed.release(3, third)
    eventually(lambda: deployed.follows(third))
    deployed.write(ModelRetracted(version=third, reason="test"))
    deployed.release(1, good, announce=False)
    eventually(lambda: deployed.follows(good))
    gone = deployed.ask(model=third)
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "model_retracted")
    strange = ReleasePointed(alias="default", release=9, version="9" * 64, base="8" * 64, base_name="other")
    deployed.write(strange)
    eventually(lambda: any("another base" in e.detail for _, e in deployed.events("alerts")))
    assert deployed.ask().json()["model"] == good


def test_more_requests_than_may_wait_are_told_to_come_back(deploy: Callable[[str], Deployed]) -> None:
    deployed = deploy("queue")
    deployed.release(0, None)
    deployed.start(waiting_max=2)
    eventually(lambda: deployed.get("/readyz").status_code == 200)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: deployed.ask(seed=seed, max_tokens=400, temperature=0.0), range(8)))
    codes = [one.status_code for one in found]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 3
    refused = found[codes.index(429)]
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert len(deployed.events("answers")) == codes.count(200)
    assert deployed.metric("xinfluencer_requests_waiting") == 0


def test_a_subscriber_of_twenty_lines_sees_every_release(served: Deployed, broker: Any, world: World) -> None:
    topic = served.settings.physical("model-releases")
    program = [sys.executable, str(ROOT / "examples" / "subscriber.py"), broker.bootstrap, topic]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(2)]
        process.kill()
    assert [line[2:] for line in lines] == [["0", world.base.sha256], ["1", world.adapters[0]]]
    assert lines[0][0] == "default"


def test_a_busy_port_is_said_in_one_sentence(served: Deployed, broker: Any) -> None:
    settings = served.settings.model_copy(update={"port": int(served.url.rpartition(":")[2])})
    process = server_process(settings, broker.bootstrap)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines() == [
        f"xinfluencer: cannot listen on 127.0.0.1:{settings.port} (Address already in use); set XINFLUENCER_PORT."
    ]


def test_the_process_listens_on_loopback_only_and_ends_within_five_seconds(
    deploy: Callable[[str], Deployed], broker: Any
) -> None:
    deployed = deploy("process")
    deployed.release(0, None)
    process = server_process(deployed.settings.model_copy(update={"port": 0}), broker.bootstrap)
    told = places.run(deployed.settings) / "server.json"
    eventually(told.exists)
    deployed.url = json.loads(told.read_text())["url"]
    assert json.loads(told.read_text())["pid"] == process.pid
    eventually(lambda: deployed.get("/healthz").status_code == 200)
    eventually(lambda: deployed.get("/readyz").status_code == 200, 90)
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", int(deployed.url.rpartition(":")[2])))
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(deployed.ask, seed=seed, n=8, max_tokens=1024, temperature=0.0) for seed in range(6)]
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
        took_s = time.monotonic() - began
        ended = [one.exception() or one.result().status_code for one in asked]
    print(f"ended in {took_s:.1f} s; requests ended as {[getattr(e, '__class__', e) and e for e in ended]}")
    assert took_s < 12  # five, and what a busy machine adds
    assert process.returncode == 0, said
    assert not told.exists()
    assert SECRET.decode() not in said
    assert all(isinstance(one, httpx.TransportError) or one in (200, 503) for one in ended)
    assert len(deployed.events("answers")) == ended.count(200)


def test_ready_says_what_is_missing_and_no_answer_is_given_that_is_not_recorded(
    deploy: Callable[[str], Deployed], broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RECORD_S_MAX", 1.5)
    deployed = deploy("outage")
    broker.kill()
    deployed.start()
    early = deployed.ask()
    assert (early.status_code, early.json()["error"]["type"]) == (503, "server_error")
    eventually(deployed.app.state.answering.shelf.ready.is_set)
    reasons = deployed.get("/readyz")
    assert reasons.status_code == 503
    assert {"no release is followed yet", "Kafka does not answer"} <= set(reasons.json()["reasons"])
    assert deployed.get("/healthz").status_code == 200
    broker.restart()
    assert deployed.kafka == broker.settings, "the broker keeps its port"
    deployed.release(0, None)
    eventually(lambda: deployed.get("/readyz").json() == {"ready": True, "reasons": []}, 40)
    eventually(lambda: deployed.ask("key").status_code == 200, 40)  # one event, however often it is asked
    broker.kill()
    eventually(lambda: deployed.get("/readyz").json()["reasons"] == ["Kafka does not answer"])
    lost = deployed.ask("lost")
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "not_recorded")
    cut = deployed.ask("lost", stream=True).text
    assert '"not_recorded"' in cut
    assert "[DONE]" not in cut
    assert "subjects" not in cut
    assert deployed.post("/v1/feedback", {"kind": "report", "subject": "q:1/a:1"}).status_code == 503
    broker.restart()
    eventually(lambda: deployed.ask("lost").status_code == 200, 40)
    assert len(deployed.events("answers")) == 2


def test_a_server_in_a_container_answers_only_to_the_names_it_was_given() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def asked(names: tuple[str, ...], host: str) -> int:
        here = httpx.ASGITransport(Gate(app, Metrics(), "0.0.0.0", names))
        async with httpx.AsyncClient(transport=here, base_url=f"http://{host}") as client:
            return (await client.get("/healthz")).status_code

    assert asyncio.run(asked(("localhost", "127.0.0.1"), "localhost:8642")) == 204
    assert asyncio.run(asked(("localhost", "127.0.0.1"), "evil.example")) == 403
    assert asyncio.run(asked((), "evil.example")) == 204, "without names, on every address, it answers to all"
