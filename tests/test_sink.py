"""The sink: killed anywhere it loses and doubles nothing; what is forgotten goes, down to the bytes, with a receipt.

Real processes on a real broker; what can be seen without them is tested on a database of the test's own.
"""

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import count, permutations
from pathlib import Path
from typing import Any

import pytest

from schemas import envelope
from schemas import events as e
from schemas import posts as ps
from schemas.facts import Event, Features, Influence, Where
from schemas.topics import BY_NAME, ERASURES, TOPICS
from streams import tables as t
from streams.analytics import ask
from streams.exits import EXIT_REFUSED
from streams.fold import Sent
from streams.forgetting import Forgetting, Request, parts_of
from streams.kafka import KafkaSettings, ensure_topics
from streams.memory import Logged
from streams.reader import reader
from streams.settings import Settings
from streams.sink import Batch
from streams.sink import write as write_batch
from streams.vault import Vault
from tests.feeds import RIGHTS, ZERO, feed
from tests.harness import Workers, ended, for_ever, settings_for, write
from tests.sink_acts import NOW_MS, Killed, edited, logged, post, status, told
from tests.small_world import LOGS, fill, world
from tests.warehouses import opened, settings_in

SINK = (sys.executable, "-m", "streams.cli", "sink")
AUTHOR, POST, BY_AUTHOR = "bluesky:@did:plc:canaryzq7", "x:canarypostv3", "bluesky:did:plc:canaryzq7~k1"
CANARIES = ("canaryzq7", "canarypostv3")


# ---- processes and the log ------------------------------------------------------------------------------------------


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
@pytest.mark.timeout(900)
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
        assert workers.process.wait(60) == EXIT_REFUSED
    assert "filled from another log" in workers.log()


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
@pytest.mark.timeout(1200)
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
