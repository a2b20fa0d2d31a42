"""Row: one preference pair, and its canonical bytes.

A training set is the list of its rows' canonical lines, in TRL's conversational shape with the id and the weight added,
sorted by id. Its hash is what a release names, so the bytes may not depend on the machine, the order of arrival or the
Python version: sorted keys, no spaces, UTF-8, one line feed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """A prompt (messages in order), the answer preferred, the answer not preferred, and how much the pair counts."""

    id: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.prompt or any(set(m) != {"role", "content"} or m["role"] not in ROLES for m in self.prompt):
            raise ValueError(f"row {self.id!r}: a prompt is messages of a role in {ROLES} and a content")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"row {self.id!r}: a weight is a finite number that is not negative")


def canonical(row: Row) -> bytes:
    """One JSON line. Raises UnicodeEncodeError for a lone surrogate, which has no UTF-8."""
    shape = {
        "id": row.id,
        "prompt": row.prompt,
        "chosen": [{"role": "assistant", "content": row.chosen}],
        "rejected": [{"role": "assistant", "content": row.rejected}],
        "weight": float(row.weight),
    }
    text = json.dumps(shape, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows sorted by id. Raises ValueError when two rows share an id: one id may not carry two payloads."""
    ordered = sorted(rows, key=lambda row: row.id)
    for before, after in pairwise(ordered):
        if before.id == after.id:
            raise ValueError(f"two rows have the id {before.id!r}")
    return ordered


def jsonl(rows: Iterable[Row]) -> bytes:
    """The training set as one file; `datasets` and TRL read it as it is."""
    return b"".join(canonical(row) for row in in_order(rows))


def dataset_sha256(rows: Iterable[Row]) -> str:
    """Identity of a training set, whatever order its rows came in."""
    return hashlib.sha256(jsonl(rows)).hexdigest()


def parse(line: bytes) -> Row:
    """The inverse of `canonical`. Raises ValueError or KeyError for a line that is no row."""
    shape = json.loads(line)
    return Row(
        id=shape["id"],
        prompt=shape["prompt"],
        chosen=shape["chosen"][0]["content"],
        rejected=shape["rejected"][0]["content"],
        weight=shape["weight"],
    )
