"""Firsts: what was told of an author when a post was first seen, so that a post polled again is the same event.

An author's counts move between two polls of a post that did not. Events are named by what they say, so the second poll
would be another event; with the author as first seen it has the first one's id and bytes, and readers absorb it. Kept
for the newest POSTS_MAX posts; lost or outlived, the post is written once more and the newest is taken. Never fsynced.
"""

import sqlite3
import threading
from pathlib import Path

import msgspec

from schemas.facts import AuthorFacts

POSTS_MAX = 500_000  # about 100 MB; as strong as the readers' own window of 100,000 ids a partition
PRUNE_EVERY = 5_000


def firsts_file(data: Path) -> Path:
    """Where a deployment's memory of first sights lies."""
    return data / "vault" / "firsts.sqlite"


class Firsts:
    """One deployment's memory of first sights; without a path in memory, for tests."""

    def __init__(self, path: Path | None = None, posts_max: int = POSTS_MAX) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._max = posts_max
        self._lock = threading.Lock()
        self._unpruned = 0
        self._db = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=off")
        self._db.execute(
            "create table if not exists firsts (number integer primary key, post text unique not null, author blob)"
        )

    def author(self, post: str, now: AuthorFacts) -> AuthorFacts:
        """Give the author as first seen with this post in this form; `now` if that is now."""
        with self._lock:
            row = self._db.execute("select author from firsts where post = ?", (post,)).fetchone()
            if row is not None:
                return AuthorFacts(**msgspec.json.decode(row[0]))
            told = now.__pydantic_serializer__.to_json(now, exclude_none=True)
            self._db.execute("insert or ignore into firsts (post, author) values (?, ?)", (post, told))
            self._unpruned += 1
            if self._unpruned >= min(PRUNE_EVERY, self._max):
                self._prune()
            return now

    def _prune(self) -> None:
        self._unpruned = 0
        self._db.execute("delete from firsts where number <= (select max(number) from firsts) - ?", (self._max,))

    def close(self) -> None:
        """Close the file."""
        self._db.close()
