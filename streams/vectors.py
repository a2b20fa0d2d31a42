"""Vectors: one LanceDB table, post id -> unit vector and where its words lie in the log; never the words themselves.

One writer (a locked folder), upserts by post id, and a table whose id is marked as its key: without that mark
concurrent upserts double rows in silence. A deleted row is invisible at once; `tidy` makes its bytes leave the disk.
LanceDB's own `optimize` does not do that by itself: it rewrites a file only when a tenth of its rows are deleted, and
an index keeps the vectors of rows that are gone. So `tidy` moves every row that lies beside a deleted one into a new
file, builds the index again, drops old versions and tags, and then looks whether a deletion mark is left.
"""

import logging
import secrets
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from streams.broker import FolderInUse, FolderLock
from streams.settings import Settings

log = logging.getLogger("xinfluencer.embedder")

STORE = "vectors"
TABLE = "posts"
INDEX_ROWS_MIN = 100_000  # below, an exact scan answers in about 0.1 s and no index must be kept
ASKED_MAX = 500  # values of one filter; a longer list is asked in parts
READ_TRIES_MAX = 3  # a reader may find a file gone that the writer tidied away meanwhile
NEWER = "target.revision < source.revision or (target.revision = source.revision and target.offset < source.offset)"
"""What may replace a row: a later revision, or the same one said again; one post's records lie in one partition."""
KEY = {b"lance-schema:unenforced-primary-key": b"true"}
NAME, ENCODER = b"xinfluencer.store", b"xinfluencer.encoder"

Vectors = npt.NDArray[np.float32]
Result = TypeVar("Result")


class StoreRefused(Exception):
    """The store cannot be used as it is; the message says what a person must do."""


class NoStore(Exception):
    """There is no store yet."""


def folder(settings: Settings) -> Path:
    """Where the vectors and their ledger lie."""
    return settings.data / STORE


class Row(NamedTuple):
    """What is kept of one post beside its vector. Times in ms; `words` is the hash of the text that was encoded."""

    post: str
    owner: str
    source: str
    lang: str | None
    claimed_ms: int | None
    revision: int
    train: bool
    show: bool
    policy: str
    words: str
    topic: str
    partition: int
    offset: int


class Near(NamedTuple):
    """A row that was found, and its cosine to what was asked."""

    row: Row
    score: float


def _schema(dimensions: int, metadata: dict[bytes, bytes]) -> Any:
    import pyarrow as pa

    text, number, flag = pa.string(), pa.int64(), pa.bool_()
    kinds = (text, text, text, text, number, number, flag, flag, text, text, text, number, number)
    needed = [
        pa.field(name, kind, nullable=name in ("lang", "claimed_ms"), metadata=KEY if name == "post" else None)
        for name, kind in zip(Row._fields, kinds, strict=True)
    ]
    vector = pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False)
    return pa.schema([*needed, vector], metadata=metadata)


def _open(folder: Path) -> Any:
    import lancedb

    base = lancedb.connect(str(folder))
    return base.open_table(TABLE) if (folder / f"{TABLE}.lance").exists() else None


class VectorStore:
    """The writer. Not for several threads at once."""

    def __init__(self, folder: Path, encoder: str, dimensions: int) -> None:
        """Lock the folder, open or make the table. StoreRefused: another writer, or vectors of another encoder."""
        import lancedb

        warnings.filterwarnings("ignore", message=r"optimize\(cleanup_older_than=0\)")  # readers try again
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = FolderLock(folder)
        try:
            self._lock.__enter__()
        except FolderInUse as used:
            raise StoreRefused(f"the store of vectors has one writer: {used}") from None
        self.folder = folder
        self._table = _open(folder)
        if self._table is None:
            metadata = {NAME: secrets.token_hex(16).encode(), ENCODER: encoder.encode()}
            self._table = lancedb.connect(str(folder)).create_table(TABLE, schema=_schema(dimensions, metadata))
        self._schema = self._table.schema
        made_by = (self._schema.metadata or {}).get(ENCODER, b"").decode()
        if made_by != encoder or self._schema.field("post").metadata != KEY:
            self.close()
            raise StoreRefused(
                f"{folder} holds vectors of encoder {made_by[:12] or 'unknown'}, this is {encoder[:12]}, and the two "
                "cannot be compared: remove the folder, and the log is encoded again from its beginning"
            )

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.__exit__(None, None, None)

    @property
    def name(self) -> str:
        """The table's own name, made with it: a checkpoint of another table is not this one's."""
        return str(self._schema.metadata[NAME].decode())

    @property
    def version(self) -> int:
        """Count the changes of the table, ever."""
        return int(self._table.version)

    def count(self) -> int:
        """Count the rows."""
        return int(self._table.count_rows())

    def unindexed(self) -> int:
        """Count the rows that every search must scan: those that no vector index covers."""
        stats = self._table.index_stats("vector_idx")
        return self.count() if stats is None else int(stats.num_unindexed_rows)

    def known(self, posts: Iterable[str]) -> dict[str, Row]:
        """Give the rows of these posts."""
        return {row.post: row for row in self._rows("post", posts)}

    def of(self, posts: Iterable[str], owners: Iterable[str]) -> list[Row]:
        """Give the rows of these posts and of these authors, each once."""
        found = {row.post: row for row in (*self._rows("post", posts), *self._rows("owner", owners))}
        return list(found.values())

    def _rows(self, column: str, values: Iterable[str]) -> list[Row]:
        from lancedb.expr import col

        found = []
        for part in _parts(values):
            query = self._table.search().where(col(column).isin(part)).select(list(Row._fields)).limit(None)
            found += [Row(**one) for one in query.to_list()]
        return found

    def upsert(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Write rows [N] with unit vectors [N, D]; a row that is newer stays. ValueError: one post twice."""
        import pyarrow as pa

        if len({row.post for row in rows}) != len(rows):
            raise ValueError("one post stands twice among the rows: LanceDB would keep both")
        if not rows:
            return
        columns = [
            pa.array(values, self._schema.field(name).type)
            for name, values in zip(Row._fields, zip(*rows, strict=True), strict=True)
        ]
        flat = np.ascontiguousarray(vectors, np.float32).ravel()
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1]))
        data = pa.Table.from_arrays(columns, schema=self._schema)
        merge = self._table.merge_insert("post").when_matched_update_all(where=NEWER).when_not_matched_insert_all()
        merge.execute(data)

    def delete(self, posts: Iterable[str]) -> None:
        """Make rows invisible; `tidy` takes their bytes away."""
        from lancedb.expr import col

        for part in _parts(posts):
            self._table.delete(col("post").isin(part))

    def tidy(self) -> bool:
        """Compact, index, and take away every byte that belongs to no row; say whether none is left.

        It writes anew every file that holds a deleted row, so its cost is the size of the table at worst.
        """
        for tag in self._table.tags.list():
            log.warning("the tag %r kept deleted vectors alive; it is removed", tag)
            self._table.tags.delete(tag)
        marked = self._marked()
        if marked:
            whole = " or ".join(f"(_rowid >= {one << 32} and _rowid < {(one + 1) << 32})" for one in sorted(marked))
            self._table.update(where=whole, values_sql={"revision": "revision"})
        self._index(anew=bool(marked))
        self._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        return not self._marked() and len(self._table.list_versions()) == 1

    def _marked(self) -> set[int]:
        """List the fragments that hold deleted rows: each has a file of marks, named fragment-version-random."""
        return {int(one.name.partition("-")[0]) for one in (self.folder / f"{TABLE}.lance").glob("_deletions/*-*.*")}

    def _index(self, anew: bool) -> None:
        """IVF with scalar quantisation: of four kinds it alone found 98 of 100 true neighbours after a short build."""
        from lancedb.index import BTree, IvfSq

        made = {index.name for index in self._table.list_indices()}
        wanted = self.count() >= INDEX_ROWS_MIN
        for name in made if not wanted else ():
            self._table.drop_index(name)
        if wanted and (anew or not made):
            self._table.create_index("vector", config=IvfSq(distance_type="dot"), replace=True)
            self._table.create_index("post", config=BTree(), replace=True)


class VectorReader:
    """Searches, beside the writer."""

    def __init__(self, folder: Path) -> None:
        """NoStore: nothing was embedded yet."""
        self._folder = folder
        self._table: Any = None
        self.encoder = self._read(lambda table: (table.schema.metadata or {}).get(ENCODER, b"").decode())

    def find(self, post: str) -> tuple[Row, Vectors] | None:
        """Give a post's row and its vector [D], or None."""
        from lancedb.expr import col, lit

        def ask(table: Any) -> list[dict[str, Any]]:
            query = table.search().where(col("post") == lit(post)).select([*Row._fields, "vector"])
            found: list[dict[str, Any]] = query.limit(1).to_list()
            return found

        for one in self._read(ask):
            return Row(**{name: one[name] for name in Row._fields}), np.asarray(one["vector"], np.float32)
        return None

    def nearest(
        self,
        vector: Vectors,
        number: int,
        *,
        beside: str | None = None,
        source: str | None = None,
        lang: str | None = None,
        since_ms: int | None = None,
    ) -> list[Near]:
        """Give the `number` rows nearest to a unit vector [D], the nearest first; `beside` names a post to leave out.

        Values are literals of an expression, never pieces of SQL.
        """
        from lancedb.expr import col, lit

        terms = [col(name) == lit(value) for name, value in (("source", source), ("lang", lang)) if value is not None]
        if beside is not None:
            terms.append(col("post") != lit(beside))
        if since_ms is not None:
            terms.append(col("claimed_ms") >= lit(since_ms))

        def ask(table: Any) -> list[dict[str, Any]]:
            query = table.search(vector).distance_type("dot").select([*Row._fields, "_distance"]).limit(number)
            query = query.nprobes(40).refine_factor(4)  # of use to an index only
            for term in terms:
                query = query.where(term)
            found: list[dict[str, Any]] = query.to_list()
            return found

        return [
            Near(Row(**{name: one[name] for name in Row._fields}), 1.0 - one["_distance"]) for one in self._read(ask)
        ]

    def _read(self, ask: Callable[[Any], Result]) -> Result:
        for tried in range(1, READ_TRIES_MAX + 1):
            if self._table is None:
                self._table = _open(self._folder)
            if self._table is None:
                raise NoStore(f"there are no vectors in {self._folder} yet: run `xinfluencer up` or `embedder` first")
            try:
                return ask(self._table)
            except (RuntimeError, OSError, ValueError) as error:
                if tried == READ_TRIES_MAX:
                    raise
                log.info("reading the vectors again: %r", error)
                self._table = None
        raise AssertionError


def _parts(values: Iterable[str]) -> Iterable[list[str]]:
    whole = list(dict.fromkeys(values))
    return (whole[at : at + ASKED_MAX] for at in range(0, len(whole), ASKED_MAX))
