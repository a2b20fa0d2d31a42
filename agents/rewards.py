"""Rewards: everything noted about a subject -> one number with its reasons, when log time closes it at an age.

Six components in -1..1 with fixed weights. What could not be measured is named and its weight shared among the rest,
so a subject without views is not a subject nobody liked. Reports are no component but a penalty of their own. A
subject is measured at its ages and never late: judgements after the last age are refused with that reason, and counts
of reactions belong to the first age that was not yet reached when they came, however late the tick that closes it.

Memory is bounded, so a feed may be too fast for the last age: then the oldest prompts are closed for good at the age
that they have, which the reward says, instead of never. Answers and what people judged stay before the rest.

What keeps a crowd from buying a reward: a person has one vote on a subject, whatever kinds of judgement they give; a
neutral vote stands against the first; reactions saturate; influence is bounded (agents/influence.py).
"""

import bisect
import heapq
from collections.abc import Iterable, Sequence

import msgspec

from agents.bounded import remember
from agents.scoring import Counted, Judgement, engagement_of, human_of, votes_of
from schemas.envelope import Out, Record
from schemas.events import (
    EngagementNoted,
    FeedbackNoted,
    FeedbackWithdrawn,
    NetworkNoted,
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
WEIGHTS_VERSION = "w2"  # the weights of w1; since w2 a person has one vote on a subject, however many judgements
REPORT_PENALTY = 0.25  # for each person who reports, up to 1
PROMPTS_MAX = 50_000  # a partition; of more, the oldest are closed and forgotten first
EARLY_MAX = 1024  # subjects of a prompt of which something is known before themselves
EARLY_COUNTS_MAX = 8  # counts kept of each of them
JUDGEMENTS_MAX = 4096  # a prompt; a rater's newer judgement replaces the older and needs no room
CLOSED_MAX = 50_000  # a partition: subjects remembered as closed, so that late feedback is told so


SHARED = {name: name for name in ("tweets", "answers", "root", "reply", "answer")}  # one string for all subjects


class Early(msgspec.Struct, array_like=True):
    """What came of a subject before itself."""

    counts: list[Counted] = msgspec.field(default_factory=list)
    network: float | None = None


class Noted(msgspec.Struct, array_like=True):
    """What must be kept of a SubjectNoted until it closes, the newest count for each age, the author's standing."""

    time_ms: int
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
    counts: list[Counted | None] = []  # by index of the age
    network: float | None = None


class Prompt(msgspec.Struct, array_like=True):
    """One prompt: its own words' place, its open subjects, the judgements on them."""

    text_hash: str | None = None
    where: tuple[str, int, int] | None = None
    train: bool = False
    subjects: dict[str, Noted] = msgspec.field(default_factory=dict)
    early: dict[str, Early] = msgspec.field(default_factory=dict)
    judgements: dict[str, Judgement] = msgspec.field(default_factory=dict)
    retracted: dict[str, bool] = msgspec.field(default_factory=dict)  # a retraction may come before its judgement


class State(msgspec.Struct):
    """What one partition remembers. `due` is a heap of (log time, subject, index of the age), `stale` of them without a
    subject (at most: some were passed over since)."""

    prompts: dict[str, Prompt] = msgspec.field(default_factory=dict)
    due: list[tuple[int, str, int]] = msgspec.field(default_factory=list)
    closed: dict[str, bool] = msgspec.field(default_factory=dict)
    gone: dict[str, bool] = msgspec.field(default_factory=dict)
    stale: int = 0


def step(chunk: Sequence[Record], state: State, ages_ms: tuple[int, ...]) -> tuple[list[Out], State]:
    """Fold a chunk of `signals`; `ages_ms` are the closing ages, ascending, the last one final."""
    outs: list[Out] = []
    for record in chunk:
        outs.extend(Out(record, one) for one in _on(record, record.event, state, ages_ms))
        if len(state.prompts) > PROMPTS_MAX:
            outs.extend(Out(record, one) for one in _make_room(record.time_ms, state, ages_ms))
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
        _count(record.time_ms, event, state, ages_ms)
    elif isinstance(event, NetworkNoted):
        known = _known(event.prompt, event.subject, state)
        if known is not None:
            known.network = event.score
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
    return known


def _place(where: Where) -> tuple[str, int, int]:
    return SHARED.get(where.topic, where.topic), where.partition, where.offset


def _note(time_ms: int, event: SubjectNoted, state: State, ages_ms: tuple[int, ...]) -> None:
    if event.subject in state.gone or event.subject in state.closed:
        return
    prompt = _prompt(state, event.prompt)
    before = prompt.subjects.get(event.subject)
    early = prompt.early.pop(event.subject, None) or Early()
    prompt.subjects[event.subject] = noted = Noted(
        before.time_ms if before else time_ms,
        SHARED.get(event.kind, event.kind),
        event.version,
        event.text_hash,
        _place(event.where),
        event.features.chars,
        event.rights.train,
        event.rights.policy,
        event.temporal,
        event.review,
        event.features.quality,
        before.counts if before else [None] * len(ages_ms),
        before.network if before else early.network,
    )
    for counted in early.counts:
        _sort_in(noted, counted, ages_ms)
    if before is None:
        heapq.heappush(state.due, (time_ms + ages_ms[0], event.subject, 0))


def _known(name: str, subject: str, state: State) -> Noted | Early | None:
    """Give what is known of a subject, or room for what comes before it; None where it does not matter any more."""
    if subject in state.closed or subject in state.gone:
        return None
    prompt = _prompt(state, name)
    noted = prompt.subjects.get(subject)
    if noted is not None:
        return noted
    if subject not in prompt.early:
        remember(prompt.early, subject, Early(), EARLY_MAX)
    return prompt.early[subject]


def _count(time_ms: int, event: EngagementNoted, state: State, ages_ms: tuple[int, ...]) -> None:
    counted = Counted(time_ms, event.likes, event.replies, event.reposts, event.quotes, event.views, event.age_ms)
    known = _known(event.prompt, event.subject, state)
    if isinstance(known, Noted):
        _sort_in(known, counted, ages_ms)
    elif known is not None:
        known.counts = [*known.counts, counted][-EARLY_COUNTS_MAX:]


def _sort_in(noted: Noted, counted: Counted, ages_ms: tuple[int, ...]) -> None:
    """Put a count where it may be used: at the first age not reached before it, if there is one; the newest stays."""
    index = bisect.bisect_left(ages_ms, counted.time_ms - noted.time_ms)
    if index < len(ages_ms):
        before = noted.counts[index]
        if before is None or before.time_ms <= counted.time_ms:
            noted.counts[index] = counted


def _judge(record: Record, event: FeedbackNoted, state: State) -> Iterable[Event]:
    if event.subject in state.closed:
        return [_refused(record, event, "too-late", "the subject had been closed for good")]
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
    remember(state.gone, event.subject, True, CLOSED_MAX)
    state.closed.pop(event.subject, None)
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
        if not _is_due((due_ms, subject, index), state, ages_ms):  # forgotten, perhaps back
            continue
        name = subject.partition("/")[0]
        prompt = state.prompts[name]
        noted = prompt.subjects[subject]
        final = index == len(ages_ms) - 1
        said.append(_reward(name, subject, prompt, noted, ages_ms[index], index, final))
        if not final:
            heapq.heappush(state.due, (due_ms - ages_ms[index] + ages_ms[index + 1], subject, index + 1))
            continue
        remember(state.closed, subject, True, CLOSED_MAX)
    for event in said:
        if event.final:
            _forget(state, event)
    return said


def _make_room(now_ms: int, state: State, ages_ms: tuple[int, ...]) -> list[RewardClosed]:
    """Close the oldest eighth of all prompts (agents/bounded.py says why so many) for good, at the age that they have.

    What people wait for gets another turn, up to half of all: a feed pushes its own posts out before our answers.
    """
    many = len(state.prompts) - PROMPTS_MAX + PROMPTS_MAX // 8
    goes: list[str] = []
    stays: list[str] = []
    for name, prompt in state.prompts.items():
        if len(goes) == many:
            break
        (stays if len(stays) < PROMPTS_MAX // 2 and _awaited(prompt) else goes).append(name)
    for name in stays:
        state.prompts[name] = state.prompts.pop(name)
    said = []
    for name in goes:
        prompt = state.prompts.pop(name)
        for subject, noted in prompt.subjects.items():
            age_ms = max(0, now_ms - noted.time_ms)
            index = min(bisect.bisect_left(ages_ms, age_ms), len(ages_ms) - 1)
            said.append(_reward(name, subject, prompt, noted, age_ms, index, final=True))
            remember(state.closed, subject, True, CLOSED_MAX)
        state.stale += len(prompt.subjects)
    if state.stale > PROMPTS_MAX:
        state.due = [one for one in state.due if _is_due(one, state, ages_ms)]
        heapq.heapify(state.due)
        state.stale = 0
    return said


def _awaited(prompt: Prompt) -> bool:
    return bool(prompt.subjects) and (
        bool(prompt.judgements) or any(one.kind == "answer" for one in prompt.subjects.values())
    )


def _is_due(one: tuple[int, str, int], state: State, ages_ms: tuple[int, ...]) -> bool:
    due_ms, subject, index = one
    prompt = state.prompts.get(subject.partition("/")[0])
    noted = prompt.subjects.get(subject) if prompt else None
    return noted is not None and due_ms == noted.time_ms + ages_ms[index]


def _forget(state: State, event: RewardClosed) -> None:
    """Drop a closed subject, and its judgements once no open subject is left that they compare it with."""
    prompt = state.prompts[event.prompt]
    prompt.subjects.pop(event.subject, None)
    if not prompt.subjects:
        prompt.judgements.clear()
        prompt.retracted.clear()
        prompt.early.clear()


def _reward(
    name: str, subject: str, prompt: Prompt, noted: Noted, age_ms: int, index: int, final: bool
) -> RewardClosed:
    votes, simulated, reporters = votes_of(subject, prompt.judgements.values()) if prompt.judgements else ({}, 0, 0)
    counted = next((one for one in noted.counts[index::-1] if one is not None), None)
    parts = {
        "human": human_of(votes.values()) if votes else None,
        "review": noted.review,
        "engagement": engagement_of(counted) if counted else None,
        "network": noted.network,
        "temporal": noted.temporal,
        "content": noted.quality,
    }
    present = {part: WEIGHTS[part] for part, value in parts.items() if value is not None}
    whole = sum(present.values())
    weights = {part: round(weight / whole, 6) for part, weight in present.items()}
    penalty = min(1.0, REPORT_PENALTY * reporters)
    total = sum([weight * (parts[part] or 0.0) for part, weight in weights.items()]) - penalty
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
        judgements=sum(map(len, votes.values())),
        simulated=simulated,
        engagement_age_ms=_age(noted, counted) if counted else None,
        version=noted.version,
        text_hash=noted.text_hash,
        where=(where := _where(noted.where)),
        chars=noted.chars,
        prompt_hash=prompt.text_hash,
        prompt_where=where if prompt.where == noted.where else _where(prompt.where) if prompt.where else None,
        trainable=noted.train and (prompt.train or prompt.text_hash is None),
        policy=noted.policy,
    )


def _where(place: tuple[str, int, int]) -> Where:
    return Where(topic=place[0], partition=place[1], offset=place[2])


def _age(noted: Noted, counted: Counted) -> int:
    """Give the subject's age in ms when they were counted: as the source says, else since it was noted."""
    return counted.age_ms if counted.age_ms is not None else max(0, counted.time_ms - noted.time_ms)
