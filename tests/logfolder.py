"""Log folder: what a stopped deployment leaves on disk, made without a broker, for tests of backups and the doctor."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from streams.fold import Sent
from streams.settings import Settings
from streams.vault import Vault

CLUSTER = "AAAAAAAAAAAAAAAAAAAAAA"
Row = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]], int]


def batch(base: int, rows: Sequence[Row], transactional: bool = False) -> bytes:
    """Make one record batch at an offset, as a broker would write it."""
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), -1, -1, -1, 1 << 20)
    for index, (key, value, headers, time_ms) in enumerate(rows):
        assert builder.append(index, time_ms, key, value, list(headers)) is not None
    return struct.pack(">q", base) + bytes(builder.build())[8:]


def segment(data: Path, place: str, first: int, batches: Iterable[bytes]) -> Path:
    """Write one segment of a partition (`topic-0`)."""
    folder = data / "broker" / "data" / place
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{first:020}.log"
    path.write_bytes(b"".join(batches))
    path.with_suffix(".index").write_bytes(bytes(64))
    return path


def stopped(data: Path, sent: Sequence[Sent] = (), namespace: str = "") -> Settings:
    """Make a small stopped deployment: a vault, a log with the records given, a snapshot, an adapter, a cursor."""
    settings = Settings(data=data, cache=data.parent / "cache", namespace=namespace)
    log = data / "broker" / "data"
    log.mkdir(parents=True)
    data.chmod(0o700)
    (log / "meta.properties").write_text(f"#\nversion=1\ncluster.id={CLUSTER}\nnode.id=1\n")
    (log / ".kafka_cleanshutdown").write_text('{"version":0}')
    by_place: dict[str, list[Row]] = {settings.physical("tweets") + "-0": [(b"k", b"v", [], 1)]}
    for one in sent:
        row = (one.key, one.value, one.headers, one.time_ms)
        by_place.setdefault(f"{settings.physical(one.topic)}-{one.partition}", []).append(row)
    for place, rows in by_place.items():
        segment(data, place, 0, [batch(0, rows)])
    vault = Vault(data / "vault" / "keys.sqlite")
    vault.make_all(["x:@1", "x:@2", "x:@3"])
    vault.close()
    settings.keep()
    for name, text in {
        "snapshots/rewards-0/snapshot": "state",
        "snapshots/rewards-0/claim": "7",
        "models/adapters/" + "a" * 64 + "/adapter_config.json": "{}",
        "ingest/bluesky/cursor": "cursor",
        "logs/worker.log": "said",
        "run/worker-0.status.json": "{}",
        "analytics/store/words": "in clear",
        "vectors/posts.lance": "in clear",
    }.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text)
    return settings
