"""Plan: a chunk of `tweets` -> which posts to encode, which rows to forget, who asked for it; nothing is done here.

A deletion holds before and after its post; an erased author never comes back; a hidden one is used again only for what
is said after they were shown. Of several records of one post the later revision stays, or the later record of one. A
source may delete a post under the id of any of its revisions: one version was deleted, so all of them were.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agents.metadata import FUTURE_MS_MAX
from schemas import seal
from schemas.envelope import Record, Refused
from schemas.facts import PostContent
from schemas.ids import text_hash
from schemas.posts import AuthorErased, AuthorHidden, AuthorShown, IntentDeclared, PostDeleted, PostObserved
from streams.vector_ledger import Request
from streams.vectors import Row


class Gone(Protocol):
    """Who and what may not come back (streams/vector_ledger.py)."""

    def post_is_gone(self, post: str) -> bool:
        """Say whether the post was deleted, or a revision of that id."""

    def post_of(self, revision: str) -> str | None:
        """Give the post that a revision's own id stands for, or None."""

    def owner_is_gone(self, owner: str) -> str | None:
        """Say "erased" or "hidden" of an author, or None."""


@dataclass
class Plan:
    """What follows from one chunk: first rows are forgotten, then texts are encoded and written."""

    texts: dict[str, tuple[Row, str]] = field(default_factory=dict)  # post -> its row and its words
    requests: list[Request] = field(default_factory=list)
    withdrawn: set[str] = field(default_factory=set)  # posts that may not be indexed any more
    deleted: set[str] = field(default_factory=set)
    revisions: dict[str, str] = field(default_factory=dict)  # a revision's own id -> its post
    owners: dict[str, bool | None] = field(default_factory=dict)  # True erased, False hidden, None shown again
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> posts


def plan(records: Sequence[Record], keys: seal.Keys, gone: Gone) -> Plan:
    """Plan a chunk; records of one partition stand in their order."""
    made = Plan()
    for record in records:
        event = record.event
        if isinstance(event, PostObserved):  # and PostEdited
            if event.named is not None:
                made.revisions[event.named] = event.post
            reason = _post(made, record, event, keys, gone)
            if reason:
                made.skipped[reason] += 1
        elif isinstance(event, PostDeleted):
            _delete(made, event.post)
            post = made.revisions.get(event.post) or gone.post_of(event.post)
            if post is not None:
                made.revisions[event.post] = post
                _delete(made, post)
            made.requests.append(Request(record.id, event.owner, event.post, record.partition, record.offset))
        elif isinstance(event, AuthorErased | AuthorHidden):
            made.owners[event.owner] = isinstance(event, AuthorErased) or made.owners.get(event.owner) is True
            _author(made, record, event.owner)
        elif isinstance(event, AuthorShown):
            if made.owners.get(event.owner) is not True:
                made.owners[event.owner] = None
        elif isinstance(event, IntentDeclared) and event.index is False:
            _author(made, record, event.owner)
    return made


def _delete(made: Plan, post: str) -> None:
    made.deleted.add(post)
    made.texts.pop(post, None)


def _author(made: Plan, record: Record, owner: str) -> None:
    for post in [post for post, (row, _) in made.texts.items() if row.owner == owner]:
        del made.texts[post]
    made.requests.append(Request(record.id, owner, None, record.partition, record.offset))


def _post(made: Plan, record: Record, post: PostObserved, keys: seal.Keys, gone: Gone) -> str | None:
    """Plan one post, or give the reason why it has no vector."""
    if post.reposted is not None:
        return "repost"
    if post.post in made.deleted or gone.post_is_gone(post.post):
        return "deleted"
    if post.named is not None and (post.named in made.deleted or gone.post_is_gone(post.named)):
        _delete(made, post.post)
        made.withdrawn.add(post.post)  # the deletion came when nothing said yet what it was of
        return "deleted"
    if owner := _owner(made, post.owner, gone):
        return owner
    if not post.rights.index:
        made.texts.pop(post.post, None)
        made.withdrawn.add(post.post)
        return "not-to-be-indexed"
    if post.claimed_ms is not None and post.claimed_ms > record.time_ms + FUTURE_MS_MAX:
        return "future-dated"
    try:
        opened = seal.unseal(post, record.id, keys)
    except Refused as refused:
        return refused.reason
    content = opened.content  # type: ignore[attr-defined]
    if not isinstance(content, PostContent):
        return "words-gone"
    if not content.text.strip():
        made.texts.pop(post.post, None)
        made.withdrawn.add(post.post)
        return "no-words"
    known = made.texts.get(post.post)
    if known is not None and known[0].revision > post.revision:
        return "older"
    row = _row(record, post, text_hash(post.post, content.text))
    made.withdrawn.discard(post.post)
    made.texts[post.post] = row, content.text
    return None


def _owner(made: Plan, owner: str, gone: Gone) -> str | None:
    before = gone.owner_is_gone(owner)
    if before == "erased" or made.owners.get(owner) is True:
        return "author-erased"
    hidden = made.owners[owner] is False if owner in made.owners else before == "hidden"
    return "author-hidden" if hidden else None


def _row(record: Record, post: PostObserved, words: str) -> Row:
    return Row(
        post=post.post,
        owner=post.owner,
        source=post.source,
        lang=post.lang or (post.words.features.lang if post.words else None),
        claimed_ms=post.claimed_ms,
        revision=post.revision,
        train=post.rights.train,
        show=post.rights.show,
        policy=post.rights.policy,
        words=words,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
    )
