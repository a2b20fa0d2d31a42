"""Payloads: what simulated people did -> what X's API v2 would answer about it.

Shapes follow real responses: string ids that hold their time, newest post first, expansions under `includes`, what
could not be expanded under `errors`, &, < and > escaped in texts, and entity offsets in code points of the escaped
text. A repost is cut to 140 characters before it is escaped, and its entities with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape, unescape
from typing import Any, Literal

Line = dict[str, Any]
Bits = Callable[[int], int]
Extra = tuple[Literal["hashtags", "cashtags", "urls", "photo", "video"], str]

SNOWFLAKE_EPOCH_MS = 1_288_834_974_657  # X's: an id is (ms since then) << 22 plus 22 bits
TEXT_MAX = 280
REPOST_TEXT_MAX = 140
LINK_CHARS = 23
DISPLAY_MAX = 26
YEAR_MS = 365 * 86_400_000
HALF_REACH_MS = 2 * 3_600_000  # half of all views come within this age
COUNTS = ("retweet_count", "reply_count", "like_count", "quote_count", "bookmark_count", "impression_count")


def snowflake(ms: int, bits: Bits) -> str:
    """Name something made at `ms`; X's ids sort by time."""
    return str((ms - SNOWFLAKE_EPOCH_MS) << 22 | bits(22))


def iso(ms: int) -> str:
    """Write a time as X does: UTC, whole seconds, three zeros, Z."""
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:19] + ".000Z"


@dataclass(slots=True, eq=False)
class Author:
    """A person; `user` is the user object of the payload."""

    id: str
    name: str
    community: int
    influence: float
    followers: int
    taste: float
    lang: str
    user: Line
    posts: int = 0
    gone: bool = False


@dataclass(slots=True, eq=False)
class Post:
    """One version of a post and what happens to it; `base` is its tweet object without the counts."""

    id: str
    ms: int
    author: Author
    base: Line
    quality: float
    thing: int = 0
    reach: int = 0  # views it will have had in the end
    like_rate: float = 0.0
    parent: "Post | None" = None  # what it answers, quotes or reposts
    stranger: str | None = None  # the account it answers, when neither that nor its post was ever seen
    media: Line | None = None
    repost: bool = False
    versions: tuple["Post", ...] = ()  # oldest first, ending with this one
    later: "Post | None" = None  # the version that replaced it
    deleted: bool = False
    replies: int = 0
    reposts: int = 0
    quotes: int = 0

    def gone(self) -> bool:
        """Say whether X still shows it."""
        return self.deleted or self.author.gone

    def at(self, now_ms: int) -> Line:
        """Give the tweet object with its counts at this moment; none of them ever falls."""
        if self.repost and self.parent:
            counts = (self.parent.reposts, 0, 0, 0, 0, 0)
        else:
            age_ms = now_ms - self.ms
            views = self.reach * age_ms // (age_ms + HALF_REACH_MS)
            likes = int(views * self.like_rate)
            counts = (self.reposts, self.replies, likes, self.quotes, likes // 8, views)
        return {**self.base, "public_metrics": dict(zip(COUNTS, counts, strict=True))}


def user_object(name: str, made_ms: int, followers: int, following: int, posts: int, bits: Bits) -> Line:
    """Describe an account as the users expansion does."""
    return {
        "id": snowflake(made_ms, bits),
        "name": name.replace("_", " ").title(),
        "username": name,
        "created_at": iso(made_ms),
        "description": "",
        "verified": followers > 10_000,
        "protected": False,
        "profile_image_url": "https://abs.twimg.com/sticky/default_profile_images/default_profile_normal.png",
        "url": "",
        "public_metrics": {
            "followers_count": followers,
            "following_count": following,
            "tweet_count": posts,
            "listed_count": followers // 120,
        },
    }


def tweet_object(made_ms: int, author: Author, lang: str, bits: Bits) -> Line:
    """Describe a post that says nothing yet and refers to nothing, without its counts."""
    name = snowflake(made_ms, bits)
    return {
        "id": name,
        "text": "",
        "author_id": author.id,
        "created_at": iso(made_ms),
        "conversation_id": name,
        "edit_history_tweet_ids": [name],
        "lang": lang,
        "possibly_sensitive": False,
    }


def refer(post: Post, kind: str, bits: Bits) -> tuple[str, str] | None:
    """Say what `post`, of this kind, refers to; return whom its text must mention (name, id).

    A "reply" without a parent answers a post and an account that this feed never shows. A "thread" continues its own
    author's post, which X does without a mention.
    """
    parent, base = post.parent, post.base
    if kind == "quote" and parent:
        base["referenced_tweets"] = [{"type": "quoted", "id": parent.id}]
    if kind not in ("reply", "thread"):
        return None
    if parent:
        name, base["in_reply_to_user_id"] = parent.author.name, parent.author.id
        answered, base["conversation_id"] = parent.id, parent.base["conversation_id"]
    else:
        name = f"gone_{bits(20)}"
        post.stranger = base["in_reply_to_user_id"] = snowflake(post.ms - YEAR_MS, bits)
        answered = base["conversation_id"] = snowflake(post.ms - YEAR_MS // 365, bits)
    base["referenced_tweets"] = [{"type": "replied_to", "id": answered}]
    return (name, base["in_reply_to_user_id"]) if kind == "reply" else None


def supersede(old: Post, new: Post) -> tuple[str, ...]:
    """Make `new` the next version of `old`; every version then names the whole chain, which is returned."""
    new.versions, old.later = (*old.versions, new), new
    new.base["conversation_id"] = old.base["conversation_id"]
    chain = tuple(version.id for version in new.versions)
    for version in new.versions:  # a new object: lines already given out keep what was known then
        version.base = {**version.base, "edit_history_tweet_ids": list(chain)}
    return chain


def write(
    post: Post, reply_to: tuple[str, str] | None, quoted: Post | None, body: str, extras: Sequence[Extra], bits: Bits
) -> None:
    """Set the text, entities and attachments of `post`.

    In this order: a mention of `reply_to` (name, id), the body, the extras that fit, the link to the quoted post.
    """
    text, entities = "", dict[str, list[Line]]()
    if reply_to:
        text = f"@{reply_to[0]} "
        entities["mentions"] = [{"start": 0, "end": len(text) - 1, "username": reply_to[0], "id": reply_to[1]}]
    room = TEXT_MAX + len(text) - (LINK_CHARS + 1 if quoted else 0)
    text += escape(body, quote=False) if "&" in body or "<" in body else body
    if quoted:
        address = f"https://x.com/{quoted.author.name}/status/{quoted.id}"
        extras = [*extras, ("urls", address)]
    for kind, value in extras:
        is_tag = kind in ("hashtags", "cashtags")
        code = "" if is_tag else f"{bits(40):010x}"
        shown = (f"#{value}" if kind == "hashtags" else f"${value}") if is_tag else f"https://t.co/{code}"
        start = len(text) + 1
        end = start + len(shown)
        if end > room and value[:14] != "https://x.com/":
            continue
        text = f"{text} {shown}"
        if is_tag:
            entities.setdefault(kind, []).append({"start": start, "end": end, "tag": value})
            continue
        display = value[8:]
        if kind != "urls":
            value = f"https://x.com/{post.author.name}/status/{post.id}/{kind}/1"
            display = f"pic.x.com/{code}"
            post.media = _media(kind, post.id)
            post.base["attachments"] = {"media_keys": [post.media["media_key"]]}
        display = display if len(display) <= DISPLAY_MAX else display[:DISPLAY_MAX] + "…"
        entities.setdefault("urls", []).append(
            {"start": start, "end": end, "url": shown, "expanded_url": value, "display_url": display}
        )
    post.base["text"] = text
    if entities:
        post.base["entities"] = entities


def _media(kind: str, post_id: str) -> Line:
    if kind == "photo":
        address = f"https://pbs.twimg.com/media/{post_id}.jpg"
        return {"media_key": f"3_{post_id}", "type": "photo", "url": address, "width": 1200, "height": 900}
    address = f"https://pbs.twimg.com/ext_tw_video_thumb/{post_id}.jpg"
    size = {"width": 1280, "height": 720, "duration_ms": 15_000}
    return {"media_key": f"7_{post_id}", "type": "video", "preview_image_url": address, **size}


def write_repost(post: Post, original: Post) -> None:
    """Set the text and entities of `post` to "RT @name: " and as much of the original as X carries."""
    author, lead = original.author, f"RT @{original.author.name}: "
    whole = lead + unescape(original.base["text"])
    cut = whole if len(whole) <= REPOST_TEXT_MAX else whole[: REPOST_TEXT_MAX - 1]
    text = escape(cut, quote=False)
    mention = {"start": 3, "end": len(lead) - 2, "username": author.name, "id": author.id}
    entities: dict[str, list[Line]] = {"mentions": [mention]}
    for kind, items in original.base.get("entities", {}).items():
        for item in items:
            start, end = item["start"] + len(lead), item["end"] + len(lead)
            if end < len(text) or (end == len(text) and cut is whole):  # a tag that the cut touches is no tag
                entities.setdefault(kind, []).append({**item, "start": start, "end": end})
    post.base["text"] = text if cut is whole else text + "…"
    post.base["entities"] = entities


def page(posts: Sequence[Post], now_ms: int) -> Line:
    """Answer a search that found these posts, given newest first, with everything they refer to expanded."""
    users: dict[str, Line] = {}
    tweets: dict[str, Post] = {}
    media: list[Line] = []
    errors: dict[str, Line] = {}

    def meet(author: Author, parameter: str) -> None:
        if not author.gone:
            users[author.id] = author.user
        elif parameter:
            errors[author.id] = _not_found("user", parameter, author.id)

    for post in posts:
        meet(post.author, "")
        parent = post.parent
        if post.media:
            media.append(post.media)
        if parent:
            meet(parent.author, "in_reply_to_user_id" if "in_reply_to_user_id" in post.base else "")
            if parent.gone():
                errors[parent.id] = _not_found("tweet", "referenced_tweets.id", parent.id)
            else:
                tweets[parent.id] = parent
                if parent.media:
                    media.append(parent.media)
        elif post.stranger:
            post_id, user_id = post.base["referenced_tweets"][0]["id"], post.stranger
            errors[post_id] = _not_found("tweet", "referenced_tweets.id", post_id)
            errors[user_id] = _not_found("user", "in_reply_to_user_id", user_id)
    includes: Line = {"users": list(users.values())}
    if tweets:
        includes["tweets"] = [tweet.at(now_ms) for tweet in tweets.values()]
    if media:
        includes["media"] = list({item["media_key"]: item for item in media}.values())
    meta = {"newest_id": posts[0].id, "oldest_id": posts[-1].id, "result_count": len(posts)}
    line: Line = {"data": [post.at(now_ms) for post in posts], "includes": includes, "meta": meta}
    if errors:
        line["errors"] = list(errors.values())
    return line


def _not_found(resource: str, parameter: str, value: str) -> Line:
    return {
        "value": value,
        "detail": f"Could not find {resource} with {parameter}: [{value}].",
        "title": "Not Found Error",
        "resource_type": resource,
        "parameter": parameter,
        "resource_id": value,
        "type": "https://api.twitter.com/2/problems/resource-not-found",
    }


def deleted(post: Post, now_ms: int) -> Line:
    """Say on the compliance stream that a post is gone."""
    return {"data": {"delete": {"tweet": {"id": post.id, "author_id": post.author.id}, "event_at": iso(now_ms)}}}


def user_deleted(author: Author, now_ms: int) -> Line:
    """Say on the compliance stream that an account is gone, and with it everything it said."""
    return {"data": {"user_delete": {"user": {"id": author.id}, "event_at": iso(now_ms)}}}
