"""Events: everything that can be said, in the past tense, frozen and dumb.

Text lives only in a `content`, sealed for its owner; all else is ids, hashes and numbers. No event holds the time it
was written: that is the record's timestamp, so that an id never stands over two payloads.
"""

from typing import Annotated, Literal

from pydantic import Field

from schemas.facts import (
    AnswerContent,
    Components,
    Count,
    Event,
    Features,
    Hash,
    Id,
    Influence,
    Lang,
    MediaKind,
    Moment,
    Ms,
    Number,
    Rates,
    RefusedContent,
    Rights,
    Score,
    Sealed,
    Short,
    Standing,
    Subject,
    Where,
    Words,
)


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


class PostDescribed(Event):
    """What was extracted from a post, in numbers; no words."""

    post: Id
    owner: Id
    source: Short
    kind: Literal["root", "reply", "repost"]
    quote: bool
    lang: Lang | None = None
    age_ms: Ms | None = None  # when it was seen
    features: Features | None = None  # None for a repost
    media_kinds: tuple[MediaKind, ...] = ()
    utc: Moment | None = None
    local: Moment | None = None  # in the author's zone, where known
    author: Standing | None = None
    rights: Rights


class EngagementDescribed(Event):
    """Reactions to a post as counted at an age, and in proportion."""

    post: Id
    owner: Id
    source: Short
    age_ms: Ms | None = None
    likes: Count | None = None
    replies: Count | None = None
    reposts: Count | None = None
    quotes: Count | None = None
    bookmarks: Count | None = None
    views: Count | None = None
    rates: Rates


class InteractionObserved(Event):
    """One author acted towards another; `post` names the act: a post, or a like by its own name."""

    kind: Literal["reply", "quote", "repost", "mention", "like", "follow", "block"]
    source: Short
    actor: Id
    target: Id | None = None  # unknown where the payload names only a post
    post: Id
    at_ms: Ms | None = None
    target_post: Id | None = None


class InteractionWithdrawn(Event):
    """The act no longer counts: its post was deleted, or it was undone."""

    post: Id
    actor: Id


class PostNoted(Event):
    """An author posted: a node of the graph, and where the signals about this post belong."""

    post: Id
    prompt: Id
    owner: Id
    source: Short
    at_ms: Ms | None = None


class AuthorWithdrawn(Event):
    """An author is to be forgotten: every edge from them and to them goes."""

    owner: Id
    reason: Short


class GraphMeasured(Event):
    """The interaction graph as it was at a moment of log time, and who stood out."""

    at_ms: Ms
    authors: Count
    edges: Count
    communities: Count
    modularity: Number
    top: tuple[Influence, ...] = ()


class PostPlaced(Event):
    """This post stands under this prompt; its source gives no counts, so the reactions to it are counted."""

    post: Id
    prompt: Id
    source: Short
    claimed_ms: Ms | None = None


class ReactionNoted(Event):
    """One reaction to a post, by its name, so that it counts once and can be undone."""

    post: Id
    act: Id
    actor: Id
    kind: Literal["like", "reply", "repost", "quote"]


class ReactionWithdrawn(Event):
    """The reaction no longer counts."""

    post: Id
    act: Id


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
    bookmarks: Count = 0
    views: Count | None = None
    age_ms: Ms | None = None  # of the post when they were counted


class NetworkNoted(Event):
    """How the author of a subject stands in the graph: -1 the least, 1 the most influential."""

    prompt: Id
    subject: Subject
    score: Score


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
    engagement_age_ms: Ms | None = None  # how old the subject was when the reactions used were counted
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


class PostForgotten(Event):
    """Receipt: the post's key was destroyed before this was written."""

    owner: Id
    post: Id
    requested: Where


class CopyErased(Event):
    """Receipt: a store beside the log no longer holds anything of a post, or of an author."""

    store: Id
    owner: Id
    post: Id | None = None
    requested: Where
    rows: Count  # that it held
