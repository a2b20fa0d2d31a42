"""What a process keeps on disk is whole or not used, belongs to one owner at a time, and is gone once destroyed."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.seal import KEY_BYTES, Unpunctured
from streams import snapshots
from streams.fold import Fold
from streams.snapshots import MAGIC, Bound, ClaimLost, SnapshotFolder, SnapshotRefused, decode, encode, state_hash
from streams.topology import stages
from streams.vault import Vault

METADATA = stages()[0]
BOUND = Bound("metadata", 1, 0, "cluster-1/tweets", 3)
FORK = multiprocessing.get_context("fork")  # the children below must share what was imported, and live for milliseconds


class NoKeys(Unpunctured):
    """Nothing here is sealed."""

    def get(self, owner: str) -> bytes | None:
        return None

    make = get


def fold_at(offset: int, size: int = 0) -> Fold:
    """Make a fold that stands at an offset; `size` fills its state."""
    fold = Fold(METADATA, 0, 3, NoKeys())
    fold.memory.next = offset
    fold.memory.last = f"{offset:016x}"
    fold.memory.applied = {"stage/topic/0": (offset, 1)}
    fold.memory.seen = {2**64 - 1 - i: i for i in range(size)}
    fold.memory.state.deleted = {f"post {i} of {offset}": True for i in range(size)}
    return fold


def loaded(folder: SnapshotFolder) -> tuple[int | None, list[str]]:
    """Give where the snapshot stands (None: there is none) and the names of what was found broken."""
    memory, broken = folder.load(fold_at(0), BOUND)
    return memory.next if memory else None, [Path(path).name for path in broken]


@pytest.fixture
def folder(tmp_path: Path) -> SnapshotFolder:
    return SnapshotFolder(tmp_path / "snapshots", fsync=False)


@pytest.fixture
def place(folder: SnapshotFolder) -> Path:
    return folder.folder / "metadata-0"


# ---- what a snapshot holds ------------------------------------------------------------------------------------------


def test_a_snapshot_gives_back_all_that_a_fold_knows(folder: SnapshotFolder) -> None:
    fold = fold_at(7, size=50)
    assert folder.load(fold, BOUND) == (None, [])
    folder.write(fold, BOUND, folder.claim(BOUND))
    memory, broken = folder.load(fold_at(0), BOUND)
    assert broken == []
    assert memory == fold.memory
    assert list(memory.state.deleted) == list(fold.memory.state.deleted)
    assert state_hash(memory) == state_hash(fold.memory)
    assert state_hash(memory) != state_hash(fold_at(7).memory)


def test_a_state_hash_does_not_see_how_the_state_was_reached() -> None:
    one, other = fold_at(1, size=9), fold_at(1, size=9)
    other.memory.ignored = 5
    other.memory.state.deleted = dict(reversed(one.memory.state.deleted.items()))
    assert state_hash(one.memory) == state_hash(other.memory)
    other.memory.state.deleted.popitem()
    assert state_hash(one.memory) != state_hash(other.memory)


def test_a_snapshot_with_any_byte_changed_or_missing_is_not_used() -> None:
    data = encode(fold_at(7, size=3), BOUND)
    assert decode(data, fold_at(0), BOUND) == fold_at(7, size=3).memory
    for cut in range(len(data)):
        assert decode(data[:cut], fold_at(0), BOUND) is None
    for at in range(len(data)):
        assert decode(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], fold_at(0), BOUND) is None
    assert decode(data + b"\0", fold_at(0), BOUND) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: MAGIC,
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\0" * len(data),
        lambda data: data.replace(MAGIC, b"xinfluencer-snapshot-9\n"),
    ],
    ids=["empty", "half", "head", "flipped", "zeros", "other format"],
)
def test_a_torn_snapshot_is_reported_and_the_one_before_it_used(
    folder: SnapshotFolder, place: Path, damage: Callable[[bytes], bytes]
) -> None:
    claim = folder.claim(BOUND)
    for offset in (1, 2):
        folder.write(fold_at(offset), BOUND, claim)
    assert loaded(folder) == (2, [])
    path = place / "snapshot"
    path.write_bytes(damage(path.read_bytes()))
    assert loaded(folder) == (1, ["snapshot"])
    (place / "snapshot.previous").write_bytes(b"rotten too")
    assert loaded(folder) == (None, ["snapshot", "snapshot.previous"])
    folder.write(fold_at(3), BOUND, claim)
    assert loaded(folder) == (3, [])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Bound("metadata", 1, 0, "cluster-2/tweets", 3), "belongs to log cluster-2/tweets"),
        (Bound("metadata", 2, 0, "cluster-1/tweets", 3), "version 2"),
        (Bound("metadata", 1, 0, "cluster-1/tweets", 4), "4 partitions"),
    ],
)
def test_a_snapshot_of_another_log_is_refused_with_what_to_do(folder: SnapshotFolder, other: Bound, words: str) -> None:
    folder.write(fold_at(5), other, folder.claim(other))
    with pytest.raises(SnapshotRefused) as refused:
        folder.load(fold_at(0), BOUND)
    said = str(refused.value)
    assert words in said
    assert "this is log cluster-1/tweets, version 1, 3 partitions" in said
    assert "remove the snapshot folder too" in said
    assert "drain it first" in said


def test_stages_and_partitions_do_not_see_each_other(folder: SnapshotFolder) -> None:
    other = Bound("metadata", 1, 1, "cluster-1/tweets", 3)
    folder.write(fold_at(5), BOUND, folder.claim(BOUND))
    assert folder.load(fold_at(0), other) == (None, [])
    assert (folder.claim(other), folder.claim(BOUND)) == (1, 2)


# ---- who may write --------------------------------------------------------------------------------------------------


def test_an_older_claim_writes_nothing(folder: SnapshotFolder, place: Path) -> None:
    zombie = folder.claim(BOUND)
    folder.write(fold_at(1), BOUND, zombie)
    owner = SnapshotFolder(folder.folder, fsync=False).claim(BOUND)
    assert owner > zombie
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ClaimLost, match=f"metadata-0: claim {zombie}, but {owner} was taken"):
        folder.write(fold_at(9), BOUND, zombie)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    folder.write(fold_at(2), BOUND, owner)
    assert loaded(folder) == (2, [])


def test_nobody_writes_without_a_claim(folder: SnapshotFolder) -> None:
    with pytest.raises(ClaimLost):
        folder.write(fold_at(9), BOUND, 1)
    assert loaded(folder) == (None, [])


def children(work: Callable[[int, Any], None], count: int) -> list[Any]:
    """Run `work(number, queue)` in so many processes at once; gives what they put into the queue."""
    queue = FORK.Queue()
    running = [FORK.Process(target=work, args=(number, queue)) for number in range(count)]
    for one in running:
        one.start()
    got = [queue.get(timeout=60) for _ in running]
    for one in running:
        one.join()
        assert one.exitcode == 0
    return got


def test_no_two_owners_ever_get_the_same_claim(folder: SnapshotFolder) -> None:
    def work(number: int, queue: Any) -> None:
        queue.put([folder.claim(BOUND) for _ in range(25)])

    claims = [claim for some in children(work, 4) for claim in some]
    assert sorted(claims) == list(range(1, 101))


def test_of_owners_who_race_only_the_last_to_claim_leaves_a_snapshot(folder: SnapshotFolder) -> None:
    def work(number: int, queue: Any) -> None:
        claim, written = folder.claim(BOUND), 0
        try:
            for written in range(1, 60):
                folder.write(fold_at(claim * 1000 + written), BOUND, claim)
        except ClaimLost:
            written -= 1
        queue.put((claim, written))

    done = dict(children(work, 4))
    assert done[4] == 59
    assert loaded(folder) == (4059, [])


# ---- what a crash or a full disk leaves -----------------------------------------------------------------------------


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class FullFile:
    """A file that takes half of the bytes written to it and then finds the disk full."""

    def __init__(self, path: Any, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        full_disk()


def test_a_disk_that_fills_up_leaves_the_old_snapshot(folder: SnapshotFolder, place: Path) -> None:
    folder.fsync = True
    claim = folder.claim(BOUND)
    for offset in (1, 2):
        folder.write(fold_at(offset), BOUND, claim)
    attempts: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: patch.setattr(os, "fsync", full_disk),
        lambda patch: patch.setattr(os, "replace", full_disk),
        lambda patch: patch.setattr(snapshots, "open", FullFile, raising=False),
    ]
    for attempt in attempts:
        with pytest.MonkeyPatch.context() as patch:
            attempt(patch)
            with pytest.raises(OSError, match="No space left"):
                folder.write(fold_at(3, size=100), BOUND, claim)
        assert loaded(folder) == (2, [])
        assert not list(place.glob("*.tmp"))
    folder.write(fold_at(3, size=100), BOUND, claim)
    assert loaded(folder) == (3, [])


def test_a_disk_that_fills_up_between_two_names_leaves_the_old_snapshot(
    folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = folder.claim(BOUND)
    folder.write(fold_at(1), BOUND, claim)
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: replace(a, b) if str(b).endswith(".previous") else full_disk())
        with pytest.raises(OSError, match="No space left"):
            folder.write(fold_at(2), BOUND, claim)
    assert loaded(folder) == (1, [])


def test_a_write_that_the_kernel_cuts_short_leaves_the_old_snapshot(folder: SnapshotFolder, place: Path) -> None:
    claim = folder.claim(BOUND)
    folder.write(fold_at(1), BOUND, claim)

    def work(number: int, queue: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            folder.write(fold_at(2, size=1000), BOUND, claim)
        except OSError as error:
            queue.put(error.errno)
        else:
            queue.put(0)

    assert children(work, 1) == [errno.EFBIG]
    assert loaded(folder) == (1, [])
    assert not list(place.glob("*.tmp"))


class Steps:
    """Stands where the operating system stands under a write, and kills the process before the so-manieth step."""

    def __init__(self, dies_at: int) -> None:
        self.left = dies_at

    def before(self, right: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **more: Any) -> Any:
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return right(*given, **more)

        return step

    def open(self, path: Path, mode: str) -> Any:
        """Open a file whose bytes arrive in four parts."""
        if mode != "wb":
            return open(path, mode)
        file = open(path, mode, buffering=0)  # noqa: SIM115 - closed by whom it is given to
        part = self.before(file.write)

        def write(data: bytes) -> None:
            quarter = len(data) // 4 + 1
            for at in range(0, len(data), quarter):
                part(data[at : at + quarter])

        return closing(SimpleNamespace(write=write, flush=file.flush, fileno=file.fileno, close=file.close))


def killed_at(dies_at: int, write: Callable[[], object]) -> bool:
    """Write in a process that is killed before a step of it; False if it had not so many."""
    pid = os.fork()
    if pid == 0:
        try:
            steps = Steps(dies_at)
            snapshots.open = steps.open  # type: ignore[attr-defined]
            for name in ("link", "replace", "unlink", "fsync"):
                setattr(os, name, steps.before(getattr(os, name)))
            write()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


STEPS_MAX = 40


def kills(folder: SnapshotFolder, place: Path) -> list[tuple[int | None, list[str], bool]]:
    """Kill a write of snapshot 3 over 1 and 2 at each of its steps: what is found, what is broken, what was left."""
    found = []
    for dies_at in range(STEPS_MAX):
        claim = folder.claim(BOUND)
        assert not list(place.glob("*.tmp")), "what a dead process left is swept away by the next claim"
        for offset in (1, 2):
            folder.write(fold_at(offset, size=300), BOUND, claim)
        if not killed_at(dies_at, lambda claim=claim: folder.write(fold_at(3, size=300), BOUND, claim)):  # type: ignore[misc]
            assert loaded(folder) == (3, []), "nobody disturbed the last one"
            return found
        found.append((*loaded(folder), bool(list(place.glob("*.tmp")))))
    raise AssertionError("a write has no end")


def test_a_process_killed_at_any_step_of_a_write_never_leaves_half_a_snapshot(
    folder: SnapshotFolder, place: Path
) -> None:
    folder.fsync = True
    found = kills(folder, place)
    assert [broken for _, broken, _ in found] == [[]] * len(found)
    at = [offset for offset, _, _ in found]
    assert at == sorted(at), "once the new one stands it stays"  # type: ignore[type-var]
    assert set(at) == {2, 3}
    assert sum(left for _, _, left in found) >= 4, "no kill fell between two parts of a file"


def test_a_writer_without_a_temporary_name_would_be_noticed(
    folder: SnapshotFolder, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_place(path: Path, data: bytes, fsync: bool, keep: Path | None = None) -> None:
        with snapshots.open(path, "wb") as file:  # type: ignore[attr-defined]
            file.write(data)

    monkeypatch.setattr(snapshots, "open", open, raising=False)
    monkeypatch.setattr(snapshots, "_write_atomic", in_place)
    assert sum(bool(broken) for _, broken, _ in kills(folder, place)) == 4


def test_files_are_for_their_owner_only(folder: SnapshotFolder, place: Path) -> None:
    folder.claim(BOUND)
    assert place.stat().st_mode & 0o777 == 0o700


# ---- the vault ------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vault" / "keys.sqlite"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    opened = Vault(path)
    yield opened
    opened.close()


def on_disk(path: Path) -> bytes:
    """Read every byte of the vault's folder: the file, the write-ahead log, the index."""
    return b"".join(one.read_bytes() for one in sorted(path.parent.iterdir()))


def test_a_key_is_made_once(vault: Vault, path: Path) -> None:
    assert vault.get("ann") is None
    key = vault.make("ann")
    assert key is not None
    assert len(key) == KEY_BYTES
    assert vault.make("ann") == vault.get("ann") == key
    assert vault.make("bob") != key
    assert Vault(path).get("ann") == key


def test_processes_that_make_a_key_at_once_get_the_same_one(path: Path) -> None:
    Vault(path).close()

    def work(number: int, queue: Any) -> None:
        mine = Vault(path)
        queue.put([mine.make(f"owner {i}") for i in range(20)])

    got = children(work, 4)
    assert all(None not in keys for keys in got)
    assert all(keys == got[0] for keys in got)
    assert len(set(got[0])) == 20


def test_a_destroyed_key_is_never_made_again_by_anyone(vault: Vault, path: Path) -> None:
    vault.make("ann")
    bob = vault.make("bob")
    vault.destroy("ann")
    vault.destroy("ann")
    vault.destroy("never seen")

    def work(number: int, queue: Any) -> None:
        mine = Vault(path)
        queue.put([mine.get("ann"), mine.make("ann"), mine.make("never seen"), mine.get("bob")])

    for got in ([vault.get("ann"), vault.make("ann"), vault.make("never seen"), vault.get("bob")], *children(work, 2)):
        assert got == [None, None, None, bob]


def test_a_key_destroyed_by_another_process_is_out_of_the_cache_at_the_next_chunk(vault: Vault, path: Path) -> None:
    key = vault.make("ann")
    vault.refresh()

    def work(number: int, queue: Any) -> None:
        Vault(path).destroy("ann")
        queue.put(None)

    children(work, 1)
    assert vault.get("ann") == key, "the cache answers until the chunk is over"
    vault.refresh()
    assert vault.get("ann") is None
    assert vault.make("ann") is None


def test_a_cache_that_is_full_starts_over(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.vault.CACHE_MAX", 2)
    keys = {owner: vault.make(owner) for owner in "abcde"}
    assert {owner: vault.get(owner) for owner in keys} == keys
    assert len(vault._cache) <= 2


def test_the_vault_is_for_its_owner_only(vault: Vault, path: Path) -> None:
    vault.make("ann")
    files = sorted(path.parent.iterdir())
    assert [one.name for one in files] == ["keys.sqlite", "keys.sqlite-shm", "keys.sqlite-wal"]
    assert [oct(one.stat().st_mode & 0o777) for one in files] == ["0o600"] * 3
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("owners", [1, 400])
def test_the_bytes_of_a_destroyed_key_are_in_no_file(vault: Vault, path: Path, owners: int) -> None:
    vault._db.execute("pragma synchronous=off")
    rng = random.Random(owners)
    keys = {f"x:@{rng.randrange(10**9)}": b"" for _ in range(owners)}
    keys = {owner: vault.make(owner) or b"" for owner in keys}
    assert all(key in on_disk(path) for key in keys.values())
    gone = rng.sample(list(keys), max(1, owners // 4))
    for owner in gone:
        vault.destroy(owner)
    data = on_disk(path)
    parts = [keys[owner][at : at + 16] for owner in gone for at in range(0, KEY_BYTES, 16)]
    assert not [part for part in parts if part in data]
    assert all((key in data) == (owner not in gone) for owner, key in keys.items())


def test_a_key_that_was_only_unlinked_would_be_found(vault: Vault, path: Path) -> None:
    vault._db.execute("pragma secure_delete=off")
    keys = [vault.make(f"owner {i}") for i in range(50)]
    for i in range(50):
        vault._db.execute("delete from keys where owner = ?", (f"owner {i}",))
    assert any(key and key in on_disk(path) for key in keys)


def test_a_key_is_not_called_destroyed_while_a_reader_keeps_its_bytes_in_the_log(vault: Vault, path: Path) -> None:
    key = vault.make("ann")
    assert key is not None
    vault._db.execute("pragma busy_timeout=50")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("begin")
    reader.execute("select count(*) from keys").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="write-ahead log"):
        vault.destroy("ann")
    assert key in on_disk(path)
    assert vault.get("ann") is None
    reader.execute("commit")
    vault.destroy("ann")
    assert key not in on_disk(path)
