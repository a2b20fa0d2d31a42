"""Every shape of X's API v2 becomes events or a refusal with a reason, one fate for each post."""

from typing import Any

import pytest

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
from streams.reading import Reading
from streams.xv2 import read
from tests.ingest_ends import page, post, user

RIGHTS = Rights(index=True, train=False, show=True, policy="x-default")


def said(value: Any, source: str = "x") -> list[Any]:
    reading = read(value, source, lambda owner: RIGHTS)
    assert not reading.refusals
    return [event for one in reading.said for event in one.events]


def balanced(reading: Reading) -> bool:
    posts = sum(isinstance(one.events[0], PostObserved) for one in reading.said)
    return reading.posts_in == posts + sum(one.what == "post" for one in reading.refusals) + reading.repeated


def reasons(value: Any) -> list[tuple[str, str]]:
    reading = read(value, "x", lambda owner: RIGHTS)
    assert balanced(reading)
    return [(one.what, one.reason) for one in reading.refusals]


def test_a_full_post_becomes_what_was_said_and_how_people_reacted() -> None:
    raw = post(
        1,
        text="RT? no: 1 &lt; 2 &amp;&amp; &amp;lt; stays &quot;so&quot; @p9 #Tag https://t.co/a",
        in_reply_to_user_id="9",
        referenced_tweets=[{"type": "replied_to", "id": "55"}, {"type": "quoted", "id": "66"}],
        attachments={"media_keys": ["3_1", "3_2"]},
        entities={
            "hashtags": [{"start": 0, "end": 4, "tag": "Tag"}],
            "mentions": [{"username": "p9", "id": "9"}, {"username": "p9", "id": "9"}, {"username": "nobody"}],
            "urls": [{"url": "https://t.co/a", "expanded_url": "https://example.org/a?b=1&c=2"}],
        },
    )
    observed, engagement = said(page(raw, includes={"users": [user(7001)]}))
    assert isinstance(observed, PostObserved)
    assert observed.post == f"x:{10**18 + 1}"
    assert (observed.owner, observed.reply_to, observed.mentions) == ("x:@7001", "x:@9", ("x:@9",))
    assert (observed.parent, observed.quoted, observed.reposted) == ("x:55", "x:66", None)
    assert observed.conversation == observed.post
    assert (observed.media, observed.lang, observed.revision) == (2, "en", 1)
    assert observed.claimed_ms == 1_767_614_460_000
    assert observed.author is not None
    assert (observed.author.followers, observed.author.created_ms) == (10, 1_422_936_306_000)
    assert observed.rights == RIGHTS
    content = observed.content
    assert content.text == "RT? no: 1 < 2 && &lt; stays &quot;so&quot; @p9 #Tag https://t.co/a"
    assert (content.username, content.name) == ("p7001", "Person 7001")
    assert (content.hashtags, content.links) == (("Tag",), ("https://example.org/a?b=1&c=2",))
    assert engagement == EngagementObserved(
        post=observed.post, owner=observed.owner, source="x", parent="x:55",
        claimed_ms=observed.claimed_ms, likes=5, replies=3, reposts=2, quotes=1, views=900, rights=RIGHTS,
    )  # fmt: skip


def test_a_repost_has_neither_words_nor_reactions_for_both_are_the_originals() -> None:
    (repost,) = said(page(post(1, text="RT @p: secret", referenced_tweets=[{"type": "retweeted", "id": "5"}])))
    assert repost.reposted == "x:5"
    assert repost.content is None


def test_a_version_of_an_edited_post_goes_under_the_id_of_the_first() -> None:
    history = ["101", "102", "103"]
    versions = said(post(1, id="103", edit_history_tweet_ids=history))
    assert isinstance(versions[0], PostEdited)
    assert (versions[0].post, versions[0].revision, versions[1].post) == ("x:101", 3, "x:101")
    first = said(post(1, id="101", edit_history_tweet_ids=history))[0]
    assert type(first) is PostObserved
    assert (first.post, first.revision) == ("x:101", 1)
    assert reasons(post(1, id="9", edit_history_tweet_ids=history)) == [("post", "bad-edit-history")]


def test_a_long_posts_whole_text_is_taken_with_its_own_entities() -> None:
    note = {"text": "long &amp; whole", "entities": {"hashtags": [{"tag": "whole"}]}}
    cut = {"hashtags": [{"tag": "cut"}]}
    content = said(post(1, text="long…", note_tweet=note, entities=cut))[0].content
    assert (content.text, content.hashtags) == ("long & whole", ("whole",))


def test_one_post_is_read_the_same_from_every_wrapping() -> None:
    raw = post(1)
    wrapped = [
        raw,
        {"data": raw},
        {"data": [raw]},
        {"endpoint": "tweets/search/all", "body": {"data": [raw], "meta": {}}},
        {"data": raw, "matching_rules": [{"id": "1", "tag": "cats"}]},
        {"includes": {"tweets": [raw]}},
    ]
    assert [said(one) for one in wrapped] == [said(raw)] * len(wrapped)


def test_posts_that_came_along_are_taken_once_and_all_in_time_order() -> None:
    expanded = [post(2), post(3, text="other"), post(2)]
    newest_first = page(post(5), post(3), post(1), includes={"tweets": expanded})
    reading = read(newest_first, "x", lambda owner: RIGHTS)
    assert balanced(reading)
    assert (reading.posts_in, reading.repeated) == (6, 2)
    found = [(one.events[0].post[-1], one.events[0].content.text) for one in reading.said]
    assert found == [(str(n), f"post {n}") for n in (1, 2, 3, 5)]


def test_ids_of_the_simulator_have_a_name_space_of_their_own() -> None:
    observed = said(post(1), "simulator")[0]
    assert observed.post.startswith("sim:1")
    assert observed.owner == "sim:@7001"
    assert said(post(1, id="a-1.b", conversation_id=None, edit_history_tweet_ids=None), "own")[0].post == "own:a-1.b"


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: {"data": one}])
def test_compliance_lines_delete_posts_and_erase_authors(wrap: Any) -> None:
    at = "2026-01-05T12:00:00.000Z"
    gone = {"delete": {"tweet": {"id": "5", "author_id": "7"}, "event_at": at}}
    assert said(wrap(gone)) == [PostDeleted(post="x:5", owner="x:@7", source="x")]
    assert said(wrap({"drop": gone["delete"]})) == said(wrap(gone))
    assert said(wrap({"user_delete": {"user": {"id": "7"}, "event_at": at}})) == [
        AuthorErased(owner="x:@7", source="x")
    ]
    for name, reason in (("suspend", "suspended"), ("protect", "protected"), ("withheld", "withheld")):
        hidden = AuthorHidden(owner="x:@7", source="x", reason=reason, claimed_ms=1_767_614_400_000)
        assert said(wrap({f"user_{name}": {"user": {"id": "7"}, "event_at": at}})) == [hidden]
    for name in ("unsuspend", "unprotect", "undelete"):
        assert said(wrap({f"user_{name}": {"user": {"id": "7"}}})) == [AuthorShown(owner="x:@7", source="x")]
        later = said(wrap({f"user_{name}": {"user": {"id": "7"}, "event_at": at}}))[0]
        assert later.claimed_ms == 1_767_614_400_000
    for odd in ("2026-01-05T12:00:00", 5, "", "2026-13-05T12:00:00Z"):  # nobody stays visible for that
        said_odd = said(wrap({"user_suspend": {"user": {"id": "7"}, "event_at": odd}}))
        assert said_odd == [AuthorHidden(owner="x:@7", source="x", reason="suspended")]
    assert said(wrap({"withheld": {**gone["delete"], "withheld_in_countries": ["XX"]}})) == said(wrap(gone))
    for name in ("scrub_geo", "tweet_edit", "undrop", "user_profile_modification"):
        assert read(wrap({name: gone["delete"]}), "x", lambda owner: RIGHTS) == Reading(of_no_use=1)
    assert reasons(wrap({"delete": {"tweet": {"id": "5"}}})) == [("compliance", "no-author")]
    assert reasons(wrap({"delete": {"tweet": {"author_id": "5"}}})) == [("compliance", "bad-id")]
    assert reasons(wrap({"delete": "5"})) == [("compliance", "bad-shape")]


@pytest.mark.parametrize(
    "value",
    [
        page(user(1), user(2)),
        {"data": [{"start": "a", "end": "b", "tweet_count": 4}], "meta": {"total_tweet_count": 4}},
        {"data": {"project_id": "1", "project_usage": "5", "daily_project_usage": {}}},
        {"data": [{"id": "1", "value": "cats", "tag": "t"}], "meta": {"sent": "x"}},
        {"data": [{"id": "1", "text": "psst", "event_type": "MessageCreate", "dm_conversation_id": "1-2"}]},
        {"data": {"deleted": True}},
        {"data": []},
        {"data": None},
        {"meta": {"result_count": 0}},
        user(5),
    ],
)
def test_what_x_lists_beside_posts_is_no_post_and_no_fault(value: Any) -> None:
    assert read(value, "x", lambda owner: RIGHTS) == Reading(of_no_use=1)


def test_errors_that_x_reports_are_counted_and_not_refused() -> None:
    assert read(page(post(1), errors=[{"title": "Not Found Error"}] * 3), "x", lambda owner: RIGHTS).errors == 3
    problem = {"title": "Unauthorized", "type": "about:blank", "status": 401, "detail": "Unauthorized"}
    assert read(problem, "x", lambda owner: RIGHTS) == Reading(errors=1)
    assert read({"errors": [{"message": "m"}], "title": "t", "type": "u"}, "x", lambda owner: RIGHTS) == Reading(
        errors=1
    )


BAD_POSTS: list[tuple[str, Any]] = [
    ("no-author", post(1, author_id=None)),
    ("bad-id", post(1, id=None)),
    ("bad-id", post(1, id=17)),
    ("bad-id", post(1, id="1" * 20)),
    ("bad-id", post(1, id="١٢٣")),
    ("bad-id", post(1, id="1/2")),
    ("bad-id", post(1, author_id=7)),
    ("bad-id", post(1, conversation_id="c")),
    ("bad-id", post(1, referenced_tweets=[{"type": "quoted"}])),
    ("bad-id", post(1, entities={"mentions": [{"id": "@p"}]})),
    ("no-text", post(1, text=None)),
    ("no-text", post(1, text=5)),
    ("bad-shape", post(1, text="x" * 100_001)),
    ("bad-shape", post(1, lang=5)),
    ("bad-shape", post(1, lang="x" * 36)),
    ("bad-shape", post(1, referenced_tweets="quoted")),
    ("bad-shape", post(1, referenced_tweets=[{"id": "5"}])),
    ("bad-shape", post(1, public_metrics=[5])),
    ("bad-shape", post(1, public_metrics={"like_count": -1})),
    ("bad-shape", post(1, public_metrics={"like_count": 10**30})),
    ("bad-shape", post(1, public_metrics={"like_count": 1.0})),
    ("bad-shape", post(1, public_metrics={"like_count": "5"})),
    ("bad-shape", post(1, public_metrics={"like_count": True})),
    ("bad-shape", post(1, attachments={"media_keys": "3_1"})),
    ("bad-shape", post(1, entities={"hashtags": [{}]})),
    ("bad-shape", post(1, entities={"urls": [5]})),
    ("bad-time", post(1, created_at="yesterday")),
    ("bad-time", post(1, created_at="2026-01-05T12:00:00")),
    ("bad-time", post(1, created_at="1969-12-31T23:59:59Z")),
    ("bad-time", post(1, created_at=5)),
    ("nul-in-text", post(1, text="a\0b")),
    ("nul-in-text", post(1, lang="e\0")),
    ("not-unicode", post(1, text="a\ud800b")),
    ("not-unicode", post(1, geo={"\udc80": 1})),
    ("unknown-shape", {}),
    ("unknown-shape", {"id": "5"}),
    ("bad-shape", 5),
    ("bad-shape", None),
    ("bad-shape", [post(3)]),
]


@pytest.mark.parametrize(("reason", "bad"), BAD_POSTS)
def test_a_bad_post_is_refused_alone_with_its_reason(reason: str, bad: Any) -> None:
    reading = read(page(post(4), bad, post(2)), "x", lambda owner: RIGHTS)
    assert balanced(reading)
    assert [(one.what, one.reason) for one in reading.refusals] == [("post", reason)]
    assert len(reading.said) == 2
    assert "yesterday" not in reading.refusals[0].detail  # a detail says what kind of thing it was, never the words


def test_a_bad_user_costs_the_facts_and_not_the_posts() -> None:
    users = [user(7001, public_metrics={"followers_count": 1e99}), user(7002, name="\ud800"), {"name": "no id"}]
    reading = read(page(post(1), post(2), post(4), includes={"users": users}), "x", lambda owner: RIGHTS)
    assert [(one.what, one.reason) for one in reading.refusals] == [("author", "bad-author")] * 3
    assert [one.events[0].author for one in reading.said] == [None] * 3


@pytest.mark.parametrize("value", [5, "text", None, True, {}, {"hello": "world"}, {"endpoint": "x", "body": 5}])
def test_a_value_that_is_no_answer_of_xs_is_refused_as_a_whole(value: Any) -> None:
    assert reasons(value) == [("value", "unknown-shape")]


def test_parts_of_a_page_that_do_not_fit_are_refused_and_the_rest_is_used() -> None:
    assert reasons({"data": 5}) == [("value", "bad-shape")]
    reading = read(page(post(1), includes=[user(1)]), "x", lambda owner: RIGHTS)
    assert [one.reason for one in reading.refusals] == ["bad-shape"]
    assert len(reading.said) == 1


def test_an_empty_object_for_an_empty_list_is_nothing() -> None:
    written_in_r = post(1, referenced_tweets={}, entities={"mentions": {}}, attachments=[])
    assert len(said(written_in_r)) == 2


def test_two_polls_of_one_post_are_one_post_and_two_counts() -> None:
    later = post(1, public_metrics={"like_count": 6})
    reading = read(page(post(1), later, post(1)), "x", lambda owner: RIGHTS)
    assert balanced(reading)
    assert [type(event) for one in reading.said for event in one.events] == [PostObserved, *[EngagementObserved] * 2]
    assert sorted(one.events[-1].likes for one in reading.said) == [5, 6]
    assert reading.repeated == 2


def test_what_moves_while_a_post_stands_still_is_no_part_of_it() -> None:
    then = post(1)
    now = post(
        1,
        public_metrics={"like_count": 10**6},
        organic_metrics={"x": 1},
        edit_controls={"edits_remaining": 0},
        edit_history_tweet_ids=[then["id"], "9" * 19],
    )
    assert said(then)[0] == said(now)[0]
    assert said(then)[1] != said(now)[1]
    assert said(then)[0] != said(post(1, text="other"))[0]
    assert said(then)[0].raw_sha256 != said(post(1, possibly_sensitive=True))[0].raw_sha256


def test_a_later_version_keeps_its_own_name_and_a_first_one_needs_none() -> None:
    history = ["101", "102"]
    assert said(post(1, id="102", edit_history_tweet_ids=history))[0].named == "x:102"
    assert said(post(1, id="101", edit_history_tweet_ids=history))[0].named is None


def test_whose_post_is_quoted_or_reposted_is_told_by_what_came_along_or_by_the_first_mention() -> None:
    quote = post(1, referenced_tweets=[{"type": "quoted", "id": "66"}])
    original = post(2, id="66", author_id="777", edit_history_tweet_ids=None)
    with_it = {one.post: one for one in said(page(quote, includes={"tweets": [original]})) if type(one) is PostObserved}
    assert with_it[f"x:{quote['id']}"].quoted_author == "x:@777"
    assert said(page(quote))[0].quoted_author is None
    entities = {"mentions": [{"start": 9, "id": "8"}, {"start": 3, "id": "7"}]}
    repost = post(3, text="RT @p: hello @q", referenced_tweets=[{"type": "retweeted", "id": "5"}], entities=entities)
    assert said(repost)[0].reposted_author == "x:@7"
    assert said({**repost, "text": "no RT @p"})[0].reposted_author is None


def test_kinds_of_media_come_with_the_page_or_from_the_key() -> None:
    keys = ["3_1", "7_2", "13_3", "16_4", "99_5"]
    found = said(post(1, attachments={"media_keys": keys}))[0]
    assert (found.media, found.media_kinds) == (5, ("photo", "video", "video", "gif", "other"))
    media = [{"media_key": "3_1", "type": "animated_gif"}, {"media_key": "7_2"}, 5]
    assert said(page(post(1, attachments={"media_keys": keys}), includes={"media": media}))[0].media_kinds[0] == "gif"


def test_cashtags_and_bookmarks_are_read() -> None:
    raw = post(1, entities={"cashtags": [{"tag": "ACME"}]}, public_metrics={"bookmark_count": 7})
    observed, seen = said(raw)
    assert observed.content.cashtags == ("ACME",)
    assert seen.bookmarks == 7


def test_a_post_that_is_withheld_somewhere_is_still_a_post() -> None:
    assert len(said(post(1, withheld={"copyright": False, "country_codes": ["XX"]}))) == 2


def test_a_batch_result_names_no_author_and_says_where_to_turn() -> None:
    line = {"id": "5", "action": "delete", "created_at": "2026-01-05T12:00:00.000Z", "reason": "deleted"}
    assert reasons(line) == [("compliance", "batch-result")]
