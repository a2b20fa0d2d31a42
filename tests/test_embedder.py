"""Embedder: killed anywhere it ends at the same rows, forgets for good what it must, and says so exactly once."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.encode import Encoder
from schemas import envelope
from schemas import posts as ps
from schemas.events import AlertRaised, CopyErased
from schemas.facts import Event, PostContent
from schemas.ids import text_hash
from schemas.posts import PostDeleted, PostEdited, PostObserved
from streams import crash, embedder, places
from streams.embedder import Embedder
from streams.exits import EXIT_REFUSED
from streams.fold import Sent
from streams.kafka import KafkaSettings
from streams.reader import reader
from streams.records import outside
from streams.settings import Settings
from streams.similar import NothingSimilar, run_similar
from streams.vault import Vault
from streams.vector_ledger import Place
from streams.vectors import NoStore, Row, VectorReader, folder
from tests.embedded import NOW, POINTS, SHOWN, SHY, UNINDEXED, Oracle, gone, post
from tests.harness import ROOT, settings_for, write
from tests.test_vectors import bytes_on_disk, every_version

pytestmark = [pytest.mark.timeout(900)]

on_broker = pytest.mark.broker


# ---- the real process on the real broker -----------------------------------------------------------------------------


class Zygote:
    """One process that has imported torch, from which every embedder here is forked, as the supervisor does it."""

    def __init__(self, data: Path) -> None:
        program = (
            "import streams.zygote as z; from streams.embedder import run_embedder; from streams.settings import *\n"
            "def preload(): import torch, models.encode, pyarrow.compute, pyarrow.dataset\n"  # lancedb starts a thread
            "z.preload = preload\n"
            "z.run_zygote(Settings.from_env(), {'embedder': lambda s: run_embedder(Settings.from_env(), 0.2)})"
        )
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **Settings(data=data).to_env()},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        assert self.heard()["event"] == "ready"

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def start(self, env: dict[str, str]) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"start": "embedder", "env": env}).encode() + b"\n")
        return int(self.heard()["pid"])


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.process.kill()  # its children die with it
    made.process.wait(10)


class Process:
    """Embedders of one deployment, one after the other, with a short upkeep."""

    def __init__(self, settings: Settings, kafka: KafkaSettings, zygote: Zygote) -> None:
        self.settings, self.kafka, self.zygote = settings, kafka, zygote
        self.pid = 0

    def start(self, crash: str = "") -> None:
        env = {**self.settings.to_env(), "XINFLUENCER_KAFKA": self.kafka.bootstrap, "XINFLUENCER_CRASH": crash}
        self.pid = self.zygote.start(env)

    def end(self, number: int = 0) -> int:
        """Send a signal, or none, and wait for the exit code."""
        if number:
            os.kill(self.pid, number)
        self.pid = 0
        return int(self.zygote.heard()["code"])

    def kill(self) -> None:
        """End what may still run."""
        if self.pid:
            self.end(signal.SIGKILL)

    def log(self) -> str:
        return (places.logs(Settings(data=self.zygote.data)) / "embedder.log").read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.settings.data / "run" / "embedder.status.json").read_text())
        return told

    def wait(self, seconds_max: float = 90.0) -> dict[str, Any]:
        """Wait until it has read all there is and owes nothing."""
        deadline = time.monotonic() + seconds_max
        while time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                told = self.status()
            except FileNotFoundError:
                continue
            through = all(at >= end for at, _, _, end in told["partitions"].values())
            if told["pid"] == self.pid and through and not told["receipts_owed"] and told["tidied_ms"]:
                return told
        raise AssertionError(self.log()[-3000:])


LATE = "v2late"  # ends the id of a version by which a post is deleted when the embedder has died in between


def feed(seed: int, number: int) -> list[Event]:
    """Posts of ten authors, edits of some, deletions before and after, authors hidden, shown and erased."""
    rng = random.Random(seed)
    words = ("river", "stone", "light", "market", "train", "garden", "winter", "song")
    said: list[Event] = []
    for index in range(number):
        owner = f"x:@{rng.randrange(10)}"
        name = f"x:{seed}-{index}"
        text = " ".join(rng.choice(words) for _ in range(rng.randrange(3, 12))) + f" {index}"
        chance = rng.random()
        if chance < 0.06:
            said.append(gone(name, owner))  # before it comes
        said.append(post(name, owner, text, rights=UNINDEXED if chance > 0.95 else SHY if chance > 0.9 else SHOWN))
        if 0.06 < chance < 0.2:
            said.append(post(name, owner, f"{text} edited", 2))
            said.append(said[-2])  # the first again, late
        if 0.2 < chance < 0.3:
            said.append(gone(name, owner))
        if 0.3 < chance < 0.33:
            said.append(ps.AuthorHidden(owner=owner, source="x", reason="suspended"))
            said.append(ps.AuthorShown(owner=owner, source="x"))
        if 0.36 < chance < 0.4:  # and X deletes it by the id of its newest version
            edit = post(name, owner, f"{text} edited", 2, named=f"{name}v2")
            said += [edit, gone(f"{name}v2", owner)] if chance < 0.38 else [gone(f"{name}v2", owner), edit]
        if 0.4 < chance < 0.44:
            said.append(post(name, owner, f"{text} edited", 2, named=f"{name}{LATE}"))
        if 0.33 < chance < 0.35 and owner != "x:@0":
            said.append(ps.AuthorErased(owner=owner, source="x"))
    return said


def sealed(events: Iterable[Event], settings: Settings, vault: Vault) -> list[Sent]:
    return [outside(event, "/sources/x", NOW, settings.partitions, vault) for event in events]


async def receipts(settings: Settings, kafka: KafkaSettings) -> dict[str, list[CopyErased]]:
    """Read `erasures`: id -> the payloads that it stands over."""
    found: dict[str, list[CopyErased]] = {}
    async with reader(settings, kafka) as log_reader:
        async for raw in log_reader.records("erasures"):
            record = envelope.decode("erasures", 0, raw.offset, raw.timestamp, raw.headers, raw.value)
            if isinstance(record.event, CopyErased):
                found.setdefault(record.id, []).append(record.event)
    return found


@pytest.fixture(scope="module")
def attacked(
    broker: Any, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, Oracle, list[Event]]]:
    """A feed that was read while the embedder died at every named point, and twice by chance."""
    settings = settings_for(tmp_path_factory.mktemp("embedder"), "embed", partitions=2)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    process = Process(settings, broker.settings, zygote)
    oracle = Oracle()
    events: list[Event] = []
    rng = random.Random(11)
    try:
        part: list[Event] = []
        for turn, point in enumerate((*POINTS, *["by chance"] * 2)):
            edits = [event for event in part if isinstance(event, PostEdited) and (event.named or "").endswith(LATE)]
            part = feed(turn, 25) + [gone(str(event.named), event.owner) for event in edits]
            part += [gone(f"x:{turn}-24", "x:@0")]  # so that every point is passed
            events += part
            asyncio.run(write(settings, broker.settings, sealed(part, settings, vault)))
            if point == "by chance":
                process.start()
                time.sleep(rng.uniform(0.5, 2.5))
                code = process.end(signal.SIGKILL)
            else:
                process.start(f"{point}@{settings.data / point}")
                code = process.end()
            assert code == -signal.SIGKILL, (point, process.log()[-3000:])
        process.start()
        process.wait()
        for event in events:
            oracle.take(event)
        yield process, oracle, events
    finally:
        process.kill()


@on_broker
def test_killed_at_every_point_it_ends_at_the_rows_of_a_clean_reading(
    attacked: tuple[Process, Oracle, list[Event]],
) -> None:
    process, oracle, events = attacked
    table = VectorReader(folder(process.settings))
    names = {event.post for event in events if isinstance(event, PostObserved)}
    found = {name: table.find(name) for name in names}
    rows = {name: (one[0].revision, one[0].owner, one[0].words) for name, one in found.items() if one}
    assert rows == oracle.rows
    assert process.status()["rows"] == len(oracle.rows), "no post has two rows"
    assert len(oracle.rows) > 50
    texts = {text_hash(e.post, e.content.text): e.content.text for e in events if _worded(e)}  # type: ignore[attr-defined]
    encoder = Encoder.load("minilm", process.settings.cache, process.settings.threads)
    for name in list(rows)[:20]:
        one = found[name]
        assert one is not None
        assert float(encoder.encode([texts[one[0].words]])[0] @ one[1]) > 0.9999


def _worded(event: Event) -> bool:
    return isinstance(event, PostObserved) and isinstance(event.content, PostContent)


@on_broker
def test_every_request_has_one_receipt_and_nothing_of_it_is_left_on_disk(
    attacked: tuple[Process, Oracle, list[Event]],
) -> None:
    process, oracle, events = attacked
    found = asyncio.run(receipts(process.settings, process.kafka))
    assert all(len({one.model_dump_json() for one in said}) == 1 for said in found.values()), "an id with two payloads"
    visible = [said[0] for said in found.values()]
    assert {(one.owner, one.post) for one in visible} == oracle.asked
    assert len(visible) == len({event.model_dump_json() for event in events if _asks(event)})
    assert sum(one.rows for one in visible) > 10
    encoder = Encoder.load("minilm", process.settings.cache, process.settings.threads)
    store = folder(process.settings)
    there = [e for e in events if _worded(e) and e.post in oracle.rows]  # type: ignore[attr-defined]
    newest = {e.post: e for e in there if oracle.rows[e.post][0] == e.revision}  # type: ignore[attr-defined]
    away = {e.post: e for e in events if _worded(e) and e.post in oracle.deleted}  # type: ignore[attr-defined]

    def left(one: Any) -> bool:
        """Look for the beginning of its vector; the last bits may depend on the batch it was encoded in."""
        row = VectorReader(store).find(one.post)
        return row is not None and bool(bytes_on_disk(store, row[1]))

    assert all(left(one) for one in list(newest.values())[:10]), "control: what is kept can be seen"
    assert len(away) > 10
    assert sum(every_version(store, name) for name in away) == 0
    marks = list((store / "posts.lance" / "_deletions").glob("*"))
    assert marks == [], "no file holds a row that is deleted"
    assert encoder.sha256 == process.status()["encoder"]


def _asks(event: Event) -> bool:
    return isinstance(event, PostDeleted | ps.AuthorErased | ps.AuthorHidden)


@on_broker
def test_its_status_says_where_it_stands(attacked: tuple[Process, Oracle, list[Event]]) -> None:
    process, _, events = attacked
    told = process.status()
    assert sum(end for _, _, _, end in told["partitions"].values()) == len(events)
    assert all(at == handed == position == end for at, handed, position, end in told["partitions"].values())
    assert told["unindexed"] == told["rows"], "too few for an index"
    assert 100_000_000 < told["rss_bytes"] < 2_000_000_000
    assert time.time() - told["time"] < 10


@on_broker
def test_what_is_similar_is_shown_with_its_words_and_what_may_not_be_shown_is_not(
    broker: Any, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(tmp_path, "similar", partitions=2)
    with pytest.raises(NoStore, match="no vectors"):
        run_similar(settings, "x:1", None, 3)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    said: list[Event] = [
        post("x:1", "x:@a", "The river froze over in the cold winter."),
        post("x:2", "x:@b", "In winter the \x1b[31mriver\x1b[0m is\nfrozen.", lang="en"),
        post("x:3", "x:@c", "SECRET: rivers freeze when it is cold.", rights=SHY, source="mastodon"),
        post("x:4", "x:@d", "Stocks rose after the bank's report.", claimed_ms=NOW - 10**9),
        post("x:5", "x:@e", "Cold rivers freeze.", rights=UNINDEXED),
        ps.PostObserved(post="x:6", owner="x:@f", source="x", reposted="x:1", raw_sha256="0" * 64, rights=SHOWN),
        post("x:7", "x:@g", "Ice on the river."),
        gone("x:7", "x:@g"),
        post("x:8", "x:@h", "Ice on the river again."),
    ]
    asyncio.run(write(settings, broker.settings, sealed(said, settings, vault)))
    process = Process(settings, broker.settings, zygote)
    process.start()
    try:
        process.wait()
        began = time.monotonic()
        assert "ended" not in process.status()
        assert process.end(signal.SIGTERM) == 0
        assert process.status()["ended"]
        assert time.monotonic() - began < 10
    finally:
        process.kill()
    late = post("x:9", "x:@a", "After the embedder stopped.")
    asyncio.run(write(settings, broker.settings, sealed([late], settings, vault)))
    vault.destroy("x:@h")
    monkeypatch.setenv("XINFLUENCER_KAFKA", broker.bootstrap)

    run_similar(settings, "x:1", None, 3)
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "nearest to x:1: The river froze over in the cold winter." in told
    assert "In winter the �[31mriver�[0m is frozen." in told
    assert "[may not be shown]" in told
    assert "SECRET" not in told
    assert "x:3" in told
    assert "x:5" not in told
    run_similar(settings, None, "the bank and the stock market", 1)
    assert "Stocks rose" in capsys.readouterr().out
    run_similar(settings, "x:1", None, 5, source="mastodon")
    told = capsys.readouterr().out
    assert "x:3" in told
    assert "x:2" not in told
    run_similar(settings, "x:1", None, 5, lang="en")
    assert "x:2" in capsys.readouterr().out
    run_similar(settings, "x:1", None, 5, since="2023-11-14")
    told = capsys.readouterr().out
    assert "x:2" in told
    assert "x:4" not in told
    run_similar(settings, "x:1", None, 5)
    assert "[it was deleted, or its author forgotten]" in capsys.readouterr().out
    for name, reason in {
        "x:5": "does not allow indexing",
        "x:6": "it is a repost of x:1",
        "x:7": "was deleted",
        "x:9": "has not come so far",
        "x:nobody": "there is no post x:nobody in the log",
        "' or 1=1 --": "there is no post",
    }.items():
        with pytest.raises(NothingSimilar, match=reason):
            run_similar(settings, name, None, 3)
    with pytest.raises(NothingSimilar, match="fits the filters"):
        run_similar(settings, "x:1", None, 3, source="x' or '1'='1")
    with pytest.raises(NothingSimilar, match="--since"):
        run_similar(settings, "x:1", None, 3, since="yesterday")
    with pytest.raises(NothingSimilar, match="either"):
        run_similar(settings, None, None, 3)


@on_broker
def test_a_store_of_another_log_or_a_log_that_was_cut_is_refused_with_a_sentence(
    broker: Any, zygote: Zygote, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, "bound", partitions=1)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    said = [post(f"x:{n}", "x:@a", f"river {n}") for n in range(5)]
    asyncio.run(write(settings, broker.settings, sealed(said, settings, vault)))

    async def once(given: Settings) -> Embedder:
        """Run until all is read, or raise what ends it."""
        made = Embedder(given, broker.settings, crash.nowhere, 0.0)
        running = asyncio.create_task(made.run())
        while not running.done() and made.places.get(0, Place(0)).next < 5:
            await asyncio.sleep(0.05)
        made.stop.set()
        await running
        return made

    assert asyncio.run(once(settings)).encoded == 5
    assert asyncio.run(once(settings)).encoded == 0, "it goes on where it stood"
    other = settings_for(tmp_path, "bound-other", partitions=1)
    with pytest.raises(embedder.StoreRefused, match="belong to log"):
        asyncio.run(once(other))
    ledger = folder(settings) / "ledger.sqlite"

    def altered(statement: str, why: str) -> None:
        with sqlite3.connect(ledger) as db:
            before = list(db.iterdump())
            db.executescript(statement)
        with pytest.raises(embedder.StoreRefused, match=why):
            asyncio.run(once(settings))
        ledger.unlink()
        with sqlite3.connect(ledger) as db:
            db.executescript("\n".join(before))

    altered("update place set next = 6", "was read up to 6, the log holds 0 to 5")
    altered("update place set fingerprint = 'feedfeedfeedfeed'", "is not the record that was read there")
    altered("update bound set value = '99999' where name = 'version'", "put back from a copy")
    altered("update bound set value = 'another' where name = 'store'", "belong to store another")
    altered("delete from bound; delete from place", "belong to log unknown")
    with sqlite3.connect(ledger) as db:
        db.execute("update place set fingerprint = 'feedfeedfeedfeed'")
    process = Process(settings, broker.settings, zygote)
    process.start()
    assert process.end() == EXIT_REFUSED
    assert "remove" in process.log().splitlines()[-1]

    async def alerts() -> list[Event]:
        async with reader(settings, broker.settings) as log_reader:
            raws = [raw async for raw in log_reader.records("alerts")]
        return [envelope.decode("alerts", 0, r.offset, r.timestamp, r.headers, r.value).event for r in raws]

    (alert,) = asyncio.run(alerts())
    assert isinstance(alert, AlertRaised)
    assert alert.kind == "vectors-refused"


def test_rows_are_counted_for_the_first_request_that_asks() -> None:
    row = Row("p", "o", "x", None, None, 1, True, True, "p", "h", "tweets", 0, 0)
    one, two = (embedder.Request(name, "o", what, 0, 1) for name, what in (("r1", "p"), ("r2", None)))
    assert embedder._counted([one, two], [row, row._replace(post="q")], {}) == [(one, 1), (two, 1)]
