"""What no other test saw: mistakes of tests/mutants.py that survived, or would have, until these were written.

Mistakes in the shell, the transport and the sender have a file of their own, tests/test_shell.py.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents import pairing
from schemas import envelope, seal
from schemas.envelope import Origin
from schemas.events import FeedbackGiven, FeedbackNoted, PromptNoted, RecordRefused, RewardWithdrawn
from schemas.facts import Event, Where
from schemas.ids import digest
from schemas.learned import BatchClosed, ModelTrained, PairFormed, PairWithdrawn
from schemas.topics import PREFERENCES, SIGNALS
from streams import snapshots
from streams.cursors import CursorRefused, Cursors
from streams.dataset import BatchBroken, Dataset, held_back, load, window
from streams.fold import Fold, Sent
from streams.memory import Engine
from streams.records import outside, tick
from streams.settings import Settings
from streams.snapshots import Bound, SnapshotFolder
from streams.topology import Tuning, stages
from streams.trainer import Trainer
from tests.bare_shell import KAFKA, STAGES, ZERO, Keys, logged, said_by, thumb
from tests.folding import RIGHTS, T0_MS, WHERE, reward, run

# ---- the fold -------------------------------------------------------------------------------------------------------


def caused(event: Event, name: str, origin: Origin) -> Sent:
    """Make a record as a stage writes it."""
    sent = outside(event, f"/stages/{origin.stage}", T0_MS, 1, Keys(), name)
    return sent._replace(headers=envelope.headers(event, name, f"/stages/{origin.stage}", T0_MS, origin))


def prompts(fold: Fold) -> list[str]:
    return list(fold.memory.state.prompts)


def test_all_outputs_of_one_input_are_applied_and_none_twice() -> None:
    def noted(name: str, *place: int) -> Sent:
        event = PromptNoted(prompt=name, text_hash="b" * 64, where=WHERE, rights=RIGHTS)
        return caused(event, f"id-{name}", Origin("metadata", "tweets", *place))

    fold = Fold(STAGES["rewards"], 0, 1, Keys())
    first = [noted("a", 0, 7, 0), noted("b", 0, 7, 1), noted("c", 1, 3, 0), noted("d", 1, 3, 1)]
    again = [noted("b", 0, 7, 1), noted("e", 0, 8, 0), noted("d", 1, 3, 1), noted("f", 1, 3, 2)]
    fold.take(logged([*first, *first, *again]))
    assert prompts(fold) == ["a", "b", "c", "d", "e", "f"]
    assert fold.memory.ignored == 6


def test_an_origin_that_an_outsider_wrote_hides_nothing() -> None:
    fold = Fold(STAGES["intake"], 0, 1, Keys())
    forged = caused(thumb(0), "id-0", Origin("server", "feedback", 0, 10**9, 0))
    honest = [caused(thumb(n), f"id-{n}", Origin("server", "feedback", 0, n, 0)) for n in (1, 2)]
    said = fold.take(logged([forged, *honest]))
    assert [one.event.feedback for one in said if isinstance(one.event, FeedbackNoted)] == ["f:0", "f:1", "f:2"]


def test_a_duplicate_within_the_stated_window_is_applied_once() -> None:
    fold = Fold(STAGES["intake"], 0, 1, Keys())
    records = [outside(thumb(number), "/people", T0_MS, 1, Keys()) for number in range(1_000)]
    assert len(fold.take(logged(records))) == 1_000
    assert fold.take(logged(records)) == []
    assert fold.memory.ignored == 1_000


def test_dead_letters_leave_in_the_order_of_their_causes_whoever_refused() -> None:
    """What the step refuses and what the fold refuses lie in one partition, where a reader skips what comes behind."""
    fold = Fold(STAGES["intake"], 0, 1, Keys())
    raws = logged(outside(thumb(n), "/people", T0_MS, 1, Keys()) for n in range(3))
    raws += logged([outside(thumb(3).model_copy(update={"value": 5}), "/people", T0_MS, 1, Keys())])
    raws[3].offset, raws[1].value = 3, b"{"
    letters = [one for one in fold.take(raws) if isinstance(one.event, RecordRefused)]
    assert [one.event.reason for one in letters if isinstance(one.event, RecordRefused)] == ["bad-json", "bad-feedback"]
    origins = [envelope.read_headers(one.headers)[2] for one in letters]
    assert [at.offset for at in origins if at is not None] == [1, 3]


def test_a_field_that_is_not_said_leaves_no_byte() -> None:
    assert b"null" not in envelope.body(thumb(1))
    assert b'"other"' not in envelope.body(thumb(1))


def test_the_half_of_a_key_that_makes_nonces_opens_nothing() -> None:
    key = bytes(range(64))
    token = seal.seal_bytes(key, b"words", b"aad")
    assert seal.open_bytes(key[:32] + bytes(32), token, b"aad") == b"words"
    with pytest.raises(envelope.Refused):
        seal.open_bytes(bytes(32) + key[32:], token, b"aad")


# ---- snapshots and cursors ------------------------------------------------------------------------------------------


class Died(BaseException):
    """A kill: nobody cleans up behind it."""


BOUND = Bound("intake", 1, 0, "cluster/feedback/1", 1)


def written(folder: SnapshotFolder, claim: int, at: int) -> None:
    fold = Fold(STAGES["intake"], 0, 1, Keys())
    fold.memory.next = at
    folder.write(fold, BOUND, claim)


def stands(folder: SnapshotFolder) -> int:
    memory, broken = folder.load(Fold(STAGES["intake"], 0, 1, Keys()), BOUND)
    assert broken == []
    return memory.next if memory is not None else 0


def killed_write(folder: SnapshotFolder, patch: pytest.MonkeyPatch, dies_at: int) -> bool:
    """Write the third snapshot and die at the so-manieth step of it; False if there are not so many."""
    claim = folder.claim(BOUND)
    for at in (1, 2):
        written(folder, claim, at)
    steps = 0

    def counted(right: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **more: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > dies_at:
                raise Died
            return right(*given, **more)

        return step

    def half_open(path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115 - closed by whom it is given to
        if mode != "wb":
            return file
        part = counted(file.write)

        def in_halves(data: bytes) -> None:
            part(data[: len(data) // 2])
            part(data[len(data) // 2 :])

        return closing(SimpleNamespace(write=in_halves, flush=file.flush, fileno=file.fileno, close=file.close))

    with patch.context() as patched:
        patched.setattr(snapshots, "open", half_open, raising=False)
        for name in ("link", "replace", "unlink", "fsync"):
            patched.setattr(os, name, counted(getattr(os, name)))
        try:
            written(folder, claim, 3)
        except Died:
            return True
    return False


def test_a_kill_at_any_step_of_a_write_leaves_the_new_snapshot_or_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for dies_at in range(99):
        folder = SnapshotFolder(tmp_path / str(dies_at))
        if not killed_write(folder, monkeypatch, dies_at):
            break
        found.append(stands(folder))
        written(SnapshotFolder(folder.folder), folder.claim(BOUND), 4)
        assert stands(folder) == 4, "the next owner goes on"
    assert stands(folder) == 3, "the last round was not disturbed"
    assert found == sorted(found)
    assert set(found) == {2, 3}
    assert len(found) >= 6, "it died at too few places"


def test_a_cursor_of_another_log_is_refused(tmp_path: Path) -> None:
    Cursors(tmp_path, "cluster/tweets/1").save("s", "7", None, T0_MS)
    with pytest.raises(CursorRefused, match="belongs to the log cluster/tweets/1, this is cluster/tweets/2"):
        Cursors(tmp_path, "cluster/tweets/2").load("s")


# ---- the trainer and its dataset ------------------------------------------------------------------------------------


class Announces:
    """Stands where the trainer's producer stands, and notes what is in which transaction."""

    def __init__(self) -> None:
        self.transactions: list[list[Any]] = []
        self.open = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self.transactions.append([])
        self.open = True
        yield
        self.open = False

    async def send_and_wait(self, topic: str, **what: Any) -> None:
        assert self.open
        self.transactions[-1].append(topic)

    async def send_offsets_to_transaction(self, offsets: Any, group: str) -> None:
        assert self.open
        self.transactions[-1].append((group, {tp.topic: at.offset for tp, at in offsets.items()}))


def test_a_version_and_the_end_of_its_batch_are_one_transaction(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    trainer = Trainer(settings, KAFKA, lambda name: None)
    event = ModelTrained(version="1" * 64, base=ZERO, base_name="base", adapter="1" * 64)

    async def publish() -> list[list[Any]]:
        trainer.producer = Announces()
        await trainer._publish(event, None)
        await trainer._publish(event, 7)
        await trainer._skip(9, "broken")
        return list(trainer.producer.transactions)

    candidates, alerts, done = settings.physical("candidates"), settings.physical("alerts"), settings.group("trainer")
    batches = settings.physical("batches")
    base, version, skipped = asyncio.run(publish())
    assert base == [candidates], "the base ends no batch"
    assert version == [candidates, (done, {batches: 8})]
    assert skipped == [alerts, (done, {batches: 10})]


@pytest.mark.parametrize("gone", ["p/a", "p/b"], ids=["the worse", "the better"])
def test_whichever_of_two_texts_is_gone_their_pair_is_withdrawn(gone: str) -> None:
    away = RewardWithdrawn(prompt="p", subject=gone, reason="post-deleted")
    pair, withdrawn = run(pairing.step, pairing.State(), reward("p/a", 0.1), reward("p/b", 0.7), away, margin_min=0.05)
    assert isinstance(pair, PairFormed)
    assert withdrawn == PairWithdrawn(pair=pair.pair, reason="post-deleted")


def batch(name: str, pairs: int) -> BatchClosed:
    """Make a batch of so many pairs that nobody looks into."""
    refs = tuple({"pair": digest(name, str(n)), "leaf": ZERO, "offset": n} for n in range(pairs))
    return BatchClosed.model_validate(
        {"batch": digest(name), "sequence": 0, "pairs": refs, "first_offset": 0, "last_offset": pairs, "root": ZERO,
         "closed_by": "count", "opened_ms": T0_MS, "closed_ms": T0_MS}
    )  # fmt: skip


def test_a_window_is_whole_batches_from_the_newest_back() -> None:
    batches = [batch(str(number), size) for number, size in enumerate((5, 4, 3, 2))]
    assert window(batches, 100) == batches
    assert window(batches, 9) == batches[1:]
    assert window(batches, 8) == batches[2:]
    assert window(batches, 1) == batches[3:], "one batch at least"
    assert window([], 9) == []


def test_a_pair_is_on_the_same_side_in_every_version() -> None:
    from models.rows import Row

    rows = [
        Row(id=digest("pair", str(n)), prompt=[{"role": "user", "content": "?"}], chosen="a", rejected="b", weight=1.0)
        for n in range(200)
    ]
    trained, held = Dataset(rows=rows).split()
    assert 20 <= len(held) <= 60
    assert sorted(row.id for row in trained + held) == sorted(row.id for row in rows)
    for some in (rows[1:], rows[3:90], rows[::-1]):
        later, examined = Dataset(rows=some).split()
        assert {row.id for row in later} <= {row.id for row in trained}
        assert {row.id for row in examined} <= {row.id for row in held}
    assert all(held_back(row.id) for row in held)


class LogReader:
    """Reads the log of a memory engine, as streams.reader reads Kafka's."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def records(self, topic: str, part: int = 0, first: int = 0, stop: int | None = None) -> AsyncIterator[Any]:
        for raw in self.engine.log[topic, part][first:stop]:
            yield raw

    async def ends(self, *topics: str) -> dict[tuple[str, int], int]:
        return {place: len(raws) for place, raws in self.engine.log.items() if place[0] in topics}

    async def at(self, places: Iterable[Where]) -> dict[tuple[str, int, int], Any]:
        return {
            (at.topic, at.partition, at.offset): self.engine.log[at.topic, at.partition][at.offset] for at in places
        }


@dataclass
class Closed:
    """A log with one closed batch, the whole topology run over it in memory."""

    engine: Engine
    batch: BatchClosed

    def load(self, batch: BatchClosed | None = None) -> Dataset:
        reader: Any = LogReader(self.engine)
        return asyncio.run(load(reader, [batch or self.batch], self.engine.keys))

    def pair_of(self, offset: int) -> PairFormed:
        raw = self.engine.log[PREFERENCES.name, 0][offset]
        return envelope.parse(PairFormed, raw.value)[0]

    def rewrite(self, pair: PairFormed, offset: int) -> None:
        """Put another pair in the place of one."""
        self.engine.log[PREFERENCES.name, 0][offset].value = envelope.body(pair)


@pytest.fixture
def closed() -> Closed:
    engine = Engine(stages(Tuning(ages_ms=(1_000,), margin_min=0.01)), Keys(), width=1)
    for number in range(9):
        prompt = said_by(f"x:{number}", "x:@asks")
        good, bad = (said_by(f"x:{number}{one}", f"x:@{one}", prompt.post) for one in ("good", "bad"))
        people = [
            FeedbackGiven(feedback=f"f:{number}{n}", subject=f"{prompt.post}/{one.post}", rater="r", kind="thumb",
                          value=value)
            for n, (one, value) in enumerate(((good, 1), (bad, -1)))
        ]  # fmt: skip
        engine.append(outside(one, "/sources/x", T0_MS, 1, engine.keys) for one in (prompt, good, bad, *people))
    engine.run()
    engine.append([tick(SIGNALS, 0, T0_MS + 60_000)])
    engine.run()
    engine.append([tick(PREFERENCES, 0, T0_MS + 10**8)])
    engine.run()
    (raw,) = engine.log["batches", 0]
    made = Closed(engine, envelope.parse(BatchClosed, raw.value)[0])
    assert len(made.batch.pairs) == 9
    return made


def test_a_closed_batch_is_read_back_as_it_was_said(closed: Closed) -> None:
    found = closed.load()
    assert (len(found.rows), found.withheld) == (9, {})
    assert all(row.chosen.endswith("good") and row.rejected.endswith("bad") for row in found.rows)


def test_a_pair_that_was_withdrawn_after_its_batch_closed_is_withheld(closed: Closed) -> None:
    name = closed.batch.pairs[0].pair
    engine = closed.engine
    engine.append([outside(PairWithdrawn(pair=name, reason="post-deleted"), "/test", T0_MS, 1, engine.keys)])
    found = closed.load()
    assert name not in {row.id for row in found.rows}
    assert (len(found.rows), found.withheld) == (8, {"withdrawn": 1})


def test_a_batch_that_is_not_what_was_closed_is_refused(closed: Closed) -> None:
    ref, other = closed.batch.pairs[:2]
    with pytest.raises(BatchBroken, match="do not give its root"):
        closed.load(closed.batch.model_copy(update={"pairs": closed.batch.pairs[:-1]}))
    pair = closed.pair_of(ref.offset)
    closed.rewrite(pair.model_copy(update={"weight": pair.weight / 2}), ref.offset)
    with pytest.raises(BatchBroken, match="is not the one that was closed"):
        closed.load()
    closed.rewrite(closed.pair_of(other.offset), ref.offset)
    with pytest.raises(BatchBroken, match="does not hold pair"):
        closed.load()
    closed.rewrite(pair, ref.offset)
    assert len(closed.load().rows) == 9
    at = pair.chosen.where
    engine = closed.engine
    raw = engine.log[at.topic, at.partition][at.offset]
    post = said_by(pair.chosen.subject.partition("/")[2], "x:@good", pair.prompt, "other words than were judged")
    record = envelope.decode(at.topic, at.partition, at.offset, T0_MS, raw.headers, raw.value)
    raw.value = envelope.body(seal.seal(post, record.id, engine.keys))
    with pytest.raises(BatchBroken, match="another hash than the pair says"):
        closed.load()
