"""Healthy: what a process says of itself -> exit code 0 or 1, for whatever starts processes again, such as Docker.

`python -m streams.healthy NAME` looks at run/NAME.status.json in XINFLUENCER_DATA, which the process writes every
second or so; a NAME with * stands for the newest of several. `server` is asked over HTTP instead. With --end a worker
that is silent, stands still or never said a word is ended with SIGKILL, as the supervisor would do on one machine:
Docker starts again what has ended, and only marks what is unhealthy. It runs often, in every container: nothing heavy
is imported.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SILENT_S_MAX = 30.0  # as in streams/supervisor.py, which is too heavy to import here; a test holds them together
STILL_S_MAX = 45.0
START_S_MAX = 20.0  # and then it may be silent as long as any other
TOUCHED_S_MIN = 5.0  # a status so much older than its file was only touched since; writing one takes milliseconds
ANSWER_S_MAX = 5.0


class Seen(NamedTuple):
    """What a process had applied, and since when (seconds of the wall clock) it stands there."""

    pid: int
    applied: int
    since_s: float


def tell(run: Path, name: str, **what: object) -> None:
    """Write run/NAME.status.json for whoever looks: the time, this process, and what it says of itself."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / f"{name}.status.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"time": time.time(), "pid": os.getpid(), **what}))
    temporary.replace(path)


def ended(run: Path, name: str) -> None:
    """Add to what this process said last that it ends as asked: whoever looks need not wait for more."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # it had said nothing; or a full disk, and it looks dead
        told = json.loads((run / f"{name}.status.json").read_text())
        tell(run, name, **{**told, "time": time.time(), "pid": os.getpid(), "ended": True})


def read(path: Path) -> dict[str, Any]:
    """Read a status. Who has no room on the disk only touches it: it lives, and how far it is nobody knows."""
    told: dict[str, Any] = json.loads(path.read_text())
    touched_s = path.stat().st_mtime
    if touched_s - told["time"] > TOUCHED_S_MIN:
        told |= {"time": touched_s, "partitions": {}}
    return told


def judge(told: Mapping[str, Any], seen: Seen | None, now_s: float, silent_s_max: float) -> tuple[str, Seen]:
    """Say what is wrong with a status ('' if nothing), and what to remember for the next look."""
    here = Seen(told.get("pid", 0), told.get("applied", -1), now_s)
    behind = any(at < handed or position < end for at, handed, position, end in told.get("partitions", {}).values())
    if seen is not None and behind and (seen.pid, seen.applied) == (here.pid, here.applied):
        here = seen
    if not abs(now_s - told["time"]) <= silent_s_max:  # this way round, a time that is no number is too old as well
        return f"it has said nothing for {now_s - told['time']:.0f} s", here
    if now_s - here.since_s > STILL_S_MAX:
        return f"records wait and none was applied for {now_s - here.since_s:.0f} s", here
    return "", here


def look(run: Path, name: str, memory: Path, now_s: float, silent_s_max: float, end: bool) -> str:
    """Judge the newest status called `name`; with `end`, end a process that cannot help itself. '' means healthy."""
    statuses = sorted(run.glob(f"{name}.status.json"), key=lambda path: path.stat().st_mtime)
    mute = _mute(run, name, statuses, START_S_MAX + silent_s_max) if end else []
    for pid in mute:
        os.kill(pid, signal.SIGKILL)
    if mute:
        return f"it has not said anything for {START_S_MAX + silent_s_max:.0f} s after its start; ended it"
    try:
        told = read(statuses[-1])
        problem, here = judge(told, _remembered(memory), now_s, silent_s_max)
    except IndexError:
        return "it has not said anything yet"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its status cannot be read: {error!r}"
    with open(memory, "w", opener=_own) as file:
        json.dump(here, file)
    if problem and end and _wrote(told, name):
        os.kill(here.pid, signal.SIGKILL)
        problem += "; ended it"
    return problem


def ask(run: Path) -> str:
    """Ask the server whether it is alive, at the address that it announced. '' means healthy."""
    try:
        url = urlsplit(json.loads((run / "server.json").read_text())["url"])
        # One that listens on every address is asked on this machine's own.
        host = "127.0.0.1" if url.hostname == "0.0.0.0" else str(url.hostname)
        connection = http.client.HTTPConnection(host, url.port, timeout=ANSWER_S_MAX)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        return f"it does not answer: {error!r}"
    return "" if status == 200 else f"it answers {status}"


def _own(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)  # a folder for everybody's temporary files may hold traps


def _remembered(memory: Path) -> Seen | None:
    try:
        return Seen(*json.loads(memory.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # the first look, or a file cut short: what follows counts from now


def _wrote(told: Mapping[str, Any], name: str) -> bool:
    """Say whether the process of that number is the one that wrote the status: process numbers come again, above all
    in containers, where a restarted process has the number of the one before it."""
    try:
        age_s, words = _process(int(told["pid"]))
    except (OSError, ValueError, KeyError, IndexError):
        return False
    return told["time"] > time.time() - age_s and name.partition("-")[0] in words


def _process(pid: int) -> tuple[float, list[str]]:
    """Give the age of a process in seconds, and its command line."""
    process = Path("/proc") / str(pid)
    started_ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])
    age_s = float(Path("/proc/uptime").read_text().split()[0]) - started_ticks / os.sysconf("SC_CLK_TCK")
    return age_s, (process / "cmdline").read_bytes().decode(errors="replace").split("\0")


def _mute(run: Path, name: str, statuses: Sequence[Path], limit_s: float) -> list[int]:
    """Find the processes of this name and deployment that have lived for longer than `limit_s` and wrote no status."""
    kind, _, instance = name.partition("-")
    written_s = max((path.stat().st_mtime for path in statuses), default=0.0)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            age_s, words = _process(int(process.name))
            own = words[words.index("--instance") + 1] if "--instance" in words[:-1] else "0"
            if kind in words and instance in ("", "*", own) and age_s > limit_s and written_s < time.time() - age_s:
                given = dict(one.partition("=")[::2] for one in (process / "environ").read_text().split("\0"))
                if (process / "cwd" / _folder(given) / "run").resolve() == run.resolve():
                    found.append(int(process.name))
        except (OSError, ValueError, IndexError):
            continue  # it has just ended, or is somebody else's
    return found


def _folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XINFLUENCER_DATA") or "var").expanduser()


def main(arguments: list[str] | None = None) -> int:
    """Give the exit code, and say in a line what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m streams.healthy", description="Is a process of ours healthy?")
    parser.add_argument("name", help="worker-0, trainer, server, 'follow-*', ...: as in run/NAME.status.json")
    parser.add_argument("--silent-s", type=float, default=SILENT_S_MAX, help="longest silence, in seconds")
    parser.add_argument("--end", action="store_true", help="end a process that is silent or stands still")
    given = parser.parse_args(arguments)
    if set(given.name) & set("/\\\0") or given.name.startswith("."):
        parser.error("a name is no path")
    run = _folder(os.environ) / "run"
    if given.name == "server":
        problem = ask(run)
    else:
        memory = Path(tempfile.gettempdir()) / f"xinfluencer-{given.name.replace('*', 'any')}.seen"
        problem = look(run, given.name, memory, time.time(), given.silent_s, given.end)
    if problem:
        print(f"{given.name}: {problem}")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
