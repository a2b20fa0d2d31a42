"""Written: a file taken in again beyond every window of the steps changes nothing, and nothing is ever skipped."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from schemas.ids import digest
from schemas.seal import Keys
from schemas.topics import TWEETS
from streams import fold
from streams.fold import Sent
from streams.ingest import Known, Summary, ingest
from streams.kafka import ensure_topics
from streams.lines import IngestRefused
from streams.memory import Engine
from streams.policy import Policy
from streams.settings import Settings
from streams.topics import specs
from streams.topology import stages
from streams.vault import Vault
from streams.verify import verify
from streams.written import Written, log_of, written_file
from tests.harness import settings_for, write
from tests.ingest_ends import NOW_MS, as_lines, dump, in_memory, page, post
from tests.test_simulation import TUNING

POSTS = 400
WINDOW = 100  # ids a partition, in place of 100,000
WIDTH = Settings().partitions
NAMES = [digest(str(number)) for number in range(60)]


class Log:
    """The log in memory, as ingest sends to it; at `broken` records it is away."""

    def __init__(self, engine: Engine, broken: int = 10**9) -> None:
        self.engine, self.left = engine, broken

    async def send(self, records: Iterable[Sent]) -> None:
        for one in records:
            if self.left == 0:
                raise ConnectionError("the broker is away")
            self.left -= 1
            self.engine.append([one])


def taken(log: Log, keys: Keys, known: Known, posts: int = POSTS) -> Summary:
    lines = as_lines(dump(*(page(post(number)) for number in range(posts))))
    summary = asyncio.run(ingest(lines, "x", Settings(), log, keys, Policy.load(), lambda: NOW_MS, known=known))
    log.engine.run()
    return summary


def remembered(path: Path, log: str = "the log") -> Known:
    return in_memory()._replace(written=Written(path / "written.sqlite", log))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(fold, "SEEN_MAX", WINDOW)
    return Engine(stages(TUNING), Vault(tmp_path / "vault" / "keys"), WIDTH)


def faults(engine: Engine) -> list[str]:
    return verify(engine.log, engine.table, WIDTH, engine.keys).faults


def written_of(engine: Engine) -> int:
    return sum(len(engine.log[TWEETS.name, partition]) for partition in range(WIDTH))


def test_a_file_taken_in_again_beyond_the_windows_of_the_steps_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    keys, log = engine.keys, Log(engine)
    first = taken(log, keys, remembered(tmp_path))
    before = {place: len(records) for place, records in engine.log.items()}
    assert written_of(engine) == 2 * POSTS, "each post and its counts"
    assert max(before[TWEETS.name, partition] for partition in range(WIDTH)) > 2 * WINDOW
    again = taken(log, keys, remembered(tmp_path))
    assert {place: len(records) for place, records in engine.log.items()} == before
    assert (first.posts, first.repeated, again.posts, again.repeated) == (POSTS, 0, 0, POSTS)
    assert (again.engagements, again.unaccounted) == (0, 0)
    assert faults(engine) == []


def test_control_without_the_memory_names_carry_two_payloads(engine: Engine) -> None:
    keys, log = engine.keys, Log(engine)
    for _ in range(2):
        taken(log, keys, in_memory())
    assert any("carries two payloads" in fault for fault in faults(engine))


def test_what_the_log_did_not_acknowledge_is_written_when_it_is_taken_in_again(engine: Engine, tmp_path: Path) -> None:
    keys = engine.keys
    with pytest.raises(ConnectionError):
        taken(Log(engine, broken=30), keys, remembered(tmp_path))
    assert written_of(engine) == 30
    assert taken(Log(engine), keys, remembered(tmp_path)).posts == POSTS
    assert written_of(engine) == 30 + 2 * POSTS, "a crash repeats, and the steps absorb it"
    assert verify(engine.log, engine.table, WIDTH, engine.keys).visible[TWEETS.name] == 2 * POSTS


def test_a_log_that_was_made_anew_is_written_to_whole(engine: Engine, tmp_path: Path) -> None:
    taken(Log(engine), engine.keys, remembered(tmp_path, "the log"), 5)
    anew = Engine(stages(TUNING), engine.keys, WIDTH)
    assert taken(Log(anew), engine.keys, remembered(tmp_path, "another"), 5).posts == 5
    assert taken(Log(anew), engine.keys, remembered(tmp_path, "the log"), 5).posts == 5


@budget(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(NAMES), max_size=9), max_size=20), st.integers(2, 24))
def test_the_newest_half_is_known_for_certain_and_what_was_never_noted_never(
    batches: list[list[str]], ids_max: int
) -> None:
    memory, order = Written(None, "log", ids_max), dict[str, None]()
    for batch in batches:
        new = [name for name in dict.fromkeys(batch) if not memory.knows(name)]
        memory.note(batch)
        order.update(dict.fromkeys(new))
        assert all(memory.knows(name) for name in batch)
    noted = {name for batch in batches for name in batch}
    assert not any(memory.knows(name) for name in NAMES if name not in noted)
    kept = [name for name in NAMES if memory.knows(name)]
    assert len(kept) <= ids_max + 2 * 9, "a batch may go over its generation by itself"
    memory.close()


def test_old_ids_make_room_and_the_newer_half_stays() -> None:
    memory = Written(None, "log", 20)
    names = [digest("n", str(number)) for number in range(95)]
    for name in names:
        memory.note([name])
        newest = names[: names.index(name) + 1][-10:]
        assert all(map(memory.knows, newest))
    assert 10 <= sum(map(memory.knows, names)) <= 20


def test_processes_share_what_was_written(tmp_path: Path) -> None:
    one, other = (Written(tmp_path / "written.sqlite", "log", 4) for _ in range(2))
    for number in range(20):
        name = digest(str(number))
        assert not other.knows(name)
        (one, other)[number % 2].note([name])
        assert one.knows(name)
        assert other.knows(name)


def test_a_damaged_memory_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "written.sqlite").write_bytes(b"rotten" * 1000)
    with pytest.raises(IngestRefused, match="remove it"):
        Written(tmp_path / "written.sqlite", "log")


@pytest.mark.broker
def test_a_log_is_another_when_it_is_made_anew_or_begins_later(broker: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "written")
    kafka, topic = broker.settings, settings.physical(TWEETS.name)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    asyncio.run(ensure_topics(kafka, specs(settings)))
    engine = Engine(stages(TUNING), Vault(tmp_path / "vault" / "keys"), settings.partitions)
    taken(Log(engine), engine.keys, in_memory(), 9)
    sent = [
        Sent(TWEETS.name, part, raw.key, raw.value or b"", raw.headers, raw.timestamp, None)  # type: ignore[arg-type]
        for part in range(settings.partitions) for raw in engine.log[TWEETS.name, part]
    ]  # fmt: skip

    async def known() -> bool:
        here = await Known.at(settings, kafka)
        assert here.written is not None
        name = dict(sent[0].headers)["ce_id"].decode()
        found = here.written.knows(name)
        here.written.note([name])
        here.close()
        return found

    assert not asyncio.run(known())
    asyncio.run(write(settings, kafka, sent))
    assert asyncio.run(known()), "it grows, and is the same log"
    assert written_file(settings.data).exists()
    admin.delete_records([TopicPartition(topic, sent[0].partition, 1)])[
        TopicPartition(topic, sent[0].partition, 1)
    ].result(20)
    assert not asyncio.run(known()), "retention took records, which may come in again"
    before = asyncio.run(log_of(settings, kafka))
    admin.delete_topics([topic])[topic].result(20)
    asyncio.run(ensure_topics(kafka, specs(settings)))
    assert asyncio.run(log_of(settings, kafka)).split("/")[2] != before.split("/")[2]
    assert not asyncio.run(known())
