"""Vectors: rows into LanceDB as our embedder writes them, against LanceDB used plainly, 100 rows at a time.

`table.add` is what LanceDB's own pages show first; it is not the same work, for it only appends, and a post written
twice stands there twice. `merge_insert` gives the same rows as ours. Ours looks for each post first, replaces only what
is older, and rewrites what holds deleted rows; all end with one compaction. The writes are the same in the same order,
a tenth of them a second revision.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np

from bench.rows import Row, row
from streams.embedder import CHUNK_RECORDS_MAX
from streams.vectors import Row as Kept
from streams.vectors import Vectors, VectorStore

ROWS = 20_000
AGAIN = ROWS // 10
PEER_ROWS = 100
DIMENSIONS = 384
RUNS = 3

Writes = list[tuple[Kept, int]]  # a row and the number of its vector


def writes(seed: int = 0) -> Writes:
    """Draw the order of writes: every post once, and a tenth of them again later with a new revision."""
    rng = random.Random(seed)
    order = list(range(ROWS)) + [rng.randrange(ROWS) for _ in range(AGAIN)]
    seen: dict[int, int] = {}
    made = []
    for offset, post in enumerate(order):
        seen[post] = seen.get(post, 0) + 1
        owner = f"x:@{post % 997}"
        kept = Kept(f"x:{post}", owner, "x", "en", offset, seen[post], True, True, "p", "0" * 64, "tweets", 0, offset)
        made.append((kept, post))
    return made


def ours(folder: Path, given: Writes, vectors: Vectors) -> tuple[float, int]:
    """Give seconds and rows visible at the end."""
    store = VectorStore(folder, "bench", DIMENSIONS)
    began = time.perf_counter()
    for start in range(0, len(given), CHUNK_RECORDS_MAX):
        newest = {kept.post: (kept, number) for kept, number in given[start : start + CHUNK_RECORDS_MAX]}
        store.known(newest)
        store.upsert([kept for kept, _ in newest.values()], vectors[[number for _, number in newest.values()]])
        store.count()
    store.tidy()
    taken = time.perf_counter() - began
    rows = store.count()
    store.close()
    return taken, rows


def peer(folder: Path, given: Writes, vectors: Vectors, merge: bool) -> tuple[float, int]:
    """Give seconds and rows visible at the end."""
    import lancedb

    base = lancedb.connect(str(folder))
    table = None
    began = time.perf_counter()
    for start in range(0, len(given), PEER_ROWS):
        part = [{**kept._asdict(), "vector": vectors[number]} for kept, number in given[start : start + PEER_ROWS]]
        if table is None:
            table = base.create_table("posts", part)
        elif merge:
            newest = list({one["post"]: one for one in part}.values())
            table.merge_insert("post").when_matched_update_all().when_not_matched_insert_all().execute(newest)
        else:
            table.add(part)
    assert table is not None
    table.optimize(cleanup_older_than=timedelta(0))
    return time.perf_counter() - began, int(table.count_rows())


def run() -> list[Row]:
    """Measure RUNS runs of each, in turns. Raises RuntimeError if ours does not hold each post once."""
    given = writes()
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIMENSIONS), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ways: dict[str, Callable[[Path, Writes, Vectors], tuple[float, int]]] = {
        "ours": ours,
        "add": partial(peer, merge=False),
        "merge_insert": partial(peer, merge=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    rows = {}
    for _ in range(RUNS):
        for name, write in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds, rows[name] = write(Path(folder), given, vectors)
            rates[name].append(len(given) / seconds)
    if rows["ours"] != ROWS:
        raise RuntimeError(f"{rows['ours']} rows for {ROWS} posts; nothing is claimed")
    return [
        row(
            f"{len(given):,} writes of {ROWS:,} posts x {DIMENSIONS}; the peer ends with {rows[name]:,} rows",
            statistics.median(rates["ours"]),
            statistics.median(rates[name]),
            f"lancedb table.{name}, {PEER_ROWS} rows at a time",
            "rows/s",
            n=RUNS,
            command="python -m bench vectors",
            packages=("lancedb", "pyarrow"),
        )
        for name in ("add", "merge_insert")
    ]
