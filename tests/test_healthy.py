"""Healthy: silence and standing still are found, and only the process that is silent or stands still is ended."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import healthy, supervisor
from streams.healthy import SILENT_S_MAX, STILL_S_MAX, judge
from tests.deployed import ROOT
from tests.harness import Workers, ended, settings_for

NOW_S = 1_800_000_000.0
BEHIND = {"tweets/0": [5, 9, 9, 9]}  # applied to, handed out to, the client's position, the end
THROUGH = {"tweets/0": [9, 9, 9, 9]}


def told(age_s: float = 0.0, applied: int = 5, places: dict[str, list[int]] = BEHIND, pid: int = 7) -> dict[str, Any]:
    return {"time": NOW_S - age_s, "pid": pid, "applied": applied, "partitions": places}


def test_the_limits_are_the_supervisors() -> None:
    assert (SILENT_S_MAX, STILL_S_MAX) == (supervisor.SILENT_S_MAX, supervisor.STILL_S_MAX)
    assert healthy.START_S_MAX == supervisor.START_S_MAX


@given(st.floats(0, 10_000))
def test_silence_is_unhealthy_beyond_the_limit_and_not_before(age_s: float) -> None:
    problem, _ = judge(told(age_s, places=THROUGH), None, NOW_S, SILENT_S_MAX)
    assert bool(problem) == (NOW_S - (NOW_S - age_s) > SILENT_S_MAX)


@pytest.mark.parametrize("when", [float("nan"), float("inf"), NOW_S + 3600])
def test_a_time_that_cannot_be_is_no_sign_of_life(when: float) -> None:
    assert judge({"time": when}, None, NOW_S, SILENT_S_MAX)[0]


def watched(looks: list[dict[str, Any]], step_s: float = 10.0) -> list[str]:
    """Look every `step_s` seconds, as Docker does; gives what was said."""
    said, seen = [], None
    for number, status in enumerate(looks):
        now_s = NOW_S + number * step_s
        problem, seen = judge({**status, "time": now_s}, seen, now_s, SILENT_S_MAX)
        said.append(problem)
    return said


def test_a_worker_that_is_behind_and_applies_nothing_stands_still() -> None:
    said = watched([told()] * 7)
    assert [bool(one) for one in said] == [False] * 5 + [True] * 2
    assert "none was applied" in said[-1]


@pytest.mark.parametrize(
    "looks",
    [
        [told(places=THROUGH)] * 20,  # there is nothing to do
        [told(applied=number) for number in range(20)],  # slow, but it moves
        [told(places=THROUGH if number == 3 else BEHIND) for number in range(7)],  # it was through in between
        [told(pid=7 + number // 4) for number in range(12)],  # another process each time
        [{"time": 0}] * 20,  # a process that counts nothing
    ],
)
def test_a_process_that_moves_or_has_nothing_to_do_is_healthy(looks: list[dict[str, Any]]) -> None:
    assert watched(looks) == [""] * len(looks)


def test_what_ends_as_asked_adds_that_to_what_it_said_last(tmp_path: Path) -> None:
    healthy.ended(tmp_path, "sink")
    assert list(tmp_path.iterdir()) == [], "it had said nothing"
    healthy.tell(tmp_path, "sink", applied=3, pid=7, time=0)
    healthy.ended(tmp_path, "sink")
    said = json.loads((tmp_path / "sink.status.json").read_text())
    assert (said["ended"], said["applied"], said["pid"]) == (True, 3, os.getpid())
    healthy.tell(tmp_path, "sink", applied=0)
    assert "ended" not in json.loads((tmp_path / "sink.status.json").read_text()), "it was started again"


# ---- files and processes --------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "run"
    folder.mkdir(parents=True)
    return folder


def check(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the check as Docker does."""
    env = {**os.environ, "XINFLUENCER_DATA": str(run.parent), "TMPDIR": str(run.parent)}
    command = [sys.executable, "-m", "streams.healthy", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def lay(run: Path, told: dict[str, Any]) -> Path:
    """Lay a status as it was written at the time that it tells."""
    path = run / "worker-0.status.json"
    path.write_text(json.dumps(told))
    os.utime(path, (told["time"],) * 2)
    return path


def test_what_a_process_tells_is_what_is_read(run: Path) -> None:
    healthy.tell(run / "new", "ticker", ticks=3)
    found = json.loads((run / "new" / "ticker.status.json").read_text())
    assert (found["pid"], found["ticks"]) == (os.getpid(), 3)
    assert judge(found, None, time.time(), SILENT_S_MAX)[0] == ""
    assert [path.name for path in (run / "new").iterdir()] == ["ticker.status.json"]


def test_the_exit_code_says_it_and_a_line_says_why(run: Path) -> None:
    silent = check(run, "worker-0")
    assert (silent.returncode, silent.stdout) == (1, "worker-0: it has not said anything yet\n")
    lay(run, {"time": time.time()})
    assert check(run, "worker-0").returncode == 0
    lay(run, {"time": time.time() - 60})
    assert "it has said nothing for 6" in check(run, "worker-0").stdout
    assert check(run, "worker-0", "--silent-s", "300").returncode == 0


def test_who_can_only_touch_its_status_lives_and_how_far_it_is_nobody_knows(run: Path) -> None:
    """A worker with a full disk: what it wrote before says that records wait, and stays as it is for an hour."""
    now_s, memory = time.time(), run.parent / "seen"
    path = lay(run, {**told(), "time": now_s})
    said = []
    for step in range(8):
        os.utime(path, (now_s + 450.0 * step,) * 2)
        said.append(healthy.look(run, "worker-0", memory, now_s + 450.0 * step, SILENT_S_MAX, end=False))
    assert said == [""] * 8
    later_s = now_s + 450.0 * 7 + SILENT_S_MAX + 1
    assert "it has said nothing for 31 s" in healthy.look(run, "worker-0", memory, later_s, SILENT_S_MAX, end=False)


def test_a_status_that_is_written_says_itself_how_far_and_how_old_it_is(run: Path) -> None:
    """The control: a file is always a little younger than what it tells, and that is no touch."""
    path = lay(run, told(age_s=0.0))
    os.utime(path, (NOW_S + healthy.TOUCHED_S_MIN,) * 2)
    assert healthy.read(path) == told()
    os.utime(path, (NOW_S + healthy.TOUCHED_S_MIN + 1,) * 2)
    assert healthy.read(path) == {**told(), "time": NOW_S + healthy.TOUCHED_S_MIN + 1, "partitions": {}}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"time": "x"}', '{"time": 1e999, "partitions": [1]}', "null"])
def test_a_status_that_cannot_be_read_is_unhealthy_and_no_crash(run: Path, text: str) -> None:
    (run / "worker-0.status.json").write_text(text)
    said = check(run, "worker-0", "--end")
    assert said.returncode == 1
    assert said.stderr == ""


def test_of_several_files_the_newest_counts(run: Path) -> None:
    for name, age_s in (("follow-gone", 500.0), ("follow-x", 0.0)):
        path = run / f"{name}.status.json"
        path.write_text(json.dumps({"time": time.time() - age_s}))
        os.utime(path, (time.time() - age_s,) * 2)
    assert check(run, "follow-*").returncode == 0
    (run / "follow-x.status.json").unlink()
    assert check(run, "follow-*").returncode == 1


@pytest.mark.parametrize("name", ["../secret", "a/b", ".hidden", "a\\b"])
def test_a_name_is_no_path(run: Path, name: str) -> None:
    assert check(run, name).returncode == 2


def test_it_remembers_nothing_through_a_link_that_somebody_laid(run: Path) -> None:
    (run / "worker-0.status.json").write_text(json.dumps({"time": time.time()}))
    victim = run.parent / "victim"
    victim.write_text("precious")
    (run.parent / "xinfluencer-worker-0.seen").symlink_to(victim)
    check(run, "worker-0")
    assert victim.read_text() == "precious"


@pytest.fixture
def sleeper() -> Iterator[Any]:
    """Start processes that sleep, with a command line that says what they are."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", *words]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def status(run: Path, pid: int, time_s: float) -> None:
    lay(run, {"time": time_s, "pid": pid, "applied": 1, "partitions": {}})


@pytest.mark.skipif(not Path("/proc/uptime").exists(), reason="processes are looked up in /proc")
def test_a_silent_worker_is_ended_and_only_if_asked(run: Path, sleeper: Any) -> None:
    process = sleeper("worker")
    time.sleep(0.3)  # its status must be younger than itself by more than a clock's tick
    status(run, process.pid, time.time())
    time.sleep(0.3)
    assert check(run, "worker-0", "--silent-s", "0.1").returncode == 1
    assert process.poll() is None
    assert "; ended it" in check(run, "worker-0", "--silent-s", "0.1", "--end").stdout
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.skipif(not Path("/proc/uptime").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("which", ["of another name", "younger than the status"])
def test_a_process_that_did_not_write_the_status_is_left_alone(run: Path, sleeper: Any, which: str) -> None:
    """A restarted container gives the new process the number of the old one, whose last words still lie there."""
    process = sleeper("trainer" if which == "of another name" else "worker")
    time.sleep(0.3)
    status(run, process.pid, time.time() if which == "of another name" else time.time() - 3600)
    time.sleep(0.3)
    said = check(run, "worker-0", "--silent-s", "0.1", "--end")
    assert said.returncode == 1
    assert "ended" not in said.stdout
    assert process.poll() is None


@pytest.mark.skipif(not Path("/proc/uptime").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("words", "written", "ends"),
    [
        (("worker",), None, True),
        (("worker", "--instance", "0"), "before it began", True),
        (("worker",), "by itself", False),
        (("worker",), "elsewhere", False),
        (("worker", "--instance", "graph"), None, False),
        (("trainer",), None, False),
    ],
)
def test_a_worker_that_never_said_a_word_is_ended_and_no_other(
    run: Path, sleeper: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], written: str | None, ends: bool
) -> None:
    """It hangs in its start: where nobody but Docker looks, that would be for ever."""
    began_s = time.time()
    monkeypatch.setenv("XINFLUENCER_DATA", str(run.parent if written != "elsewhere" else run))
    process = sleeper(*words)
    time.sleep(1.0)
    if written in ("by itself", "before it began"):
        status(run, process.pid, time.time() if written == "by itself" else began_s - 3600)
    monkeypatch.setattr(healthy, "START_S_MAX", 0.5)
    said = healthy.look(run, "worker-0", run.parent / "seen", time.time(), 0.1, end=True)
    assert ("not said anything for" in said) is ends, said
    if ends:
        assert process.wait(10) == -signal.SIGKILL
    else:
        assert process.poll() is None


@pytest.mark.parametrize(("code", "expected"), [(200, 0), (503, 1)])
def test_the_server_is_asked(run: Path, code: int, expected: int) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # A server in a container listens on every address, and says so.
        (run / "server.json").write_text(json.dumps({"url": f"http://0.0.0.0:{server.server_port}", "pid": 1}))
        assert check(run, "server").returncode == expected
        server.shutdown()
    assert "it does not answer" in check(run, "server").stdout


def test_the_check_imports_nothing_of_ours_or_heavy() -> None:
    code = "import sys, streams.healthy; print(sorted({n.partition('.')[0] for n in sys.modules} & set(sys.argv[1:])))"
    heavy = ["pydantic", "aiokafka", "faust", "torch", "numpy", "agents", "schemas", "models"]
    found = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.broker
@pytest.mark.timeout(120)
def test_a_real_worker_is_healthy_until_it_is_stopped_and_then_ended(broker: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data", "healthy")
    run = settings.data / "run"
    workers = Workers(settings, broker.settings)
    with ended(workers):
        workers.start()
        deadline = time.monotonic() + 60
        while check(run, "worker-0").returncode and time.monotonic() < deadline:
            time.sleep(0.2)
        assert check(run, "worker-0", "--end").returncode == 0, workers.log()
        workers.signal(signal.SIGSTOP)
        time.sleep(2.5)
        assert "; ended it" in check(run, "worker-0", "--silent-s", "2", "--end").stdout
        assert workers.process is not None
        assert workers.process.wait(10) == -signal.SIGKILL
