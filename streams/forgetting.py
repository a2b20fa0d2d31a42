"""Forgetting: deletions in `tweets` -> rows, and then their bytes, gone from the analytics tables; then a receipt.

In this order, each step repeatable: the request is kept by its place in the log; what is asked for is counted; rows
are deleted and names in others' rows emptied by one ALTER a table; the engine's old parts are waited for, since they
hold the bytes for half a minute more; the receipt is sent. No file ever holds the name of who was forgotten: names lie
in a table in memory, and what must not come back is kept as hashes. After a crash the log says again who it was.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.events import AnswerGiven, CopyErased, SubjectNoted
from schemas.facts import Event, Where
from schemas.ids import digest
from schemas.posts import AuthorErased, AuthorHidden, IntentDeclared, PostDeleted, PostEdited, PostObserved
from streams import tables as t
from streams.warehouse import Warehouse

STORE = "analytics"
NAMES_MAX = 1_000_000  # hashes kept in memory, about 120 bytes each; of the oldest only late records could come back
CACHE_MAX = 200_000  # names looked up lately
ERASE_MAX = 10_000  # requests at once
ERASE_EVERY_S = 5.0
ERASE_COST_SHARE = 0.1  # rewriting parts may take a tenth of the time: large databases are erased from less often
ASKED, COUNTED, DONE = 0, 1, 2
_NOWHERE = Where(topic="", partition=0, offset=0)
TWO_NAMES = frozenset({"subject", "other", "chosen_subject", "rejected_subject"})  # prompt/item


def parts_of(value: str) -> Iterator[str]:
    """Give the names that an id holds: itself, the two of a subject, and whose it is where the id says so.

    A Bluesky post is named after its author (`bluesky:DID~KEY`); what stands before the `~`, with it, is that author's.
    """
    for name in value.split("/"):
        yield name
        stem, tilde, _ = name.partition("~")
        if tilde:
            yield stem + tilde


WHYS = ERASED, HIDDEN, NO_INDEX = "erased", "hidden", "no-index"  # why an author is withheld; the first for good


@dataclass
class Request:
    """Something to forget: its place in the log, whose post or (None) which author, how many rows held it (None: not
    counted yet)."""

    where: Where
    owner: str
    post: str | None
    why: str = ERASED
    rows: int | None = None
    asked_ms: int = 0  # when it first came

    @classmethod
    def of(cls, where: Where, kind: type[Event], event: Any) -> "Request | None":
        """Read what an event (or what has its fields) asks for, if anything.

        A source that hides an author, or an author who declares that nothing of them may be indexed, takes back what
        is stored; a no to training does not. A revision asks for its post, once it was itself deleted.
        """
        if kind is PostDeleted or kind is PostEdited or kind is PostObserved:
            return cls(where, event.owner, event.post)
        if kind is AuthorErased or kind is AuthorHidden:
            return cls(where, event.owner, None, ERASED if kind is AuthorErased else HIDDEN)
        return cls(where, event.owner, None, NO_INDEX) if kind is IntentDeclared and event.index is False else None

    @property
    def key(self) -> tuple[str, int, int]:
        """Its place."""
        return self.where.topic, self.where.partition, self.where.offset

    @property
    def names(self) -> tuple[str, ...]:
        """What is to be forgotten: a post, or an author and what the names of their posts may begin with."""
        return (self.post,) if self.post is not None else (self.owner, self.owner.replace(":@", ":", 1) + "~")

    def receipt(self) -> tuple[CopyErased, str]:
        """Give the receipt and its id, the same each time it is made."""
        said = CopyErased(store=STORE, owner=self.owner, post=self.post, requested=self.where, rows=self.rows or 0)
        return said, digest(STORE, *map(str, self.key))


@dataclass
class Forgetting:
    """What was forgotten, what is to be, and what waits for its bytes to go."""

    warehouse: Warehouse
    crash_point: Callable[[str], None] = lambda name: None
    asked: dict[tuple[str, int, int], Request] = field(default_factory=dict)
    erased: list[Request] = field(default_factory=list)  # rows are gone, bytes may not be
    dropped: int = 0  # rows that came too late
    _kept: dict[tuple[str, int, int], tuple[int | None, int]] = field(default_factory=dict)  # rows, when
    _names: dict[str, None] = field(default_factory=dict)
    _cache: dict[str, bool] = field(default_factory=dict)
    _old_parts: frozenset[tuple[str, str]] = frozenset()
    _due_s: float = 0.0

    def load(self) -> list[Where]:
        """Read what is kept; gives the places of the requests that are not done, to be read from the log again."""
        newest = "SELECT name FROM sink_forgotten ORDER BY at_ms DESC LIMIT {n:UInt32}"
        self._names = dict.fromkeys(name for (name,) in reversed(self.warehouse.rows(newest, n=NAMES_MAX)))
        self._kept = {
            (topic, part, offset): (rows if state == COUNTED else None, at_ms)
            for topic, part, offset, state, rows, at_ms in self.warehouse.rows(
                "SELECT topic, partition, offset, state, rows, at_ms FROM sink_erasure WHERE state < 2"
            )
        }
        return [Where(topic=topic, partition=part, offset=offset) for topic, part, offset in self._kept]

    def resume(self, where: Where, event: Event) -> None:
        """Take up a request that an earlier life did not finish."""
        request = Request.of(where, type(event), event)
        assert request is not None
        request.rows, request.asked_ms = self._kept.get(request.key, (None, _now_ms()))
        self.asked[request.key] = request

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def ask(self, requests: Iterable[Request]) -> None:
        """Keep requests (again is nothing), and from now on let nothing in that is about them."""
        new = [one for one in requests if one.key not in self.asked]
        if new:
            for one in new:
                if one.post is None:
                    known = digest(one.owner) in self._names  # without a reason: from before there were any
                    erased = known and not any(self.withholds(one.owner, why) for why in WHYS)
                    self._keep([digest(why, one.owner) for why in (one.why, *([ERASED] if erased else []))])
            for one in new:  # asked for in a life before this, whose batch is read again: it may be counted already
                one.rows, one.asked_ms = self._kept.get(one.key, (None, _now_ms()))
            self.warehouse.keep("sink_erasure", [(*one.key, ASKED, 0, one.asked_ms) for one in new])
            self._remember(name for one in new for name in one.names)
            self.asked.update((one.key, one) for one in new)

    def withholds(self, owner: str, why: str) -> bool:
        """Say whether an author is withheld for this reason."""
        return digest(why, owner) in self._names

    def lift(self, owner: str, why: str, now_s: float) -> None:
        """Let an author in again who was hidden, or said no; what was taken back stays away, and an erased one too."""
        if not self.withholds(owner, why):
            return
        if any(one.owner == owner for one in self.asked.values()):
            self.erase(now_s, due=True)  # or it would take also what comes from now on
        lifted = [digest(why, owner)]
        if not any(self.withholds(owner, one) for one in WHYS if one != why):
            lifted += map(digest, Request(_NOWHERE, owner, None).names)
        self.warehouse.client.command(
            "ALTER TABLE sink_forgotten DELETE WHERE name IN {names:Array(String)}",
            parameters={"names": lifted},
            settings={"mutations_sync": 2},
        )
        for name in lifted:
            self._names.pop(name, None)
        self._cache.clear()

    def _remember(self, names: Iterable[str]) -> None:
        self._keep(list(map(digest, names)))

    def _keep(self, names: list[str]) -> None:
        new = [one for one in dict.fromkeys(names) if one not in self._names]
        if new:
            self.warehouse.keep("sink_forgotten", [(one, _now_ms()) for one in new])
            self._names.update(dict.fromkeys(new))
            self._cache.clear()
            while len(self._names) > NAMES_MAX:
                del self._names[next(iter(self._names))]

    def hides(self, value: str | None) -> bool:
        """Say whether this id names somebody or something forgotten."""
        if value is None or not self._names:
            return False
        found = self._cache.get(value)
        if found is None:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            found = self._cache[value] = any(digest(name) in self._names for name in parts_of(value))
        return found

    def sift(self, batch: Mapping[t.Table, dict[str, list[Any]]]) -> None:
        """Take out of columns what is about the forgotten, in place; their posts, seen only now, are forgotten too."""
        if not self._names:
            return
        for table, columns in batch.items():  # first, since other tables know a post by its id only
            self._remember(_posts(table, columns, self.hides))
        self._remember_versions(batch)
        for table, columns in batch.items():
            whose = [columns[one.name] for one in table.columns if one.name in t.WHOSE]
            keep = [not any(map(self.hides, row)) for row in zip(*whose, strict=True)] if whose else []
            if not all(keep):
                self.dropped += keep.count(False)
                for name, values in columns.items():
                    columns[name] = [value for value, kept in zip(values, keep, strict=True) if kept]
            for one in table.columns:
                if one.name in t.POINTS:
                    columns[one.name] = [self._emptied(value) for value in columns[one.name]]

    def _remember_versions(self, batch: Mapping[t.Table, dict[str, list[Any]]]) -> None:
        """Forget all versions of a post of which one was deleted; what is stored of it is asked for by its revision."""
        marks = ("topic", "partition", "offset", "owner", "post", "named")
        rows = [
            row
            for columns in batch.values()
            if "named" in columns
            for row in zip(*map(columns.get, marks), strict=True)
        ]
        asked: dict[str, Request] = {}
        for topic, part, offset, owner, post, named in rows:
            if self.hides(named) and (not self.hides(post) or (topic, part, offset) in self._kept):
                asked.setdefault(post, Request(Where(topic=topic, partition=part, offset=offset), owner, post))
        self.ask(asked.values())
        self._remember(named for *_, post, named in rows if named and self.hides(post))

    def _emptied(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return ["" if self.hides(one) else one for one in value]
        return "" if self.hides(value) else value

    # ---- what is there ----------------------------------------------------------------------------------------------

    def erase(self, now_s: float, due: bool = False) -> bool:
        """Count and delete the rows of everything asked for, if it is time (or `due`); say whether it did."""
        if not self.asked or not (due or (not self.erased and now_s >= self._due_s)):
            return False
        began_s = time.monotonic()
        requests = list(self.asked.values())[:ERASE_MAX]
        names = self._expand(requests)
        self._remember(names)
        self._name(names, requests)
        counts, whose, points = self._count(names, requests)
        fresh = [one for one in requests if one.rows is None]
        for one in fresh:
            one.rows = counts.get(one.key, 0)
        self.warehouse.keep("sink_erasure", [(*one.key, COUNTED, one.rows, one.asked_ms) for one in fresh])
        self.crash_point("after-count")
        for table in t.TABLES.values():
            changes = ([f"DELETE WHERE {_whose(table)}"] if table in whose else []) + (
                [_emptying(one) for one in table.columns if one.name in t.POINTS] if table in points else []
            )
            if changes:
                alter = f"ALTER TABLE `{table.name}` {', '.join(changes)}"
                self.warehouse.client.command(alter, settings={"mutations_sync": 2})
                self.crash_point("after-mutation")
        self.warehouse.client.command("TRUNCATE TABLE sink_erasing")
        # Whatever part is old now may hold the bytes, also one that a process before this left behind.
        self._old_parts = self._inactive()
        self.erased = [*self.erased, *requests]
        for one in requests:
            del self.asked[one.key]
        self._due_s = now_s + max(ERASE_EVERY_S, (time.monotonic() - began_s) / ERASE_COST_SHARE)
        return True

    def gone(self) -> list[Request]:
        """Give the requests whose bytes are gone too; `done` must follow once their receipts are acknowledged."""
        return self.erased if self.erased and not (self._old_parts & self._inactive()) else []

    def done(self) -> None:
        """Note that the receipts are in the log."""
        self.warehouse.keep("sink_erasure", [(*one.key, DONE, one.rows, _now_ms()) for one in self.erased])
        self.erased = []

    def owed_since(self) -> float | None:
        """Give when the oldest request without a receipt first came, Unix seconds; None if there is none."""
        return min((one.asked_ms / 1000 for one in (*self.asked.values(), *self.erased)), default=None)

    def _inactive(self) -> frozenset[tuple[str, str]]:
        sql = (  # the sink's own tables hold hashes and places, no names
            "SELECT table, name FROM system.parts WHERE database = currentDatabase() AND NOT active "
            "AND NOT startsWith(table, 'sink_')"
        )
        return frozenset((table, name) for table, name in self.warehouse.rows(sql))

    def _expand(self, requests: list[Request]) -> dict[str, set[tuple[str, int, int]]]:
        """Give every name to erase and who asked for it: with an author their posts, with a post its revisions."""
        names: dict[str, set[tuple[str, int, int]]] = {}
        for one in requests:
            for name in one.names:
                names.setdefault(name, set()).add(one.key)
        for tables in ([t.TABLES[PostObserved], t.TABLES[PostEdited]], t.TABLES.values()):
            self._name(names, requests)  # the second time with the posts of deleted revisions, which have others
            for table in tables:
                self._add(names, table)
        return names

    def _add(self, names: dict[str, set[tuple[str, int, int]]], table: t.Table) -> None:
        """Add the posts that a table has of the authors, and of the posts, that are in `sink_erasing`."""
        fields = {one.name for one in table.columns}
        posts: list[str] = [one for one in ("post", "named") if one in fields]
        if table.kind in (SubjectNoted, AnswerGiven):
            posts = ["subject" if table.kind is SubjectNoted else "prompt"]
        if "owner" not in fields or not posts:
            return
        own = table.kind in (PostObserved, PostEdited)  # a revision of a deleted post may have another name
        where = " OR ".join(_holds(one) for one in (["owner", *posts] if own else ["owner"]))
        for row in self.warehouse.rows(f"SELECT DISTINCT owner, {', '.join(posts)} FROM `{table.name}` WHERE {where}"):
            asked = set().union(*(names.get(name, ()) for value in row if value for name in parts_of(value)))
            for value in row[1:]:
                if value:
                    names.setdefault(value.rpartition("/")[2], set()).update(asked)

    def _name(self, names: Mapping[str, set[tuple[str, int, int]]], requests: list[Request]) -> None:
        """Fill the table in memory that our questions and mutations look names up in."""
        people = {one.key for one in requests if one.post is None}
        self.warehouse.client.command("TRUNCATE TABLE sink_erasing")
        self.warehouse.keep("sink_erasing", [(name, int(bool(people & asked))) for name, asked in names.items()])

    def _count(
        self, names: Mapping[str, set[tuple[str, int, int]]], requests: list[Request]
    ) -> tuple[dict[tuple[str, int, int], int], set[t.Table], set[t.Table]]:
        """Count the rows about each request, once each; gives also the tables to delete from and to empty names in."""
        counts: dict[tuple[str, int, int], int] = {}
        whose: set[t.Table] = set()
        points: set[t.Table] = set()
        people = any(one.post is None for one in requests)
        for table in t.TABLES.values():
            about = [one.name for one in table.columns if one.name in t.WHOSE]
            if about:
                columns = ", ".join(f"`{one}`" for one in about)
                for row in self.warehouse.rows(f"SELECT {columns} FROM `{table.name}` WHERE {_whose(table)}"):
                    whose.add(table)
                    asked = (names.get(name, set()) for value in row if value for name in parts_of(value))
                    for key in set().union(*asked):
                        counts[key] = counts.get(key, 0) + 1
            pointing = [_points(one) for one in table.columns if one.name in t.POINTS]
            if people and pointing:
                sql = f"SELECT 1 FROM `{table.name}` WHERE {' OR '.join(pointing)} LIMIT 1"
                if self.warehouse.rows(sql):
                    points.add(table)
        return counts, whose, points


def _posts(table: t.Table, columns: Mapping[str, list[Any]], hides: Callable[[str | None], bool]) -> Iterator[str]:
    """Give the posts of forgotten authors among rows that name both."""
    if "owner" not in columns:
        return
    item = "subject" if table.kind is SubjectNoted else "prompt" if table.kind is AnswerGiven else "post"
    for name in (item, "named"):
        for owner, value in zip(columns["owner"], columns.get(name, ()), strict=False):
            if value and hides(owner):
                yield value.rpartition("/")[2]


_NAMES = "(SELECT name FROM sink_erasing)"
_PEOPLE = "(SELECT name FROM sink_erasing WHERE person)"


def _holds(column: str, names: str = _NAMES) -> str:
    """Write the condition that a column names something being erased, as `parts_of` reads it."""
    value = f"ifNull(`{column}`, '')"
    parts = [f"splitByChar('/', {value})[{i}]" for i in (1, 2)] if column in TWO_NAMES else [value]
    return " OR ".join(f"{one} IN {names} OR substring({one}, 1, position({one}, '~')) IN {names}" for one in parts)


def _whose(table: t.Table) -> str:
    return " OR ".join(_holds(one.name) for one in table.columns if one.name in t.WHOSE)


def _points(column: t.Column) -> str:
    if column.sql.startswith("Array("):
        return f"arrayExists(one -> one IN {_PEOPLE}, `{column.name}`)"
    return _holds(column.name, _PEOPLE)


def _emptying(column: t.Column) -> str:
    """Empty the name: '' and never NULL, since a NULL put in place of a value leaves its bytes under the mask."""
    empty = f"arrayMap(one -> if(one IN {_PEOPLE}, '', one), `{column.name}`)" if column.sql[:5] == "Array" else "''"
    return f"UPDATE `{column.name}` = {empty} WHERE {_points(column)}"


def _now_ms() -> int:
    return int(time.time() * 1000)
