"""A judgement that makes sense is noted under its prompt, any other is refused with its fault."""

from typing import Any

import pytest

from agents import intake
from schemas import events as e
from tests.folding import (
    run,
)


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
