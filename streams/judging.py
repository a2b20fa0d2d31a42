"""Judging: a judgement as JSON -> the events that say it; what intake would refuse later is refused here, now.

Words live only in `answers`: a correction that brings better words becomes an answer by a person (version of zeros),
and the judgement only points at it.
"""

from typing import Annotated, Literal, NamedTuple
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from agents import intake
from agents.content import words_of_answer
from schemas.envelope import Record
from schemas.events import AnswerGiven, FeedbackGiven, FeedbackRetracted, RecordRefused
from schemas.facts import AnswerContent, Event, Id, Rights, Subject
from schemas.ids import digest, prompt_of, subject_id
from streams.chat import CHARS_MAX, MESSAGES_MAX, Said, checked_key, owner_id, prompt_id
from streams.problems import Problem

BY_A_PERSON = "0" * 64


class Named(NamedTuple):
    """An event, and the id it is written under (None: made of its content)."""

    event: Event
    event_id: str | None


class FeedbackRequest(BaseModel):
    """A judgement (`kind`, `subject`, ...), or the retraction of one (`retract`, `subject`).

    `feedback` names it. One name is one judgement: what is said again, after it was changed or taken back, is another.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    subject: Subject
    kind: Literal["thumb", "stars", "choice", "correction", "report"] | None = None
    retract: Id | None = None
    value: Annotated[int, Field(ge=-1, le=5)] | None = None
    other: Subject | None = None
    rater: Id | None = None
    user: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    feedback: Id | None = None
    simulated: bool = False
    text: Annotated[str, Field(min_length=1, max_length=CHARS_MAX)] | None = None
    messages: Annotated[list[Said], Field(min_length=1, max_length=MESSAGES_MAX)] | None = None


def read(request: FeedbackRequest, rights: Rights, idempotency_key: str | None = None) -> list[Named]:
    """Give what is to be written, in order; the last one is the judgement. Problem 400 if it makes no sense.

    The same request with the same key is the same judgement; without a key it is a new one.
    """
    rater = request.rater or owner_id(request.user)
    if (request.kind is None) == (request.retract is None):
        raise _bad("kind", "give either a kind of judgement or the id of one to retract")
    if request.retract is not None:
        return [Named(FeedbackRetracted(feedback=request.retract, subject=request.subject, rater=rater), None)]
    said = []
    other = request.other
    if request.text is not None:
        words = _words(request, rater, rights)
        other = subject_id(words.prompt, words.items[0])
        said.append(Named(words, digest("answer", words.prompt, *words.items)))
    value = request.value if request.value is not None else 1
    if request.value is None and request.kind in ("thumb", "stars"):
        raise _bad("value", "a thumb is -1 or 1, stars are 1 to 5")
    kind = request.kind or "thumb"
    key = uuid4().hex if idempotency_key is None else checked_key(idempotency_key)
    name = request.feedback or digest("feedback", request.subject, rater, kind, str(value), other or "", key)
    given = FeedbackGiven(
        feedback=name,
        subject=request.subject,
        rater=rater,
        kind=kind,
        value=value,
        other=other,
        simulated=request.simulated,
    )
    outs, _ = intake.step([Record("feedback", 0, 0, 0, name, given)], {})
    verdict = outs[0].event
    if isinstance(verdict, RecordRefused):
        raise _bad("value", verdict.detail)
    return [*said, Named(given, None)]


def _words(request: FeedbackRequest, rater: str, rights: Rights) -> AnswerGiven:
    """Make the answer that a person gave; it carries its prompt's words like any answer, held against their id."""
    prompt = prompt_of(request.subject)
    if request.kind != "correction" or request.other is not None or request.text is None:
        raise _bad("text", "only a correction brings words, and then no `other`")
    turns = tuple(said.turn() for said in request.messages or ())
    if prompt_id(turns) != prompt:
        raise _bad("messages", "a correction's text needs the messages that were asked, unchanged")
    content = AnswerContent(messages=turns, texts=(request.text,))
    items = ("a:" + digest("correction", request.subject, rater, request.text),)
    prompt_hash, words = words_of_answer(prompt, items, content)
    return AnswerGiven(
        prompt=prompt,
        owner=rater,
        items=items,
        release=0,
        version=BY_A_PERSON,
        seed=0,
        rights=rights,
        prompt_hash=prompt_hash,
        words=words,
        content=content,
    )


def _bad(param: str, sentence: str) -> Problem:
    return Problem(400, "bad_input", f"{param}: {sentence}.", param)
