"""Doctor, the data folder: keys, snapshots, troubles, processes, cursors, the clock; no broker is needed."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped]

from schemas.topics import BY_NAME, partitions
from streams import cursors, places, snapshots
from streams.doctor_check import Check, Context, Verdict, duration, listed, read, worst
from streams.object_snapshots import keeper
from streams.supervisor import SILENT_S_MAX
from streams.topology import stages
from streams.trouble import ATTEMPTS_MAX

CLOCK_MS_MAX = 5_000  # a file or a record may be so far ahead of this clock: machines of one deployment differ a little
RECENT_MS = 86_400_000
STALE_MS_LOOK = 300_000  # a snapshot is written every half second, or as seldom as its size asks for
BUSY, BUSY_S_MAX = ("trainer",), 1_800.0  # it says nothing between two steps, nor while it evaluates
LAG_MS_LOOK = 300_000  # a live source is behind by more than five minutes


class _Next(msgspec.Struct):
    """Of a fold's memory, only where it stands; the rest is not decoded."""

    next: int = 0


def check_modes(context: Context) -> Check:
    """See that keys are for their owner only."""
    data, folder = context.settings.data, context.vault.parent
    wrong, look = _open([folder, *folder.glob("keys.sqlite*")]), _open([data])
    mend = f"chmod 700 {data} {folder}; chmod 600 {context.vault}*"
    if wrong:
        mend += "; if others had accounts here, think of the keys as read"
    if wrong or look:
        return Check("file modes", "wrong" if wrong else "look", listed(wrong + look), mend)
    return Check("file modes", "ok", "keys and data are for their owner only")


def _open(paths: list[Path]) -> list[str]:
    modes = [(path, path.stat().st_mode & 0o777) for path in paths if path.exists()]
    return [f"{path} is {mode:04o}" for path, mode in modes if mode & 0o077]


def check_vault(context: Context) -> Check:
    """Let SQLite look through the vault and what lies beside it."""
    seen, broken = [], []
    for path in sorted(context.vault.parent.glob("*.sqlite")):
        try:
            with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as db:
                said = db.execute("pragma integrity_check").fetchone()[0]
                if path == context.vault:
                    keys, gone = db.execute("select count(key), count(*) - count(key) from keys").fetchone()
                    seen.append(f"{keys} keys, {gone} destroyed")
            db.close()
        except sqlite3.DatabaseError as error:
            said = str(error)
        if said != "ok":
            broken.append(f"{path.name}: {said.splitlines()[0]}")
    if broken:
        mend = "stop everything and put the newest copy of a backup's keys/ in its place (the other files: remove them)"
        return Check("vault", "wrong", listed(broken), mend)
    return Check("vault", "ok", seen[0] if seen else "there is none yet")


def check_snapshots(context: Context) -> Check:
    """Read every snapshot: whole, of this log, of these stages."""
    known = {stage.name: stage for stage in stages(context.settings.tuning)}
    ours = context.log.cluster if context.log else cluster_of(context.log_folder)
    workers = [told for name, told in context.said().items() if name.startswith("worker-") and alive(told)]
    applied = {place: at for told in workers for place, (at, *_) in told.get("partitions", {}).items()}
    verdicts: list[Verdict] = []
    said, oldest, number = [], 0.0, 0
    for place in keeper(context.settings.snapshots, context.settings.data / "snapshots").kept():
        if "@" in place.name:
            continue  # what a step's version began with: it is as old as that, and the worker does not go by it
        whole = [_snapshot(data) for data in place.files]
        number += 1
        if whole[0] is None:
            verdicts.append("look" if any(whole) else "wrong")
            said.append(f"{place.name} is torn" + (", the one before it is whole" if any(whole) else ""))
        if (found := next((one for one in whole if one), None)) is None:
            continue
        bound, stage = found[0], known.get(found[0].stage)
        age = context.now_ms() - place.written_ms
        oldest = max(oldest, age)
        if stage is None:
            continue  # of a stage that is no more; it hurts nobody
        at = applied.get(f"{stage.reads.name}/{bound.partition}", 0)
        if at > found[1] and age > STALE_MS_LOOK:
            verdicts.append("look")
            said.append(f"{place.name} was written {duration(age)} ago, {at - found[1]} records behind its worker")
        if ours is not None and bound.log.partition("/")[0] != ours:
            verdicts.append("wrong")
            said.append(f"{place.name} belongs to the log {bound.log.partition('/')[0]}, this is {ours}")
        width = context.settings.partitions
        if (bound.version, bound.width) != (stage.version, width) or bound.partition >= partitions(stage.reads, width):
            verdicts.append("wrong")
            said.append(f"{place.name} is of version {bound.version} and {bound.width} partitions")
    if said:
        mend = (
            "torn or stale: a restart writes it anew, and look at the disk; of another log: put back the log and the "
            "snapshots of one backup; of another version: drain it with the program that wrote it first"
        )
        return Check("snapshots", worst(verdicts), listed(said), mend)
    seen = f"{number} partitions, the oldest written {duration(oldest)} ago" if number else "none yet"
    return Check("snapshots", "ok", seen)


def _snapshot(data: bytes) -> tuple[snapshots.Bound, int] | None:
    """Read what a snapshot belongs to and where it stands; None if it is torn."""
    head = len(snapshots.MAGIC) + 32
    magic, digest = data[: len(snapshots.MAGIC)], data[len(snapshots.MAGIC) : head]
    if magic != snapshots.MAGIC or hashlib.sha256(data[head:]).digest() != digest:
        return None
    found = msgspec.msgpack.decode(data[head:], type=snapshots.Snapshot)
    return found.bound, msgspec.msgpack.decode(found.memory, type=_Next).next


def cluster_of(log_folder: Path) -> str | None:
    """Read the id that the embedded broker's folder was formatted with; None if there is no log."""
    meta = log_folder / "meta.properties"
    lines = meta.read_text(encoding="utf-8").splitlines() if meta.exists() else []
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("cluster.id=")), None)


def check_troubles(context: Context) -> Check:
    """List where steps failed."""
    names = {hashlib.sha256(context.settings.physical(topic).encode()).hexdigest()[:16]: topic for topic in BY_NAME}
    recent, number = [], 0
    for path in sorted(places.run(context.settings).glob("trouble-*-*.json")):
        found, (_, digest, partition) = read(path), path.stem.split("-")
        number += 1
        if context.now_ms() - path.stat().st_mtime * 1000 < RECENT_MS:
            attempts = found.get("attempts", 0)
            then = "then set aside as a dead letter" if attempts >= ATTEMPTS_MAX else "and is tried again, or passed"
            place = f"{names.get(digest, digest)}/{partition} {found.get('start')}..{found.get('end')}"
            recent.append(f"{place}: a step failed {attempts} times, {then}")
    if recent:
        mend = "read the worker's log, mend the step, then `xinfluencer dead-letters replay --reason step-failed`"
        return Check("troubles", "look", listed(recent), mend)
    return Check("troubles", "ok", f"no step failed in the last day ({number} older)")


def check_processes(context: Context) -> Check:
    """Hold what processes last said against the clock and against who is alive."""
    now_s, supervised = context.now_ms() / 1000, context.supervised()
    living: list[str] = []
    stopped: list[str] = []
    wrong: list[str] = []
    for name, told in context.said().items():
        pid, time_s = told.get("pid"), told.get("time")
        if not isinstance(pid, int) or not isinstance(time_s, int | float):
            wrong.append(f"the status of {name} cannot be read")
            continue
        ago = duration((now_s - time_s) * 1000)
        if not _lives(pid, time_s):
            (wrong if supervised else stopped).append(f"{name} ended, its last word was {ago} ago")
        elif now_s - time_s > (BUSY_S_MAX if name in BUSY else SILENT_S_MAX):
            wrong.append(f"{name} (process {pid}) has said nothing for {ago}")
        else:
            living.append(name)
    if supervised:
        kept = read(places.run(context.settings) / "processes.json")
        wrong += [f"{name} (process {pid}) is not there" for name, pid in kept.items() if not psutil.pid_exists(pid)]
    if wrong:
        mend = f"read its log in {places.logs(context.settings)}; end one that is silent, and it is started again"
        return Check("processes", "wrong", listed(wrong), mend)
    runs = f"alive: {', '.join(living)}" if living else "starting" if supervised else "nothing runs"
    return Check("processes", "ok", f"{runs}; stopped: {len(stopped)}")


def _lives(pid: int, said_s: float) -> bool:
    """Say whether the process that wrote a status is there; numbers come again, so it must be older than its words."""
    try:
        return bool(psutil.Process(pid).create_time() <= said_s + 1.0)
    except psutil.Error:
        return False


def alive(told: Mapping[str, Any]) -> bool:
    """Say whether the process that said this of itself is there."""
    return bool(told) and _lives(told.get("pid", 0), told.get("time", 0.0))


def check_sources(context: Context) -> Check:
    """Say where live sources stand."""
    cluster = context.log.cluster if context.log else cluster_of(context.log_folder)
    verdicts: list[Verdict] = []
    good: list[str] = []
    said: list[str] = []
    for stream, kept in _cursors(context.settings.data / "ingest"):
        told = context.said().get(f"follow-{stream}", {})
        if kept is None:
            verdicts.append("wrong")
            said.append(f"the cursor of {stream} is damaged")
        elif cluster is not None and kept.log.partition("/")[0] != cluster:
            verdicts.append("wrong")
            said.append(f"the cursor of {stream} belongs to another log")
        elif alive(told):
            behind = told.get("lag_ms") or 0
            text = f"{stream} {'connected' if told.get('connected') else 'not connected'}, {duration(behind)} behind"
            fine = told.get("connected") and behind < LAG_MS_LOOK
            verdicts.append("ok" if fine else "look")
            (good if fine else said).append(f"{text} ({told['last_error']})" if told.get("last_error") else text)
        else:
            good.append(f"{stream} stands where it was {duration(context.now_ms() - kept.saved_ms)} ago")
    if said:
        mend = "look at the token and the network; with a lost cursor `follow --from-now` once, knowing of the gap"
        return Check("sources", worst(verdicts), listed(said), mend)
    return Check("sources", "ok", listed(good) if good else "no live source was followed")


def _cursors(folder: Path) -> Iterator[tuple[str, cursors.Kept | None]]:
    for path in sorted(folder.glob("*/cursor")):
        digest, _, body = path.read_bytes().removeprefix(cursors.MAGIC).partition(b"\n")
        whole = hashlib.sha256(body).hexdigest().encode() == digest
        try:
            yield path.parent.name, msgspec.json.decode(body, type=cursors.Kept) if whole else None
        except msgspec.DecodeError:
            yield path.parent.name, None


def check_clock(context: Context) -> Check:
    """See whether files of ours are from the future: then the clock was set back."""
    newest = max(
        (path.stat().st_mtime * 1000 for path in (context.settings.data / "snapshots").glob("*/snapshot")), default=0.0
    )
    newest = max([newest, *(told.get("time", 0.0) * 1000 for told in context.said().values())])
    ahead = newest - context.now_ms()
    if ahead > CLOCK_MS_MAX:
        seen = f"a file of ours is {duration(ahead)} in the future: this clock was set back"
        return Check("clock", "wrong", seen, "set the clock by NTP; times in the log stay as they were said")
    return Check("clock", "ok", "no file of ours is from the future")
