"""X API v2: one JSON value as X answers it -> events, and a reason for everything in it that cannot be one.

Reads response pages, captures of them (`endpoint` and `body`), single posts, lines of the filtered stream and of the
compliance streams. Every post in a value has exactly one fate: said, refused, or met before in the same value. Pure:
no clock and no network. Names of fields are those of X's API v2 data dictionary.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from schemas.envelope import Refused
from schemas.facts import Event
from schemas.posts import AuthorErased, PostDeleted, PostObserved
from streams.reading import Reading, Refusal, RightsOf, Said, What
from streams.xv2_post import NOBODY, POST, Author, Names, author_facts, items, misfit, part, post_events

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
GONE_POST = frozenset(("delete", "drop"))  # dropped: X shows it no more; a later `undrop` is not followed
GONE_AUTHOR = frozenset(("user_delete",))
OTHER_COMPLIANCE = frozenset((
    "undrop", "withheld", "tweet_edit", "scrub_geo", "user_undelete", "user_withheld", "user_protect",
    "user_unprotect", "user_suspend", "user_unsuspend", "user_profile_modification",
))  # fmt: skip
COMPLIANCE = GONE_POST | GONE_AUTHOR | OTHER_COMPLIANCE


def read(value: Any, source: str, rights: RightsOf) -> Reading:
    """Read one JSON value of `source`; posts come in time order, which X's pages are not in."""
    reading = Reading()
    page = value
    if isinstance(page, dict) and "endpoint" in page and isinstance(page.get("body"), dict):
        page = page["body"]
    if isinstance(page, dict):
        _Page(reading, source, rights).read(page)
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

    def read(self, page: dict[str, Any]) -> None:
        errors = page.get("errors")
        problem = bool(errors) or ("title" in page and "type" in page and not POST & page.keys())
        if problem:
            self.reading.errors += len(errors) if errors and isinstance(errors, list) else 1
        data = page.get("data")
        if isinstance(data, dict) and (found := COMPLIANCE & data.keys()):
            self._compliance(data, found)
        elif found := COMPLIANCE & page.keys():
            self._compliance(page, found)
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
        met: dict[str, set[str]] = {}
        for raw in posts:
            self._post(raw, met)
        for raw in expanded:
            if isinstance(raw, dict) and isinstance(raw.get("id"), str) and raw["id"] in met:
                self.reading.repeated += 1  # in other words it may be, for X expands with fewer fields
            else:
                self._post(raw, met)
        self.reading.said.sort(key=_when)

    def _post(self, raw: Any, met: dict[str, set[str]]) -> None:
        try:
            events = post_events(raw, self.names, self.rights, self._author)
        except Refused as refused:
            self._refuse("post", refused, raw)
        except ValidationError as error:
            self._refuse("post", misfit(error), raw)
        else:
            digests = met.setdefault(raw["id"], set())
            if events[0].raw_sha256 in digests:
                self.reading.repeated += 1
            else:
                digests.add(events[0].raw_sha256)
                self.reading.said.append(Said(events, raw))

    def _included(self, page: dict[str, Any]) -> list[Any]:
        """Remember the users that came with a page, and give the posts that did."""
        try:
            includes = part(page, "includes")
            users = items(includes, "users")
            tweets = items(includes, "tweets")
        except Refused as refused:
            self._refuse("value", refused, page["includes"])
            return []
        for user in users:
            if isinstance(user, dict) and isinstance(user.get("id"), str):
                self.users[user["id"]] = user
            else:
                self._refuse("author", Refused("bad-author", "a user without an id"), user)
        return tweets

    def _author(self, number: str) -> Author:
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
                if name in OTHER_COMPLIANCE:
                    raise Refused("compliance-unsupported", f"{name} asks for what no event here can say")
                self.reading.said.append(Said((self._gone(name, part(line, name)),), line))
            except Refused as refused:
                self._refuse("compliance", refused, line)

    def _gone(self, name: str, body: Mapping[str, Any]) -> Event:
        if name in GONE_AUTHOR:
            return AuthorErased(owner=self.names.author(part(body, "user"), "id"), source=self.names.source)
        post = part(body, "tweet")
        return PostDeleted(post=self.names.post(post, "id"), owner=self.names.owner(post), source=self.names.source)

    def _refuse(self, what: What, refused: Refused, raw: Any) -> None:
        self.reading.refusals.append(Refusal(what, refused.reason, refused.detail, raw))


def _is_other(one: Any) -> bool:
    """Say whether an object of `data` is something else that X lists; direct messages have words but are no posts."""
    if not isinstance(one, dict):
        return False
    return "dm_conversation_id" in one or (not POST & one.keys() and bool(NO_POST & one.keys()))


def _when(said: Said) -> tuple[int, int, str]:
    post = said.events[0]
    assert isinstance(post, PostObserved)
    return post.claimed_ms or 0, len(post.post), f"{post.post}/{post.revision:04}"
