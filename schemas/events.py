"""Events: everything that can be said, in the past tense, frozen and dumb.

Text lives only in a `content`, sealed for its owner; all else is ids, hashes and numbers. No event holds the time it
was written: that is the record's timestamp, so that an id never stands over two payloads.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.facts import (
    AnswerContent,
    AuthorFacts,
    Components,
    Count,
    EventId,
    Fact,
    Features,
    Hash,
    Id,
    Measured,
    Ms,
    Number,
    PairRef,
    PostContent,
    RefusedContent,
    Rights,
    Score,
    Sealed,
    Short,
    Side,
    Subject,
    Where,
    Words,
)


class Event(Fact):
    """One thing that happened. VERSION counts breaking changes of its shape; readers keep reading every older one."""

    VERSION: ClassVar[int] = 1


class PostObserved(Event):
    """A post as a source gave it."""

    post: Id
    owner: Id  # the author
    source: Short
    revision: Annotated[int, Field(ge=1, le=1000)] = 1
    claimed_ms: Ms | None = None
    lang: Annotated[str, Field(max_length=35)] | None = None
    parent: Id | None = None
    quoted: Id | None = None
    reposted: Id | None = None
    conversation: Id | None = None
    reply_to: Id | None = None  # the author replied to
    mentions: tuple[Id, ...] = ()
    media: Count = 0
    author: AuthorFacts | None = None
    raw_sha256: Hash
    rights: Rights
    words: Words | None = None  # None for a repost, whose words are another's
    content: PostContent | Sealed | None = None


class PostEdited(PostObserved):
    """A later revision of a post; `post` is the id of the first."""


class PostDeleted(Event):
    """The source says that the post is gone."""

    post: Id
    owner: Id
    source: Short


class EngagementObserved(Event):
    """How often people had reacted to a post when the source was asked."""

    post: Id
    owner: Id
    source: Short
    parent: Id | None = None
    likes: Count | None = None
    replies: Count | None = None
    reposts: Count | None = None
    quotes: Count | None = None
    views: Count | None = None
    rights: Rights


class AuthorErased(Event):
    """The source says that the account is gone: its key is destroyed and with it every word of it."""

    owner: Id
    source: Short


class FeedbackGiven(Event):
    """One person's judgement of one subject.

    thumb: value -1 or 1. stars: value 1 to 5. choice: `subject` was preferred to `other` (both under one prompt), or
    value 0 for a tie. correction: `other` is the subject that holds the better words. report: value 1.
    """

    feedback: Id
    subject: Subject
    rater: Id
    kind: Literal["thumb", "stars", "choice", "correction", "report"]
    value: Annotated[int, Field(ge=-1, le=5)] = 1
    other: Subject | None = None
    simulated: bool = False


class FeedbackRetracted(Event):
    """The person takes the judgement back."""

    feedback: Id
    subject: Subject
    rater: Id


class AnswerGiven(Event):
    """What the server said to a prompt: one item a candidate, by exactly one version."""

    prompt: Id
    owner: Id  # whoever asked
    items: Annotated[tuple[Id, ...], Field(min_length=1, max_length=16)]
    release: Count
    version: Hash
    seed: Count
    context: tuple[Id, ...] = ()
    rights: Rights
    prompt_hash: Hash
    words: tuple[Words, ...]  # one an item
    content: AnswerContent | Sealed | None = None


class InteractionObserved(Event):
    """One author acted towards another."""

    kind: Literal["reply", "quote", "repost", "mention"]
    source: Short
    actor: Id
    target: Id | None = None  # unknown where the payload names only a post
    post: Id
    at_ms: Ms | None = None
    target_post: Id | None = None


class PromptNoted(Event):
    """The words that a subject answers are in the log, here."""

    prompt: Id
    text_hash: Hash
    where: Where
    rights: Rights


class SubjectNoted(Event):
    """There is something to judge, its words are in the log, here."""

    prompt: Id
    subject: Subject
    kind: Literal["root", "reply", "answer"]
    owner: Id
    source: Short
    version: Hash | None = None  # the model that said it
    text_hash: Hash
    where: Where
    rights: Rights
    features: Features
    temporal: Score | None = None
    review: Score | None = None


class EngagementNoted(Event):
    """Reactions to a subject, as counted last."""

    prompt: Id
    subject: Subject
    likes: Count = 0
    replies: Count = 0
    reposts: Count = 0
    quotes: Count = 0
    views: Count | None = None


class FeedbackNoted(Event):
    """A judgement that is well-formed and new."""

    prompt: Id
    subject: Subject
    feedback: Id
    rater: Id
    kind: Literal["thumb", "stars", "choice", "correction", "report"]
    value: Annotated[int, Field(ge=-1, le=5)]
    other: Subject | None = None
    simulated: bool = False


class FeedbackWithdrawn(Event):
    """A judgement no longer counts."""

    prompt: Id
    subject: Subject
    feedback: Id
    rater: Id


class SubjectWithdrawn(Event):
    """The words of a subject may no longer be used."""

    prompt: Id
    subject: Subject
    reason: Short


class Ticked(Event):
    """Log time reached this moment; written into every topic whose agent waits for an age."""

    at_ms: Ms


class RewardClosed(Event):
    """What a subject was worth when it reached an age."""

    prompt: Id
    subject: Subject
    kind: Literal["root", "reply", "answer"]
    age_ms: Ms
    final: bool
    components: Components
    missing: tuple[Short, ...]
    weights: dict[Short, Number]  # as used: renormalised over what was present
    weights_version: Short
    penalty: Annotated[float, Field(ge=0, le=1)]  # reports; subtracted
    total: Annotated[float, Field(ge=-2, le=1)]
    judgements: Count
    simulated: Count
    version: Hash | None = None
    text_hash: Hash
    where: Where
    chars: Count
    prompt_hash: Hash | None = None
    prompt_where: Where | None = None
    trainable: bool
    policy: Short


class RewardWithdrawn(Event):
    """A subject's reward may no longer be used."""

    prompt: Id
    subject: Subject
    reason: Short


class PairFormed(Event):
    """Under one prompt, one text was worth more than another."""

    pair: EventId
    prompt: Id
    prompt_hash: Hash
    prompt_where: Where
    chosen: Side
    rejected: Side
    margin: Annotated[float, Field(gt=0, le=3)]
    weight: Annotated[float, Field(gt=0, le=1)]
    origin: Literal["feedback", "siblings"]
    simulated: bool
    policy: Short


class PairWithdrawn(Event):
    """A pair may no longer be used."""

    pair: EventId
    reason: Short


class BatchClosed(Event):
    """A micro-batch: what the next version learns from."""

    batch: EventId
    sequence: Count
    pairs: Annotated[tuple[PairRef, ...], Field(min_length=1, max_length=4096)]
    first_offset: Count
    last_offset: Count
    root: Hash
    closed_by: Literal["count", "age", "budget"]
    opened_ms: Ms
    closed_ms: Ms


class ModelTrained(Event):
    """A version exists, its files are in place and hashed, and this is what it was made of."""

    version: Hash  # the adapter's sha256, or the base's for version 0
    base: Hash
    base_name: Short
    adapter: Hash | None = None
    batches: tuple[EventId, ...] = ()
    root: Hash | None = None  # over the batches' roots, in order
    dataset_sha256: Hash | None = None
    first_offset: Count | None = None
    last_offset: Count | None = None
    trained: Count = 0
    held_back: Count = 0
    withheld: Count = 0  # pairs whose words were gone
    settings: dict[str, str | int | Number | bool] = Field(default={})
    seed: Count = 0
    code: Short = ""
    losses: tuple[Number, ...] = ()
    measured: Measured | None = None
    baseline: Measured | None = None  # the base on the same held-back pairs


class ReleaseCommanded(Event):
    """An operator asks for a release, a roll-back or a retraction."""

    command: Literal["release", "roll-back", "retract"]
    version: Hash
    by: Short
    reason: Short


class ModelReleased(Event):
    """A version may answer people from now on."""

    release: Count
    version: Hash
    base: Hash
    base_name: Short
    adapter: Hash | None = None
    root: Hash | None = None
    notes: tuple[Short, ...] = ()


class ModelRefused(Event):
    """A version was kept back, and why."""

    version: Hash
    reasons: Annotated[tuple[Short, ...], Field(min_length=1)]


class ModelRolledBack(Event):
    """An earlier release answers again."""

    release: Count
    version: Hash
    reason: Short


class ModelRetracted(Event):
    """A version must not be used any more by anyone."""

    version: Hash
    reason: Short


class ReleasePointed(Event):
    """Under this alias, run this release now. Compacted: the last one of an alias is the truth."""

    alias: Id
    release: Count
    version: Hash
    base: Hash
    base_name: Short
    adapter: Hash | None = None


class RecordRefused(Event):
    """Something could not be used: why, where it stood, its first bytes (sealed: they may hold words)."""

    owner: Id
    reason: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{2,40}$")]
    detail: Short
    stage: Short
    place: Short  # topic/partition/offset, or file:line
    size: Count
    sha256: Hash
    content: RefusedContent | Sealed | None = None


class AlertRaised(Event):
    """A person should look."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{2,40}$")]
    stage: Short
    detail: Short


class AuthorForgotten(Event):
    """Receipt: the author's key was destroyed before this was written."""

    owner: Id
    requested: Where
