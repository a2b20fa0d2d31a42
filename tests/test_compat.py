"""Compat and AsyncAPI: shapes that others rely on may only grow, and one document says what flows where."""

import copy
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import render
from schemas.compat import KNOWN, breaks
from schemas.topics import KEEP_FOR_EVER, KINDS, TOPICS
from streams import asyncapi
from streams.topology import OUTSIDE, stages

KEPT = sorted({kind.__name__ for topic in TOPICS if topic.keep_ms == KEEP_FOR_EVER for kind in topic.events})


def shape(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(render.json_schema(KINDS[name]))
    return loaded


@pytest.mark.parametrize("name", KEPT)
def test_the_newest_shape_reads_every_older_one_of_a_kept_topic(name: str) -> None:
    for version in range(1, KINDS[name].VERSION + 1):
        older = json.loads(render.path_of(KINDS[name], version).read_text("utf-8"))
        assert breaks(older, shape(name)) == []


def test_every_keyword_that_our_shapes_use_is_understood() -> None:
    def keywords(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(keywords, node)) if node else set()
        if not isinstance(node, dict):
            return set()
        inside = {key: value for key, value in node.items() if key not in ("properties", "$defs", "enum", "const")}
        named = [*node.get("properties", {}).values(), *node.get("$defs", {}).values()]
        return set(node) | set().union(*map(keywords, [*inside.values(), *named]), set())

    assert set().union(*(keywords(shape(name)) for name in KINDS)) <= KNOWN


CHANGES = {
    "a field removed": (lambda s: s["properties"].pop("chosen"), "was removed"),
    "a new field that is needed": (lambda s: s["required"].append("why"), "is needed now"),
    "a choice taken away": (lambda s: s["properties"]["origin"]["enum"].remove("siblings"), "no longer takes siblings"),
    "a shorter text": (lambda s: s["properties"]["policy"].update(maxLength=3), "maxLength"),
    "another type": (lambda s: s["properties"]["simulated"].update(type="string"), "was boolean, is string"),
    "another pattern": (lambda s: s["properties"]["pair"].update(pattern="^x$"), "pattern"),
    "a smaller number": (lambda s: s["properties"]["margin"].update(maximum=1), "maximum"),
    "a nested field removed": (lambda s: s["$defs"]["Side"]["properties"].pop("chars"), "chosen.chars"),
    "a word nobody knows": (lambda s: s["properties"]["pair"].update(format="uuid"), "format"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_older_records_would_not_survive_is_named(change: str) -> None:
    apply, said = CHANGES[change]
    old = shape("PairFormed")
    new = copy.deepcopy(old)
    apply(new)
    assert any(said in fault for fault in breaks(old, new)), breaks(old, new)


def test_growing_is_no_break() -> None:
    old = shape("PairFormed")
    new = copy.deepcopy(old)
    new["properties"]["note"] = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    new["properties"]["origin"]["enum"].append("correction")
    new["properties"]["policy"]["maxLength"] = 1024
    new["$defs"]["Side"]["required"].remove("chars")
    assert breaks(old, new) == []
    assert breaks(new, old) != []


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)))
def test_a_shape_reads_itself_and_an_event_of_another_kind_is_rarely_taken_for_it(one: str, other: str) -> None:
    assert breaks(shape(one), shape(one)) == []
    if set(shape(one)["properties"]) - set(shape(other)["properties"]):
        assert breaks(shape(one), shape(other)) != []


def test_rendering_over_a_shape_that_it_would_break_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "GOLDEN", tmp_path)
    assert len(render.write()) == len(KINDS)
    older = shape("PairFormed")
    older["properties"]["gone"] = {"type": "string"}
    (tmp_path / "PairFormed.v1.json").write_text(json.dumps(older))
    with pytest.raises(render.ShapeBroken, match=r"PairFormed.*gone.*raise its VERSION"):
        render.write()


def test_the_document_is_the_table_and_is_frozen() -> None:
    assert asyncapi.FILE.read_text("utf-8") == asyncapi.text(), "run `python -m streams.asyncapi` and commit docs/"
    found = asyncapi.document()
    assert set(found["channels"]) == {topic.name for topic in TOPICS}
    assert set(found["components"]["messages"]) == set(KINDS)
    assert all(any(name.startswith(f"{stage.name}-receives") for name in found["operations"]) for stage in stages())
    assert len(found["operations"]) == sum(1 + len(s.writes) for s in stages()) + sum(
        len(one.reads) + len(one.writes) for one in OUTSIDE
    )


def test_every_reference_of_the_document_leads_somewhere_and_its_schemas_are_schemas() -> None:
    found = asyncapi.document()

    def references(node: Any) -> list[str]:
        if isinstance(node, list):
            return [one for item in node for one in references(item)]
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [one for item in node.values() for one in references(item)]
        return []

    everywhere = references(found)
    assert len(everywhere) > len(KINDS)
    for reference in everywhere:
        node: Any = found
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
    for name, schema in found["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "$defs" not in schema, name
