"""Up: asked to end while it starts, it ends: at once where that can be broken off, else when it is asked again."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.deployed import ROOT

ENDED_S_MAX = 20.0

# Its broker is one that cannot be had: the jars never come, or the JVM runs and never serves.
STARTING = """
import subprocess, sys, threading
from subprocess import DEVNULL
from pathlib import Path
from streams import supervisor, up
from streams.broker import Prepared
from streams.settings import Settings

data, how = Path(sys.argv[1]), sys.argv[2]

def prepare(*_):
    if how == "fetching":
        print("here", flush=True)
        threading.Event().wait()
    return Prepared([], {}, "127.0.0.1:1", "id", data, data / "log")

def wait_ready(prepared, process):
    print("here", process.pid, flush=True)
    process.wait()
    raise OSError("it ended before it was ready")

supervisor.embedded.prepare = prepare
supervisor.embedded.start = lambda prepared: subprocess.Popen(["sleep", "120"], stdout=DEVNULL, stderr=DEVNULL)
supervisor.embedded.wait_ready = wait_ready
up.run_up(Settings(data=data, cache=data, port=0))
print("ended", flush=True)
"""


@contextlib.contextmanager
def starting(data: Path, how: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """Begin an `up` whose start hangs; gives the process, and the words with which it said so."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XINFLUENCER")}
    command = [sys.executable, "-c", STARTING, str(data), how]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    patience = threading.Timer(ENDED_S_MAX, process.kill)  # whoever reads on reads the end
    patience.start()
    said = ""
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("here"), said + process.stdout.read()
        yield process, said.split()
    finally:
        patience.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        for left in map(int, said.split()[1:]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_while_the_broker_begins_it_ends_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    with starting(tmp_path, "serving") as (process, (_, broker)):
        process.send_signal(number)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait() == 0, said
        assert "stopping" in said
        assert said.endswith("ended\n"), said
        assert not psutil.pid_exists(int(broker)), "the broker was left behind"


def test_what_cannot_be_broken_off_ends_when_it_is_asked_to_a_second_time(tmp_path: Path) -> None:
    """A thread that waits for the jars cannot be ended, and Python waits for its threads."""
    with starting(tmp_path, "fetching") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        while "stopping" not in (line := process.stdout.readline()):
            assert line, "it ended without a word"
        time.sleep(0.5)
        assert process.poll() is None, "the control: one does not end it"
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT
