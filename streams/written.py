"""Written: the ids of what the log took -> a file taken in again, however much later, writes nothing twice.

A step that reads what outsiders write knows a repetition by its id, within the last SEEN_MAX (100,000) ids of a
partition; beyond, it would say everything again under the same names with other places. So the edge remembers what was
acknowledged: all 128 bits of the newest WRITTEN_MAX / 2 ids for certain, WRITTEN_MAX at most, in one SQLite file. With
them, of the POSTS_MAX posts counted last, what their newest counts said (streams/polls.py); each sight of counts has an
id here beside the record's own.

It belongs to one log: of another (wiped, made anew, or cut at its beginning by retention) it knows nothing. What is
noted was acknowledged, so a crash repeats and never skips: what is in the log and was not noted is a chunk at most.
Not covered: that chunk, writers past this edge, and other machines' edges; and a broker that loses what it had
acknowledged (a power cut with one replica): then remove the file, and everything may be taken in again.
"""

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from schemas.ids import digest
from schemas.topics import TWEETS
from streams.kafka import KafkaSettings, cluster_id, topic_ids
from streams.lines import IngestRefused
from streams.settings import Settings

WRITTEN_MAX = 50_000_000  # about 1.6 GB, a few percent of the log that holds as many records
POSTS_MAX = 2_000_000  # about 200 MB
PRUNE_EVERY = 10_000


def written_file(data: Path) -> Path:
    """Where a deployment's memory of what was written lies."""
    return data / "ingest" / "written.sqlite"


async def log_of(settings: Settings, kafka: KafkaSettings) -> str:
    """Name the log that `tweets` is: whose cluster's, which topic of that name, and where its partitions begin."""
    topic = settings.physical(TWEETS.name)
    made = (await topic_ids(kafka, [topic]))[topic]
    async with AIOKafkaConsumer(**kafka.client_kwargs()) as consumer:
        places = [TopicPartition(topic, partition) for partition in range(settings.partitions)]
        begins = await consumer.beginning_offsets(places)
    return "/".join([await cluster_id(kafka), topic, made, *(str(begins[place]) for place in places)])


class Written:
    """One log's memory; several processes may share the file. Without a path in memory, for tests."""

    def __init__(self, path: Path | None, log: str, ids_max: int = WRITTEN_MAX, posts_max: int = POSTS_MAX) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._half = max(1, ids_max // 2)
        self._posts_max = posts_max
        self._unpruned = 0
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")  # a crash of the machine leaves a whole file, a little older
            self._begin(log)
        except sqlite3.DatabaseError as error:
            raise IngestRefused(
                f"{path} cannot be used ({error}): remove it, and what is in the log is not known"
            ) from None

    def _begin(self, log: str) -> None:
        """Open both generations, empty if they are of another log: ids go into one, and the older one is dropped."""
        self._db.execute("begin immediate")
        self._db.execute("create table if not exists about (log text, newer integer, ids integer)")
        if self._db.execute("select log from about").fetchall() != [(log,)]:
            self._db.execute("delete from about")
            self._db.execute("insert into about values (?, 0, 0)", (log,))
            for one in (0, 1):
                self._db.execute(f"drop table if exists written{one}")
            self._db.execute("drop table if exists newest")
        for one in (0, 1):
            self._db.execute(f"create table if not exists written{one} (id blob primary key) without rowid")
        self._db.execute(
            "create table if not exists newest (number integer primary key, post blob unique not null, content blob)"
        )
        self._db.execute("commit")

    def knows(self, name: str) -> bool:
        """Say whether the log holds a record of this id (32 hex digits), so far as it is remembered."""
        with self._lock:
            found = self._db.execute(
                "select exists (select 1 from written0 where id = ?1) or exists (select 1 from written1 where id = ?1)",
                (bytes.fromhex(name),),
            )
            return bool(found.fetchone()[0])

    def newest(self, post: str) -> str | None:
        """Give the name of what a post's newest counts said, if it is remembered."""
        with self._lock:
            row = self._db.execute("select content from newest where post = ?", (_key(post),)).fetchone()
        return None if row is None else bytes(row[0]).hex()

    def note(self, names: Iterable[str], newest: Mapping[str, str] | None = None) -> None:
        """Remember ids that the log acknowledged, and the newest counts of posts."""
        rows = sorted((bytes.fromhex(name),) for name in names)  # in order, so that neighbours share their pages
        if not rows:
            return
        with self._lock:
            self._db.execute("begin immediate")
            newer, ids = self._db.execute("select newer, ids from about").fetchone()
            if ids >= self._half:
                newer, ids = 1 - newer, 0
                self._db.execute(f"delete from written{newer}")
            added = self._db.executemany(f"insert or ignore into written{newer} values (?)", rows).rowcount
            self._db.execute("update about set newer = ?, ids = ?", (newer, ids + added))
            said = [(_key(post), bytes.fromhex(content)) for post, content in (newest or {}).items()]
            self._db.executemany("insert or replace into newest (post, content) values (?, ?)", said)
            self._unpruned += len(said)
            if self._unpruned >= min(PRUNE_EVERY, self._posts_max):
                self._unpruned = 0
                oldest = "select max(number) from newest"
                self._db.execute(f"delete from newest where number <= ({oldest}) - ?", (self._posts_max,))
            self._db.execute("commit")

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _key(post: str) -> bytes:
    return bytes.fromhex(digest("post", post))
