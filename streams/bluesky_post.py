"""Bluesky post: one record of app.bsky.feed.post -> PostObserved, or PostEdited where it replaces an older one.

Taken as a whole or refused as a whole, with the field that did not fit. Field names are those of the lexicons
app.bsky.feed.post, app.bsky.richtext.facet and app.bsky.embed.*. Links are kept as given and never fetched. Labels that
an author puts on a post are not kept: no event here can say them.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from agents.content import words_of_post
from schemas.envelope import Refused
from schemas.facts import MediaKind, PostContent
from schemas.posts import PostEdited, PostObserved
from streams.reading import RightsOf
from streams.rfc3339 import time_ms
from streams.xv2_post import FAMILY, canonical, items, part

POST = "app.bsky.feed.post"
DID = r"did:[a-z]+:[A-Za-z0-9._:%-]*[A-Za-z0-9._-]"  # https://atproto.com/specs/did; it never holds "~" or "@"
RKEY = r"[A-Za-z0-9._:~-]{1,512}"  # https://atproto.com/specs/record-key
IS_DID = re.compile(DID)
IS_RKEY = re.compile(rf"(?!\.{{1,2}}\Z){RKEY}")
# Strictly the form that clients write into records: a DID, never a handle, which may change hands.
AT_URI = re.compile(rf"at://({DID})/([A-Za-z0-9.-]{{1,317}})/({RKEY})")
EDITED = 2


class Uri(NamedTuple):
    """What an at-URI names."""

    did: str
    collection: str
    rkey: str


class Names:
    """How ids are written: `bluesky:@DID`, `bluesky:DID~RKEY` for a post, `bluesky:DID~like~RKEY` for another act."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.prefix = FAMILY.get(source, source) + ":"

    def author(self, did: Any) -> str:
        """Name an account, or Refused."""
        if not isinstance(did, str) or not IS_DID.fullmatch(did):
            raise Refused("bad-id", "no DID where one must be")
        return f"{self.prefix}@{did}"

    def post(self, did: str, rkey: Any) -> str:
        """Name a post. A key with "~" could be another act's name, and Bluesky makes none: Refused."""
        if not isinstance(rkey, str) or not IS_RKEY.fullmatch(rkey) or "~" in rkey:
            raise Refused("bad-id", "rkey is no key of a post")
        return f"{self.prefix}{did}~{rkey}"

    def act(self, did: str, kind: str, rkey: Any) -> str:
        """Name an act that is no post."""
        if not isinstance(rkey, str) or not IS_RKEY.fullmatch(rkey):
            raise Refused("bad-id", "rkey is no record key")
        return f"{self.prefix}{did}~{kind}~{rkey}"


def uri_of(raw: Mapping[str, Any], key: str) -> Uri:
    """Read the at-URI of a strong reference ({uri, cid}) in a field, or Refused."""
    uri = part(raw, key).get("uri")
    found = AT_URI.fullmatch(uri) if isinstance(uri, str) else None
    if found is None:
        raise Refused("bad-uri", f"{key}.uri is not at://DID/collection/key")
    return Uri(*found.groups())


def post_event(commit: Mapping[str, Any], did: str, names: Names, rights: RightsOf) -> PostObserved:
    """Give the event of a create or an update; raises Refused or pydantic's ValidationError if anything does not fit.

    Jetstream does not count revisions: an update is revision 2, however often there was one before, and between two
    updates the log's order decides.

    `raw_sha256` is over the record, which its author signed, without Jetstream's envelope around it, which differs from
    server to server: one post taken from two servers is one event. An update's is over its `rev` too, for a post may be
    changed back to what it was.
    """
    post = names.post(did, commit.get("rkey"))
    record = part(commit, "record")
    edited = commit.get("operation") == "update"
    digest = hashlib.sha256(canonical([record, commit.get("rev")] if edited else record)).hexdigest()
    if record.get("$type", POST) != POST:
        raise Refused("bad-shape", f"record.$type is not {POST}")
    owner = names.author(did)
    reply = part(record, "reply")
    parent = _post_in(reply, "parent") if reply else None
    root = _post_in(reply, "root") if reply else None
    kinds, links, quoted = _embedded(part(record, "embed"))
    langs = items(record, "langs")
    mentions, content = _content(record, names, links)
    claimed_ms = time_ms(record, "createdAt")
    lang = _text({"langs": langs[0]}, "langs") if langs else None
    if lang is not None and "\0" in lang:
        raise Refused("nul-in-text", "a text holds the character NUL")
    return (PostEdited if edited else PostObserved)(
        post=post,
        owner=owner,
        source=names.source,
        revision=EDITED if edited else 1,
        claimed_ms=claimed_ms,
        lang=lang,
        parent=names.post(parent.did, parent.rkey) if parent else None,
        quoted=names.post(quoted.did, quoted.rkey) if quoted else None,
        quoted_author=names.author(quoted.did) if quoted else None,
        conversation=names.post(root.did, root.rkey) if root else post,
        reply_to=names.author(parent.did) if parent else None,
        mentions=mentions,
        media=len(kinds),
        media_kinds=kinds,
        raw_sha256=digest,
        rights=rights(owner),
        words=words_of_post(post, content, len(mentions), len(kinds), claimed_ms, lang=lang),
        content=content,
    )


def _post_in(reply: Mapping[str, Any], key: str) -> Uri:
    uri = uri_of(reply, key)
    if uri.collection != POST:
        raise Refused("bad-uri", f"reply.{key} is no post")
    return uri


def _embedded(embed: dict[str, Any]) -> tuple[tuple[MediaKind, ...], list[str], Uri | None]:
    """Give the kinds of media, the links and the post quoted; kinds of embeds that are new to us say nothing."""
    kind = embed.get("$type")
    quoted = None
    if kind == "app.bsky.embed.recordWithMedia":
        quoted = _quoted(part(embed, "record"))
        embed = part(embed, "media")
        kind = embed.get("$type")
    if kind == "app.bsky.embed.record":
        return (), [], _quoted(embed)
    if kind == "app.bsky.embed.images":
        return tuple("photo" for _ in items(embed, "images")), [], quoted
    if kind == "app.bsky.embed.video":
        return ("gif" if embed.get("presentation") == "gif" else "video",), [], quoted
    if kind == "app.bsky.embed.external":
        return (), [_text(part(embed, "external"), "uri")], quoted
    return (), [], quoted


def _quoted(embed: Mapping[str, Any]) -> Uri | None:
    """Give the post quoted; a feed, a list or a labeler that is shown is none."""
    uri = uri_of(embed, "record")
    return uri if uri.collection == POST else None


def _content(record: Mapping[str, Any], names: Names, links: list[str]) -> tuple[tuple[str, ...], PostContent]:
    text = record.get("text")
    if not isinstance(text, str):
        raise Refused("no-text", f"text is {type(text).__name__}")
    marks = list(_features(record, text.encode()))
    tags = [_text(one, "tag") for kind, one in marks if kind == "tag"]
    tags.extend(_text({"tags": one}, "tags") for one in items(record, "tags"))
    mentions = dict.fromkeys(names.author(one.get("did")) for kind, one in marks if kind == "mention")
    links = [*(_text(one, "uri") for kind, one in marks if kind == "link"), *links]
    if "\0" in "".join((text, *tags, *links)):
        raise Refused("nul-in-text", "a text holds the character NUL")
    content = PostContent(
        text=text,
        hashtags=tuple(dict.fromkeys(tag for tag in tags if not tag.startswith("$"))),
        cashtags=tuple(dict.fromkeys(tag[1:] for tag in tags if tag.startswith("$") and len(tag) > 1)),
        links=tuple(dict.fromkeys(links)),
    )
    return tuple(mentions), content


def _features(record: Mapping[str, Any], text: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give what the facets mark. One whose range of UTF-8 bytes is not in the text is left out, as renderers do."""
    for facet in items(record, "facets"):
        if not isinstance(facet, dict):
            raise Refused("bad-shape", "facets holds more than objects")
        index = part(facet, "index")
        if not _inside(index.get("byteStart"), index.get("byteEnd"), text):
            continue
        for feature in items(facet, "features"):
            if not isinstance(feature, dict):
                raise Refused("bad-shape", "facets.features holds more than objects")
            kind = feature.get("$type")
            if isinstance(kind, str):
                yield kind.removeprefix("app.bsky.richtext.facet#"), feature


def _inside(start: Any, end: Any, text: bytes) -> bool:
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        return False
    return _between(text, start) and _between(text, end)


def _between(text: bytes, at: int) -> bool:
    """Say whether a place lies between two characters: a byte 10xxxxxx goes on with the one before it."""
    return at == len(text) or text[at] & 0xC0 != 0x80


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise Refused("bad-shape", f"{key} is {type(value).__name__}, not a text")
    return value
