"""Bluesky: one message of Jetstream (v1) -> what it said, and a reason for what cannot be used.

A message is one act in one account's repository: a post, a like, a repost, a follow, a block, a declaration of intents,
or a change of the account itself. What it holds is JSON as Jetstream makes it of atproto records; other collections and
kinds are of no use and counted. Pure: no clock and no network.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from schemas.envelope import Refused
from schemas.facts import MS_MAX, Event
from schemas.posts import (
    AuthorErased,
    AuthorHidden,
    AuthorShown,
    IntentDeclared,
    PostDeleted,
    ReactionObserved,
    ReactionRetracted,
)
from streams.bluesky_post import POST, Names, post_event, uri_of
from streams.reading import Reading, Refusal, RightsOf, Said, What
from streams.rfc3339 import time_ms
from streams.xv2_post import canonical, misfit, part

ACTS: dict[str, Literal["like", "repost", "follow", "block"]] = {
    "app.bsky.feed.like": "like",
    "app.bsky.feed.repost": "repost",
    "app.bsky.graph.follow": "follow",
    "app.bsky.graph.block": "block",
}
INTENTS = "org.user-intents.declaration"
COLLECTIONS = (POST, *ACTS, INTENTS)
"""What streams/jetstream.py asks for."""
OF_THE_HOST = frozenset(("desynchronized", "throttled"))
"""Troubles of the server that tells us, not of the account (com.atproto.sync.subscribeRepos#account)."""


def read(value: Any, source: str, rights: RightsOf) -> Reading:
    """Read one message; every create and update of a post has exactly one fate."""
    reading = Reading()
    what: What = "value"
    try:
        what = _what(value)
        reading.posts_in = what == "post"
        events = _events(value, Names(source), rights)
    except Refused as refused:
        reading.refusals.append(Refusal(what, refused.reason, refused.detail, value))
    except ValidationError as error:
        fault = misfit(error)
        reading.refusals.append(Refusal(what, fault.reason, fault.detail, value))
    else:
        if events:
            reading.said.append(Said(events, value))
        else:
            reading.of_no_use = 1
    return reading


def _what(value: Any) -> What:
    """Say what a message means to be, so that a refusal counts where it belongs."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise Refused("unknown-shape", "no message of Jetstream: it must be an object with did and kind")
    if value["kind"] != "commit":
        return "author"
    commit = _commit(value)
    if commit["collection"] == POST:
        return "post" if commit["operation"] in ("create", "update") else "compliance"
    return "reaction" if commit["collection"] in ACTS else "author"


def _commit(value: Mapping[str, Any]) -> dict[str, Any]:
    commit = part(value, "commit")
    for key in ("operation", "collection"):
        if not isinstance(commit.get(key), str):
            raise Refused("unknown-shape", f"commit.{key} is missing")
    return commit


def _events(value: dict[str, Any], names: Names, rights: RightsOf) -> tuple[Event, ...]:
    owner = names.author(value.get("did"))
    did: str = value["did"]
    if value["kind"] == "account":
        return _account(value, did, owner, names)
    if value["kind"] != "commit":
        return ()  # `identity` among them: handles are not ours to keep
    commit = _commit(value)
    if commit["collection"] == INTENTS and commit["operation"] in _ACT:
        return _intents(commit, owner, names, _at_ms(value))
    act = _ACT.get(commit["operation"])
    return () if act is None else act(commit, did, owner, names, rights)


def _written(
    commit: dict[str, Any], did: str, owner: str, names: Names, rights: RightsOf
) -> tuple[Event, ...]:  # a create or an update
    collection = commit["collection"]
    if collection == POST:
        return (post_event(commit, did, names, rights),)
    if collection in ACTS:
        return _reaction(commit, did, owner, names, rights)
    return ()


def _deleted(commit: dict[str, Any], did: str, owner: str, names: Names, rights: RightsOf) -> tuple[Event, ...]:
    collection, rkey = commit["collection"], commit.get("rkey")
    if collection == POST:
        return (PostDeleted(post=names.post(did, rkey), owner=owner, source=names.source),)
    if collection in ACTS:
        return (ReactionRetracted(act=names.act(did, ACTS[collection], rkey), owner=owner, source=names.source),)
    return ()


_Act = Callable[[dict[str, Any], str, str, Names, RightsOf], tuple[Event, ...]]
_ACT: dict[str, _Act] = {"create": _written, "update": _written, "delete": _deleted}


def _reaction(commit: dict[str, Any], did: str, owner: str, names: Names, rights: RightsOf) -> tuple[Event, ...]:
    record = part(commit, "record")
    canonical(record)
    kind = ACTS[commit["collection"]]
    act = names.act(did, kind, commit.get("rkey"))
    post = None
    if kind in ("like", "repost"):
        uri = uri_of(record, "subject")
        if uri.collection != POST:
            return ()  # feeds and labelers can be liked too
        post, target = names.post(uri.did, uri.rkey), names.author(uri.did)
    else:
        target = names.author(record.get("subject"))
    claimed_ms = time_ms(record, "createdAt")
    return (
        ReactionObserved(
            act=act, owner=owner, source=names.source, kind=kind, target=target, post=post, claimed_ms=claimed_ms,
            rights=rights(owner),
        ),
    )  # fmt: skip


def _intents(commit: dict[str, Any], owner: str, names: Names, at_ms: int | None) -> tuple[Event, ...]:
    """Read a declaration (atproto proposal 0008, a draft).

    `syntheticContentGeneration` is the use of an account's data as input to models that make content: `train`. It says
    of itself that embeddings, classification and recommendation are not meant, and the other intents (archives that
    the public reads, data sets given on, bridges) are none of what `index` allows: nothing here maps to it. Only the
    record `self` speaks for the account; others are meant for one reader each.
    """
    if commit.get("rkey") != "self":
        return ()
    if commit["operation"] == "delete":
        return (IntentDeclared(owner=owner, source=names.source, claimed_ms=at_ms),)
    allow = part(part(commit, "record"), "syntheticContentGeneration").get("allow")
    if allow is not None and not isinstance(allow, bool):
        raise Refused("bad-shape", f"syntheticContentGeneration.allow is {type(allow).__name__}")
    return (IntentDeclared(owner=owner, source=names.source, train=allow, claimed_ms=at_ms),)


def _account(value: Mapping[str, Any], did: str, owner: str, names: Names) -> tuple[Event, ...]:
    """Say whether the account is there. Deletion destroys a key for good, so nothing about it may be doubtful."""
    account = part(value, "account")
    active, status = account.get("active"), account.get("status")
    if account.get("did", did) != did:
        raise Refused("bad-id", "account.did is another account than the message's")
    if not isinstance(active, bool) or not (status is None or isinstance(status, str)):
        raise Refused("bad-shape", "account.active must be true or false, and account.status a word")
    if active:
        return (AuthorShown(owner=owner, source=names.source, claimed_ms=_at_ms(value)),)
    if status == "deleted":
        return (AuthorErased(owner=owner, source=names.source),)
    if status in OF_THE_HOST:
        return ()
    known = status if status in ("takendown", "suspended", "deactivated") else "inactive"
    return (AuthorHidden(owner=owner, source=names.source, reason=known, claimed_ms=_at_ms(value)),)


def _at_ms(value: Mapping[str, Any]) -> int | None:
    """Give when the server heard of it, None where that is no time: nothing else is lost for it."""
    time_us = value.get("time_us")
    return time_us // 1000 if type(time_us) is int and 0 < time_us <= MS_MAX * 1000 else None
