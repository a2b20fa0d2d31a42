"""What may not be kept leaves no letter, no hash and no byte, however much of the payload does not fit."""

import base64
import random
from collections.abc import Iterator
from typing import Any

import pytest

from schemas.posts import PostObserved
from streams.ingest import Summary
from streams.letters import UNLETTERED
from streams.lines import Damage, Value
from streams.policy import Policy
from tests.ingest_ends import (
    DID,
    MemoryKeys,
    Recorder,
    as_lines,
    dump,
    jetstream,
    page,
    post,
    post_v1,
    take,
    take_values,
    user,
    user_v1,
)
from tests.mangling import mangled
from tests.mastodon_server import HOST, account, status

CASES = 4_000
SECRET = "ZQXJKV"


def told(payload: Any, event: str = "update") -> dict[str, Any]:
    return {"host": HOST, "event": event, "payload": payload}


def objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
        if isinstance(one, dict | list):
            waiting.extend(one.values() if isinstance(one, dict) else one)


def balanced(summary: Summary) -> bool:
    return summary.unaccounted == 0 and set(summary.refused) <= UNLETTERED


def kept(end: Recorder) -> list[Any]:
    """Give what refusals left behind."""
    letters = [one.event for one in end.records if one.topic != "tweets"]
    return [(one.reason, base64.b64decode(one.content.head)) for one in letters]


def bad(who: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """One author's statuses of which something does not fit."""
    changes: list[dict[str, Any]] = [
        {"tags": [{"name": SECRET * 100}]}, {"created_at": "2026-01-05T00:00:60Z"}, {"id": 5}, {"mentions": 7},
        {"content": f'<p>{SECRET} <a href="https://e.example/{"a" * 4200}">x</a></p>'}, {"favourites_count": -1},
        {"account": {**who, "display_name": "N" * 600}}, {"content": "\ud800"}, {"poll": SECRET},
    ]  # fmt: skip
    return [status(**{"account": who, **more, **one}) for one in changes]


def test_an_account_that_says_no_leaves_nothing_whatever_else_does_not_fit() -> None:
    for no in ({"indexable": False}, {"noindex": True}, {"note": "<p>#<b>nobot</b></p>"}):
        values = [told(one) for one in bad(account(**no))]
        values += [
            {**told(status(account=account(**no))), "host": 5},
            {**told(status(account=account(**no))), "event": 5},
        ]
        summary, end = take_values(values, "mastodon")
        assert (end.records, summary.refused) == ([], {"rights-index": len(values)})
        assert balanced(summary)
    assert take_values([told(one) for one in bad(account())], "mastodon")[1].records, "the control: who says yes"


def test_what_is_not_for_everyone_leaves_nothing_where_the_message_around_it_does_not_fit() -> None:
    for wrong in ({"host": 5}, {"event": 5}):
        summary, end = take_values([told(status(visibility="direct", content=SECRET)) | wrong], "mastodon")
        assert (end.records, summary.refused) == ([], {"not-public": 1})


ERASED = ["mastodon:@social.example:11", "x:@7001", f"bluesky:@{DID}"]


def test_an_erased_author_leaves_nothing_whatever_else_does_not_fit() -> None:
    keys = MemoryKeys()
    keys.keys.update(dict.fromkeys(ERASED))
    values = [
        *(told(one) for one in bad(account())),
        *(status(account=account(), tags=[{"name": SECRET * 100}], uri=f"https://{HOST}/1") for _ in "x"),
        post(1, created_at="once"),
        page(post(1, text=5), includes={"users": [user(7001, name=SECRET * 100)]}),
        post_v1(1, created_at="once"),
        post_v1(1, user=user_v1(7001, name=SECRET * 100)),
        jetstream(record={"$type": "app.bsky.feed.post", "text": SECRET, "createdAt": "once"}),
    ]
    summary, end = take_values(values, None, keys=keys)
    assert (end.records, set(summary.refused)) == ([], {"owner-erased"})
    assert balanced(summary)
    alive = take_values(values, None)[1]
    assert len(kept(alive)) >= len(values) - 1, "the control: whose key is there"


def test_of_a_source_that_may_not_be_stored_nothing_is_left(tmp_path: Any) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[own]\npolicy = "own-no"\nindex = false\ntrain = false\nshow = false\n')
    lines = as_lines([*dump(post(1), post(2, created_at="once"), {"x": SECRET}), b"{broken " + SECRET.encode()])
    lines.append(Damage("made:9", "too-large", "cut", 9, "0" * 64, SECRET.encode()))
    summary, end = take(lines, "own", policy=Policy.load(file))
    assert (end.records, summary.refused) == ([], {"rights-index": 5})
    assert balanced(summary)
    assert summary.withheld["index"] >= 1
    assert len(kept(take(lines, "own")[1])) == 4, "the control: the table that comes with the program"


def test_a_letter_about_somebody_else_is_still_written() -> None:
    keys = MemoryKeys()
    keys.keys.update(dict.fromkeys(ERASED))
    values = [told(one) for one in bad(account("12"))] + [{"x": 1}, told(5), told("5", "delete")]
    summary, end = take_values(values, "mastodon", keys=keys)
    assert len(kept(end)) == sum(summary.refused.values()) >= len(values) - 1
    assert not UNLETTERED & summary.refused.keys()


@pytest.mark.parametrize("why", ["indexable", "erased", "policy"])
def test_whatever_is_mangled_nothing_is_kept_of_what_may_not_be(why: str, tmp_path: Any) -> None:
    rng = random.Random(20_260_105)
    keys, policy = MemoryKeys(), tmp_path / "policy.toml"
    keys.keys[ERASED[0]] = None if why == "erased" else b"k" * 64
    policy.write_text(
        f'[mastodon]\npolicy = "m"\nindex = {str(why != "policy").lower()}\ntrain = false\nshow = false\n'
    )
    words = f"<p>{SECRET}</p>"
    who = account(indexable=why != "indexable", display_name=SECRET, note=words)
    whole = told(status(account=who, content=words, spoiler_text=SECRET, tags=[{"name": SECRET}]))
    del whole["payload"]["reblog"], whole["payload"]["quote"]  # junk in their place would be a status of its own
    refused = 0
    for turn in range(CASES):
        value = mangled(rng, whole)
        if isinstance(value, dict) and isinstance(value.get("payload"), list):
            continue  # several, each with a fate of its own: what is not theirs is told of
        if why == "indexable" and not any(one.get("indexable") is False for one in objects(value)):
            continue
        if why == "erased" and not (
            isinstance(value, dict)
            and value.get("host") == HOST
            and any(isinstance(one.get("account"), dict) and one["account"].get("id") == "11" for one in objects(value))
        ):
            continue
        summary, end = take([Value("made", value)], "mastodon", keys=keys, policy=Policy.load(policy))
        assert not kept(end), (turn, kept(end))
        assert summary.unaccounted == 0
        for one in end.events(PostObserved):  # somebody else's, or one whose no was mangled away
            assert why != "policy"
            assert why != "erased" or one.owner != ERASED[0]
        refused += bool(summary.refused)
    assert refused > CASES // 4
