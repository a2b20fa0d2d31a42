"""Mastodon owners: the newest statuses seen -> whose each is, for a deletion gives a status's number alone.

One SQLite file beside the vault, so that a deletion after a restart is honoured too. Numbers only, no words; the newest
STATUSES_MAX are kept. Never fsynced: after a power cut the last seconds may be missing, and a deletion of one of these
is refused as `owner-unknown`, counted, and left to a person.
"""

import sqlite3
from pathlib import Path

STATUSES_MAX = 2_000_000  # about 150 MB; a day and a half of a large server's federated timeline
PRUNE_EVERY = 10_000


class Owners:
    """Whose statuses are, by HOST:NUMBER; without a path in memory, for tests."""

    def __init__(self, path: Path | None = None, statuses_max: int = STATUSES_MAX) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._max = statuses_max
        self._unpruned = 0
        self._db = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=off")
        self._db.execute(
            "create table if not exists owners (number integer primary key, status text unique not null, owner text)"
        )

    def note(self, status: str, owner: str) -> None:
        """Remember whose a status is."""
        self._db.execute("insert or ignore into owners (status, owner) values (?, ?)", (status, owner))
        self._unpruned += 1
        if self._unpruned >= min(PRUNE_EVERY, self._max):
            self._unpruned = 0
            self._db.execute("delete from owners where number <= (select max(number) from owners) - ?", (self._max,))

    def of(self, status: str) -> str | None:
        """Say whose a status is, None if it was not seen."""
        row = self._db.execute("select owner from owners where status = ?", (status,)).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
