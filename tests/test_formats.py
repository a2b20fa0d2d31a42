"""A value's content says its format; a file may mix them all, and each post stands under its own source's rights."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from schemas.facts import Rights
from schemas.posts import PostObserved
from streams import formats
from streams.ingest import Known
from streams.lines import read_lines
from streams.policy import Policy
from tests.ingest_ends import (
    SHARED,
    as_lines,
    declaration,
    dump,
    in_memory,
    jetstream,
    page,
    post,
    post_v1,
    status,
    take,
    user,
)

SHAPES: list[tuple[str, Any]] = [
    ("x2", post(1)),
    ("x2", page(post(1))),
    ("x2", {"data": post(1), "matching_rules": [{"id": "1"}]}),
    ("x2", {"endpoint": "e", "body": page(post(1))}),
    ("x2", {"delete": {"tweet": {"id": "5", "author_id": "7"}}}),
    ("x2", {"data": {"user_suspend": {"user": {"id": "7"}}}}),
    ("x2", {"errors": [{"title": "t"}]}),
    ("x2", user(5)),
    ("x2", {"id": "5", "action": "delete", "reason": "deleted"}),
    ("x1", post_v1(1)),
    ("x1", post_v1(1, full_text=None, text="t", id_str=None, id=5)),
    ("x1", {"statuses": [post_v1(1)], "search_metadata": {}}),
    ("x1", {"delete": {"status": {"id_str": "5", "user_id_str": "7"}}}),
    ("x1", {"limit": {"track": 3}}),
    ("x1", {"status_withheld": {"id": 5, "user_id": 7, "withheld_in_countries": ["XX"]}}),
    ("jetstream", jetstream()),
    ("jetstream", jetstream("app.bsky.feed.like", {"subject": {}}, rkey="4")),
    ("jetstream", {"did": "did:plc:a", "time_us": 5, "kind": "account", "account": {"active": False}}),
    ("jetstream", {"did": "did:plc:a", "time_us": 5, "kind": "something new"}),
    ("jetstream", declaration(False)),
    ("mastodon", status(1)),
    ("mastodon", {"event": "update", "payload": json.dumps(status(1))}),
    ("mastodon", {"id": "9", "type": "favourite", "account": status(1)["account"], "status": status(1)}),
    ("mastodon", {"id": "9", "type": "follow", "account": status(1)["account"]}),
    ("mastodon", status(1)["account"]),
    ("mastodon", {"id": "9", "accounts": [], "last_status": None, "unread": False}),
    ("mastodon", {"stream": ["public"], "event": "delete", "payload": "5"}),
]
UNKNOWN: list[Any] = [None, True, 5, "text", [], {}, {"hello": "world"}, {"id": "5"}, {"a": {"text": "t"}},
                      {"type": "like", "account": "someone"}, {"type": "follow", "account": {"id": "5"}}]  # fmt: skip


def rights_of(source: str) -> Any:
    return lambda owner: Rights(index=True, train=False, show=True, policy=source)


@pytest.mark.parametrize(("form", "value"), SHAPES, ids=range(len(SHAPES)))
def test_each_format_is_told_by_its_content_alone(form: str, value: Any) -> None:
    assert formats.detect(value) == form
    assert formats.source_of(value) == formats.SOURCES[form]  # type: ignore[index]


@pytest.mark.parametrize("value", UNKNOWN, ids=range(len(UNKNOWN)))
def test_what_is_no_format_is_refused_as_a_whole(value: Any) -> None:
    assert formats.detect(value) is None
    reading = formats.read(value, None, rights_of)
    assert [(one.what, one.reason) for one in reading.refusals] == [("value", "unknown-shape")]
    assert reading.posts_in == 0


def test_a_mixed_file_gives_each_post_its_own_sources_name_and_rights(tmp_path: Path) -> None:
    mixed = [post(1), jetstream(), status(1), post_v1(2), page(post(3), includes={"users": [user(7000)]}), [post(4)]]
    random.Random(5).shuffle(mixed)
    file = tmp_path / "mixed.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n".join([*dump(*mixed), b"{nothing", b'{"of": "ours"}'])))
    summary, end = take(read_lines(str(file)), source=None)
    assert summary.by_source == {"x": 4, "bluesky": 1, "mastodon": 1}
    assert summary.by_policy == {"x-default": 4, "bluesky-default": 1, "mastodon-default": 1}
    assert (summary.refused, summary.unaccounted) == ({"bad-json": 1, "unknown-shape": 1}, 0)
    for one in end.events(PostObserved):
        assert one.post.startswith(f"{one.source}:")
    sources = {dict(one.headers)["ce_source"] for one in end.records}
    assert sources == {b"/sources/x", b"/sources/bluesky", b"/sources/mastodon", b"/sources/unknown-source"}


def test_a_source_of_ones_own_names_what_is_in_the_file_and_another_ones_does_not() -> None:
    values = [post(1), jetstream(), status(1), post_v1(2)]
    summary, end = take(as_lines(dump(*values)), source="own")
    assert (summary.by_source, summary.by_policy) == ({"own": 4}, {"own": 4})
    assert all(one.post.startswith("own:") and one.owner.startswith("own:") for one in end.events(PostObserved))
    for source, fit in (("x", 2), ("bluesky", 1), ("mastodon", 1), ("simulator", 1)):
        summary, end = take(as_lines(dump(*values)), source=source)
        assert (summary.posts, summary.refused) == (fit, {"wrong-source": 4 - fit})
        assert summary.unaccounted == 0


def test_control_a_reader_of_one_format_only_would_leave_the_others_out() -> None:
    from streams import xv2

    for value in (jetstream(), status(1), post_v1(1)):
        assert not xv2.read(value, "x", rights_of("x")).said


def test_real_values_are_what_their_folders_say() -> None:
    places = {
        "x2": "v2-academic/pages_v2.jsonl.gz",
        "x1": "rumoureval2017/tweets_v11.jsonl.gz",
        "jetstream": "bluesky-jetstream/expected_v1.jsonl",
    }
    if not SHARED.exists():
        pytest.skip(f"real data is not on this machine ({SHARED})")
    for form, place in places.items():
        raw = (SHARED / place).read_bytes()
        lines = (gzip.decompress(raw) if place.endswith("gz") else raw).splitlines()
        assert {formats.detect(json.loads(line)) for line in lines} == {form}


# ---- what authors declare -------------------------------------------------------------------------------------------


def test_a_declaration_holds_from_the_next_post_on_and_is_in_the_log_before_it() -> None:
    known = in_memory()
    values = [jetstream(rkey="a"), declaration(True), jetstream(rkey="b"), declaration(False), jetstream(rkey="c"),
              declaration(None), jetstream(rkey="d")]  # fmt: skip
    summary, end = take(as_lines(dump(*values)), source=None, known=known)
    policies = [(one.rights.policy, one.rights.train) for one in end.events(PostObserved)]
    assert policies == [
        ("bluesky-default", False),
        ("bluesky-default+declared-yes", True),
        ("bluesky-default+declared-no", False),
        ("bluesky-default", False),
    ]
    assert (summary.intents, summary.posts, summary.withheld) == (3, 4, {"train": 3})
    order = [type(one.event).__name__ for one in end.records]
    assert order == ["PostObserved", "IntentDeclared"] * 3 + ["PostObserved"]
    assert len({dict(one.headers)["ce_id"] for one in end.records}) == 7


def test_a_no_wins_over_a_policy_that_says_yes_and_a_yes_over_none_that_says_no(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    for train, declared, granted in (
        ("true", None, True), ("true", False, False), ("true", True, True), ("false", True, False),
        ('"declared"', True, True), ('"declared"', False, False), ('"declared"', None, False),
    ):  # fmt: skip
        file.write_text(f'[bluesky]\npolicy = "mine"\nindex = true\ntrain = {train}\nshow = true\n')
        _, end = take(as_lines(dump(declaration(declared), jetstream())), source=None, policy=Policy.load(file))
        assert [one.rights.train for one in end.events(PostObserved)] == [granted], (train, declared)


def test_the_same_words_declared_again_later_are_another_event_and_the_same_message_is_not() -> None:
    values = [declaration(True, 1_000_000), declaration(False, 2_000_000), declaration(True, 3_000_000)]
    _, end = take(as_lines(dump(*values, values[0])), source=None)
    ids = [dict(one.headers)["ce_id"] for one in end.records]
    assert (len(set(ids)), ids[0]) == (3, ids[3])
    hides = [{"user_suspend": {"user": {"id": "7"}, "event_at": f"2026-01-0{day}T00:00:00Z"}} for day in (1, 2, 1)]
    _, end = take(as_lines(dump(*hides)), source=None)
    assert len({dict(one.headers)["ce_id"] for one in end.records}) == 2


def own_and_declared(source: str, known: Known) -> list[Rights]:
    """The rights of four posts taken in under `source`."""
    _, end = take(as_lines(dump(jetstream(), post(1), status(1), post_v1(2))), source=source, known=known)
    return [one.rights for one in end.events(PostObserved)]


def test_a_declared_no_counts_under_a_source_that_the_operator_names_too() -> None:
    known = in_memory()
    take(as_lines(dump(declaration(False))), source=None, known=known)
    bluesky, *others = own_and_declared("own", known)
    assert (bluesky.train, bluesky.policy) == (False, "own+declared-no")
    assert all(one.train and one.policy == "own" for one in others)
    take(as_lines(dump(declaration(True, 1_767_614_500_000_000))), source=None, known=known)
    assert own_and_declared("own", known)[0].policy == "own"
    take(as_lines(dump(declaration(False))), source="own", known=known)  # and what the file itself says
    assert own_and_declared("own", known)[0].policy == "own+declared-no"


def test_what_may_not_be_stored_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[x]\npolicy = "none"\nindex = false\ntrain = true\nshow = true\n')
    values = [post(1), post(2), {"delete": {"tweet": {"id": "5", "author_id": "7"}}}, jetstream()]
    summary, end = take(as_lines(dump(*values)), source=None, policy=Policy.load(file))
    assert (summary.refused, summary.refused_posts, summary.posts) == ({"rights-index": 3}, 3, 0)
    assert summary.withheld == {"index": 3, "train": 3, "show": 3}
    assert (summary.deletions, summary.unaccounted) == (1, 0)
    assert end.letters() == []  # a letter would keep a hash of it for ever
    assert not [one for one in end.records if b"post" in one.value and one.topic == "tweets" and b"PostO" in one.value]
