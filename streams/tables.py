"""Tables: the topic table -> one SQL table for each kind of event, every field a typed column; the words are left out.

Rendered from the events' own models, frozen by a test (tests/tables.golden.sql). A nested fact becomes columns joined
with `_`, a list of facts becomes arrays of one length, None stays NULL. A row is a record: `id` and `partition` tell
it from its repetitions, and of two records of one id the first in the log counts, as for everybody who reads the log.
Raise VERSION when the rendering changes; a database is only ever brought forward (streams/warehouse.py).
"""

import json
import re
import types
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types as at
from pydantic.fields import FieldInfo

from schemas.facts import Event, Fact
from schemas.topics import KINDS

VERSION = 1
MOMENT_MS_MAX = 10_413_791_999_999  # the end of 2299, where DateTime64 ends; `time_ms` holds what was said
LOW_CARDINALITY_CHARS_MAX = (
    512  # Short and Lang: names of few kinds (sources, reasons); LowCardinality is half the size
)
MANY_VALUES = frozenset({"detail", "place"})  # Short, and yet different in every row
LEFT_OUT = frozenset({"content"})  # words, sealed or not

WHOSE = frozenset(
    {"owner", "actor", "target", "rater", "post", "named", "act", "prompt", "subject", "other"}
    | {"chosen_subject", "rejected_subject"}
)
"""Columns that say whom or which post a row is about: it goes when that is forgotten."""
POINTS = frozenset(
    {"mentions", "reply_to", "quoted_author", "reposted_author", "top_author"}
    | {"parent", "quoted", "reposted", "conversation", "target_post"}
)
"""Columns in which a row about somebody else names a person or their post: emptied when the person is forgotten."""

_INTS = [(f"{sign}Int{bits}", bits, sign == "U") for bits in (8, 16, 32, 64) for sign in ("U", "")]


class UnknownShape(TypeError):
    """An event has a field that no rule here renders: add the rule."""


class Column(NamedTuple):
    """One column: how to get it out of an event's own dictionary, and what it is in SQL."""

    name: str
    sql: str
    path: tuple[str, ...]  # facts to go through, then the field
    many: int = -1  # the step of the path that is a list of facts; -1: none


class Table(NamedTuple):
    """One kind of event."""

    name: str
    kind: type[Event]
    columns: tuple[Column, ...]


RECORD = (
    ("id", "String"),
    ("topic", "LowCardinality(String)"),
    ("partition", "UInt32"),
    ("offset", "UInt64"),
    ("time_ms", "UInt64"),
    ("writer", "LowCardinality(String)"),  # the stage, or the source that is no stage
    ("bytes", "UInt32"),
)
"""What every table says of the record itself."""
DERIVED = (
    ("time", "DateTime64(3, 'UTC')", f"ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, {MOMENT_MS_MAX})))"),
    ("earliest", "UInt64", "MATERIALIZED bitNot(offset)"),  # the engine keeps the highest: the first in the log
)
ENGINE = (
    "ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) "
    # Deleted rows lie in old parts, and a mutation's text in a file, for as long as these say.
    "SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0"
)


def snake(name: str) -> str:
    """PostObserved -> post_observed."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def table_of(kind: type[Event]) -> Table:
    """Render one kind of event."""
    return Table(snake(kind.__name__), kind, tuple(_columns(kind, (), -1)))


def _columns(kind: type[Fact], path: tuple[str, ...], many: int, optional: bool = False) -> Iterable[Column]:
    for name, field in kind.model_fields.items():
        if not path and name in LEFT_OUT:
            continue
        annotation, marks, none = _bare(field.annotation, tuple(field.metadata))
        here = (*path, name)
        origin = get_origin(annotation)
        item = get_args(annotation)[0] if origin is tuple else None
        if isinstance(annotation, type) and issubclass(annotation, Fact):
            yield from _columns(annotation, here, many, optional or none)
        elif isinstance(item, type) and issubclass(item, Fact):
            yield from _columns(item, here, len(path))
        else:
            sql = _sql(name, annotation, marks, (none or optional) and origin not in (tuple, dict))
            yield Column("_".join(here), f"Array({sql})" if many >= 0 else sql, here, many)


def _bare(annotation: Any, marks: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], bool]:
    """Take off Annotated and `| None`; gives the type, its constraints, and whether it may be None."""
    none = False
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            for one in more:
                marks = (*marks, *(one.metadata if isinstance(one, FieldInfo) else (one,)))
        elif get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation):
            rest = [one for one in get_args(annotation) if one is not type(None)]
            annotation, none = rest[0] if len(rest) == 1 else Union[tuple(rest)], True  # noqa: UP007
        else:
            return annotation, marks, none


def _sql(name: str, annotation: Any, marks: tuple[Any, ...], nullable: bool) -> str:
    origin = get_origin(annotation)
    if origin is tuple:
        return f"Array({_sql(name, *_bare(get_args(annotation)[0], ()))})"
    if origin is dict:
        value, _, _ = _bare(get_args(annotation)[1], ())
        return f"Map(String, {'Float64' if value is float else 'String'})"
    few = origin is Literal
    if annotation is str and name not in MANY_VALUES:
        most = next((mark.max_length for mark in marks if getattr(mark, "max_length", None)), None)
        few = most is not None and most <= LOW_CARDINALITY_CHARS_MAX and not _is_name(marks)
    plain = "String" if few else _plain(annotation, marks)
    plain = f"Nullable({plain})" if nullable else plain
    return f"LowCardinality({plain})" if few else plain


def _is_name(marks: tuple[Any, ...]) -> bool:
    return any(getattr(mark, "pattern", None) for mark in marks)  # ids and hashes have a pattern, names of kinds none


def _plain(annotation: Any, marks: tuple[Any, ...]) -> str:
    if annotation is str:
        return "String"
    if annotation is bool:
        return "Bool"
    if annotation is float:
        return "Float64"
    if annotation is int:
        low = next((mark.ge for mark in marks if isinstance(mark, at.Ge)), -(2**63))
        high = next((mark.le for mark in marks if isinstance(mark, at.Le)), 2**63 - 1)
        assert isinstance(low, int)
        assert isinstance(high, int)
        for name, bits, unsigned in _INTS:
            least, most = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            if least <= low and high <= most:
                return name
    raise UnknownShape(f"{annotation} {marks}")


TABLES: dict[type[Event], Table] = {kind: table_of(kind) for kind in KINDS.values()}
BY_NAME = {table.name: table for table in TABLES.values()}


def ddl(table: Table) -> str:
    """Write CREATE TABLE IF NOT EXISTS."""
    lines = [f"    `{name}` {sql}" for name, sql in RECORD]
    lines += [f"    `{column.name}` {column.sql}" for column in table.columns]
    lines += [f"    `{name}` {sql} {how}" for name, sql, how in DERIVED]
    about = (table.kind.__doc__ or "").partition("\n")[0].replace("\\", "").replace("'", "\\'")
    return f"CREATE TABLE IF NOT EXISTS `{table.name}`\n(\n" + ",\n".join(lines) + f"\n)\n{ENGINE}\nCOMMENT '{about}'"


def rendering(tables: Iterable[Table] = tuple(TABLES.values())) -> str:
    """Write every table, in the order of the topics; what the golden file holds."""
    return f"-- version {VERSION}\n" + "".join(f"\n{ddl(table)};\n" for table in tables)


# ---- events -> columns ----------------------------------------------------------------------------------------------


def values(table: Table, events: Sequence[Any]) -> dict[str, list[Any]]:
    """Turn events of one kind, or what has their fields, into lists, one a column of SQL, without the record's."""
    facts: dict[tuple[str, ...], Sequence[Any]] = {(): events}
    found = {}
    for column in table.columns:
        if column.many >= 0:
            rows = _facts(facts, column.path[: column.many], table.kind)
            within = column.path[column.many + 1 :]
            get = attrgetter(column.path[column.many])
            found[column.name] = [[_dig(one, within) for one in get(row)] for row in rows]
        else:
            rows = _facts(facts, column.path[:-1], table.kind)
            plain: list[Any] = list(map(attrgetter(column.path[-1]), rows))
            found[column.name] = [_pairs(one, column.sql) for one in plain] if column.sql[:4] == "Map(" else plain
    return found


def _facts(facts: dict[tuple[str, ...], Sequence[Any]], path: tuple[str, ...], kind: type[Fact]) -> Sequence[Any]:
    """Give the fact at this path of every event; one of Nones where there is no fact."""
    if path not in facts:
        none = _none(kind, path)
        above = map(attrgetter(path[-1]), _facts(facts, path[:-1], kind))
        facts[path] = [none if fact is None else fact for fact in above]
    return facts[path]


@cache
def _none(kind: type[Fact], path: tuple[str, ...]) -> types.SimpleNamespace:
    for step in path:
        kind, _, _ = _bare(kind.model_fields[step].annotation, ())
    # A list of facts that are not there has no item; a fact in a fact that is not there is not there either.
    many = {name for name, field in kind.model_fields.items() if get_origin(_bare(field.annotation, ())[0]) is tuple}
    return types.SimpleNamespace(**{name: () if name in many else None for name in kind.model_fields})


def _dig(fact: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        fact = None if fact is None else getattr(fact, step)
    return fact


def _pairs(given: dict[str, Any], sql: str) -> list[tuple[str, Any]]:
    if sql == "Map(String, Float64)":
        return list(given.items())
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in given.items()]


_ARROW: dict[str, Callable[[Any], Any]] = {
    "String": lambda pa: pa.string(),
    "Bool": lambda pa: pa.bool_(),
    "Float64": lambda pa: pa.float64(),
    **{name: partial(lambda name, pa: getattr(pa, name.lower())(), name) for name, _, _ in _INTS},
}


@cache
def arrow(sql: str) -> Any:
    """Give the Arrow type that the engine reads as this SQL type."""
    import pyarrow as pa

    outer, _, inner = sql.partition("(")
    if outer in ("LowCardinality", "Nullable"):
        return arrow(inner[:-1])
    if outer == "Array":
        return pa.list_(arrow(inner[:-1]))
    if outer == "Map":
        key, _, value = inner[:-1].partition(", ")
        return pa.map_(arrow(key), arrow(value))
    return _ARROW[sql](pa)


if __name__ == "__main__":
    print(rendering(), end="")
