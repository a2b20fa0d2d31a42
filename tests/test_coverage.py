"""Every field that applies is there for nearly all posts of every source, and is what the payload itself says."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import metadata
from schemas.envelope import Record
from schemas.events import EngagementDescribed, PostDescribed
from streams import coverage as module
from streams.coverage import Column, coverage, table, values
from streams.formats import READERS, SOURCES, Format, detect
from streams.xv2_post import unescape
from tests.ingest_ends import SHARED, jetstream, page, post, post_v1, status, user

FILES = {
    "x2": SHARED / "v2-academic" / "pages_v2.jsonl.gz",
    "x1": SHARED / "rumoureval2017" / "tweets_v11.jsonl.gz",
    "jetstream": SHARED / "bluesky-jetstream" / "expected_v1.jsonl",
}
SHARE_MIN = 0.95
SEEN_MS = 1_798_761_600_000  # 2027: after all that is read here
needs_posts = pytest.mark.skipif(
    not all(path.exists() for path in FILES.values()), reason=f"real posts are not on this machine ({FILES['x2']})"
)


def lacking(column: Column) -> dict[str, float]:
    """Name the fields that too few of the posts have to which they apply."""
    return {name: column.got[name] / n for name, n in column.applies.items() if column.got[name] < SHARE_MIN * n}


# ---- on real posts --------------------------------------------------------------------------------------------------


@needs_posts
@pytest.mark.parametrize("form", FILES)
def test_of_real_posts_nearly_all_get_every_field_that_applies(form: Format) -> None:
    found = coverage(values([str(FILES[form])]), SEEN_MS)
    assert set(found) == {form}
    column = found[form]
    assert column.posts["PostDescribed"] == column.posts["read"] - column.posts["refused"] > 4
    assert column.posts["refused"] == 0
    assert lacking(column) == {}
    assert column.applies["language"] > 4


def described(given_: Iterable[Any]) -> Iterable[tuple[dict[str, Any], PostDescribed, EngagementDescribed | None]]:
    """Give posts beside what was made of them."""
    state = metadata.State()
    for value in given_:
        form = detect(value)
        for said in READERS[form](value, SOURCES[form], lambda owner: module.RIGHTS).said if form else ():
            records = [Record("tweets", 0, n, SEEN_MS, "", event) for n, event in enumerate(said.events)]
            outs = [out.event for out in metadata.step(records, state)[0]]
            seen = next((one for one in outs if isinstance(one, PostDescribed)), None)
            if seen is not None and isinstance(said.raw, dict):
                yield said.raw, seen, next((one for one in outs if isinstance(one, EngagementDescribed)), None)


def own(raw: dict[str, Any]) -> dict[str, Any]:
    """Say of a post of either version of X's API what the payload says, without the readers."""

    def entities(*names: str) -> list[Any]:
        return [one for name in names for one in (raw.get("entities") or {}).get(name) or ()]

    counts = raw.get("public_metrics") or {}
    return {
        "lang": raw["lang"],
        "chars": len(unescape(raw["text"])),
        "hashtags": len(entities("hashtags")),
        "cashtags": len(entities("cashtags", "symbols")),
        "mentions": len({one["id"] for one in entities("mentions", "user_mentions") if one.get("id")}),
        "links": len(entities("urls")),
        "likes": counts.get("like_count", raw.get("favorite_count")),
        "reposts": counts.get("retweet_count", raw.get("retweet_count")),
        "replies": counts.get("reply_count"),
        "quotes": counts.get("quote_count"),
    }


def differences(given_: Iterable[Any], spoil: Any = lambda seen: seen) -> Counter[str]:
    """Count, for each field, the posts of which something else was said than the payload says."""
    differ: Counter[str] = Counter()
    for raw, seen, counted in described(given_):
        if "text" not in raw or seen.features is None or counted is None:
            continue  # a repost
        found = {**spoil(seen).features.model_dump(), **counted.model_dump(), "lang": spoil(seen).lang}
        differ["posts"] += 1
        for name, value in own(raw).items():
            differ[name] += found[name] != value
    return +differ


@needs_posts
@pytest.mark.parametrize("form", ["x2", "x1"])
def test_what_is_said_of_real_posts_is_what_their_payload_says(form: str) -> None:
    differ = differences(values([str(FILES[form])]))
    assert differ.pop("posts") > 4_000
    assert differ == {}


def test_control_a_wrong_description_would_be_noticed() -> None:
    def spoil(seen: PostDescribed) -> PostDescribed:
        return seen.model_copy(update={"lang": "xx"})

    assert differences([page(post(1))]) == {"posts": 1}
    assert differences([page(post(1))], spoil) == {"posts": 1, "lang": 1}


# ---- on made ones ---------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_applies_to_some_source() -> None:
    metrics = {**post()["public_metrics"], "bookmark_count": 4}
    x2 = page(post(1, public_metrics=metrics), includes={"users": [user(7001)]})
    found = coverage([x2, post_v1(2), jetstream(), status(3)], SEEN_MS)
    assert set(found) == set(module.NAMES)
    names = [name for name, _, _ in module.POST + module.ENGAGEMENT]
    assert {name for name in names for column in found.values() if column.share(name) == 1.0} == set(names)
    text = table(found)
    assert text.splitlines()[2] == "| posts described | 1 | 1 | 1 | 1 |"
    assert "| counts: views | 100.0 % of 1 | – | – | – |" in text


def test_control_a_field_that_is_lost_on_the_way_is_found_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = [page(post(1), post(2), includes={"users": [user(7001)]}), status(3)]
    assert all(lacking(column) == {} for column in coverage(given_, SEEN_MS).values())
    real = metadata.post_described

    def forgetful(*args: Any) -> PostDescribed:
        return real(*args).model_copy(update={"utc": None, "author": None})

    monkeypatch.setattr(metadata, "post_described", forgetful)
    assert "hour, weekday, season (UTC)" in lacking(coverage(given_, SEEN_MS)["x2"])
    assert "author: bot" in lacking(coverage(given_, SEEN_MS)["mastodon"])


def test_posts_that_are_refused_are_counted_and_not_described() -> None:
    column = coverage([page(post(1), post(2, author_id=None)), {"no": "format"}, 7], SEEN_MS)["x2"]
    assert (column.posts["read"], column.posts["refused"], column.posts["PostDescribed"]) == (2, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            post,
            st.integers(1, 9),
            text=st.text(max_size=30),
            lang=st.sampled_from(["en", "ja", "und", None]),
            created_at=st.sampled_from(["2026-01-05T12:00:00.000Z", "1970-01-01T00:00:00.000Z", None]),
        ),
        max_size=4,
    )
)
def test_any_posts_can_be_looked_at(posts: list[Any]) -> None:
    column = coverage([page(*posts)], SEEN_MS).get("x2")
    assert column is None or all(column.got[name] <= n for name, n in column.applies.items())
    assert table(coverage([page(*posts)], SEEN_MS)).startswith("| field |")
