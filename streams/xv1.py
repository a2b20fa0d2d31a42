"""X API v1.1: one JSON value as X's older API and streams gave it -> events, named as v2 names the same posts.

Posts in the extended form (`full_text`, or `extended_tweet` in streams) and in the compatible one, whose long texts X
cut; search pages (`statuses`); stream messages. A retweet or quote carries another post, which is said too: it is one
more post in. The whole text is taken, as v2 gives it, and not the part that `display_text_range` shows. Ids are read
from `id_str`; a bare number above 2^53 may have lost digits on its way and is refused. Pure: no clock and no network.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from pydantic import ValidationError

from schemas.envelope import Refused
from schemas.facts import MS_MAX, AuthorFacts, Event, PostContent
from schemas.posts import AuthorErased, AuthorHidden, AuthorShown, EngagementObserved, PostDeleted, PostObserved
from streams.reading import Reading, Refusal, RightsOf, Said, What
from streams.xv2 import COMPLIANCE, GONE_POST, HIDES, NOTHING_HELD, NOTHING_SAID, SHOWS, Met, add, said_order
from streams.xv2_post import (
    EPOCH,
    KINDS,
    LAST,
    MS,
    NOBODY,
    Author,
    Names,
    canonical,
    counts_of,
    events_of,
    fingerprint,
    items,
    misfit,
    objects,
    part,
    refuse_nul,
    revised,
    unescape,
    word,
)

AT_MS = re.compile(r"[0-9]{1,16}")
EXACT = 2**53  # above it a number may have been rounded by whoever wrote it
NOTICES = frozenset(("limit", "disconnect", "warning"))
"""X reports trouble of the stream; `limit` says how many posts were not delivered."""
WITHHELD = {"status_withheld": "withheld", "user_withheld": "user_withheld"}
MEANT = COMPLIANCE | WITHHELD.keys()
COUNTS = {"likes": "favorite_count", "reposts": "retweet_count", "replies": "reply_count", "quotes": "quote_count"}
NESTED = ("retweeted_status", "quoted_status")
POLLED = frozenset((
    *COUNTS.values(), *NESTED, "user", "favorited", "retweeted", "matching_rules", "filter_level", "edit_history",
    "edit_controls",
))  # fmt: skip
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TIME = re.compile(
    rf"[A-Z][a-z]{{2}} ({'|'.join(MONTHS)}) ([0-9]{{2}}) ([0-9]{{2}}):([0-9]{{2}}):([0-9]{{2}}) "
    r"([+-])([0-9]{2})([0-9]{2}) ([0-9]{4})"
)


def is_v1(value: dict[str, Any]) -> bool:
    """Say whether an object is a post, a search page or a stream message of v1.1 (v2 nests `tweet` and `user`)."""
    if ("text" in value or "full_text" in value) and ("id_str" in value or isinstance(value.get("user"), dict)):
        return True
    if isinstance(value.get("statuses"), list) or "status_withheld" in value:
        return True
    if any(isinstance(value.get(name), dict) for name in NOTICES):
        return "text" not in value
    bodies = [value[name] for name in MEANT & value.keys() if isinstance(value[name], dict)]
    return any(not {"tweet", "user"} & body.keys() and {"id", "status", "user_id"} & body.keys() for body in bodies)


def read(value: Any, source: str, rights: RightsOf) -> Reading:
    """Read one JSON value of `source`; the posts in it come in time order."""
    reading = Reading()
    if not isinstance(value, dict):
        reading.refusals.append(Refusal("value", "unknown-shape", f"a {type(value).__name__} is no post", value))
        return reading
    names = Names(source)
    found = MEANT & value.keys() if not {"text", "full_text"} & value.keys() else frozenset[str]()
    if found or NOTICES & value.keys():
        _messages(value, found, names, reading)
    else:
        try:
            posts = items(value, "statuses") if "statuses" in value else [value]
        except Refused as refused:
            _refuse(reading, "value", refused, value)
            posts = []
        met: Met = {}
        waiting = list(reversed(posts))
        while waiting:
            raw = waiting.pop()
            waiting.extend(_nested(raw))
            reading.posts_in += 1
            _post(raw, names, rights, reading, met)
        reading.said.sort(key=said_order)
    reading.of_no_use += reading == NOTHING_SAID
    return reading


def _nested(raw: Any) -> list[dict[str, Any]]:
    return [raw[name] for name in NESTED if isinstance(raw.get(name), dict)] if isinstance(raw, dict) else []


def _post(raw: Any, names: Names, rights: RightsOf, reading: Reading, met: Met) -> None:
    try:
        if not isinstance(raw, dict):
            raise Refused("bad-shape", f"a post is {type(raw).__name__}")
        author = _author(raw, reading)
        events = _events(raw, names, rights, author)
    except Refused as refused:
        _refuse(reading, "post", refused, raw)
    except ValidationError as error:
        _refuse(reading, "post", misfit(error), raw)
    else:
        add(reading, Said(events, raw), met, events[0].post)


def _events(
    raw: dict[str, Any], names: Names, rights: RightsOf, author: Author
) -> tuple[PostObserved, *tuple[EngagementObserved, ...]]:
    raw_sha256 = fingerprint(raw, POLLED)
    own = names.post(_id(raw, "id"), "id")
    long = part(raw, "extended_tweet")
    post, revision = revised(own, items(part(raw, "edit_history"), "edit_tweet_ids"), names)
    owner = _owner(part(raw, "user"), names)
    reposted, reposted_author = _other(raw, "retweeted_status", names)
    quoted, quoted_author = _other(raw, "quoted_status", names)
    if quoted is None and _has(raw, "quoted_status_id"):
        quoted = names.post(_id(raw, "quoted_status_id"), "id")  # quoted, and gone or hidden
    parent = names.post(_id(raw, "in_reply_to_status_id"), "id") if _has(raw, "in_reply_to_status_id") else None
    entities = part(long, "entities") or part(raw, "entities")
    text = long.get("full_text") or raw.get("full_text", raw.get("text"))
    if not isinstance(text, str):
        raise Refused("no-text", f"text is {type(text).__name__}")
    content = PostContent(
        text=unescape(text),
        username=author[1],
        name=author[2],
        hashtags=tuple(word(one.get("text")) for one in objects(entities, "hashtags")),
        cashtags=tuple(word(one.get("text")) for one in objects(entities, "symbols")),
        links=tuple(word(one.get("expanded_url") or one.get("url")) for one in objects(entities, "urls")),
    )
    refuse_nul(content, raw.get("lang"))
    named = [names.author(_id(one, "id"), "id") for one in objects(entities, "user_mentions") if _has(one, "id")]
    media = [objects(part(one, "extended_entities"), "media") for one in (long, raw)]
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
        quoted=None if reposted else quoted,  # a retweet of a quote names what the original quotes
        quoted_author=None if reposted else quoted_author,
        reposted=reposted,
        reposted_author=reposted_author,
        conversation=post if parent is None and reposted is None else None,  # v1.1 names none
        reply_to=names.author(_id(raw, "in_reply_to_user_id"), "id") if _has(raw, "in_reply_to_user_id") else None,
        mentions=tuple(dict.fromkeys(named)),
        media_kinds=tuple(
            KINDS.get(one["type"], "other") if isinstance(one.get("type"), str) else "other"
            for one in media[0] or media[1] or objects(entities, "media")
        ),
        author=author[0],
        content=content,
        counts=counts_of(raw, COUNTS),
    )  # fmt: skip


def _owner(user: Mapping[str, Any], names: Names) -> str:
    if not _has(user, "id"):
        raise Refused("no-author", "user is missing: nobody could ever have it erased")
    return names.author(_id(user, "id"), "id")


def _other(raw: dict[str, Any], key: str, names: Names) -> tuple[str | None, str | None]:
    """Give the name and the author of the post that another one carries."""
    inner = part(raw, key)
    if not inner:
        return None, None
    own = names.post(_id(inner, "id"), "id")
    first, _ = revised(own, items(part(inner, "edit_history"), "edit_tweet_ids"), names)
    return first, _owner(part(inner, "user"), names)


def _author(raw: dict[str, Any], reading: Reading) -> Author:
    """Read the user object; one that does not fit is refused, and not the post."""
    user = part(raw, "user")
    try:
        canonical(user)
        facts = AuthorFacts(
            created_ms=_time_ms(user),
            followers=user.get("followers_count"),
            following=user.get("friends_count"),
            posts=user.get("statuses_count"),
            listed=user.get("listed_count"),
            verified=user.get("verified"),
            utc_offset_s=user.get("utc_offset"),
        )
        words = PostContent(text="", username=user.get("screen_name"), name=user.get("name"))
    except (Refused, ValidationError) as error:
        fault = misfit(error) if isinstance(error, ValidationError) else error
        _refuse(reading, "author", Refused("bad-author", fault.detail), user)
        return NOBODY
    return (facts if user else None), words.username, words.name


def _has(raw: Mapping[str, Any], key: str) -> bool:
    return raw.get(f"{key}_str") is not None or raw.get(key) is not None


def _id(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Give the digits of an id, as an object with `id`: those of the text, or of a number that is surely exact."""
    text, number = raw.get(f"{key}_str"), raw.get(key)
    if text is None and type(number) is int:
        if not 0 <= number <= EXACT:
            raise Refused("bad-id", f"{key} is a number above 2^53, which may have been rounded, and there is no text")
        return {"id": str(number)}
    return {"id": text if text is not None else number}


def _time_ms(raw: Mapping[str, Any]) -> int | None:
    text = raw.get("created_at")
    if text is None:
        return None
    found = TIME.fullmatch(text) if isinstance(text, str) else None
    try:
        if found is None:
            raise ValueError
        month, day, hour, minute, second, sign, hours, minutes, year = found.groups()
        zone = timezone((-1 if sign == "-" else 1) * timedelta(hours=int(hours), minutes=int(minutes)))
        at = datetime(
            int(year), MONTHS.index(month) + 1, int(day), int(hour), int(minute), min(int(second), 59), tzinfo=zone
        ).astimezone(UTC)
        if not EPOCH <= at <= LAST:
            raise ValueError
    except (ValueError, OverflowError):
        raise Refused("bad-time", "created_at is no time such as 'Tue Mar 24 10:43:44 +0000 2015'") from None
    return (at - EPOCH) // MS


# ---- stream messages ------------------------------------------------------------------------------------------------


def _messages(value: dict[str, Any], found: frozenset[str] | set[str], names: Names, reading: Reading) -> None:
    reading.errors += len(NOTICES & value.keys())
    for name in sorted(found):
        try:
            event = _complied(name, part(value, name), names)
        except Refused as refused:
            _refuse(reading, "compliance", refused, value)
        else:
            if event is None:
                reading.of_no_use += 1
            else:
                reading.said.append(Said((event,), value))


def _complied(name: str, body: dict[str, Any], names: Names) -> Event | None:
    meant = WITHHELD.get(name, name)
    if meant in NOTHING_HELD:
        return None
    if meant in GONE_POST:
        status = part(body, "status") or body
        if not _has(status, "user_id"):
            raise Refused("no-author", "user_id is missing: a deletion must say whose post is gone")
        owner = names.author(_id(status, "user_id"), "id")
        return PostDeleted(post=names.post(_id(status, "id"), "id"), owner=owner, source=names.source)
    owner = names.author(_id(part(body, "user") or body, "id"), "id")
    if meant in HIDES:
        return AuthorHidden(owner=owner, source=names.source, reason=HIDES[meant], claimed_ms=_at_ms(body))
    if meant in SHOWS:
        return AuthorShown(owner=owner, source=names.source, claimed_ms=_at_ms(body))
    return AuthorErased(owner=owner, source=names.source)


def _at_ms(body: dict[str, Any]) -> int | None:
    """Give when it happened, None where that is no time: nobody stays visible for that."""
    text = str(body.get("timestamp_ms"))
    return int(text) if AT_MS.fullmatch(text) and int(text) <= MS_MAX else None


def _refuse(reading: Reading, what: What, refused: Refused, raw: Any) -> None:
    reading.refusals.append(Refusal(what, refused.reason, refused.detail, raw))
