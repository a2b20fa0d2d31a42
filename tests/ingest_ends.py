"""The ends of ingest in tests: keys in memory, a recorder in place of the broker, payloads in X's shapes."""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from schemas import envelope, seal
from schemas.envelope import Record
from schemas.facts import Event
from schemas.seal import Unpunctured
from streams.firsts import Firsts
from streams.fold import Sent
from streams.ingest import Known, Summary, ingest, ingest_values
from streams.intents import Intents
from streams.lines import Item, Line
from streams.policy import Policy
from streams.settings import Settings

SHARED = Path(__file__).parents[2] / "shared" / "data"  # real posts, which are never copied into the repository
NOW_MS = 1_767_571_200_000


class MemoryKeys(Unpunctured):
    """Keys made of the owner's name."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes | None] = {}

    def get(self, owner: str) -> bytes | None:
        return self.keys.get(owner)

    def make(self, owner: str) -> bytes | None:
        return self.keys.setdefault(owner, owner.encode().ljust(seal.KEY_BYTES, b"k")[: seal.KEY_BYTES])


class Recorder:
    """The recording end: what was sent, and in which chunks."""

    def __init__(self) -> None:
        self.records: list[Sent] = []
        self.chunks: list[int] = []

    async def send(self, records: Iterable[Sent]) -> None:
        before = len(self.records)
        self.records.extend(records)
        self.chunks.append(len(self.records) - before)

    def events(self, kind: type[Event] = Event) -> list[Any]:
        """As they went in: open."""
        return [one.event for one in self.records if isinstance(one.event, kind)]

    def letters(self) -> list[tuple[str, str]]:
        return [(one.event.place, one.event.reason) for one in self.records if one.topic == "dead-letters"]

    def read(self, keys: seal.Keys, topic: str = "tweets") -> list[Record]:
        """As a consumer reads them: decoded and opened."""
        found, offsets = [], dict[int, int]()
        for one in self.records:
            if one.topic == topic:
                offset = offsets[one.partition] = offsets.get(one.partition, -1) + 1
                record = envelope.decode(topic, one.partition, offset, one.time_ms, one.headers, one.value)
                event = seal.unseal(record.event, record.id, keys)
                found.append(Record(topic, one.partition, offset, one.time_ms, record.id, event))
        return found


def take(
    items: Iterable[Item],
    source: str | None = "x",
    keys: MemoryKeys | None = None,
    clock_ms: Callable[[], int] = lambda: NOW_MS,
    policy: Policy | None = None,
    known: Known | None = None,
) -> tuple[Summary, Recorder]:
    end = Recorder()
    keys, policy, known = keys or MemoryKeys(), policy or Policy.load(), known or in_memory()
    return asyncio.run(ingest(items, source, Settings(), end, keys, policy, clock_ms, known=known)), end


def take_values(
    values: Iterable[Any], source: str | None = "x", keys: MemoryKeys | None = None, known: Known | None = None
) -> tuple[Summary, Recorder]:
    end = Recorder()
    keys, known = keys or MemoryKeys(), known or in_memory()
    run = ingest_values(values, source, Settings(), end, keys, Policy.load(), lambda: NOW_MS, known=known)
    return asyncio.run(run), end


def in_memory() -> Known:
    return Known(Intents(), Firsts())


def as_lines(values: Iterable[bytes]) -> list[Item]:
    return [Line(f"made:{number}", value) for number, value in enumerate(values, 1)]


def post(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A post as X gives it; a field set to None is left out."""
    base: dict[str, Any] = {
        "id": str(10**18 + number),
        "text": f"post {number}",
        "author_id": str(7000 + number % 3),
        "created_at": f"2026-01-05T12:{number % 60:02}:00.000Z",
        "conversation_id": str(10**18 + number),
        "edit_history_tweet_ids": [str(10**18 + number)],
        "lang": "en",
        "public_metrics": {
            "retweet_count": 2, "reply_count": 3, "like_count": 5, "quote_count": 1, "impression_count": 900,
        },
    }  # fmt: skip
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def user(number: int, **changes: Any) -> dict[str, Any]:
    base = {
        "id": str(number),
        "name": f"Person {number}",
        "username": f"p{number}",
        "created_at": "2015-02-03T04:05:06.000Z",
        "verified": False,
        "public_metrics": {"followers_count": 10, "following_count": 20, "tweet_count": 30, "listed_count": 4},
    }
    return base | changes


def page(*posts: Any, **parts: Any) -> dict[str, Any]:
    return {"data": list(posts), "meta": {"result_count": len(posts)}, **parts}


def dump(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


# ---- other formats --------------------------------------------------------------------------------------------------


def post_v1(number: int = 1, **changes: Any) -> dict[str, Any]:
    """The same post as `post` gives, as X's API v1.1 had it; a field set to None is left out."""
    who = 7000 + number % 3
    base: dict[str, Any] = {
        "created_at": f"Mon Jan 05 12:{number % 60:02}:00 +0000 2026",
        "id": 10**18 + number,
        "id_str": str(10**18 + number),
        "full_text": f"post {number}",
        "truncated": False,
        "display_text_range": [0, 6],
        "entities": {"hashtags": [], "symbols": [], "user_mentions": [], "urls": []},
        "user": user_v1(who),
        "retweet_count": 2,
        "favorite_count": 5,
        "lang": "en",
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def user_v1(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number, "id_str": str(number), "name": f"Person {number}", "screen_name": f"p{number}",
        "created_at": "Tue Feb 03 04:05:06 +0000 2015", "verified": False, "followers_count": 10, "friends_count": 20,
        "statuses_count": 30, "listed_count": 4, "utc_offset": -18000, **changes,
    }  # fmt: skip


DID = "did:plc:" + "a" * 24


def jetstream(
    collection: str = "app.bsky.feed.post", record: Any = None, operation: str = "create", rkey: str = "3k", **more: Any
) -> dict[str, Any]:
    """One message of Jetstream about one act in one account's repository."""
    made = {"$type": collection, "createdAt": "2026-01-05T12:00:00.000Z", "text": "post", "langs": ["en"]}
    commit = {"rev": "3m", "operation": operation, "collection": collection, "rkey": rkey, "cid": "bafy"}
    if operation != "delete":
        commit["record"] = made if record is None else record
    return {"did": DID, "time_us": 1_767_614_400_000_000, "kind": "commit", "commit": commit, **more}


def declaration(allow: bool | None, time_us: int = 1_767_614_400_000_000, did: str = DID) -> dict[str, Any]:
    record = {"$type": "org.user-intents.declaration", "syntheticContentGeneration": {"allow": allow}}
    if allow is None:
        del record["syntheticContentGeneration"]
    return jetstream("org.user-intents.declaration", record, rkey="self", time_us=time_us, did=did)


def status(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A status as Mastodon gives it."""
    base: dict[str, Any] = {
        "id": str(10**17 + number),
        "uri": f"https://example.org/users/p/statuses/{number}",
        "created_at": "2026-01-05T12:00:00.000Z",
        "content": f"<p>post {number}</p>",
        "visibility": "public",
        "language": "en",
        "account": {
            "id": "5", "username": "p", "acct": "p", "display_name": "P", "bot": False, "followers_count": 3,
            "following_count": 4, "statuses_count": 5, "created_at": "2020-01-01T00:00:00.000Z",
            "url": "https://example.org/@p", "uri": "https://example.org/users/p",
        },
        "mentions": [], "tags": [{"name": "tag"}], "media_attachments": [{"id": "1", "type": "image"}],
        "favourites_count": 1, "reblogs_count": 2, "replies_count": 3, "edited_at": None, "reblog": None,
    }  # fmt: skip
    return {**base, **changes}
