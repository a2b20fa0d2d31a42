"""S3 server: moto, on this machine, in a thread of the test; it speaks S3's protocol and honours `If-None-Match: *`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import ThreadedMotoServer

from streams.object_snapshots import SnapshotStore


@contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, Any]]:
    """Serve one bucket; gives the options of SnapshotStore that reach it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
        SnapshotStore(f"s3://{bucket}", **options).files.mkdir(bucket)
        yield options
    finally:
        server.stop()


def s3_env(options: dict[str, Any]) -> dict[str, str]:
    """Say the options as a process takes them from its environment."""
    return {
        "AWS_ENDPOINT_URL": options["endpoint_url"],
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
    }
