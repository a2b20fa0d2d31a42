"""Check: one question to a deployment -> a verdict, what was seen, and in one sentence how to mend it."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from streams import healthy, places
from streams.kafka import KafkaSettings
from streams.settings import Settings

Verdict = Literal["ok", "look", "wrong"]
DAY_MS = 86_400_000


class Check(NamedTuple):
    """What one look gave; `mend` is empty where nothing needs it."""

    name: str
    verdict: Verdict
    seen: str
    mend: str = ""


class Answer(NamedTuple):
    """A log that answers, and its cluster's id."""

    kafka: KafkaSettings
    cluster: str


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def _now_ms() -> int:
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Context:
    """What checks look at. The functions are parameters so that a test can hand in a full disk or a wrong clock."""

    settings: Settings
    log: Answer | None = None  # None: nothing that is ours answers
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    now_ms: Callable[[], int] = _now_ms
    free_bytes: Callable[[Path], int] = _free_bytes
    version_of: Callable[[str], str] = version

    @property
    def vault(self) -> Path:
        """Where the keys lie."""
        return self.settings.data / "vault" / "keys.sqlite"

    @property
    def log_folder(self) -> Path:
        """Where the embedded broker keeps the log."""
        return self.settings.data / "broker" / "data"

    def supervised(self) -> bool:
        """Say whether a supervisor holds the data folder."""
        with contextlib.suppress(FileNotFoundError), open(self.settings.data / "lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def said(self) -> dict[str, dict[str, Any]]:
        """Read the status of each process: name -> what it says of itself ({} if that cannot be read)."""
        return {path.name.removesuffix(".status.json"): _status(path) for path in _statuses(self.settings)}


def _status(path: Path) -> dict[str, Any]:
    try:
        return healthy.read(path)
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _statuses(settings: Settings) -> list[Path]:
    return sorted(places.run(settings).glob("*.status.json"))


def read(path: Path) -> dict[str, Any]:
    """Read a small JSON object; {} if there is none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def worst(verdicts: list[Verdict]) -> Verdict:
    """Give the worst of several verdicts."""
    return "wrong" if "wrong" in verdicts else "look" if "look" in verdicts else "ok"


def listed(names: list[str], most: int = 4) -> str:
    """Write a list for one line, the first few of many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + rest


def duration(ms: float) -> str:
    """Write a length of time as people say it."""
    for unit, size in (("d", DAY_MS), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * size:
            return f"{ms / size:.0f} {unit}"
    return f"{ms / 1000:.1f} s"
