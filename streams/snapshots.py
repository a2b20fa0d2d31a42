"""Snapshots: a fold's memory <-> one checksummed file that only its newest owner may write.

Order in the shell: send, snapshot, commit. Each new owner of a partition takes a higher claim number; a snapshot is
written only if its claim is still the highest, under a lock on the claim's file, so a process that was stopped and
woke up changes nothing. The previous file is kept: a torn or rotten one is noticed by its hash and the one before it
used. At scale the folder is one that every possible owner reads.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from streams.fold import Fold, Memory, unpack

MAGIC = b"xinfluencer-snapshot-1\n"


class ClaimLost(Exception):
    """Another process owns this partition now; whatever this one still does must not be written."""


class SnapshotRefused(Exception):
    """A snapshot belongs to another log or another version of the stage."""


class Bound(msgspec.Struct):
    """What a snapshot belongs to."""

    stage: str
    version: int
    partition: int
    log: str  # the cluster's id and the topic's name: a wiped broker folder with kept snapshots is noticed
    width: int


class Snapshot(msgspec.Struct):
    """A file's body; `memory` is decoded when the stage is known."""

    bound: Bound
    memory: msgspec.Raw


class Kept(NamedTuple):
    """The newest snapshots of one stage's partition as they lie there, whole or not, the newest first."""

    name: str
    written_ms: float
    files: list[bytes]


_ENCODER = msgspec.msgpack.Encoder()
_CANONICAL = msgspec.msgpack.Encoder(order="deterministic")


def state_hash(memory: Memory) -> str:
    """Hash what a fold decided (not how it got there: the ignored duplicates do not count)."""
    return hashlib.sha256(_CANONICAL.encode(memory.state)).hexdigest()


def encode(fold: Fold, bound: Bound) -> bytes:
    """Write a fold's memory as bytes: magic, sha256, body."""
    body = _ENCODER.encode(Snapshot(bound, msgspec.Raw(_ENCODER.encode(fold.memory))))
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes, fold: Fold, bound: Bound) -> Memory | None:
    """Read what `encode` wrote; None if the bytes are torn or rotten; SnapshotRefused if they are of another log."""
    head = len(MAGIC) + 32
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(data[head:]).digest() != data[len(MAGIC) : head]:
        return None
    snapshot = msgspec.msgpack.decode(data[head:], type=Snapshot)
    if snapshot.bound != bound:
        raise SnapshotRefused(
            f"the snapshot of {bound.stage}-{bound.partition} belongs to {_words(snapshot.bound)}, this is "
            f"{_words(bound)}. If the broker's folder was wiped on purpose, remove the snapshot folder too; "
            "if a stage changed, drain it first, then `xinfluencer adopt` it."
        )
    return unpack(bytes(snapshot.memory), fold.stage)


def _words(bound: Bound) -> str:
    return f"log {bound.log}, version {bound.version}, {bound.width} partitions"


class SnapshotFolder:
    """Snapshots in a folder that all owners share; one sub-folder a stage and partition."""

    def __init__(self, folder: Path, fsync: bool = True) -> None:
        self.folder = folder
        self.fsync = fsync

    def claim(self, bound: Bound) -> int:
        """Take the partition: give a claim number higher than any before."""
        with self._locked(bound) as place:
            for left in place.glob("*.tmp"):  # of processes that died while writing; the lock is ours
                left.unlink(missing_ok=True)
            number = self._number(place) + 1
            _write_atomic(place / "claim", str(number).encode(), self.fsync)
            return number

    def load(self, fold: Fold, bound: Bound) -> tuple[Memory | None, list[str]]:
        """Read the newest whole snapshot into a Memory (None: there is none), with what was found broken."""
        broken: list[str] = []
        place = self._place(bound)
        for name in ("snapshot", "snapshot.previous"):
            try:
                data = (place / name).read_bytes()
            except FileNotFoundError:
                continue
            memory = decode(data, fold, bound)
            if memory is not None:
                return memory, broken
            broken.append(str(place / name))
        return None, broken

    def write(self, fold: Fold, bound: Bound, claim: int) -> int:
        """Write the fold's memory (bytes written), or raise ClaimLost. OSError if the disk is full: nothing changed."""
        data = encode(fold, bound)
        with self._locked(bound) as place:
            if self._number(place) != claim:
                raise ClaimLost(f"{bound.stage}-{bound.partition}: claim {claim}, but {self._number(place)} was taken")
            _write_atomic(place / "snapshot", data, self.fsync, keep=place / "snapshot.previous")
        return len(data)

    def kept(self) -> Iterator[Kept]:
        """Give what lies here, place by place, to whoever looks and does not own."""
        for place in sorted(path for path in self.folder.glob("*-*") if path.is_dir()):
            if found := [place / name for name in ("snapshot", "snapshot.previous") if (place / name).exists()]:
                newest_s = max(path.stat().st_mtime for path in found)
                yield Kept(place.name, newest_s * 1000, [path.read_bytes() for path in found])

    def _place(self, bound: Bound) -> Path:
        return self.folder / f"{bound.stage}-{bound.partition}"

    @staticmethod
    def _number(place: Path) -> int:
        try:
            return int((place / "claim").read_text())
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def _locked(self, bound: Bound) -> Iterator[Path]:
        place = self._place(bound)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(place / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield place


def _write_atomic(path: Path, data: bytes, fsync: bool, keep: Path | None = None) -> None:
    """Write through a temporary name; with `keep`, what stood here before stays under that name."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    older = path.with_name(f"{path.name}.{os.getpid()}.older.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            # By a second name, and only after the new one stands: a kill in between never leaves a rotten file alone.
            older.unlink(missing_ok=True)
            os.link(path, older)
        os.replace(temporary, path)
        if keep is not None and older.exists():
            os.replace(older, keep)
    except OSError:
        temporary.unlink(missing_ok=True)
        older.unlink(missing_ok=True)
        raise
    if fsync:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
