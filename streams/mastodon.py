"""Mastodon: a status, or a message of a server's stream -> what was said, and a reason for what cannot be used.

A server numbers everything itself, remote posts and accounts too, and replies, mentions and deletions refer to others
by these numbers alone. So ids name the server that was listened to: `mastodon:HOST:ID`. The messages of its stream
(streams/mastodon_stream.py) carry it beside Mastodon's own `event` and `payload`:

    {"host": "mastodon.social", "event": "update", "payload": STATUS}

A notification (as `GET /api/v1/notifications` gives them, or a `notification` message) that somebody favourited or
boosted a status is a reaction, and the status in it is a post. Whom a follower follows it does not say: refused. A
boost that is also heard as a status is two acts, for a notification does not name it.

A bare status does not say who told it. If it is at home where it was read (no "@" in `account.acct`), that server is in
its `uri`, and it gets the same ids as there. Otherwise its numbers belong to a server that nobody named: it is refused,
for its replies would be hung on strangers' posts. One post heard through two servers is two posts.
"""

from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import ValidationError

from schemas.envelope import Refused
from schemas.posts import PostDeleted, ReactionObserved
from streams.mastodon_post import PUBLIC, Names, post_events, with_leave
from streams.reading import Reading, Refusal, RightsOf, Said, What
from streams.rfc3339 import time_ms
from streams.xv2_post import misfit, part

STATUSES = frozenset(("update", "status.update"))
STATUS = frozenset(("content", "visibility", "spoiler_text", "reblog", "in_reply_to_id", "reblogs_count"))
"""An object with one of these fields means to be a status."""
OTHERS = (
    frozenset(("acct", "username")),  # an account: nothing was said by it
    frozenset(("accounts", "last_status")),  # a conversation: nobody else's
)
REACTIONS: dict[str, Literal["like", "repost"]] = {"favourite": "like", "reblog": "repost"}
TOLD = frozenset(("mention", "status", "update", "poll", "quote", "quoted_update"))
"""Notifications that bring a status and say no more of it than that it is there."""


def is_mastodon(value: dict[str, Any]) -> bool:
    """Say whether an object is a status, a notification, an account, a conversation or a message of Mastodon's."""
    if "event" in value and ("payload" in value or "stream" in value):
        return True
    if "account" in value and ("uri" in value or "content" in value or "reblog" in value):
        return True
    return _is_notification(value) or any(marks <= value.keys() for marks in OTHERS)


def _is_notification(value: dict[str, Any]) -> bool:
    account = value.get("account")
    return isinstance(value.get("type"), str) and isinstance(account, dict) and "acct" in account


def read(value: Any, source: str, rights: RightsOf) -> Reading:
    """Read one JSON value; every status in it, reposted and quoted ones too, has exactly one fate."""
    page = _Page(Reading(), source, rights)
    try:
        page.read(value)
    except Refused as refused:
        page.reading.refusals.append(Refusal("value", refused.reason, refused.detail, value))
    return page.reading


class _Page:
    def __init__(self, reading: Reading, source: str, rights: RightsOf) -> None:
        self.reading, self.source, self.rights = reading, source, rights
        self.met: set[tuple[str, str]] = set()

    def read(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise Refused("unknown-shape", f"{type(value).__name__} is nothing of Mastodon's")
        if "event" in value:
            self._message(value)
        elif _is_notification(value):
            self._notification(value, None)
        elif STATUS & value.keys() and not any(marks <= value.keys() for marks in OTHERS):
            self._statuses([value], None)
        elif any(marks <= value.keys() for marks in OTHERS):
            self.reading.of_no_use += 1
        elif "error" in value:
            self.reading.errors += 1
        else:
            raise Refused("unknown-shape", "an object that is nothing of Mastodon's")

    def _message(self, value: dict[str, Any]) -> None:
        event, payload, host = value["event"], value.get("payload"), value.get("host")
        if not isinstance(event, str) or not (host is None or isinstance(host, str)):
            raise Refused("bad-shape", "event and host must be texts")
        if event == "delete":
            self._delete(value, host)
        elif event in STATUSES or event == "notification":
            if isinstance(payload, str):  # as in Mastodon's own messages on a web socket
                try:
                    payload = msgspec.json.decode(payload)
                except (ValueError, RecursionError):
                    raise Refused("bad-json", "payload is no JSON") from None
            if event in STATUSES:
                self._statuses(payload if isinstance(payload, list) else [payload], host)
            elif isinstance(payload, dict) and _is_notification(payload):
                self._notification(payload, host)
            else:
                raise Refused("bad-shape", "payload is no notification: it needs a type and an account")
        else:
            self.reading.of_no_use += 1  # filters, announcements, and what is new to us

    def _notification(self, value: dict[str, Any], host: str | None) -> None:
        """Read who did what to a status, and the status; an unknown kind is of no use, for there may always be more."""
        kind = value["type"]
        if kind in REACTIONS or kind == "follow":
            try:
                self.reading.said.append(Said((self._reaction(value, host),), value))
            except ValidationError as error:
                self._refuse("reaction", misfit(error), _without_words(value))
            except Refused as refused:
                self._refuse("reaction", refused, _without_words(value))
        if (kind in REACTIONS or kind in TOLD) and value.get("status") is not None:
            self._statuses([value["status"]], host)
        elif kind not in REACTIONS and kind != "follow":
            self.reading.of_no_use += 1

    def _reaction(self, value: dict[str, Any], host: str | None) -> ReactionObserved:
        kind, status = value["type"], value.get("status")
        if kind == "follow":
            raise Refused("target-unknown", "a notification does not say whom its account follows: whoever fetched it")
        if not isinstance(status, dict):
            raise Refused("bad-shape", f"a {kind} comes with its status, and this is {type(status).__name__}")
        if str(status.get("visibility")) not in PUBLIC:
            raise Refused("not-public", "a reaction to a status that is not for everyone")
        names = Names(self.source, host or _home(status))
        owner, post = names.author(part(value, "account"), "id"), names.post(status, "id")
        return ReactionObserved(
            act=f"{post}~{kind}~{value['account']['id']}",  # Mastodon has no ids for these; one person does it once
            owner=owner,
            source=self.source,
            kind=REACTIONS[kind],
            target=names.author(part(status, "account"), "id"),
            post=post,
            claimed_ms=time_ms(value, "created_at"),
            rights=self.rights(owner),
        )

    def _delete(self, value: dict[str, Any], host: str | None) -> None:
        """Say that a status is gone. Mastodon gives its id alone; `owner` is who it was of, as the stream remembers."""
        try:
            if host is None:
                raise Refused("server-unknown", "a deletion without host: whose number it is cannot be known")
            names = Names(self.source, host)
            post = names.post(value, "payload")
            if value.get("owner") is None:
                raise Refused("owner-unknown", "a status was deleted that is not remembered: whose it was is not known")
            gone = PostDeleted(post=post, owner=names.author(value, "owner"), source=self.source)
        except Refused as refused:
            self._refuse("compliance", refused, value)
        else:
            self.reading.said.append(Said((gone,), value))

    def _statuses(self, statuses: list[Any], host: str | None) -> None:
        """Read statuses and the ones inside them; as a list of what is to be done, for they may lie deep."""
        waiting = list(reversed(statuses))
        self.reading.of_no_use += not waiting
        while waiting:
            raw = waiting.pop()
            self.reading.posts_in += 1
            if isinstance(raw, dict):
                waiting.extend(_inside(raw))
            try:
                self._status(raw, host)
            except ValidationError as error:
                self._refuse("post", misfit(error), raw)
            except Refused as refused:
                self._refuse("post", refused, _without_words(raw) if refused.reason == "not-public" else raw)

    def _status(self, raw: Any, host: str | None) -> None:
        if not isinstance(raw, dict):
            raise Refused("bad-shape", f"a status is {type(raw).__name__}")
        events, author = post_events(raw, Names(self.source, host or _home(raw)), self.rights)
        sight = events[0].post, events[0].raw_sha256
        if sight in self.met:
            self.reading.repeated += 1
            return
        self.met.add(sight)
        self.reading.said.append(Said(events, raw))
        if author.fault is not None and events[0].rights.index:  # of whom nothing is kept there is nothing to repair
            self._refuse("author", Refused("bad-author", author.fault.detail), raw["account"])

    def _refuse(self, what: What, refused: Refused, raw: Any) -> None:
        self.reading.refusals.append(Refusal(what, refused.reason, refused.detail, raw))


def statuses_in(event: str, payload: Any) -> Iterator[dict[str, Any]]:
    """Give every status that a message brings, those inside others too, whatever else is wrong with it."""
    if isinstance(payload, str):
        try:
            payload = msgspec.json.decode(payload)
        except (ValueError, RecursionError):
            return
    if event == "notification":
        payload = payload.get("status") if isinstance(payload, dict) else None
    waiting = list(payload) if isinstance(payload, list) else [payload]
    while waiting:
        raw = waiting.pop()
        if isinstance(raw, dict):
            yield raw
            waiting.extend(_inside(raw))


def _inside(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the statuses that a status brings along: the one reposted, and the one quoted with leave.

    What stands in their place and is no object is a fault of the status itself, which is refused for it.
    """
    quote = raw.get("quote")
    quoted = quote.get("quoted_status") if isinstance(quote, dict) and with_leave(quote) else None
    return [one for one in (quoted, raw.get("reblog")) if one and isinstance(one, dict)]


def _without_words(raw: dict[str, Any]) -> dict[str, Any]:
    """Keep of what is not for everyone only what says which one it was."""
    return {key: raw[key] for key in ("id", "type", "visibility") if isinstance(raw.get(key), str)}


def _home(raw: dict[str, Any]) -> str:
    """Name the server of a status that is at home where it was read; Refused (server-unknown) if it was not."""
    acct, uri = part(raw, "account").get("acct"), raw.get("uri")
    if isinstance(acct, str) and "@" not in acct and isinstance(uri, str):
        try:
            found = urlsplit(uri)
        except ValueError:
            found = urlsplit("")
        if found.scheme in ("http", "https") and found.netloc:
            return found.netloc.rpartition("@")[2].lower()
    raise Refused(
        "server-unknown",
        "a status told by a server that is not its own: name the one it was read from, as in "
        '{"host": "example.social", "event": "update", "payload": STATUS}',
    )
