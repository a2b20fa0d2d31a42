"""Every candidate of an answer becomes a subject of one prompt."""

from agents import content, review
from schemas import events as e
from schemas import facts
from schemas.ids import text_hash
from tests.feeds import worded
from tests.folding import (
    RIGHTS,
    run,
)


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
