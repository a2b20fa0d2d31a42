"""Broker: a folder -> Apache Kafka in KRaft mode, as a child that never outlives its parent.

`prepare` makes the folder ready, `start` runs the JVM, `wait_ready` returns when the broker answers with our own
cluster id, `stop` ends it. The data, the cluster id and the ports live in the folder, so a broker killed anywhere comes
back as the same broker. `kill -9` loses nothing that was acknowledged; a power cut can, for one replica does not fsync
each message.

Layout: `data/` the log, `broker.json` the ports, `broker.log` what Kafka says, `broker.out` what the JVM itself says,
`lock` held by whoever runs the folder, `jvm.lock` held by the JVM for as long as it lives.
"""

import base64
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from streams import jars
from streams.broker_settings import (
    HOST,
    JVM_FLAGS,
    LOG4J_PROPERTIES,
    NODE_ID,
    keep_ports,
    server_properties,
    write_whole,
)
from streams.java import find_java, spawn

PREDECESSOR_WAIT_S = 20.0  # A JVM whose parent was killed needs a second or two to close its logs.
FORMAT_S_MAX = 60.0
METADATA_BYTES_MAX = 1 << 20  # of brokers alone, without topics
RECOVERY_S_MAX = 300.0  # after a kill Kafka reads its newest segments again before it serves
POLL_S = 0.05
LOG_LINES_SHOWN = 15

_KEPT_VARIABLES = ("PATH", "HOME", "TZ")


class BrokerFailed(Exception):
    """The embedded broker cannot run or did not get ready; the message ends with the log's last lines."""


class FolderInUse(Exception):
    """Another process runs this folder; the message names its id."""


@dataclass(frozen=True)
class Prepared:
    command: list[str]
    env: dict[str, str]
    bootstrap: str
    cluster_id: str
    folder: Path
    log: Path


class FolderLock:
    """A folder's owner: one process at a time, by flock on `folder/lock`, which the kernel releases.

    Entering raises FolderInUse at once when another holds it. A child made by fork without exec shares the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd: int | None = None

    def __enter__(self) -> "FolderLock":
        self._folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not _try_lock(fd):
            holder = _holder(fd)
            os.close(fd)
            raise FolderInUse(f"{self._folder} is in use by process {holder}: stop it first, or choose another folder.")
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def prepare(
    folder: Path,
    cache: Path,
    progress: jars.Progress = jars.silent,
    *,
    env: Mapping[str, str] = os.environ,
    more: str = "",
    users: Mapping[str, str] | None = None,
) -> Prepared:
    """Make `folder` ready to run a broker: verified jars, free ports, settings, a formatted log.

    Lines of `more` are put behind our settings and win over them. `users` (name -> password, SCRAM-SHA-512) are known
    from the first start on; a passer-by who lists processes while the log is formatted sees them.

    Ports are kept while they are free and changed when something else took them. Raises JavaMissing, JarsUnavailable,
    ChecksumMismatch, FolderInUse when a JVM still runs on the folder, and BrokerFailed when formatting fails.
    """
    folder, cache = folder.resolve(), cache.resolve()
    if os.pathsep in str(cache):
        raise BrokerFailed(
            f"Java cannot load jars from {cache}: choose a cache folder without '{os.pathsep}' in its path."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _await_predecessor(folder)
    java = find_java(env)
    class_path = os.pathsep.join(str(jar) for jar in jars.resolve(cache, progress))
    port, controller_port = keep_ports(folder / "broker.json")
    scratch = folder / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    write_whole(folder / "log4j2.properties", LOG4J_PROPERTIES)
    write_whole(folder / "server.properties", server_properties(port, controller_port, "data") + more)
    base = [str(java), *JVM_FLAGS, f"-Djava.io.tmpdir={scratch}", "-cp", class_path]
    # The JVM is given what it needs and no more, so that no secret of ours ends in its environment.
    child_env = {name: env[name] for name in _KEPT_VARIABLES if name in env}
    # Java 17 cannot open a path outside ASCII in the C locale, which is what a container or a service has.
    child_env["LC_ALL"] = "C.UTF-8"
    if not (folder / "data").exists():
        known = [f"SCRAM-SHA-512=[name={name},password={password}]" for name, password in (users or {}).items()]
        _format(folder, base, child_env, lambda data: server_properties(port, controller_port, data) + more, known)
    return Prepared(
        command=[*base, "kafka.Kafka", "server.properties"],
        env=child_env,
        bootstrap=f"{HOST}:{port}",
        cluster_id=_cluster_id(folder / "data"),
        folder=folder,
        log=folder / "broker.log",
    )


def start(prepared: Prepared) -> "subprocess.Popen[bytes]":
    """Run the JVM as a child that holds `jvm.lock` and gets SIGTERM when this process dies; see `java.spawn`."""
    with open(prepared.folder / "broker.out", "wb") as out:
        return spawn(prepared.command, prepared.env, prepared.folder, out, lock="jvm.lock")


def wait_ready(prepared: Prepared, process: "subprocess.Popen[bytes]", timeout_s: float = RECOVERY_S_MAX) -> None:
    """Return when the broker serves and says our cluster id.

    Raises BrokerFailed when the process ends, when another cluster answers on the port, or when the time is up.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = _who_answers(prepared.bootstrap)
        if answer is not None and answer[0] != prepared.cluster_id:
            raise BrokerFailed(
                f"Another broker answers on {prepared.bootstrap}: its cluster id is {answer[0]}, ours is "
                f"{prepared.cluster_id}. Stop it, or prepare again to get another port.{_last_lines(prepared)}"
            )
        code = process.poll()
        if code is not None:
            raise BrokerFailed(f"Kafka ended with code {code} before it was ready.{_last_lines(prepared)}")
        # A broker lists itself only once the controller has unfenced it, which is when it may lead partitions.
        if answer is not None and NODE_ID in answer[1]:
            return
        if time.monotonic() > deadline:
            raise BrokerFailed(f"Kafka was not ready within {timeout_s:.0f} s.{_last_lines(prepared)}")
        time.sleep(POLL_S)


def stop(process: "subprocess.Popen[bytes]", timeout_s: float = 20.0) -> int:
    """End the broker, by SIGTERM and after `timeout_s` by SIGKILL, and return its exit code. Safe to call twice."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def running(folder: Path) -> str | None:
    """Give the address of the broker that runs on `folder` now, known by its cluster id, or None."""
    kept = folder / "broker.json"
    if not kept.exists() or not (folder / "data" / "meta.properties").exists():
        return None
    bootstrap = f"{HOST}:{json.loads(kept.read_text(encoding='utf-8'))['port']}"
    answer = _who_answers(bootstrap)
    return bootstrap if answer is not None and answer[0] == _cluster_id(folder / "data") else None


def _format(
    folder: Path, base: list[str], env: dict[str, str], properties: Callable[[str], str], users: list[str]
) -> None:
    """Format a log under another name and rename it to `data`, so that `data` is whole whenever it exists."""
    for leftover in folder.glob("format-*"):
        # The JVM of a killed `prepare` may still be writing here for a moment; what stays is removed the next time.
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="format-", dir=folder))
    write_whole(fresh / "server.properties", properties(f"{fresh.name}/data"))
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # Joined by "=", because an id may begin with a dash and would be read as an option.
    arguments = ["format", "--standalone", f"--cluster-id={cluster_id}", f"--config={fresh.name}/server.properties"]
    for user in users:
        arguments += ["--add-scram", user]
    command = [*base, "kafka.tools.StorageTool", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=FORMAT_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerFailed(f"Kafka did not format its storage within {FORMAT_S_MAX:.0f} s.") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-LOG_LINES_SHOWN:]
        raise BrokerFailed("\n".join(["Kafka could not format its storage:", *said]))
    os.replace(fresh / "data", folder / "data")
    shutil.rmtree(fresh, ignore_errors=True)


def _cluster_id(data: Path) -> str:
    meta = data / "meta.properties"
    for line in meta.read_text(encoding="utf-8").splitlines() if meta.exists() else ():
        name, _, value = line.partition("=")
        if name == "cluster.id":
            return value.strip()
    raise BrokerFailed(f"{meta} names no cluster id: move {data} away to begin with an empty log.")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"


def _await_predecessor(folder: Path) -> None:
    """Wait for a JVM whose parent was killed; its port and its log are free only after it."""
    fd = os.open(folder / "jvm.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + PREDECESSOR_WAIT_S
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                raise FolderInUse(f"Kafka still runs on {folder} as process {_holder(fd)}: stop it, then start again.")
            time.sleep(POLL_S)
    finally:
        os.close(fd)


def _last_lines(prepared: Prepared) -> str:
    lines: list[str] = []
    for path in (prepared.log, prepared.folder / "broker.out"):
        if path.exists():
            with open(path, "rb") as reader:
                reader.seek(max(0, path.stat().st_size - 16_384))
                lines += reader.read().decode(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return "".join(f"\n  {line}" for line in lines)


def _who_answers(bootstrap: str) -> tuple[str, set[int]] | None:
    """Ask for metadata (v2, the first with a cluster id, KIP-78): that id and the nodes; None if no broker answers.

    Our port may have become another program's since: what it says is no such answer.
    """
    host, _, port = bootstrap.partition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2) as link:
            # Key 3, version 2, correlation 7, no client id, no topics.
            request = struct.pack(">hhihi", 3, 2, 7, -1, 0)
            link.sendall(struct.pack(">i", len(request)) + request)
            reader = link.makefile("rb")
            (size,) = struct.unpack(">i", reader.read(4))
            if not 8 <= size <= METADATA_BYTES_MAX:
                return None
            body = memoryview(reader.read(size))
        correlation, count = struct.unpack_from(">ii", body)
        at, nodes = 8, set()
        for _ in range(count):
            nodes.add(struct.unpack_from(">i", body, at)[0])
            _, at = _text(body, at + 4)  # after the id: the host
            _, at = _text(body, at + 4)  # after the port: the rack
        return (_text(body, at)[0] or "", nodes) if correlation == 7 else None
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def _text(body: memoryview, at: int) -> tuple[str | None, int]:
    (size,) = struct.unpack_from(">h", body, at)
    end = at + 2 + max(size, 0)
    return (None if size < 0 else bytes(body[at + 2 : end]).decode()), end
