"""Ledger: what the embedder has read, whose vectors may not come back, which receipts are owed; one SQLite file.

It belongs to one log and one table of vectors: a broker that was wiped, a log that was cut, a table that was put back
from a copy are each noticed before anything is written. A chunk is one transaction, made after its rows are in the
table; a crash in between repeats the chunk, and rows of the same ids change nothing.

A receipt is owed from before the rows are deleted, with the number of rows that there were, so that a crash cannot
make it count none; it is kept after it was sent, so that the same request said twice has one receipt.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

GONE_POSTS_MAX = 5_000_000  # deleted posts remembered, about 300 MB; the longest gone is forgotten first
REVISIONS_MAX = 5_000_000  # ids of revisions remembered, about as large; the longest unsaid is forgotten first
SENT_MAX = 100_000  # receipts remembered after they were sent: the stated window of dedupe by id

TABLES = """
create table if not exists bound (name text primary key, value text) without rowid;
create table if not exists place (
    partition integer primary key, next integer not null, last integer not null, fingerprint text not null
);
create table if not exists gone_post (number integer primary key, post text unique not null);
create table if not exists revision (number integer primary key, named text unique not null, post text not null);
create table if not exists gone_owner (owner text primary key, erased integer not null) without rowid;
create table if not exists receipt (
    number integer primary key, record text unique not null, owner text not null, post text, partition integer not null,
    offset integer not null, rows integer not null, sent integer not null default 0, asked_s real not null default 0
);
"""


class Place(NamedTuple):
    """How far a partition was read: the next offset, and the last record's offset (-1: none) and fingerprint."""

    next: int
    last: int = -1
    fingerprint: str = ""


class Request(NamedTuple):
    """A record that asks for vectors to be forgotten: of one post, or (post None) of an author."""

    record: str
    owner: str
    post: str | None
    partition: int
    offset: int


class Ledger:
    """The ledger of one store of vectors."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / "ledger.sqlite"
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        os.chmod(path, 0o600)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(TABLES)
        if "asked_s" not in {row[1] for row in self._db.execute("pragma table_info(receipt)")}:  # made before it was
            self._db.execute("alter table receipt add column asked_s real not null default 0")
            self._db.execute("update receipt set asked_s = ?", [time.time()])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def bound(self) -> dict[str, str]:
        """Give what the ledger belongs to; empty in a new one."""
        return dict(self._db.execute("select name, value from bound"))

    def places(self) -> dict[int, Place]:
        """Give how far each partition was read."""
        return {row[0]: Place(*row[1:]) for row in self._db.execute("select * from place")}

    def commit(
        self,
        places: Mapping[int, Place],
        bound: Mapping[str, str],
        gone_posts: Iterable[str] = (),
        owners: Mapping[str, bool | None] | None = None,
        revisions: Mapping[str, str] | None = None,
    ) -> None:
        """Keep one chunk: places, deleted posts, authors (True erased, False hidden, None shown again), revisions."""
        with self._whole():
            self._keep(places, bound, gone_posts, (owners or {}).items(), (revisions or {}).items())

    def _keep(
        self,
        places: Mapping[int, Place],
        bound: Mapping[str, str],
        gone_posts: Iterable[str],
        said: Iterable[tuple[str, bool | None]],
        revisions: Iterable[tuple[str, str]],
    ) -> None:
        self._db.executemany("insert or replace into bound values (?, ?)", bound.items())
        self._db.executemany("insert or replace into place values (?, ?, ?, ?)", [(n, *p) for n, p in places.items()])
        self._db.executemany("insert or ignore into gone_post (post) values (?)", [(post,) for post in gone_posts])
        self._db.execute(
            "delete from gone_post where number <= (select max(number) from gone_post) - ?", (GONE_POSTS_MAX,)
        )
        self._db.executemany("insert or replace into revision (named, post) values (?, ?)", revisions)
        self._db.execute(
            "delete from revision where number <= (select max(number) from revision) - ?", (REVISIONS_MAX,)
        )
        self._db.executemany(
            "insert into gone_owner values (?, ?) on conflict do update set erased = max(erased, excluded.erased)",
            [(owner, int(erased)) for owner, erased in said if erased is not None],
        )
        self._db.executemany(
            "delete from gone_owner where owner = ? and not erased",
            [(owner,) for owner, erased in said if erased is None],
        )

    def post_is_gone(self, post: str) -> bool:
        """Say whether the post was deleted, or a revision of that id."""
        return self._db.execute("select 1 from gone_post where post = ?", (post,)).fetchone() is not None

    def post_of(self, revision: str) -> str | None:
        """Give the post that a revision's own id stands for, or None."""
        row = self._db.execute("select post from revision where named = ?", (revision,)).fetchone()
        return None if row is None else str(row[0])

    def owner_is_gone(self, owner: str) -> str | None:
        """Say "erased" or "hidden" of an author, or None."""
        row = self._db.execute("select erased from gone_owner where owner = ?", (owner,)).fetchone()
        return None if row is None else "erased" if row[0] else "hidden"

    def owe(self, requests: Iterable[tuple[Request, int]]) -> None:
        """Note that requests came, and how many rows each was about; the first note of a record stays."""
        with self._whole():
            self._db.executemany(
                "insert or ignore into receipt (record, owner, post, partition, offset, rows, asked_s)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                [(*request, rows, time.time()) for request, rows in requests],
            )

    def owed(self) -> list[tuple[Request, int]]:
        """List what was asked for in records that are read for good, and is not receipted yet."""
        found = self._db.execute(
            "select record, owner, post, receipt.partition, offset, rows from receipt join place"
            " on place.partition = receipt.partition where not sent and offset < place.next order by number"
        )
        return [(Request(*row[:5]), row[5]) for row in found]

    def waiting(self) -> int:
        """Count the receipts that are owed."""
        return int(self._db.execute("select count(*) from receipt where not sent").fetchone()[0])

    def owed_since(self) -> float | None:
        """Give when the oldest receipt that is owed was first asked for, Unix seconds; None if none is owed."""
        found: float | None = self._db.execute("select min(asked_s) from receipt where not sent").fetchone()[0]
        return found

    def sent(self, requests: Iterable[Request]) -> None:
        """Note that these receipts are in the log."""
        with self._whole():
            self._db.executemany("update receipt set sent = 1 where record = ?", [(one.record,) for one in requests])
            self._db.execute(
                "delete from receipt where sent and number <= (select max(number) from receipt) - ?", (SENT_MAX,)
            )

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")
