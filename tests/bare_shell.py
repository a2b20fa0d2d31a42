"""Bare shell: the worker's shell with its disk, its vault and its folds, and no broker.

Where the sender would stand, a stand-in notes what is on disk at the moment it is asked to send.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faust.types import TP

from schemas.events import AuthorForgotten, FeedbackGiven, PostForgotten
from schemas.facts import PostContent
from schemas.ids import digest
from schemas.posts import PostObserved
from schemas.seal import Unpunctured, post_name
from streams.fold import Fold, Sent, Stage
from streams.kafka import KafkaSettings
from streams.memory import Logged
from streams.records import outside
from streams.settings import Settings
from streams.shell import Shell
from streams.topology import stages
from streams.transport import Chunk
from streams.vault import Vault
from tests.feeds import worded
from tests.folding import RIGHTS, T0_MS

STAGES = {stage.name: stage for stage in stages()}
KAFKA = KafkaSettings(bootstrap="127.0.0.1:1")  # nobody is asked
ZERO = "0" * 64


class Keys(Unpunctured):
    """Keys in memory that last."""

    def get(self, owner: str) -> bytes | None:
        return (digest(owner) * 2).encode()

    make = get


def logged(records: Iterable[Sent]) -> list[Logged]:
    """Lay records in a partition, from offset 0."""
    return [Logged(at, one.time_ms, one.key, one.value, list(one.headers)) for at, one in enumerate(records)]


def said_by(name: str, owner: str, parent: str | None = None, text: str = "five words are in this") -> PostObserved:
    post = PostObserved(
        post=name, owner=owner, source="x", parent=parent, raw_sha256=ZERO, rights=RIGHTS,
        content=PostContent(text=f"{text}, says {name}"),
    )  # fmt: skip
    return worded(post)  # type: ignore[return-value]


def thumb(number: int) -> FeedbackGiven:
    return FeedbackGiven(feedback=f"f:{number}", subject="q/a", rater=f"r:{number}", kind="thumb", value=1)


class Ended(BaseException):
    """The process would have ended here."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


@dataclass
class Log:
    """Stands where the sender stands, and notes what it was sent and what was true at that moment."""

    world: "World"
    records: list[Sent] = field(default_factory=list)
    moments: list[Any] = field(default_factory=list)
    fails: bool = False
    before: Any = None

    async def send(self, records: Iterable[Sent], crash_point: Any = None) -> None:
        records = list(records)
        self.moments.append(self.world.moment(records))
        await asyncio.sleep(0)  # as a broker takes its time
        if self.fails:
            raise ConnectionError("the broker is away")
        self.records += records

    async def record_before(self, topic: str, partition: int, offset: int) -> Any:
        return self.before

    async def stop(self) -> None:
        return None


class World:
    """A shell on a folder; what it reads is handed to it."""

    def __init__(self, data: Path, stage: Stage) -> None:
        self.settings = Settings(data=data, partitions=1)
        self.stage = stage
        self.tp = TP(self.settings.physical(stage.reads.name), 0)
        self.begin()

    def begin(self) -> None:
        """Start a process anew."""
        self.shell = Shell(self.settings, KAFKA, (self.stage,), {self.tp.topic: "cluster/topic/1"})
        self.log = Log(self)
        self.shell.sender = self.log  # type: ignore[assignment]

    async def own(self, start: int = 0, end: int = 100, committed: int | None = None) -> int:
        """Take the partition; gives where it is read from."""
        places = await self.shell.own({self.tp}, {self.tp: start}, {self.tp: end}, {self.tp: committed})
        self.shell.begin(1)
        return places[self.tp]

    def chunk(self, records: Sequence[Logged], start: int | None = None, epoch: int = 1) -> Chunk:
        return Chunk(self.tp, records[0].offset if start is None else start, records[-1].offset + 1, [*records], epoch)

    def kept(self) -> int:
        """Give where the newest snapshot on disk stands; 0 if there is none."""
        bound = self.shell.owned[self.tp].bound
        memory, _ = self.shell.snapshots.load(Fold(self.stage, 0, 1, Keys()), bound)
        return memory.next if memory is not None else 0

    def moment(self, records: Sequence[Sent]) -> Any:
        """Say what stands while records are on their way: the snapshot, and the keys of who is forgotten in them."""
        other = Vault(self.settings.data / "vault" / "keys.sqlite")  # as another process sees it
        gone = [one.event.owner for one in records if isinstance(one.event, AuthorForgotten)]
        keys = {owner: other.get(owner) for owner in gone}
        posts = [one.event for one in records if isinstance(one.event, PostForgotten)]
        keys |= {one.post: other.leaf(one.owner, post_name(one.post)) for one in posts}
        other.close()
        return (self.kept() if self.shell.owned else None), keys


def people(count: int) -> list[Logged]:
    return logged(outside(thumb(number), "/people", T0_MS, 1, Keys()) for number in range(count))
