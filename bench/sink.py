"""Rows a second from records in memory into chDB: ours against clickhouse_connect's plain insert of lists of rows.

Both start from what a consumer gives (headers and bodies of every topic, as a small world of posts makes them), decode
with the same code and write every field into the same tables. Ours is the sink's own path: columns through Arrow, in
batches of 20,000 written by a thread while the next is decoded, sifted for what was forgotten, with checkpoints. The
peer inserts each 1,000 rows of a table with `client.insert(table, rows)`, as its documentation shows.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.feed import feed
from bench.rows import Row, row
from schemas import envelope
from schemas.facts import Event
from schemas.ids import digest
from schemas.seal import Unpunctured
from schemas.topics import TOPICS, partitions
from streams import tables as t
from streams.forgetting import Forgetting
from streams.memory import Engine
from streams.records import tick
from streams.settings import Settings
from streams.sink import POLL_ROWS_MAX, ROWS_MAX, Batch, write
from streams.topology import TICKED, Tuning, stages
from streams.warehouse import Warehouse, client, locked

POSTS = 12_000
WIDTH = 4
RUNS = 3
PEER_ROWS = 1_000
T0_MS = 1_780_000_000_000
LOGS = {topic.name: "bench" for topic in TOPICS}


class Keyring(Unpunctured):
    """Keys in memory."""

    def get(self, owner: str) -> bytes | None:
        """Give a key."""
        return (digest(owner) * 2).encode()

    make = get


def run() -> list[Row]:
    """Measure RUNS runs of each, in turns, on one database that is emptied in between."""
    log = _log()
    gc.freeze()  # as the sink's process does, for both
    gc.set_threshold(100_000, 50, 100)
    ours: list[float] = []
    peer: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_validate({"data": Path(folder)})
        with locked(settings):
            house = Warehouse(client(settings))
            house.migrate()
            for turn in range(RUNS + 1):
                for rates, fill in ((ours, _ours), (peer, _plain)):
                    rate = _rate(house, log, fill)
                    if turn:  # the first warms up both
                        rates.append(rate)
            house.client.close()
    return [
        row(
            "records of all topics into chDB, decoding included",
            statistics.median(ours),
            statistics.median(peer),
            "clickhouse-connect client.insert(table, rows), 1,000 rows each",
            "rows/s",
            n=RUNS,
            command="python -m bench sink",
            packages=("chdb", "clickhouse-connect", "pyarrow", "pydantic"),
        )
    ]


def _log() -> list[tuple[str, int, list[Any]]]:
    """Run every stage over a feed; give the log in the pieces that a consumer would."""
    engine = Engine(stages(Tuning(ages_ms=(1_000,))), Keyring(), width=WIDTH)
    engine.append(feed(1, POSTS, POSTS // 4, WIDTH, Keyring(), T0_MS))
    engine.run()
    engine.append(tick(topic, part, T0_MS + 10_000) for topic in TICKED for part in range(partitions(topic, WIDTH)))
    engine.run()
    return [
        (topic, partition, records[at : at + POLL_ROWS_MAX])
        for (topic, partition), records in engine.log.items()
        for at in range(0, len(records), POLL_ROWS_MAX)
    ]


def _rate(house: Warehouse, log: list[tuple[str, int, list[Any]]], fill: Callable[..., None]) -> float:
    for table in (*t.BY_NAME, "sink_checkpoint"):
        house.client.command(f"TRUNCATE TABLE `{table}`")
    began = time.perf_counter()
    fill(house, log)
    took = time.perf_counter() - began
    rows = sum(len(records) for _, _, records in log)
    found = sum(house.rows(f"SELECT count() FROM `{table}`")[0][0] for table in t.BY_NAME)
    if found != rows:
        raise AssertionError(f"{found} rows of {rows} arrived")
    return rows / took


def _ours(house: Warehouse, log: list[tuple[str, int, list[Any]]]) -> None:
    forgetting = Forgetting(house)
    forgetting.load()
    batch, writing = Batch(), None
    with ThreadPoolExecutor(1) as thread:

        def flush(writing: "Future[int] | None", batch: Batch) -> "Future[int]":
            if writing is not None:
                writing.result()
            return thread.submit(write, batch, house, forgetting, LOGS)

        for topic, partition, records in log:
            batch.take(topic, partition, records)
            if batch.rows >= ROWS_MAX:
                writing, batch = flush(writing, batch), Batch()
        flush(writing, batch).result()


def _plain(house: Warehouse, log: list[tuple[str, int, list[Any]]]) -> None:
    waiting: dict[t.Table, list[list[Any]]] = {}

    def insert(table: t.Table, rows: list[list[Any]]) -> None:
        names = [name for name, _ in t.RECORD] + [column.name for column in table.columns]
        house.client.insert(table.name, rows, column_names=names)

    for topic, partition, records in log:
        for raw in records:
            one = envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
            table = t.TABLES[type(one.event)]
            writer = one.origin.stage if one.origin else ""
            rows = waiting.setdefault(table, [])
            rows.append(
                [one.id, topic, partition, raw.offset, raw.timestamp, writer, len(raw.value), *_flat(table, one.event)]
            )
            if len(rows) == PEER_ROWS:
                insert(table, rows)
                waiting[table] = []
    for table, rows in waiting.items():
        if rows:
            insert(table, rows)


def _flat(table: t.Table, event: Event) -> Iterator[Any]:
    for column in table.columns:
        value: Any = event
        for step in column.path:
            if isinstance(value, tuple):  # a list of facts
                value = [getattr(one, step) for one in value]
            else:
                value = None if value is None else getattr(value, step)
        yield value
