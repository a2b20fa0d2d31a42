"""Rewards: everything noted about a subject -> one number with its reasons, when log time closes it at an age.

Six components in -1..1 with fixed weights. What could not be measured is named and its weight shared among the rest,
so a subject without views is not a subject nobody liked. Reports are no component but a penalty of their own. A
subject is measured at its ages and never late: what arrives after the last age is refused with that reason.
"""

import heapq
import math
from collections.abc import Iterable, Sequence

import msgspec

from schemas.envelope import Out, Record
from schemas.events import (
    EngagementNoted,
    FeedbackNoted,
    FeedbackWithdrawn,
    PromptNoted,
    RecordRefused,
    RewardClosed,
    RewardWithdrawn,
    SubjectNoted,
    SubjectWithdrawn,
    Ticked,
)
from schemas.facts import Components, Event, Where
from schemas.ids import digest

WEIGHTS = {"human": 0.25, "review": 0.20, "engagement": 0.25, "network": 0.15, "temporal": 0.10, "content": 0.05}
WEIGHTS_VERSION = "w1"
PRIOR_VOTES = 1.0  # a neutral vote that every subject starts with: one thumb alone is half a verdict
REPORT_PENALTY = 0.25  # for each person who reports, up to 1
VIEW_RATE_FULL = 0.10  # weighted reactions per view that score 1
REACTIONS_FULL = 10_000  # weighted reactions that score 1 where views are unknown (on a log scale)
PROMPTS_MAX = 50_000  # a partition; the oldest prompt is forgotten first
JUDGEMENTS_MAX = 4096  # a prompt; a rater's newer judgement replaces the older and needs no room
CLOSED_MAX = 50_000  # a partition: subjects remembered as closed, so that late feedback is told so


class Judgement(msgspec.Struct, array_like=True):
    """One person's standing judgement: the feedback's id, kind, value, the subjects, and whether it was simulated."""

    feedback: str
    rater: str
    kind: str
    value: int
    subject: str
    other: str | None
    simulated: bool


class Noted(msgspec.Struct, array_like=True):
    """What must be kept of a SubjectNoted until it closes, and the reactions counted last."""

    kind: str
    version: str | None
    text_hash: str
    where: tuple[str, int, int]
    chars: int
    train: bool
    policy: str
    temporal: float | None
    review: float | None
    quality: float
    reactions: tuple[int, int, int, int, int | None] | None = None


class Prompt(msgspec.Struct, array_like=True):
    """One prompt: its own words' place, its open subjects, the judgements on them."""

    text_hash: str | None = None
    where: tuple[str, int, int] | None = None
    train: bool = False
    subjects: dict[str, Noted] = msgspec.field(default_factory=dict)
    early: dict[str, tuple[int, int, int, int, int | None]] = msgspec.field(default_factory=dict)
    judgements: dict[str, Judgement] = msgspec.field(default_factory=dict)
    retracted: dict[str, bool] = msgspec.field(default_factory=dict)  # a retraction may come before its judgement


class State(msgspec.Struct):
    """What one partition remembers. `due` is a heap of (log time, subject, index of the age)."""

    prompts: dict[str, Prompt] = msgspec.field(default_factory=dict)
    due: list[tuple[int, str, int]] = msgspec.field(default_factory=list)
    closed: dict[str, bool] = msgspec.field(default_factory=dict)
    gone: dict[str, bool] = msgspec.field(default_factory=dict)


def step(chunk: Sequence[Record], state: State, ages_ms: tuple[int, ...]) -> tuple[list[Out], State]:
    """Fold a chunk of `signals`; `ages_ms` are the closing ages, ascending, the last one final."""
    outs: list[Out] = []
    for record in chunk:
        outs.extend(Out(record, one) for one in _on(record, record.event, state, ages_ms))
    return outs, state


def _on(record: Record, event: Event, state: State, ages_ms: tuple[int, ...]) -> Iterable[Event]:
    if isinstance(event, Ticked):
        return _close(event.at_ms, state, ages_ms)
    if isinstance(event, PromptNoted):
        prompt = _prompt(state, event.prompt)
        prompt.text_hash, prompt.where = event.text_hash, _place(event.where)
        prompt.train = event.rights.train
    elif isinstance(event, SubjectNoted):
        _note(record.time_ms, event, state, ages_ms)
    elif isinstance(event, EngagementNoted):
        prompt = _prompt(state, event.prompt)
        reactions = (event.likes, event.replies, event.reposts, event.quotes, event.views)
        if event.subject in prompt.subjects:
            prompt.subjects[event.subject].reactions = reactions
        elif event.subject not in state.closed and event.subject not in state.gone:
            prompt.early[event.subject] = reactions
    elif isinstance(event, FeedbackNoted):
        return _judge(record, event, state)
    elif isinstance(event, FeedbackWithdrawn):
        prompt = _prompt(state, event.prompt)
        if len(prompt.retracted) < JUDGEMENTS_MAX:
            prompt.retracted[f"{event.rater} {event.feedback}"] = True
        for slot, judgement in list(prompt.judgements.items()):
            if judgement.feedback == event.feedback and judgement.rater == event.rater:
                del prompt.judgements[slot]
    elif isinstance(event, SubjectWithdrawn):
        return _withdraw(event, state)
    return ()


def _prompt(state: State, prompt: str) -> Prompt:
    known = state.prompts.get(prompt)
    if known is None:
        known = state.prompts[prompt] = Prompt()
        if len(state.prompts) > PROMPTS_MAX:
            del state.prompts[next(iter(state.prompts))]
    return known


def _place(where: Where) -> tuple[str, int, int]:
    return where.topic, where.partition, where.offset


def _note(time_ms: int, event: SubjectNoted, state: State, ages_ms: tuple[int, ...]) -> None:
    if event.subject in state.gone or event.subject in state.closed:
        return
    prompt = _prompt(state, event.prompt)
    before = prompt.subjects.get(event.subject)
    prompt.subjects[event.subject] = Noted(
        event.kind,
        event.version,
        event.text_hash,
        _place(event.where),
        event.features.chars,
        event.rights.train,
        event.rights.policy,
        event.temporal,
        event.review,
        event.features.quality,
        before.reactions if before else prompt.early.pop(event.subject, None),
    )
    if before is None:
        heapq.heappush(state.due, (time_ms + ages_ms[0], event.subject, 0))


def _judge(record: Record, event: FeedbackNoted, state: State) -> Iterable[Event]:
    if event.subject in state.closed:
        return [_refused(record, event, "too-late", "the subject had reached its last age")]
    if event.subject in state.gone:
        return [_refused(record, event, "subject-withdrawn", "the words of the subject were deleted or erased")]
    prompt = _prompt(state, event.prompt)
    if f"{event.rater} {event.feedback}" in prompt.retracted:
        return ()
    slot = f"{event.rater} {event.kind} {event.subject} {event.other or ''}"
    if event.kind == "choice" and event.other is not None:  # one slot for the two, whichever was preferred
        slot = f"{event.rater} choice {' '.join(sorted((event.subject, event.other)))}"
    if slot not in prompt.judgements and len(prompt.judgements) >= JUDGEMENTS_MAX:
        return [_refused(record, event, "too-many-judgements", f"a prompt takes {JUDGEMENTS_MAX}")]
    prompt.judgements[slot] = Judgement(
        event.feedback, event.rater, event.kind, event.value, event.subject, event.other, event.simulated
    )
    return ()


def _refused(record: Record, event: FeedbackNoted, reason: str, detail: str) -> RecordRefused:
    return RecordRefused(
        owner=event.rater,
        reason=reason,
        detail=detail,
        stage="rewards",
        place=f"{record.topic}/{record.partition}/{record.offset}",
        size=0,
        sha256=digest(event.feedback, event.subject) * 2,
    )


def _withdraw(event: SubjectWithdrawn, state: State) -> Iterable[Event]:
    state.gone[event.subject] = True
    state.closed.pop(event.subject, None)
    if len(state.gone) > CLOSED_MAX:
        del state.gone[next(iter(state.gone))]
    prompt = _prompt(state, event.prompt)
    prompt.subjects.pop(event.subject, None)
    prompt.early.pop(event.subject, None)
    if event.subject == f"{event.prompt}/{event.prompt}":  # the prompt's own words are gone: nothing under it pairs
        prompt.text_hash = prompt.where = None
    return [RewardWithdrawn(prompt=event.prompt, subject=event.subject, reason=event.reason)]


def _close(now_ms: int, state: State, ages_ms: tuple[int, ...]) -> Iterable[Event]:
    """Close all that is due, in the order of subjects, so that the order of arrival within an age does not matter."""
    said: list[RewardClosed] = []
    while state.due and state.due[0][0] <= now_ms:  # again after each age: a late tick may close several
        said += _close_age(now_ms, state, ages_ms)
    return said


def _close_age(now_ms: int, state: State, ages_ms: tuple[int, ...]) -> list[RewardClosed]:
    due = []
    while state.due and state.due[0][0] <= now_ms:
        due.append(heapq.heappop(state.due))
    said = []
    for due_ms, subject, index in sorted(due, key=lambda one: (one[1], one[2])):
        name = subject.partition("/")[0]
        prompt = state.prompts.get(name)
        noted = prompt.subjects.get(subject) if prompt else None
        if prompt is None or noted is None:
            continue
        final = index == len(ages_ms) - 1
        said.append(_reward(name, subject, prompt, noted, ages_ms[index], final))
        if not final:
            heapq.heappush(state.due, (due_ms - ages_ms[index] + ages_ms[index + 1], subject, index + 1))
            continue
        state.closed[subject] = True
        if len(state.closed) > CLOSED_MAX:
            del state.closed[next(iter(state.closed))]
    for event in said:
        if event.final:
            _forget(state, event)
    return said


def _forget(state: State, event: RewardClosed) -> None:
    """Drop a closed subject, and its judgements once no open subject is left that they compare it with."""
    prompt = state.prompts[event.prompt]
    prompt.subjects.pop(event.subject, None)
    if not prompt.subjects:
        prompt.judgements.clear()
        prompt.retracted.clear()
        prompt.early.clear()


def _reward(name: str, subject: str, prompt: Prompt, noted: Noted, age_ms: int, final: bool) -> RewardClosed:
    votes, simulated, reporters = _votes(subject, prompt.judgements.values())
    parts = {
        "human": round(sum(votes) / (len(votes) + PRIOR_VOTES), 6) if votes else None,
        "review": noted.review,
        "engagement": _engagement(noted.reactions),
        "network": None,  # the graph agent's to say
        "temporal": noted.temporal,
        "content": noted.quality,
    }
    present = {part: WEIGHTS[part] for part, value in parts.items() if value is not None}
    whole = sum(present.values())
    weights = {part: round(weight / whole, 6) for part, weight in present.items()}
    penalty = min(1.0, REPORT_PENALTY * reporters)
    total = sum(weights[part] * (parts[part] or 0.0) for part in weights) - penalty
    return RewardClosed(
        prompt=name,
        subject=subject,
        kind=noted.kind,  # type: ignore[arg-type]
        age_ms=age_ms,
        final=final,
        components=Components(**parts),
        missing=tuple(part for part in WEIGHTS if part not in present),
        weights=weights,
        weights_version=WEIGHTS_VERSION,
        penalty=penalty,
        total=max(-2.0, min(1.0, round(total, 6))),
        judgements=len(votes),
        simulated=simulated,
        version=noted.version,
        text_hash=noted.text_hash,
        where=_where(noted.where),
        chars=noted.chars,
        prompt_hash=prompt.text_hash,
        prompt_where=_where(prompt.where) if prompt.where else None,
        trainable=noted.train and (prompt.train or prompt.text_hash is None),
        policy=noted.policy,
    )


def _where(place: tuple[str, int, int]) -> Where:
    return Where(topic=place[0], partition=place[1], offset=place[2])


def _votes(subject: str, judgements: Iterable[Judgement]) -> tuple[list[float], int, int]:
    """Read the judgements as votes in -1..1 on one subject: (votes, how many simulated, how many people reported)."""
    votes: list[float] = []
    simulated = 0
    reporters = set()
    for one in judgements:
        if subject not in (one.subject, one.other):
            continue
        if one.kind == "report":
            reporters.add(one.rater)
            continue
        if one.kind == "thumb":
            vote = float(one.value)
        elif one.kind == "stars":
            vote = (one.value - 3) / 2
        elif one.kind == "choice":
            vote = 0.0 if one.value == 0 else (1.0 if one.subject == subject else -1.0)
        else:  # a correction speaks against what it corrects and for the better words
            vote = -1.0 if one.subject == subject else 1.0
        votes.append(vote)
        simulated += one.simulated
    return votes, simulated, len(reporters)


def _engagement(reactions: tuple[int, int, int, int, int | None] | None) -> float | None:
    """Score reactions in -1..1: by their rate where views are known, else on a log scale; None if never counted."""
    if reactions is None:
        return None
    likes, replies, reposts, quotes, views = reactions
    weighted = likes + 1.5 * replies + 2 * reposts + 2 * quotes
    if views:
        return round(2 * min(1.0, weighted / views / VIEW_RATE_FULL) - 1, 6)
    return round(2 * min(1.0, math.log1p(weighted) / math.log1p(REACTIONS_FULL)) - 1, 6)
