"""Faust pins: the insides of Faust that the transport overrides still have the shape that it was written for.

These are not API. If one of these fails after an upgrade, read the new source of that method next to
streams/transport.py before changing the pin.
"""

import inspect
from importlib.metadata import version
from typing import Any

import faust
import pytest
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver
from mode.services import Service

from streams import transport

PINS = {
    (driver.AIOKafkaConsumerThread, "_create_worker_consumer"): "(self, transport)",
    (driver.AIOKafkaConsumerThread, "on_start"): "(self)",
    (driver.AIOKafkaConsumerThread, "_fetch_records"): "(self, consumer, active_partitions, timeout, max_records)",
    (driver.AIOKafkaConsumerThread, "_commit"): "(self, offsets)",
    (driver.AIOKafkaConsumerThread, "call_thread"): "(self, fun, args, kwargs)",
    (driver.AIOKafkaConsumerThread, "_ensure_consumer"): "(self)",
    (driver.Consumer, "_new_consumer_thread"): "(self)",
    (driver.Consumer, "_to_message"): "(self, tp, record)",
    (FaustConsumer, "_add_gap"): "(self, tp, offset_from, offset_to)",
    (FaustConsumer, "perform_seek"): "(self)",
    (driver.Consumer, "_getmany"): "(self, active_partitions, timeout)",
    (FaustConsumer, "getmany"): "(self, timeout)",
    (FaustConsumer, "force_commit"): "(self, topics, start_new_transaction)",
    (FaustConsumer, "_wait_next_records"): "(self, timeout)",
    (faust.Schema, "loads_key"): "(self, app, message, loads, serializer)",
    (faust.Schema, "loads_value"): "(self, app, message, loads, serializer)",
    (Service, "on_stop"): "(self)",
}


def shape(function: Any) -> str:
    """Give the names of a function's parameters."""
    return f"({', '.join(inspect.signature(function).parameters)})"


@pytest.mark.parametrize(("where", "expected"), PINS.items(), ids=lambda x: x if isinstance(x, str) else x[1])
def test_an_overridden_method_has_the_shape_it_was_written_for(where: tuple[type, str], expected: str) -> None:
    owner, name = where
    assert shape(getattr(owner, name)) == expected


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("faust-streaming") == "0.15.3"


def test_every_override_in_the_transport_is_pinned() -> None:
    pinned = {name for _, name in PINS}
    ours = (transport.ConsumerThread, transport.Consumer, transport.ChunkSchema)
    for kind in ours:
        overridden = {
            name
            for name, value in vars(kind).items()
            if callable(value) and any(name in vars(base) for base in kind.__mro__[1:-1])
        }
        assert overridden - {"__init__"} <= pinned


def test_the_drain_loop_reads_what_getmany_gives_and_asks_the_read_offset_first() -> None:
    source = inspect.getsource(FaustConsumer._drain_messages)
    assert "async for tp, message in ait" in source
    assert "get_read_offset = self._read_offset.__getitem__" in source
    assert "set_read_offset = self._read_offset.__setitem__" in source


def test_a_pin_notices_a_changed_shape() -> None:
    def perform_seek(self: object, partitions: object) -> None:
        """A Faust of the future."""

    assert shape(perform_seek) != PINS[FaustConsumer, "perform_seek"]


def test_every_resume_of_the_flow_comes_after_a_seek() -> None:
    from faust.tables import recovery

    source = inspect.getsource(recovery.Recovery)
    assert source.count("consumer.perform_seek()") == 2
