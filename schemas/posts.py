"""Posts: what sources say happened, in their own words: posts, reactions, people coming and going.

No event holds the time at which it was taken in: that is the record's timestamp. `claimed_ms` is what the source says.
"""

from typing import Annotated, Literal

from pydantic import Field

from schemas.facts import (
    AuthorFacts,
    Count,
    Event,
    Hash,
    Id,
    Lang,
    MediaKind,
    Ms,
    PostContent,
    Rights,
    Sealed,
    Short,
    Words,
)


class PostObserved(Event):
    """A post as a source gave it."""

    post: Id
    owner: Id  # the author
    source: Short
    revision: Annotated[int, Field(ge=1, le=1000)] = 1
    named: Id | None = None  # this revision's own id, where the source gives it another than the first one's
    claimed_ms: Ms | None = None
    lang: Lang | None = None  # as the source says
    parent: Id | None = None
    quoted: Id | None = None
    quoted_author: Id | None = None
    reposted: Id | None = None
    reposted_author: Id | None = None
    conversation: Id | None = None
    reply_to: Id | None = None  # the author replied to
    mentions: tuple[Id, ...] = ()
    media: Count = 0
    media_kinds: tuple[MediaKind, ...] = ()  # where the source says
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
    claimed_ms: Ms | None = None  # when the post was made, so that the counts have an age
    likes: Count | None = None
    replies: Count | None = None
    reposts: Count | None = None
    quotes: Count | None = None
    bookmarks: Count | None = None
    views: Count | None = None
    rights: Rights


class ReactionObserved(Event):
    """One person's act that has no words: a like, a repost, a follow, a block. `act` names it, so it can be undone."""

    act: Id
    owner: Id  # who acted
    source: Short
    kind: Literal["like", "repost", "follow", "block"]
    target: Id | None = None  # the author acted towards
    post: Id | None = None  # the post acted towards
    claimed_ms: Ms | None = None
    rights: Rights


class ReactionRetracted(Event):
    """The act was undone."""

    act: Id
    owner: Id
    source: Short


class IntentDeclared(Event):
    """An author says what their posts may be used for; None where they say nothing."""

    owner: Id
    source: Short
    train: bool | None = None
    index: bool | None = None
    claimed_ms: Ms | None = None  # when it was declared


class AuthorHidden(Event):
    """The source hides the account (suspended, deactivated, protected): until shown again, nothing of it is used."""

    owner: Id
    source: Short
    reason: Short
    claimed_ms: Ms | None = None  # since when


class AuthorShown(Event):
    """The source shows the account again; what was withdrawn meanwhile stays withdrawn."""

    owner: Id
    source: Short
    claimed_ms: Ms | None = None  # since when


class AuthorErased(Event):
    """The source says that the account is gone: its key is destroyed and with it every word of it."""

    owner: Id
    source: Short
