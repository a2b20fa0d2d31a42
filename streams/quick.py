"""Quick: a record's bytes -> its fields, for those that want nothing else; in half the time of the strict reader.

The same models, rendered for msgspec with every limit and pattern they have. Whatever it reads, schemas/envelope.py
would read with the same values (a property test); whatever it cannot read, it gives back as None, and the strict
reader decides and says the reason. It never reads a record of words that are not sealed.
"""

import re
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
import msgspec
from pydantic.fields import FieldInfo

from schemas.envelope import TYPE_PREFIX, WORDED
from schemas.facts import MS_MAX, SEALED_CHARS_MAX, Event, Fact
from schemas.topics import KINDS, RECORD_BYTES_MAX, TOPICS

ORIGIN = re.compile(rb"[!-.0-~]+/[0-9]+/[0-9]+/[0-9]+")  # after the stage: topic, partition, offset, ordinal
ID_CHARS_MAX = 256
WRITER_CHARS_MAX = 64
Sealed = Annotated[str, msgspec.Meta(pattern=r"^v1\.[A-Za-z0-9_-]+\Z", max_length=SEALED_CHARS_MAX)]


class ShapeUnknown(TypeError):
    """A model has a field that no rule here renders: add the rule."""


@cache
def _shape(kind: type[Fact]) -> type[msgspec.Struct]:
    """Render a model for msgspec: same names, types, limits, patterns and defaults."""
    fields: list[Any] = []
    for name, field in kind.model_fields.items():
        if name == "content" and kind in WORDED:
            fields.append((name, Sealed | None, None))
            continue
        shape = _type(field.annotation, tuple(field.metadata))
        fields.append((name, shape) if field.is_required() else (name, shape, field.get_default()))
    # Unknown fields are left to the strict reader: msgspec would skip them without looking whether they are JSON.
    return msgspec.defstruct(kind.__name__, fields, kw_only=True, gc=False, forbid_unknown_fields=True)


def _type(annotation: Any, marks: tuple[Any, ...]) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *more = get_args(annotation)
        for one in more:
            marks = (*marks, *(one.metadata if isinstance(one, FieldInfo) else (one,)))
        return _type(base, marks)
    if origin in (Union, types.UnionType):
        return Union[tuple(_type(one, ()) for one in get_args(annotation))]  # noqa: UP007
    if origin is Literal:
        return annotation
    if origin is tuple:
        return _limited(tuple[_type(get_args(annotation)[0], ()), ...], marks)  # type: ignore[misc]
    if origin is dict:
        key, value = get_args(annotation)
        return dict[_type(key, ()), _type(value, ())]  # type: ignore[misc]
    if isinstance(annotation, type) and issubclass(annotation, Fact):
        return _shape(annotation)
    if annotation in (str, int, float, bool, type(None)):
        return _limited(annotation, marks)
    raise ShapeUnknown(f"{annotation} {marks}")


def _limited(plain: Any, marks: tuple[Any, ...]) -> Any:
    meta: dict[str, Any] = {}
    for mark in marks:
        for ours, theirs in ((at.Ge, "ge"), (at.Gt, "gt"), (at.Le, "le"), (at.Lt, "lt")):
            if isinstance(mark, ours):
                meta[theirs] = getattr(mark, theirs)
        for name in ("min_length", "max_length"):
            if getattr(mark, name, None) is not None:
                meta[name] = getattr(mark, name)
        pattern = getattr(mark, "pattern", None)
        if pattern is not None:  # `$` is the very end for pydantic, and for Python's re also before a last line feed
            meta["pattern"] = pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern
    return Annotated[plain, msgspec.Meta(**meta)] if meta else plain


_KIND: dict[tuple[str, bytes], tuple[type[Event], Callable[[bytes], Any]]] = {
    (topic.name, f"{TYPE_PREFIX}{kind.__name__}.v{kind.VERSION}".encode()): (
        kind,
        msgspec.json.Decoder(_shape(KINDS[kind.__name__])).decode,
    )
    for topic in TOPICS
    for kind in topic.events
}


def fields_of(topic: str, time_ms: int, headers: Any, value: bytes | None) -> tuple[type[Event], str, str, Any] | None:
    """Read one record of `topic` (its table name), or give None: ask the strict reader.

    Gives its kind, its id, who wrote it (the stage, else ce_source), and an object with its fields as attributes.
    """
    try:
        named = dict(headers)
        kind, decode = _KIND[topic, named["ce_type"]]
        event_id = named["ce_id"].decode()
        origin = named.get("ce_origin")
        writer = writer_of(named.get("ce_source")) if origin is None else _stage(origin)
        if len(named) != len(headers):  # two of one name: which one counts is not for us to say
            return None
        if value is None or len(value) > RECORD_BYTES_MAX or not 0 <= time_ms <= MS_MAX:
            return None
        return (kind, event_id, writer, decode(value)) if 0 < len(event_id) <= ID_CHARS_MAX else None
    except (ValueError, KeyError, TypeError, AttributeError):  # not UTF-8, not there, no headers, not of this shape
        return None


def _stage(origin: bytes) -> str:
    stage, _, rest = origin.partition(b"/")
    if ORIGIN.fullmatch(rest) is None:
        raise ValueError
    return stage.decode("ascii")


def writer_of(source: bytes | None) -> str:
    """Give ce_source, cut short, of a record that no stage wrote."""
    return (source or b"").decode(errors="replace")[:WRITER_CHARS_MAX]
