"""Restore: a backup -> the data folder as it was, into an empty place only, whole or not at all.

Everything is written beside the folder under another name, checked on the way, and renamed. Offsets, ids, snapshots
and commits are what they were, so a worker goes on where it stood. The vault is the store's newest, and every author
and post that has a receipt in the log is forgotten once more in it: an old vault, however it came here, opens none of
their words again.
"""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from schemas import envelope
from schemas.envelope import Refused
from schemas.events import AuthorForgotten, PostForgotten
from schemas.seal import post_name
from schemas.topics import ERASURES
from streams.backup import LOG, POLICY_COPY, Progress
from streams.backup_store import BackupRefused, Manifest, Store, blocks, write_new
from streams.crash import CrashPoint, nowhere
from streams.segments import records
from streams.settings import Settings
from streams.show import Screen
from streams.vault import Vault


class Restored(NamedTuple):
    """What was put back: the backup, its manifest, how many authors and posts have receipts, how many had a key."""

    name: str
    manifest: Manifest
    forgotten: int
    posts_forgotten: int
    keys_destroyed: int


def restore(
    data: Path, source: Path, progress: Progress = lambda done, of: None, crash_point: CrashPoint = nowhere
) -> Restored:
    """Make `data` again from a store (its newest backup), or from one manifest of a store.

    BackupRefused if `data` holds anything, or if the backup is damaged; then `data` is as it was.
    """
    data = data.resolve()  # a link: what it points to is what is renamed to
    one = source.suffix == ".json"
    store = Store(source.parent.parent if one else source)
    if not store.names():
        raise BackupRefused(f"{store.folder} holds no backup")
    name = source.stem if one else store.names()[-1]
    manifest = store.manifest(name)
    if data.exists() and any(data.iterdir()):
        raise BackupRefused(f"{data} is not empty: a backup is only restored into an empty folder")
    if data.is_mount():
        raise BackupRefused(f"{data} is a mount point, which nothing can be renamed to: give a folder below it")
    if fault := store.keys_fault():
        raise BackupRefused(fault)
    fresh = data.with_name(f".{data.name}.restoring")
    shutil.rmtree(fresh, ignore_errors=True)  # of a try that was killed
    fresh.mkdir(parents=True, mode=0o700)
    for index, file in enumerate(manifest.files):
        path = fresh / file.path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_new(path, store.content(file.sha256, file.size), file.mode)
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
        crash_point("file")
        progress(index + 1, len(manifest.files))
    keys = fresh / "vault" / "keys.sqlite"
    keys.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_new(keys, blocks(store.keys), 0o600)
    gone = forgotten(fresh, manifest.namespace)
    destroyed = forget(keys, gone) if gone else 0
    os.sync()  # the names too, in all folders, before the one name that counts
    crash_point("before-rename")
    os.replace(fresh, data)
    authors = sum(isinstance(one, AuthorForgotten) for one in gone)
    return Restored(name, manifest, authors, len(gone) - authors, destroyed)


def forgotten(data: Path, namespace: str) -> list[AuthorForgotten | PostForgotten]:
    """Give a receipt of every author and every post that has one in the log of a stopped deployment."""
    topic = f"{namespace}.{ERASURES.name}" if namespace else ERASURES.name
    receipts: dict[tuple[str, str | None], AuthorForgotten | PostForgotten] = {}
    for raw in records(data / LOG / f"{topic}-0"):
        try:
            event = envelope.decode(ERASURES.name, 0, raw.offset, raw.timestamp, raw.headers, raw.value).event
        except Refused:
            continue  # no receipt of ours; what it is, its readers have said in a dead letter
        if isinstance(event, AuthorForgotten | PostForgotten):
            receipts[event.owner, event.post if isinstance(event, PostForgotten) else None] = event
    return list(receipts.values())


def forget(path: Path, receipts: list[AuthorForgotten | PostForgotten]) -> int:
    """Destroy in a vault what these receipts say is destroyed; gives how many keys of authors and posts there were."""
    vault = Vault(path)
    try:
        alive = [
            vault.get(one.owner) if isinstance(one, AuthorForgotten) else vault.leaf(one.owner, post_name(one.post))
            for one in receipts
        ]
        vault.forget(receipts)
    finally:
        vault.close()
    return len(alive) - alive.count(None)


def run_restore(settings: Settings, source: Path) -> None:
    """Restore into the data folder, and say what to do next."""
    screen, began = Screen(), time.monotonic()
    with screen.progress("files put back") as advance:
        done = restore(settings.data, source.expanduser().absolute(), advance)
    log = done.manifest.log()
    screen.say(
        f"  backup {done.name} is in {settings.data}: {len(done.manifest.files)} files, root {done.manifest.root}"
    )
    screen.say(f"  log {done.manifest.cluster}: {sum(one.records for one in log.values())} records")
    if done.forgotten or done.posts_forgotten:
        screen.say(
            f"  {done.forgotten} authors and {done.posts_forgotten} posts have receipts of being forgotten; "
            f"{done.keys_destroyed} keys of theirs were in the vault and are destroyed"
        )
    if (settings.data / POLICY_COPY).exists():
        screen.say(
            f"  the rights policy is {settings.data / POLICY_COPY}: set XINFLUENCER_POLICY to where it shall lie"
        )
    screen.say(f"  {time.monotonic() - began:.1f} s; now run `doctor` and `verify`, then `up`")
