"""Zygote: one process that has imported torch, forking the ones that need it.

Importing the model libraries costs 12 seconds of CPU and most of a gigabyte; forked children share both. The parent
says `start NAME` in JSON lines on stdin and hears `started` and `exited` on stdout. Children die with this process
(PR_SET_PDEATHSIG), and it dies when its stdin closes, so nothing is left behind by a kill -9 anywhere.
"""

import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from streams import places
from streams.settings import Settings

PR_SET_PDEATHSIG = 1
POLL_S = 0.2
EXIT_FAILED = 75


def preload() -> None:
    """Import what children would import."""
    import peft  # noqa: F401
    import transformers  # noqa: F401
    import trl.trainer.dpo_trainer  # noqa: F401

    import models.dpo
    import models.evaluate
    import models.generate  # noqa: F401


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; elsewhere than on Linux this does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_zygote(settings: Settings, kinds: dict[str, Callable[[Settings], None]]) -> None:
    """Serve until stdin closes or SIGTERM; `kinds` are the functions that children run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    preload()
    alive: dict[int, str] = {}
    _say({"event": "ready"})
    pending = b""
    while True:
        readable, _, _ = select.select([0], [], [], POLL_S)
        if readable:
            data = os.read(0, 65536)
            if not data:
                break
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = _fork(settings, order["start"], kinds[order["start"]], order.get("env", {}))
                alive[pid] = order["start"]
                _say({"event": "started", "name": order["start"], "pid": pid})
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _say({"event": "exited", "name": alive.pop(pid), "code": os.waitstatus_to_exitcode(status)})
    for pid in alive:
        os.kill(pid, signal.SIGTERM)
    for pid in alive:
        os.waitpid(pid, 0)


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _fork(settings: Settings, name: str, target: Callable[[Settings], None], env: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_FAILED
    try:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(env)
        log = os.open(_log(settings, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        target(settings)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001 - printed, and this process ends right here
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never run the zygote's own clean-up twice


def _log(settings: Settings, name: str) -> Path:
    folder = places.logs(settings)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{name}.log"
