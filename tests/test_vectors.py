"""Vectors: one row a post whatever is written, nothing left of what was deleted, no filter that a value can escape."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import vector_ledger, vectors
from streams.vector_ledger import Ledger, Place, Request
from streams.vectors import KEY, TABLE, NoStore, Row, StoreRefused, VectorReader, VectorStore

WIDTH = 64
ENCODER = "e" * 64
UNKIND = ("a", "'", "''", "x' or '1'='1", 'say "x"', "100%", "_", "back\\slash\\'", "--", "\N{SNOWMAN}", ")")


def row(post: str, revision: int = 1, offset: int = 0, owner: str = "o", **more: Any) -> Row:
    """Make a row that differs from others in what a test is about."""
    made = Row(post, owner, "x", "en", 1_000, revision, True, True, "p", "h" * 64, "tweets", 0, offset)
    return made._replace(**more)


def units(number: int, seed: int = 0, width: int = WIDTH) -> vectors.Vectors:
    """Make vectors of length 1."""
    found = np.random.default_rng(seed).standard_normal((number, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def bytes_on_disk(folder: Path, vector: vectors.Vectors) -> list[str]:
    """Name the files that hold this vector as it is: LanceDB does not compress vectors, as the controls show."""
    needle = vector.tobytes()
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if needle in path.read_bytes()]


def every_version(folder: Path, post: str) -> int:
    """Count the rows of a post in all versions that the store can still open, with the store's own reader."""
    table = vectors._open(folder)
    found = 0
    for version in table.list_versions():
        table.checkout(version["version"])
        found += table.count_rows(f"post = '{post}'")
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    made = VectorStore(tmp_path / "vectors", ENCODER, WIDTH)
    yield made
    made.close()


def test_a_post_has_one_row_and_the_newest_revision_stays(store: VectorStore) -> None:
    made = units(5)
    store.upsert([row("p", 2, 7), row("q", 1, 8)], made[:2])
    for revision, offset, stays in ((1, 9, 0), (2, 6, 0), (2, 7, 0), (2, 9, 2), (3, 1, 3), (2, 99, 3)):
        store.upsert([row("p", revision, offset)], made[stays or 4][None])
        found = VectorReader(store.folder).find("p")
        assert found is not None
        assert np.array_equal(found[1], made[stays]), (revision, offset)
    assert store.count() == 2
    with pytest.raises(ValueError, match="twice"):
        store.upsert([row("p"), row("p", 2)], made[:2])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.booleans()), max_size=12), st.integers(1, 5))
def test_any_order_of_writes_deletes_and_repetitions_ends_as_a_dictionary_does(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[int, int, bool]], chunk: int
) -> None:
    store = VectorStore(tmp_path_factory.mktemp("model"), ENCODER, 8)
    model: dict[str, tuple[int, int]] = {}
    made = units(len(acts) + 1, width=8)
    for offset, (post, revision, delete) in enumerate(acts):
        name = UNKIND[post]
        if delete:
            store.delete([name])
            model.pop(name, None)
        else:
            one = row(name, revision, offset)
            store.upsert([one], made[offset][None])
            if offset % chunk == 0:
                store.upsert([one], made[offset][None])  # again, as after a crash
            model[name] = max(model.get(name, (0, 0)), (revision, offset))
    if chunk == 1:
        assert store.tidy()
    found = {name: (one.revision, one.offset) for name, one in store.known(UNKIND).items()}
    assert found == model
    assert store.count() == len(model)
    store.close()


def test_a_value_never_becomes_part_of_a_filter(store: VectorStore) -> None:
    made = units(len(UNKIND))
    rows = [row(name, owner=name, source=name, lang=name, offset=n) for n, name in enumerate(UNKIND)]
    store.upsert(rows, made)
    reader = VectorReader(store.folder)
    for one in rows:
        for near in (reader.nearest(made[0], 50, source=one.post), reader.nearest(made[0], 50, lang=one.post)):
            assert [found.row for found in near] == [one]
        assert len(reader.nearest(made[0], 50, beside=one.post)) == len(rows) - 1
        found = reader.find(one.post)
        assert found is not None
        assert found[0] == one
        assert store.of([], [one.owner]) == [one]
    assert reader.nearest(made[0], 50, source="x') or (1=1") == []
    store.delete(["' or post != '"])
    assert store.count() == len(rows)
    store.delete([rows[3].post])
    assert store.count() == len(rows) - 1


def test_neighbours_come_nearest_first_with_their_cosine_and_only_from_what_fits(store: VectorStore) -> None:
    made = units(300)
    rows = [
        row(f"p{n}", offset=n, source="xy"[n % 2], lang=("en", None)[n % 3 == 0], claimed_ms=None if n == 8 else n)
        for n in range(300)
    ]
    store.upsert(rows, made)
    reader = VectorReader(store.folder)
    scores = made @ made[5]
    best = [n for n in np.argsort(-scores) if n != 5][:7]
    near = reader.nearest(made[5], 7, beside="p5")
    assert [one.row.post for one in near] == [f"p{n}" for n in best]
    assert np.allclose([one.score for one in near], scores[best], atol=1e-5)
    fits = [n for n in np.argsort(-scores) if n % 2 == 0 and n % 3 and n >= 100 and n != 8][:4]
    near = reader.nearest(made[5], 4, source="x", lang="en", since_ms=100)
    assert [one.row.post for one in near] == [f"p{n}" for n in fits]


def test_a_deleted_row_leaves_the_disk_with_every_version_that_held_it(store: VectorStore) -> None:
    made = units(1_000)
    for start in range(0, 1_000, 250):
        store.upsert([row(f"p{n}", offset=n) for n in range(start, start + 250)], made[start : start + 250])
    assert bytes_on_disk(store.folder, made[5]), "control: the vector is there to be found"
    store.delete(["p5"])
    store.upsert([row("p6", 2)], made[7][None])
    assert store.known(["p5"]) == {}, "it is invisible at once"
    assert bytes_on_disk(store.folder, made[5]), "control: invisible is not gone"
    assert every_version(store.folder, "p5") > 0, "control: old versions still hold it"
    store._table.tags.create("kept-by-somebody", 2)
    assert store.tidy()
    assert bytes_on_disk(store.folder, made[5]) == []
    assert bytes_on_disk(store.folder, made[6]) == [], "an edit replaces the vector for good as well"
    assert every_version(store.folder, "p5") == 0
    assert every_version(store.folder, "p6") == 1
    assert store.count() == 999
    assert bytes_on_disk(store.folder, made[8])


def test_control_lancedbs_own_optimize_leaves_the_bytes_of_a_deleted_row(store: VectorStore) -> None:
    made = units(1_000)
    store.upsert([row(f"p{n}", offset=n) for n in range(1_000)], made)
    store.delete(["p5"])
    store._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    assert bytes_on_disk(store.folder, made[5]), "if this fails LanceDB has learned it and tidy may become simpler"
    assert every_version(store.folder, "p5") == 0, "a scan with the store's own reader would have called it gone"
    assert store.tidy()
    assert bytes_on_disk(store.folder, made[5]) == []


def test_an_index_is_made_anew_without_what_was_deleted(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "INDEX_ROWS_MIN", 1_000)
    made = units(1_500)
    store.upsert([row(f"p{n}", offset=n) for n in range(1_200)], made[:1_200])
    assert store.unindexed() == 1_200
    assert store.tidy()
    indices = {path.name for path in (store.folder / f"{TABLE}.lance" / "_indices").iterdir()}
    assert indices
    assert store.unindexed() == 0
    store.upsert([row(f"p{n}", offset=n) for n in range(1_200, 1_500)], made[1_200:])
    assert store.unindexed() == 300
    found = VectorReader(store.folder).nearest(made[1_300], 1)
    assert found[0].row.post == "p1300", "what is not indexed yet is found all the same"
    store.delete(["p5"])
    assert store.tidy()
    assert not indices & {path.name for path in (store.folder / f"{TABLE}.lance" / "_indices").iterdir()}
    assert store.unindexed() == 0
    assert "p5" not in {one.row.post for one in VectorReader(store.folder).nearest(made[5], 100)}
    assert VectorReader(store.folder).nearest(made[1_300], 1)[0].score > 0.99
    store.delete([f"p{n}" for n in range(600)])
    assert store.tidy()
    assert not list((store.folder / f"{TABLE}.lance").glob("_indices/*/*")), "too small again for an index"


def test_control_an_index_that_is_only_refreshed_keeps_the_deleted_vector(store: VectorStore) -> None:
    from lancedb.index import IvfFlat

    made = units(1_000)
    store.upsert([row(f"p{n}", offset=n) for n in range(1_000)], made)
    store._table.create_index("vector", config=IvfFlat(distance_type="dot", num_partitions=2))
    store.delete(["p5"])
    store._table.update(values_sql={"revision": "revision"})  # every row in a new file
    store._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    left = bytes_on_disk(store.folder, made[5])
    assert left
    assert all("_indices" in name for name in left)


def test_there_is_one_writer_and_readers_do_not_mind(store: VectorStore, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from streams.vectors import *\n"
        f"try: VectorStore(pathlib.Path(sys.argv[1]), {ENCODER!r}, {WIDTH})\n"
        "except StoreRefused as refused: print(refused)"
    )
    command = [sys.executable, "-c", program, str(store.folder)]
    root = Path(__file__).resolve().parent.parent
    said = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    assert f"one writer: {store.folder} is in use by process {os.getpid()}" in said
    assert VectorReader(store.folder).find("p") is None
    with pytest.raises(NoStore, match="no vectors"):
        VectorReader(tmp_path / "nowhere")


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    VectorStore(tmp_path, ENCODER, WIDTH).close()
    VectorStore(tmp_path, ENCODER, WIDTH).close()
    with pytest.raises(StoreRefused, match="cannot be compared"):
        VectorStore(tmp_path, "f" * 64, WIDTH)


def test_a_reader_goes_on_while_the_writer_takes_old_versions_away(store: VectorStore) -> None:
    made = units(600)
    store.upsert([row(f"p{n}", offset=n) for n in range(600)], made)
    reader = VectorReader(store.folder)
    for turn in range(5):
        store.delete([f"p{turn}"])
        assert store.tidy()
        found = {one.row.post for one in reader.nearest(made[0], 600)}
        assert found, "its files are gone, so it opened the table again"
    assert len(VectorReader(store.folder).nearest(made[0], 600)) == 595


# ---- several writers, with and without the key's mark ----------------------------------------------------------------


def _rows_of_four_writers(folder: Path, marked: bool) -> tuple[int, int]:
    """Let four connections write the same 100 posts at once; give (rows, posts)."""
    import lancedb
    import pyarrow as pa

    post = pa.field("post", pa.string(), nullable=False, metadata=KEY if marked else None)
    lancedb.connect(str(folder)).create_table(TABLE, schema=pa.schema([post]))
    barrier = threading.Barrier(4)

    def write() -> None:
        table = lancedb.connect(str(folder)).open_table(TABLE)
        data = pa.table({"post": [f"p{n}" for n in range(100)]}, schema=table.schema)
        barrier.wait(60)
        with suppress(RuntimeError):  # told that others were in the way: no rows, and no silence
            table.merge_insert("post").when_matched_update_all().when_not_matched_insert_all().execute(data)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(120)
    posts = lancedb.connect(str(folder)).open_table(TABLE).to_arrow().column("post").to_pylist()
    return len(posts), len(set(posts))


def test_concurrent_writers_make_no_doubles_where_the_id_is_marked_as_the_key(tmp_path: Path) -> None:
    for turn in range(5):
        assert _rows_of_four_writers(tmp_path / str(turn), marked=True) == (100, 100)


def test_control_without_the_mark_concurrent_writers_double_rows_in_silence(tmp_path: Path) -> None:
    found = (_rows_of_four_writers(tmp_path / str(turn), marked=False) for turn in range(20))
    assert any(rows > posts == 100 for rows, posts in found)


# ---- the ledger ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path)
    yield made
    made.close()


def test_a_ledger_remembers_places_the_gone_and_what_it_belongs_to(ledger: Ledger, tmp_path: Path) -> None:
    assert (ledger.bound(), ledger.places()) == ({}, {})
    owners: dict[str, bool | None] = {"e": True, "h": False, "s": False}
    ledger.commit({0: Place(5, 4, "ab"), 1: Place(0)}, {"log": "c/t/1"}, ["p", "p"], owners)
    ledger.commit({0: Place(7, 6, "cd")}, {"log": "c/t/1"}, ["p", "q"], {"e": False, "s": None})
    ledger.commit({0: Place(7, 6, "cd")}, {"log": "c/t/1"}, [], {"e": None})
    again = Ledger(tmp_path)
    assert again.places() == {0: Place(7, 6, "cd"), 1: Place(0)}
    assert again.bound() == {"log": "c/t/1"}
    assert [again.post_is_gone(post) for post in ("p", "q", "r' or 1=1 --")] == [True, True, False]
    assert [again.owner_is_gone(owner) for owner in "ehs"] == ["erased", "hidden", None]
    again.close()


def test_a_receipt_is_owed_once_counts_its_rows_once_and_waits_for_its_record_to_be_read(ledger: Ledger) -> None:
    one, later = Request("r1", "o", "p", 0, 3), Request("r2", "o", None, 0, 9)
    ledger.owe([(one, 1), (later, 4)])
    ledger.owe([(one, 0), (later, 0)])  # again after a crash, when the rows were gone already
    assert ledger.owed() == [], "nothing was read for good yet"
    ledger.commit({0: Place(5, 4, "ab")}, {})
    assert ledger.owed() == [(one, 1)]
    assert ledger.waiting() == 2
    ledger.sent([one])
    ledger.owe([(one._replace(offset=4), 0)])  # the same request said twice
    assert ledger.owed() == []
    ledger.commit({0: Place(10, 9, "ef")}, {})
    assert ledger.owed() == [(later, 4)]


def test_what_is_remembered_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_ledger, "GONE_POSTS_MAX", 10)
    monkeypatch.setattr(vector_ledger, "SENT_MAX", 10)
    for number in range(40):
        ledger.commit({0: Place(1_000, 999, "ab")}, {}, [f"p{number}"])
        asked = Request(f"r{number}", "o", f"p{number}", 0, number)
        ledger.owe([(asked, 1)])
        if number != 2:
            ledger.sent([asked])
    assert [ledger.post_is_gone(f"p{number}") for number in (29, 30, 39)] == [False, True, True]
    assert [asked.record for asked, _ in ledger.owed()] == ["r2"], "what is owed is never forgotten"
    counted = ledger._db.execute("select count(*) from receipt").fetchone()[0]
    assert counted <= 12


def test_a_chunk_is_kept_whole_or_not_at_all(ledger: Ledger) -> None:
    ledger.commit({0: Place(1)}, {})
    with pytest.raises(sqlite3.Error):
        ledger.commit({0: Place(9)}, {}, ["p", object()])  # type: ignore[list-item]
    assert ledger.places() == {0: Place(1)}
    ledger.commit({0: Place(2)}, {})
    assert not ledger.post_is_gone("p")
