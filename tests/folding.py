"""Folding: a step and some events -> what it said; and the events that its tests are made of."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings

from schemas import events as e
from schemas import facts, learned
from schemas import posts as ps
from schemas.envelope import Out, Record
from schemas.seal import Unpunctured
from tests import strategies
from tests.feeds import worded

RIGHTS = facts.Rights(index=True, train=True, show=True, policy="test")
T0_MS = strategies.T0_MS
HOUR_MS = 3_600_000
MANY = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
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


class NoKeys(Unpunctured):
    """Steps see open words, so nothing here is ever sealed."""

    def get(self, owner: str) -> bytes | None:
        return None

    make = get


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


def post(name: str, owner: str = "ann", text: str = "five words are in this", **more: Any) -> ps.PostObserved:
    kind = more.pop("kind", ps.PostObserved)
    words = facts.PostContent(text=text) if text is not None else None
    seen = kind(post=name, owner=owner, source="x", raw_sha256="0" * 64, **{"rights": RIGHTS, "content": words, **more})
    return worded(seen)


def gone(name: str, owner: str = "ann") -> ps.PostDeleted:
    return ps.PostDeleted(post=name, owner=owner, source="x")


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


def act(post: str, actor: str, target: str | None = None, kind: str = "reply", **more: Any) -> e.InteractionObserved:
    values = {"source": "x", "at_ms": None, **more}
    return e.InteractionObserved(kind=kind, actor=actor, target=target, post=post, **values)


def ticked(after_ms: int) -> tuple[e.Ticked, int]:
    return e.Ticked(at_ms=T0_MS + after_ms), T0_MS + after_ms


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
