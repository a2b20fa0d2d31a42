"""Cursors: where a live stream was when all before it was acknowledged; one small checksummed file a stream.

Written through a temporary name and fsynced, only by the process that holds the stream's folder. A cursor belongs to
one log (cluster and topic): a broker that was wiped is noticed, for it no longer holds what the cursor says is done.
Layout: `FOLDER/STREAM/cursor` and `FOLDER/STREAM/lock`.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from streams.broker import FolderLock
from streams.live import SourceRefused

STREAM = re.compile(r"[a-z][a-z0-9-]{0,63}")  # it becomes the name of a folder
CURSOR_CHARS_MAX = 4096  # a source's own cursor is a number or a short id
MAGIC = b"xinfluencer-cursor-1 "


class CursorRefused(SourceRefused):
    """A cursor cannot be used, or not kept; the message says what to do."""


class Kept(msgspec.Struct, frozen=True):
    """What a file holds. Times in ms: of the newest message acknowledged as its source says, and of the writing."""

    log: str
    cursor: str
    made_ms: int | None
    saved_ms: int


class Cursors:
    """The cursors of one data folder, for one log."""

    def __init__(self, folder: Path, log: str) -> None:
        self.folder, self.log = folder, log

    @contextlib.contextmanager
    def claim(self, stream: str) -> Iterator[None]:
        """Hold a stream: FolderInUse names the process that already follows it, CursorRefused a name that is none."""
        with FolderLock(self._place(stream)):
            yield

    def load(self, stream: str) -> Kept | None:
        """Read a stream's cursor, None if it never had one; CursorRefused if it is torn or of another log."""
        path = self._place(stream) / "cursor"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, _, body = data.removeprefix(MAGIC).partition(b"\n")
        try:
            if not data.startswith(MAGIC) or hashlib.sha256(body).hexdigest().encode() != digest:
                raise msgspec.DecodeError
            kept = msgspec.json.decode(body, type=Kept)
        except msgspec.DecodeError:
            raise CursorRefused(
                f"{path} is damaged: where {stream} stood is not known. Start it with --from-now, knowing of the gap."
            ) from None
        if kept.log != self.log:
            raise CursorRefused(
                f"{path} belongs to the log {kept.log}, this is {self.log}: what was taken in before is not here. "
                "Bring the old log back, or start with --from-now."
            )
        return kept

    def save(self, stream: str, cursor: str, made_ms: int | None, saved_ms: int) -> None:
        """Keep a cursor (fsynced); OSError if the disk is full, and then the one before it stands."""
        if len(cursor) > CURSOR_CHARS_MAX:
            raise CursorRefused(f"{stream}: a cursor of {len(cursor)} characters is none; at most {CURSOR_CHARS_MAX}")
        body = msgspec.json.encode(Kept(self.log, cursor, made_ms, saved_ms))
        place = self._place(stream)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = place / "cursor.tmp"  # one name, for one process holds the folder
        with open(temporary, "wb") as file:
            file.write(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place / "cursor")
        directory = os.open(place, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _place(self, stream: str) -> Path:
        if not STREAM.fullmatch(stream):
            raise CursorRefused(f"{stream!r} cannot name a stream: use small letters, digits and dashes")
        return self.folder / stream
