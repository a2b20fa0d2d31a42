"""Header names: a record with a header whose name is not UTF-8 is read like any other, its name with U+FFFD in it.

Kafka's broker takes any bytes for the name of a header, and aiokafka's reader raises UnicodeDecodeError at the first
that is no UTF-8: one such record of any client would stop every agent of a worker, again after every start. So a batch
that it stumbles over is read once more by aiokafka's slower reader in Python, which decodes names leniently here. No
name of ours holds U+FFFD, so such a header is one that nobody asks for. What is replaced is pinned in
tests/test_foreign_batches.py, because it is aiokafka's inside.
"""

import struct
from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint_py

_LENGTH_AT, _BEFORE_LENGTH_ENDS = 8, 12  # of a batch; the length counts what follows it


class _Lenient(bytearray):
    """Bytes whose parts become text whatever they are."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _Lenient(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    """A batch whose headers may have any names."""

    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Lenient(self._buffer)

    def _read_msg(self) -> Any:
        return super()._read_msg(decode_varint_py)  # the one in C takes no kind of bytearray but the plain one


class _Batch:
    """aiokafka's batch, and its bytes in case that it stumbles."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch, self._data = batch, data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except UnicodeDecodeError:
            yield from _LenientBatch(self._data)  # from its first record: the fetcher leaves out what it had


class Records:
    """Stands where the fetcher looks for aiokafka's MemoryRecords."""

    def __init__(self, data: bytes) -> None:
        self._records, self._data, self._at = MemoryRecords(data), memoryview(data), 0

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is None:
            return None
        (length,) = struct.unpack_from(">i", self._data, self._at + _LENGTH_AT)
        begin, self._at = self._at, self._at + _BEFORE_LENGTH_ENDS + length
        return _Batch(batch, self._data[begin : self._at])


def allow_any() -> None:
    """From now on, consumers of this process read such records."""
    fetcher.MemoryRecords = Records
