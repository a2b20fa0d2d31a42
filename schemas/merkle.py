"""Merkle: leaves in order -> one root, as RFC 6962 section 2.1 hashes a log.

A leaf is hashed with a 0x00 in front and a node with 0x01, so that no node can pass for a leaf. The root of a batch
stays checkable after a text was erased, because leaves hold hashes of texts and never the texts.
"""

import hashlib
from collections.abc import Sequence


def leaf(data: bytes) -> bytes:
    """Hash one leaf (32 bytes)."""
    return hashlib.sha256(b"\x00" + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Fold leaf hashes (32 bytes each) to the root; no leaves give sha256 of nothing, as the RFC says."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        # An odd last node moves up unchanged: the RFC's split at the largest power of two gives just this.
        paired = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[2 * len(paired) :]
    return level[0]


def proof(leaves: Sequence[bytes], index: int) -> list[tuple[bytes, bool]]:
    """List the siblings from leaf `index` to the root, each with True where the sibling stands on the left."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    path: list[tuple[bytes, bool]] = []
    level = list(leaves)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append((level[sibling], sibling < index))
        paired = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[2 * len(paired) :]
        index //= 2
    return path


def verify(leaf_hash: bytes, path: Sequence[tuple[bytes, bool]], expected_root: bytes) -> bool:
    """Say whether the leaf is under the root, given the siblings that `proof` listed."""
    node = leaf_hash
    for sibling, on_left in path:
        node = hashlib.sha256(b"\x01" + (sibling + node if on_left else node + sibling)).digest()
    return node == expected_root
