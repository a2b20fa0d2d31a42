"""Commands: what a person types by mistake, or at the wrong moment, costs nothing and is said in a sentence."""

import asyncio
import json
import os
import socket
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from streams import adopt, broker, demo, supervisor
from streams.adopt import CannotAdopt
from streams.broker import FolderInUse, FolderLock
from streams.commands import run_command
from streams.settings import Settings
from streams.topology import stages
from tests.bare_shell import KAFKA

# ---- a demo beside one that runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", ["demo", "demo.previous"])
def test_a_demo_does_not_move_a_folder_away_under_what_runs_in_it(
    running: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Path] = []

    async def run(self: demo.Demo) -> None:
        began.append(self.settings.data)
        self.settings.data.mkdir()

    def log(name: str) -> str:
        return (tmp_path / name / "log").read_text()

    monkeypatch.setattr(demo.Demo, "run", run)
    for name in ("demo", "demo.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log").write_text(f"of {name}")
    settings = Settings(data=tmp_path, port=0)
    with FolderLock(tmp_path / running), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()}"):
        demo.run_demo(settings, None, 7, 16)
    assert (log("demo"), log("demo.previous"), began) == ("of demo", "of demo.previous", [])
    demo.run_demo(settings, None, 7, 16)  # the control: nothing runs
    assert (log("demo.previous"), began) == ("of demo", [tmp_path / "demo"])


# ---- another program on the broker's port ---------------------------------------------------------------------------


def told(answer: bytes) -> tuple[bytes, bytes]:
    return answer, struct.pack(">i", len(answer)) + answer


NODE = struct.pack(">ii", 7, 1) + struct.pack(">ih", 1, 1) + b"h" + struct.pack(">ih", 9092, -1)
GOOD = told(NODE + struct.pack(">h", 3) + b"abc")[1]


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nInvalid HTTP request received.",
        b"SSH-2.0-OpenSSH_9.6\r\n", b"-ERR unknown command\r\n", b"\0\0\0\2ab", b"\xff\xff\xff\xff", GOOD[:-2],
        told(struct.pack(">ii", 8, 0) + b"\0\3abc")[1], told(NODE + b"\0\2\xff\xfe")[1],
        told(struct.pack(">ii", 7, 2_000_000))[1],
    ],
)  # fmt: skip
def test_what_is_no_kafka_broker_is_taken_for_none(answer: bytes, tmp_path: Path) -> None:
    assert asked(answer, tmp_path) is None


def test_the_broker_that_answers_is_the_one_of_this_folder(tmp_path: Path) -> None:
    assert asked(GOOD, tmp_path) is not None
    assert asked(GOOD, tmp_path, cluster="another") is None


def asked(answer: bytes, folder: Path, cluster: str = "abc") -> str | None:
    """What a folder's broker is taken to be, if this is what its port answers."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "meta.properties").write_text(f"cluster.id={cluster}\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        (folder / "broker.json").write_text(json.dumps({"port": server.getsockname()[1], "controller_port": 1}))

        def serve() -> None:
            link, _ = server.accept()
            with link:
                link.recv(100)
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = broker.running(folder)
        thread.join()
        return found


# ---- adopting while a worker runs -----------------------------------------------------------------------------------


class Groups:
    """An admin client of a cluster on which these groups have members."""

    members: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, **_: Any) -> None: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def list_consumer_groups(self) -> list[tuple[str, str]]:
        return [(name, "consumer") for name in self.members]

    async def describe_consumer_groups(self, names: list[str]) -> list[Any]:
        return [SimpleNamespace(groups=[(0, name, "", "", "", self.members[name]) for name in names])]


@pytest.mark.parametrize("processes", [("worker",), ("worker", "graph"), ("worker", "graph", "trainer", "sink")])
def test_a_step_is_not_adopted_while_any_worker_runs_it_whatever_its_group_is_called(
    processes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(namespace="n")
    base = settings.group("worker")
    named = supervisor._agents("worker", processes)
    worker = settings.group("-".join(("worker", *sorted(named))))  # as streams/worker.py names it
    monkeypatch.setattr(adopt, "AIOKafkaAdminClient", Groups)
    monkeypatch.setattr(adopt, "LEFT_S_MAX", 0.0)
    monkeypatch.setattr(adopt, "POLL_S", 0.0)
    for stage in stages():
        runs = not named or stage.name in named
        assert adopt.runs(worker, base, stage.name) is runs
        others = {settings.group("trainer"): ["t"], "m.xinfluencer-worker": ["another deployment"]}
        monkeypatch.setattr(Groups, "members", {worker: ["w"], **others})
        if runs:
            with pytest.raises(CannotAdopt, match=f"stop every worker that runs {stage.name}"):
                asyncio.run(adopt._left(KAFKA, base, stage))
        monkeypatch.setattr(Groups, "members", {worker: [], **others})
        asyncio.run(adopt._left(KAFKA, base, stage))


# ---- an operator's command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0123456789ab", "", "z" * 64, "A" * 64, "../" + "0" * 61])
def test_a_version_is_named_by_all_its_digits(version: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give all 64 digits"):
        run_command(Settings(data=tmp_path), "roll-back", version, "it swears")
    with pytest.raises(ValueError, match="a command is one of"):
        run_command(Settings(data=tmp_path), "delete", "0" * 64, "it swears")
