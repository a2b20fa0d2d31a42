"""Words: they lie only where they may be erased, sealed, and no field beside has room for them."""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from schemas import envelope, facts, learned, seal, topics
from schemas import events as e
from schemas import posts as ps
from schemas.envelope import Refused
from schemas.topics import HOME, KINDS
from streams.memory import Engine, Logged
from streams.records import outside, tick
from streams.topology import Tuning, stages
from tests.feeds import worded
from tests.wire import ANSWER, POST, RIGHTS, Keyring

# ---- words only where they may be erased ----------------------------------------------------------------------------


def open_strings(annotation: Any, marks: Sequence[Any] = ()) -> list[int | None]:
    """List the longest lengths of the strings without a pattern that a field can hold (None: no limit)."""
    if get_origin(annotation) is not None and hasattr(annotation, "__metadata__"):
        more = [mark for one in annotation.__metadata__ for mark in getattr(one, "metadata", ())]
        return open_strings(get_args(annotation)[0], more)
    if annotation is str:
        if any(getattr(mark, "pattern", None) for mark in marks):
            return []
        return [next((mark.max_length for mark in marks if hasattr(mark, "max_length")), None)]
    if inspect.isclass(annotation) and issubclass(annotation, facts.Fact):
        return [
            size
            for field in annotation.model_fields.values()
            for size in open_strings(field.annotation, field.metadata)
        ]
    return [size for one in get_args(annotation) for size in open_strings(one)]


def can_hold_words(kind: type[facts.Fact]) -> bool:
    return any(size is None or size > 512 for size in open_strings(kind))


def test_only_sealed_content_has_room_for_words() -> None:
    sealed = {kind for kind in KINDS.values() if "content" in kind.model_fields}
    assert sealed == set(seal.CONTENT)
    assert {HOME[kind].name for kind in sealed} == {"tweets", "answers", "dead-letters"}
    for kind in set(KINDS.values()) - sealed - {learned.ModelTrained}:  # its settings are the operator's
        assert not can_hold_words(kind), f"{kind.__name__} has a field that could hold somebody's words"
    for kind in seal.CONTENT:
        assert can_hold_words(kind)
        others = {name: field for name, field in kind.model_fields.items() if name != "content"}
        assert all((size or 513) <= 512 for f in others.values() for size in open_strings(f.annotation, f.metadata))
        assert "owner" in kind.model_fields


def said_with_canaries(open_words: bool = False) -> tuple[Engine, list[str]]:
    """Run posts, answers, feedback and broken records through every stage; gives the engine and the words used."""
    keys = Keyring()
    engine = Engine(stages(Tuning(ages_ms=(1000,))), keys, 2, seed=1)
    words = [f"canary{hashlib.sha256(str(i).encode()).hexdigest()[:12]}" for i in range(12)]
    t0 = 1_700_000_000_000
    said: list[facts.Event] = []
    for i in range(6):
        content = facts.PostContent(
            text=f"{words[i]} and more words", username=words[6], hashtags=(words[7],), links=(words[8],)
        )
        said.append(
            ps.PostObserved(
                post=f"p:{i}",
                owner=f"x:@{i % 3}",
                source="x",
                raw_sha256="0" * 64,
                rights=RIGHTS,
                parent="p:0" if i else None,
                content=content,
            )
        )
        said.append(
            ps.EngagementObserved(
                post=f"p:{i}", owner=f"x:@{i % 3}", source="x", parent="p:0", likes=9**i, rights=RIGHTS
            )
        )
    turn = facts.Turn(role="user", content=words[9])
    for texts in ((words[10], words[11]), (words[10],)):  # the second is refused: two items, one text
        content = facts.AnswerContent(messages=(turn,), texts=texts)
        said.append(ANSWER.model_copy(update={"items": ("i:1", "i:2"), "content": content, "seed": len(texts)}))
    said.append(e.FeedbackGiven(feedback="f", subject="q:1/i:1", rater="r", kind="choice", other="q:1/i:2"))
    engine.append([outside(worded(event), "/sources/x", t0, 2, keys) for event in said])
    for place in engine.log.values():
        place += [Logged(len(place) + i, t0, None, one.value[:-2], one.headers) for i, one in enumerate(place[:2])]
    if open_words:
        headers = envelope.headers(POST, "open", "/sources/x", t0)
        value = envelope.body(POST.model_copy(update={"content": facts.PostContent(text=words[0])}))
        engine.log["tweets", 0].append(Logged(len(engine.log["tweets", 0]), t0, None, value, headers))
    engine.run()
    engine.append([tick(topics.SIGNALS, p, t0 + 5000) for p in range(2)])
    engine.run()
    return engine, words


def holding(engine: Engine, words: list[str]) -> list[tuple[str, int, int]]:
    """Find the records whose bytes hold one of the words."""
    found = []
    for (topic, partition), records in engine.log.items():
        for raw in records:
            data = b"\0".join([raw.key or b"", raw.value or b"", *(value or b"" for _, value in raw.headers)])
            if any(word.encode() in data for word in words):
                found.append((topic, partition, raw.offset))
    return found


def test_no_word_of_a_post_or_an_answer_lies_open_in_any_record() -> None:
    engine, words = said_with_canaries()
    assert holding(engine, words) == []
    assert all(engine.log[topic, 0] for topic in ("preferences", "dead-letters", "interactions"))
    opened = set()
    for topic in ("tweets", "answers"):
        for partition in range(2):
            for raw in engine.log[topic, partition]:
                try:
                    record = envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
                except Refused:
                    continue
                text = str(getattr(seal.unseal(record.event, record.id, engine.keys), "content", ""))
                opened |= {word for word in words if word in text}
    assert opened == set(words)


def test_a_word_that_somebody_wrote_in_the_open_is_found_and_goes_no_further() -> None:
    engine, words = said_with_canaries(open_words=True)
    assert holding(engine, words) == [("tweets", 0, len(engine.log["tweets", 0]) - 1)]


def test_nested_unions_hide_no_open_string() -> None:
    assert open_strings(facts.PostContent | None) != []
    assert open_strings(Union[facts.Hash, None]) == []  # noqa: UP007
    assert open_strings(dict[str, int]) == [None]
