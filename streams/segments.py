"""Segments: the files that a stopped broker left of a partition -> from where to where it goes, and its records.

Kafka's own format (record batches of magic 2, kafka.apache.org/documentation, "Record Batch"), read without a broker:
a backup says what it holds, and a restore reads who was forgotten, with nothing running. Each batch's CRC-32C is held
against its bytes, so a rotten log is found while the backup before it is still there.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, 2 times, producer (3), records."""
BEFORE_LENGTH_ENDS = 12  # the length counts what follows it
BEFORE_CRC_ENDS = 21  # the CRC covers what follows it
CONTROL = 0x20


class SegmentBroken(Exception):
    """A segment holds bytes that are no batch; the message names the file and the byte."""


class Span(NamedTuple):
    """A stretch of a partition: its first offset, the one after its last, how many records (no markers) are in it."""

    first: int
    end: int
    records: int


def span(path: Path, data: bytes, torn_end: bool = False) -> Span:
    """Measure one segment; SegmentBroken unless it is whole batches to its last byte.

    With `torn_end` it may end in half a batch: that was never acknowledged, and the broker cuts it off when it starts.
    """
    first = end = int(path.stem)
    records, at = 0, 0
    view = memoryview(data)
    while at < len(data):
        size = _batch_size(view[at:])
        if size is None:
            if torn_end and len(data) - at < HEADER.size + _said(view[at:]):
                break
            raise SegmentBroken(f"{path} is damaged at byte {at}: what follows offset {end} cannot be read")
        base, *_, attributes, delta, _, _, _, _, _, number = HEADER.unpack_from(data, at)
        end = base + delta + 1
        records += 0 if attributes & CONTROL else number
        at += size
    return Span(first, end, records)


def _said(view: memoryview) -> int:
    """Give how long a batch says it is; 0 where it cannot say so."""
    return max(0, struct.unpack_from(">i", view, 8)[0]) if len(view) >= BEFORE_LENGTH_ENDS else 0


def _batch_size(view: memoryview) -> int | None:
    if len(view) < HEADER.size:
        return None
    _, length, _, magic, crc, *_ = HEADER.unpack_from(view)
    size = length + BEFORE_LENGTH_ENDS
    if magic != 2 or not HEADER.size <= size <= len(view):
        return None
    return size if calc_crc32c(view[BEFORE_CRC_ENDS:size]) == crc else None


def records(folder: Path) -> Iterator[Any]:
    """Give a partition's records in order, those of aborted transactions too (offset, timestamp, headers, value)."""
    for path in sorted(folder.glob("*.log")):
        batches = MemoryRecords(path.read_bytes())
        while batches.has_next():
            batch = batches.next_batch()
            if batch is not None and not getattr(batch, "is_control_batch", False):
                yield from batch
