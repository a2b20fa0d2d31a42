"""Strategies: a pydantic model -> a hypothesis strategy for it, read off its fields, so that a new field is covered.

With `names`, ids are drawn from those few, so that events are about each other; without, ids are whatever the
pattern allows. Words are open: what is sealed is made by sealing.
"""

import re
import types
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from schemas.envelope import Record
from schemas.facts import Event, Fact
from schemas.ids import digest

TEXT_CHARS_MAX = 12
ITEMS_MAX = 3
T0_MS = 1_700_000_000_000
SPAN_MS = 4000
CHARS = st.characters(codec="utf-8")  # without lone surrogates, which no JSON can carry
ID_CHARS = st.characters(codec="utf-8", min_codepoint=0x21, blacklist_characters="/")
SEALED, ID, SUBJECT = "v1", r"^[^\x00-\x20/]+$", r"^[^\x00-\x20/]+/[^\x00-\x20/]+$"


class ShapeUnknownError(Exception):
    """A model has a field that no rule here covers: add the rule."""


@lru_cache(maxsize=512)
def model(kind: type[Fact], names: tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    """Give a strategy for any instance of the model."""
    fields = {}
    for name, field in kind.model_fields.items():
        values = _of(field.annotation, tuple(field.metadata), names)
        if not field.is_required():
            values = st.one_of(st.just(field.default), values)
        fields[name] = values
    return st.builds(kind, **fields)


def _of(annotation: Any, marks: tuple[Any, ...], names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *more = get_args(annotation)
        for one in more:
            marks = (*marks, *(one.metadata if isinstance(one, FieldInfo) else (one,)))
        return _of(base, marks, names)
    if origin in (Union, types.UnionType):
        return st.one_of([_of(one, (), names) for one in get_args(annotation) if not _is_sealed(one)])
    if origin is Literal:
        return st.sampled_from(get_args(annotation))
    if origin is tuple:
        item, _ = get_args(annotation)
        least = _mark(marks, at.MinLen, "min_length", 0)
        return st.lists(_of(item, (), names), min_size=least, max_size=max(ITEMS_MAX, least)).map(tuple)
    if origin is dict:
        key, value = get_args(annotation)
        return st.dictionaries(_of(key, (), names), _of(value, (), names), max_size=ITEMS_MAX)
    if isinstance(annotation, type) and issubclass(annotation, Fact):
        return model(annotation, names)
    return _plain(annotation, marks, names)


def _plain(annotation: Any, marks: tuple[Any, ...], names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    if annotation is type(None):
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low, high = _mark(marks, at.Ge, "ge", None), _mark(marks, at.Le, "le", None)
        if names and high is not None and high > 10**12 and high % 1000 == 999:  # a time: near the others
            return st.integers(T0_MS, T0_MS + SPAN_MS)
        if names and high is not None and high > 10**6:  # a count: near a boundary of the rules
            return st.sampled_from((0, 1, 5, 1000))
        return st.integers(low, high)
    if annotation is float:
        low, high = _mark(marks, at.Ge, "ge", None), _mark(marks, at.Le, "le", None)
        above = _mark(marks, at.Gt, "gt", None)
        return st.floats(
            low if above is None else above, high, exclude_min=above is not None, allow_nan=False, allow_infinity=False
        )
    if annotation is str:
        return _string(marks, names)
    raise ShapeUnknownError(f"{annotation} {marks}")


def _string(marks: tuple[Any, ...], names: tuple[str, ...]) -> st.SearchStrategy[str]:
    pattern = next((mark.pattern for mark in marks if getattr(mark, "pattern", None)), None)
    least, most = _mark(marks, at.MinLen, "min_length", 0), _mark(marks, at.MaxLen, "max_length", TEXT_CHARS_MAX)
    if pattern is None:
        return st.text(CHARS, min_size=least, max_size=min(most, TEXT_CHARS_MAX))
    if pattern == ID:
        return st.sampled_from(names) if names else st.text(ID_CHARS, min_size=1, max_size=TEXT_CHARS_MAX)
    if pattern == SUBJECT:
        one = _string_of_id(names)
        return st.tuples(one, one).map("/".join)
    fixed = re.fullmatch(r"\^\[0-9a-f\]\{(\d+)\}\$", pattern)
    if fixed:
        size = int(fixed[1])
        if names:
            return st.sampled_from([(digest(name) * 2)[:size] for name in names])
        return st.binary(min_size=size // 2, max_size=size // 2).map(bytes.hex)
    return st.from_regex(re.compile(pattern.removesuffix("$") + r"\Z"), fullmatch=True)


def _string_of_id(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from(names) if names else st.text(ID_CHARS, min_size=1, max_size=TEXT_CHARS_MAX)


def _is_sealed(annotation: Any) -> bool:
    marks = [mark for one in get_args(annotation)[1:] for mark in getattr(one, "metadata", ())]
    return any((getattr(mark, "pattern", None) or "").startswith(r"^v1\.") for mark in marks)


def _mark(marks: tuple[Any, ...], kind: type[Any], name: str, otherwise: Any) -> Any:
    return next((getattr(mark, name) for mark in marks if isinstance(mark, kind)), otherwise)


def records(
    topic: str, kinds: Sequence[type[Event]], names: tuple[str, ...], most: int, likely: Any = None
) -> st.SearchStrategy[Any]:
    """Give a strategy for a partition's records: any of these events about those names, in any order.

    `likely` is a strategy for events that make sense, to be found among them.
    """
    nonsense = st.sampled_from(list(kinds)).flatmap(lambda kind: model(kind, names))
    events = st.lists(nonsense if likely is None else likely | likely | nonsense, max_size=most)

    def place(some: list[Event]) -> list[Record]:
        return [
            Record(topic, 0, offset, T0_MS + offset * 100, digest(topic, str(offset)), event)
            for offset, event in enumerate(some)
        ]

    return events.map(place)
