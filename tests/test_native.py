"""Arithmetic: every instruction set against the reference, at every size where a lane, a tile or a block ends."""

import threading

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import native
from native import reference

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
COMPILED = [isa for isa in native.instruction_sets() if isa != "reference"]
DIMENSIONS = [*range(1, 71), 127, 128, 129, 384, 768]


def reals(shape: tuple[int, int], seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def whole_numbers(shape: tuple[int, int], seed: int) -> F32:
    """Small integers: every sum of products is exact in float32, so all instruction sets must agree in every bit."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def check(queries: F32, vectors: F32, k: int, indices: I64, scores: F32, isa: str) -> None:
    """Is this an exact top-k, as far as the stated error bound lets anyone say? Raises AssertionError if not."""
    truth = queries.astype(np.float64) @ vectors.astype(np.float64).T
    bound = native.error_bound(queries.shape[1], isa) * (np.abs(queries).astype(np.float64) @ np.abs(vectors).T)
    assert indices.shape == scores.shape == (len(queries), k)
    assert indices.dtype == np.int64
    assert scores.dtype == np.float32
    for q in range(len(queries)):
        found = indices[q]
        assert len(set(found.tolist())) == k, "an index is given twice"
        error = np.abs(truth[q, found] - scores[q])
        assert (error <= bound[q, found]).all(), f"error {error.max():.3g} is above the stated bound"
        for earlier, later in zip(range(k), range(1, k), strict=False):
            in_order = scores[q, earlier] > scores[q, later]
            tied = scores[q, earlier] == scores[q, later] and found[earlier] < found[later]
            assert in_order or tied, "scores do not descend, or a tie is not by lowest index"
        if 0 < k < len(vectors):
            left_out = np.setdiff1d(np.arange(len(vectors)), found)
            surely = truth[q, left_out] - bound[q, left_out]
            assert (surely <= scores[q, -1]).all(), "a better vector was left out"


def same(a: tuple[I64, F32], b: tuple[I64, F32]) -> None:
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_every_lane_edge_gives_the_exact_top_k(isa: str, dimensions: int) -> None:
    for query_count in (1, 3, 5):
        queries, vectors = reals((query_count, dimensions), 1), reals((37, dimensions), 2)
        check(queries, vectors, 5, *native.topk_dot(queries, vectors, 5, isa=isa), isa)
        queries, vectors = whole_numbers((query_count, dimensions), 3), whole_numbers((37, dimensions), 4)
        same(native.topk_dot(queries, vectors, 37, isa=isa), reference.topk_dot(queries, vectors, 37))


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("k", [0, 1, 4, 16])
def test_the_number_of_vectors_may_be_anything_from_k(isa: str, k: int) -> None:
    for count in sorted({k, k + 1, 15, 16, 17, 31, 32, 33} - set(range(k))):
        queries, vectors = whole_numbers((2, 20), k), whole_numbers((count, 20), count)
        same(native.topk_dot(queries, vectors, k, isa=isa), reference.topk_dot(queries, vectors, k))


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("count", [79, 80, 81, 160, 161, 400])
@pytest.mark.parametrize("query_count", [1, 2, 84, 85, 86])
def test_block_edges_and_threads_change_nothing(isa: str, count: int, query_count: int) -> None:
    # At 768 dimensions a block is 80 rows or 85 queries.
    queries, vectors = whole_numbers((query_count, 768), 5), whole_numbers((count, 768), 6)
    expected = reference.topk_dot(queries, vectors, 7)
    for threads in (1, 2, 3, native.THREADS_MAX):
        same(native.topk_dot(queries, vectors, 7, isa=isa, threads=threads), expected)


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ties_come_by_lowest_index_wherever_the_rows_lie(isa: str, threads: int) -> None:
    vectors = np.tile(reals((1, 768), 7), (400, 1))  # equal rows in every place of a tile, a block and a thread
    vectors[200:] *= 2  # better ones come later, so the first winners are all replaced
    for query_count in (1, 4):
        queries = np.ascontiguousarray(vectors[:query_count])
        indices, scores = native.topk_dot(queries, vectors, 250, isa=isa, threads=threads)
        np.testing.assert_array_equal(indices[0], [*range(200, 400), *range(50)])
        assert len(set(scores[0].tolist())) == 2


@pytest.mark.parametrize("isa", native.instruction_sets())
def test_nan_comes_last_and_infinities_at_the_ends(isa: str) -> None:
    values = [np.nan, 1.0, -np.inf, np.inf, np.nan, 2.0, -1.0, np.inf]
    vectors = np.array([[v] + [0.0] * 18 for v in values], dtype=np.float32)
    queries = np.array([[1.0] + [0.0] * 18], dtype=np.float32)
    indices, scores = native.topk_dot(queries, vectors, 8, isa=isa)
    assert indices[0].tolist() == [3, 7, 5, 1, 6, 2, 0, 4]
    np.testing.assert_array_equal(scores[0], np.array(values, np.float32)[indices[0]])
    for k in range(8):
        assert native.topk_dot(queries, vectors, k, isa=isa)[0][0].tolist() == indices[0, :k].tolist()


@pytest.mark.parametrize("isa", native.instruction_sets())
def test_empty_inputs_have_empty_answers(isa: str) -> None:
    for query_count, count, dimensions, k in [(0, 5, 3, 2), (2, 0, 3, 0), (2, 5, 3, 0), (0, 0, 0, 0)]:
        queries, vectors = reals((query_count, dimensions), 8), reals((count, dimensions), 9)
        indices, scores = native.topk_dot(queries, vectors, k, isa=isa)
        assert indices.shape == scores.shape == (query_count, k)
    indices, scores = native.topk_dot(np.empty((1, 0), np.float32), np.empty((3, 0), np.float32), 2, isa=isa)
    assert indices.tolist() == [[0, 1]]
    assert scores.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("isa", native.instruction_sets())
@settings(max_examples=150, deadline=None)
@given(
    query_count=st.integers(1, 9),
    count=st.integers(1, 90),
    dimensions=st.integers(1, 80),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-8, 8),
    data=st.data(),
)
def test_any_shape_and_scale_is_exact(
    isa: str, query_count: int, count: int, dimensions: int, seed: int, exponent: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, count))
    queries = reals((query_count, dimensions), seed) * np.float32(10.0**exponent)
    vectors = reals((count, dimensions), seed ^ 1)
    before = queries.copy(), vectors.copy()
    check(queries, vectors, k, *native.topk_dot(queries, vectors, k, isa=isa, threads=seed % 3 + 1), isa)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(vectors, before[1])


@pytest.mark.parametrize(
    ("queries", "vectors", "k", "sentence"),
    [
        (np.zeros((1, 4)), np.zeros((3, 4), np.float32), 1, "queries must be float32, not float64"),
        (np.zeros((1, 4), np.float32), np.zeros((3, 4), ">f4"), 1, "vectors must be float32"),
        (np.zeros(4, np.float32), np.zeros((3, 4), np.float32), 1, "queries must have two axes, not 1"),
        ([[0.0]], np.zeros((3, 1), np.float32), 1, "queries must be a NumPy array, not list"),
        (np.zeros((1, 4), np.float32), np.zeros((4, 3), np.float32).T, 1, "vectors must be C-contiguous"),
        (np.zeros((1, 4), np.float32), np.zeros((3, 8), np.float32)[:, ::2], 1, "vectors must be C-contiguous"),
        (np.zeros((1, 5), np.float32), np.zeros((3, 4), np.float32), 1, "queries have 5 dimensions, vectors 4"),
        (np.zeros((1, 4), np.float32), np.zeros((3, 4), np.float32), 4, "k must be an integer from 0 to 3"),
        (np.zeros((1, 4), np.float32), np.zeros((3, 4), np.float32), -1, "k must be an integer from 0 to 3"),
        (np.zeros((1, 4), np.float32), np.zeros((3, 4), np.float32), 1.0, "k must be an integer from 0 to 3"),
    ],
)
def test_what_a_kernel_cannot_read_in_place_is_refused(queries: F32, vectors: F32, k: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        native.topk_dot(queries, vectors, k)


def test_an_unknown_instruction_set_or_thread_count_is_refused() -> None:
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="isa must be one of"):
        native.topk_dot(one, one, 1, isa="mmx")
    for threads in (0, native.THREADS_MAX + 1):
        with pytest.raises(ValueError, match="threads must be an integer"):
            native.topk_dot(one, one, 1, threads=threads)


def test_the_backend_is_the_first_instruction_set_and_the_reference_always_remains() -> None:
    assert native.backend() == native.instruction_sets()[0]
    assert native.instruction_sets()[-1] == "reference"


def test_read_only_vectors_are_accepted() -> None:
    vectors = whole_numbers((9, 5), 10)
    vectors.flags.writeable = False
    same(native.topk_dot(vectors[:1], vectors, 9), reference.topk_dot(vectors[:1], vectors, 9))


@pytest.mark.skipif(not COMPILED, reason="the extension was not built")
def test_the_interpreter_lock_is_released_while_a_kernel_runs() -> None:
    queries, vectors = reals((256, 256), 11), reals((20_000, 256), 12)
    finished = threading.Event()

    def search() -> None:
        native.topk_dot(queries, vectors, 10, isa="serial")  # about a second, so the loop below surely overlaps it
        finished.set()

    worker = threading.Thread(target=search)
    worker.start()
    turns = 0
    while not finished.wait(0.001):
        turns += 1
    worker.join()
    assert turns > 20


def wrong_answers(queries: F32, vectors: F32, k: int) -> dict[str, tuple[I64, F32]]:
    """Mistakes a kernel could make, each alone."""
    indices, scores = reference.topk_dot(queries, vectors, k)
    last_lane = vectors.copy()
    last_lane[:, -1] = 0
    halved = queries.astype(np.float16).astype(np.float32)
    worst = np.argsort(reference.dot(queries, vectors), axis=1)[:, :1]
    swapped = np.concatenate([indices[:, :-1], worst], axis=1)
    return {
        "the last lane is dropped": reference.topk_dot(queries, last_lane, k),
        "float16 inside": reference.topk_dot(halved, vectors, k),
        "the order is reversed": (indices[:, ::-1], scores[:, ::-1]),
        "an index is given twice": (np.repeat(indices[:, :1], k, axis=1), np.repeat(scores[:, :1], k, axis=1)),
        "a better vector is left out": (
            swapped,
            np.take_along_axis(reference.dot(queries, vectors), swapped, axis=1),
        ),
    }


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "serial", "reference"])
def test_the_checker_catches_each_kind_of_wrong_answer(isa: str) -> None:
    queries, vectors = reals((4, 65), 13), reals((50, 65), 14)
    check(queries, vectors, 6, *reference.topk_dot(queries, vectors, 6), "reference")
    for mistake, (indices, scores) in wrong_answers(queries, vectors, 6).items():
        try:
            check(queries, vectors, 6, indices, scores, isa)
        except AssertionError:
            continue
        pytest.fail(f"not caught: {mistake}")
