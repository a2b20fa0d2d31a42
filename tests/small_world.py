"""Small world: a seed -> a whole log in memory, from posts to versions, for tests that look at what came of it."""

import random
from collections.abc import Iterable

from schemas import events as e
from schemas import learned as l
from schemas import posts as ps
from schemas.facts import Event, Measured
from schemas.ids import digest
from schemas.seal import Unpunctured
from schemas.topics import TOPICS, partitions
from streams.forgetting import Forgetting
from streams.memory import Engine
from streams.records import outside, tick
from streams.sink import Batch, write
from streams.topology import TICKED, Tuning, stages
from streams.warehouse import Warehouse
from tests.feeds import feed

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WIDTH = 2
LOGS = {topic.name: "log" for topic in TOPICS}


class Keyring(Unpunctured):
    """Keys in memory, one a person."""

    def get(self, owner: str) -> bytes | None:
        return (digest(owner) * 2).encode()

    make = get


def world(seed: int, posts: int, start_ms: int, days: int = 7) -> Engine:
    """Run every stage over `days` days of posts, reactions and judgements; versions are made up."""
    rng, keys = random.Random(seed), Keyring()
    engine = Engine(stages(Tuning(ages_ms=(3_600_000,))), keys, width=WIDTH, seed=seed)
    for day in range(days):
        at = start_ms + day * DAY_MS
        for part in range(6):  # a different part of the day for each
            few = max(1, posts * (4 + day) * (1 + part % 3) // (48 * days))
            engine.append(feed(seed * 1000 + day * 10 + part, few, WIDTH, keys, at + part * 4 * HOUR_MS))
        engine.append(outside(one, "/people", at, WIDTH, keys) for one in _people(seed, day, at, rng))
        engine.run()
        engine.append(tick(topic, part, at + DAY_MS) for topic in TICKED for part in range(partitions(topic, WIDTH)))
        engine.run()
        engine.append(outside(one, "/trainer", at + DAY_MS + 90_000, WIDTH, keys) for one in _version(engine, day, rng))
        engine.run()
    return engine


def _people(seed: int, day: int, at: int, rng: random.Random) -> Iterable[Event]:
    for index in range(12):
        post = f"x:{seed * 1000 + day * 10}-{index}"
        hour = at - rng.randrange(DAY_MS)
        yield ps.EngagementObserved(
            post=post, owner=f"x:@{index}", source="x", claimed_ms=hour, likes=rng.randrange(90),
            replies=rng.randrange(9), reposts=rng.randrange(20), views=1_000 + rng.randrange(4_000), rights=_RIGHTS,
        )  # fmt: skip
        for rater in range(3):
            yield e.FeedbackGiven(
                feedback=f"s:{day}-{index}-{rater}", subject=f"{post}/{post}", rater=f"m:{rater}", kind="stars",
                value=rng.randrange(1, 6), simulated=True,
            )  # fmt: skip


def _version(engine: Engine, day: int, rng: random.Random) -> Iterable[Event]:
    def measured(accuracy: float) -> Measured:
        return Measured(
            pairs=20, accuracy=accuracy, margin=accuracy - 0.5, safety_margin=1.0, safety_preferred=1.0,
            neutral_nats=3.7 + accuracy / 50, empty_rate=0.0, repetition_rate=0.0, mean_tokens=30.0,
        )  # fmt: skip

    batches = engine.log["batches", 0]
    if not batches:
        return
    batch = l.BatchClosed.model_validate_json(batches[-1].value or b"")
    yield l.ModelTrained(
        version=digest("v", str(day)) * 2, base=digest("base") * 2, base_name="tiny", batches=(batch.batch,),
        trained=len(batch.pairs), held_back=20, settings={"rate": 1e-4, "passes": 1, "name": "dpo"}, losses=(0.7, 0.6),
        measured=measured(round(rng.uniform(0.4, 0.95), 2)), baseline=measured(0.5),
    )  # fmt: skip


_RIGHTS = ps.Rights(index=True, train=True, show=True, policy="simulator")


def fill(engine: Engine, warehouse: Warehouse) -> Forgetting:
    """Write the whole log into the tables, as the sink does."""
    warehouse.migrate()
    forgetting = Forgetting(warehouse)
    forgetting.load()
    batch = Batch()
    for (topic, partition), records in engine.log.items():
        batch.take(topic, partition, records)
    write(batch, warehouse, forgetting, LOGS)
    return forgetting
