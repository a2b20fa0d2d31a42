"""Top-k: exact search of 100,000 vectors, our kernel against NumPy and, where it is installed, FAISS."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

import native
from bench.rows import Row, medians_ms, row

N = 100_000
K = 10
RUNS = 15
SHAPES = ((1, 384), (16, 384), (1, 768), (16, 768))  # queries at a time, dimensions
COMMAND = "python -m bench topk"


def numpy_topk(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """What one would write without us: all scores by BLAS on its own threads, then a partition and a short sort."""
    scores = queries @ vectors.T if len(queries) > 1 else (vectors @ queries[0])[None]
    best = np.argpartition(scores, -K, axis=1)[:, -K:]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


def run() -> list[Row]:
    """Each with one thread, then with one a core. Raises RuntimeError if ours and NumPy find different vectors."""
    faiss = importlib.import_module("faiss") if importlib.util.find_spec("faiss") else None
    random = np.random.default_rng(0)
    rows = []
    for query_count, dimensions in SHAPES:
        vectors = random.standard_normal((N, dimensions), dtype=np.float32)
        queries = random.standard_normal((query_count, dimensions), dtype=np.float32)
        if not np.array_equal(native.topk_dot(queries, vectors, K)[0], numpy_topk(queries, vectors)):
            raise RuntimeError("ours and NumPy find different vectors; nothing was measured")
        for threads in sorted({1, os.cpu_count() or 1}):
            calls: dict[str, Callable[[], object]] = {
                "ours": partial(native.topk_dot, queries, vectors, K, threads=threads),
                "numpy": partial(numpy_topk, queries, vectors),
            }
            if faiss is not None:
                index = faiss.IndexFlatIP(dimensions)
                index.add(vectors)
                calls["faiss"] = partial(index.search, queries, K)
            with threadpool_limits(threads):
                taken = medians_ms(RUNS, **calls)
            what = f"{query_count} x top-{K} of {N:,} x {dimensions}, {native.backend()}, {threads} thread(s)"
            rows += [
                row(what, taken["ours"], taken[p], p, "ms", n=RUNS, command=COMMAND, packages=("numpy", "faiss-cpu"))
                for p in ("numpy", "faiss")
                if p in taken
            ]
    return rows
