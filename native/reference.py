"""Reference: the same operations in NumPy and float64, the truth that every kernel is tested against.

It is also what runs when the extension was not built: right, and about ten times slower.
"""

import numpy as np
import numpy.typing as npt

# Rows turned into float64 at a time: 8 MB at 256 dimensions, so that a large store is not doubled in memory.
ROW_BLOCK = 4096


def dot(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Products of every query with every vector: [Q, D], [N, D] -> [Q, N].

    Summed in float64, where a product of two float32 is exact, and rounded once. `einsum` sums every pair in the same
    order, so equal rows have equal scores; a matrix product does not promise that.
    """
    scores = np.empty((len(queries), len(vectors)), dtype=np.float32)
    wide = queries.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(vectors), ROW_BLOCK):
            rows = vectors[first : first + ROW_BLOCK].astype(np.float64)
            scores[:, first : first + ROW_BLOCK] = np.einsum("qd,nd->qn", wide, rows)
    return scores


def topk(scores: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k best of each row: [Q, N] -> indices [Q, k], scores [Q, k]; descending, ties by lowest index, NaN last."""
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)
    return indices, np.take_along_axis(scores, indices, axis=1)


def topk_dot(
    queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Exact top-k by dot product: see `native.topk_dot`. One query at a time, so memory stays at N scores."""
    found = [topk(dot(queries[q : q + 1], vectors), k) for q in range(len(queries))]
    if not found:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
