"""Jars: a pinned list of coordinates -> verified files in our own cache.

`kafka-4.1.0.sha256` names every jar of the Kafka server with its checksum. Each is hashed at every start (44 MB, 20-30
ms), so a file that was cut short or changed is never put on the class path. A jar enters the cache by one rename, after
its bytes were verified. The user's Maven repository is read but not written: a download into it is not atomic.
"""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

KAFKA_VERSION = "4.1.0"
PINS = Path(__file__).with_name(f"kafka-{KAFKA_VERSION}.sha256")
DOWNLOADS_MAX = 8  # More than this gains nothing on a home line and looks like abuse to a repository.
FETCH_TRIES_MAX = 2  # One retry covers a connection cut in the middle; a second failure has another cause.
_TIMEOUT_S = 30

Progress = Callable[[int, int, str], None]
Fetch = Callable[["Pin", Path], Path]


class JarsUnavailable(Exception):
    """A jar could not be downloaded; the message says what to do."""


class ChecksumMismatch(Exception):
    """A jar's bytes are not the pinned ones, also after it was fetched again."""


@dataclass(frozen=True)
class Pin:
    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def maven_path(self) -> Path:
        return Path(*self.group.split("."), self.artifact, self.version, self.filename)


def read_pins(path: Path = PINS) -> list[Pin]:
    """Read lines of `group:artifact:version sha256`. Raises ValueError on a line of another form."""
    pins = []
    for line in path.read_text(encoding="ascii").splitlines():
        coordinate, sha256 = line.split()
        group, artifact, version = coordinate.split(":")
        pins.append(Pin(group, artifact, version, sha256))
    return pins


def silent(done: int, total: int, name: str) -> None:
    """Ignore progress."""


def download(pin: Pin, into: Path) -> Path:
    """Fetch one jar with jgo into the folder `into`, laid out as a Maven repository, and return its path.

    Repositories in jgo's own configuration are asked first; the pinned checksum makes a mirror as good as the origin.
    Proxy and certificate variables of the environment apply, as they do for pip. Raises whatever jgo raises.
    """
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=into, timeout=_TIMEOUT_S)
    context.remote_repos = {**GlobalSettings.load().repositories, **context.remote_repos}
    return context.project(pin.group, pin.artifact).at_version(pin.version).artifact(packaging="jar").resolve()


def resolve(
    cache: Path, progress: Progress = silent, *, pins: Iterable[Pin] | None = None, fetch: Fetch = download
) -> list[Path]:
    """Return the verified jars in `cache/kafka-4.1.0/`, in the order of the list, fetching what is missing or wrong.

    `progress(done, total, name)` is called once a jar, from the calling thread's pool but never twice at a time.
    Raises JarsUnavailable without a network and ChecksumMismatch when a source serves other bytes.
    """
    wanted = list(read_pins() if pins is None else pins)
    folder = cache / f"kafka-{KAFKA_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    done = 0

    def one(pin: Pin) -> Path:
        nonlocal done
        target = folder / pin.filename
        if not target.is_file() or _sha256(target) != pin.sha256:
            _obtain(pin, target, fetch)
        with lock:
            done += 1
            progress(done, len(wanted), pin.filename)
        return target

    with ThreadPoolExecutor(DOWNLOADS_MAX) as pool:
        futures = [pool.submit(one, pin) for pin in wanted]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # Without this the pool would go on through dozens of time-outs before the error is seen.
            pool.shutdown(cancel_futures=True, wait=False)
            raise


def _obtain(pin: Pin, target: Path, fetch: Fetch) -> None:
    local = _maven_repository() / pin.maven_path
    if local.is_file() and _install(local, target, pin):
        return
    failure: Exception | None = None
    for _ in range(FETCH_TRIES_MAX):
        # A fresh folder each time: what a cut download left behind is never taken for the whole file.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            try:
                fetched = fetch(pin, Path(scratch))
            except (OSError, RuntimeError) as error:
                failure = error
                continue
            failure = None
            if _install(fetched, target, pin):
                return
    if failure is not None:
        raise JarsUnavailable(
            f"Could not download {pin.group}:{pin.artifact}:{pin.version} ({type(failure).__name__}): connect to the "
            f"network or set the proxy variables and start again, or copy a filled cache folder to {target.parent}."
        ) from failure
    raise ChecksumMismatch(
        f"The downloaded {pin.filename} does not have the pinned sha256 {pin.sha256}, so it was refused: "
        "check the Maven mirror or proxy in use, then start again."
    )


def _install(source: Path, target: Path, pin: Pin) -> bool:
    """Copy `source` next to `target`, verify the copy and rename it into place; False when its bytes are wrong."""
    handle, name = tempfile.mkstemp(prefix=f".{pin.artifact}-", dir=target.parent)
    copy = Path(name)
    try:
        with open(source, "rb") as reader, open(handle, "wb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
        if _sha256(copy) != pin.sha256:
            return False
        os.replace(copy, target)
        return True
    finally:
        copy.unlink(missing_ok=True)


def _maven_repository() -> Path:
    return Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")


def _sha256(path: Path) -> str:
    with open(path, "rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()
