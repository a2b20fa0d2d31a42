"""Mastodon status: one status as a server tells it -> PostObserved or PostEdited, and how people had reacted to it.

Taken as a whole or refused as a whole, with the field that did not fit. Only what everyone may read is taken: any other
visibility is refused, and then not even the first bytes of it are kept. Field names are those of Mastodon's REST API.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from agents.content import words_of_post
from schemas.envelope import Refused
from schemas.facts import AuthorFacts, MediaKind, PostContent, Rights
from schemas.posts import EngagementObserved, PostEdited, PostObserved
from streams.mastodon_html import plain
from streams.reading import RightsOf
from streams.rfc3339 import time_ms
from streams.xv2_post import FAMILY, canonical, items, misfit, part

PUBLIC = frozenset(("public", "unlisted"))
QUOTED = frozenset(("accepted", "blocked_account", "blocked_domain", "muted_account"))
"""States of a quote that whoever is quoted agreed to; the last three are the listener's own choices."""
KINDS: dict[str, MediaKind] = {"image": "photo", "gifv": "gif", "video": "video", "audio": "audio"}
COUNTS = {
    "likes": "favourites_count",
    "replies": "replies_count",
    "reposts": "reblogs_count",
    "quotes": "quotes_count",
}
MOVING = frozenset((
    *COUNTS.values(), "account", "card", "poll", "reblog", "quote",
    "favourited", "reblogged", "muted", "bookmarked", "pinned", "filtered", "filter_results",
))  # fmt: skip
"""What differs between two sights of a status that nobody edited; of a status edited twice `edited_at` differs."""
LOCAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # opaque, says the API's documentation; numbers on Mastodon itself
HOST = re.compile(r"(?=.{1,100}\Z)[a-z0-9-]+(?:\.[a-z0-9-]+)*(?::[0-9]{1,5})?")
OPTED_OUT = re.compile(r"#no(?:bots?|index)\b", re.IGNORECASE)  # what people write into their profile to say it
EDITED = 2


class Names:
    """How ids of one server are written: `mastodon:HOST:ID` for a status, `mastodon:@HOST:ID` for an account."""

    def __init__(self, source: str, host: str) -> None:
        self.source = source
        self.prefix = FAMILY.get(source, source) + ":"
        if not HOST.fullmatch(host):
            raise Refused("bad-host", "host is no name of a server, in small letters")
        self.host = host

    def _id(self, raw: Mapping[str, Any], key: str) -> str:
        value = raw.get(key)
        if not isinstance(value, str) or not LOCAL_ID.fullmatch(value):
            raise Refused("bad-id", f"{key} is no id of Mastodon: {type(value).__name__}, not {LOCAL_ID.pattern}")
        return f"{self.host}:{value}"

    def post(self, raw: Mapping[str, Any], key: str) -> str:
        """Name the status whose id stands in a field, or Refused."""
        return self.prefix + self._id(raw, key)

    def author(self, raw: Mapping[str, Any], key: str) -> str:
        """Name the account whose id stands in a field, or Refused."""
        return f"{self.prefix}@{self._id(raw, key)}"


class Author(NamedTuple):
    """What a status says of who wrote it; `fault` where the facts do not fit."""

    id: str
    facts: AuthorFacts | None
    username: str | None
    name: str | None
    fault: Refused | None = None


def post_events(
    raw: Any, names: Names, rights: RightsOf
) -> tuple[tuple[PostObserved, *tuple[EngagementObserved, ...]], Author]:
    """Give a status's events, and its author; raises Refused or pydantic's ValidationError if anything does not fit.

    Mastodon does not count revisions: an edited status is revision 2, however often it was edited, and between two
    edits the log's order decides. `raw_sha256` leaves out what moves while nobody edits it (MOVING), so that a status
    seen again is the same event.
    """
    if str(raw.get("visibility")) not in PUBLIC:
        raise Refused("not-public", "visibility is neither public nor unlisted: this is not for everyone")
    stable = canonical({key: value for key, value in raw.items() if key not in MOVING})
    post = names.post(raw, "id")
    author = author_of(raw, names)
    verdict = consented(rights(author.id), part(raw, "account"))
    reblog = part(raw, "reblog")
    quoted, quoted_author = _quote(raw, names)
    edited_ms = time_ms(raw, "edited_at")
    claimed_ms = time_ms(raw, "created_at")
    parent = names.post(raw, "in_reply_to_id") if raw.get("in_reply_to_id") is not None else None
    reply_to = names.author(raw, "in_reply_to_account_id") if raw.get("in_reply_to_account_id") is not None else None
    lang = None if raw.get("language") is None else _text(raw["language"], "language")
    kinds = _media(raw)
    mentions = tuple(dict.fromkeys(names.author(one, "id") for one in objects(raw, "mentions")))
    content = None if reblog else _content(raw, author, quoting=bool(quoted))
    observed = (PostObserved if edited_ms is None else PostEdited)(
        post=post,
        owner=author.id,
        source=names.source,
        revision=1 if edited_ms is None else EDITED,
        claimed_ms=claimed_ms,
        lang=lang,
        parent=parent,
        quoted=quoted,
        quoted_author=quoted_author,
        reposted=names.post(reblog, "id") if reblog else None,
        reposted_author=names.author(part(reblog, "account"), "id") if reblog else None,
        conversation=post if parent is None and not reblog else None,  # of a reply Mastodon does not say
        reply_to=reply_to,
        mentions=() if reblog else mentions,
        media=0 if reblog else len(kinds),
        media_kinds=() if reblog else kinds,
        author=author.facts,
        raw_sha256=hashlib.sha256(stable).hexdigest(),
        rights=verdict,
        # A repost's words are another's: kept here they would outlive their author's deletion.
        words=words_of_post(post, content, len(mentions), len(kinds), claimed_ms, lang=lang) if content else None,
        content=content,
    )
    counts = {ours: raw[theirs] for ours, theirs in COUNTS.items() if raw.get(theirs) is not None}
    if reblog or not counts:
        return (observed,), author
    seen = EngagementObserved(
        post=post, owner=author.id, source=names.source, parent=parent, claimed_ms=claimed_ms, rights=verdict, **counts
    )
    return (observed, seen), author


def author_of(raw: Mapping[str, Any], names: Names) -> Author:
    """Read a status's account: without an id the status is Refused, facts that do not fit cost only the facts."""
    account = part(raw, "account")
    if account.get("id") is None:
        raise Refused("no-author", "account.id is missing: nobody could ever have it erased")
    owner = names.author(account, "id")
    try:
        canonical(account)
        facts = AuthorFacts(
            created_ms=time_ms(account, "created_at"),
            followers=_count(account, "followers_count"),
            following=_count(account, "following_count"),
            posts=_count(account, "statuses_count"),
            bot=account.get("bot"),
        )
        words = PostContent(text="", username=account.get("acct"), name=account.get("display_name"))
        if "\0" in f"{words.username}{words.name}":
            raise Refused("nul-in-text", "account: a text holds the character NUL")
    except ValidationError as error:
        return Author(owner, None, None, None, misfit(error))
    except Refused as fault:
        return Author(owner, None, None, None, fault)
    return Author(owner, facts, words.username, words.name)


def _count(account: Mapping[str, Any], key: str) -> Any:
    value = account.get(key)
    return None if value == -1 else value  # what servers write for a number that its owner hides


def consented(verdict: Rights, account: Mapping[str, Any]) -> Rights:
    """Join a verdict with what the account says of being indexed; its no wins.

    `indexable` false is "my posts are not to be found by search" (FEP-5feb, Mastodon 4.3), `noindex` true the older
    word for local accounts, and #nobot or #noindex in a profile what people wrote before there were either. Where a
    server says none of it, the policy decides alone. It goes into this post's rights, where it holds at once and as it
    is now; a declaration beside every post would say the same a second time.
    """
    if forbids(account):
        return Rights(index=False, train=False, show=False, policy=f"{verdict.policy}+declared-no-index")
    return verdict


def forbids(account: Mapping[str, Any]) -> bool:
    """Say whether an account says that it is not to be indexed, whatever else there is in it."""
    note = account.get("note")
    written = isinstance(note, str) and OPTED_OUT.search(re.sub(r"<[^<>]*>", "", note)) is not None
    return account.get("indexable") is False or account.get("noindex") is True or written


def _quote(raw: Mapping[str, Any], names: Names) -> tuple[str | None, str | None]:
    quote = part(raw, "quote")
    if not with_leave(quote):
        return None, None
    status = part(quote, "quoted_status")
    if status:
        return names.post(status, "id"), names.author(part(status, "account"), "id")
    return (names.post(quote, "quoted_status_id") if quote.get("quoted_status_id") is not None else None), None


def with_leave(quote: Mapping[str, Any]) -> bool:
    """Say whether whoever is quoted agreed to it."""
    return str(quote.get("state")) in QUOTED


def _media(raw: Mapping[str, Any]) -> tuple[MediaKind, ...]:
    found = (one.get("type") for one in objects(raw, "media_attachments"))
    return tuple(KINDS.get(kind, "other") if isinstance(kind, str) else "other" for kind in found)


def _content(raw: Mapping[str, Any], author: Author, quoting: bool) -> PostContent:
    """Give the words: what stands before the fold, the text, and what a poll lets people choose."""
    html = raw.get("content")
    if not isinstance(html, str):
        raise Refused("no-text", f"content is {type(html).__name__}")
    text, links = plain(html, quoting)
    before = raw.get("spoiler_text")
    options = [one.get("title") for one in objects(part(raw, "poll"), "options")]
    parts = [before, text, "\n".join(f"- {_text(one, 'poll')}" for one in options)]
    words = "\n\n".join(_text(one, "spoiler_text") for one in parts if one)
    tags = tuple(dict.fromkeys(_text(one.get("name"), "tags") for one in objects(raw, "tags")))
    if "\0" in "".join((words, str(raw.get("language")), *tags, *links)):
        raise Refused("nul-in-text", "a text holds the character NUL")
    canonical([words, links])  # character references can make lone surrogates of a text that had none
    return PostContent(text=words, username=author.username, name=author.name, hashtags=tags, links=links)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise Refused("bad-shape", f"{key}: a text is {type(value).__name__}")
    return value


def objects(raw: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Give the objects in a field; anything else among them is Refused."""
    found = items(raw, key)
    if not all(isinstance(one, dict) for one in found):
        raise Refused("bad-shape", f"{key} holds more than objects")
    return found
