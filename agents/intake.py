"""Intake: feedback, whoever wrote it -> the judgements that make sense, keyed by prompt.

It keeps no state: clients place records with partitioners of their own, so one subject's events may come from several
partitions, and only the rewards agent, after our own keying, sees them together.
"""

from collections.abc import Sequence

from schemas.envelope import Out, Record
from schemas.events import FeedbackGiven, FeedbackNoted, FeedbackRetracted, FeedbackWithdrawn, RecordRefused
from schemas.facts import Event
from schemas.ids import digest, prompt_of

State = dict[str, bool]  # always empty


def step(chunk: Sequence[Record], state: State) -> tuple[list[Out], State]:
    """Fold a chunk of `feedback`."""
    outs = []
    for record in chunk:
        event = record.event
        if isinstance(event, FeedbackGiven):
            outs.append(Out(record, _given(record, event)))
        elif isinstance(event, FeedbackRetracted):
            outs.append(
                Out(
                    record,
                    FeedbackWithdrawn(
                        prompt=prompt_of(event.subject),
                        subject=event.subject,
                        feedback=event.feedback,
                        rater=event.rater,
                    ),
                )
            )
    return outs, state


def _given(record: Record, given: FeedbackGiven) -> Event:
    fault = _fault(given)
    if fault:
        return RecordRefused(
            owner=given.rater,
            reason="bad-feedback",
            detail=fault,
            stage="intake",
            place=f"{record.topic}/{record.partition}/{record.offset}",
            size=0,
            sha256=digest(given.feedback, given.subject) * 2,
        )
    return FeedbackNoted(
        prompt=prompt_of(given.subject),
        subject=given.subject,
        feedback=given.feedback,
        rater=given.rater,
        kind=given.kind,
        value=given.value,
        other=given.other,
        simulated=given.simulated,
    )


def _fault(given: FeedbackGiven) -> str | None:
    """Say what is wrong with a judgement, or None."""
    allowed = {"thumb": (-1, 1), "stars": (1, 2, 3, 4, 5), "choice": (0, 1), "correction": (1,), "report": (1,)}
    if given.value not in allowed[given.kind]:
        return f"{given.kind} takes {allowed[given.kind]}, not {given.value}"
    if given.kind in ("choice", "correction"):
        if given.other is None:
            return f"{given.kind} needs `other`, the second subject"
        if prompt_of(given.other) != prompt_of(given.subject):
            return f"{given.kind} compares two subjects of one prompt"
        if given.other == given.subject:
            return f"{given.kind} compares a subject with itself"
    elif given.other is not None:
        return f"{given.kind} takes no `other`"
    return None
