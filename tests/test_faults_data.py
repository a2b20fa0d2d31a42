"""Faults of the data on the real broker: poison, unknown versions, wrong clocks, sizes, disorder, one loud author.

Every record has one fate: it is read, or a dead letter says why; nothing behind it waits, no worker starts again.
"""

import asyncio
import json
import random
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka.errors import KafkaError
from hypothesis import find

from agents.metadata import POSTS_MAX
from schemas import envelope
from schemas import posts as ps
from schemas import topics as t
from schemas.envelope import Refused
from schemas.events import FeedbackGiven, RecordRefused
from schemas.facts import Event, PostContent
from streams.fold import Sent
from streams.reader import reader
from streams.records import outside
from streams.sender import Sender
from tests.feeds import RIGHTS, ZERO, feed, worded
from tests.harness import Workers, attacked_run, ended, finish, judge, now_ms, said, settings_for, vault_of, write
from tests.ingest_ends import MemoryKeys
from tests.proof import SCALE, SEED, Say, size
from tests.strategies import model
from tests.test_ingest_faults import _record as anybodys

DAY_MS = 86_400_000
YEAR_2100_MS = 4_102_444_800_000
RSS_MIB_BASE = 250  # a worker with every stage that has read nothing takes about 150
RSS_KIB_A_POST = 4  # seen: 3; remembered are POSTS_MAX posts a partition, and no more

HANDLED_S_MAX = 2.0 if SCALE != "ci" else 10.0  # other tests run beside this one in CI

pytestmark = [pytest.mark.timeout(1200)]
on_broker = pytest.mark.broker


# ---- D1, D2 ---------------------------------------------------------------------------------------------------------


def poison(seed: int, count: int, width: int, name: str = "poison") -> list[Sent]:
    """Make records that cannot be used, each in another way; half of them as anybody might write one."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        head = [
            ("ce_specversion", b"1.0"),
            ("ce_id", f"{name}-{index}".encode()),
            ("ce_type", b"xinfluencer.PostObserved.v1"),
        ]
        kinds: list[tuple[bytes, list[tuple[str, bytes]]]] = [
            (rng.randbytes(rng.randrange(0, 400)), head),
            (b"\xff\xfe{", head),
            (b"[" * 5000, head),
            (b'{"post": 1e999999}', head),
            (b'{"post": ' + b"9" * 5000 + b"}", head),
            (b'{"post": NaN}', head),
            (b'{"post":"x:1","post":"x:2"}', head),
            (b'{"post":"\\u0000"}', head),
            (b'{"post":"\\ud800"}', head),
            (b"{}", []),
            (b"{}", [("ce_id", b"\xff\xff"), ("ce_type", b"\xff")]),
            (b"{}", [("ce_id", f"{name}-{index}".encode()), ("ce_type", b"xinfluencer.PostObserved.v99")]),
            (b"{}", [*head, ("ce_origin", b"not/an/origin")]),
        ]
        value, headers = kinds[index % len(kinds)]
        made.append(Sent(t.TWEETS.name, index % width, None, value, headers, now_ms(), None))  # type: ignore[arg-type]
    return made


def anything(seed: int, count: int, width: int) -> list[Sent]:
    """Make records from sound ones with a few bytes, fields or headers changed."""
    made = []
    for index in range(count):
        headers, value = anybodys(random.Random(f"{seed}/{index}"))
        # One id goes to one partition, as one author's do: whoever writes an id into two is told of nowhere yet.
        partition = zlib.crc32(repr(dict(headers).get("ce_id")).encode()) % width
        made.append(Sent(t.TWEETS.name, partition, None, value, headers, now_ms(), None))  # type: ignore[arg-type]
    return made


@on_broker
def test_poison_is_accounted_for_and_what_comes_behind_a_burst_is_handled(
    broker: Any, tmp_path: Path, proof: Say
) -> None:
    """D1 and D2: poison and fuzz between two halves of a feed, then a burst with one sound post behind it."""
    cases, burst = size("fuzz broker"), size("burst")
    proof("D1", "poison and fuzzed records through the broker", cases, "cases")
    case = proof("D2", "a burst of poison, then a sound post", burst, "records")
    settings = settings_for(tmp_path, "d1")
    vault, width = vault_of(settings), settings.partitions
    good = list(feed(SEED, 100, width, vault, now_ms()))
    bad = poison(SEED, cases // 2, width) + anything(SEED, cases - cases // 2, width)
    random.Random(SEED).shuffle(bad)
    storm = poison(SEED + 1, burst, 1, "storm")
    content = PostContent(text="the one behind them")
    values = {"post": "x:behind", "owner": "x:@behind", "source": "x", "raw_sha256": ZERO, "rights": RIGHTS}
    behind = outside(worded(ps.PostObserved(**values, content=content)), "/sources/x", now_ms(), width, vault)
    storm = [one._replace(partition=behind.partition) for one in storm]
    workers = Workers(settings, broker.settings)

    async def handled() -> bool:
        async with reader(settings, broker.settings) as log_reader:
            found = await log_reader.everything("signals")
        return any(b"x:behind" in (raw.value or b"") for raws in found.values() for raw in raws)

    async def run() -> tuple[Any, float]:
        await write(settings, broker.settings, good[: len(good) // 2])
        workers.start()
        await write(settings, broker.settings, [*bad, *good[len(good) // 2 :]])
        await finish(settings, broker.settings, workers)
        await write(settings, broker.settings, [*storm, behind])
        began = time.monotonic()
        while not await handled():
            assert time.monotonic() - began < 60, "it waits behind poison for ever"
        waited = time.monotonic() - began
        await finish(settings, broker.settings, workers)
        assert workers.process is not None
        # Faust would open a web port on all interfaces.
        listening = [c.laddr for c in psutil.Process(workers.process.pid).net_connections() if c.status == "LISTEN"]
        assert listening == []
        await asyncio.to_thread(workers.signal, signal.SIGTERM)
        return await judge(settings, broker.settings), waited

    with ended(workers):
        verdict, waited = asyncio.run(run())
    assert verdict.faults == []
    assert workers.ended == [], workers.log()[-3000:]
    assert verdict.visible["dead-letters"] >= cases // 2 + burst
    case.detail = f"handled {waited:.1f} s after the burst, the reading that finds it included"
    assert waited < HANDLED_S_MAX


# ---- D4, D6, D7: one run, each record with the fate that it must have -----------------------------------------------


def named(event: Event, name: str, width: int, keys: Any, time_ms: int) -> Sent:
    return outside(event, "/sources/x", time_ms, width, keys, name)


def retyped(sent: Sent, type_name: str, value: bytes | None = None) -> Sent:
    """The record under another type or with another body."""
    headers = [(key, type_name.encode() if key == "ce_type" else one) for key, one in sent.headers]
    return sent._replace(headers=headers, value=sent.value if value is None else value)


def of_versions(width: int, keys: Any) -> list[tuple[Sent, str | None]]:
    """D4: every kind that outsiders may write, in every version there ever was, with unknown fields, and in none."""
    made: list[tuple[Sent, str | None]] = []
    for topic in t.TOPICS:
        for kind in topic.events if topic.outside else ():
            event = find(model(kind, ("x:a", "x:b")), lambda one: True)
            for version in range(kind.VERSION + 2):
                name = f"{kind.__name__}-{version}"
                sent = named(event, name, width, keys, now_ms())
                known = 1 <= version <= kind.VERSION
                made.append((retyped(sent, f"xinfluencer.{kind.__name__}.v{version}"), None if known else VERSION))
            more = named(event, f"{kind.__name__}-more", width, keys, now_ms())
            tree = {**json.loads(more.value), "not_yet_known": {"deep": [1]}, "é": None}
            if "rights" in tree:
                tree["rights"]["not_yet_known"] = True
            made.append((more._replace(value=json.dumps(tree).encode()), None))
            for wrong, reason in ((f"xinfluencer.{kind.__name__}", TYPE), (f"{kind.__name__}.v1", None), ("", TYPE)):
                sent = named(event, f"{kind.__name__}-{wrong}", width, keys, now_ms())
                if reason:
                    made.append((retyped(sent, wrong), reason))
    return made


VERSION, TYPE = "unknown-version", "unknown-type"


def of_clocks(width: int, keys: Any) -> list[tuple[Sent, str | None]]:
    """D6: what a source claims, and when a writer's clock says that it wrote."""
    now, made = now_ms(), []
    claims: tuple[tuple[int, int, str | None], ...] = (  # claimed, written, fate
        (0, now, None),
        (now - DAY_MS, now, None),
        (now + DAY_MS, now, None),
        (now + DAY_MS + 60_000, now, "future-dated"),
        (YEAR_2100_MS, now, "future-dated"),
        (253_402_300_799_999, now, "future-dated"),
        (now, now - DAY_MS, None),
        (now, now - 3 * DAY_MS, "future-dated"),
        (0, 0, None),
        (now, 0, "future-dated"),
        (now, now + 3_000_000, None),
    )
    for number, (claimed, written, fate) in enumerate(claims):
        values = {"post": f"x:clock-{number}", "owner": "x:@clock", "source": "x", "raw_sha256": ZERO}
        post = ps.PostObserved(
            **values, rights=RIGHTS, claimed_ms=claimed, content=PostContent(text=f"clock {number} says a few words")
        )
        made.append((named(worded(post), f"clock-{number}", width, keys, written), fate))
    return made


def of_sizes(width: int, keys: Any) -> list[tuple[Sent, str | None]]:
    """D7: bodies of no bytes, and just under, at and over our limit, all of which the broker takes."""
    made: list[tuple[Sent, str | None]] = []
    event = FeedbackGiven(feedback="f:size", subject="x:a/x:b", rater="r:1", kind="thumb", value=1)
    for length in (0, t.RECORD_BYTES_MAX - 1, t.RECORD_BYTES_MAX, t.RECORD_BYTES_MAX + 1, 1_100_000):
        sent = named(event.model_copy(update={"feedback": f"f:{length}"}), f"size-{length}", width, keys, now_ms())
        value = sent.value[:-1] + b" " * (length - len(sent.value)) + b"}" if length else b""
        fate = "bad-json" if not length else "too-large" if length > t.RECORD_BYTES_MAX else None
        made.append((sent._replace(value=value), fate))
    return made


@on_broker
def test_every_version_clock_and_size_has_the_one_fate_it_must_have(broker: Any, tmp_path: Path, proof: Say) -> None:
    settings = settings_for(tmp_path, "d467")
    vault, width = vault_of(settings), settings.partitions
    parts = {"D4": of_versions(width, vault), "D6": of_clocks(width, vault), "D7": of_sizes(width, vault)}
    fates = [one for part in parts.values() for one in part]
    proof("D4", "every version of every kind, unknown fields and unknown versions: each its one fate", len(parts["D4"]),
          "records")  # fmt: skip
    proof("D6", "clocks off by a day and more, 1970, 2100: each its one fate", len(parts["D6"]), "records")
    proof("D7", "no bytes, just under, at and over a megabyte: each its one fate", len(parts["D7"]), "records")
    random.Random(SEED).shuffle(fates)
    workers = Workers(settings, broker.settings)

    async def attack() -> None:
        await write(settings, broker.settings, feed(SEED, 30, width, vault, now_ms()))
        for sent, _ in fates:  # one by one: a batch of a megabyte takes one
            await write_one(sent)

    async def write_one(sent: Sent) -> None:
        await sender.send([sent])

    sender = Sender(settings, broker.settings)

    async def all_of_it() -> None:
        await attack()
        await sender.stop()

    verdict = attacked_run(settings, broker.settings, workers, all_of_it)
    assert verdict.faults == []
    assert workers.ended == [], workers.log()[-3000:]
    letters, places = asyncio.run(_letters(settings, broker.settings))
    for sent, fate in fates:
        name = dict(sent.headers)["ce_id"].decode()
        assert letters.get(places[name]) in LATER if fate is None else letters[places[name]] == fate, (name, fate)


LATER = {None, "bad-feedback", "bad-answer", "too-late", "subject-withdrawn"}  # was read, and made no sense to its step


async def _letters(settings: Any, kafka: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Give (place -> reason of its dead letter, id -> place)."""
    letters = {
        one.event.place: one.event.reason
        for one in await said(settings, kafka, "dead-letters")
        if isinstance(one.event, RecordRefused)
    }
    places = {}
    async with reader(settings, kafka) as log_reader:
        for topic in (one.name for one in t.TOPICS if one.outside):
            for (_, partition), raws in (await log_reader.everything(topic)).items():
                for raw in raws:
                    name = dict(raw.headers)["ce_id"].decode()
                    places.setdefault(name, f"{topic}/{partition}/{raw.offset}")
    return letters, places


@on_broker
def test_what_no_record_may_be_is_refused_at_the_edge_with_its_reason(broker: Any, tmp_path: Path, proof: Say) -> None:
    """D6 and D7 where they come in: 100 MB, a little over, and a clock in 2100, by our writer and by any other."""
    proof("D7", "100 MB, just over 1 MB and a clock in 2100, refused where they come in", 5, "records")
    settings = settings_for(tmp_path, "d7-edge")
    keys = MemoryKeys()
    event = FeedbackGiven(feedback="f:1", subject="x:a/x:b", rater="r:1", kind="thumb", value=1)
    sound = outside(event, "/people", now_ms(), settings.partitions, keys)
    values: dict[str, Any] = {"post": "x:1", "owner": "x:@1", "source": "x", "raw_sha256": ZERO, "rights": RIGHTS}
    headers = list(sound.headers)
    with pytest.raises(Refused, match="too-large"):
        envelope.decode("feedback", 0, 0, now_ms(), headers, b"x" * 100_000_000)
    with pytest.raises(Refused, match="too-large"):
        envelope.body(ps.PostObserved(**values, mentions=tuple(f"x:@{n:0>99}" for n in range(10_000))))

    async def run() -> None:
        await write(settings, broker.settings, [sound])
        sender = Sender(settings, broker.settings)
        for size_bytes in (1_200_000, 10_000_000):
            with pytest.raises((ValueError, KafkaError), match=r"[Ll]arge"):
                await sender.send([sound._replace(value=b"x" * size_bytes)])
        with pytest.raises(KafkaError, match=r"[Tt]imestamp"):
            await sender.send([sound._replace(time_ms=YEAR_2100_MS)])
        await sender.send([sound])  # nothing stalls
        await sender.stop()

    asyncio.run(run())


# ---- D8 -------------------------------------------------------------------------------------------------------------


@on_broker
@pytest.mark.parametrize("crowd", ["one loud author", "many authors"])
def test_neither_one_loud_author_nor_a_crowd_holds_up_the_rest(
    broker: Any, tmp_path: Path, crowd: str, proof: Say
) -> None:
    """D8: 90 % of all by one, and each by another; the worker comes through, in bounded memory."""
    number = size("crowd")
    case = proof("D8", f"{crowd}: lag reaches zero, memory is bounded", number, "posts")
    settings = settings_for(tmp_path, f"d8-{crowd.replace(' ', '-')}")
    vault, rng = vault_of(settings), random.Random(SEED)
    owner: Callable[[int], str] = (
        (lambda n: "x:@loud" if rng.random() < 0.9 else f"x:@{n}") if "loud" in crowd else (lambda n: f"x:@{n}")
    )
    workers = Workers(settings, broker.settings)
    peak = 0

    def posts() -> Any:
        for n in range(number):
            values = {"post": f"x:{n}", "owner": owner(n), "source": "x", "raw_sha256": ZERO, "rights": RIGHTS}
            content = PostContent(text=f"post {n} of a crowd")
            yield outside(worded(ps.PostObserved(**values, content=content)), "/sources/x", now_ms(), 4, vault)

    async def watch() -> None:
        nonlocal peak
        while True:
            if workers.process is not None and workers.process.poll() is None:
                peak = max(peak, psutil.Process(workers.process.pid).memory_info().rss)
            await asyncio.sleep(0.2)

    async def attack() -> None:
        watching = asyncio.create_task(watch())
        await write(settings, broker.settings, posts())
        await finish(settings, broker.settings, workers, 240 + number / 500)
        watching.cancel()

    verdict = attacked_run(settings, broker.settings, workers, attack)
    assert verdict.faults == []
    assert workers.ended == []
    bound = RSS_MIB_BASE + RSS_KIB_A_POST * min(number, settings.partitions * POSTS_MAX) / 1024
    assert peak >> 20 < bound, f"{peak >> 20} MiB"
    case.detail = f"{peak >> 20} MiB at most, all stages in one process; bound {bound:.0f}"
