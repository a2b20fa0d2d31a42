"""Metadata: tweets -> what was posted, by whom towards whom, how people reacted; ids and numbers, no words.

The first to read what sources wrote. It knows an author's rhythm, which post answers which, and which posts are gone:
a delete that comes before its post waits for it. Keyed by author, so one author's events are seen in order. Taking
back needs little memory: who acted and the act's name are in the retraction itself.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from agents.bounded import remember
from agents.describing import age_ms, dated, engagement_described, post_described
from agents.rhythm import Author, moved, score
from schemas.envelope import Out, Record
from schemas.events import (
    AuthorForgotten,
    AuthorWithdrawn,
    EngagementNoted,
    InteractionObserved,
    InteractionWithdrawn,
    PostForgotten,
    PostNoted,
    PostPlaced,
    PromptNoted,
    ReactionNoted,
    ReactionWithdrawn,
    RecordRefused,
    SubjectNoted,
    SubjectWithdrawn,
)
from schemas.facts import Event, Where
from schemas.ids import digest, subject_id
from schemas.posts import (
    AuthorErased,
    AuthorHidden,
    AuthorShown,
    EngagementObserved,
    IntentDeclared,
    PostDeleted,
    PostEdited,
    PostObserved,
    ReactionObserved,
    ReactionRetracted,
)

Kind = Literal["reply", "quote", "repost", "mention"]
COUNTED_HERE = frozenset({"bluesky"})  # Jetstream gives single likes and reposts, and never a count
AUTHORS_MAX = 100_000  # a partition; the longest unseen is forgotten first
POSTS_MAX = 100_000  # a partition; of an older post a deletion still destroys the key, see `_delete`
GONE_MAX = 50_000  # a partition: deletions, and as many retractions, that wait for what they are about
ACTS_MAX = 50_000  # a partition: acts of sources without counts; an older one that is undone stays counted
NAMES_MAX = 16  # ids of one post beside its first; X allows five edits
LETTERS = "refused:"  # the owners of dead letters (streams/fold.py) begin so, and no author
FUTURE_MS_MAX = 86_400_000  # a post dated more than a day after it arrived is set aside


class Known(msgspec.Struct, array_like=True, gc=False):
    """A post we have seen: its author, the prompt that it answers (itself if none), the ids of later revisions."""

    owner: str
    prompt: str
    revision: int = 1  # the newest seen
    names: tuple[str, ...] = ()


class Act(msgspec.Struct, array_like=True, gc=False):
    """Who acted, and on which posts it is counted."""

    actor: str
    posts: tuple[str, ...]


class State(msgspec.Struct):
    """What one partition remembers."""

    authors: dict[str, Author] = msgspec.field(default_factory=dict)
    posts: dict[str, Known] = msgspec.field(default_factory=dict)
    named: dict[str, str] = msgspec.field(default_factory=dict)  # a later revision's id -> the post
    acts: dict[str, Act] = msgspec.field(default_factory=dict)
    deleted: dict[str, bool] = msgspec.field(default_factory=dict)
    retracted: dict[str, bool] = msgspec.field(default_factory=dict)
    hidden: dict[str, bool] = msgspec.field(default_factory=dict)
    erased: dict[str, bool] = msgspec.field(default_factory=dict)


def step(chunk: Sequence[Record], state: State) -> tuple[list[Out], State]:
    """Fold a chunk of `tweets`."""
    outs: list[Out] = []
    for record in chunk:
        outs.extend(Out(record, one) for one in ON[type(record.event)](record, record.event, state))
    return outs, state


def _used(owner: str, state: State) -> bool:
    return owner not in state.erased and owner not in state.hidden


# ---- posts ----------------------------------------------------------------------------------------------------------


def _post(record: Record, post: PostObserved, state: State) -> Iterable[Event]:
    if post.post in state.deleted or post.owner in state.erased:
        return []
    if post.named is not None and post.named in state.deleted:  # one version was deleted, so all of them were
        return _delete(record, post.post, post.owner, state)
    if post.named is not None and post.named != post.post:  # of a hidden author too: it may be what is deleted
        remember(state.named, post.named, post.post, POSTS_MAX)
    if post.owner in state.hidden:
        return []
    if post.claimed_ms is not None and post.claimed_ms > record.time_ms + FUTURE_MS_MAX:
        return [_refused(record, post, "future-dated", f"claims {post.claimed_ms}, arrived {record.time_ms}")]
    at_ms = dated(post.claimed_ms, record.time_ms)
    said = [*_interactions(post, at_ms), *_counted(post, state)]
    author = _author(post, state)
    if post.reposted is None and post.words is not None:
        said += _subject(record, post, author, at_ms, state)
    return [*said, post_described(post, record.time_ms)]


def _subject(record: Record, post: PostObserved, author: Author, at_ms: int | None, state: State) -> list[Event]:
    """Note a post as something to answer, under every id it has, and as something to judge."""
    assert post.words is not None
    text_hash = post.words.text_hash
    prompt = post.parent or post.post
    known = state.posts.get(post.post)
    names = known.names if known else ()
    if post.named is not None and post.named != post.post and post.named not in names:
        names = (*names, post.named)[-NAMES_MAX:]
    late = known is not None and post.revision < known.revision
    revision = known.revision if known and late else post.revision
    temporal = score(author) if known else moved(author, post.claimed_ms)
    remember(state.posts, post.post, Known(post.owner, prompt, revision, names), POSTS_MAX)
    where = _place(record)
    # Words that were replaced count for those who answered this very version, and for nothing else.
    answered = (post.post, *names) if not late else (post.named,) if post.named in names else ()
    said: list[Event] = [
        PromptNoted(prompt=name, text_hash=text_hash, where=where, rights=post.rights) for name in answered
    ]
    if late:
        return said
    said.append(PostNoted(post=post.post, prompt=prompt, owner=post.owner, source=post.source, at_ms=at_ms))
    if post.source in COUNTED_HERE:
        said.append(PostPlaced(post=post.post, prompt=prompt, source=post.source, claimed_ms=at_ms))
    said.append(
        SubjectNoted(
            prompt=prompt,
            subject=subject_id(prompt, post.post),
            kind="reply" if post.parent else "root",
            owner=post.owner,
            source=post.source,
            text_hash=text_hash,
            where=where,
            rights=post.rights,
            features=post.words.features,
            temporal=temporal,
        )
    )
    return said


def _interactions(post: PostObserved, at_ms: int | None) -> list[Event]:
    towards: list[tuple[Kind, str | None, str | None]] = []
    if post.parent is not None:
        towards.append(("reply", post.reply_to, post.parent))
    if post.quoted is not None:
        towards.append(("quote", post.quoted_author, post.quoted))
    if post.reposted is not None:
        towards.append(("repost", post.reposted_author, post.reposted))
    elif post.mentions:
        towards += [("mention", who, None) for who in post.mentions if who not in (post.owner, post.reply_to)]
    return [
        InteractionObserved(
            kind=kind,
            source=post.source,
            actor=post.owner,
            target=target,
            post=post.post,
            at_ms=at_ms,
            target_post=target_post,
        )
        for kind, target, target_post in towards
    ]


def _counted(post: PostObserved, state: State) -> Iterable[Event]:
    """Count a reply, a quote or a repost with the post that it is about, where the source does not."""
    if post.source not in COUNTED_HERE:
        return ()
    about: dict[str, Literal["reply", "quote", "repost"]] = {}
    if post.quoted is not None:
        about[post.quoted] = "quote"
    if post.parent is not None:  # a reply that quotes what it answers is one reaction
        about[post.parent] = "reply"
    if post.reposted is not None:
        about[post.reposted] = "repost"
    if about:
        remember(state.acts, post.post, Act(post.owner, tuple(about)), ACTS_MAX)
    return [ReactionNoted(post=on, act=post.post, actor=post.owner, kind=kind) for on, kind in about.items()]


def _author(post: PostObserved, state: State) -> Author:
    """Give what is known of a post's author, as the one seen last, and remember their followers."""
    known = state.authors.pop(post.owner, None) or Author()
    if post.author is not None and post.author.followers is not None:
        known.followers = post.author.followers
    remember(state.authors, post.owner, known, AUTHORS_MAX)
    return known


# ---- reactions ------------------------------------------------------------------------------------------------------


def _engagement(record: Record, seen: EngagementObserved, state: State) -> Iterable[Event]:
    if seen.post in state.deleted or not _used(seen.owner, state):
        return []
    prompt = seen.parent or seen.post
    author = state.authors.get(seen.owner)
    noted = EngagementNoted(
        prompt=prompt,
        subject=subject_id(prompt, seen.post),
        likes=seen.likes or 0,
        replies=seen.replies or 0,
        reposts=seen.reposts or 0,
        quotes=seen.quotes or 0,
        bookmarks=seen.bookmarks or 0,
        views=seen.views,
        age_ms=age_ms(seen.claimed_ms, record.time_ms),
    )
    return [noted, engagement_described(seen, author.followers if author else None, record.time_ms)]


def _reaction(record: Record, seen: ReactionObserved, state: State) -> Iterable[Event]:
    if seen.act in state.retracted or not _used(seen.owner, state):
        return []
    said: list[Event] = [
        InteractionObserved(
            kind=seen.kind,
            source=seen.source,
            actor=seen.owner,
            target=seen.target,
            post=seen.act,
            at_ms=dated(seen.claimed_ms, record.time_ms),
            target_post=seen.post,
        )
    ]
    if seen.source in COUNTED_HERE and seen.post is not None and (seen.kind == "like" or seen.kind == "repost"):
        remember(state.acts, seen.act, Act(seen.owner, (seen.post,)), ACTS_MAX)
        said.append(ReactionNoted(post=seen.post, act=seen.act, actor=seen.owner, kind=seen.kind))
    return said


def _retracted(record: Record, undone: ReactionRetracted, state: State) -> Iterable[Event]:
    if undone.act in state.retracted:
        return []
    remember(state.retracted, undone.act, True, GONE_MAX)
    return [InteractionWithdrawn(post=undone.act, actor=undone.owner), *_uncount(undone.act, state)]


def _uncount(act: str, state: State) -> list[Event]:
    known = state.acts.pop(act, None)
    return [ReactionWithdrawn(post=on, act=act) for on in known.posts] if known else []


# ---- what goes ------------------------------------------------------------------------------------------------------


def _deleted(record: Record, gone: PostDeleted, state: State) -> Iterable[Event]:
    forgotten = PostForgotten(owner=gone.owner, post=gone.post, requested=_place(record))
    post = state.named.get(gone.post, gone.post)
    if gone.post in state.deleted or post in state.deleted:
        return [forgotten]
    remember(state.deleted, gone.post, True, GONE_MAX)
    return [*_delete(record, post, gone.owner, state), *([forgotten] if post != gone.post else [])]


def _delete(record: Record, post: str, owner: str, state: State) -> list[Event]:
    """Take a post back under every id it had; the words of one version do not outlive the others.

    Of a post that is not known (any more), only its key goes: saying more would fill the memory of the steps after this
    one with posts that were never here. What it is trained in is found again in the log (streams/withheld.py).
    """
    remember(state.deleted, post, True, GONE_MAX)
    known = state.posts.pop(post, None)
    withdrawn = _withdrawn(post, known, state, "post-deleted") if known else []
    forgotten = PostForgotten(owner=owner, post=post, requested=_place(record))
    return [*withdrawn, InteractionWithdrawn(post=post, actor=owner), *_uncount(post, state), forgotten]


def _hidden(record: Record, hidden: AuthorHidden, state: State) -> Iterable[Event]:
    if not _used(hidden.owner, state):
        return []
    remember(state.hidden, hidden.owner, True, AUTHORS_MAX)
    return _all_withdrawn(hidden.owner, state, "author-hidden")


def _shown(record: Record, shown: AuthorShown, state: State) -> Iterable[Event]:
    state.hidden.pop(shown.owner, None)
    return []


def _intent(record: Record, intent: IntentDeclared, state: State) -> Iterable[Event]:
    return _subjects_withdrawn(intent.owner, state, "intent-declared") if intent.train is False else []


def _erased(record: Record, gone: AuthorErased, state: State) -> Iterable[Event]:
    if gone.owner.startswith(LETTERS):
        return [_refused(record, gone, "no-author", "dead letters are sealed under this name")]
    remember(state.erased, gone.owner, True, AUTHORS_MAX)
    state.authors.pop(gone.owner, None)
    return [
        *_all_withdrawn(gone.owner, state, "author-erased"),
        AuthorForgotten(owner=gone.owner, requested=_place(record)),
    ]


def _all_withdrawn(owner: str, state: State, reason: str) -> list[Event]:
    """Take back an author's posts, acts and place in the graph."""
    said = _subjects_withdrawn(owner, state, reason)
    for act in [name for name, known in state.acts.items() if known.actor == owner]:
        said.extend(_uncount(act, state))
    return [*said, AuthorWithdrawn(owner=owner, reason=reason)]


def _subjects_withdrawn(owner: str, state: State, reason: str) -> list[Event]:
    said: list[Event] = []
    for post in [post for post, known in state.posts.items() if known.owner == owner]:
        said.extend(_withdrawn(post, state.posts.pop(post), state, reason))
    return said


def _withdrawn(post: str, known: Known, state: State, reason: str) -> list[Event]:
    """Take a post back both as something said and, for those who answered it, as something to answer.

    Only what is deleted needs the ids of its versions no more: what is hidden may be deleted later, by any of them.
    """
    said: list[Event] = []
    if known.prompt != post:
        said.append(SubjectWithdrawn(prompt=known.prompt, subject=subject_id(known.prompt, post), reason=reason))
    for name in (post, *known.names):
        if reason in ("post-deleted", "author-erased"):
            state.named.pop(name, None)
        said.append(SubjectWithdrawn(prompt=name, subject=subject_id(name, name), reason=reason))
    return said


def _place(record: Record) -> Where:
    return Where(topic=record.topic, partition=record.partition, offset=record.offset)


def _refused(record: Record, event: PostObserved | AuthorErased, reason: str, detail: str) -> RecordRefused:
    return RecordRefused(
        owner=event.owner,
        reason=reason,
        detail=detail,
        stage="metadata",
        place=f"{record.topic}/{record.partition}/{record.offset}",
        size=0,
        sha256=event.raw_sha256 if isinstance(event, PostObserved) else digest(event.owner) * 2,
    )


ON: dict[type[Event], Callable[[Record, Any, State], Iterable[Event]]] = {
    PostObserved: _post,
    PostEdited: _post,
    EngagementObserved: _engagement,
    ReactionObserved: _reaction,
    ReactionRetracted: _retracted,
    PostDeleted: _deleted,
    IntentDeclared: _intent,
    AuthorHidden: _hidden,
    AuthorShown: _shown,
    AuthorErased: _erased,
}
