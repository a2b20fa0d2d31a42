"""Backup: a stopped data folder -> a store from which it can be made again, to the byte.

Cold, because a log is exact only as the broker's own files: offsets that batches and origins name, transaction markers
that take offsets of their own, topic and cluster ids that snapshots and cursors are bound to, commits. All of it is one
cut, for nothing runs. What was stored before is not stored again, so the wait is for what is new; sources go on from
their cursors. Left out: what can be made again, and copies of words that nobody could erase from a backup.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from streams import broker as embedded
from streams import healthy, places
from streams.backup_store import FORMAT, BackupRefused, File, Manifest, Store, root_of, sha256_of
from streams.segments import SegmentBroken, span
from streams.settings import Settings
from streams.show import Screen
from streams.supervisor import SILENT_S_MAX

LEFT_OUT = {
    "vault/keys.sqlite*": "the keys: the store keeps one vault, the newest, beside all backups",
    "analytics*": "tables with words in clear, that could not be erased here; the sink makes them again",
    "vectors*": "made of words, as the tables; the embedder makes them again",
    "logs/*": "what processes said",
    "run/*": "what processes say while they are alive",
    "demo/*": "deployments of their own",
    "demo.previous/*": "deployments of their own",
    "models/adapters/.*": "unfinished or damaged adapters",
    "broker/tmp/*": "the broker's scratch",
    "broker/format-*": "the broker's scratch",
    "broker/broker.*": "ports and logs, made anew",
    "*.tmp": "unfinished files",
    "*.deleted": "segments that the broker is about to delete",
    "*-shm": "SQLite's memory, made anew",
    "*/lock": "locks",
    "lock": "locks",
    "*.lock": "locks",
}
"""Patterns of paths, and why they stay away. What is not named here comes along."""

POLICY_COPY = "policy.toml"  # a policy file outside the data folder, under the name that a restore gives it
LOG = "broker/data"

Progress = Callable[[float, float], None]


def make(settings: Settings, store: Store, now_ms: int, progress: Progress = lambda done, of: None) -> str:
    """Back up a stopped deployment; gives the backup's name.

    FolderInUse or BackupRefused if something runs, if there is no log, if the log is damaged (the backup before may
    hold it whole), or if the store belongs to another deployment. Until the name is given, nothing else changes.
    """
    data = settings.data
    if not (data / LOG / "meta.properties").exists():
        raise BackupRefused(
            f"there is no log in {data}: a cluster of your own is backed up by its own means, at the same time as this "
            "folder and with everything stopped"
        )
    if store.folder.resolve().is_relative_to(data.resolve()):
        raise BackupRefused(f"{store.folder} lies in the folder that it is to save: choose another disk")
    with embedded.FolderLock(data), embedded.FolderLock(store.folder):
        refuse_running(settings)
        os.chmod(store.folder, 0o700)
        cluster = _property(data / LOG / "meta.properties", "cluster.id")
        clean = (data / LOG / ".kafka_cleanshutdown").exists()
        known: dict[str, File] = {}
        if names := store.names():
            newest = store.manifest(names[-1])
            if newest.cluster != cluster:
                raise BackupRefused(
                    f"{store.folder} holds backups of the log {newest.cluster}, this is {cluster}: choose another"
                )
            known = {one.path: one for one in newest.files}
        found = list(_files(data))
        if settings.policy is not None:
            found.append((POLICY_COPY, settings.policy))
        files = []
        for index, (name, path) in enumerate(found):
            files.append(_keep(store, name, path, known.get(name), clean))
            progress(index + 1, len(found))
        files.sort(key=lambda one: one.path)
        store.put_keys(data / "vault" / "keys.sqlite")
        manifest = Manifest(
            format=FORMAT,
            made_ms=now_ms,
            program=version("xinfluencer"),
            cluster=cluster,
            namespace=settings.namespace,
            stopped_cleanly=clean,
            left_out=list(LEFT_OUT),
            root=root_of(files),
            files=files,
        )
        name = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%dT%H%M%S%f")[:-3] + "Z"
        if names and name <= names[-1]:
            raise BackupRefused(f"the clock says {name}, but there is a backup {names[-1]}: mend the clock first")
        store.announce(name, manifest)
        return name


def faults(store: Store, progress: Progress = lambda done, of: None) -> list[str]:
    """Read every byte of a store and say what is wrong with it; needs nothing but the store."""
    found = [] if store.names() else [f"{store.folder} holds no backup"]
    if fault := store.keys_fault():
        found.append(fault)
    needed: dict[str, tuple[int, str]] = {}
    for name in store.names():
        try:
            needed.update((one.sha256, (one.size, f"{name}: {one.path}")) for one in store.manifest(name).files)
        except BackupRefused as refused:
            found.append(str(refused))
    for index, (sha256, (size, whose)) in enumerate(needed.items()):
        try:
            for _ in store.content(sha256, size):
                continue
        except BackupRefused as refused:
            found.append(f"{whose}: {refused}")
        progress(index + 1, len(needed))
    return found


def _keep(store: Store, name: str, path: Path, before: File | None, clean: bool) -> File:
    told = path.stat()
    size, mtime_ns = told.st_size, told.st_mtime_ns
    segment = name.startswith(LOG) and path.suffix == ".log"
    # Segments are only ever appended to: one of the same size and time is the one that was read before.
    if segment and before is not None and (before.size, before.mtime_ns) == (size, mtime_ns) and store.has(before):
        return before
    measured = None
    if segment:
        last = max(path.parent.glob("*.log")) == path
        try:
            measured = span(path, path.read_bytes(), torn_end=last and not clean)
        except SegmentBroken as broken:
            raise BackupRefused(f"{broken}; an older backup may hold it whole") from None
    sha256 = sha256_of(path)
    store.put(path, sha256)
    return File(name, told.st_mode & 0o777, size, mtime_ns, sha256, measured)


def _files(data: Path) -> Iterator[tuple[str, Path]]:
    for folder, below, names in os.walk(data):
        for one in (*below, *names):
            path = Path(folder) / one
            name = path.relative_to(data).as_posix()
            if left_out(name):
                continue
            if path.is_symlink():
                raise BackupRefused(f"{path} is a link: put the folder itself in its place, or set XINFLUENCER_DATA")
            if path.is_file():
                yield name, path


def left_out(name: str) -> bool:
    """Say whether a path (from the data folder, with /) stays away; so does all that lies below one that does."""
    steps = PurePosixPath(name).parts
    return any(fnmatch("/".join(steps[: n + 1]), pattern) for n in range(len(steps)) for pattern in LEFT_OUT)


def refuse_running(settings: Settings) -> None:
    """Refuse while a JVM holds the log, or a process that no supervisor started says that it is alive."""
    with contextlib.suppress(FileNotFoundError), open(settings.data / "broker" / "jvm.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupRefused(f"Kafka still runs on {settings.data / 'broker'}: stop it first") from None
    for path in places.run(settings).glob("*.status.json"):
        try:
            told = healthy.read(path)
            os.kill(int(told["pid"]), 0)
            fresh = abs(time.time() - told["time"]) < SILENT_S_MAX
        except (OSError, ValueError, KeyError, TypeError):
            continue  # nobody of that number, or no status: nobody who writes
        if fresh and told["pid"] != os.getpid():
            raise BackupRefused(f"{path.name.partition('.')[0]} (process {told['pid']}) still runs: stop it first")


def _property(path: Path, wanted: str) -> str:
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name == wanted), "unknown")


# ---- commands -------------------------------------------------------------------------------------------------------


def run_backup(settings: Settings, target: Path, keep: int | None = None) -> None:
    """Back up into a store, made if it is not there; `keep` forgets all but so many, once the new one stands."""
    screen, began = Screen(), time.monotonic()
    store = Store(target.expanduser().absolute())
    with screen.progress("files kept") as advance:
        name = make(settings, store, int(time.time() * 1000), advance)
    manifest = store.manifest(name)
    log = manifest.log()
    size = sum(one.size for one in manifest.files)
    screen.say(f"  backup {name} in {store.folder}: {len(manifest.files)} files, {size / 1e6:.1f} MB")
    screen.say(f"  log {manifest.cluster}: {sum(one.records for one in log.values())} records of {len(log)} partitions")
    screen.say(f"  root {manifest.root}; {time.monotonic() - began:.1f} s")
    if not manifest.stopped_cleanly:
        screen.say("  the broker was killed: it will look through the end of its log when it starts")
    if not (settings.data / "vault" / "keys.sqlite").exists():
        screen.say("  there is no vault here, so the store holds no keys: nobody's words were sealed yet")
    if keep is not None:
        backups, objects = store.prune(keep)
        screen.say(f"  {backups} older backups and {objects} contents that only they held are removed")
    screen.say("  whoever holds this folder can read the words in the log: keep it as you keep the vault")


def run_backup_list(target: Path) -> None:
    """List the backups of a store, and the log of the newest."""
    screen, store = Screen(), Store(target.expanduser().absolute())
    rows = []
    for name in store.names():
        manifest = store.manifest(name)
        records = sum(one.records for one in manifest.log().values())
        rows.append((name, len(manifest.files), sum(one.size for one in manifest.files), records, manifest.root[:12]))
    screen.table(("backup", "files", "bytes", "records", "root"), rows)
    if rows:
        places_of = [(place, *one) for place, one in sorted(manifest.log().items()) if not place.startswith("__")]
        screen.table(("partition", "first", "end", "records"), places_of)


def run_backup_verify(path: Path) -> int:
    """Read all of a store; gives the exit code, 1 if anything in it is not what was written."""
    screen, store = Screen(), Store(path.expanduser().absolute())
    with screen.progress("contents read") as advance:
        found = faults(store, advance)
    for fault in found:
        screen.say(f"  FAULT {fault}")
    screen.say(f"  {len(store.names())} backups, {len(found)} faults")
    return 1 if found else 0
