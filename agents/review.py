"""Review: what the server said -> subjects to be judged, with a judge's opinion where there is a judge.

The judge is a function handed in (a model in its own process); without one the opinion is None, and the reward
vector says that it was missing.
"""

from collections.abc import Callable, Sequence

from agents.content import features
from schemas.envelope import Out, Record
from schemas.events import AnswerGiven, Event, PromptNoted, RecordRefused, SubjectNoted
from schemas.facts import AnswerContent, Turn, Where
from schemas.ids import digest, subject_id, text_hash

State = dict[str, bool]  # always empty
Judge = Callable[[tuple[Turn, ...], str], float]
"""(messages, answer) -> -1..1; must always say the same of the same."""


def step(chunk: Sequence[Record], state: State, judge: Judge | None = None) -> tuple[list[Out], State]:
    """Fold a chunk of `answers`."""
    outs: list[Out] = []
    for record in chunk:
        event = record.event
        if isinstance(event, AnswerGiven) and isinstance(event.content, AnswerContent):
            if len(event.items) != len(event.content.texts):
                outs.append(Out(record, _refused(record, event, len(event.content.texts))))
                continue
            outs.extend(Out(record, one) for one in _answer(record, event, event.content, judge))
    return outs, state


def prompt_text(messages: tuple[Turn, ...]) -> str:
    """Flatten a conversation to the one string that its hash is made of; lengths tell where each turn ends."""
    return "\n".join(f"{turn.role}\0{len(turn.content)}\0{turn.content}" for turn in messages)


def _answer(record: Record, given: AnswerGiven, content: AnswerContent, judge: Judge | None) -> list[Event]:
    where = Where(topic=record.topic, partition=record.partition, offset=record.offset)
    said: list[Event] = [
        PromptNoted(
            prompt=given.prompt,
            text_hash=text_hash(given.prompt, prompt_text(content.messages)),
            where=where,
            rights=given.rights,
        )
    ]
    for item, text in zip(given.items, content.texts, strict=True):
        said.append(
            SubjectNoted(
                prompt=given.prompt,
                subject=subject_id(given.prompt, item),
                kind="answer",
                owner=given.owner,
                source="server",
                version=given.version,
                text_hash=text_hash(item, text),
                where=where,
                rights=given.rights,
                features=features(text, hashtags=0, mentions=0, links=0, media=0, at_ms=None),
                review=judge(content.messages, text) if judge else None,
            )
        )
    return said


def _refused(record: Record, given: AnswerGiven, texts: int) -> RecordRefused:
    return RecordRefused(
        owner=given.owner,
        reason="bad-answer",
        detail=f"{len(given.items)} items but {texts} texts",
        stage="review",
        place=f"{record.topic}/{record.partition}/{record.offset}",
        size=0,
        sha256=digest(record.id) * 2,
    )
