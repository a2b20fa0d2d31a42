"""X API v2: one JSON value as X answers it -> events, and a reason for everything in it that cannot be one.

Reads response pages, captures of them (`endpoint` and `body`), single posts, lines of the filtered stream and of the
compliance streams. Every post in a value has exactly one fate: said, refused, or met before in the same value. Pure:
no clock and no network. Names of fields are those of X's API v2 data dictionary.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from schemas.envelope import Refused
from schemas.facts import Event, MediaKind
from schemas.posts import AuthorErased, AuthorHidden, AuthorShown, EngagementObserved, PostDeleted, PostObserved
from streams.reading import Reading, Refusal, RightsOf, Said, What
from streams.rfc3339 import time_ms
from streams.xv2_post import (
    KINDS,
    NOBODY,
    POST,
    Author,
    Names,
    author_facts,
    items,
    media_kind,
    misfit,
    part,
    post_events,
)

NO_POST = frozenset((
    "username",  # users
    "tweet_count",  # counts
    "project_id", "project_usage", "cap_reset_day",  # usage
    "media_key", "full_name", "place_type", "options", "voting_status",  # media, places, polls
    "owner_id", "member_count", "list_id",  # lists
    "state", "creator_id", "trend_name", "participant_ids", "job_id",  # spaces, trends, conversations, jobs
    "value", "meta", "summary",  # stream rules
    "deleted", "liked", "retweeted", "following", "blocking", "muting", "hidden", "bookmarked",  # answers to writes
))  # fmt: skip
"""An object with one of these fields, and nothing of a post, is something else that X lists."""
GONE_POST = frozenset(("delete", "drop", "withheld"))
"""Dropped posts X shows no more; withheld ones not everywhere, and where our readers are is not known."""
GONE_AUTHOR = frozenset(("user_delete",))
HIDES = {"user_suspend": "suspended", "user_protect": "protected", "user_withheld": "withheld"}
SHOWS = frozenset(("user_unsuspend", "user_unprotect", "user_undelete"))
NOTHING_HELD = frozenset(("scrub_geo", "tweet_edit", "user_profile_modification", "undrop"))
"""Of no use here: places and profiles are not kept, edits come as posts. After `undrop` a post is not taken up again:
a deletion in the log is final."""
COMPLIANCE = GONE_POST | GONE_AUTHOR | HIDES.keys() | SHOWS | NOTHING_HELD
Met = dict[str, Collection[Event]]
"""What each post of one value said so far."""
NOTHING_SAID = Reading()
MARKS = COMPLIANCE | POST | NO_POST | {"data", "includes", "errors", "endpoint", "action"}


def is_v2(value: dict[str, Any]) -> bool:
    """Say whether an object looks like anything that X's API v2 answers."""
    return bool(MARKS & value.keys()) or ("title" in value and "type" in value)


def read(value: Any, source: str, rights: RightsOf) -> Reading:
    """Read one JSON value of `source`; posts come in time order, which X's pages are not in."""
    reading = Reading()
    page = value
    if isinstance(page, dict) and "endpoint" in page and isinstance(page.get("body"), dict):
        page = page["body"]
    if isinstance(page, dict):
        _Page(reading, source, rights).read(page)
        reading.of_no_use += reading == NOTHING_SAID
    else:
        reading.refusals.append(Refusal("value", "unknown-shape", f"{type(page).__name__} is no answer of X's", value))
    return reading


class _Page:
    def __init__(self, reading: Reading, source: str, rights: RightsOf) -> None:
        self.reading = reading
        self.names = Names(source)
        self.rights = rights
        self.users: dict[str, Any] = {}
        self.authors: dict[str, Author] = {}
        self.wrote: dict[str, str] = {}  # post -> author, of all posts that came
        self.kinds: dict[str, MediaKind] = {}

    def read(self, page: dict[str, Any]) -> None:
        errors = page.get("errors")
        problem = bool(errors) or ("title" in page and "type" in page and not POST & page.keys())
        if problem:
            self.reading.errors += len(errors) if errors and isinstance(errors, list) else 1
        data = page.get("data")
        if isinstance(data, dict) and (found := _compliance_in(data)):
            self._compliance(data, found)
        elif found := _compliance_in(page):
            self._compliance(page, found)
        elif "action" in page and "id" in page:
            fault = (
                "it says neither whose this is nor whether it is a post: `xinfluencer comply` looks it up in the log"
            )
            self._refuse("compliance", Refused("batch-result", fault), page)
        elif data is not None or "includes" in page:
            self._posts(data, page)
        elif POST & page.keys():
            self._posts(page, {})
        elif not (problem or "data" in page or NO_POST & page.keys()):
            self._refuse("value", Refused("unknown-shape", "an object that is no answer of X's"), page)

    def _posts(self, data: Any, page: dict[str, Any]) -> None:
        if data is not None and not isinstance(data, dict | list):
            self._refuse("value", Refused("bad-shape", f"data is {type(data).__name__}"), data)
            data = None
        given = data if isinstance(data, list) else [data] if data is not None else []
        # What X expands under `includes.tweets` are posts by definition; `data` may be anything that X lists.
        posts = [one for one in given if not _is_other(one)]
        expanded = self._included(page)
        self.reading.posts_in += len(posts) + len(expanded)
        for raw in (*posts, *expanded):
            if isinstance(raw, dict) and isinstance(raw.get("id"), str) and isinstance(raw.get("author_id"), str):
                self.wrote[raw["id"]] = raw["author_id"]
        met: Met = {}
        for raw in posts:
            self._post(raw, met)
        for raw in expanded:
            if isinstance(raw, dict) and isinstance(raw.get("id"), str) and raw["id"] in met:
                self.reading.repeated += 1  # in other words it may be, for X expands with fewer fields
            else:
                self._post(raw, met)
        self.reading.said.sort(key=said_order)

    def _post(self, raw: Any, met: Met) -> None:
        try:
            events = post_events(raw, self.names, self.rights, self)
        except Refused as refused:
            self._refuse("post", refused, raw)
        except ValidationError as error:
            self._refuse("post", misfit(error), raw)
        else:
            add(self.reading, Said(events, raw), met, raw["id"])

    def _included(self, page: dict[str, Any]) -> list[Any]:
        """Remember the users that came with a page, and give the posts that did."""
        try:
            includes = part(page, "includes")
            users = items(includes, "users")
            tweets = items(includes, "tweets")
            media = items(includes, "media")
        except Refused as refused:
            self._refuse("value", refused, page["includes"])
            return []
        for one in media:
            if isinstance(one, dict) and isinstance(one.get("media_key"), str) and isinstance(one.get("type"), str):
                self.kinds[one["media_key"]] = KINDS.get(one["type"], "other")
        for user in users:
            if isinstance(user, dict) and isinstance(user.get("id"), str):
                self.users[user["id"]] = user
            else:
                self._refuse("author", Refused("bad-author", "a user without an id"), user)
        return tweets

    def author_of(self, number: str) -> str | None:
        """Give the author of a post that came with the page."""
        return self.wrote.get(number)

    def media(self, key: str) -> MediaKind:
        """Tell the kind of a medium: as it came with the page, or by its key."""
        return self.kinds.get(key) or media_kind(key)

    def author(self, number: str) -> Author:
        """Give what `includes` says of an author; a user object that does not fit is refused once, and not the post."""
        if number not in self.users:
            return NOBODY
        if number not in self.authors:
            user = self.users[number]
            try:
                self.authors[number] = author_facts(user)
            except (Refused, ValidationError) as error:
                self.authors[number] = NOBODY
                fault = misfit(error) if isinstance(error, ValidationError) else error
                self._refuse("author", Refused("bad-author", fault.detail), user)
        return self.authors[number]

    def _compliance(self, line: dict[str, Any], found: frozenset[str] | set[str]) -> None:
        for name in sorted(found):
            try:
                if name in NOTHING_HELD:
                    self.reading.of_no_use += 1
                else:
                    self.reading.said.append(Said((self._complied(name, part(line, name)),), line))
            except Refused as refused:
                self._refuse("compliance", refused, line)

    def _complied(self, name: str, body: Mapping[str, Any]) -> Event:
        source = self.names.source
        if name in GONE_POST:
            post = part(body, "tweet")
            return PostDeleted(post=self.names.post(post, "id"), owner=self.names.owner(post), source=source)
        owner = self.names.author(part(body, "user"), "id")
        if name in HIDES:
            return AuthorHidden(owner=owner, source=source, reason=HIDES[name], claimed_ms=_event_at(body))
        if name in SHOWS:
            return AuthorShown(owner=owner, source=source, claimed_ms=_event_at(body))
        return AuthorErased(owner=owner, source=source)

    def _refuse(self, what: What, refused: Refused, raw: Any) -> None:
        self.reading.refusals.append(Refusal(what, refused.reason, refused.detail, raw))


def _is_other(one: Any) -> bool:
    """Say whether an object of `data` is something else that X lists; direct messages have words but are no posts."""
    if not isinstance(one, dict):
        return False
    return "dm_conversation_id" in one or (not POST & one.keys() and bool(NO_POST & one.keys()))


def _compliance_in(value: Mapping[str, Any]) -> set[str]:
    """Find what a compliance line says; a post may have a field `withheld` of its own."""
    return set() if POST & value.keys() else set(COMPLIANCE & value.keys())


def _event_at(body: Mapping[str, Any]) -> int | None:
    """Give since when, None where that is no time: nobody stays visible for that."""
    try:
        return time_ms(body, "event_at")
    except Refused:
        return None


def add(reading: Reading, said: Said, met: Met, post: str) -> None:
    """Add what a post says but for what the same value said of it before: polled twice, one post and two counts."""
    before = met.get(post)
    if before is None:  # nearly always; so nothing is hashed
        met[post] = said.events
        reading.said.append(said)
        return
    known = met[post] = before if isinstance(before, dict) else dict.fromkeys(before)
    new = tuple(event for event in said.events if event not in known)
    known.update(dict.fromkeys(new))
    reading.repeated += said.events[0] not in new
    if new:
        reading.said.append(Said(new, said.raw))


def said_order(said: Said) -> tuple[int, int, str]:
    """Order by time, then by number."""
    post = said.events[0]
    assert isinstance(post, PostObserved | EngagementObserved)
    revision = post.revision if isinstance(post, PostObserved) else 9_999  # a second count goes after its post
    return post.claimed_ms or 0, len(post.post), f"{post.post}/{revision:04}"
