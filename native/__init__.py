"""Arithmetic: arrays in, arrays out, on the widest instructions this processor has.

Every operation exists once per instruction set and once in `reference.py`, which is the truth. Without a built
extension the reference runs, and `backend()` says so.
"""

import math

import numpy as np
import numpy.typing as npt

from native import reference

try:
    from native import _kernels
except ImportError:  # no compiler when this was installed
    _kernels = None  # type: ignore[assignment]

# Lanes of each instruction set: the number of float32 that one register holds.
LANES = {"avx512": 16, "avx2": 8, "neon": 4}

# More threads than this only fight for memory: two already read as fast as a small machine's memory answers.
THREADS_MAX = 64


def instruction_sets() -> tuple[str, ...]:
    """Names that `isa` accepts on this processor, fastest first; the last is always "reference"."""
    return (*(_kernels.instruction_sets() if _kernels is not None else ()), "reference")


BACKEND = instruction_sets()[0]


def backend() -> str:
    """The instruction set used when none is named; "reference" means that the extension was not built."""
    return BACKEND


def error_bound(dimensions: int, isa: str) -> float:
    """Largest error of a score, as a share of sum|q_i * v_i|, against exact arithmetic.

    One rounding is u = 2**-24. A chain of n roundings is within n*u / (1 - n*u) (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.1). Holds while sum|q_i * v_i| is below the largest float32, up to D * 2**-149 from
    products too small for float32.
    """
    u = 2.0**-24
    if isa not in LANES:  # float64 sums, rounded once
        return u + (dimensions + 1) * 2.0**-53
    lanes = LANES[isa]
    tail = lanes - 1 if isa == "neon" else 0
    n = math.ceil(dimensions / lanes) + tail + int(math.log2(lanes))
    return n * u / (1 - n * u)


def topk_dot(
    queries: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    k: int,
    *,
    isa: str | None = None,
    threads: int = 1,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Exact top-k by dot product: queries [Q, D], vectors [N, D] -> indices [Q, k] int64, scores [Q, k] float32.

    Scores descend; equal scores come by lowest index; NaN comes after everything else, minus infinity included. Scores
    are within `error_bound` of exact, so two vectors closer than that may change places between instruction sets.
    The interpreter lock is released meanwhile. `threads` divides the vectors and changes nothing in the answer; the
    reference ignores it.

    Raises ValueError unless both arrays are C-contiguous, two-dimensional, float32 and of equal D, 0 <= k <= N,
    1 <= threads <= THREADS_MAX, and `isa` is one of `instruction_sets()`.
    """
    _check("queries", queries)
    _check("vectors", vectors)
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, vectors {vectors.shape[1]}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 0 <= k <= len(vectors):
        raise ValueError(f"k must be an integer from 0 to {len(vectors)}, the number of vectors, not {k!r}")
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= THREADS_MAX:
        raise ValueError(f"threads must be an integer from 1 to {THREADS_MAX}, not {threads!r}")
    isa = BACKEND if isa is None else isa
    if isa == "reference":
        return reference.topk_dot(queries, vectors, int(k))
    if isa not in instruction_sets():
        raise ValueError(f"isa must be one of {', '.join(instruction_sets())}, not {isa!r}")
    return _kernels.topk_dot(queries, vectors, int(k), isa, threads)


def _check(name: str, array: npt.NDArray[np.float32]) -> None:
    """Refuse what the kernels cannot read in place: a hidden copy of a large store would cost more than the search."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} must be a NumPy array, not {type(array).__name__}")
    if array.dtype != np.float32:
        raise ValueError(f"{name} must be float32, not {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have two axes, not {array.ndim}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({name})")
