"""Backup store: one folder for every backup of one deployment: bytes once under their hash, a manifest each, one vault.

`objects/` holds contents, compressed, named by the sha256 of what they are; `backups/` one manifest a backup, written
last, so that what is listed is whole; `keys/` the newest copy of the vault and no other. What a vault opens only ever
gets less, of what it once knew, so the newest vault opens every older log, and what was forgotten since is forgotten in
all of them.
"""

import hashlib
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from schemas import merkle
from streams.segments import Span
from streams.vault import Vault

FORMAT = 1
BLOCK_BYTES = 1 << 20
LEVEL = 1  # sealed words and weights do not get smaller; JSON and empty index files do, at any level
NAME = re.compile(r"[0-9]{8}T[0-9]{9}Z")
SHA256 = re.compile(r"[0-9a-f]{64}")


class BackupRefused(Exception):
    """A backup cannot be made, read or restored; the message says why and what to do."""


class File(msgspec.Struct, frozen=True):
    """One file of a data folder; `span` where it is a segment of the log."""

    path: str
    mode: int
    size: int
    mtime_ns: int
    sha256: str
    span: Span | None = None


class Manifest(msgspec.Struct, frozen=True):
    """One backup. `root` is the Merkle root over its files, by path."""

    format: int
    made_ms: int
    program: str
    cluster: str
    namespace: str
    stopped_cleanly: bool  # the broker flushed its log and said so; if not, it looks through its tail when it starts
    left_out: list[str]
    root: str
    files: list[File]

    def log(self) -> dict[str, Span]:
        """Give each partition of the log (as the cluster names it, partition last) from where to where it goes."""
        found: dict[str, Span] = {}
        for one in self.files:
            if one.span is not None:
                place = PurePosixPath(one.path).parent.name
                before = found.get(place, Span(one.span.first, one.span.end, 0))
                first, end = min(before.first, one.span.first), max(before.end, one.span.end)
                found[place] = Span(first, end, before.records + one.span.records)
        return found


def root_of(files: list[File]) -> str:
    """Hash the list of files to one root (schemas.merkle); names, modes and contents are in it, times are not."""
    leaves = [merkle.leaf(msgspec.json.encode((one.path, one.mode, one.size, one.sha256))) for one in files]
    return merkle.root(leaves).hex()


class Store:
    """The store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys" / "keys.sqlite"

    def names(self) -> list[str]:
        """Name the backups, oldest first."""
        return sorted(path.stem for path in (self.folder / "backups").glob("*.json") if NAME.fullmatch(path.stem))

    def manifest(self, name: str) -> Manifest:
        """Read a manifest; BackupRefused unless every byte of it is as it was written."""
        path = self.folder / "backups" / f"{name}.json"
        try:
            digest, _, body = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise BackupRefused(f"{path} cannot be read: {error.strerror}") from None
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise BackupRefused(f"{path} is damaged: take another backup of this store")
        try:
            found = msgspec.json.decode(body, type=Manifest)
        except msgspec.MsgspecError as error:
            raise BackupRefused(f"{path} was not written by this program: {error}") from None
        if found.format != FORMAT:
            raise BackupRefused(f"{path} has format {found.format}; this program reads {FORMAT}")
        for one in found.files:
            parts = PurePosixPath(one.path).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in one.path or not SHA256.fullmatch(one.sha256):
                raise BackupRefused(f"{path} names a file that may not be written: {one.path[:80]!r}")
        if root_of(found.files) != found.root:
            raise BackupRefused(f"{path}: its files do not give its root")
        return found

    def announce(self, name: str, manifest: Manifest) -> None:
        """Write a manifest: from now on there is this backup."""
        body = msgspec.json.encode(manifest)
        digest = hashlib.sha256(body).hexdigest().encode()
        self._write(self.folder / "backups" / f"{name}.json", iter((digest, b"\n", body)))

    def has(self, file: File) -> bool:
        """Say whether a file's content is kept."""
        return self._object(file.sha256).exists()

    def put(self, path: Path, sha256: str) -> int:
        """Keep a file's content under its hash; gives the bytes written, 0 if it was there."""
        target = self._object(sha256)
        if target.exists():
            return 0
        digest = hashlib.sha256()

        def pressed() -> Iterator[bytes]:
            press = zlib.compressobj(LEVEL)
            for block in blocks(path):
                digest.update(block)
                yield press.compress(block)
            yield press.flush()
            if digest.hexdigest() != sha256:
                raise BackupRefused(f"{path} changed while it was read: something still runs on this folder")

        return self._write(target, pressed())

    def content(self, sha256: str, size: int) -> Iterator[bytes]:
        """Give a content in blocks; BackupRefused, at the end at the latest, if it is not what its name says."""
        digest, length = hashlib.sha256(), 0
        try:
            press = zlib.decompressobj()
            for block in blocks(self._object(sha256)):
                while block:
                    out = press.decompress(block, BLOCK_BYTES)
                    block = press.unconsumed_tail
                    length += len(out)
                    if length > size:
                        raise self._damaged(sha256, f"it is larger than the {size} bytes it should be")
                    digest.update(out)
                    yield out
        except (OSError, zlib.error) as error:
            raise self._damaged(sha256, str(error)) from None
        if digest.hexdigest() != sha256 or length != size or not press.eof or press.unused_data:
            raise self._damaged(sha256, "its content is not what its name says")

    def put_keys(self, vault: Path) -> int:
        """Replace the store's vault by a copy of this one; gives how many owners it knows, 0 if there is no vault yet.

        The copy is made row by row (VACUUM INTO), so no page that once held a destroyed key comes along. Owners stay
        in a vault for ever, so BackupRefused, and the store's stands, if this one knows fewer: it is not that vault.
        """
        self.keys.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self.keys.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_CREAT | os.O_WRONLY, 0o600))
        if vault.exists():
            with sqlite3.connect(vault, isolation_level=None) as source:
                source.execute("vacuum into ?", (str(fresh),))
            source.close()
        else:  # nobody's words are sealed yet; to connect would make one there
            Vault(fresh).close()
        number, before = owners(fresh), self._owners()
        if number < before:
            raise BackupRefused(
                f"{vault} knows {number} owners, and {self.keys} {before}: its keys are lost, and a backup would lose "
                "them here too. Put that file in its place, and back up again"
            )
        _fsync(fresh)
        digest = sha256_of(fresh)
        # The sum first: if this is cut between the two, it says so instead of passing.
        self._write(self.keys.with_suffix(".sha256"), iter((digest.encode(),)))
        os.replace(fresh, self.keys)
        _fsync(self.keys.parent)
        return number

    def _owners(self) -> int:
        return 0 if self.keys_fault() else owners(self.keys)  # what is damaged is replaced, as what is not there

    def keys_fault(self) -> str:
        """Say what is wrong with the store's vault; '' if nothing."""
        try:
            if sha256_of(self.keys).encode() != self.keys.with_suffix(".sha256").read_bytes():
                return f"{self.keys} is not the file that was written: make a new backup while the vault is there"
            owners(self.keys)
        except (OSError, sqlite3.DatabaseError) as error:
            return f"{self.keys} cannot be read: {error}"
        return ""

    def prune(self, keep: int) -> tuple[int, int]:
        """Forget all backups but the `keep` newest, and what only they held; gives (backups, objects) removed."""
        if keep < 1:
            raise BackupRefused("at least the newest backup stays")
        names = self.names()
        old = names[:-keep]
        named = {one.sha256 for name in names[-keep:] for one in self.manifest(name).files}
        for name in old:
            (self.folder / "backups" / f"{name}.json").unlink()
        unnamed = [path for path in (self.folder / "objects").glob("*/*") if path.name not in named]
        for path in unnamed:
            path.unlink()
        return len(old), len(unnamed)

    def _damaged(self, sha256: str, why: str) -> BackupRefused:
        return BackupRefused(
            f"{self._object(sha256)} is damaged ({why}): remove it, and the next backup keeps it again if the folder "
            "still holds it"
        )

    def _object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256

    def _write(self, target: Path, content: Iterator[bytes]) -> int:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = target.with_name(target.name + ".tmp")  # one name, for one process holds the store
        try:
            written = write_new(temporary, content, 0o600)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(target.parent)
        return written


def write_new(path: Path, content: Iterator[bytes], mode: int) -> int:
    """Write a file (fsynced) that only we may read while it is not whole; gives its bytes."""
    written = 0
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        for block in content:
            written += file.write(block)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    return written


def blocks(path: Path) -> Iterator[bytes]:
    """Read a file in blocks."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def owners(vault: Path) -> int:
    """Count who a vault knows; sqlite3.DatabaseError if it is not whole."""
    with sqlite3.connect(f"{vault.absolute().as_uri()}?mode=ro&immutable=1", uri=True) as db:
        said = db.execute("pragma integrity_check").fetchone()[0]
        number: int = db.execute("select count(*) from keys").fetchone()[0]
    db.close()
    if said != "ok":
        raise sqlite3.DatabaseError(said)
    return number


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
