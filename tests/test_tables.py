"""The tables: every field of every event has a column, every value comes back, and an older database is brought on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from schemas.facts import Event, Fact
from schemas.posts import EngagementObserved, PostObserved
from schemas.topics import KINDS, TOPICS
from streams import tables as t
from streams.sink import types_of
from streams.warehouse import Warehouse, WarehouseRefused
from tests.strategies import model
from tests.warehouses import opened, settings_in

GOLDEN = Path(__file__).with_name("tables.golden.sql")
NEITHER = {
    "feedback", "alias", "store", "context", "items",
}  # fmt: skip
"""Ids that name neither a person nor a post: judgements, aliases, our stores; items of an answer go with its owner."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    with opened(settings_in(tmp_path_factory.mktemp("tables"))) as found:
        found.migrate()
        yield found


def marked(offset: int, event_id: str = "id", partition: int = 0) -> dict[str, list[Any]]:
    """What every row says of its record."""
    return {
        "id": [event_id], "topic": ["tweets"], "partition": [partition], "offset": [offset],
        "time_ms": [1_700_000_000_000], "writer": ["test"], "bytes": [1],
    }  # fmt: skip


def put(house: Warehouse, event: Event, offset: int, event_id: str = "id", partition: int = 0) -> None:
    table = t.TABLES[type(event)]
    columns = {**marked(offset, event_id, partition), **t.values(table, [event])}
    house.insert(table.name, columns, types_of(table))


def test_the_rendering_is_the_one_that_was_agreed_on() -> None:
    """A new field is a new column: write the file again with `python -m streams.tables` and raise VERSION there."""
    assert t.rendering() == GOLDEN.read_text(encoding="utf-8")


def test_every_kind_of_every_topic_has_a_table_with_all_its_fields_but_the_words() -> None:
    assert {kind for topic in TOPICS for kind in topic.events} == set(t.TABLES)
    for kind, table in t.TABLES.items():
        covered = {column.path[0] for column in table.columns}
        assert covered == set(kind.model_fields) - {"content"}
        names = [name for name, _ in t.RECORD] + [one.name for one in table.columns] + [one[0] for one in t.DERIVED]
        assert len(names) == len(set(names)), f"{table.name} has two columns of one name"


def names_in(kind: type[Fact]) -> Iterator[str]:
    """Give the columns whose pattern is that of an id or a subject."""
    for name, field in kind.model_fields.items():
        for one in _leaves(field.annotation, tuple(field.metadata)):
            if one == "id":
                yield name
            elif isinstance(one, type):
                yield from (f"{name}_{inner}" for inner in names_in(one))


def _leaves(annotation: Any, marks: tuple[Any, ...]) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        inner = [mark for one in more for mark in (one.metadata if isinstance(one, FieldInfo) else (one,))]
        yield from _leaves(base, (*marks, *inner))
    elif annotation is str:
        pattern = next((mark.pattern for mark in marks if getattr(mark, "pattern", None)), "")
        if "\\x20/]" in pattern:
            yield "id"
    elif isinstance(annotation, type) and issubclass(annotation, Fact):
        yield annotation
    else:
        for one in get_args(annotation):
            yield from _leaves(one, ())


def test_every_id_says_whether_it_names_somebody_so_that_no_new_one_is_forgotten_in_forgetting() -> None:
    for kind in KINDS.values():
        for name in names_in(kind):
            if not name.startswith("content"):
                assert (name in t.WHOSE) + (name in t.POINTS) + (name in NEITHER) == 1, f"{kind.__name__}.{name}"


def comparable(value: Any) -> Any:
    """Lists and tuples, dictionaries and pairs are the same to us."""
    if isinstance(value, list | tuple):
        return [comparable(one) for one in value]
    return sorted((k, comparable(v)) for k, v in value.items()) if isinstance(value, dict) else value


@given(data=st.data())
@hypothesis_settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_an_event_says_comes_back_out_of_its_table(house: Warehouse, data: st.DataObject) -> None:
    for kind, table in t.TABLES.items():
        events = data.draw(st.lists(model(kind), min_size=1, max_size=3))
        columns = t.values(table, events)
        record = {name: [marked(i, f"{i}")[name][0] for i in range(len(events))] for name, _ in t.RECORD}
        house.client.command(f"TRUNCATE TABLE `{table.name}`")
        house.insert(table.name, {**record, **columns}, types_of(table))
        names = ", ".join(f"`{one.name}`" for one in table.columns)
        rows = house.rows(f"SELECT {names} FROM `{table.name}` ORDER BY offset")
        for index, column in enumerate(table.columns):
            said = [dict(one) if column.sql.startswith("Map(") else one for one in columns[column.name]]
            assert comparable([row[index] for row in rows]) == comparable(said), f"{table.name}.{column.name}"


def engagement(likes: int) -> EngagementObserved:
    rights = {"index": True, "train": True, "show": True, "policy": "test"}
    return EngagementObserved.model_validate(
        {"post": "x:1", "owner": "x:@1", "source": "x", "likes": likes, "rights": rights}
    )


def test_a_replay_is_not_seen_and_of_two_records_of_one_id_the_first_in_the_log_counts(house: Warehouse) -> None:
    house.client.command("TRUNCATE TABLE engagement_observed")
    house.client.command("SYSTEM STOP MERGES engagement_observed")
    for offset, likes in ((5, 5), (9, 9), (5, 5)):  # the second is of an outsider who took the first one's id
        put(house, engagement(likes), offset)
    put(house, engagement(7), 0, partition=1)  # another partition is another place: nobody can hide a record there
    assert sorted(house.rows("SELECT partition, likes FROM engagement_observed")) == [(0, 5), (1, 7)]
    assert house.client.query("SELECT count() FROM engagement_observed").result_rows == [(4,)], "no replay was seen"
    house.client.command("SYSTEM START MERGES engagement_observed")


def test_control_an_aggregating_view_and_a_plain_table_count_a_replay_twice(house: Warehouse) -> None:
    house.client.command("TRUNCATE TABLE engagement_observed")
    house.client.command("CREATE TABLE plain AS engagement_observed ENGINE = MergeTree ORDER BY id")
    house.client.command(
        "CREATE MATERIALIZED VIEW summed ENGINE = SummingMergeTree ORDER BY post "
        "AS SELECT post, toUInt64(sum(likes)) AS likes FROM engagement_observed GROUP BY post"
    )
    table = t.TABLES[EngagementObserved]
    for _ in range(2):
        put(house, engagement(5), 5)
        columns = {**marked(5), **t.values(table, [engagement(5)])}
        house.insert("plain", columns, types_of(table))
    assert house.rows("SELECT sum(likes) FROM engagement_observed") == [(5,)]
    assert house.rows("SELECT sum(likes) FROM plain") == [(10,)]
    assert house.rows("SELECT sum(likes) FROM summed") == [(10,)]
    house.client.command("DROP VIEW summed")
    house.client.command("DROP TABLE plain")


def older(table: t.Table, without: str, narrower: dict[str, str]) -> t.Table:
    """Give a rendering from before a field was there, and with shorter numbers."""
    columns = [one._replace(sql=narrower.get(one.name, one.sql)) for one in table.columns if one.name != without]
    return table._replace(columns=tuple(columns))


@pytest.fixture
def bare(house: Warehouse) -> Iterator[Warehouse]:
    """The same database without a table, and whole again afterwards."""
    for (name,) in house.rows("SELECT name FROM system.tables WHERE database = currentDatabase()"):
        house.client.command(f"DROP TABLE `{name}` SYNC")
    yield house
    for (name,) in house.rows("SELECT name FROM system.tables WHERE database = currentDatabase()"):
        house.client.command(f"DROP TABLE `{name}` SYNC")
    house.migrate()


def test_a_database_of_an_older_rendering_gains_columns_and_keeps_its_rows(bare: Warehouse) -> None:
    before = older(t.TABLES[EngagementObserved], "views", {"likes": "Nullable(UInt32)", "claimed_ms": "UInt64"})
    bare.migrate([before], version=t.VERSION)
    columns = {**marked(1), **t.values(before, [engagement(3)])}
    columns["claimed_ms"] = [7]
    bare.insert(before.name, columns, types_of(before))
    assert bare.migrate() == len(t.TABLES) - 1 + 3
    assert bare.migrate() == 0, "what was brought forward needs nothing more"
    put(bare, engagement(2**53 - 1), 2, "other")
    rows = bare.rows("SELECT id, likes, views, claimed_ms FROM engagement_observed ORDER BY id")
    assert rows == [("id", 3, None, 7), ("other", 2**53 - 1, None, None)]
    assert len(bare.rows("SELECT * FROM sink_schema")) == 2


def test_a_column_that_would_lose_values_and_a_newer_database_are_refused(bare: Warehouse) -> None:
    bare.migrate([older(t.TABLES[EngagementObserved], "", {"likes": "Nullable(String)"})])
    with pytest.raises(WarehouseRefused, match=r"engagement_observed\.likes is Nullable\(String\)"):
        bare.migrate()
    bare.keep("sink_schema", [(t.VERSION + 1, "x", 0, 0)])
    with pytest.raises(WarehouseRefused, match="newer program"):
        bare.migrate()


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ("UInt8", "UInt16", True),
        ("UInt8", "Int16", True),
        ("Int8", "UInt16", False),
        ("UInt64", "UInt32", False),
        ("UInt64", "Int64", False),
        ("String", "Nullable(String)", True),
        ("Nullable(String)", "String", False),
        ("LowCardinality(String)", "String", True),
        ("Float64", "UInt64", False),
        ("String", "UInt64", False),
        ("Array(String)", "String", False),
    ],
)
def test_a_type_changes_only_to_one_that_holds_every_value(old: str, new: str, allowed: bool) -> None:
    from streams.warehouse import _widens

    assert _widens(old, new) is allowed


def test_no_column_anywhere_holds_words_sealed_or_not(house: Warehouse) -> None:
    sealed = "v1." + "A" * 40
    post = PostObserved.model_validate(
        {
            "post": "x:9", "owner": "x:@1", "source": "x", "raw_sha256": "0" * 64, "content": sealed,
            "rights": {"index": True, "train": True, "show": True, "policy": "test"},
        }
    )  # fmt: skip
    assert sealed not in str(t.values(t.TABLES[PostObserved], [post]))
    columns = house.rows("SELECT table, name FROM system.columns WHERE database = currentDatabase()")
    assert [one for one in columns if "content" in one[1] and one[1] != "components_content"] == []
