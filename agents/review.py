"""Review: what the server said -> subjects to be judged.

Named for the AI review: a judge model in a process of its own, which may read the words. There is none yet, so every
subject leaves here without an opinion and the reward vector says that it was missing.
"""

from collections.abc import Sequence

from schemas.envelope import Out, Record
from schemas.events import AnswerGiven, PromptNoted, RecordRefused, SubjectNoted
from schemas.facts import Event, Where
from schemas.ids import digest, subject_id

State = dict[str, bool]  # always empty


def step(chunk: Sequence[Record], state: State) -> tuple[list[Out], State]:
    """Fold a chunk of `answers`."""
    outs: list[Out] = []
    for record in chunk:
        if isinstance(record.event, AnswerGiven):
            outs.extend(Out(record, one) for one in _answer(record, record.event))
    return outs, state


def _answer(record: Record, given: AnswerGiven) -> list[Event]:
    if len(given.items) != len(given.words):
        return [_refused(record, given)]
    where = Where(topic=record.topic, partition=record.partition, offset=record.offset)
    subjects = [
        SubjectNoted(
            prompt=given.prompt,
            subject=subject_id(given.prompt, item),
            kind="answer",
            owner=given.owner,
            source="server",
            version=given.version,
            text_hash=words.text_hash,
            where=where,
            rights=given.rights,
            features=words.features,
        )
        for item, words in zip(given.items, given.words, strict=True)
    ]
    return [
        PromptNoted(prompt=given.prompt, text_hash=given.prompt_hash, where=where, rights=given.rights),
        *subjects,
    ]


def _refused(record: Record, given: AnswerGiven) -> RecordRefused:
    return RecordRefused(
        owner=given.owner,
        reason="bad-answer",
        detail=f"{len(given.items)} items but words of {len(given.words)}",
        stage="review",
        place=f"{record.topic}/{record.partition}/{record.offset}",
        size=0,
        sha256=digest(record.id) * 2,
    )
