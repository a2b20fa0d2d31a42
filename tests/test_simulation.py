"""Two thousand seeded lives of the whole topology, each with crashes, zombies and poison, each judged by its log alone.

XINFLUENCER_SEEDS says how many (2000), XINFLUENCER_SEED runs one. The negative controls break delivery on purpose: the
same judge must see each of them, and for the right reason, or its silence about the rest would mean nothing.
"""

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from agents.batching import Limits
from agents.graph import Limits as Measuring
from agents.metadata import COUNTED_HERE
from schemas import envelope, facts, learned, seal
from schemas import events as e
from schemas import posts as ps
from schemas import topics as t
from schemas.envelope import Origin, Refused
from schemas.ids import digest
from schemas.seal import Unpunctured
from streams.fold import Fold, Raw, Sent, Stage
from streams.memory import NO_FAULTS, Engine, Faults, Logged
from streams.records import outside, tick
from streams.snapshots import state_hash
from streams.topology import Tuning, stages
from streams.verify import verify
from tests.feeds import worded

SEEDS = int(os.environ.get("XINFLUENCER_SEEDS", "2000"))
PROCESSES = 2
FAULTS = Faults(0.06, 0.06, 0.06, 0.06, 0.06, 0.3, snapshot=0.3)
POSTS = 7
T0_MS = 1_700_000_000_000
TUNING = Tuning(
    ages_ms=(10_000, 50_000),
    margin_min=0.05,
    measuring=Measuring(every_ms=20_000),
    limits=Limits(pairs_max=4, pairs_min=1, age_ms=10_000),
)
RIGHTS = facts.Rights(index=True, train=True, show=True, policy="test")
FOLD_REASONS = {
    "bad-header", "bad-id", "bad-json", "bad-origin", "bad-shape", "bad-time", "id-conflict", "no-body", "no-envelope",
    "not-sealed", "too-large", "unknown-type", "unknown-version", "wrong-topic",
}  # fmt: skip
BASELINE = facts.Measured(
    pairs=40,
    accuracy=0.5,
    margin=0.0,
    safety_margin=1.0,
    safety_preferred=0.9,
    neutral_nats=3.0,
    empty_rate=0.0,
    repetition_rate=0.1,
    mean_tokens=20.0,
)


class Keyring(Unpunctured):
    """Keys in memory, the same in every run."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}

    def get(self, owner: str) -> bytes | None:
        return self.keys.get(owner)

    def make(self, owner: str) -> bytes:
        return self.keys.setdefault(owner, hashlib.sha512(owner.encode()).digest())


# ---- what comes from outside ----------------------------------------------------------------------------------------


class Feed:
    """Everything that sources, people, the server, the trainer and an operator say in one life, drawn from one seed."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(f"feed {seed}")
        self.letters: dict[str, str] = {}  # place -> reason that its dead letter must give
        self.said: list[tuple[facts.Event, str]] = []
        self.source = self.rng.choice(("x", "bluesky"))  # the second gives single reactions and no counts
        self.versions = [digest("version", str(i)) * 2 for i in range(4)]

    def say(self, event: facts.Event, source: str = "/sources/x") -> None:
        self.said.append((event, source))

    def records(self) -> list[Sent]:
        """Name and seal what was said; some of it twice, some of it late."""
        out = []
        for at, (event, source) in enumerate(self.said):
            record = outside(event, source, T0_MS + at * 100, self.engine.width, self.engine.keys)
            out.append(record)
            if self.rng.random() < 0.12:
                out.insert(self.rng.randrange(len(out)) if self.rng.random() < 0.5 else len(out), record)
        self.said = []
        return out

    def posts(self) -> None:
        rng, seen = self.rng, []
        for i in range(POSTS):
            name, owner, parent = f"x:{i}", f"x:@{rng.randrange(3)}", rng.choice(seen[:2]) if i > 1 else None
            values: dict[str, Any] = {
                "post": name,
                "owner": owner,
                "source": self.source,
                "claimed_ms": T0_MS + i * 60_000 + (2**40 if rng.random() < 0.05 else 0),
                "parent": parent,
                "quoted": rng.choice(seen) if seen and rng.random() < 0.1 else None,
                "raw_sha256": "0" * 64,
                "rights": RIGHTS.model_copy(update={"train": rng.random() < 0.9}),
                "mentions": ("x:@9",) if rng.random() < 0.2 else (),
                "reposted": "x:0" if rng.random() < 0.05 else None,
                "author": facts.AuthorFacts(followers=9, created_ms=T0_MS - 2**36) if rng.random() < 0.5 else None,
            }
            seen.append(name)
            events: list[facts.Event] = [
                ps.PostObserved(**values, content=facts.PostContent(text=f"post {i} says a few words"))
            ]
            if rng.random() < 0.2:
                words = facts.PostContent(text=f"post {i} says it better")
                named = f"{name}v2" if rng.random() < 0.5 else None
                events.append(ps.PostEdited(**values, revision=2, named=named, content=words))
            for _ in range(0 if self.source in COUNTED_HERE else rng.choice((0, 1, 1, 2))):
                likes, views = rng.randrange(60), rng.choice((None, 500, 1000))
                events.append(
                    ps.EngagementObserved(
                        post=name,
                        owner=owner,
                        source="x",
                        parent=parent,
                        likes=likes,
                        views=views,
                        rights=RIGHTS,
                        claimed_ms=values["claimed_ms"],
                    )
                )
            if rng.random() < 0.12:
                events.insert(rng.randrange(len(events)), ps.PostDeleted(post=name, owner=owner, source="x"))
            for event in events:
                self.say(worded(event))

    def reactions(self, count: int) -> None:
        """Let people like, repost, follow and block, and undo it, before they did it or after."""
        rng = self.rng
        for _ in range(count):
            kind = rng.choice(("like", "like", "like", "repost", "follow", "block"))
            who, act = f"x:@{rng.randrange(4)}", f"a:{rng.randrange(10**6)}"
            done = ps.ReactionObserved(
                act=act, owner=who, source=self.source, kind=kind, target=f"x:@{rng.randrange(4)}",
                post=f"x:{rng.randrange(POSTS)}" if kind in ("like", "repost") else None, rights=RIGHTS,
            )  # fmt: skip
            undone = ps.ReactionRetracted(act=act, owner=who, source=self.source)
            self.said.extend((one, "/sources/x") for one in rng.choice(((done,), (done, undone), (undone, done))))

    def accounts(self) -> None:
        """Let authors be hidden and shown, and say what they allow."""
        rng = self.rng
        for _ in range(rng.randrange(3)):
            who, source = f"x:@{rng.randrange(3)}", self.source
            self.say(
                rng.choice(
                    (
                        ps.AuthorHidden(owner=who, source=source, reason="suspended"),
                        ps.AuthorShown(owner=who, source=source),
                        ps.IntentDeclared(owner=who, source=source, train=rng.choice((True, False, None))),
                    )
                )
            )

    def answers(self) -> None:
        rng = self.rng
        for i in range(2):
            items = tuple(f"i:{i}-{k}" for k in range(rng.choice((1, 2, 2, 3))))
            texts = tuple(f"answer {k} to question {i}" for k in range(len(items) - (rng.random() < 0.1)))
            turn = facts.Turn(role="user", content=f"question {i}?")
            self.say(
                worded(
                    e.AnswerGiven(
                        prompt=f"q:{i}",
                        owner=f"u:{i}",
                        items=items,
                        release=0,
                        version=self.versions[0],
                        seed=i,
                        rights=RIGHTS,
                        prompt_hash="0" * 64,
                        words=(),
                        content=facts.AnswerContent(messages=(turn,), texts=texts),
                    )
                ),
                "/server",
            )

    def feedback(self, count: int) -> None:
        rng = self.rng
        subjects = [f"q:{i}/i:{i}-{k}" for i in range(2) for k in range(2)] + ["x:0/x:2", "x:1/x:3", "x:0/x:4"]
        for _ in range(count):
            subject = rng.choice(subjects)
            kind = rng.choice(("thumb", "thumb", "stars", "choice", "report"))
            other = rng.choice([one for one in subjects if one != subject]) if kind == "choice" else None
            name, rater = f"f:{rng.randrange(10**6)}", f"r:{rng.randrange(3)}"
            value = {"thumb": rng.choice((-1, 1)), "stars": rng.randrange(6)}.get(kind, 1)
            given = e.FeedbackGiven(feedback=name, subject=subject, rater=rater, kind=kind, value=value, other=other)
            self.say(given, "/people")
            if rng.random() < 0.15:
                self.say(e.FeedbackRetracted(feedback=name, subject=subject, rater=rater), "/people")

    def candidates(self) -> None:
        rng = self.rng
        base = {"base": self.versions[0], "base_name": "base"}
        self.say(learned.ModelTrained(version=self.versions[0], **base), "/trainer")
        for version in self.versions[1:3]:
            change = {"accuracy": 0.7, "margin": 0.2} if rng.random() < 0.7 else {"accuracy": 0.2, "margin": -0.2}
            measured = BASELINE.model_copy(update=change)
            self.say(
                learned.ModelTrained(version=version, adapter=version, **base, measured=measured, baseline=BASELINE),
                "/trainer",
            )
        for _ in range(rng.randrange(4)):
            version = rng.choice(self.versions)
            what = rng.choice(("release", "roll-back", "retract"))
            self.say(
                learned.ReleaseCommanded(command=what, version=version, by="olga", reason=f"{rng.random()}"),
                "/operator",
            )

    def poison(self, count: int) -> None:
        """Put records into the log that nobody can use; each must get one dead letter with the right reason."""
        rng, log = self.rng, self.engine.log
        places = [place for place in log if t.BY_NAME[place[0]].outside]
        for _ in range(count):
            topic, partition = rng.choice(places)
            records = log[topic, partition]
            sound = [raw for raw in records if f"{topic}/{partition}/{raw.offset}" not in self.letters]
            reason, value, headers, time_ms = self._poisoned(rng, topic, rng.choice(sound) if sound else None)
            self.letters[f"{topic}/{partition}/{len(records)}"] = reason
            records.append(Logged(len(records), time_ms, None, value, headers))

    def _poisoned(self, rng: random.Random, topic: str, like: Logged | None) -> tuple[str, bytes | None, Any, int]:
        """Spoil a record in one of many ways: (reason, value, headers, time)."""
        if like is None or rng.random() < 0.1:
            return "no-envelope", rng.randbytes(rng.randrange(40)), [], T0_MS
        head, value = dict(like.headers), like.value or b""
        name = digest("poison", str(rng.random())).encode()
        fresh = {**head, "ce_id": name}
        ways: list[tuple[str, bytes | None, dict[str, bytes | None], int]] = [
            ("no-envelope", value, {**head, "ce_id": None}, T0_MS),
            ("bad-json", value[: rng.randrange(len(value))], fresh, T0_MS),
            ("bad-shape", b'{"post": 1}', fresh, T0_MS),
            ("unknown-version", value, {**fresh, "ce_type": head["ce_type"][:-1] + b"7"}, T0_MS),
            ("unknown-type", value, {**fresh, "ce_type": b"com.example.Else.v1"}, T0_MS),
            ("wrong-topic", value, {**fresh, "ce_type": b"xinfluencer.PairWithdrawn.v1"}, T0_MS),
            ("bad-origin", value, {**fresh, "ce_origin": b"a/b/c"}, T0_MS),
            ("bad-header", value, {**fresh, "ce_id": b"\xff\xfe"}, T0_MS),
            ("bad-time", value, fresh, -5),
            ("no-body", None, fresh, T0_MS),
            ("id-conflict", value.replace(b"{", b'{ "zzz": 1, ', 1), head, T0_MS),
        ]
        if b'"content":"v1.' in value:
            start = value.index(b'"content":"v1.')
            ways.append(("not-sealed", value[:start] + OPEN_WORDS[topic] + b"}", fresh, T0_MS))
        reason, spoiled, headers, time_ms = rng.choice(ways)
        return reason, spoiled, list(headers.items()), time_ms


OPEN_WORDS = {
    "tweets": b'"content":{"text":"in the open"}',
    "answers": b'"content":{"messages":[],"texts":["in the open"]}',
}


# ---- one life -------------------------------------------------------------------------------------------------------


@dataclass
class Life:
    """What was found of one seed; picklable, so that processes can share the work."""

    seed: int
    faults: list[str]
    crashes: Counter[str]
    visible: Counter[str]
    written_by: Counter[str]
    kinds: Counter[str]
    refused: Counter[str]
    log_sha256: str


def live(seed: int, faults: Faults = FAULTS, engine_class: type[Engine] = Engine) -> Life:
    """Run one seed to its end and judge it."""
    rng = random.Random(f"life {seed}")
    engine = engine_class(stages(TUNING), Keyring(), rng.choice((1, 2, 2, 3)), seed, faults)
    feed = Feed(engine, seed)
    feed.posts()
    feed.answers()
    engine.append(feed.records())
    feed.poison(2)
    engine.run()
    feed.feedback(8)
    feed.reactions(6)
    feed.accounts()
    feed.candidates()
    if rng.random() < 0.3:
        feed.say(ps.AuthorErased(owner="x:@1", source="x"))
    records = feed.records()
    late = records[: len(records) // 2]
    rng.shuffle(late)
    engine.append(late)
    feed.poison(2)
    engine.append(records[len(late) :])
    for after_ms in (15_000, 30_000, 60_000):
        engine.append([tick(t.INTERACTIONS, 0, T0_MS + after_ms)])
        engine.append([tick(t.SIGNALS, p, T0_MS + after_ms) for p in range(engine.width)])
        engine.run()
        feed.feedback(1)
        feed.reactions(1)
        if after_ms == 30_000:
            feed.say(ps.PostDeleted(post="x:3", owner="x:@0", source="x"))
        engine.append(feed.records())
    engine.run()
    engine.append([tick(t.PREFERENCES, 0, T0_MS + 100_000)])
    engine.run()
    found, visible = judge(engine, feed.letters)
    if seed % 8 == 0 and not found:
        found = after_a_restart(engine, visible)
    written_by: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for records_ in engine.log.values():
        for raw in records_:
            head = dict(raw.headers)
            written_by[(head.get("ce_source") or b"").decode().removeprefix("/stages/")] += 1
            kinds[(head.get("ce_type") or b"").decode().removeprefix("xinfluencer.").partition(".")[0]] += 1
    for raw in engine.log["dead-letters", 0]:
        refused[letter_of(raw).reason] += 1
    whole = hashlib.sha256(repr(sorted(engine.log.items())).encode()).hexdigest()
    return Life(seed, found, Counter(engine.counts), visible, written_by, kinds, refused, whole)


def letter_of(raw: Raw) -> e.RecordRefused:
    event, _ = envelope.parse(e.RecordRefused, raw.value)
    return event


def judge(engine: Engine, letters: dict[str, str]) -> tuple[list[str], Counter[str]]:
    """Judge by the log: the oracle of operators, then what only a test knows: what was put in, and how readers read."""
    verdict = verify(engine.log, engine.table, engine.width, engine.keys)
    found = list(verdict.faults)
    for (stage, partition), fold in engine.folds.items():
        if state_hash(fold.memory) != verdict.states[stage, partition]:
            found.append(f"state of {stage}/{partition} is not that of a clean rebuild")
    seen = {topic.name: read_as_a_consumer(engine, topic) for topic in t.TOPICS if not topic.outside}
    for topic, ids in seen.items():
        found.extend(f"{topic}: a consumer sees {name} {n} times" for name, n in Counter(ids).items() if n > 1)
        if len(ids) != verdict.visible[topic]:
            found.append(f"{topic}: a consumer sees {len(ids)} records, the log holds {verdict.visible[topic]}")
    by_place: dict[str, str] = {}
    for raw in engine.log["dead-letters", 0]:
        letter = letter_of(raw)
        if letter.reason in FOLD_REASONS and by_place.setdefault(letter.place, letter.reason) != letter.reason:
            found.append(f"{letter.place} was refused for two reasons")
    if by_place != letters:
        wrong = sorted(set(by_place.items()) ^ set(letters.items()))
        found.append(f"dead letters and poison differ: {wrong[:4]}")
    return found, Counter(verdict.visible)


def read_as_a_consumer(engine: Engine, topic: t.Topic) -> list[str]:
    """List the ids that a reader sees who remembers, for each origin, the highest mark, and nothing else."""
    ids = []
    for partition in range(t.partitions(topic, engine.width)):
        marks: dict[tuple[str, str, int], tuple[int, int]] = {}
        ticks = set()
        for raw in engine.log[topic.name, partition]:
            try:
                _, name, origin = envelope.read_headers(raw.headers)
            except Refused:
                continue
            if origin is None:
                if name in ticks:
                    continue
                ticks.add(name)
            else:
                mark = (origin.offset, origin.ordinal)
                if mark <= marks.get(origin[:3], (-1, -1)):
                    continue
                marks[origin[:3]] = mark
            ids.append(name)
    return ids


def after_a_restart(engine: Engine, visible: Counter[str]) -> list[str]:
    """Start every fold again from what was kept: a reader must see nothing new."""
    engine.faults = NO_FAULTS
    for fold in list(engine.folds.values()):
        engine._assign(fold.stage, fold.partition)
    engine.run()
    verdict = verify(engine.log, engine.table, engine.width, engine.keys)
    seen = Counter(verdict.visible)
    return verdict.faults + ([] if seen == visible else [f"a restart showed {seen - visible}"])


def again(seed: int) -> str:
    """Write the line that runs one seed again."""
    return f"XINFLUENCER_SEED={seed} python -m pytest tests/test_simulation.py -k every_life"


# ---- the promise ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_life_ends_as_if_nothing_had_gone_wrong() -> None:
    only = os.environ.get("XINFLUENCER_SEED")
    seeds = [int(only)] if only else list(range(SEEDS))
    crashes: Counter[str] = Counter()
    visible: Counter[str] = Counter()
    written_by: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for life in pool.map(live, seeds, chunksize=20):
            assert not life.faults, f"{again(life.seed)}\n" + "\n".join(life.faults[:12])
            crashes += life.crashes
            visible += life.visible
            written_by += life.written_by
            kinds += life.kinds
            refused += life.refused
    if len(seeds) < 200:
        return
    chances = {field.name for field in fields(Faults)} - {"snapshot"}
    assert set(crashes) == chances, "a fault of the engine never happened"
    assert not [topic.name for topic in t.TOPICS if not visible[topic.name]], "a topic stayed empty"
    assert not [stage.name for stage in stages() if not written_by[stage.name]], "a stage never said anything"
    assert set(t.KINDS) - set(kinds) == {"CopyErased"}, "something was never said"  # by a store beside the log
    steps = {"bad-feedback", "bad-answer", "future-dated", "too-late", "subject-withdrawn"}
    assert set(refused) == (FOLD_REASONS - {"bad-id", "too-large"}) | steps, "a reason was never given"


def test_without_faults_nothing_is_written_twice() -> None:
    for seed in range(5):
        life = live(seed, NO_FAULTS)
        assert life.faults == []
        assert life.crashes == Counter()


def test_a_life_is_the_same_in_every_process() -> None:
    code = "import test_simulation as s; print([s.live(n).log_sha256 for n in range(3)])"
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, str(Path(here).parent)])
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert live(0).log_sha256 in printed.pop()
    assert live(0).log_sha256 != live(1).log_sha256


class Forgetful(Keyring):
    """Keys that can be destroyed; `kept` says that the oracle may still look."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[str] = set()
        self.kept = False

    def get(self, owner: str) -> bytes | None:
        return None if owner in self.gone and not self.kept else super().get(owner)


class Forgets(Engine):
    """Destroys a key before the receipt is sent, as the shell does; a crash may come in between."""

    def append(self, records: Any) -> None:
        records = list(records)
        self.keys.gone |= {one.event.owner for one in records if isinstance(one.event, e.AuthorForgotten)}
        super().append(records)


def test_a_crash_after_a_key_was_destroyed_doubles_no_receipt_and_loses_no_withdrawal() -> None:
    crashes = 0
    for seed in range(60):
        engine = Forgets(stages(TUNING), Forgetful(), 1, seed, replace(FAULTS, die_in_send=0.3, snapshot=0.2))
        feed = Feed(engine, seed)
        feed.posts()
        for owner in ("x:@0", "x:@1", "x:@2"):
            feed.say(ps.AuthorErased(owner=owner, source="x"))
        engine.append(feed.records())
        engine.run()
        crashes += sum(engine.counts.values())
        engine.keys.kept = True
        verdict = verify(engine.log, engine.table, 1, engine.keys)
        # What was noted of a post between the crash and its erasure may be missing, and nothing else.
        assert all(fault.endswith("is missing") for fault in verdict.faults), (seed, verdict.faults)
        clean = Engine(stages(TUNING), engine.keys, 1)
        clean.log["tweets", 0].extend(engine.log["tweets", 0])
        clean.run()
        receipts = clean.log["erasures", 0]
        assert sum(dict(raw.headers)["ce_type"] == b"xinfluencer.AuthorForgotten.v1" for raw in receipts) == 3
        assert verdict.visible["erasures"] == len(receipts), f"seed {seed}"
        withdrawn = [withdrawals(one.log["signals", 0]) for one in (engine, clean)]
        assert withdrawn[0] == withdrawn[1]
        assert withdrawn[0]
    assert crashes > 60


def withdrawals(records: list[Logged]) -> dict[str, bytes | None]:
    """Give the withdrawals of a partition by id."""
    found = {}
    for raw in records:
        kind, name, _ = envelope.read_headers(raw.headers)
        if kind is e.SubjectWithdrawn:
            found[name] = raw.value
    return found


# ---- negative controls ----------------------------------------------------------------------------------------------


class Wrong(Engine):
    """An engine whose folds are of another class."""

    fold_class: type[Fold] = Fold

    def _assign(self, stage: Stage, partition: int) -> Fold:
        fold = super()._assign(stage, partition)
        fold.__class__ = self.fold_class
        return fold


def renamed(sent: list[Sent], name: Callable[[int, Sent], str]) -> list[Sent]:
    out = []
    for index, one in enumerate(sent):
        headers = [(key, name(index, one).encode() if key == "ce_id" else value) for key, value in one.headers]
        out.append(one._replace(headers=headers))
    return out


class RandomIds(Wrong):
    """Outputs are named by chance."""

    class fold_class(Fold):  # noqa: N801
        def take(self, raws: Any) -> list[Sent]:
            return renamed(super().take(raws), lambda index, one: os.urandom(16).hex())


class IdsPerChunk(Wrong):
    """Outputs are named by the chunk that they came from, and a retry may cut other chunks."""

    class fold_class(Fold):  # noqa: N801
        def take(self, raws: Any) -> list[Sent]:
            place = f"{self.stage.name}/{self.partition}/{raws[0].offset}"
            return renamed(super().take(raws), lambda index, one: digest(place, str(index)))


class OriginsPerChunk(Wrong):
    """Origins name the first record of the chunk, so a reader takes a retry for something new or skips what is new."""

    class fold_class(Fold):  # noqa: N801
        def take(self, raws: Any) -> list[Sent]:
            out = []
            for index, one in enumerate(super().take(raws)):
                origin = Origin(self.stage.name, self.stage.reads.name, self.partition, raws[0].offset, index)
                headers = [(key, origin.text().encode() if key == "ce_origin" else value) for key, value in one.headers]
                out.append(one._replace(headers=headers))
            return out


class NoDedupe(Wrong):
    """Whatever arrives is new."""

    class fold_class(Fold):  # noqa: N801
        def _known(self, record: Any, value: bytes) -> bool:
            return False


class SkipsAChunk(Engine):
    """The agent raises, the runtime acknowledges the event all the same."""

    def _turn(self, fold: Fold) -> None:
        if self.random.random() < 0.05:
            fold.memory.next = min(fold.memory.next + 3, len(self._input(fold)))
            return
        super()._turn(fold)


class DoesNotAwait(Engine):
    """Sends are fired and forgotten: some fail, and the stage goes on."""

    sending = False

    def _turn(self, fold: Fold) -> None:
        self.sending = True
        super()._turn(fold)
        self.sending = False

    def append(self, records: Any) -> None:
        records = list(records)
        if self.sending and self.random.random() < 0.05:
            return
        super().append(records)


class TrustsTheCommit(Engine):
    """The group's offset ran ahead of the snapshot, and a new owner starts there with an empty state."""

    def _assign(self, stage: Stage, partition: int) -> Fold:
        before = self.folds.get((stage.name, partition))
        fold = super()._assign(stage, partition)
        if before is not None:
            fold.memory = Fold(stage, partition, self.width, self.keys).memory
            fold.memory.next = before.memory.next
        return fold


class SnapshotsBeforeSending(Engine):
    """What was applied is kept before what follows from it is sent."""

    def _dies(self, point: str, fold: Fold) -> bool:
        if point == "die_before_send" and self.random.random() < 0.3:
            before, fold.memory.next = fold.memory.next, fold.memory.next + 1
            self._keep(fold)
            fold.memory.next = before
        return super()._dies(point, fold)

    def _turn(self, fold: Fold) -> None:
        self.one_at_a_time = True
        super()._turn(fold)

    def _input(self, fold: Fold) -> list[Logged]:
        return super()._input(fold)[: fold.memory.next + 1]


class SendsInParallel(Engine):
    """Several batches of one partition are on their way at once; the process dies when a middle one has failed."""

    def _send_in_part(self, sent: list[Sent]) -> None:
        for place in sorted({(one.topic, one.partition) for one in sent}):
            batch = [one for one in sent if (one.topic, one.partition) == place]
            hole = self.random.randrange(len(batch))
            self.append(batch[:hole] + batch[hole + 1 :])


class ForgetsWhatItApplied(Wrong):
    """A stage's state is kept, but not what it had applied."""

    def _keep(self, fold: Fold) -> None:
        applied, fold.memory.applied = fold.memory.applied, {}
        super()._keep(fold)
        fold.memory.applied = applied


CONTROLS = {
    RandomIds: ["follows from no input", "is missing"],
    IdsPerChunk: ["follows from no input", "is missing"],
    OriginsPerChunk: ["arrived behind a later output", "a consumer sees"],
    NoDedupe: ["follows from no input", "state of"],
    SkipsAChunk: ["is missing", "state of"],
    DoesNotAwait: ["is missing"],
    TrustsTheCommit: ["state of", "is missing"],
    SnapshotsBeforeSending: ["is missing"],
    SendsInParallel: ["arrived behind a later output of the same origin: a reader skips it"],
    ForgetsWhatItApplied: ["follows from no input"],
}
CONTROL_SEEDS = 25


@pytest.mark.parametrize("engine_class", CONTROLS, ids=lambda engine_class: engine_class.__name__)
def test_a_broken_delivery_is_seen_for_what_it_is(engine_class: type[Engine]) -> None:
    lives = [live(seed, FAULTS, engine_class) for seed in range(CONTROL_SEEDS)]
    faults = [fault for life in lives for fault in life.faults]
    for expected in CONTROLS[engine_class]:
        assert any(expected in fault for fault in faults), Counter(fault.split()[-1] for fault in faults)
    caught = sum(bool(life.faults) for life in lives)
    assert caught * 5 >= CONTROL_SEEDS, f"{caught} of {CONTROL_SEEDS}"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda log: log["rewards", 0].pop(), "is missing"),
        (
            lambda log: log["preferences", 0].append(replace(log["preferences", 0][0], value=b"{}")),
            "carries two payloads",
        ),
        (lambda log: setattr(log["preferences", 0][0], "value", b"{}"), "differs from what its input gives"),
        (lambda log: log["dead-letters", 0].clear(), "dead letters and poison differ"),
        (lambda log: log["models", 0].reverse(), "arrived behind a later output"),
    ],
)
def test_a_log_that_was_tampered_with_is_seen(damage: Callable[[Any], Any], expected: str) -> None:
    def found(spoil: Callable[[Any], Any]) -> list[str]:
        engine = Engine(stages(TUNING), Keyring(), 1, 3)
        feed = Feed(engine, 3)
        for say in (feed.posts, feed.answers, lambda: feed.feedback(8), feed.candidates):
            say()
        engine.append(feed.records())
        feed.poison(4)
        engine.run()
        for after_ms in (15_000, 60_000, 70_000):
            engine.append([tick(t.SIGNALS, 0, T0_MS + after_ms)])
            engine.run()
        spoil(engine.log)
        return judge(engine, feed.letters)[0]

    assert found(lambda log: None) == []
    assert any(expected in fault for fault in found(damage))


def test_words_cannot_be_read_back_from_what_a_life_leaves_in_its_inner_topics() -> None:
    engine = Engine(stages(TUNING), Keyring(), 2, 1)
    feed = Feed(engine, 1)
    feed.posts()
    feed.answers()
    engine.append(feed.records())
    engine.run()
    data = {name: b"".join(raw.value or b"" for raw in log) for name, log in engine.log.items()}
    assert not [name for name, held in data.items() if b"a few words" in held or b"question" in held]
    raw = next(raw for raw in engine.log["tweets", 0] if b"content" in (raw.value or b""))
    record = envelope.decode("tweets", 0, raw.offset, raw.timestamp, raw.headers, raw.value)
    assert "a few words" in seal.unseal(record.event, record.id, engine.keys).content.text


def test_destroying_every_author_changes_nothing_of_what_follows_from_the_log() -> None:
    engine = Engine(stages(TUNING), Keyring(), 2, 5)
    feed = Feed(engine, 5)
    feed.posts()
    feed.answers()
    engine.append(feed.records())
    engine.run()
    for owner in [name for name in engine.keys.keys if not name.startswith("refused:")]:
        del engine.keys.keys[owner]
    assert verify(engine.log, engine.table, 2, engine.keys).faults == []
