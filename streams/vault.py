"""Vault: owner -> key, in one SQLite file; destroying a key is what forgetting means.

The file is opened by every process that reads or writes words; a key is made once and never again after it was
destroyed. Reads are cached; SQLite's data_version tells when another process changed the file, so a destroyed key
is out of every cache at the next chunk. `secure_delete` overwrites the key's bytes in the file and the write-ahead
log is truncated at once; copies on backups are the operator's to expire.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

from schemas.seal import KEY_BYTES

CACHE_MAX = 100_000  # owners; about 20 MB


class Vault:
    """The keys (schemas.seal.Keys) of one deployment."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cache: dict[str, bytes | None] = {}
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        os.chmod(path, 0o600)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.execute("pragma secure_delete=on")
        self._db.execute("create table if not exists keys (owner text primary key, key blob) without rowid")
        self._version = self._data_version()

    def get(self, owner: str) -> bytes | None:
        """Give the owner's key, or None."""
        with self._lock:
            return self._get(owner)

    def make(self, owner: str) -> bytes | None:
        """Give the owner's key, made now if there was never one; None if it was destroyed."""
        with self._lock:
            key = self._get(owner)
            if key is None:
                self._db.execute("insert or ignore into keys values (?, ?)", (owner, os.urandom(KEY_BYTES)))
                key = self._read(owner)
            return key

    def make_all(self, owners: Iterable[str]) -> None:
        """Make the keys of all who have none yet in one transaction: one wait for the disk in place of one a person."""
        with self._lock:
            missing = [owner for owner in dict.fromkeys(owners) if self._get(owner) is None]
            if missing:
                self._db.execute("begin immediate")
                keys = [(owner, os.urandom(KEY_BYTES)) for owner in missing]
                self._db.executemany("insert or ignore into keys values (?, ?)", keys)
                self._db.execute("commit")

    def destroy(self, owner: str) -> None:
        """Destroy the owner's key for good; again is nothing. OperationalError: its bytes still lie in the file."""
        with self._lock:
            self._db.execute("insert into keys values (?, null) on conflict do update set key = null", (owner,))
            self._cache[owner] = None
            if self._db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]:
                raise sqlite3.OperationalError("a reader keeps the destroyed key in the write-ahead log: do it again")

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

    def _data_version(self) -> int:
        return int(self._db.execute("pragma data_version").fetchone()[0])

    def _get(self, owner: str) -> bytes | None:
        if owner in self._cache:
            return self._cache[owner]
        return self._read(owner)

    def _read(self, owner: str) -> bytes | None:
        row = self._db.execute("select key from keys where owner = ?", (owner,)).fetchone()
        key: bytes | None = row[0] if row else None
        if row:  # an owner who is not there yet may be made by another process at any time
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            self._cache[owner] = key
        return key
