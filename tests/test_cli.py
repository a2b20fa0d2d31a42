"""Command line: what a person reads when it works, and the one sentence when it cannot."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from streams import cli, worker
from streams.kafka import TopicMismatch, TopicRefused, ensure_topics
from streams.settings import Settings, SettingsRefused
from streams.show import Screen, clean, spark

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, data: Path, seconds_max: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("XINFLUENCER_KAFKA")}
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", "--data", str(data), *arguments],
        cwd=ROOT,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    said = run("--help", data=tmp_path).stdout
    for command in ("up", "demo", "worker", "trainer", "server", "ingest", "broker", "topology", "topics", "replay"):
        assert f"\n  {command} " in said


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "faust", "aiokafka", "pydantic", "rich")
    code = f"import sys, streams.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_topology_is_printed_and_drawn(tmp_path: Path) -> None:
    found = run("topology", "--png", str(tmp_path / "graph.png"), data=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "pairing" in found.stdout
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "env", "sentence"),
    [
        (("ingest", "no-such-file.jsonl"), {}, "no-such-file.jsonl"),
        (("replay", "--out", "x.jsonl"), {}, "there is no log in"),
        (("demo", "--feed", "no-such-feed.jsonl"), {}, "there is no file no-such-feed.jsonl"),
        (("worker",), {}, "XINFLUENCER_KAFKA"),
        (("settings",), {"XINFLUENCER_PARTITIONS": "many"}, "XINFLUENCER_PARTITIONS"),
        (("settings",), {"XINFLUENCER_AGES_MS": "5,3"}, "XINFLUENCER_AGES_MS"),
        (("command", "explode", "0" * 64, "--reason", "x"), {}, "a command is one of"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], sentence: str
) -> None:
    found = run(*arguments, data=tmp_path, **env)
    assert found.returncode not in (0, 130)
    assert sentence in found.stderr
    assert "Traceback" not in found.stderr
    assert not (ROOT / "x.jsonl").exists()


def test_up_on_a_port_that_is_taken_says_so_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        found = run("up", data=tmp_path / "data", XINFLUENCER_PORT=str(other.getsockname()[1]))
    assert found.returncode == 1
    assert "XINFLUENCER_PORT" in found.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("refusal", "code"), [(TopicMismatch, 78), (TopicRefused, 78), (TimeoutError, 1)])
def test_topics_that_cannot_be_used_are_a_persons_matter_and_those_that_are_late_are_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refusal: type[Exception],
    code: int,
) -> None:
    """By the exit code a supervisor goes: 78 ends `up` with the sentence, 1 is started again."""

    async def refuses(*_: object) -> None:
        raise refusal("the topics are not as they should be")

    monkeypatch.setenv("XINFLUENCER_KAFKA", "127.0.0.1:1")
    monkeypatch.setenv("XINFLUENCER_DATA", str(tmp_path))
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")
    monkeypatch.setattr(worker, "ensure_topics", refuses)
    with pytest.raises(SystemExit) as ended:
        cli.main(["worker"])
    assert ended.value.code == code
    assert "the topics are not as they should be" in capsys.readouterr().err
    documented = set(re.findall(r"\b(Topic\w+|\w+Error)\b", str(ensure_topics.__doc__)))
    assert documented == {"TopicMismatch", "TopicRefused", "TimeoutError"}, "each is tried here"


def test_a_second_up_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    from streams.broker import FolderLock

    with FolderLock(tmp_path):
        found = run("broker", data=tmp_path)
    assert found.returncode == 1
    assert "is in use by process" in found.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streams.cli", "--debug", "--data", str(tmp_path), "replay", "--out", "x"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("XINFLUENCER_KAFKA")}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" in found.stderr


def test_settings_survive_the_way_to_a_child(tmp_path: Path) -> None:
    given = {"AGES_MS": "10,20", "NAMESPACE": "a", "SEED": "3", "DATA": str(tmp_path)}
    settings = Settings.from_env({f"XINFLUENCER_{name}": value for name, value in given.items()})
    assert Settings.from_env(settings.to_env()) == settings
    assert settings.ages_ms == (10, 20)
    assert settings.logical(settings.physical("tweets")) == "tweets"


def test_a_data_folder_keeps_what_its_log_was_made_with_and_the_environment_goes_over_it(tmp_path: Path) -> None:
    here = {"XINFLUENCER_DATA": str(tmp_path)}
    Settings.from_env({**here, "XINFLUENCER_AGES_MS": "10,20", "XINFLUENCER_PARTITIONS": "2"}).keep()
    Settings.from_env({**here, "XINFLUENCER_AGES_MS": "30", "XINFLUENCER_PARTITIONS": "3"}).keep()
    later = Settings.from_env(here)
    assert (later.ages_ms, later.partitions) == ((10, 20), 2)
    assert Settings.from_env({**here, "XINFLUENCER_AGES_MS": "30"}).ages_ms == (30,)
    for torn in ("{", "5", "[]", "null", '["partitions"]', '{"partitions": {}}'):
        (tmp_path / "deployment.json").write_text(torn)
        with pytest.raises(SettingsRefused, match=r"deployment\.json|XINFLUENCER_PARTITIONS"):
            Settings.from_env(here)


def test_a_bad_setting_names_its_variable() -> None:
    with pytest.raises(SettingsRefused, match="XINFLUENCER_PORT"):
        Settings.from_env({"XINFLUENCER_PORT": "99999"})


def test_text_from_posts_cannot_drive_a_terminal() -> None:
    assert "\x1b" not in clean("\x1b[2Jgone\x07 \x9b31m")
    assert clean("grüße 🌱") == "grüße 🌱"


def test_tables_align_and_curves_go_from_low_to_high(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().table(("name", "n"), [("a", 1), ("long", 12345)])
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert spark([3, 2, 1]) == "█▅▁"
    assert spark([]) == ""


def test_ingest_without_anything_running_starts_the_broker_and_counts(tmp_path: Path) -> None:
    posts = [
        {"id": str(index), "author_id": "7", "text": f"post {index}", "created_at": "2026-01-05T00:00:00.000Z"}
        for index in range(5)
    ]
    file = tmp_path / "posts.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(json.dumps(post).encode() + b"\n" for post in posts) + b"{broken\n"))
    data = tmp_path / "data"
    first = run("ingest", str(file), data=data)
    assert first.returncode == 0, first.stderr
    assert "5 posts" in first.stdout
    assert "under x-default: 5" in first.stdout
    assert "refused, each with its reason" in first.stdout
    topics = run("topics", data=data)
    assert topics.returncode == 0, topics.stderr
    line = next(line for line in topics.stdout.splitlines() if line.startswith("  tweets "))
    assert " 5 " in line
    replay = run("replay", "--out", str(tmp_path / "train.jsonl"), data=data)
    assert replay.returncode == 0, replay.stderr
    assert (tmp_path / "train.jsonl").read_bytes() == b""
