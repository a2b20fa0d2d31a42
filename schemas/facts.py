"""Facts: the values that events are made of; frozen, closed, strict, and none of them an event by itself."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x20/]+$")]
"""A name of ours: no space, no control character, no slash (subjects join two ids with a slash)."""
Subject = Annotated[str, Field(min_length=3, max_length=513, pattern=r"^[^\x00-\x20/]+/[^\x00-\x20/]+$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
EventId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
MS_MAX = 253_402_300_799_999  # the end of the year 9999
Ms = Annotated[int, Field(ge=0, le=MS_MAX)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Score = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=100_000)]
Short = Annotated[str, Field(max_length=512)]
Lang = Annotated[str, Field(max_length=35)]  # BCP 47, as far as sources keep to it
MediaKind = Literal["photo", "video", "gif", "audio", "other"]
Wave = Annotated[float, Field(ge=-1, le=1)]
SEALED_CHARS_MAX = 900_000  # so that the rest of the record has room under RECORD_BYTES_MAX
Sealed = Annotated[str, Field(pattern=r"^v1\.[A-Za-z0-9_-]+$", max_length=SEALED_CHARS_MAX)]
"""Content as it lies in the log: AES-GCM under its post's key, or its owner's (schemas/seal.py)."""


class Fact(BaseModel):
    """A frozen value; strict, so that "1" is never taken for 1, and closed, so that a typing error is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Event(Fact):
    """One thing that happened. VERSION counts breaking changes of its shape; readers keep reading every older one."""

    VERSION: ClassVar[int] = 1


class Rights(Fact):
    """What the source's policy allows, decided once, at ingest."""

    index: bool
    train: bool
    show: bool
    policy: Short


class Where(Fact):
    """The place of a record in the log."""

    topic: Short
    partition: Annotated[int, Field(ge=0, le=2**31 - 1)]
    offset: Count


class AuthorFacts(Fact):
    """What the payload said of the author when it was seen."""

    created_ms: Ms | None = None
    followers: Count | None = None
    following: Count | None = None
    posts: Count | None = None
    listed: Count | None = None
    verified: bool | None = None
    bot: bool | None = None
    utc_offset_s: Annotated[int, Field(ge=-50_400, le=50_400)] | None = None  # the author's zone, where known


class PostContent(Fact):
    """The words of a post and the names in it: personal, so sealed."""

    text: Text
    username: Short | None = None
    name: Short | None = None
    hashtags: tuple[Short, ...] = ()
    cashtags: tuple[Short, ...] = ()
    links: tuple[Annotated[str, Field(max_length=4096)], ...] = ()


class Turn(Fact):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class AnswerContent(Fact):
    """The words of a prompt and of what was said to it: personal to whoever asked, so sealed."""

    messages: tuple[Turn, ...]
    texts: tuple[Text, ...]


class RefusedContent(Fact):
    """The first bytes of what could not be used, base64, capped."""

    head: Annotated[str, Field(max_length=4096)]


class Features(Fact):
    """What a text says of itself, counted; no words."""

    chars: Count
    words: Count
    hashtags: Count
    mentions: Count
    links: Count
    media: Count
    caps_share: Annotated[float, Field(ge=0, le=1)]
    distinct_share: Annotated[float, Field(ge=0, le=1)]
    cashtags: Count | None = None
    emoji: Count | None = None
    sentences: Count | None = None
    long_words: Count | None = None  # of more than six letters
    lang: Lang | None = None  # found in the text, where the source says none
    hour: Annotated[int, Field(ge=0, le=23)] | None = None
    weekday: Annotated[int, Field(ge=0, le=6)] | None = None
    quality: Score


class Moment(Fact):
    """Where a time lies on the cycles of a day, a week and a year: the last hour of a day is next to the first."""

    hour_sin: Wave
    hour_cos: Wave
    weekday_sin: Wave
    weekday_cos: Wave
    season_sin: Wave
    season_cos: Wave


class Standing(Fact):
    """What could be told of an author when one post of theirs was seen."""

    age_days: Number | None = None
    followers: Count | None = None
    followers_ratio: Number | None = None  # followers / (followers + following)
    posts_a_day: Number | None = None  # over the account's life
    listed: Count | None = None
    verified: bool | None = None
    bot: bool | None = None


class Rates(Fact):
    """Reactions in proportion: to views, to followers, to the time they had."""

    a_view: Number | None = None
    a_follower: Number | None = None
    an_hour: Number | None = None


class Influence(Fact):
    """An author's place in the graph of interactions."""

    author: Id
    influence: Number  # PageRank times the number of authors: 1 is the mean
    percentile: Annotated[float, Field(ge=0, le=1)]
    community: Count
    acted_on_by: Count  # distinct authors who acted towards this one


class Components(Fact):
    """The reward as a vector, each in -1..1; None says that there was nothing to measure it by."""

    human: Score | None = None
    review: Score | None = None
    engagement: Score | None = None
    network: Score | None = None
    temporal: Score | None = None
    content: Score | None = None


class Measured(Fact):
    """An evaluation: plain numbers, so that whoever releases only compares."""

    pairs: Count
    accuracy: Annotated[float, Field(ge=0, le=1)]  # share of held-back pairs ranked as the reward ranks them
    margin: Number  # mean log-ratio against the base, nats
    safety_margin: Number  # mean over the safety list of logp(safe answer) - logp(unsafe opening), nats
    safety_preferred: Annotated[float, Field(ge=0, le=1)]
    neutral_nats: Number  # nats a token on fixed neutral texts
    empty_rate: Annotated[float, Field(ge=0, le=1)]
    repetition_rate: Annotated[float, Field(ge=0, le=1)]
    mean_tokens: Number


class PairRef(Fact):
    """One pair of a batch: its id, its leaf under the root, its offset in `preferences`."""

    pair: EventId
    leaf: Hash
    offset: Count


class Side(Fact):
    """One side of a pair: whose words, where they lie, what they were worth."""

    subject: Subject
    text_hash: Hash
    where: Where
    reward: Number
    chars: Count


class Words(Fact):
    """What is known of a text without the text: its hash and its counts. Made at the edge, where the words come in."""

    text_hash: Hash
    features: Features
