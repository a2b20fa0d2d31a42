"""X API v2 post: one post object -> PostObserved or PostEdited, and how people had reacted to it.

A post is taken as a whole or refused as a whole, with the field that did not fit. Texts are unescaped as X escapes
them, times must have a zone, ids must be X's. Links are kept as given and never fetched.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from pydantic import ValidationError

from agents.content import words_of_post
from schemas.envelope import Refused
from schemas.facts import MS_MAX, AuthorFacts, MediaKind, PostContent
from schemas.posts import EngagementObserved, PostEdited, PostObserved
from streams.reading import RightsOf

FAMILY = {"simulator": "sim"}
"""What ids of a source begin with, where it is not the source's own name."""
X_ID = re.compile(r"[0-9]{1,19}")  # as X's own API description has it
OTHER_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # no "@": that is what an author's id begins with
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
LAST = EPOCH + MS_MAX * MS
POST = frozenset(("text", "note_tweet", "author_id", "edit_history_tweet_ids", "referenced_tweets"))
"""An object with one of these fields means to be a post."""
ESCAPED = re.compile("&(?:lt|gt|amp);")
PLAIN = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}
COUNTS = {
    "likes": "like_count",
    "replies": "reply_count",
    "reposts": "retweet_count",  # without words of one's own; with words it is a quote
    "quotes": "quote_count",
    "bookmarks": "bookmark_count",
    "views": "impression_count",
}
POLLED = frozenset((
    "public_metrics", "non_public_metrics", "organic_metrics", "promoted_metrics",
    "edit_controls", "edit_history_tweet_ids",  # grow old, and grow with later versions
))  # fmt: skip
"""What moves while a post stands still: no part of its hash, so that a poll does not make it another post."""
KINDS: dict[Any, MediaKind] = {"photo": "photo", "video": "video", "animated_gif": "gif"}
KEYS: dict[str, MediaKind] = {"3": "photo", "7": "video", "13": "video", "16": "gif"}
"""What a media key begins with; 13 is a video that somebody promoted."""
Author = tuple[AuthorFacts | None, str | None, str | None]
NOBODY: Author = (None, None, None)


class Around(Protocol):
    """What came with a post."""

    def author(self, number: str) -> Author:
        """Give what is told of an account."""

    def author_of(self, number: str) -> str | None:
        """Give the number of a post's author, if that post came too."""

    def media(self, key: str) -> MediaKind:
        """Tell the kind of a medium."""


class Names:
    """How ids of one source are written, and what is no id."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.prefix = FAMILY.get(source, source) + ":"
        self.id = X_ID if source in ("x", "simulator") else OTHER_ID

    def _number(self, raw: Mapping[str, Any], key: str) -> str:
        value = raw.get(key)
        if not isinstance(value, str) or not self.id.fullmatch(value):
            raise Refused("bad-id", f"{key} is no id of {self.source}: {type(value).__name__}, not {self.id.pattern}")
        return value

    def post(self, raw: Mapping[str, Any], key: str) -> str:
        """Name the post whose number stands in a field, or Refused."""
        return self.prefix + self._number(raw, key)

    def author(self, raw: Mapping[str, Any], key: str) -> str:
        """Name the account whose number stands in a field, or Refused."""
        return f"{self.prefix}@{self._number(raw, key)}"

    def owner(self, raw: Mapping[str, Any]) -> str:
        """Name a post's author; a post of nobody is Refused."""
        if raw.get("author_id") is None:
            raise Refused("no-author", "author_id is missing: nobody could ever have it erased")
        return self.author(raw, "author_id")


def canonical(raw: Any) -> bytes:
    """Write JSON with sorted keys and no spaces. Refused where the object holds what is no text or no number."""
    try:
        return msgspec.json.encode(raw, order="deterministic")
    except UnicodeEncodeError:
        raise Refused("not-unicode", "it holds bytes that are not UTF-8, or a lone surrogate") from None
    except RecursionError:
        raise Refused("too-deep", "JSON nested deeper than this program follows") from None
    except (TypeError, ValueError, OverflowError):
        raise Refused("bad-number", "it holds NaN, infinity, or a number of hundreds of digits") from None


def post_events(
    raw: Any, names: Names, rights: RightsOf, around: Around
) -> tuple[PostObserved, *tuple[EngagementObserved, ...]]:
    """Give a post's events; raises Refused or pydantic's ValidationError if anything does not fit."""
    if not isinstance(raw, dict):
        raise Refused("bad-shape", f"a post is {type(raw).__name__}")
    if not POST & raw.keys():
        raise Refused("unknown-shape", "an object that is neither a post nor anything else that X lists")
    raw_sha256 = fingerprint(raw, POLLED)
    own = names.post(raw, "id")
    post, revision = revised(own, items(raw, "edit_history_tweet_ids"), names)
    owner = names.owner(raw)
    refs = _references(raw, names)
    parent, quoted, reposted = (refs.get(one) for one in ("replied_to", "quoted", "retweeted"))
    author, username, name = around.author(raw["author_id"])
    mentions, content = _content(raw, names, username, name)
    media = [one for one in items(part(raw, "attachments"), "media_keys") if isinstance(one, str)]
    return events_of(
        names, rights,
        post=post,
        owner=owner,
        revision=revision,
        named=own if own != post else None,
        raw_sha256=raw_sha256,
        claimed_ms=_time_ms(raw),
        lang=raw.get("lang"),
        parent=parent,
        quoted=quoted,
        quoted_author=_whose(quoted, names, around),
        reposted=reposted,
        reposted_author=(_whose(reposted, names, around) or _retweeted(raw, names)) if reposted else None,
        conversation=names.post(raw, "conversation_id") if raw.get("conversation_id") else None,
        reply_to=names.author(raw, "in_reply_to_user_id") if raw.get("in_reply_to_user_id") else None,
        mentions=mentions,
        media_kinds=tuple(around.media(one) for one in media),
        author=author,
        content=content,
        counts=counts_of(part(raw, "public_metrics"), COUNTS),
    )  # fmt: skip


def events_of(
    names: Names, rights: RightsOf, *,
    post: str, owner: str, content: PostContent, counts: Mapping[str, Any], **fields: Any,
) -> tuple[PostObserved, *tuple[EngagementObserved, ...]]:  # fmt: skip
    """Make the events of a post whose fields are read."""
    reposted, mentions, kinds = fields.get("reposted"), fields["mentions"], fields["media_kinds"]
    verdict, claimed_ms = rights(owner), fields["claimed_ms"]
    observed = (PostObserved if fields["revision"] == 1 else PostEdited)(
        post=post,
        owner=owner,
        source=names.source,
        media=len(kinds),
        rights=verdict,
        # A repost's words are another's: kept here they would outlive their author's deletion.
        words=None
        if reposted
        else words_of_post(post, content, len(mentions), len(kinds), claimed_ms, lang=fields["lang"]),
        content=None if reposted else content,
        **fields,
    )
    if reposted or not counts:
        return (observed,)
    parent = fields["parent"]
    seen = EngagementObserved(
        post=post, owner=owner, source=names.source, parent=parent, claimed_ms=claimed_ms, rights=verdict, **counts
    )
    return observed, seen


def fingerprint(raw: Mapping[str, Any], polled: frozenset[str]) -> str:
    """Hash a post but for what is `polled`; Refused where it holds what is no text or no number."""
    return hashlib.sha256(canonical({key: raw[key] for key in raw.keys() - polled})).hexdigest()


def media_kind(key: str) -> MediaKind:
    """Tell the kind of a medium from its key, which begins with a number for it."""
    return KEYS.get(key.partition("_")[0], "other")


def revised(own: str, history: Iterable[Any], names: Names) -> tuple[str, int]:
    """Give the id of a post's first version and which version this is, from 1."""
    versions = [names.post({"id": one}, "id") for one in history]
    if len(versions) < 2:
        return own, 1
    if own not in versions:
        raise Refused("bad-edit-history", "the post is not in its own edit history")
    return versions[0], versions.index(own) + 1


def _whose(post: str | None, names: Names, around: Around) -> str | None:
    number = around.author_of(post.removeprefix(names.prefix)) if post else None
    return names.author({"id": number}, "id") if number is not None else None


def _retweeted(raw: dict[str, Any], names: Names) -> str | None:
    """Give whom a repost repeats, where nothing came with it: its text begins "RT @name", and that is a mention."""
    first = (one for one in objects(part(raw, "entities"), "mentions") if one.get("start") == 3)
    found = next(first, {}) if str(raw.get("text")).startswith("RT @") else {}
    return names.author(found, "id") if found.get("id") else None


def _references(raw: dict[str, Any], names: Names) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in objects(raw, "referenced_tweets"):
        if not isinstance(one.get("type"), str):
            raise Refused("bad-shape", "referenced_tweets: one without a type")
        found.setdefault(one["type"], names.post(one, "id"))
    return found


def _content(
    raw: dict[str, Any], names: Names, username: str | None, name: str | None
) -> tuple[tuple[str, ...], PostContent]:
    note = part(raw, "note_tweet")
    text = note.get("text", raw.get("text"))
    if not isinstance(text, str):
        raise Refused("no-text", f"text is {type(text).__name__}")
    entities = part(note, "entities") or part(raw, "entities")
    mentions = dict.fromkeys(names.author(one, "id") for one in objects(entities, "mentions") if one.get("id"))
    content = PostContent(
        text=unescape(text),
        username=username,
        name=name,
        hashtags=tuple(word(one.get("tag")) for one in objects(entities, "hashtags")),
        cashtags=tuple(word(one.get("tag")) for one in objects(entities, "cashtags")),
        links=tuple(word(one.get("expanded_url") or one.get("url")) for one in objects(entities, "urls")),
    )
    refuse_nul(content, raw.get("lang"))
    return tuple(mentions), content


def refuse_nul(content: PostContent, lang: Any) -> None:
    """Refuse words with NUL in them: stores that lie behind the log end a text there."""
    words = (content.text, content.username or "", content.name or "", str(lang))
    if "\0" in "".join((*words, *content.hashtags, *content.cashtags, *content.links)):
        raise Refused("nul-in-text", "a text holds the character NUL")


def word(value: Any) -> str:
    """Give a tag or link; anything but a text is Refused."""
    if not isinstance(value, str):
        raise Refused("bad-shape", f"entities: a tag or link is {type(value).__name__}")
    return value


def counts_of(metrics: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Give the counts that are there, under our names."""
    return {ours: metrics[theirs] for ours, theirs in names.items() if metrics.get(theirs) is not None}


def author_facts(user: dict[str, Any]) -> Author:
    """Read a user object of `includes`: facts, username, name; raises like `post_events`."""
    canonical(user)
    metrics = part(user, "public_metrics")
    facts = AuthorFacts(
        created_ms=_time_ms(user),
        followers=metrics.get("followers_count"),
        following=metrics.get("following_count"),
        posts=metrics.get("tweet_count"),
        listed=metrics.get("listed_count"),
        verified=user.get("verified"),
    )
    words = PostContent(text="", username=user.get("username"), name=user.get("name"))
    return facts, words.username, words.name


def unescape(text: str) -> str:
    """Undo what X escapes in texts: &, < and > and nothing else, each once."""
    return ESCAPED.sub(lambda found: PLAIN[found[0]], text) if "&" in text else text


def _time_ms(raw: Mapping[str, Any]) -> int | None:
    text = raw.get("created_at")
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None or not EPOCH <= at <= LAST:
            raise ValueError
        return (at - EPOCH) // MS
    except (TypeError, ValueError, OverflowError):
        raise Refused("bad-time", "created_at is no time with a zone, in 1970 to 9999") from None


def misfit(error: ValidationError) -> Refused:
    """Say which field did not fit and why; never what it held."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return Refused("bad-shape", f"{'.'.join(map(str, first['loc'])) or 'post'}: {first['msg']}")


def part(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Give the object in a field, an empty one if there is none; anything else is Refused."""
    found = raw.get(key)
    if found is None or found == []:  # clients in R write an empty object as a list, and the other way round
        return {}
    if not isinstance(found, dict):
        raise Refused("bad-shape", f"{key} is {type(found).__name__}, not an object")
    return found


def items(raw: Mapping[str, Any], key: str) -> list[Any]:
    """Give the list in a field, an empty one if there is none; anything else is Refused."""
    found = raw.get(key)
    if found is None or found == {}:
        return []
    if not isinstance(found, list):
        raise Refused("bad-shape", f"{key} is {type(found).__name__}, not a list")
    return found


def objects(raw: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Give the list of objects in a field; anything else in it is Refused."""
    found = items(raw, key)
    if not all(isinstance(one, dict) for one in found):
        raise Refused("bad-shape", f"{key} holds more than objects")
    return found
