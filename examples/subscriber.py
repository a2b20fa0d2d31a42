"""Subscriber: follow the model in production. Prints every release, from the first that is kept, and then waits.

It needs one package and the broker's address:

    pip install aiokafka
    python examples/subscriber.py 127.0.0.1:9092
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer, TopicPartition


async def follow(bootstrap: str, topic: str = "model-releases") -> None:
    """Read the compacted topic from its start: the last record of an alias is the release to run now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        async for record in consumer:
            event = {name: value.decode() for name, value in record.headers}  # ce_id, ce_type, ce_time, ce_origin ...
            release = json.loads(record.value)  # alias, release, version, base, base_name, adapter (none: the base)
            print(record.key.decode(), event["ce_time"], release["release"], release["version"], flush=True)
    finally:
        await consumer.stop()


if __name__ == "__main__":
    asyncio.run(follow(*sys.argv[1:]))
