"""Vault: whose words can be opened, in one SQLite file; destroying a key is what forgetting means.

An owner has a key and the root of a tree that gives every post of theirs a secret (schemas/puncture.py). Forgetting an
author destroys both for good; forgetting a post replaces the root by the nodes that give all other posts. A deletion
of somebody who has no key yet waits, as a number, until they have.

The file is opened by every process that reads or writes words. Reads are cached; SQLite's data_version tells when
another process changed the file, so a destroyed key is out of every cache at the next chunk. `secure_delete` overwrites
the bytes in the file and the write-ahead log is truncated at once; copies on backups are the operator's to expire.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from schemas.events import AuthorForgotten, PostForgotten
from schemas.facts import Event
from schemas.puncture import NODE_BYTES, Node, leaf, place_of, without
from schemas.seal import KEY_BYTES, post_name

CACHE_MAX = 100_000  # owners; about 25 MB
EMPTIED_S_MAX = 10.0  # for other processes that empty the write-ahead log of the same file
TABLES = """
create table if not exists keys (owner text primary key, key blob, root blob) without rowid;
create table if not exists nodes (owner blob, low integer, depth integer, secret blob, primary key (owner, low))
    without rowid;
create table if not exists waiting (owner blob, place integer, primary key (owner, place)) without rowid;
"""
"""`root` is null where the key is, and where posts were forgotten: then `nodes` has what is left. A node is known by
the first place that it gives; nodes never overlap, so the last one that begins at or before a place is the only one
that can give it. `owner` in `nodes` and `waiting` is a hash."""


class Held(NamedTuple):
    """What is there of an owner: None where it was destroyed; no root but a key means that posts were."""

    key: bytes | None
    root: bytes | None


class Vault:
    """The keys (schemas.seal.Keys) of one deployment."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cache: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        os.chmod(path, 0o600)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.execute("pragma secure_delete=on")
        self._bring_forward()
        self._version = self._data_version()

    def get(self, owner: str) -> bytes | None:
        """Give the owner's key, or None."""
        with self._lock:
            held = self._get(owner)
            return held.key if held else None

    def make(self, owner: str) -> bytes | None:
        """Give the owner's key, made now if there was never one; None if it was destroyed."""
        with self._lock:
            if self._get(owner) is None:
                self._make([owner])
            held = self._get(owner)
            return held.key if held else None

    def make_all(self, owners: Iterable[str]) -> None:
        """Make the keys of all who have none yet in one transaction: one wait for the disk in place of one a person."""
        with self._lock:
            missing = [owner for owner in dict.fromkeys(owners) if self._get(owner) is None]
            if missing:
                self._make(missing)

    def leaf(self, owner: str, name: str) -> bytes | None:
        """Give the secret of one name of the owner's (schemas.seal.name_of); None if it was destroyed, or the key."""
        with self._lock:
            held = self._get(owner)
            if held is None or held.key is None:
                return None
            place = place_of(name)
            node = Node(0, 0, held.root) if held.root is not None else self._node(_hash(owner), place)
            return leaf(node, place) if node is not None else None

    def destroy(self, owner: str) -> None:
        """Destroy the owner's key for good; again is nothing. OperationalError: its bytes still lie in the file."""
        self.destroy_all([owner])

    def destroy_all(self, owners: Iterable[str] = (), posts: Iterable[tuple[str, str]] = ()) -> None:
        """Destroy the keys of owners and of single posts (owner, post) for good, in one transaction; again is nothing.

        OperationalError: their bytes still lie in the file; do it again.
        """
        with self._lock, self._db:
            self._db.execute("begin immediate")
            for owner in dict.fromkeys(owners):
                gone = "insert into keys values (?, null, null) on conflict do update set key = null, root = null"
                self._db.execute(gone, (owner,))
                self._db.execute("delete from nodes where owner = ?", (_hash(owner),))
                self._db.execute("delete from waiting where owner = ?", (_hash(owner),))
                self._cache[owner] = Held(None, None)
            for owner, post in dict.fromkeys(posts):
                self._puncture(owner, place_of(post_name(post)))
        with self._lock:
            # Of what was destroyed before and interrupted here, too: a receipt must never stand over bytes in the log.
            deadline = time.monotonic() + EMPTIED_S_MAX
            while self._db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]:
                # Sqlite waits for readers, but not for another process that empties the log at this moment.
                if time.monotonic() > deadline:
                    raise sqlite3.OperationalError("a reader keeps a destroyed key in the write-ahead log: do it again")
                time.sleep(0.01)

    def forget(self, receipts: Sequence[Event]) -> None:
        """Make receipts true: destroy the keys of the authors and posts that they name."""
        owners = [one.owner for one in receipts if isinstance(one, AuthorForgotten)]
        posts = [(one.owner, one.post) for one in receipts if isinstance(one, PostForgotten)]
        if owners or posts:
            self.destroy_all(owners, posts)

    def refresh(self) -> None:
        """Drop the cache if another process changed the file; call it once a chunk, not once a record."""
        with self._lock:
            version = self._data_version()
            if version != self._version:
                self._version = version
                self._cache.clear()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _bring_forward(self) -> None:
        """Make the tables; a file from before posts had keys gets a root for everybody who has a key."""
        columns = [name for _, name, *_ in self._db.execute("pragma table_info(keys)")]
        if "root" in columns:
            return
        with self._db:
            self._db.execute("begin immediate")
            columns = [name for _, name, *_ in self._db.execute("pragma table_info(keys)")]
            if columns == ["owner", "key"]:
                self._db.create_function("fresh", 0, lambda: os.urandom(NODE_BYTES), deterministic=False)
                self._db.execute("alter table keys add column root blob")
                self._db.execute("update keys set root = fresh() where key is not null")
            for statement in TABLES.split(";"):
                self._db.execute(statement)

    def _make(self, owners: list[str]) -> None:
        with self._db:
            self._db.execute("begin immediate")
            keys = [(owner, os.urandom(KEY_BYTES), os.urandom(NODE_BYTES)) for owner in owners]
            self._db.executemany("insert or ignore into keys values (?, ?, ?)", keys)
            for owner in owners:  # posts of theirs that were deleted before they had a key
                places = self._db.execute("select place from waiting where owner = ?", (_hash(owner),)).fetchall()
                self._db.execute("delete from waiting where owner = ?", (_hash(owner),))
                for (place,) in places:
                    self._puncture(owner, place)

    def _puncture(self, owner: str, place: int) -> None:
        """Destroy the secret of one place; within a transaction, so no cache is asked."""
        name = _hash(owner)
        row = self._db.execute("select key, root from keys where owner = ?", (owner,)).fetchone()
        if row is None:
            self._db.execute("insert or ignore into waiting values (?, ?)", (name, place))
            return
        held = Held(*row)
        if held.key is None:
            return
        node = Node(0, 0, held.root) if held.root is not None else self._node(name, place)
        if node is None:
            return
        if held.root is not None:
            self._db.execute("update keys set root = null where owner = ?", (owner,))
        else:
            self._db.execute("delete from nodes where owner = ? and low = ?", (name, node.low))
        self._db.executemany("insert into nodes values (?, ?, ?, ?)", [(name, *one) for one in without(node, place)])
        self._cache[owner] = Held(held.key, None)

    def _node(self, owner: bytes, place: int) -> Node | None:
        return _node(self._db, owner, place)

    def _data_version(self) -> int:
        return int(self._db.execute("pragma data_version").fetchone()[0])

    def _get(self, owner: str) -> Held | None:
        found = self._cache.get(owner)
        if found is not None:
            return found
        row = self._db.execute("select key, root from keys where owner = ?", (owner,)).fetchone()
        if row is None:
            return None  # who is not there yet may be made by another process at any time
        if len(self._cache) >= CACHE_MAX:
            self._cache.clear()
        found = self._cache[owner] = Held(*row)
        return found


def _hash(owner: str) -> bytes:
    return blake2b(owner.encode(), digest_size=16, person=b"xi-owner").digest()


def _node(db: sqlite3.Connection, owner: bytes, place: int) -> Node | None:
    """Give the node of an owner that gives a place, if there is one left."""
    sql = "select low, depth, secret from nodes where owner = ? and low <= ? order by low desc limit 1"
    row = db.execute(sql, (owner, place)).fetchone()
    return node if row and place < (node := Node(*row)).end else None


def untrue(path: Path, receipts: Iterable[Event]) -> list[Event]:
    """Name the receipts whose key a vault has again, as after an older file was put back; it is only looked at."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return [one for one in receipts if _has(db, one)]
    finally:
        db.close()


def _has(db: sqlite3.Connection, receipt: Event) -> bool:
    if not isinstance(receipt, AuthorForgotten | PostForgotten):
        return False
    # A file from before posts had keys has no `root`: there an author's key opens every post.
    rooted = any(name == "root" for _, name, *_ in db.execute("pragma table_info(keys)"))
    root = "root" if rooted else "key"
    row = db.execute(f"select {root} from keys where owner = ? and key is not null", (receipt.owner,)).fetchone()
    if row is None or isinstance(receipt, AuthorForgotten):
        return row is not None
    return row[0] is not None or _node(db, _hash(receipt.owner), place_of(post_name(receipt.post))) is not None
