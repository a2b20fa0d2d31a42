"""Judging: whatever a person says and unsays about an answer, the last word stands."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import FeedbackGiven
from schemas.facts import Rights
from streams import judging
from streams.fold import Fold
from streams.judging import FeedbackRequest
from streams.memory import Logged
from streams.policy import Policy
from streams.problems import Problem
from streams.records import outside
from streams.topology import stages
from tests.small_world import Keyring

SUBJECT = "q:" + "1" * 32 + "/a:" + "2" * 32
TABLE = {stage.name: stage for stage in stages()}


def rights() -> Rights:
    return Policy.load(None).rights("server")


def said(key: str | None = None, **more: Any) -> FeedbackGiven:
    body = {"subject": SUBJECT, "kind": "thumb", "user": "ann", **more}
    event = judging.read(FeedbackRequest.model_validate_json(json.dumps(body)), rights(), key)[-1].event
    assert isinstance(event, FeedbackGiven)
    return event


def standing(words: list[int], named: bool = False) -> list[tuple[str, int]]:
    """What stands after thumbs up (1), down (-1) and the newest taken back (0); `named`: by one name, on purpose."""
    intake, rewards = (Fold(TABLE[name], 0, 1, Keyring()) for name in ("intake", "rewards"))
    newest: list[FeedbackGiven] = []
    for number, value in enumerate(words):
        if value:
            newest.append(said(value=value, feedback="mine" if named else None))
            event: Any = newest[-1]
        elif newest:
            body = {"subject": SUBJECT, "retract": newest.pop().feedback, "user": "ann"}
            event = judging.read(FeedbackRequest.model_validate_json(json.dumps(body)), rights())[-1].event
        else:
            continue
        sent = outside(event, "/server", 1_700_000_000_000 + number * 1_000, 1, Keyring())
        for one in intake.take([Logged(number, sent.time_ms, sent.key, sent.value, list(sent.headers))]):
            raw = Logged(rewards.memory.next, one.time_ms, one.key, one.value, list(one.headers))
            rewards.take([raw])
            rewards.memory.next = raw.offset + 1
        intake.memory.next = number + 1
    return [(one.kind, one.value) for prompt in rewards.memory.state.prompts.values()
            for one in prompt.judgements.values()]  # fmt: skip


@given(st.lists(st.sampled_from([1, -1, 0]), max_size=8))
def test_the_last_word_stands_however_often_it_was_said_before(words: list[int]) -> None:
    last = words[-1] if words else 0
    assert standing(words) == ([("thumb", last)] if last else [])


def test_control_one_name_for_all_that_is_said_alike_loses_the_last_word() -> None:
    assert standing([1, -1, 1]) == [("thumb", 1)]
    assert standing([1, -1, 1], named=True) == [("thumb", -1)]
    assert standing([1, 0, 1], named=True) == []


def test_a_request_that_is_sent_again_with_its_key_is_the_same_judgement() -> None:
    assert said("k", value=1) == said("k", value=1)
    assert len({said(key, value=value).feedback for key in ("k", "l", None, None) for value in (1, -1)}) == 8
    assert said("k", value=1, feedback="mine").feedback == "mine"
    for key in ("", "k" * 1_000):
        with pytest.raises(Problem, match="Idempotency-Key"):
            said(key, value=1)
