"""Foreign batches: what other clients write into a log is read, however they packed it and named their headers.

aiokafka decodes the names of headers strictly, and one that is no UTF-8 would stop every agent of a worker for ever.
What streams/header_names.py replaces for that is no API. If one of the pins fails after an upgrade, read the new
source of that method next to it before changing the pin.
"""

import inspect
import struct
from typing import Any

import aiokafka
import pytest
from aiokafka import codec as codecs
from aiokafka.consumer import consumer, fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record import default_records, memory_records
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from faust.transport.drivers import aiokafka as driver

from schemas import envelope
from schemas import events as e
from schemas.topics import TOPICS
from streams import header_names, kafka, transport
from streams.records import outside
from tests.small_world import Keyring

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
BODY = 61  # where a batch's records begin
PLACE = TopicPartition("feedback", 0)
NOT_UTF8 = "caf\N{LATIN SMALL LETTER E WITH ACUTE}!".encode("latin-1")
EVENT = e.FeedbackGiven(feedback="f:1", subject="q:1/a:1", rater="r:1", kind="thumb")


def batch(codec: str = "none", first: int = 0, name: bytes = b"plain") -> bytes:
    """Write three records as a client may; the last one's second header has this name (of five bytes)."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1 << 20,
    )  # fmt: skip
    for n in range(3):
        headers = [("ce_id", b"%d" % (first + n)), ("other", NOT_UTF8)]
        builder.append(n, 1_000 + n, b"k\xff", b"value\xff of %d" % (first + n), headers)
    raw = bytes(builder.build())
    head, body = bytearray(raw[:BODY]), raw[BODY:]
    before, _, after = body.rpartition(b"other")
    body = before + name + after
    if codec != "none":
        body = getattr(codecs, f"{codec}_encode")(body)
    head[0:12] = struct.pack(">qi", first, BODY + len(body) - 12)
    head[21:23] = struct.pack(">h", CODECS[codec])
    head[17:21] = struct.pack(">I", calc_crc32c(bytes(head[21:]) + body))
    return bytes(head) + body


def read(data: bytes, begin: int = 0, records: Any = None) -> list[Any]:
    """Read as a consumer does, from offset `begin`."""
    kept = (records or fetcher.MemoryRecords)(data)
    read = PartitionRecords(PLACE, kept, [], begin, None, None, True, READ_COMMITTED)
    found = list(read)
    assert read.next_fetch_offset == found[-1].offset + 1
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_is_read_whichever_codec_its_client_chose(codec: str) -> None:
    assert read(batch(codec)) == read(batch())
    assert [one.value for one in read(batch(codec))] == [b"value\xff of %d" % n for n in range(3)]


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_whose_name_is_not_utf8_changes_nothing_but_that_name(codec: str) -> None:
    found = read(batch(codec, name=NOT_UTF8))
    *others, last = read(batch())
    assert found[:2] == others
    assert found[2].headers == (("ce_id", b"2"), ("caf\N{REPLACEMENT CHARACTER}!", NOT_UTF8))
    assert found[2] == last.__class__(**{**vars(last), "headers": found[2].headers})


def test_what_stands_around_such_a_record_in_a_fetch_is_read_once() -> None:
    parts = [batch(), batch("lz4", 3, NOT_UTF8), batch("none", 6, NOT_UTF8), batch("zstd", 9)]
    for begin in range(12):
        data = b"".join(parts[begin // 3 :])  # a broker sends from the batch on that holds the offset
        assert [one.offset for one in read(data, begin)] == list(range(begin, 12))


def test_such_a_record_is_taken_for_what_its_other_headers_say() -> None:
    sent = outside(EVENT, "/people", 1_000, 1, Keyring())
    name = read(batch(name=NOT_UTF8))[2].headers[1][0]
    record = envelope.decode("feedback", 0, 0, 1_000, [*sent.headers, (name, b""), (name, None)], sent.value)
    assert record.event == EVENT
    with pytest.raises(envelope.Refused, match="no-envelope"):
        envelope.decode("feedback", 0, 0, 1_000, [(name, b"")], sent.value)


# ---- what is replaced -----------------------------------------------------------------------------------------------


def test_aiokafka_itself_still_stumbles_over_such_a_name() -> None:
    """Negative control: once this passes over it, streams/header_names.py can go."""
    with pytest.raises(UnicodeDecodeError):
        read(batch(name=NOT_UTF8), records=memory_records.MemoryRecords)


def test_every_consumer_of_ours_reads_through_it() -> None:
    assert kafka.header_names is header_names
    assert fetcher.MemoryRecords is header_names.Records
    assert transport.aiokafka.AIOKafkaConsumer is aiokafka.AIOKafkaConsumer is driver.aiokafka.AIOKafkaConsumer
    assert consumer.Fetcher is fetcher.Fetcher
    assert "records = MemoryRecords(part_data[-1])" in inspect.getsource(fetcher.Fetcher._proc_fetch_request)


def test_the_fetcher_uses_of_records_and_of_a_batch_what_ours_have() -> None:
    """A batch hands on all it is asked for; beside that it is iterated, and asked for the next of a control batch."""
    source = inspect.getsource(PartitionRecords)
    assert source.count("for record in next_batch:") == 1
    assert source.count("next(next_batch)") == 1
    assert "if record.offset < self.next_fetch_offset:" in source
    assert {one for one in ("has_next", "next_batch", "size_in_bytes") if hasattr(header_names.Records, one)} == {
        name for name in dir(memory_records.MemoryRecords) if not name.startswith("_")
    }


def test_the_reader_in_python_has_the_shape_that_ours_was_written_for() -> None:
    kind = default_records._DefaultRecordBatchPy
    assert str(inspect.signature(kind._read_msg)).startswith("(self, decode_varint:")
    assert inspect.getsource(kind._read_msg).count(".decode(") == 1
    assert "self._buffer = bytearray(uncompressed)" in inspect.getsource(kind._maybe_uncompress)
    assert "self._maybe_uncompress()" in inspect.getsource(kind.__iter__)


# ---- how much a batch may hold --------------------------------------------------------------------------------------


def test_what_others_write_is_unpacked_by_the_broker_which_refuses_what_is_too_large() -> None:
    for topic in TOPICS:
        assert topic.configs().get("compression.type") == ("uncompressed" if topic.outside else None), topic.name
