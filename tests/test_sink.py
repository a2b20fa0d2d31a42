"""The sink: killed anywhere it loses and doubles nothing; what is forgotten goes, down to the bytes, with a receipt.

Real processes on a real broker; what can be seen without them is tested on a database of the test's own.
"""

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import count, permutations
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from schemas import envelope
from schemas import events as e
from schemas import posts as ps
from schemas.facts import Event, Features, Influence, Where
from schemas.topics import BY_NAME, ERASURES, TOPICS
from streams import forgetting as forgetting_module
from streams import sink
from streams import tables as t
from streams.analytics import ask, socket_path
from streams.fold import Sent
from streams.forgetting import HIDDEN, Forgetting, Request, parts_of
from streams.kafka import KafkaSettings, ensure_topics
from streams.memory import Logged
from streams.reader import reader
from streams.records import outside
from streams.settings import Settings
from streams.shell import EXIT_AGAIN, EXIT_REFUSED
from streams.sink import Batch
from streams.sink import write as write_batch
from streams.vault import Vault
from streams.warehouse import locked
from tests.feeds import RIGHTS, ZERO, feed
from tests.harness import Workers, ended, for_ever, settings_for, write
from tests.small_world import LOGS, Keyring, fill, world
from tests.test_analytics import clients_are_waited_for
from tests.warehouses import opened, settings_in

SINK = (sys.executable, "-m", "streams.cli", "sink")
NOW_MS = 1_780_000_000_000
AUTHOR, POST, BY_AUTHOR = "bluesky:@did:plc:canaryzq7", "x:canarypostv3", "bluesky:did:plc:canaryzq7~k1"
CANARIES = ("canaryzq7", "canarypostv3")


# ---- processes and the log ------------------------------------------------------------------------------------------


def status(settings: Settings) -> dict[str, Any]:
    try:
        return dict(json.loads((settings.data / "run" / "sink.status.json").read_text()))
    except (OSError, ValueError):
        return {}


def run_until(workers: Workers, over: Callable[[dict[str, Any]], bool], seconds: float = 120.0) -> None:
    """Run the sink until its own status says so, then end it as a supervisor would; it leaves in time."""
    workers.env = {}
    workers.start()
    assert workers.process is not None
    deadline = time.monotonic() + seconds
    told: dict[str, Any] = {}
    while told.get("pid") != workers.process.pid or not over(told):
        assert workers.process.poll() is None, workers.log()[-3000:]
        assert time.monotonic() < deadline, f"{told} {workers.log()[-3000:]}"
        time.sleep(0.1)
        told = status(workers.settings)
    began = time.monotonic()
    workers.signal(signal.SIGTERM)
    assert workers.process.returncode == 0
    assert time.monotonic() - began < 10.0


def dies_at(workers: Workers, point: str, folder: Path) -> None:
    """Run the sink until it kills itself at this point."""
    workers.env = {"XINFLUENCER_CRASH": f"{point}@{folder / point}"}
    workers.start()
    assert workers.process is not None
    assert workers.process.wait(120) == -signal.SIGKILL, workers.log()[-3000:]


def all_written(told: dict[str, Any]) -> bool:
    return all(written == taken and position >= end for written, taken, position, end in told["partitions"].values())


def all_erased(told: dict[str, Any]) -> bool:
    return all_written(told) and told["to_erase"] == 0


def log_of(settings: Settings, kafka: KafkaSettings, *topics: str) -> dict[tuple[str, int], list[Any]]:
    async def run() -> dict[tuple[str, int], list[Any]]:
        async with reader(settings, kafka) as log_reader:
            return await log_reader.everything(*topics)

    return asyncio.run(run())


def first_of_each_id(log: dict[tuple[str, int], list[Any]]) -> dict[str, set[tuple[str, int, int]]]:
    """What the tables must show: for each table (id, partition, offset), of records of one id the first."""
    found: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    for (topic, partition), records in log.items():
        for raw in records:
            if raw.headers:
                one = envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
                found[t.TABLES[type(one.event)].name].setdefault((one.id, partition), raw.offset)
    return {table: {(*place, offset) for place, offset in rows.items()} for table, rows in found.items()}


def shown(settings: Settings, tables: Iterable[str]) -> dict[str, set[tuple[str, int, int]]]:
    """What whoever asks sees."""
    union = " UNION ALL ".join(f"SELECT '{one}', id, partition, offset FROM `{one}`" for one in tables)
    found: dict[str, set[tuple[str, int, int]]] = defaultdict(set)
    for table, *place in ask(settings, union).rows:
        assert tuple(place) not in found[table], f"{table} shows {place} twice"
        found[table].add(tuple(place))
    return found


def no_event(partition: int) -> Sent:
    """A record that is no event."""
    return Sent("tweets", partition, b"k", b"no event", [], NOW_MS, ps.AuthorShown(owner="x:@1", source="x"))


@pytest.mark.broker
@pytest.mark.timeout(300)
def test_a_sink_killed_between_any_two_steps_loses_and_doubles_nothing(broker: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data", "sink-kills", partitions=2)
    vault = Vault(settings.data / "vault" / "keys.sqlite")

    def some(seed: int, posts: int) -> Iterable[Sent]:
        return (one for one in feed(seed, posts, 2, vault, NOW_MS) if not isinstance(one.event, ps.PostDeleted))

    asyncio.run(write(settings, broker.settings, [*some(3, 600), no_event(0), no_event(1)]))
    workers = Workers(settings, broker.settings, SINK)
    with ended(workers):
        for index, point in enumerate(("after-insert", "before-checkpoint", "after-checkpoint")):
            dies_at(workers, point, tmp_path)
            asyncio.run(write(settings, broker.settings, some(40 + index, 30)))
        run_until(workers, all_written)
    expected = first_of_each_id(log_of(settings, broker.settings, *(topic.name for topic in TOPICS)))
    assert len(expected["post_observed"]) == 690
    assert shown(settings, expected) == expected
    skipped = ask(settings, "SELECT topic, partition, reason FROM sink_skipped ORDER BY partition").rows
    assert skipped == [["tweets", 0, "no-envelope"], ["tweets", 1, "no-envelope"]]
    assert status(settings)["rss_bytes"] > 100_000_000

    other = settings.model_copy(update={"namespace": "sink-other"})  # as if the broker's folder had been wiped
    workers = Workers(other, broker.settings, SINK)
    with ended(workers):
        workers.start()
        assert workers.process is not None
        assert workers.process.wait(60) == EXIT_REFUSED == sink.EXIT_REFUSED
        assert sink.EXIT_AGAIN == EXIT_AGAIN
    assert "filled from another log" in workers.log()


class Killed(Exception):
    """The process dies here."""


def die_now_and_then(rng: random.Random) -> Callable[[str], None]:
    def point(name: str) -> None:
        if rng.random() < 0.15:
            raise Killed

    return point


def checkpoint_first(batch: Batch, house: Any, forgetting: Any, logs: Any, point: Callable[[str], None]) -> int:
    """Wrong on purpose: says that rows are there before they are."""
    house.keep("sink_checkpoint", [(topic, part, logs[topic], at) for (topic, part), at in batch.next.items()])
    point("after-checkpoint")
    return write_batch(batch, house, forgetting, logs, point)


@pytest.mark.parametrize(("how", "whole"), [(write_batch, True), (checkpoint_first, False)])
def test_rows_before_the_checkpoint_is_the_order_that_loses_nothing(tmp_path: Path, how: Any, whole: bool) -> None:
    """The same deaths under both orders: the wrong one must be seen to lose rows."""
    rng = random.Random(5)
    log = told(acted("x:@1", "x:@2", f"x:{i}") for i in range(400))
    with opened(settings_in(tmp_path)) as house:
        house.migrate()
        while (at := house.places().get(("interactions", 0), ("", 0))[1]) < len(log):
            forgetting = Forgetting(house)
            forgetting.load()
            batch = Batch()
            some = log[at : at + 20]
            raws = [Logged(at + i, NOW_MS, one.key, one.value, list(one.headers)) for i, one in enumerate(some)]
            batch.take("interactions", 0, raws)
            with contextlib.suppress(Killed):
                how(batch, house, forgetting, LOGS, die_now_and_then(rng))
        seen = house.rows("SELECT count(), uniqExact(id) FROM interaction_observed")[0]
    assert (seen == (400, 400)) is whole


# ---- forgetting -----------------------------------------------------------------------------------------------------


def post(name: str, owner: str, **more: Any) -> ps.PostObserved:
    given = {"post": name, "owner": owner, "source": "x", "raw_sha256": ZERO, "rights": RIGHTS.model_dump(), **more}
    return ps.PostObserved.model_validate(given)


def edited(first: str, name: str, owner: str, revision: int = 2) -> ps.PostEdited:
    return ps.PostEdited.model_validate({**post(first, owner).model_dump(), "named": name, "revision": revision})


def reward(prompt: str, item: str, age_ms: int = 1) -> e.RewardClosed:
    where = {"topic": "tweets", "partition": 0, "offset": 0}
    return e.RewardClosed.model_validate(
        {
            "prompt": prompt, "subject": f"{prompt}/{item}", "kind": "reply", "age_ms": age_ms, "final": True,
            "components": {}, "missing": (), "weights": {"human": 1.0}, "weights_version": "w", "penalty": 0.0,
            "total": 0.5, "judgements": 0, "simulated": 0, "text_hash": ZERO, "where": where, "chars": 1,
            "trainable": True, "policy": "p",
        }
    )  # fmt: skip


def noted(prompt: str, item: str, owner: str) -> e.SubjectNoted:
    features = Features(
        chars=1, words=1, hashtags=0, mentions=0, links=0, media=0, caps_share=0, distinct_share=1, quality=0
    )
    return e.SubjectNoted(
        prompt=prompt, subject=f"{prompt}/{item}", kind="reply", owner=owner, source="x", text_hash=ZERO,
        where=Where(topic="tweets", partition=0, offset=0), rights=RIGHTS, features=features,
    )  # fmt: skip


def acted(actor: str, target: str | None, name: str, target_post: str | None = None) -> e.InteractionObserved:
    return e.InteractionObserved(
        kind="reply", source="x", actor=actor, target=target, post=name, target_post=target_post
    )


def placed(author: str) -> Influence:
    return Influence(author=author, influence=1.0, percentile=1.0, community=0, acted_on_by=1)


ABOUT_AUTHOR = (
    post(BY_AUTHOR, AUTHOR),
    noted("x:root", BY_AUTHOR, AUTHOR),
    reward("x:root", BY_AUTHOR),
    reward(BY_AUTHOR, "x:reply"),  # somebody's answer to a post of theirs: what it answers is gone
    acted(AUTHOR, "x:@2", BY_AUTHOR),
    acted("x:@2", AUTHOR, "x:reply"),
    e.ReactionNoted(post="x:root", act="bluesky:did:plc:canaryzq7~like~1", actor=AUTHOR, kind="like"),
    e.FeedbackGiven(feedback="f:1", subject="x:root/x:reply", rater=AUTHOR, kind="thumb", value=1),
)
ABOUT_POST = (post(POST, "x:@3"), noted(POST, POST, "x:@3"), reward(POST, POST), reward(POST, "x:reply", 2))
POINTING = (
    post("x:reply", "x:@2", parent=BY_AUTHOR, reply_to=AUTHOR, mentions=(AUTHOR, "x:@3")),
    acted("x:@2", None, "x:reply2", BY_AUTHOR),
    e.GraphMeasured(at_ms=1, authors=2, edges=1, communities=1, modularity=0.0, top=(placed("x:@2"), placed(AUTHOR))),
)
OTHERS = (post("x:root", "x:@4"), reward("x:root", "x:reply"), acted("x:@2", "x:@3", "x:fine"))
REQUESTS = (ps.AuthorErased(owner=AUTHOR, source="bluesky"), ps.PostDeleted(post=POST, owner="x:@3", source="x"))
LATE = (
    post("bluesky:did:plc:canaryzq7~late", AUTHOR),
    reward("x:root", "bluesky:did:plc:canaryzq7~late"),
    reward("x:root", BY_AUTHOR, 3),
    acted(AUTHOR, "x:@2", BY_AUTHOR, "x:root"),
    reward(POST, POST, 4),
    post("x:later", "x:@2", parent=BY_AUTHOR, mentions=(AUTHOR,)),  # stays, and no longer says to whom
)


def told(events: Iterable[Event], keys: Any = None) -> list[Sent]:
    return [outside(one, "/test", NOW_MS, 2, keys or Keyring()) for one in events]


def logged(events: Iterable[Event], start: int = 0) -> list[Logged]:
    """The events as they lie in one partition."""
    return [Logged(start + i, NOW_MS, one.key, one.value, list(one.headers)) for i, one in enumerate(told(events))]


def request(event: Event, offset: int) -> Request:
    return Request(Where(topic="tweets", partition=0, offset=offset), event.owner, getattr(event, "post", None))  # type: ignore[attr-defined]


def holding(folder: Path, text: str) -> list[Path]:
    """The files that hold this text. LZ4 leaves a word that it meets for the first time whole."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def check_what_is_left(settings: Settings) -> None:
    """Nothing names the forgotten; what others said is there, and points at nobody."""
    columns = ask(
        settings,
        "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND type LIKE '%String%' "
        "AND table NOT LIKE 'sink_%'",
    ).rows
    union = " UNION ALL ".join(
        f"SELECT '{table}.{name}', toString(`{name}`) AS text FROM `{table}`" for table, name in columns
    )
    canaries = " OR ".join(f"position(text, '{one}') > 0" for one in CANARIES)
    assert ask(settings, f"SELECT * FROM ({union}) WHERE {canaries}").rows == []
    posts = ask(settings, "SELECT post, parent, reply_to, mentions FROM post_observed ORDER BY post").rows
    assert ["x:reply", "", "", ["", "x:@3"]] in posts
    assert ["x:root", None, None, []] in posts
    assert ask(settings, "SELECT subject FROM reward_closed").rows == [["x:root/x:reply"]]
    acts = ask(settings, "SELECT post, target, target_post FROM interaction_observed ORDER BY post").rows
    assert acts == [["x:fine", "x:@3", None], ["x:reply2", None, ""]]
    assert ask(settings, "SELECT top_author FROM graph_measured").rows == [[["x:@2", ""]]]


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_what_is_forgotten_goes_down_to_the_bytes_however_often_the_sink_is_killed(broker: Any, tmp_path: Path) -> None:
    """D10 for this store. It takes a minute: the engine keeps a deleted row's bytes for half of one."""
    settings = settings_for(tmp_path / "data", "sink-forgets", partitions=2)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    asyncio.run(ensure_topics(broker.settings, for_ever(settings)))
    asyncio.run(write(settings, broker.settings, told((*ABOUT_AUTHOR, *ABOUT_POST, *POINTING, *OTHERS), vault)))
    workers = Workers(settings, broker.settings, SINK)
    with ended(workers):
        run_until(workers, all_written)
        for canary in CANARIES:
            assert holding(settings.data / "analytics", canary), (
                "the scan does not find what is there: its silence would say nothing"
            )
        asyncio.run(write(settings, broker.settings, told(REQUESTS, vault)))
        for point in ("after-insert", "before-checkpoint", "after-count", "after-mutation", "after-receipt"):
            dies_at(workers, point, tmp_path)
        run_until(workers, all_erased)
        asyncio.run(write(settings, broker.settings, told(LATE, vault)))
        run_until(workers, all_erased)
    for canary in CANARIES:
        assert holding(settings.data / "analytics", canary) == []
        assert canary not in workers.log()
    check_what_is_left(settings)
    receipts: dict[str, set[bytes]] = defaultdict(set)
    for (topic, partition), records in log_of(settings, broker.settings, ERASURES.name).items():
        for raw in records:
            one = envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
            assert isinstance(one.event, e.CopyErased)
            receipts[one.id].add(raw.value)
    assert all(len(payloads) == 1 for payloads in receipts.values()), "an id stands over two payloads"
    said = [e.CopyErased.model_validate_json(payload) for payloads in receipts.values() for payload in payloads]
    assert {(one.owner, one.post, one.rows) for one in said} == {
        (AUTHOR, None, len(ABOUT_AUTHOR)),
        ("x:@3", POST, len(ABOUT_POST)),
    }
    requested = {(one.requested.topic, one.requested.partition) for one in said}
    assert requested <= {(BY_NAME["tweets"].name, partition) for partition in range(2)}


def test_rows_are_counted_once_for_each_request_and_late_ones_are_kept_out(tmp_path: Path) -> None:
    engine = world(1, 40, NOW_MS, days=1)
    engine.append(told((*ABOUT_AUTHOR, *ABOUT_POST, *POINTING, *OTHERS)))
    settings = settings_in(tmp_path)
    with opened(settings) as house:
        forgetting = fill(engine, house)
        before = {table: house.rows(f"SELECT count() FROM `{table}`")[0][0] for table in t.BY_NAME}
        asked = [request(one, 10**6 + i) for i, one in enumerate(REQUESTS)]
        forgetting.ask(asked)
        assert forgetting.erase(0.0)
        assert [one.rows for one in forgetting.erased] == [len(ABOUT_AUTHOR), len(ABOUT_POST)]
        assert forgetting.gone() == [], "the bytes are still in old parts: it is too early for a receipt"
        after = {table: house.rows(f"SELECT count() FROM `{table}`")[0][0] for table in t.BY_NAME}
        assert sum(before.values()) - sum(after.values()) == len(ABOUT_AUTHOR) + len(ABOUT_POST)
        batch = Batch()
        for i, sent in enumerate(told(LATE)):
            raw = Logged(10**6 + 10 + i, NOW_MS, sent.key, sent.value, list(sent.headers))
            batch.take(sent.topic, sent.partition, [raw])
        write_batch(batch, house, forgetting, LOGS)
        assert forgetting.dropped == len(LATE) - 1
        assert house.rows("SELECT parent, mentions FROM post_observed WHERE post = 'x:later'") == [("", [""])]
        again = Forgetting(house)  # another life knows the same
        assert len(again.load()) == len(REQUESTS)
        assert again.hides(AUTHOR)
        assert again.hides(f"x:root/{BY_AUTHOR}")
        assert not again.hides("x:root/x:reply")
        assert house.rows("SELECT count() FROM system.mutations WHERE NOT is_done")[0][0] == 0
        commands = " ".join(row[0] for row in house.rows("SELECT command FROM system.mutations"))
        assert "canary" not in commands, "the text of a mutation is kept in a file"


@pytest.mark.parametrize(
    ("away", "back"),
    [
        (ps.AuthorHidden(owner="x:@h", source="x", reason="r"), ps.AuthorShown(owner="x:@h", source="x")),
        (
            ps.IntentDeclared(owner="x:@h", source="x", index=False),
            ps.IntentDeclared(owner="x:@h", source="x", index=True),
        ),
    ],
    ids=["hidden", "no-index"],
)
def test_who_may_not_be_stored_is_out_until_they_are_back_and_what_they_said_before_stays_out(
    tmp_path: Path, away: Event, back: Event
) -> None:
    with opened(settings_in(tmp_path)) as house:
        house.migrate()
        forgetting, offsets = Forgetting(house), count()

        def copied(*events: Event) -> None:
            rest: Sequence[Logged] = logged(events, next(offsets) * 100)
            while rest:
                batch = Batch(forgetting.withholds)
                rest = batch.take("tweets", 0, rest)
                write_batch(batch, house, forgetting, LOGS)

        def written(*events: Event) -> set[str]:
            copied(*events)
            forgetting.erase(0.0, due=True)
            return {name for (name,) in house.rows("SELECT post FROM post_observed")}

        yes = ps.IntentDeclared(owner="x:@h", source="x", train=False)
        assert written(post("x:1", "x:@h"), post("x:2", "x:@o"), yes) == {"x:1", "x:2"}, "a no to training stores"
        assert written(away) == {"x:2"}
        assert written(post("x:3", "x:@h"), post("x:4", "x:@o")) == {"x:2", "x:4"}
        forgetting = Forgetting(house)
        forgetting.load()
        assert written(post("x:5", "x:@h")) == {"x:2", "x:4"}, "another life knows the same"
        assert written(post("x:3b", "x:@h"), back, post("x:6", "x:@h")) == {"x:2", "x:4", "x:6"}, "from its place on"
        assert written(post("x:7", "x:@h"), post("x:1", "x:@h", revision=2)) == {"x:2", "x:4", "x:6", "x:7"}
        # Hidden and shown in one batch, with the erasure not due: what comes after is not taken with what went before.
        copied(away, back)
        assert written(post("x:8", "x:@h")) == {"x:2", "x:4", "x:8"}
        # Whoever was erased stays so, whatever a source says of them later.
        assert written(ps.AuthorErased(owner="x:@h", source="x")) == {"x:2", "x:4"}
        written(away, back)
        assert written(post("x:9", "x:@h")) == {"x:2", "x:4"}


FIRST = post("x:1", "x:@a")
REVISIONS = [edited("x:1", "x:2", "x:@a"), edited("x:1", "x:3", "x:@a", 3)]


def deleted(name: str) -> ps.PostDeleted:
    return ps.PostDeleted(post=name, owner="x:@a", source="x")


@pytest.mark.parametrize(
    ("events", "cut"),
    [
        ((FIRST, REVISIONS[0], deleted("x:2")), 1),
        ((FIRST, REVISIONS[0], deleted("x:2")), 9),
        ((FIRST, REVISIONS[0], deleted("x:1")), 1),
        ((FIRST, *REVISIONS, deleted("x:3")), 1),
    ],
    ids=["one revision", "at once", "the post itself", "the second of two"],
)
def test_a_deletion_of_one_version_takes_all_of_them_whatever_comes_first(
    tmp_path: Path, events: tuple[Event, ...], cut: int
) -> None:
    left = {}
    with opened(settings_in(tmp_path)) as house:
        house.migrate()
        forgetting, start = Forgetting(house), 0
        for number, order in enumerate(permutations(events)):
            renamed = [
                one.model_copy(update={k: f"{v}-{number}" for k, v in one if k in ("post", "named") and v})
                for one in order
            ]
            log = logged(renamed, start)
            start += len(log)
            for at in range(0, len(log), cut):
                batch = Batch()
                batch.take("tweets", 0, log[at : at + cut])
                write_batch(batch, house, forgetting, LOGS)
                forgetting.erase(0.0, due=True)
            rows = house.rows("SELECT post FROM post_observed UNION ALL SELECT post FROM post_edited")
            if rows:
                left[" ".join(type(one).__name__ for one in order)] = rows
                for table in ("post_observed", "post_edited"):
                    house.client.command(f"TRUNCATE TABLE {table}")
            assert all(forgetting.hides(f"{name}-{number}") for name in ("x:1", "x:2"))
        assert left == {}
        assert forgetting.dropped, "nothing came late"


def test_what_a_late_revision_asks_for_is_asked_for_again_by_the_next_life(tmp_path: Path) -> None:
    """The post is stored, its deleted revision comes later, and the process dies before the post is erased."""
    late, other = logged([FIRST, deleted("x:2"), REVISIONS[0]]), logged([post("x:9", "x:@b")], 3)
    with opened(settings_in(tmp_path)) as house:
        house.migrate()
        forgetting = Forgetting(house)
        for log in (late[:2], late[2:]):
            batch = Batch()
            batch.take("tweets", 0, log)
            write_batch(batch, house, forgetting, LOGS)
        assert len(forgetting.asked) == 2
        for again in (False, True):  # read from the log by its place; or, behind no checkpoint, with its batch
            forgetting = Forgetting(house)
            places = {one.offset: one for one in forgetting.load()}
            assert sorted(places) == [1, 2]
            batch = Batch()
            batch.take("tweets", 0, late[2:] if again else other)
            write_batch(batch, house, forgetting, LOGS)
            if not again:
                forgetting.resume(places[2], REVISIONS[0])
            asked = forgetting.asked["tweets", 0, 2]
            assert (asked.owner, asked.post, asked.rows) == ("x:@a", "x:1", None)
        assert forgetting.erase(0.0, due=True)
        assert [one.rows for one in forgetting.erased] == [1]
        assert house.rows("SELECT post FROM post_observed") == [("x:9",)]


# ---- the loop that copies, on a log in memory -----------------------------------------------------------------------

Receipts = list[tuple[str, int]]


class Polled:
    """Stands where the consumer stands: each poll gives one cut of a partition; `idle` is asked after the last."""

    def __init__(self, cuts: Iterable[Sequence[Logged]], at: int, end: int, idle: Callable[[], None]) -> None:
        self.cuts, self.at, self.end, self.idle = deque(cuts), at, end, idle
        self.place = TopicPartition("tweets", 0)

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, Sequence[Logged]]:
        await asyncio.sleep(0.001)
        if not self.cuts:
            self.idle()
        some = self.cuts.popleft() if self.cuts else []
        self.at = some[-1].offset + 1 if some else self.at
        return {self.place: some} if some else {}

    def assignment(self) -> list[TopicPartition]:
        return [self.place]

    async def position(self, _: TopicPartition) -> int:
        return self.at

    def last_stable_offset(self, _: TopicPartition) -> int:
        return self.end


@contextlib.contextmanager
def living(
    settings: Settings, receipts: Receipts, crash_point: Callable[[str], None] = lambda name: None
) -> Iterator[sink.Sink]:
    """A sink without a broker: what it says in the log lies in `receipts`, and old parts are gone at once."""
    one = sink.Sink(settings, KafkaSettings(bootstrap="127.0.0.1:1"), crash_point)

    async def send(records: Iterable[Sent]) -> None:
        receipts.extend((dict(raw.headers)["ce_id"].decode(), raw.event.rows) for raw in records)  # type: ignore[attr-defined]

    one.sender.send = send  # type: ignore[assignment,method-assign]
    one.forgetting._inactive = frozenset  # type: ignore[method-assign]
    one.logs = dict(LOGS)
    try:
        yield one
    finally:
        one._thread.shutdown()
        one.vault.close()
        one.warehouse.client.close()


async def follow(one: sink.Sink, cuts: Iterable[Sequence[Logged]], end: int) -> None:
    """Copy these cuts and erase what they ask for, then stop."""
    place = ("tweets", 0)
    at = one.taken[place] = one.written.setdefault(place, 0)
    one.ends[place] = end
    one.stopping.clear()

    def idle() -> None:
        if one.written[place] == end and not one.forgetting.asked and not one.forgetting.erased:
            one.stopping.set()

    await one._follow(Polled(cuts, at, end, idle))  # type: ignore[arg-type]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every poll is a batch, and whatever is asked for is erased in the next turn."""
    for module, name in ((sink, "FLUSH_S"), (sink, "STATUS_S"), (forgetting_module, "ERASE_EVERY_S")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(forgetting_module, "ERASE_COST_SHARE", 1e9)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("point", ["after-insert", "before-checkpoint"])
@pytest.mark.parametrize(
    "taken_back",
    [
        [ps.AuthorErased(owner="x:@a", source="x")],
        [ps.AuthorHidden(owner="x:@a", source="x", reason="r"), ps.AuthorShown(owner="x:@a", source="x")],
    ],
    ids=["erased", "hidden and shown"],
)
def test_a_request_that_is_read_again_is_counted_once_and_has_one_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, taken_back: list[Event]
) -> None:
    settings, receipts = settings_in(tmp_path), Receipts()
    said = logged([post("x:1", "x:@a"), post("x:2", "x:@a"), post("x:9", "x:@b")])
    asked = logged(taken_back, len(said))
    log = said + asked

    class FromMemory:
        async def at(self, places: Iterable[Where]) -> dict[tuple[str, int, int], Logged]:
            return {(one.topic, one.partition, one.offset): log[one.offset] for one in places}

    @contextlib.asynccontextmanager
    async def from_memory(*_: Any) -> AsyncIterator[FromMemory]:
        yield FromMemory()

    monkeypatch.setattr(sink, "reader", from_memory)

    def dying(name: str) -> None:
        if name == point:
            raise Killed

    def life(cuts: list[list[Logged]], end: int, crash_point: Callable[[str], None] = lambda name: None) -> None:
        with living(settings, receipts, crash_point) as one:

            async def run() -> None:
                await one._resume(one._prepare())
                assert one.written.get(("tweets", 0), 0) == (0 if end == len(said) else len(said))
                await follow(one, cuts, end)

            asyncio.run(run())
            posts = one.warehouse.rows("SELECT post FROM post_observed WHERE owner = 'x:@a'")
            assert bool(posts) is (end == len(said))

    with locked(settings):
        life([said], len(said))
        with pytest.raises(Killed):
            life([asked], len(log), dying)
        life([[], [], [], asked], len(log))  # the broker takes a while: there is time to erase before it is read again
    assert [rows for _, rows in receipts] == [2]
    assert status(settings)["to_erase"] == 0


def a_history(rng: random.Random, mark: str) -> list[Event]:
    """What two authors said, took back and declared, in any order, under names of its own."""
    said: list[Event] = []
    for _ in range(20):
        number = rng.randrange(12)
        name, owner = f"x:{mark}.{number}", f"x:@{mark}{number % 2}"
        version = f"{name}r{rng.randrange(3)}"
        yes = rng.choice((True, None))
        said += rng.choices(
            (
                post(name, owner),
                edited(name, version, owner),
                ps.PostDeleted(post=rng.choice((name, version)), owner=owner, source="x"),
                ps.AuthorHidden(owner=owner, source="x", reason="r"),
                ps.AuthorShown(owner=owner, source="x"),
                ps.IntentDeclared(owner=owner, source="x", index=False),
                ps.IntentDeclared(owner=owner, source="x", index=yes, train=False),
            ),
            (12, 3, 1, 2, 3, 1, 2),
        )
    for owner in (f"x:@{mark}0", f"x:@{mark}1"):  # and at last something that stays
        said += [
            ps.AuthorShown(owner=owner, source="x"),
            ps.IntentDeclared(owner=owner, source="x", index=True),
            post(f"x:{mark}.last{owner[-1]}", owner),
        ]
    return said


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(2))
def test_any_cut_of_a_log_into_batches_gives_the_same_rows(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each poll is a batch, and taking hides down is slow, so that they are still being written when the next comes."""
    settings = settings_in(tmp_path)
    found = []
    with locked(settings), living(settings, []) as one:
        one._prepare()
        ask_now = one.forgetting.ask

        def ask_slowly(requests: Sequence[Request]) -> None:
            time.sleep(0.01 if requests else 0.0)
            ask_now(requests)

        monkeypatch.setattr(one.forgetting, "ask", ask_slowly)
        start = 0
        for cut in (1, 3, 20):
            mark = f"{cut}c"
            log = logged(a_history(random.Random(seed), mark), start)
            start += len(log)
            cuts = [log[i : i + cut] for i in range(0, len(log), cut)]
            monkeypatch.setattr(sink, "STATUS_S", 0.0 if cut < 3 else 0.5)
            asyncio.run(follow(one, cuts, start))
            names = one.warehouse.rows(
                "SELECT post, named FROM post_observed WHERE position(post, {m:String}) > 0 UNION ALL "
                "SELECT post, named FROM post_edited WHERE position(post, {m:String}) > 0",
                m=f"x:{mark}.",
            )
            found.append(sorted(str(row).replace(mark, "") for row in names))
    assert len(found[0]) >= 2, "nothing is left to compare"
    assert all(rows == found[0] for rows in found[1:])


def test_what_is_said_after_being_shown_is_there_though_it_came_in_the_same_batch(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    hidden = ps.AuthorHidden(owner="x:@h", source="x", reason="r")
    after = [f"x:{i}" for i in range(2, 12)]
    log = logged(
        [post("x:1", "x:@h"), hidden, ps.AuthorShown(owner="x:@h", source="x"), *(post(one, "x:@h") for one in after)]
    )
    with locked(settings), living(settings, []) as one:
        one._prepare()
        asyncio.run(follow(one, [log], len(log)))
        assert {name for (name,) in one.warehouse.rows("SELECT post FROM post_observed")} == set(after)
        assert one.written == one.taken == {("tweets", 0): len(log)}


def test_a_batch_ends_behind_whoever_is_let_in_again_and_behind_nobody_else() -> None:
    shown, hidden = ps.AuthorShown(owner="x:@h", source="x"), ps.AuthorHidden(owner="x:@h", source="x", reason="r")
    yes = ps.IntentDeclared(owner="x:@h", source="x", index=True)
    log = logged([shown, yes, hidden, yes, shown, post("x:1", "x:@h")])
    batch = Batch()
    rest = batch.take("tweets", 0, log)
    assert (len(rest), batch.lift, batch.rows, batch.next) == (1, ("x:@h", HIDDEN), 5, {("tweets", 0): 5})
    assert len(Batch(lambda owner, why: True).take("tweets", 0, log)) == 5, "hidden by a batch before this one"


def test_only_the_status_of_a_sink_that_ended_by_itself_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "STATUS_S", 0.0)
    settings = settings_in(tmp_path)
    seen = []
    with locked(settings), living(settings, []) as one:
        one._prepare()
        tell = one._tell

        async def look(*given: Any, **more: Any) -> None:
            await tell(*given, **more)
            seen.append(status(settings)["ended"])

        monkeypatch.setattr(one, "_tell", look)
        log = logged([post("x:1", "x:@a")])
        asyncio.run(follow(one, [log], len(log)))
    assert len(seen) > 1
    assert seen == [False] * (len(seen) - 1) + [True]


def test_a_sink_ends_though_somebody_holds_its_socket_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients_are_waited_for(monkeypatch)
    settings = settings_in(tmp_path)
    began = []
    with locked(settings), living(settings, []) as one, contextlib.ExitStack() as links:

        async def copy() -> None:
            while not socket_path(settings).exists():
                await asyncio.sleep(0.01)
            links.callback((await asyncio.open_unix_connection(socket_path(settings)))[1].close)
            await asyncio.sleep(0.05)
            began.append(time.monotonic())
            one.stopping.set()

        monkeypatch.setattr(one, "_copy", copy)
        asyncio.run(asyncio.wait_for(one.run(), 10.0))
        assert time.monotonic() - began[0] < 2.0
        links.pop_all()  # their loop is closed


def test_a_null_put_in_place_of_a_name_would_leave_its_bytes_which_is_why_names_are_emptied(tmp_path: Path) -> None:
    """Negative control of the way names are taken out: the same ALTER with NULL."""
    with opened(settings_in(tmp_path)) as house:
        for table, put in (("with_null", "NULL"), ("with_empty", "''")):
            name = f"canary-{table}"
            house.client.command(
                f"CREATE TABLE {table} (id String, who Nullable(String)) ENGINE = MergeTree ORDER BY id"
            )
            house.insert(table, {"id": ["1", "2"], "who": [name, None]}, {"id": "String", "who": "Nullable(String)"})
            alter = f"ALTER TABLE {table} UPDATE who = {put} WHERE who IN (SELECT '{name}')"
            house.client.command(alter, settings={"mutations_sync": 2})
            assert house.rows(f"SELECT countIf(who = '{name}') FROM {table}") == [(0,)]
            ((path,),) = house.rows(f"SELECT path FROM system.parts WHERE table = '{table}' AND active")
            assert bool(holding(Path(path), name)) is (put == "NULL")


def test_the_names_in_an_id_are_itself_its_parts_and_whose_it_is() -> None:
    assert list(parts_of("x:1")) == ["x:1"]
    assert list(parts_of("x:1/x:2")) == ["x:1", "x:2"]
    assert set(parts_of(f"x:1/{BY_AUTHOR}")) == {"x:1", BY_AUTHOR, "bluesky:did:plc:canaryzq7~"}
    assert request(REQUESTS[0], 0).names[1] in parts_of(BY_AUTHOR)
    erased = ps.AuthorErased(owner="x:@12", source="x")
    assert not set(request(erased, 0).names) & set(parts_of("x:12")), "the post 12 is not of author 12"
