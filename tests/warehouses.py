"""Warehouses: an analytics database of a test's own, in a folder; chDB allows one folder at a time in a process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streams.settings import Settings
from streams.warehouse import Warehouse, client, locked


def settings_in(folder: Path, **more: Any) -> Settings:
    """Settings of a folder of its own."""
    return Settings.model_validate({"data": folder, "partitions": 2, **more})


@contextmanager
def opened(settings: Settings) -> Iterator[Warehouse]:
    """Open the database as its one writer does."""
    with locked(settings):
        found = Warehouse(client(settings))
        try:
            yield found
        finally:
            found.client.close()
