"""Every status becomes events or a refusal with a reason; what is not for everyone leaves no word behind."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.content import words_of_post
from schemas.envelope import Refused
from schemas.facts import AuthorFacts, Rights
from schemas.posts import EngagementObserved, PostDeleted, PostEdited, PostObserved, ReactionObserved
from streams.formats import detect
from streams.lines import Unreadable
from streams.mastodon import read
from streams.mastodon_html import HTML_CHARS_MAX, plain
from streams.reading import Reading
from tests.mangling import accounted, mangled
from tests.mastodon_server import HOST, T0_MS, account, number, status

RIGHTS = Rights(index=True, train=True, show=True, policy="mastodon-default")
FUZZ = 50_000
NAME = f"mastodon:{HOST}:{number(T0_MS)}"
ME = f"mastodon:@{HOST}:11"
AT_MS = 1_767_571_200_000


def told(payload: Any, event: str = "update", **more: Any) -> dict[str, Any]:
    """As the live source writes it."""
    return {"host": HOST, "event": event, "payload": payload, **more}


def reading_of(value: Any) -> Reading:
    reading = read(value, "mastodon", lambda owner: RIGHTS)
    assert accounted(reading)
    return reading


def said(value: Any) -> list[Any]:
    reading = reading_of(value)
    assert not reading.refusals
    return [event for one in reading.said for event in one.events]


def reasons(value: Any) -> list[tuple[str, str]]:
    return [(one.what, one.reason) for one in reading_of(value).refusals]


def text_of(**changes: Any) -> str:
    return str(said(told(status(**changes)))[0].content.text)


def test_a_full_status_becomes_what_was_said_and_how_people_reacted() -> None:
    raw = status(
        spoiler_text="CW: tea",
        content='<p>RT &amp; <a href="https://e.org/a?b=1&amp;c=2"><span class="invisible">https://</span>'
        '<span class="ellipsis">e.org/a</span><span class="invisible">?b=1&amp;c=2</span></a><br>'
        '<a href="https://o.example/@q" class="u-url mention">@<span>q</span></a> '
        '<a href="https://x/tags/tea" class="mention hashtag" rel="tag">#<span>tea</span></a></p><p>end</p>',
        in_reply_to_id="55",
        in_reply_to_account_id="77",
        language="de",
        mentions=[{"id": "77", "username": "q", "acct": "q@o.example"}, {"id": "77"}],
        tags=[{"name": "tea", "url": "https://x/tags/tea"}],
        media_attachments=[{"type": kind} for kind in ("image", "gifv", "video", "audio", "unknown")],
        poll={"id": "1", "options": [{"title": "milk", "votes_count": 3}, {"title": "lemon"}]},
    )
    observed, seen = said(told(raw))
    assert type(observed) is PostObserved
    assert (observed.post, observed.owner, observed.revision) == (NAME, ME, 1)
    assert (observed.parent, observed.reply_to) == (f"mastodon:{HOST}:55", f"mastodon:@{HOST}:77")
    assert observed.mentions == (f"mastodon:@{HOST}:77",)
    assert observed.conversation is None
    assert (observed.media, observed.media_kinds) == (5, ("photo", "gif", "video", "audio", "other"))
    assert (observed.lang, observed.claimed_ms, observed.rights) == ("de", AT_MS, RIGHTS)
    assert observed.author == AuthorFacts(
        created_ms=1_492_214_400_000, followers=182, following=20, posts=1128, bot=False
    )
    content = observed.content
    assert content.text == "CW: tea\n\nRT & https://e.org/a?b=1&c=2\n@q #tea\n\nend\n\n- milk\n- lemon"
    assert (content.username, content.name, content.hashtags) == ("p11", "Person 11", ("tea",))
    assert content.links == ("https://e.org/a?b=1&c=2",)
    assert observed.words == words_of_post(NAME, content, 1, 5, AT_MS, lang="de")
    assert seen == EngagementObserved(
        post=NAME, owner=ME, source="mastodon", parent=f"mastodon:{HOST}:55", claimed_ms=AT_MS,
        likes=3, replies=1, reposts=2, quotes=4, rights=RIGHTS,
    )  # fmt: skip


def test_a_root_begins_its_conversation() -> None:
    assert said(told(status()))[0].conversation == NAME


def test_an_edit_is_a_later_revision_told_from_others_by_when() -> None:
    for event in ("status.update", "update"):
        edited = said(told(status(edited_at="2026-01-05T00:01:00.000Z"), event))[0]
        assert type(edited) is PostEdited
        assert (edited.post, edited.revision) == (NAME, 2)
        again = said(told(status(edited_at="2026-01-05T00:02:00.000Z"), event))[0]
        assert edited.raw_sha256 != again.raw_sha256


def test_a_status_polled_again_is_told_apart_by_what_its_author_did_and_by_nothing_else() -> None:
    first = said(told(status()))[0].raw_sha256
    later = status(favourites_count=90, card={"url": "https://e.org"}, account=account(followers_count=9), muted=True)
    assert said(told(later))[0].raw_sha256 == first
    assert said(told(status(content="<p>other</p>")))[0].raw_sha256 != first


def test_a_boost_has_no_words_and_what_it_boosts_is_a_post_of_its_own() -> None:
    inner = status(T0_MS - 5000, account=account("22", acct="q@o.example"), content="<p>theirs</p>")
    reading = reading_of(told(status(reblog=inner, content="<p>theirs</p>")))
    assert (reading.posts_in, len(reading.said), reading.refusals) == (2, 2, [])
    boost, original = (one.events[0] for one in reading.said)
    assert (
        (boost.reposted, boost.reposted_author)
        == (original.post, original.owner)
        == (  # type: ignore[attr-defined]
            f"mastodon:{HOST}:{number(T0_MS - 5000)}",
            f"mastodon:@{HOST}:22",
        )
    )
    assert boost.content is boost.words is None  # type: ignore[attr-defined]
    assert len(reading.said[0].events) == 1
    assert original.content.text == "theirs"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("quote", "quoted", "author", "posts"),
    [
        ({"state": "accepted", "quoted_status": status(T0_MS - 1, account=account("22"))}, True, True, 2),
        ({"state": "accepted", "quoted_status_id": number(T0_MS - 1)}, True, False, 1),
        ({"state": "pending", "quoted_status_id": number(T0_MS - 1)}, False, False, 1),
        ({"state": "revoked", "quoted_status": status(T0_MS - 1)}, False, False, 1),
        ({"state": "deleted", "quoted_status": None}, False, False, 1),
        ({"state": "tomorrow", "quoted_status": status(T0_MS - 1)}, False, False, 1),
    ],
)
def test_a_quote_counts_where_whoever_is_quoted_agreed(quote: Any, quoted: bool, author: bool, posts: int) -> None:
    content = '<p class="quote-inline">RE: <a href="https://q">https://q</a></p><p>so true</p>'
    reading = reading_of(told(status(quote=quote, content=content)))
    first: Any = reading.said[0].events[0]
    assert reading.posts_in == posts
    assert (first.quoted == f"mastodon:{HOST}:{number(T0_MS - 1)}") == quoted
    assert (first.quoted_author == f"mastodon:@{HOST}:22") == author
    assert first.content.text == ("so true" if quoted else "RE: https://q\n\nso true")


def test_one_status_twice_in_a_page_is_taken_once() -> None:
    reading = reading_of(told([status(), status(T0_MS + 1, reblog=status())]))
    assert (reading.posts_in, reading.repeated, len(reading.said)) == (3, 1, 2)


@pytest.mark.parametrize("visibility", ["private", "direct", "limited", None, 5, ["public"]])
def test_what_is_not_for_everyone_is_refused_and_no_word_of_it_is_kept(visibility: Any) -> None:
    secret = status(visibility=visibility, content="<p>SECRET</p>", spoiler_text="SECRET", account={"note": "SECRET"})
    (refusal,) = reading_of(told(secret)).refusals
    assert (refusal.what, refusal.reason) == ("post", "not-public")
    assert "SECRET" not in json.dumps(refusal.raw)


def test_unlisted_is_for_everyone() -> None:
    assert len(said(told(status(visibility="unlisted")))) == 2


@pytest.mark.parametrize(
    ("changes", "index"),
    [
        ({"indexable": True}, True),
        ({"indexable": None}, True),  # a server too old to say: the policy decides
        ({"indexable": False}, False),
        ({"indexable": True, "noindex": True}, False),
        ({"indexable": None, "note": '<p><a href="x">#<span>NoBot</span></a></p>'}, False),
        ({"indexable": None, "note": "nobody #nobody"}, True),
    ],
)
def test_an_account_that_does_not_want_to_be_indexed_is_not(changes: dict[str, Any], index: bool) -> None:
    observed, seen = said(told(status(account=account(**changes))))
    policy = "mastodon-default" if index else "mastodon-default+declared-no-index"
    assert observed.rights == seen.rights == Rights(index=index, train=index, show=index, policy=policy)


def test_a_deletion_names_a_status_whose_owner_the_stream_remembers() -> None:
    assert said(told("55", "delete", owner="11")) == [
        PostDeleted(post=f"mastodon:{HOST}:55", owner=ME, source="mastodon")
    ]
    assert reasons(told("55", "delete")) == [("compliance", "owner-unknown")]
    assert reasons(told(55, "delete", owner="11")) == [("compliance", "bad-id")]
    assert reasons({"event": "delete", "payload": "55", "owner": "11"}) == [("compliance", "server-unknown")]


def test_a_bare_status_at_home_has_the_ids_that_its_own_server_gives_it() -> None:
    assert said(status()) == said(told(status()))
    port = status(uri="http://127.0.0.1:3000/users/p/statuses/1")
    assert said(port)[0].post == f"mastodon:127.0.0.1:3000:{number(T0_MS)}"


@pytest.mark.parametrize(
    "changes",
    [
        {"account": account(acct="p11@o.example")},
        {"uri": "tag:o.example,2026:1"},
        {"uri": None},
        {"uri": "http://[x"},
        {"account": account(acct=None)},
    ],
)
def test_a_bare_status_from_elsewhere_is_refused_with_how_to_name_its_server(changes: dict[str, Any]) -> None:
    (refusal,) = reading_of(status(**changes)).refusals
    assert (refusal.what, refusal.reason) == ("post", "server-unknown")
    assert '"host"' in refusal.detail


@pytest.mark.parametrize("event", ["filters_changed", "conversation", "announcement", "tomorrow"])
def test_other_messages_are_of_no_use(event: str) -> None:
    assert reading_of(told(None, event)) == Reading(of_no_use=1)


def test_what_else_a_server_answers_is_counted_as_what_it_is() -> None:
    assert reading_of(account()) == reading_of(told([])) == Reading(of_no_use=1)
    assert reading_of({"id": "1", "accounts": [account()], "last_status": status()}) == Reading(of_no_use=1)


# ---- notifications --------------------------------------------------------------------------------------------------


def notified(kind: str, by: str = "22", **more: Any) -> dict[str, Any]:
    """A notification as `GET /api/v1/notifications` gives it, of a status that is at home where it was read."""
    base = {
        "id": "9",
        "type": kind,
        "created_at": "2026-01-05T00:10:00.000Z",
        "account": account(by, acct="q@o.example"),
    }
    return {**base, "status": status(), **more}


@pytest.mark.parametrize(("kind", "meant"), [("favourite", "like"), ("reblog", "repost")])
def test_a_notification_of_a_reaction_is_the_reaction_and_its_status_a_post(kind: str, meant: str) -> None:
    act, observed, seen = said(notified(kind))
    assert act == ReactionObserved(
        act=f"{NAME}~{kind}~22", owner=f"mastodon:@{HOST}:22", source="mastodon", kind=meant, target=ME, post=NAME,
        claimed_ms=AT_MS + 600_000, rights=RIGHTS,
    )  # fmt: skip
    assert (observed.post, observed.owner, seen.post) == (NAME, ME, NAME)
    assert said(told(notified(kind), "notification")) == said(told(json.dumps(notified(kind)), "notification"))
    assert said(told(notified(kind), "notification"))[0] == act


def test_a_person_reacts_once_however_often_it_is_told_and_two_people_twice() -> None:
    acts = [said(notified("favourite", **more))[0].act for more in ({}, {"id": "10"}, {"by": "23"})]
    assert acts[0] == acts[1] != acts[2]


@pytest.mark.parametrize("kind", ["mention", "status", "update", "poll", "quote", "quoted_update"])
def test_a_notification_of_a_status_is_the_status_and_nothing_more(kind: str) -> None:
    assert said(notified(kind)) == said(status())
    assert reading_of(notified(kind, status=None)) == Reading(of_no_use=1)


@pytest.mark.parametrize("kind", ["follow_request", "admin.sign_up", "admin.report", "moderation_warning", "tomorrow"])
def test_other_notifications_are_of_no_use_and_their_status_is_not_read(kind: str) -> None:
    assert reading_of(notified(kind)) == Reading(of_no_use=1)


@pytest.mark.parametrize(
    ("found", "value"),
    [
        ([("reaction", "target-unknown")], notified("follow", status=None)),
        ([("reaction", "bad-shape")], notified("favourite", status=None)),
        ([("reaction", "not-public"), ("post", "not-public")],
         notified("favourite", status=status(visibility="direct"))),
        ([("post", "not-public")], notified("mention", status=status(visibility="private"))),
        ([("reaction", "bad-id")], notified("favourite", account=account("2/2"))),
        ([("reaction", "bad-time")], notified("reblog", created_at="yesterday")),
        ([("reaction", "bad-shape"), ("post", "bad-shape")], notified("reblog", status=[])),
        ([("reaction", "server-unknown"), ("post", "server-unknown")],
         notified("favourite", status=status(account=account(acct="p@far.example")))),
        ([("value", "bad-shape")], told({"type": "favourite"}, "notification")),
        ([("value", "bad-shape")], told(None, "notification")),
        ([("value", "bad-json")], told("{", "notification")),
    ],
)  # fmt: skip
def test_what_a_notification_does_not_say_is_refused_with_the_reason(found: list[Any], value: Any) -> None:
    assert reasons(value) == found


def test_nothing_is_kept_of_the_words_that_a_refused_notification_brought() -> None:
    secret = status(visibility="direct", content="<p>between us</p>")
    for kind in ("favourite", "reblog", "mention"):
        assert "between us" not in str([one.raw for one in reading_of(notified(kind, status=secret)).refusals])
    assert reading_of({"error": "The access token is invalid"}) == Reading(errors=1)
    assert said({"stream": ["public"], "host": HOST, "event": "update", "payload": json.dumps(status())}) == said(
        told(status())
    )


def test_files_of_either_form_are_told_by_their_content() -> None:
    assert [detect(one) for one in (told(status()), told("5", "delete"), status())] == ["mastodon"] * 3


BAD: list[tuple[str, str, Any]] = [
    ("value", "unknown-shape", 5),
    ("value", "unknown-shape", {}),
    ("value", "bad-shape", told(status(), event=5)),  # type: ignore[arg-type]
    ("value", "bad-shape", {**told(status()), "host": 5}),
    ("value", "bad-json", told("{broken")),
    ("post", "bad-host", {**told(status()), "host": "Social.Example"}),
    ("post", "bad-host", {**told(status()), "host": "a/b"}),
    ("post", "bad-host", {**told(status()), "host": "x" * 101}),
    ("post", "bad-shape", told(None)),
    ("post", "not-public", told({})),
    ("post", "bad-id", told(status(id=5))),
    ("post", "bad-id", told(status(id="1/2"))),
    ("post", "bad-id", told(status(in_reply_to_id=5))),
    ("post", "bad-id", told(status(mentions=[{"id": None}]))),
    ("post", "no-author", told(status(account={"acct": "x"}))),
    ("post", "no-author", told(status(account=None))),
    ("post", "bad-shape", told(status(account="p"))),
    ("post", "no-text", told(status(content=None))),
    ("post", "bad-shape", told(status(spoiler_text=["x"]))),
    ("post", "nul-in-text", told(status(content="a\0b"))),
    ("post", "nul-in-text", told(status(language="e\0"))),
    ("post", "not-unicode", told(status(content="a\ud800"))),
    ("post", "bad-number", told(status(sensitive=Unreadable()))),
    ("post", "bad-time", told(status(created_at="2026-01-05T00:00:00"))),
    ("post", "bad-time", told(status(edited_at="yesterday"))),
    ("post", "bad-shape", told(status(language=5))),
    ("post", "bad-shape", told(status(tags=[5]))),
    ("post", "bad-shape", told(status(tags=[{"name": None}]))),
    ("post", "bad-shape", told(status(media_attachments="x"))),
    ("post", "bad-shape", told(status(poll={"options": [{"title": 5}]}))),
    ("post", "bad-shape", told(status(favourites_count=-1))),
    ("post", "bad-shape", told(status(favourites_count="3"))),
    ("post", "too-large", told(status(content="x" * (HTML_CHARS_MAX + 1)))),
    ("post", "bad-shape", told(status(content="x" * 100_001))),
]


@pytest.mark.parametrize(("what", "reason", "value"), BAD)
def test_what_does_not_fit_is_refused_with_its_reason(what: str, reason: str, value: Any) -> None:
    assert reasons(value) == [(what, reason)]


def test_an_account_that_does_not_fit_costs_the_facts_and_not_the_status() -> None:
    for bad in ({"followers_count": "many"}, {"created_at": "once"}, {"display_name": "\ud800"}, {"acct": "a\0"}):
        reading = reading_of(told(status(account=account(**bad))))
        assert [(one.what, one.reason) for one in reading.refusals] == [("author", "bad-author")]
        assert reading.said[0].events[0].author is None  # type: ignore[attr-defined]
    hidden = said(told(status(account=account(followers_count=-1))))[0]
    assert (hidden.author.followers, hidden.author.following) == (None, 20)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("plain", "plain"),
        ("<p>a</p><p>b<br/>c<br>d</p>", "a\n\nb\nc\nd"),
        ("1 < 2 &lt;b&gt; &amp;amp; &eacute;&#233;&nope;", "1 < 2 <b> &amp; éé&nope;"),
        ("<ul><li>x</li><li>y</li></ul>", "x\ny"),
        ("a<script>alert(1)</script><style>p{}</style><img src='x' onerror='y'>b", "ab"),
        ("<!-- hidden -->a<![CDATA[b]]><?php c ?>", "a"),
        ("<a href='javascript:x'>l</a>", "l"),
        ("<p>open <b>never closed", "open never closed"),
        ("</p></div>x</script>", "x"),
        ("<blockquote>q</blockquote>r", "q\n\nr"),
        ("<p title='a>b'>x", "x"),
        (":blobcat: 👩‍👩‍👧", ":blobcat: 👩‍👩‍👧"),
    ],
)
def test_html_becomes_the_text_that_a_reader_sees(html: str, text: str) -> None:
    assert plain(html)[0] == text
    assert text_of(content=html) == text


def test_a_link_is_kept_as_given_and_once_and_what_the_status_names_itself_is_none() -> None:
    link = '<a href="https://e.org/%20?q=é#x">'
    html = f'{link}here</a>{link}again</a><a>no</a><a href="">no</a>'
    assert plain(html) == ("hereagainnono", ("https://e.org/%20?q=é#x",))


@pytest.mark.parametrize(
    "piece", ["<", "<!--", "<a ", "<a b='", "</", "<?", "&#", "<script>", " \t", "<p>", "<![if ", "'"]
)
def test_html_made_to_be_slow_is_read_like_any_other(piece: str) -> None:
    """Given as it comes, some of these keep the standard library's parser busy for minutes; a test run ends then."""
    plain((piece * HTML_CHARS_MAX)[:HTML_CHARS_MAX])


@given(st.text(st.sampled_from("<>/!-?&#;a b='\"px0\n]["), max_size=60))
def test_whatever_stands_for_html_gives_a_text_or_a_reason(html: str) -> None:
    try:
        text, links = plain(html)
    except Refused as refused:
        assert refused.reason == "bad-html"  # noqa: PT017 - either is right
    else:
        assert text == text.strip("\n \t")
        assert all(links)


def test_statuses_nested_as_deep_as_json_goes_are_all_accounted_for() -> None:
    inner: Any = status()
    for depth in range(1, 400):
        inner = status(T0_MS + depth, reblog=inner)
    assert reading_of(told(inner)).posts_in == 400


SEEDS: list[Any] = [
    told(status(
        mentions=[{"id": "5"}], tags=[{"name": "t"}], media_attachments=[{"type": "image"}], in_reply_to_id="4",
        in_reply_to_account_id="6", poll={"options": [{"title": "a"}]}, edited_at="2026-01-05T00:01:00.000Z",
        quote={"state": "accepted", "quoted_status": status(T0_MS + 5)},
    )),
    told(status(reblog=status(T0_MS - 5))),
    told("55", "delete", owner="11"),
    status(),
    notified("favourite"),
    told(notified("reblog"), "notification"),
]  # fmt: skip


def test_whatever_is_mangled_in_a_status_everything_has_one_fate() -> None:
    seed = 20_260_105
    rng = random.Random(seed)
    fates: Counter[str] = Counter()
    for turn in range(FUZZ):
        value = mangled(rng, rng.choice(SEEDS))
        try:
            reading = read(value, "mastodon", lambda owner: RIGHTS)
            assert accounted(reading)
            assert len(reading.said) + len(reading.refusals) + reading.of_no_use + reading.errors >= 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, number {turn}") from error
        fates.update(one.reason for one in reading.refusals)
        fates["said"] += len(reading.said)
    for name in ("said", "bad-id", "bad-shape", "bad-time", "bad-author", "not-public"):
        assert fates[name] > 20, name
