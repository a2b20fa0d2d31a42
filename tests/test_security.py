"""Security: what a post, a name or a payload says is data; nothing of it is fetched, run, obeyed or said again.

The cases of the catalogue that are proved beside the part they are about are named in tests/proof.py (BESIDE).
"""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas import envelope
from schemas.facts import PostContent
from schemas.posts import PostObserved
from streams.kafka import KafkaSettings, KafkaSettingsRefused
from streams.settings import Settings
from streams.show import Screen, clean
from tests.feeds import RIGHTS, ZERO
from tests.harness import ROOT, Workers, ended, settings_for
from tests.ingest_ends import as_lines, post, take
from tests.proof import SEED, Say
from tests.test_ingest_faults import sample

CANARY = "canary-b7f1e0"
SECRETS = {
    "XINFLUENCER_X_TOKEN": f"{CANARY}-x",
    "XINFLUENCER_MASTODON_TOKEN": f"{CANARY}-mastodon",
    "XINFLUENCER_CLICKHOUSE_PASSWORD": f"{CANARY}-clickhouse",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws",
}


class Ear:
    """A socket that counts who connects."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.heard = 0
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/bait"

    def _listen(self) -> None:
        while True:
            try:
                link, _ = self.socket.accept()
            except OSError:
                return
            self.heard += 1
            link.close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    made = Ear()
    yield made
    made.socket.close()


def baited(url: str) -> list[str]:
    """Payloads of every format in which each link, picture and name of a place is the bait; some of them damaged."""
    lines = []
    for number in range(60):
        text = json.dumps(sample(random.Random(f"{SEED}/{number}"))).replace("https://a.b", url)
        lines.append(text)
        words = f"look at {url} {CANARY} <img src='{url}'> ![x]({url})"
        urls = {"urls": [{"expanded_url": url, "unwound_url": url, "images": [{"url": url}]}]}
        lines.append(json.dumps(post(number, text=words, entities=urls, author={"profile_image_url": url, "url": url})))
        lines.append(json.dumps(post(number, text=words, id=f"../{CANARY}/{url}")))
        lines.append(f'{{"text": "{CANARY}", "id": NaN, "url": "{url}"')
    return lines


@pytest.mark.broker
@pytest.mark.timeout(900)
def test_nothing_is_fetched_no_port_is_opened_and_no_secret_or_refused_word_is_said(
    broker: Any, tmp_path: Path, ear: Ear, proof: Say
) -> None:
    """Through the real processes: ingest, worker and sink, over payloads whose every link leads to our own ear."""
    proof("SECURITY", "links never fetched, no port opened, no secret or refused word in any log, letter or file", 240,
          "payloads")  # fmt: skip
    settings = settings_for(tmp_path / "data", "bait")
    (tmp_path / "feed.jsonl").write_text("\n".join(baited(ear.url)))
    worker = Workers(settings, broker.settings, env=SECRETS)
    sink = Workers(settings, broker.settings, (sys.executable, "-m", "streams.cli", "sink"), SECRETS)
    env = {**settings.to_env(), "XINFLUENCER_KAFKA": broker.bootstrap, **SECRETS, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "streams.cli", "ingest", str(tmp_path / "feed.jsonl")]
    with ended(worker), ended(sink):
        worker.start()
        sink.start()
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        _through(settings)
        for one in (worker, sink):
            assert one.process is not None
            assert one.process.poll() is None, one.log()[-3000:]
            links = psutil.Process(one.process.pid).net_connections()
            assert [link.laddr for link in links if link.status == "LISTEN"] == []
        said = done.stdout + done.stderr + worker.log()
        for one in (worker, sink):
            one.signal(signal.SIGTERM)
    assert ear.heard == 0, "something fetched a link of a post"
    with socket.create_connection(ear.socket.getsockname()):
        time.sleep(0.2)
    assert ear.heard == 1, "control: the ear hears"
    assert CANARY not in said
    files = [path for path in settings.data.rglob("*") if path.is_file()]
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []
    assert len(files) > 20
    _no_open_word(broker, settings)


def _through(settings: Settings) -> None:
    """Wait until worker and sink have read all that there is."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            run = settings.data / "run"
            told = [json.loads((run / name).read_text()) for name in ("worker-0.status.json", "sink.status.json")]
        except (FileNotFoundError, ValueError):
            continue
        places = [place for one in told for place in one["partitions"].values()]
        if places and told[0]["applied"] > 100 and all(at >= end for at, _, _, end in places):
            return
    raise AssertionError(told)


def _no_open_word(broker: Any, settings: Settings) -> None:
    """Search everything that lies in the log; the words of what was refused are sealed in their letters."""
    import asyncio

    from schemas.topics import TOPICS
    from streams.reader import reader

    async def everything() -> list[Any]:
        async with reader(settings, broker.settings) as log_reader:
            found = await log_reader.everything(*(topic.name for topic in TOPICS))
        return [(place, raw) for place, raws in found.items() for raw in raws]

    records = asyncio.run(everything())
    letters = [raw for (topic, _), raw in records if topic == "dead-letters"]
    assert len(letters) > 50
    for place, raw in records:
        assert CANARY.encode() not in (raw.value or b""), place
        assert not any(CANARY.encode() in (value or b"") for _, value in raw.headers), place


# ---- text that is shown ---------------------------------------------------------------------------------------------

NASTY = ("\x1b[2J\x1b]0;gone\x07", "\x9b31m", "a\r\x08b", "\u202eevil", "[bold red]markup[/]", "<script>x</script>")


def test_nothing_that_is_shown_drives_a_terminal(capsys: pytest.CaptureFixture[str], proof: Say) -> None:
    proof("SECURITY", "ANSI, carriage returns and bidirectional marks in text that is shown", len(NASTY), "texts")
    screen = Screen()
    for text in NASTY:
        screen.say(text)
        screen.head(text)
        screen.table((text,), [(text,)])
    shown = capsys.readouterr().out
    assert not [c for c in shown if not (c.isprintable() or c == "\n")]
    assert clean("<script>") == "<script>", "nothing here is HTML: what is shown is what was said"


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "a\0b", "", " ", "x" * 257, "a\nb", "\x1b[2J"])
def test_a_name_from_a_payload_is_an_id_or_a_refusal_and_never_a_path(name: str, proof: Say) -> None:
    proof("SECURITY", "ids from payloads that are paths, or hold NUL and control characters", 1, "names")
    with pytest.raises(ValueError, match="post"):
        PostObserved(post=name, owner="x:@1", source="x", raw_sha256=ZERO, rights=RIGHTS)
    summary, end = take(as_lines([json.dumps(post(1, id=name)).encode(), json.dumps(post(2)).encode()]))
    assert summary.unaccounted == 0
    assert [one.post for one in end.events(PostObserved)] == ["x:1000000000000000002"]


def test_formulas_and_markup_in_a_post_stay_its_text(proof: Say) -> None:
    proof("SECURITY", "spreadsheet formulas, markup and SQL in a post stay its text", 4, "texts")
    for text in ("=1+1|cmd", "'; DROP TABLE posts; --", "<script>x</script>", "{{7*7}} ${jndi:ldap://x}"):
        _, end = take(as_lines([json.dumps(post(1, text=text)).encode()]))
        (seen,) = end.events(PostObserved)
        assert isinstance(seen.content, PostContent)
        assert seen.content.text in (text, text.replace("<", "&lt;").replace(">", "&gt;")) or "<" not in text
        assert text.encode() not in b"".join(one.value for one in end.records), "no word lies open in the log"
        assert envelope.body(seen.model_copy(update={"content": None}))


# ---- ways in --------------------------------------------------------------------------------------------------------


def test_everything_listens_on_loopback_unless_told_otherwise(proof: Say) -> None:
    proof("SECURITY", "addresses that are listened on by default", 1, "settings")
    assert Settings().host == "127.0.0.1"
    from streams.broker_settings import HOST, server_properties

    lines = server_properties(1, 2, "data").splitlines()
    heard = [line for line in lines if line.startswith(("listeners=", "advertised.listeners="))]
    assert len(heard) == 2
    assert all(part.split("//")[1].startswith(f"{HOST}:") for line in heard for part in line.split("=")[1].split(","))


@pytest.mark.parametrize(
    "server", ["broker.example:9092", "10.0.0.1:9092", "127.0.0.1:1,example.com:1", "localhost.evil.com:1"]
)
def test_a_password_never_travels_in_clear_beyond_this_machine(server: str, proof: Say) -> None:
    proof("SECURITY", "SASL without TLS beyond loopback", 1, "addresses")
    secret = f"{CANARY}-kafka"
    with pytest.raises(KafkaSettingsRefused) as refused:
        KafkaSettings(server, "SASL_PLAINTEXT", "PLAIN", "u", secret)
    assert secret not in str(refused.value)
    kept = KafkaSettings("127.0.0.1:1", "SASL_PLAINTEXT", "PLAIN", "u", secret)
    assert secret not in repr(kept)
