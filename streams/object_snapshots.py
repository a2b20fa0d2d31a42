"""Object snapshots: the snapshots of streams/snapshots.py in an object store, through fsspec, where there is no lock.

A claim is an object that only one process can create (a put on condition that there is none; S3's `If-None-Match: *`).
A snapshot's name begins with its owner's claim, so nobody overwrites another's, and a loader takes the newest claim's.
A process that lost its claim may still finish the one write it had begun, under its own claim: that state is a true
fold of the same log, sent before it was kept, so whoever finds it loses nothing by it. Its next write sees the higher
claim and stops. The store must be strongly consistent (S3 is, since December 2020) and must keep the condition.
"""

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from streams.fold import Fold, Memory
from streams.snapshots import Bound, ClaimLost, Kept, SnapshotFolder, decode, encode

CLAIM = re.compile(r"claim-([0-9]{12})")
PLACE = re.compile(r".+-[0-9]+")
SNAPSHOT = re.compile(r"snapshot-([0-9]{12})-[0-9]{12}")
CLAIM_TRIES_MAX = 100  # processes that start at once; each loser tries the next number
LOAD_TRIES_MAX = 3  # an owner that does not know yet that it was replaced can drop what we listed, but only once
KEPT_MIN = 2  # the newest, and the one before it for when the newest is rotten
KEPT_MAX = 8  # a request for each deletion: they are made when it is worth one
# Who stops waits for a put: it must give up before the supervisor does (10 s).
S3_OPTIONS = {"config_kwargs": {"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 1}}}


class StoreRefused(ValueError):
    """A store cannot keep snapshots, or the URL must not be used; the message says why."""


class SnapshotStore:
    """Snapshots under a URL such as s3://bucket/folder; the same methods as SnapshotFolder.

    Keys and the endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), never from the URL.
    """

    def __init__(self, url: str, **options: Any) -> None:
        if "@" in url:
            raise StoreRefused("a snapshot URL with a key in it would end in logs: give the key in the environment")
        given = S3_OPTIONS | options if url.startswith("s3://") else options
        try:
            self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False, **given)
        except ImportError as error:
            extra = "pip install 'xinfluencer[s3]'" if url.startswith("s3://") else str(error)
            raise StoreRefused(f"what speaks to {url.partition('://')[0]}:// is not installed: {extra}") from None

    def claim(self, bound: Bound) -> int:
        """Take the partition: give a claim number higher than any before. OSError if the store does not answer."""
        place = self._place(bound)
        if "file" in self.files.protocol:
            self.files.makedirs(place, exist_ok=True)  # never of a store: a bucket with a typing error is not made
        for _ in range(CLAIM_TRIES_MAX):
            claims, snapshots = self._look(place)
            # A snapshot counts as well: where a person removed claims, a lower one would be passed over for ever.
            number = 1 + max([*claims, *map(_owner, snapshots)], default=0)
            if not self._create(f"{place}/claim-{number:012}"):
                continue
            if self._create(f"{place}/claim-{number:012}"):
                raise StoreRefused(f"{self.root} ignores `If-None-Match: *`: two workers could take one partition")
            # A claimer that slept through so many others could be given a number twice, but never the highest.
            self._drop(place, [f"claim-{old:012}" for old in claims[:-CLAIM_TRIES_MAX]])
            return number
        raise ClaimLost(f"{bound.stage}-{bound.partition}: {CLAIM_TRIES_MAX} others claimed it at the same time")

    def load(self, fold: Fold, bound: Bound) -> tuple[Memory | None, list[str]]:
        """Read the newest whole snapshot into a Memory (None: there is none), with what was found broken."""
        place = self._place(bound)
        for _ in range(LOAD_TRIES_MAX):
            broken: list[str] = []
            try:
                for name in reversed(self._look(place)[1]):
                    with _store_errors():
                        data = self.files.cat_file(f"{place}/{name}")
                    memory = decode(data, fold, bound)
                    if memory is not None:
                        return memory, broken
                    broken.append(f"{place}/{name}")
            except FileNotFoundError:
                continue  # dropped meanwhile, because there is a newer one
            return None, broken
        raise OSError(f"{place} lists snapshots that it does not give")

    def write(self, fold: Fold, bound: Bound, claim: int) -> int:
        """Write the fold's memory (bytes written), or raise ClaimLost; OSError changed nothing."""
        return self.put(bound, claim, fold.memory.next, encode(fold, bound))

    def put(self, bound: Bound, claim: int, at: int, data: bytes) -> int:
        """Write what `encode` made of a fold that stood at `at`; for a thread, which must not see the fold itself."""
        place = self._place(bound)
        claims, snapshots = self._look(place)
        if max(claims, default=0) != claim:
            found = max(claims, default=0)
            raise ClaimLost(f"{bound.stage}-{bound.partition}: claim {claim}, but {found} was taken")
        # The input offset orders one owner's snapshots; writing the same again is the same object.
        name = f"snapshot-{claim:012}-{at:012}"
        with _store_errors():
            self.files.pipe_file(f"{place}/{name}", data)
        if len(snapshots) >= KEPT_MAX:
            self._drop(place, sorted({*snapshots, name})[:-KEPT_MIN])
        return len(data)

    def kept(self) -> Iterator[Kept]:
        """Give what lies here, place by place, to whoever looks and does not own. OSError if it does not answer."""
        try:
            with _store_errors():
                places = sorted(map(posixpath.basename, self.files.ls(self.root, detail=False)))
        except FileNotFoundError:
            return
        for place in filter(PLACE.fullmatch, places):
            names = self._look(f"{self.root}/{place}")[1][: -KEPT_MIN - 1 : -1]
            if names:
                paths = [f"{self.root}/{place}/{name}" for name in names]
                with _store_errors():
                    written_s = self.files.modified(paths[0]).timestamp()
                    files = [self.files.cat_file(path) for path in paths]
                yield Kept(place, written_s * 1000, files)

    def _create(self, path: str) -> bool:
        """Create an object where there is none; False if there is one."""
        try:
            with _store_errors(), self.files.open(path, "xb") as file:
                file.write(b"taken")
        except FileExistsError:
            return False
        return True

    def _drop(self, place: str, names: list[str]) -> None:
        for name in names:
            with suppress(OSError), _store_errors():  # what stays is dropped the next time
                self.files.rm_file(f"{place}/{name}")

    def _place(self, bound: Bound) -> str:
        return posixpath.join(self.root, f"{bound.stage}-{bound.partition}")

    def _look(self, place: str) -> tuple[list[int], list[str]]:
        """List the claims and the snapshots, in order, by one request."""
        try:
            with _store_errors():
                self.files.invalidate_cache(place)
                names = sorted(posixpath.basename(path) for path in self.files.ls(place, detail=False))
        except FileNotFoundError:
            return [], []
        claims = [int(found[1]) for name in names if (found := CLAIM.fullmatch(name))]
        return claims, [name for name in names if SNAPSHOT.fullmatch(name)]


def _owner(name: str) -> int:
    return int(name.split("-")[1])


@contextmanager
def _store_errors() -> Iterator[None]:
    """Say OSError for whatever a store's client raises: the shell knows what to do with that."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each client has its own; botocore has some that are no OSError
        raise OSError(f"{type(error).__name__}: {error}") from error


def keeper(url: str, folder: Path) -> SnapshotFolder | SnapshotStore:
    """Give where snapshots are kept: the store that a URL names, or the folder of this machine."""
    return SnapshotStore(url) if url else SnapshotFolder(folder)
