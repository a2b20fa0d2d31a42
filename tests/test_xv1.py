"""X's older API: every shape becomes the events that v2 would give of the same posts, or a refusal with a reason."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.facts import Rights
from schemas.posts import (
    AuthorErased,
    AuthorHidden,
    AuthorShown,
    EngagementObserved,
    PostDeleted,
    PostEdited,
    PostObserved,
)
from streams import xv1, xv2
from streams.lines import parse, read_lines
from streams.reading import Reading
from tests.ingest_ends import SHARED, as_lines, dump, post, post_v1, take, user, user_v1

RIGHTS = Rights(index=True, train=False, show=True, policy="x-default")
REAL = SHARED / "rumoureval2017" / "tweets_v11.jsonl.gz"


def read(value: Any, source: str = "x") -> Reading:
    reading = xv1.read(value, source, lambda owner: RIGHTS)
    posts = sum(isinstance(one.events[0], PostObserved) for one in reading.said)
    assert reading.posts_in == posts + sum(one.what == "post" for one in reading.refusals) + reading.repeated
    return reading


def said(value: Any, source: str = "x") -> list[Any]:
    reading = read(value, source)
    assert not reading.refusals
    return [event for one in reading.said for event in one.events]


def reasons(value: Any) -> list[tuple[str, str]]:
    return [(one.what, one.reason) for one in read(value).refusals]


def test_both_formats_of_one_post_are_one_post() -> None:
    changes = {"text": None, "full_text": "1 &lt; 2 @p9 #Tag $ACME https://t.co/a"}
    entities = {
        "hashtags": [{"text": "Tag"}],
        "symbols": [{"text": "ACME"}],
        "user_mentions": [{"id": 9, "id_str": "9", "screen_name": "p9"}],
        "urls": [{"url": "https://t.co/a", "expanded_url": "https://example.org/a"}],
    }
    old, counts = said(post_v1(1, entities=entities, **changes))
    new_entities = {
        "hashtags": [{"tag": "Tag"}],
        "cashtags": [{"tag": "ACME"}],
        "mentions": [{"id": "9", "username": "p9"}],
        "urls": [{"url": "https://t.co/a", "expanded_url": "https://example.org/a"}],
    }
    raw = post(
        1, text=changes["full_text"], entities=new_entities, public_metrics={"retweet_count": 2, "like_count": 5}
    )
    page = {"data": raw, "includes": {"users": [user(7001)]}}
    new, new_counts = (
        event for one in xv2.read(page, "x", lambda owner: RIGHTS).said for event in one.events
    )  # fmt: skip
    assert counts == new_counts
    told = {"raw_sha256": "0" * 64, "author": None}
    assert old.model_copy(update=told) == new.model_copy(update=told)
    assert old.author == new.author.model_copy(update={"utc_offset_s": -18000})


def test_the_long_text_is_taken_whole_wherever_it_stands() -> None:
    long = {"full_text": "long &amp; whole", "entities": {"hashtags": [{"text": "whole"}]},
            "extended_entities": {"media": [{"type": "animated_gif"}]}}  # fmt: skip
    streamed = post_v1(1, full_text=None, text="long… https://t.co/x", truncated=True, extended_tweet=long)
    found = said(streamed)[0]
    assert (found.content.text, found.content.hashtags) == ("long & whole", ("whole",))
    assert (found.media, found.media_kinds) == (1, ("gif",))
    whole = said(post_v1(1, full_text="@p9 in the middle https://t.co/x", display_text_range=[4, 17]))[0]
    assert whole.content.text == "@p9 in the middle https://t.co/x"
    assert said(post_v1(1, full_text=None, text="cut…", truncated=True))[0].content.text == "cut…"


def test_a_retweet_and_the_post_it_carries_are_two_posts() -> None:
    original = post_v1(5, user=user_v1(70))
    repost = post_v1(9, full_text="RT @p70: post 5", retweeted_status=original)
    reading = read(repost)
    assert (reading.posts_in, len(reading.said)) == (2, 2)
    first, _, second = [event for one in reading.said for event in one.events]
    assert (first.post, first.owner, first.content.text) == (f"x:{original['id_str']}", "x:@70", "post 5")
    assert (second.reposted, second.reposted_author) == (first.post, "x:@70")
    assert (second.content, second.words) == (None, None)
    assert said({"statuses": [repost, post_v1(5, user=user_v1(70))]})[0] == first


def test_a_quote_names_what_it_quotes_even_where_that_is_gone() -> None:
    quote = post_v1(9, quoted_status_id=5, quoted_status_id_str="5", quoted_status=post_v1(5, id_str="5"))
    assert [type(one) for one in said(quote)] == [PostObserved, EngagementObserved] * 2
    found = next(one for one in said(quote) if one.post.endswith("09") and type(one) is PostObserved)
    assert (found.quoted, found.quoted_author) == ("x:5", "x:@7002")
    gone = said(post_v1(9, quoted_status_id_str="5", is_quote_status=True))[0]
    assert (gone.quoted, gone.quoted_author) == ("x:5", None)
    both = said(post_v1(8, retweeted_status=quote, quoted_status=quote["quoted_status"], quoted_status_id_str="5"))
    assert [one.quoted for one in both if type(one) is PostObserved and one.reposted] == [None]


def test_a_reply_names_its_parent_and_a_root_its_own_conversation() -> None:
    reply = post_v1(1, in_reply_to_status_id_str="55", in_reply_to_user_id=9, in_reply_to_user_id_str="9")
    found = said(reply)
    assert (found[0].parent, found[0].reply_to, found[0].conversation, found[1].parent) == (
        "x:55",
        "x:@9",
        None,
        "x:55",
    )
    assert said(post_v1(1))[0].conversation == f"x:{10**18 + 1}"


@given(st.integers(2**53 + 1, 2**63 - 1))
def test_a_number_that_may_have_been_rounded_is_never_an_id(number: int) -> None:
    rounded = int(float(number))
    assert said(post_v1(1, id=rounded, id_str=str(number)))[0].post == f"x:{number}"
    assert reasons(post_v1(1, id=number, id_str=None)) == [("post", "bad-id")]
    reply = post_v1(1, in_reply_to_status_id=rounded, in_reply_to_status_id_str=str(number))
    assert said(reply)[0].parent == f"x:{number}"


def test_control_a_reader_that_takes_the_number_would_name_another_post() -> None:
    number = 580319078155468801
    assert int(float(number)) != number
    assert said(post_v1(1, id=2**53, id_str=None))[0].post == f"x:{2**53}"


def test_counts_and_profiles_that_move_make_no_other_post() -> None:
    later = post_v1(1, favorite_count=99, retweet_count=98, reply_count=1, quote_count=4, favorited=True)
    later["user"] = user_v1(7001, followers_count=99)
    then, now = said(post_v1(1)), said(later)
    assert then[0].raw_sha256 == now[0].raw_sha256
    assert (now[1].likes, now[1].reposts, now[1].replies, now[1].quotes) == (99, 98, 1, 4)
    assert now[1].claimed_ms == now[0].claimed_ms


def test_a_later_version_goes_under_the_first_ones_id() -> None:
    history = {"initial_tweet_id": "101", "edit_tweet_ids": ["101", "102"]}
    found = said(post_v1(1, id_str="102", edit_history=history))[0]
    assert type(found) is PostEdited
    assert (found.post, found.revision, found.named) == ("x:101", 2, "x:102")
    assert said(post_v1(2, retweeted_status=post_v1(1, id_str="102", edit_history=history)))[-1].reposted == "x:101"


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("Thu Jan 01 00:00:00 +0000 1970", 0),
        ("Tue Mar 24 10:43:44 +0000 2015", 1_427_193_824_000),
        ("Tue Mar 24 10:43:44 -0530 2015", 1_427_213_624_000),
        ("Fri Jan 01 00:00:00 +0000 2100", 4_102_444_800_000),
    ],
)
def test_times_are_read_as_v1_wrote_them(text: str, ms: int) -> None:
    assert said(post_v1(1, created_at=text))[0].claimed_ms == ms


BAD: list[tuple[str, dict[str, Any]]] = [
    ("no-author", {"user": None}),
    ("no-author", {"user": {}}),
    ("bad-shape", {"user": [5]}),
    ("bad-id", {"user": {"id_str": "p"}}),
    ("bad-id", {"id_str": "1/2"}),
    ("bad-id", {"id_str": 5}),
    ("bad-id", {"id": -1, "id_str": None}),
    ("bad-id", {"id": True, "id_str": None}),
    ("bad-id", {"in_reply_to_status_id_str": "x"}),
    ("no-text", {"full_text": 5}),
    ("bad-shape", {"entities": {"hashtags": [{}]}}),
    ("bad-shape", {"entities": {"user_mentions": [5]}}),
    ("bad-shape", {"retweeted_status": 5}),
    ("bad-shape", {"favorite_count": -1}),
    ("bad-shape", {"lang": 5}),
    ("bad-time", {"created_at": "Tue Mar 24 10:43:44 +0000 1969"}),
    ("bad-time", {"created_at": "Tue Xxx 24 10:43:44 +0000 2015"}),
    ("bad-time", {"created_at": "Tue Feb 31 10:43:44 +0000 2015"}),
    ("bad-time", {"created_at": "Tue Mar 24 10:43:44 +9999 2015"}),
    ("bad-time", {"created_at": "2015-03-24T10:43:44Z"}),
    ("nul-in-text", {"full_text": "a\0b"}),
    ("not-unicode", {"full_text": "a\ud800"}),
]


@pytest.mark.parametrize(("reason", "changes"), BAD)
def test_a_bad_post_is_refused_alone_with_its_reason(reason: str, changes: dict[str, Any]) -> None:
    reading = read({"statuses": [post_v1(4), post_v1(1, **changes), post_v1(2)]})
    assert [(one.what, one.reason) for one in reading.refusals] == [("post", reason)]
    assert len(reading.said) == 2


def test_a_bad_profile_costs_the_facts_and_not_the_post() -> None:
    reading = read(post_v1(1, user=user_v1(7001, followers_count=-5)))
    assert [(one.what, one.reason) for one in reading.refusals] == [("author", "bad-author")]
    assert reading.said[0].events[0].author is None  # type: ignore[attr-defined]
    assert reasons(post_v1(1, user=user_v1(7001, utc_offset=10**6))) == [("author", "bad-author")]


def test_a_bad_post_inside_another_costs_itself() -> None:
    reading = read(post_v1(9, quoted_status_id_str="5", quoted_status=post_v1(5, id_str="5", full_text=None)))
    assert [(one.what, one.reason) for one in reading.refusals] == [("post", "no-text")]
    assert len(reading.said) == 1


def test_stream_messages_delete_hide_and_pass() -> None:
    gone = {"delete": {"status": {"id": 5, "id_str": "5", "user_id": 7, "user_id_str": "7"}, "timestamp_ms": "1"}}
    assert said(gone) == [PostDeleted(post="x:5", owner="x:@7", source="x")]
    withheld = {"id": 5, "user_id": 7, "withheld_in_countries": ["XX"]}
    assert said({"status_withheld": withheld}) == said(gone)
    countries = {"id": 7, "withheld_in_countries": ["XX"]}
    assert said({"user_withheld": countries}) == [AuthorHidden(owner="x:@7", source="x", reason="withheld")]
    assert said({"user_suspend": {"id": 7}}) == [AuthorHidden(owner="x:@7", source="x", reason="suspended")]
    for at, claimed_ms in (
        ("1423142520123", 1_423_142_520_123),
        ("soon", None),
        ("9" * 16, None),
        (None, None),
        ("-1", None),
    ):
        told = {"user_suspend": {"id": 7, "timestamp_ms": at}}
        assert said(told)[0].claimed_ms == claimed_ms
    assert said({"user_undelete": {"id": 7}}) == [AuthorShown(owner="x:@7", source="x")]
    assert said({"user_delete": {"id": 7}}) == [AuthorErased(owner="x:@7", source="x")]
    assert read({"scrub_geo": {"user_id": 7, "up_to_status_id": 5}}) == Reading(of_no_use=1)
    for notice in ({"limit": {"track": 12}}, {"disconnect": {"code": 4}}, {"warning": {"code": "FALLING_BEHIND"}}):
        assert read(notice) == Reading(errors=1)
    assert reasons({"delete": {"status": {"id_str": "5"}}}) == [("compliance", "no-author")]
    assert reasons({"delete": {"status": {"user_id_str": "5"}}}) == [("compliance", "bad-id")]
    for line in (gone, {"status_withheld": withheld}, {"user_withheld": countries}, {"limit": {"track": 1}}):
        assert xv1.is_v1(line)
    for line in ({"delete": {"tweet": {}}}, {"user_withheld": {"user": {}}}, post(1), {"data": [post(1)]}):
        assert not xv1.is_v1(line)


@pytest.mark.skipif(not REAL.exists(), reason=f"real posts are not on this machine ({REAL})")
def test_every_real_post_has_a_fate_and_its_payloads_own_entities() -> None:
    summary, end = take(read_lines(str(REAL)), source=None)
    assert (summary.posts_in, summary.posts, dict(summary.refused), summary.unaccounted) == (4519, 4519, {}, 0)
    assert (summary.engagements, summary.by_source) == (4519, {"x": 4519})
    raws = {f"x:{raw['id_str']}": raw for raw in (parse(one.data) for one in read_lines(str(REAL)))}  # type: ignore[union-attr]
    for one in end.events(PostObserved):
        raw = raws[one.post]
        assert one.content.hashtags == tuple(tag["text"] for tag in raw["entities"]["hashtags"])
        assert one.lang == raw["lang"]
        assert one.author.followers == raw["user"]["followers_count"]
        assert one.author.utc_offset_s == raw["user"]["utc_offset"]
        media = raw.get("extended_entities", raw["entities"]).get("media", ())
        assert [kind[:3] for kind in one.media_kinds] == [each["type"].removeprefix("animated_")[:3] for each in media]
    again, _ = take(as_lines(dump(*list(raws.values())[:50])), source="own")
    assert again.by_source == {"own": 50}
