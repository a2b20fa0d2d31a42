"""Intents: what authors declared about their own posts, kept so that every later post finds it; rebuilt from `tweets`.

One SQLite file beside the vault. A declaration is noted before it is sent, so the author's next post in the same batch
already stands under it; a crash in between has the source say it again. A declaration that is older than the one known
(an archive taken in late) is set aside: in the log, the last one counts.
"""

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from schemas.envelope import Record
from schemas.posts import IntentDeclared


@dataclass(frozen=True, slots=True)
class Declared:
    """What one author says: True, False, or None where they say nothing."""

    train: bool | None = None
    index: bool | None = None


NOTHING = Declared()
NOTE = """insert into declared values (?, ?, ?, ?) on conflict do update
    set train = excluded.train, may_index = excluded.may_index, at_ms = max(at_ms, excluded.at_ms)
    where excluded.at_ms = 0 or excluded.at_ms >= at_ms"""


def intents_file(data: Path) -> Path:
    """Where a deployment's declarations lie."""
    return data / "vault" / "intents.sqlite"


class Intents:
    """The declarations of one deployment; without a path they are kept in memory, for tests."""

    def __init__(self, path: Path | None = None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.execute(
            "create table if not exists declared "
            "(owner text primary key, train integer, may_index integer, at_ms integer not null) without rowid"
        )

    def declared(self, owner: str) -> Declared:
        """Give what the author declared last; another process's note is seen at once."""
        with self._lock:
            row = self._db.execute("select train, may_index from declared where owner = ?", (owner,)).fetchone()
        return NOTHING if row is None else Declared(*(None if one is None else bool(one) for one in row))

    def note(self, said: IntentDeclared, at_ms: int = 0) -> bool:
        """Keep a declaration made at `at_ms` (0: not known); False if a later one is known, which then still counts."""
        with self._lock:
            return self._db.execute(NOTE, (said.owner, said.train, said.index, at_ms)).rowcount > 0

    def rebuild(self, records: Iterable[Record]) -> int:
        """Forget all and read `tweets` again, as when they came in; gives how many declarations it held."""
        said = [record.event for record in records if isinstance(record.event, IntentDeclared)]
        with self._lock:
            self._db.execute("begin immediate")
            self._db.execute("delete from declared")
            self._db.executemany(NOTE, [(one.owner, one.train, one.index, one.claimed_ms or 0) for one in said])
            self._db.execute("commit")
        return len(said)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
