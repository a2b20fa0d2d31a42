"""A folder is published whole or not at all: write aside, fsync, rename, under a lock.

Both the base model and every adapter are folders of files that are never changed once they have their final name. The
name of a file and its hash are in the folder's manifest; the hash of that list is the identity of the whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Hash of a regular file; a symbolic link is refused by the kernel (`O_NOFOLLOW`, an OSError)."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: object) -> bytes:
    """One byte string for one value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_sha256(hash_by_name: Mapping[str, str]) -> str:
    """Identity of a set of files: the hash over their sorted names and hashes. Copying or touching changes nothing."""
    return hashlib.sha256(canonical_json(sorted(hash_by_name.items()))).hexdigest()


def no_crash(point: str) -> None:
    """The default crash point: nothing happens. Fault tests hand in one that kills the process."""


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`. The kernel frees it when the process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fresh(temp: Path) -> Path:
    """An empty folder at `temp`. What lies there was left by a crash: the caller holds the lock."""
    if temp.exists():
        shutil.rmtree(temp)
    temp.mkdir(parents=True)
    return temp


def publish(temp: Path, final: Path, crash_point: Callable[[str], None] = no_crash) -> None:
    """Give a finished folder its final name. A crash leaves the old state or the new one, never a part."""
    for path in sorted(temp.iterdir()):
        fsync_path(path)
    fsync_path(temp)
    crash_point("before_rename")
    temp.rename(final)
    fsync_path(final.parent)
    crash_point("after_rename")
