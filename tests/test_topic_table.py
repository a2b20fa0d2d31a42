"""The topic table: every event has one home, every agent one input, and everything flows one way."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from schemas import envelope, facts, topics
from schemas import events as e
from schemas.topics import HOME, KINDS, TOPICS
from streams.topology import OUTSIDE, cycle, edges, stages


def all_kinds() -> set[type[facts.Event]]:
    found: set[type[facts.Event]] = set()
    waiting = [facts.Event]
    while waiting:
        children = waiting.pop().__subclasses__()
        found.update(kind for kind in children if kind.__module__.startswith("schemas."))
        waiting.extend(children)
    return found


# ---- the table ------------------------------------------------------------------------------------------------------


def test_every_kind_of_event_has_exactly_one_topic_but_ticked() -> None:
    for kind in all_kinds():
        homes = [topic.name for topic in TOPICS if kind in topic.events]
        assert homes == (["interactions", "signals", "preferences"] if kind is e.Ticked else [HOME[kind].name])
    assert all_kinds() == set(KINDS.values())
    assert len({topic.name for topic in TOPICS}) == len(TOPICS)


def test_every_event_has_the_field_that_its_topic_is_ordered_by() -> None:
    for topic in TOPICS:
        if topic.key is not None:
            assert all(topic.key in kind.model_fields for kind in topic.events if kind is not e.Ticked), topic.name
            assert topic.wide or topic.compacted, f"{topic.name} has a key and one partition"
        else:
            assert not topic.wide, f"{topic.name} has partitions and nothing to choose one by"


def test_an_agent_reads_one_topic_that_nobody_else_reads() -> None:
    table = stages()
    reads = [stage.reads.name for stage in table]
    assert all(isinstance(stage.reads, topics.Topic) for stage in table)
    assert len(set(reads)) == len(reads)
    assert len({stage.name for stage in table}) == len(table)


def misplaced(table: Sequence[Any]) -> list[str]:
    """List the stages that read what nothing above them writes."""
    before = {
        topic.name for process in OUTSIDE if not process.reads or process.name == "server" for topic in process.writes
    }
    found = []
    for stage in table:
        ready = {process.name: process for process in OUTSIDE if all(topic.name in before for topic in process.reads)}
        before |= {topic.name for process in ready.values() for topic in process.writes}
        if stage.reads.name not in before:
            found.append(stage.name)
        before |= {topic.name for topic in stage.writes}
    return found


def test_a_topic_is_written_above_the_stage_that_reads_it() -> None:
    table = stages()
    assert misplaced(table) == []
    assert misplaced([stage for stage in table if stage.name != "pairing"]) == []  # its ticks still come
    assert misplaced([stage for stage in table if stage.name != "rewards"]) == ["pairing"]
    assert "pairing" in misplaced(table[::-1])


def test_every_topic_is_written_by_somebody() -> None:
    assert {written for _, _, written in edges(stages())} == {topic.name for topic in TOPICS}


def test_no_stage_writes_where_origins_are_not_believed() -> None:
    for stage in stages():
        assert not [topic.name for topic in stage.writes if topic.outside], stage.name


def test_everything_flows_one_way() -> None:
    table = stages()
    assert cycle(table) == []
    batching = next(stage for stage in table if stage.name == "batching")
    planted = replace(batching, writes=(*batching.writes, topics.SIGNALS))
    found = cycle([planted if stage is batching else stage for stage in table])
    assert found[0] == found[-1]
    assert set(found) == {"signals", "rewards", "preferences"}
    itself = replace(batching, writes=(topics.PREFERENCES,))
    assert cycle([itself]) == ["preferences", "preferences"]


def test_a_type_name_and_version_are_what_others_filter_by() -> None:
    for kind in KINDS.values():
        headers = dict(envelope.headers(kind.model_construct(), "i", "/s", 0))
        assert re.fullmatch(rb"xinfluencer\.[A-Z][A-Za-z]+\.v[1-9][0-9]*", headers["ce_type"])
