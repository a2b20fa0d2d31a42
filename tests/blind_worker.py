"""Blind worker: the worker, whose consumer is told nothing of its topics, as by a broker that dies at that moment.

Run as `python tests/blind_worker.py [WORKER'S ARGUMENTS]`.
"""

import sys
from collections.abc import Collection
from typing import Any

from aiokafka.client import AIOKafkaClient

from streams import cli

_asked = AIOKafkaClient._metadata_update


async def unanswered(self: AIOKafkaClient, cluster: Any, topics: Collection[str]) -> bool:
    """Give what aiokafka gives when no broker answers; the clients that ask for one topic or all are answered."""
    return False if len(topics or ()) > 1 else bool(await _asked(self, cluster, topics))


if __name__ == "__main__":
    AIOKafkaClient._metadata_update = unanswered
    sys.exit(cli.main(["worker", *sys.argv[1:]]))
