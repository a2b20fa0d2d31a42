"""Tiny base: a two-layer Llama as a base, for tests of what is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.base import Base
from models.rows import Row

HERE = Path(__file__).parent

QUESTION = [{"role": "user", "content": "How are you?"}]

ROWS = [
    Row(f"row-{n}", [{"role": "user", "content": f"Say {n}"}], chosen="ab" * 4, rejected="xyz" * 5, weight=1.0)
    for n in range(6)
]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from tests import tiny_llama

    return tiny_llama.build(tmp_path_factory.mktemp("base") / "tiny")


def in_child(work) -> int:
    """Exit status of a forked child that does `work`. It never returns into pytest."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
