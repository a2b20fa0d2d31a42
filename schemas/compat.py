"""Compat: two JSON Schemas of one kind -> why the newer cannot read everything that the older allowed.

Backward-transitive compatibility, as schema registries name it: what was written under any older shape must be read by
the newest. It knows the keywords that pydantic writes for our facts, and says so of any that it does not know.
"""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
LOWER_IS_NARROWER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
HIGHER_IS_NARROWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
KNOWN = frozenset((
    "$defs", "$id", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "enum", "items", "pattern",
    "prefixItems", "propertyNames", "properties", "required", "type", *LOWER_IS_NARROWER, *HIGHER_IS_NARROWER,
))  # fmt: skip


def breaks(old: Schema, new: Schema) -> list[str]:
    """List what records of the old shape would be refused for, or lose, under the new one; empty: it reads them all."""
    return list(_node(old, new, old, new, "event"))


def _node(old: Schema, new: Schema, old_root: Schema, new_root: Schema, place: str) -> Iterator[str]:
    old, new = _resolved(old, old_root), _resolved(new, new_root)
    for keyword in (old.keys() | new.keys()) - KNOWN:
        yield f"{place}: nobody has said what {keyword!r} means for compatibility"
    olds, news = _branches(old), _branches(new)
    if len(olds) > 1 or len(news) > 1:
        for branch in olds:
            tries = [list(_node(branch, candidate, old_root, new_root, place)) for candidate in news]
            if all(tries):
                yield min(tries, key=len)[0]
        return
    if (
        "type" in new
        and old.get("type") != new["type"]
        and not (old.get("type") == "integer" and new["type"] == "number")
    ):
        yield f"{place}: was {old.get('type', 'anything')}, is {new['type']}"
        return
    yield from _values(old, new, place)
    yield from _fields(old, new, old_root, new_root, place)
    for key in ("items", "additionalProperties", "propertyNames"):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            yield from _node(old[key], new[key], old_root, new_root, f"{place}[]")
    if old.get("prefixItems") != new.get("prefixItems"):
        yield f"{place}: its fixed items changed"


def _values(old: Schema, new: Schema, place: str) -> Iterator[str]:
    for key in LOWER_IS_NARROWER:
        if key in new and (key not in old or new[key] < old[key]):
            yield f"{place}: {key} was {old.get(key, 'not there')}, is {new[key]}"
    for key in HIGHER_IS_NARROWER:
        if key in new and (key not in old or new[key] > old[key]):
            yield f"{place}: {key} was {old.get(key, 'not there')}, is {new[key]}"
    if "pattern" in new and old.get("pattern") != new["pattern"]:
        yield f"{place}: its pattern changed"
    allowed = _choices(new)
    if allowed is not None:
        before = _choices(old)
        gone = sorted(map(str, before - allowed)) if before is not None else ["anything"]
        if gone:
            yield f"{place}: no longer takes {', '.join(gone)}"


def _fields(old: Schema, new: Schema, old_root: Schema, new_root: Schema, place: str) -> Iterator[str]:
    before, now = old.get("properties", {}), new.get("properties", {})
    for name in sorted(before.keys() - now.keys()):
        yield f"{place}.{name}: was removed, and what it said would be lost"
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"{place}.{name}: is needed now, and older records lack it"
    for name in sorted(before.keys() & now.keys()):
        yield from _node(before[name], now[name], old_root, new_root, f"{place}.{name}")


def _resolved(node: Schema, root: Schema) -> Schema:
    while "$ref" in node:
        node = root["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


def _branches(node: Schema) -> list[Schema]:
    return list(node["anyOf"]) if "anyOf" in node else [node]


def _choices(node: Schema) -> set[Any] | None:
    if "const" in node:
        return {node["const"]}
    return set(node["enum"]) if "enum" in node else None
