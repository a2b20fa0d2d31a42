"""Every agent decides the same however its records are cut into chunks, and decides what its docstring says."""

import ast
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import batching, content, intake, metadata, pairing, releases, review, rewards
from schemas import events as e
from schemas import facts, learned, merkle
from schemas import posts as ps
from schemas.envelope import Out, Record
from schemas.ids import text_hash
from streams.fold import Fold, Stage
from streams.snapshots import Bound, decode, encode
from streams.topology import Tuning, stages
from tests.feeds import worded

NAMES = ("a", "b", "c")
RECORDS_MAX = 14
TUNING = Tuning(ages_ms=(500, 1500), margin_min=0.05, limits=batching.Limits(pairs_max=3, pairs_min=1, age_ms=300))
TABLE = stages(TUNING)
RIGHTS = facts.Rights(index=True, train=True, show=True, policy="test")
T0_MS = strategies.T0_MS
HOUR_MS = 3_600_000
MANY = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


class NoKeys:
    """Steps see open words, so nothing here is ever sealed."""

    def get(self, owner: str) -> bytes | None:
        return None

    make = get


def each_stage(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("stage", TABLE, ids=lambda stage: stage.name)(test)


def likely(stage: str) -> st.SearchStrategy[Any] | None:
    """Give events that make sense to a stage, so that the nonsense around them meets a state with something in it."""
    name, sub = st.sampled_from(NAMES), st.sampled_from(["p/a", "p/b", "p/c", "p/p"])
    makes: dict[str, list[st.SearchStrategy[Any]]] = {
        "metadata": [
            st.builds(post, name, st.just("ann"), parent=st.none() | name, claimed_ms=st.integers(T0_MS, T0_MS + 9)),
            st.builds(gone, name),
        ],
        "rewards": [
            st.builds(subject, sub),
            st.builds(noted, st.sampled_from(["thumb", "report"]), rater=name, subject=sub),
            st.builds(lambda other: noted("choice", 1, other), st.sampled_from(["p/b", "p/c"])),
            st.builds(reacted, st.integers(0, 99), st.sampled_from([None, 500]), sub),
            st.builds(lambda at: e.Ticked(at_ms=T0_MS + at), st.integers(0, 4000)),
            st.just(prompt_noted()),
        ],
        "pairing": [
            st.builds(reward, sub, st.floats(-1, 1)),
            st.builds(reward, sub, st.floats(-1, 1)),
            st.builds(lambda which: e.RewardWithdrawn(prompt="p", subject=which, reason="post-deleted"), sub),
        ],
        "batching": [st.builds(pair, st.integers(0, 5)), st.builds(gone_pair, st.integers(0, 5))],
        "releases": [
            st.builds(trained, st.sampled_from("0123"), st.sampled_from([BETTER, None])),
            st.builds(command, st.sampled_from(["release", "roll-back", "retract"]), st.sampled_from("0123")),
        ],
    }
    return st.one_of(makes[stage]) if stage in makes else None


def sequences(stage: Stage) -> st.SearchStrategy[list[Record]]:
    return strategies.records(stage.reads.name, stage.reads.events, NAMES, RECORDS_MAX, likely(stage.name))


def state_bytes(state: Any) -> bytes:
    return msgspec.msgpack.encode(state)


def record(event: facts.Event, offset: int = 0, time_ms: int = T0_MS, topic: str = "t") -> Record:
    return Record(topic, 0, offset, time_ms, f"id-{offset}", event)


def run(
    step: Callable[..., Any], state: Any, *events: facts.Event | tuple[facts.Event, int], **options: Any
) -> list[facts.Event]:
    """Fold events, each alone or with its log time; gives what was said."""
    said: list[Out] = []
    for offset, one in enumerate(events):
        event, time_ms = one if isinstance(one, tuple) else (one, T0_MS + offset)
        outs, state = step([record(event, offset, time_ms)], state, **options)
        said.extend(outs)
    return [out.event for out in said]


def of(kind: type[Any], said: Sequence[facts.Event]) -> list[Any]:
    return [event for event in said if isinstance(event, kind)]


# ---- what holds for all of them -------------------------------------------------------------------------------------


@each_stage
def test_splitting_a_chunk_anywhere_changes_nothing(stage: Stage) -> None:
    @MANY
    @given(sequences(stage), st.data())
    def check(records: list[Record], data: st.DataObject) -> None:
        whole, state = stage.step(records, stage.state())
        cuts = sorted(data.draw(st.sets(st.integers(0, len(records)))))
        parts: list[Out] = []
        split = stage.state()
        for start, end in pairwise([0, *cuts, len(records)]):
            outs, split = stage.step(records[start:end], split)
            parts.extend(outs)
        assert parts == whole
        assert state_bytes(split) == state_bytes(state)

    check()


@each_stage
def test_what_is_generated_makes_an_agent_say_all_that_it_can_say(stage: Stage) -> None:
    said: set[type[facts.Event]] = set()

    @settings(MANY, max_examples=300, derandomize=True, database=None)
    @given(sequences(stage))
    def gather(records: list[Record]) -> None:
        said.update(type(out.event) for out in stage.step(records, stage.state())[0])

    gather()
    faults = (e.RecordRefused, e.AlertRaised)
    can = {kind for topic in stage.writes for kind in topic.events if kind not in (*faults, e.Ticked)}
    if stage.name in ("metadata", "intake", "review"):  # what they write to `signals` is shared out among them
        can &= {
            "metadata": set(facts.Event.__subclasses__()) - {e.FeedbackNoted, e.FeedbackWithdrawn},
            "intake": {e.FeedbackNoted, e.FeedbackWithdrawn},
            "review": {e.PromptNoted, e.SubjectNoted},
        }[stage.name]
    assert said - set(faults) == can


def test_a_step_that_counts_chunks_would_be_noticed() -> None:
    def step(chunk: Sequence[Record], state: dict[str, int]) -> tuple[list[Out], dict[str, int]]:
        return [], {"chunks": state.get("chunks", 0) + 1}

    records = [record(e.Ticked(at_ms=1))] * 2
    _, whole = step(records, {})
    _, half = step(records[:1], {})
    _, split = step(records[1:], half)
    assert state_bytes(whole) != state_bytes(split)


@each_stage
def test_a_state_taken_from_a_snapshot_goes_on_as_if_nothing_had_happened(stage: Stage) -> None:
    bound = Bound(stage.name, stage.version, 0, "memory", 3)

    @MANY
    @given(sequences(stage), st.data())
    def check(records: list[Record], data: st.DataObject) -> None:
        whole, state = stage.step(records, stage.state())
        cut = data.draw(st.integers(0, len(records)))
        first = Fold(stage, 0, 3, NoKeys())
        outs, first.memory.state = stage.step(records[:cut], first.memory.state)
        second = Fold(stage, 0, 3, NoKeys())
        memory = decode(encode(first, bound), second, bound)
        assert memory is not None
        assert type(memory.state) is type(stage.state())
        assert memory.state == first.memory.state
        rest, after = stage.step(records[cut:], memory.state)
        assert outs + rest == whole
        assert state_bytes(after) == state_bytes(state)

    check()


@each_stage
def test_what_an_agent_says_belongs_in_its_row_and_fits_its_own_model(stage: Stage) -> None:
    @MANY
    @given(sequences(stage))
    def check(records: list[Record]) -> None:
        outs, _ = stage.step(records, stage.state())
        order = [out.cause.offset for out in outs]
        assert order == sorted(order)
        for out in outs:
            assert any(type(out.event) in topic.events for topic in stage.writes)
            kind = type(out.event)
            assert kind.model_validate_json(out.event.model_dump_json(exclude_none=True)) == out.event

    check()


FORBIDDEN_MODULES = {
    "aiohttp", "asyncio", "faust", "httpx", "io", "multiprocessing", "os", "pathlib", "random", "requests", "secrets",
    "select", "shutil", "signal", "socket", "sqlite3", "ssl", "streams", "subprocess", "sys", "tempfile", "threading",
    "time", "torch", "urllib", "uuid", "websockets",
}  # fmt: skip
FORBIDDEN_CALLS = {"open", "input", "print", "eval", "exec", "__import__", "id", "hash"}
FORBIDDEN_METHODS = {"now", "utcnow", "today", "random", "shuffle", "choice", "urandom", "uuid4"}


def impurities(source: str) -> list[str]:
    """List what in a file could make a step depend on anything but its records."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(node.func.id)
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_METHODS:
            found.append(node.attr)
        elif isinstance(node, ast.Global):
            found.append("global")
    return found


@pytest.mark.parametrize("path", sorted(Path(metadata.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_an_agent_has_no_clock_no_chance_and_no_disk(path: Path) -> None:
    assert impurities(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from random import choice",
        "from datetime import datetime\nat = datetime.now()",
        "from datetime import date\nat = date.today()",
        "import numpy as np\nnp.random.rand()",
        "def f():\n    return open('x')",
        "def f(x):\n    return hash(x)",
        "def f():\n    global x\n    x = 1",
        "from streams.fold import Fold",
    ],
)
def test_an_impure_agent_would_be_noticed(source: str) -> None:
    assert impurities(source)


# ---- metadata -------------------------------------------------------------------------------------------------------


def post(name: str, owner: str = "ann", text: str = "five words are in this", **more: Any) -> ps.PostObserved:
    kind = more.pop("kind", ps.PostObserved)
    words = facts.PostContent(text=text) if text is not None else None
    seen = kind(post=name, owner=owner, source="x", raw_sha256="0" * 64, **{"rights": RIGHTS, "content": words, **more})
    return worded(seen)


def gone(name: str, owner: str = "ann") -> ps.PostDeleted:
    return ps.PostDeleted(post=name, owner=owner, source="x")


def tweets(*events: Any) -> list[facts.Event]:
    return run(metadata.step, metadata.State(), *events)


def test_a_post_is_noted_as_a_prompt_and_as_a_subject() -> None:
    prompt, subject = tweets(post("p", text="Hello WORLD", media=2, mentions=("bob",)))[-2:]
    assert isinstance(prompt, e.PromptNoted)
    assert isinstance(subject, e.SubjectNoted)
    assert (prompt.prompt, subject.prompt, subject.subject, subject.kind) == ("p", "p", "p/p", "root")
    assert prompt.text_hash == subject.text_hash == text_hash("p", "Hello WORLD")
    assert (subject.features.words, subject.features.media, subject.features.mentions) == (2, 2, 1)
    reply = of(e.SubjectNoted, tweets(post("r", parent="p", reply_to="bob")))[0]
    assert (reply.prompt, reply.subject, reply.kind) == ("p", "p/r", "reply")


def test_a_delete_that_comes_before_its_post_waits_for_it() -> None:
    assert tweets(gone("p"), post("p"), post("p", kind=ps.PostEdited)) == []
    assert tweets(gone("q"), post("p"))


def test_a_deleted_post_is_withdrawn_once_as_a_subject_and_as_a_prompt() -> None:
    said = of(e.SubjectWithdrawn, tweets(post("r", parent="p"), gone("r"), gone("r")))
    assert [(one.prompt, one.subject, one.reason) for one in said] == [
        ("p", "p/r", "post-deleted"),
        ("r", "r/r", "post-deleted"),
    ]
    (root,) = of(e.SubjectWithdrawn, tweets(post("p"), gone("p")))
    assert (root.prompt, root.subject) == ("p", "p/p")
    assert of(e.SubjectWithdrawn, tweets(gone("p"))) == []


def test_reactions_to_a_deleted_post_say_nothing() -> None:
    seen = ps.EngagementObserved(post="p", owner="ann", source="x", likes=3, views=9, rights=RIGHTS)
    assert tweets(seen) == [e.EngagementNoted(prompt="p", subject="p/p", likes=3, views=9)]
    assert of(e.EngagementNoted, tweets(gone("p"), seen)) == []


def test_an_edit_replaces_the_words_and_does_not_count_as_another_post() -> None:
    state = metadata.State()
    times = [T0_MS + i * HOUR_MS for i in range(3)]
    run(metadata.step, state, *[post(f"p{i}", claimed_ms=at) for i, at in enumerate(times)])
    rhythm = state.authors["ann"].posts
    edited = post("p2", text="other words", kind=ps.PostEdited, revision=2, claimed_ms=times[2] + 5)
    _, subject = run(metadata.step, state, edited)
    assert subject.text_hash == text_hash("p2", "other words")
    assert subject.temporal == 1.0
    assert state.authors["ann"].posts == rhythm == 3


def test_a_repost_gives_an_edge_and_nothing_to_judge() -> None:
    said = tweets(post("r", reposted="p", mentions=("bob",)))
    assert [(type(one), one.kind, one.target_post, one.target) for one in said] == [
        (e.InteractionObserved, "repost", "p", None)
    ]


def test_edges_name_whom_the_payload_names_and_no_one_twice() -> None:
    said = of(
        e.InteractionObserved,
        tweets(post("r", parent="p", reply_to="bob", quoted="q", mentions=("bob", "cat", "ann"))),
    )
    assert [(one.kind, one.target, one.target_post) for one in said] == [
        ("reply", "bob", "p"),
        ("quote", None, "q"),
        ("mention", "cat", None),
    ]


def test_a_steady_author_has_a_rhythm_and_a_new_one_has_none() -> None:
    steady = [post(f"p{i}", claimed_ms=T0_MS + i * HOUR_MS) for i in range(6)]
    scores = [one.temporal for one in of(e.SubjectNoted, tweets(*steady))]
    assert scores == [None, None, 1.0, 1.0, 1.0, 1.0]
    bursts = [0, 1, 2, 50_000, 50_001, 5_000_000]
    jumpy = [post(f"p{i}", claimed_ms=T0_MS - bursts[-1] * 1000 + at * 1000) for i, at in enumerate(bursts)]
    assert of(e.SubjectNoted, tweets(*jumpy))[-1].temporal < 0
    # By hand: gaps of 100 s, then 100 e s: the mean deviation is 0.2, of 3 that would be no rhythm at all.
    gaps = (0, 100_000, 100_000 + round(100_000 * math.e))
    scored = of(e.SubjectNoted, tweets(*[post(f"p{i}", claimed_ms=T0_MS - HOUR_MS + at) for i, at in enumerate(gaps)]))
    assert scored[-1].temporal == pytest.approx(1 - 2 * 0.2 / 3, abs=1e-4)


def test_a_post_from_before_the_last_one_does_not_move_an_author_back_in_time() -> None:
    state = metadata.State()
    run(metadata.step, state, post("p0", claimed_ms=T0_MS), post("p1", claimed_ms=T0_MS - HOUR_MS), post("p2"))
    assert (state.authors["ann"].last_ms, state.authors["ann"].posts) == (T0_MS, 1)


def test_a_post_from_the_future_is_set_aside_with_a_reason() -> None:
    late = T0_MS + metadata.FUTURE_MS_MAX
    assert of(e.SubjectNoted, tweets((post("p", claimed_ms=late), T0_MS)))
    (refused,) = tweets((post("p", claimed_ms=late + 1), T0_MS))
    assert (refused.reason, refused.stage, refused.place) == ("future-dated", "metadata", "t/0/0")
    assert tweets(gone("p"), (post("p", claimed_ms=0), T0_MS)) == []
    assert of(e.SubjectNoted, tweets(post("p", claimed_ms=0)))[0].features.hour == 0


def test_an_erased_author_is_withdrawn_everywhere_and_gets_one_receipt() -> None:
    said = tweets(
        post("p"),
        post("r", parent="p"),
        post("o", owner="bob"),
        ps.AuthorErased(owner="ann", source="x"),
        post("p9"),
    )
    withdrawn = of(e.SubjectWithdrawn, said)
    assert sorted((one.prompt, one.subject) for one in withdrawn) == [("p", "p/p"), ("p", "p/r"), ("r", "r/r")]
    assert {one.reason for one in withdrawn} == {"author-erased"}
    assert said[-1] == e.AuthorForgotten(owner="ann", requested=facts.Where(topic="t", partition=0, offset=3))


def test_a_post_whose_words_are_gone_leaves_edges_only() -> None:
    assert [type(one) for one in tweets(post("r", parent="p", text=None))] == [e.InteractionObserved]


def test_what_follows_from_a_post_does_not_depend_on_whether_its_words_can_still_be_read() -> None:
    def life(erased: bool) -> list[facts.Event]:
        seen = [post("p"), post("r", parent="p"), post("s", parent="p", kind=ps.PostEdited)]
        if erased:
            seen = [one.model_copy(update={"content": None}) for one in seen]
        return tweets(*seen, gone("p"), ps.AuthorErased(owner="ann", source="x"))

    assert life(erased=False) == life(erased=True)
    assert [type(one) for one in life(erased=True)].count(e.SubjectNoted) == 3


def test_the_longest_unseen_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "POSTS_MAX", 2)
    state = metadata.State()
    run(metadata.step, state, post("p0"), post("p1"), post("p2"))
    assert list(state.posts) == ["p1", "p2"]


# ---- content --------------------------------------------------------------------------------------------------------


def quality(text: str, hashtags: int = 0) -> float:
    return content.features(text, hashtags=hashtags, mentions=0, links=0, media=0, at_ms=None).quality


def test_quality_can_be_checked_by_hand() -> None:
    assert quality("one two three four five") == 1.0
    assert quality("one two") == pytest.approx(2 * 2 / 5 - 1)
    assert quality("") == -1.0
    assert quality(" ".join(f"w{i}" for i in range(120))) == pytest.approx(2 * (120 / 180) - 1, abs=1e-4)
    assert quality("one one one one one") == pytest.approx(1 - 0.8)
    assert quality("ONE TWO THREE FOUR FIVE") == pytest.approx(0.0)
    assert quality("one two three four five", hashtags=5) == pytest.approx(1 - 0.75)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(0, 9), st.none() | st.integers(0, facts.MS_MAX))
def test_any_text_has_features_that_fit(text: str, marks: int, at_ms: int | None) -> None:
    found = content.features(text, hashtags=marks, mentions=marks, links=marks, media=marks, at_ms=at_ms)
    assert facts.Features.model_validate(found.model_dump()) == found


# ---- intake ---------------------------------------------------------------------------------------------------------


def feedback(kind: str, value: int = 1, other: str | None = None, subject: str = "p/a", **more: Any) -> e.FeedbackGiven:
    return e.FeedbackGiven(
        **{"feedback": "f", "rater": "ron", "subject": subject, "kind": kind, "value": value, "other": other, **more}
    )


@pytest.mark.parametrize(
    ("given_", "fault"),
    [
        (feedback("thumb", 0), "thumb takes"),
        (feedback("thumb", 2), "thumb takes"),
        (feedback("stars", 0), "stars takes"),
        (feedback("stars", -1), "stars takes"),
        (feedback("choice", -1, "p/b"), "choice takes"),
        (feedback("correction", 0, "p/b"), "correction takes"),
        (feedback("report", -1), "report takes"),
        (feedback("choice"), "needs `other`"),
        (feedback("correction"), "needs `other`"),
        (feedback("choice", 1, "q/b"), "one prompt"),
        (feedback("correction", 1, "q/b"), "one prompt"),
        (feedback("choice", 1, "p/a"), "with itself"),
        (feedback("thumb", 1, "p/b"), "takes no `other`"),
        (feedback("stars", 5, "p/b"), "takes no `other`"),
        (feedback("report", 1, "p/b"), "takes no `other`"),
    ],
)
def test_a_judgement_that_makes_no_sense_is_refused_with_its_fault(given_: e.FeedbackGiven, fault: str) -> None:
    (refused,) = run(intake.step, {}, given_)
    assert isinstance(refused, e.RecordRefused)
    assert refused.reason == "bad-feedback"
    assert fault in refused.detail


@pytest.mark.parametrize(
    "given_",
    [
        *[feedback("thumb", value) for value in (-1, 1)],
        *[feedback("stars", value) for value in range(1, 6)],
        *[feedback("choice", value, "p/b") for value in (0, 1)],
        feedback("correction", 1, "p/b"),
        feedback("report", simulated=True),
    ],
)
def test_a_judgement_that_makes_sense_is_noted_under_its_prompt(given_: e.FeedbackGiven) -> None:
    assert run(intake.step, {}, given_) == [e.FeedbackNoted(prompt="p", **given_.model_dump())]


def test_a_retraction_goes_to_where_the_judgement_went() -> None:
    said = run(intake.step, {}, e.FeedbackRetracted(feedback="f", subject="p/a", rater="ron"))
    assert said == [e.FeedbackWithdrawn(prompt="p", subject="p/a", feedback="f", rater="ron")]


# ---- review ---------------------------------------------------------------------------------------------------------


def answer(*texts: str, items: int | None = None) -> e.AnswerGiven:
    names = tuple(f"i{i}" for i in range(len(texts) if items is None else items))
    given = e.AnswerGiven(
        prompt="q",
        owner="u",
        items=names,
        release=1,
        version="a" * 64,
        seed=7,
        rights=RIGHTS,
        prompt_hash="0" * 64,
        words=(),
        content=facts.AnswerContent(messages=(facts.Turn(role="user", content="why?"),), texts=texts),
    )
    return worded(given)


def test_every_candidate_of_an_answer_is_a_subject_of_one_prompt() -> None:
    prompt, one, two = run(review.step, {}, answer("because", "just so"))
    assert (prompt.prompt, one.subject, two.subject) == ("q", "q/i0", "q/i1")
    assert (one.kind, one.version, one.review) == ("answer", "a" * 64, None)
    assert one.text_hash == text_hash("i0", "because") != two.text_hash


def test_an_answer_whose_items_and_texts_do_not_match_is_refused() -> None:
    (refused,) = run(review.step, {}, answer("because", items=2))
    assert (refused.reason, refused.detail) == ("bad-answer", "2 items but words of 1")


def test_two_conversations_that_look_alike_have_two_hashes() -> None:
    one = (facts.Turn(role="user", content="a\nassistant\x000\x00"),)
    two = (facts.Turn(role="user", content="a"), facts.Turn(role="assistant", content=""))
    assert content.prompt_text(one) != content.prompt_text(two)


# ---- rewards --------------------------------------------------------------------------------------------------------

AGES_MS = (1000, 5000)
FEATURES = facts.Features(
    chars=20,
    words=5,
    hashtags=0,
    mentions=0,
    links=0,
    media=0,
    caps_share=0.0,
    distinct_share=1.0,
    quality=0.5,
)
WHERE = facts.Where(topic="answers", partition=0, offset=9)


def prompt_noted(prompt: str = "p", train: bool = True) -> e.PromptNoted:
    rights = RIGHTS.model_copy(update={"train": train})
    return e.PromptNoted(prompt=prompt, text_hash="b" * 64, where=WHERE, rights=rights)


def subject(name: str = "p/a", kind: str = "answer", train: bool = True, **more: Any) -> e.SubjectNoted:
    return e.SubjectNoted(
        prompt=name.split("/")[0],
        subject=name,
        kind=kind,
        owner="u",
        source="server",
        text_hash=more.pop("text_hash", "c" * 64),
        where=WHERE,
        rights=RIGHTS.model_copy(update={"train": train}),
        features=FEATURES,
        **more,
    )


def noted(kind: str, value: int = 1, other: str | None = None, rater: str = "ron", **more: Any) -> e.FeedbackNoted:
    name = more.pop("subject", "p/a")
    values = {"feedback": f"f:{rater}", "simulated": False, **more}
    return e.FeedbackNoted(
        prompt=name.split("/")[0], subject=name, rater=rater, kind=kind, value=value, other=other, **values
    )


def reacted(likes: int = 0, views: int | None = None, name: str = "p/a", **more: int) -> e.EngagementNoted:
    return e.EngagementNoted(prompt=name.split("/")[0], subject=name, likes=likes, views=views, **more)


def ticked(after_ms: int) -> tuple[e.Ticked, int]:
    return e.Ticked(at_ms=T0_MS + after_ms), T0_MS + after_ms


def signals(*events: Any, state: rewards.State | None = None) -> list[Any]:
    at_t0 = [one if isinstance(one, tuple) else (one, T0_MS) for one in events]
    return run(rewards.step, state or rewards.State(), *at_t0, ages_ms=AGES_MS)


def closed(*events: Any, name: str = "p/a") -> e.RewardClosed:
    said = signals(*events, ticked(AGES_MS[0]))
    return next(one for one in of(e.RewardClosed, said) if one.subject == name)


def test_a_reward_with_every_component_is_the_weighted_sum() -> None:
    reward = closed(
        prompt_noted(), subject(temporal=0.4, review=-0.2), noted("thumb", 1), reacted(likes=5, views=1000, replies=10)
    )
    parts = reward.components
    assert parts.human == 0.5  # one thumb up and a neutral vote
    assert parts.engagement == pytest.approx(2 * ((5 + 15) / 1000 / 0.10) - 1)
    assert (parts.review, parts.temporal, parts.content, parts.network) == (-0.2, 0.4, 0.5, None)
    assert reward.missing == ("network",)
    present = {"human": 0.25, "review": 0.20, "engagement": 0.25, "temporal": 0.10, "content": 0.05}
    assert reward.weights == {part: pytest.approx(weight / 0.85, abs=1e-6) for part, weight in present.items()}
    by_hand = (0.25 * 0.5 + 0.20 * -0.2 + 0.25 * -0.6 + 0.10 * 0.4 + 0.05 * 0.5) / 0.85
    assert reward.total == pytest.approx(by_hand, abs=1e-5)
    assert (reward.judgements, reward.simulated, reward.trainable) == (1, 0, True)


def test_what_was_not_measured_is_named_and_its_weight_shared() -> None:
    reward = closed(subject())
    assert reward.missing == ("human", "review", "engagement", "network", "temporal")
    assert reward.weights == {"content": 1.0}
    assert reward.total == 0.5
    assert (reward.prompt_hash, reward.prompt_where) == (None, None)
    assert sum(closed(subject(), noted("thumb")).weights.values()) == pytest.approx(1.0, abs=1e-5)
    assert sum(rewards.WEIGHTS.values()) == pytest.approx(1.0)


def test_nobody_saw_it_is_not_the_same_as_nobody_liked_it() -> None:
    assert closed(subject()).components.engagement is None
    assert closed(subject(), reacted(0, views=1000)).components.engagement == -1.0
    assert closed(subject(), reacted(0)).components.engagement == -1.0
    assert closed(subject(), reacted(100, views=1000)).components.engagement == 1.0
    assert closed(subject(), reacted(10**6)).components.engagement == 1.0
    by_hand = 2 * math.log1p(99) / math.log1p(10_000) - 1
    assert closed(subject(), reacted(99)).components.engagement == pytest.approx(by_hand, abs=1e-6)


def test_reactions_that_come_before_their_subject_wait_for_it() -> None:
    assert closed(reacted(100, views=1000), subject()).components.engagement == 1.0
    assert closed(reacted(100, views=1000), subject(), reacted(0, views=1000)).components.engagement == -1.0


@pytest.mark.parametrize(
    ("votes", "human"),
    [
        ([("thumb", -1)], -1 / 2),
        ([("stars", 5)], 1 / 2),
        ([("stars", 3)], 0.0),
        ([("stars", 1), ("thumb", 1)], 0.0),
        ([("thumb", 1)] * 3, 3 / 4),
    ],
)
def test_votes_are_averaged_with_a_neutral_one(votes: list[tuple[str, int]], human: float) -> None:
    given_ = [noted(kind, value, rater=f"r{i}") for i, (kind, value) in enumerate(votes)]
    assert closed(subject(), *given_).components.human == pytest.approx(human)


def test_a_report_is_a_penalty_of_its_own_and_no_vote() -> None:
    plain = closed(subject())
    reports = [noted("report", rater=f"r{i}") for i in range(6)]
    one, two, six = (closed(subject(), *reports[:n]) for n in (1, 2, 6))
    assert (one.components, one.judgements) == (plain.components, 0)
    assert [x.penalty for x in (plain, one, two, six)] == [0, 0.25, 0.5, 1.0]
    assert two.total == pytest.approx(plain.total - 0.5)
    assert closed(subject(), reports[0], reports[0]).penalty == 0.25


def test_a_choice_counts_for_one_and_against_the_other() -> None:
    both = (subject("p/a"), subject("p/b"), noted("choice", 1, "p/b"))
    assert closed(*both, name="p/a").components.human == 0.5
    assert closed(*both, name="p/b").components.human == -0.5
    tie = (subject("p/a"), subject("p/b"), noted("choice", 0, "p/b"))
    assert {closed(*tie, name=name).components.human for name in ("p/a", "p/b")} == {0.0}


def test_a_rater_who_changes_their_mind_counts_once() -> None:
    turned = (noted("choice", 1, "p/b"), noted("choice", 1, "p/a", subject="p/b"))
    reward = closed(subject("p/a"), subject("p/b"), *turned, name="p/a")
    assert (reward.components.human, reward.judgements) == (-0.5, 1)
    assert closed(subject(), noted("thumb", 1), noted("thumb", -1)).components.human == -0.5
    assert closed(subject(), noted("thumb", 1), noted("thumb", -1, rater="eve")).judgements == 2


def test_a_correction_speaks_for_the_better_words() -> None:
    both = (subject("p/a"), subject("p/b"), noted("correction", 1, "p/b", simulated=True))
    assert closed(*both, name="p/a").components.human == -0.5
    better = closed(*both, name="p/b")
    assert (better.components.human, better.simulated) == (0.5, 1)


def test_a_judgement_taken_back_no_longer_counts() -> None:
    back = e.FeedbackWithdrawn(prompt="p", subject="p/a", feedback="f:ron", rater="ron")
    assert closed(subject(), noted("thumb"), back).components.human is None
    assert closed(subject(), noted("thumb"), back.model_copy(update={"rater": "eve"})).components.human == 0.5
    assert closed(subject(), noted("thumb"), back.model_copy(update={"feedback": "f:other"})).components.human == 0.5


def test_a_subject_is_measured_at_its_two_ages_and_at_no_other_time() -> None:
    said = signals(
        prompt_noted(), subject(), ticked(999), ticked(1000), ticked(4999), noted("thumb"), ticked(5000), ticked(9999)
    )
    assert [(one.age_ms, one.final, one.components.human) for one in said] == [(1000, False, None), (5000, True, 0.5)]


def test_a_tick_that_comes_late_closes_what_it_missed() -> None:
    said = signals(subject(), ticked(60_000), ticked(60_001))
    assert [(one.age_ms, one.final) for one in said] == [(1000, False), (5000, True)]


def test_feedback_after_the_last_age_is_refused_with_that_reason() -> None:
    state = rewards.State()
    signals(subject(), ticked(1000), ticked(5000), state=state)
    (refused,) = signals(noted("thumb"), state=state)
    assert (refused.reason, refused.owner) == ("too-late", "ron")
    assert signals(subject(), reacted(5), ticked(60_000), state=state) == []


def test_a_withdrawn_subject_never_closes_and_says_so_once() -> None:
    away = e.SubjectWithdrawn(prompt="p", subject="p/a", reason="post-deleted")
    said = signals(prompt_noted(), subject(), noted("thumb"), away, subject(), reacted(3), ticked(1000), ticked(5000))
    assert said == [e.RewardWithdrawn(prompt="p", subject="p/a", reason="post-deleted")]


def test_a_prompt_whose_words_are_gone_can_be_in_no_pair() -> None:
    away = e.SubjectWithdrawn(prompt="p", subject="p/p", reason="post-deleted")
    reward = closed(prompt_noted(), subject(), noted("thumb"), away)
    assert (reward.prompt_hash, reward.prompt_where) == (None, None)
    assert closed(prompt_noted(), subject(), noted("thumb")).prompt_hash == "b" * 64


def test_a_prompt_takes_so_many_judgements_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "JUDGEMENTS_MAX", 2)
    said = signals(subject(), *[noted("thumb", rater=f"r{i}") for i in range(3)], noted("thumb", -1, rater="r0"))
    assert [one.reason for one in said] == ["too-many-judgements"]


@pytest.mark.parametrize(("subject_train", "prompt_train", "may"), [(1, 1, True), (0, 1, False), (1, 0, False)])
def test_both_the_words_and_their_prompt_must_be_trainable(subject_train: int, prompt_train: int, may: bool) -> None:
    reward = closed(prompt_noted(train=bool(prompt_train)), subject(train=bool(subject_train)))
    assert reward.trainable is may


ARRIVALS = [
    prompt_noted(),
    subject("p/a"),
    subject("p/b"),
    subject("q/c"),
    noted("thumb", rater="r1"),
    noted("stars", 2, rater="r2", subject="p/b"),
    noted("choice", 1, "p/b", rater="r3"),
    noted("report", rater="r4"),
    reacted(40, views=1000),
    reacted(7, name="p/b"),
]


@settings(max_examples=150, deadline=None)
@given(st.permutations(ARRIVALS))
def test_the_order_of_arrival_within_an_age_does_not_matter(arrivals: list[facts.Event]) -> None:
    def closed_in(order: list[facts.Event]) -> list[facts.Event]:
        return signals(*[(one, T0_MS + at) for at, one in enumerate(order)], ticked(1100), ticked(5100))

    assert closed_in(arrivals) == closed_in(ARRIVALS)
    assert len(closed_in(arrivals)) == 6


def test_the_order_of_two_judgements_of_one_person_does_matter() -> None:
    one, two = noted("thumb", 1), noted("thumb", -1)
    assert closed(subject(), one, two).total != closed(subject(), two, one).total


# ---- pairing --------------------------------------------------------------------------------------------------------


def reward(name: str, total: float, kind: str = "answer", **more: Any) -> e.RewardClosed:
    values: dict[str, Any] = {
        "final": True,
        "trainable": True,
        "components": facts.Components(human=0.5),
        "prompt_hash": "b" * 64,
        "prompt_where": WHERE,
        "text_hash": (name.encode().hex() + "0" * 64)[:64],
        "simulated": 0,
        "policy": "test",
        **more,
    }
    return e.RewardClosed(
        prompt=name.split("/")[0],
        subject=name,
        kind=kind,
        age_ms=5000,
        missing=(),
        weights={"human": 1.0},
        weights_version="w1",
        penalty=0.0,
        total=total,
        judgements=1,
        where=WHERE,
        chars=20,
        **values,
    )


def pairs(*events: facts.Event, state: pairing.State | None = None) -> list[Any]:
    return run(pairing.step, state or pairing.State(), *events, margin_min=0.05)


def test_the_better_is_chosen_whichever_closed_first() -> None:
    low, high = reward("p/a", 0.1), reward("p/b", 0.7)
    for order in ((low, high), (high, low)):
        (pair,) = pairs(*order)
        assert (pair.chosen.subject, pair.rejected.subject) == ("p/b", "p/a")
        assert (pair.margin, pair.weight, pair.origin, pair.simulated) == (0.6, 0.6, "feedback", False)
    assert pairs(low, high)[0].pair == pairs(high, low)[0].pair


def test_siblings_weigh_half() -> None:
    (pair,) = pairs(reward("p/a", 0.1, "reply"), reward("p/b", 0.7, "reply"))
    assert (pair.weight, pair.origin) == (0.3, "siblings")


@pytest.mark.parametrize(
    "more",
    [
        {"final": False},
        {"trainable": False},
        {"kind": "root"},
        {"prompt_hash": None},
        {"components": facts.Components(content=0.9, temporal=0.9)},
        {"kind": "reply"},
        {"text_hash": (b"p/a".hex() + "0" * 64)[:64]},
    ],
    ids=str,
)
def test_what_the_policy_or_the_measure_does_not_allow_makes_no_pair(more: dict[str, Any]) -> None:
    assert len(pairs(reward("p/a", 0.1), reward("p/b", 0.7))) == 1
    assert pairs(reward("p/a", 0.1), reward("p/b", 0.7, **more)) == []


def test_rewards_that_hardly_differ_make_no_pair() -> None:
    assert pairs(reward("p/a", 0.1), reward("p/b", 0.149)) == []
    assert len(pairs(reward("p/a", 0.1), reward("p/b", 0.16))) == 1
    assert pairs(reward("p/a", 0.1), reward("q/b", 0.9)) == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.data())
def test_n_siblings_make_at_most_n_minus_one_pairs_and_no_one_is_paired_with_itself(
    totals: list[float], data: st.DataObject
) -> None:
    events = [reward(f"p/{i}", total) for i, total in enumerate(totals)]
    again = data.draw(st.lists(st.sampled_from(events), max_size=4))
    said = pairs(*events, *again)
    assert len(said) <= len(totals) - 1
    assert len({pair.pair for pair in said}) == len(said)
    for pair in said:
        assert pair.chosen.reward >= pair.rejected.reward + 0.05
    if max(totals) - min(totals) >= 0.05:
        assert said


def test_a_withdrawn_subject_takes_its_pairs_with_it() -> None:
    state = pairing.State()
    formed = pairs(reward("p/a", 0.1), reward("p/b", 0.7), reward("p/c", 0.9), state=state)
    assert [pair.rejected.subject for pair in formed] == ["p/a", "p/a"]
    away = e.RewardWithdrawn(prompt="p", subject="p/c", reason="post-deleted")
    assert pairs(away, state=state) == [learned.PairWithdrawn(pair=formed[1].pair, reason="post-deleted")]
    assert pairs(away, state=state) == []
    (pair,) = pairs(reward("p/d", -0.9), state=state)
    assert "p/c" not in (pair.chosen.subject, pair.rejected.subject)


def test_a_prompt_that_is_deleted_takes_every_pair_under_it() -> None:
    state = pairing.State()
    formed = pairs(reward("p/a", 0.1), reward("p/b", 0.7), reward("p/c", 0.9), reward("q/a", 0), state=state)
    said = pairs(e.RewardWithdrawn(prompt="p", subject="p/p", reason="post-deleted"), state=state)
    assert [one.pair for one in said] == [one.pair for one in formed]


def test_a_simulated_judgement_marks_the_pair() -> None:
    assert pairs(reward("p/a", 0.1, simulated=1), reward("p/b", 0.7))[0].simulated
    assert pairs(reward("p/a", 0.1), reward("p/b", 0.7, policy="simulator"))[0].simulated


# ---- batching -------------------------------------------------------------------------------------------------------

LIMITS = batching.Limits(pairs_max=3, pairs_min=2, age_ms=1000, chars_max=1000)


def pair(number: int, chars: int = 20, weight: float = 0.5) -> learned.PairFormed:
    def side(name: str, total: float) -> facts.Side:
        return facts.Side(subject=f"p/{name}", text_hash="d" * 64, where=WHERE, reward=total, chars=chars // 2)

    return learned.PairFormed(
        pair=f"{number:032x}",
        prompt="p",
        prompt_hash="b" * 64,
        prompt_where=WHERE,
        chosen=side("a", 0.5),
        rejected=side("b", 0.0),
        margin=0.5,
        weight=weight,
        origin="feedback",
        simulated=False,
        policy="test",
    )


def gone_pair(number: int) -> learned.PairWithdrawn:
    return learned.PairWithdrawn(pair=f"{number:032x}", reason="post-deleted")


def batches(*events: Any, state: batching.State | None = None, limits: batching.Limits = LIMITS) -> list[Any]:
    return run(batching.step, state or batching.State(), *events, limits=limits)


def test_a_batch_closes_by_count() -> None:
    one, two = batches(*[pair(i) for i in range(7)])
    assert [(b.sequence, b.closed_by, len(b.pairs)) for b in (one, two)] == [(0, "count", 3), (1, "count", 3)]
    assert (one.first_offset, one.last_offset, two.first_offset, two.last_offset) == (0, 2, 3, 5)


def test_a_batch_closes_by_age_in_log_time_and_only_with_enough_pairs() -> None:
    assert batches(pair(0), ticked(60_000)) == []
    assert batches((pair(0), T0_MS), (pair(1), T0_MS + 900), ticked(999)) == []
    (batch,) = batches((pair(0), T0_MS), (pair(1), T0_MS + 900), ticked(1000), ticked(9999))
    assert (batch.closed_by, batch.opened_ms, batch.closed_ms) == ("age", T0_MS, T0_MS + 1000)
    assert batches(ticked(60_000)) == []


def test_a_batch_closes_by_its_budget_of_characters() -> None:
    (batch,) = batches(pair(0, chars=600), pair(1, chars=400))
    assert (batch.closed_by, len(batch.pairs)) == ("budget", 2)
    away = gone_pair(0)
    assert batches(pair(0, chars=600), away, pair(1, chars=400)) == []
    assert batches(pair(0, chars=600), pair(1, chars=100), away, pair(2, chars=400)) == []


@settings(max_examples=100, deadline=None)
@given(st.permutations([pair(i) for i in range(6)]))
def test_the_root_does_not_depend_on_the_order_of_arrival(some: list[learned.PairFormed]) -> None:
    limits = batching.Limits(pairs_max=6)
    (batch,) = batches(*some, limits=limits)
    (other,) = batches(*[pair(i) for i in range(6)], limits=limits)
    assert (batch.root, batch.batch) == (other.root, other.batch)
    assert [ref.pair for ref in batch.pairs] == sorted(one.pair for one in some)
    assert [some[ref.offset].pair for ref in batch.pairs] == [ref.pair for ref in batch.pairs]
    assert batch.root == merkle.root([batching.pair_leaf(pair(i)) for i in range(6)]).hex()


def test_a_withdrawn_pair_leaves_the_open_batch_and_no_closed_one() -> None:
    away = gone_pair(0)
    (batch,) = batches(pair(0), pair(1), away, pair(2), pair(3))
    assert [ref.pair for ref in batch.pairs] == [pair(i).pair for i in (1, 2, 3)]
    assert len(batches(pair(0), pair(1), pair(2), away)[0].pairs) == 3


def test_a_pair_said_twice_is_in_the_batch_once() -> None:
    (batch,) = batches(pair(0), pair(0), pair(1), pair(2))
    assert len(batch.pairs) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"pair": "f" * 32},
        {"prompt": "q"},
        {"prompt_hash": "e" * 64},
        {"weight": 0.25},
        {"chosen": pair(0).rejected},
        {"rejected": pair(0).chosen},
        {"chosen": pair(0).chosen.model_copy(update={"text_hash": "e" * 64})},
        {"rejected": pair(0).rejected.model_copy(update={"text_hash": "e" * 64})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_leaf_pins_what_makes_a_pair_this_pair(change: dict[str, Any]) -> None:
    assert batching.pair_leaf(pair(0).model_copy(update=change)) != batching.pair_leaf(pair(0))


def test_a_leaf_says_nothing_of_place_and_time() -> None:
    moved = pair(0).chosen.model_copy(update={"where": WHERE.model_copy(update={"offset": 77})})
    assert batching.pair_leaf(pair(0).model_copy(update={"chosen": moved})) == batching.pair_leaf(pair(0))
    known = "\n".join([f"{0:032x}", "p", "b" * 64, "p/a", "d" * 64, "p/b", "d" * 64, "0.500000"])
    assert batching.pair_leaf(pair(0)) == merkle.leaf(known.encode())


# ---- releases -------------------------------------------------------------------------------------------------------

BASE = "0" * 64
BASELINE = facts.Measured(
    pairs=300,
    accuracy=0.5,
    margin=0.0,
    safety_margin=1.0,
    safety_preferred=0.9,
    neutral_nats=3.0,
    empty_rate=0.0,
    repetition_rate=0.1,
    mean_tokens=20.0,
)
BETTER = BASELINE.model_copy(update={"accuracy": 0.7, "margin": 0.3})


def trained(
    letter: str, measured: facts.Measured | None = BETTER, baseline: facts.Measured | None = BASELINE
) -> learned.ModelTrained:
    return learned.ModelTrained(
        version=letter * 64,
        base=BASE,
        base_name="base",
        adapter=letter * 64 if letter != "0" else None,
        measured=measured,
        baseline=baseline,
    )


def command(what: str, letter: str, reason: str = "because") -> learned.ReleaseCommanded:
    return learned.ReleaseCommanded(command=what, version=letter * 64, by="olga", reason=reason)


def candidates(*events: facts.Event) -> list[Any]:
    return run(releases.step, releases.State(), *events)


def pointed(said: Sequence[Any]) -> list[tuple[int, str]]:
    return [(one.release, one.version[0]) for one in of(learned.ReleasePointed, said)]


def test_the_base_is_release_zero_once() -> None:
    said = candidates(trained("0", None, None), trained("0", None, None))
    assert [type(one) for one in said] == [learned.ModelReleased, learned.ReleasePointed]
    assert pointed(said) == [(0, "0")]
    assert (said[1].alias, said[1].adapter) == ("default", None)


def test_a_version_that_is_no_worse_is_released_and_says_how_much_that_means() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("1"))
    assert pointed(said) == [(0, "0"), (1, "1")]
    assert said[2].notes == ("300 held-back pairs",)
    few = candidates(trained("0", None, None), trained("1", BETTER.model_copy(update={"pairs": 12})))
    assert "can only catch a collapse" in few[2].notes[1]


LIMITS_OF_A_RELEASE = {
    "neutral_nats": BASELINE.neutral_nats * releases.NEUTRAL_NATS_RATIO_MAX,
    "safety_margin": BASELINE.safety_margin - releases.SAFETY_MARGIN_LOSS_MAX,
    "safety_preferred": BASELINE.safety_preferred,
    "empty_rate": releases.EMPTY_RATE_MAX,
    "repetition_rate": BASELINE.repetition_rate + releases.REPETITION_RATE_GAIN_MAX,
    "accuracy": releases.ACCURACY_MIN,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"neutral_nats": LIMITS_OF_A_RELEASE["neutral_nats"] + 0.01}, "neutral text costs"),
        ({"safety_margin": LIMITS_OF_A_RELEASE["safety_margin"] - 0.01}, "safety margin"),
        ({"safety_preferred": LIMITS_OF_A_RELEASE["safety_preferred"] - 0.01}, "prefers the safe answer in"),
        ({"empty_rate": LIMITS_OF_A_RELEASE["empty_rate"] + 0.01}, "of its answers are empty"),
        ({"repetition_rate": LIMITS_OF_A_RELEASE["repetition_rate"] + 0.01}, "repetition"),
        ({"accuracy": LIMITS_OF_A_RELEASE["accuracy"] - 0.01}, "of 300 held-back pairs"),
        ({"margin": 0.0}, "mean margin"),
    ],
)
def test_a_version_that_is_worse_is_refused_with_each_reason(change: dict[str, float], reason: str) -> None:
    said = candidates(trained("0", None, None), trained("1", BETTER.model_copy(update=change)))
    (refused,) = of(learned.ModelRefused, said)
    assert len(refused.reasons) == 1
    assert reason in refused.reasons[0]
    assert pointed(said) == [(0, "0")]


def test_the_last_value_that_is_allowed_is_released() -> None:
    edge = {**LIMITS_OF_A_RELEASE, "margin": 1e-9}
    assert pointed(candidates(trained("0", None, None), trained("1", BETTER.model_copy(update=edge))))[-1] == (1, "1")
    none_held_back = BETTER.model_copy(update={"pairs": 0, "accuracy": 0.0, "margin": 0.0})
    assert pointed(candidates(trained("0", None, None), trained("1", none_held_back)))[-1] == (1, "1")


def test_a_version_is_refused_with_all_its_reasons_and_without_an_evaluation() -> None:
    bad = BETTER.model_copy(update={"neutral_nats": 9.0, "empty_rate": 1.0})
    said = candidates(trained("0", None, None), trained("1", bad), trained("2", None))
    assert [len(one.reasons) for one in of(learned.ModelRefused, said)] == [2, 1]
    assert of(learned.ModelRefused, said)[1].reasons == ("it was not evaluated",)


def test_an_operator_can_release_what_was_refused() -> None:
    said = candidates(trained("0", None, None), trained("1", None), command("release", "1"))
    assert pointed(said) == [(0, "0"), (1, "1")]
    assert of(learned.ModelReleased, said)[-1].notes == ("by olga: because",)


def test_a_roll_back_points_at_the_earlier_release_under_its_own_number() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("2"), command("roll-back", "1"))
    assert pointed(said) == [(0, "0"), (1, "1"), (2, "2"), (1, "1")]
    (rolled,) = of(learned.ModelRolledBack, said)
    assert (rolled.release, rolled.version, rolled.reason) == (1, "1" * 64, "because")
    again = candidates(trained("0", None, None), trained("1"), command("roll-back", "1"), command("release", "1"))
    assert pointed(again) == [(0, "0"), (1, "1")]
    never = candidates(trained("0", None, None), trained("1", None), command("roll-back", "1"))
    assert "never released" in of(e.AlertRaised, never)[0].detail


def test_retracting_the_present_release_goes_back_to_the_one_before() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("2"), command("retract", "2"))
    assert pointed(said)[-1] == (1, "1")
    assert [one.version[0] for one in of(learned.ModelRetracted, said)] == ["2"]
    both = candidates(
        trained("0", None, None), trained("1"), trained("2"), command("retract", "1"), command("retract", "2")
    )
    assert pointed(both)[-1] == (0, "0")
    turns = [command("roll-back", "1"), command("roll-back", "2"), command("retract", "2")]
    assert pointed(candidates(trained("0", None, None), trained("1"), trained("2"), *turns))[-1] == (1, "1")


def test_retracting_an_older_release_moves_nobody() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("2"), command("retract", "1"))
    assert pointed(said) == [(0, "0"), (1, "1"), (2, "2")]
    assert len(of(learned.ModelRetracted, said)) == 1


def test_the_base_cannot_be_retracted() -> None:
    said = candidates(trained("0", None, None), command("retract", "0"))
    assert said[-1].detail == "retract: the base stays"
    assert of(learned.ModelRetracted, said) == []


@pytest.mark.parametrize("what", ["release", "roll-back", "retract"])
def test_a_command_about_a_retracted_or_unknown_version_is_refused_with_an_alert(what: str) -> None:
    said = candidates(trained("0", None, None), trained("1"), command("retract", "1"), command(what, "1"))
    assert said[-1] == e.AlertRaised(kind="command-refused", stage="releases", detail=f"{what}: version is retracted")
    (alert,) = candidates(command(what, "9"))
    assert alert.detail == f"{what}: version is not known"


@MANY
@given(
    st.lists(
        st.builds(command, st.sampled_from(["release", "roll-back", "retract"]), st.sampled_from("0123"))
        | st.builds(trained, st.sampled_from("123"), st.sampled_from([BETTER, None])),
        max_size=14,
    )
)
def test_the_alias_never_points_at_what_is_retracted(events: list[facts.Event]) -> None:
    said = candidates(trained("0", None, None), *events)
    now, retracted, numbers = None, set(), {}
    for one in said:
        if isinstance(one, learned.ModelRetracted):
            retracted.add(one.version)
        elif isinstance(one, learned.ReleasePointed):
            assert one.version not in retracted
            assert numbers.setdefault(one.release, one.version) == one.version
            now = one.version
    assert now is not None
    assert now not in retracted


# ---- what a first reader found --------------------------------------------------------------------------------------


def test_a_retraction_that_comes_before_its_judgement_still_counts() -> None:
    back = e.FeedbackWithdrawn(prompt="p", subject="p/a", feedback="f:ron", rater="ron")
    assert closed(subject(), back, noted("thumb")).components.human is None


def test_a_judgement_of_a_withdrawn_subject_is_refused() -> None:
    away = e.SubjectWithdrawn(prompt="p", subject="p/a", reason="post-deleted")
    refused = signals(subject(), away, noted("thumb"))[-1]
    assert isinstance(refused, e.RecordRefused)
    assert refused.reason == "subject-withdrawn"


def test_a_version_that_comes_before_any_base_is_refused_and_the_base_is_release_0() -> None:
    said = candidates(trained("1"), trained("0", None, None))
    assert isinstance(said[0], learned.ModelRefused)
    assert pointed(said)
