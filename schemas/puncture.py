"""Puncture: one secret -> a secret for each of 2^48 places, any of which can be destroyed while the others stay.

The tree of Goldreich, Goldwasser and Micali (1986): a node gives its four children by one hash, and a place is a leaf.
Destroying a place replaces the node above it by the nodes beside its path (Boneh and Waters 2013; used to forget by
Green and Miers 2015): none of them leads back up, so nothing that is left gives that leaf, and every other leaf is
what it was. A node covers the places from `low` on, 4^(DEPTH - depth) of them.

A name stands at a place by its hash. Destroying one takes another of n names with it (they share a place) with a chance
of n / 2^48: once in 2.8 billion times for 100,000 names.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

DEPTH = 24  # levels of two bits: 72 nodes for one place destroyed, fewer for each further one
NODE_BYTES = 16  # 128 bits
_TREE = blake2b(digest_size=4 * NODE_BYTES, person=b"xi-tree")  # copied: a third of the time of a new one


class Node(NamedTuple):
    """A secret that is still known, and which places it gives."""

    low: int
    depth: int
    secret: bytes

    @property
    def end(self) -> int:
        """The place after the last that it gives."""
        return self.low + (1 << 2 * (DEPTH - self.depth))


def _children(secret: bytes) -> bytes:
    state = _TREE.copy()
    state.update(secret)
    return state.digest()


def place_of(name: str) -> int:
    """Give the place of a name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=2 * DEPTH // 8, person=b"xi-place").digest(), "big")


def leaf(node: Node, place: int) -> bytes:
    """Give the secret (NODE_BYTES) of a place that the node covers."""
    assert node.low <= place < node.end
    secret, begin = node.secret, _TREE.copy
    for shift in range(2 * (DEPTH - node.depth) - 2, -2, -2):
        state = begin()  # `_children`, without a call for each level: it is done for every post that is sealed
        state.update(secret)
        at = (place >> shift & 3) << 4
        secret = state.digest()[at : at + 16]
    return secret


def without(node: Node, place: int) -> Iterator[Node]:
    """Give what replaces a node when one of its places is destroyed: all nodes beside the path to it."""
    assert node.low <= place < node.end
    low, _, secret = node
    for depth in range(node.depth + 1, DEPTH + 1):
        children = _children(secret)
        width = 1 << 2 * (DEPTH - depth)
        taken = (place - low) // width
        for digit in range(4):
            child = children[digit * NODE_BYTES : (digit + 1) * NODE_BYTES]
            if digit != taken:
                yield Node(low + digit * width, depth, child)
            else:
                secret = child
        low += taken * width
