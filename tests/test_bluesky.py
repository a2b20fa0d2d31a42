"""Every message of Jetstream becomes events, a refusal with a reason, or is counted as of no use."""

import json
import random
from collections import Counter
from typing import Any

import pytest

from agents.content import words_of_post
from schemas.facts import Rights
from schemas.posts import (
    AuthorErased,
    AuthorHidden,
    AuthorShown,
    IntentDeclared,
    PostDeleted,
    PostEdited,
    PostObserved,
    ReactionObserved,
    ReactionRetracted,
)
from streams.bluesky import INTENTS, read
from streams.lines import Unreadable
from streams.reading import Reading
from tests.ingest_ends import SHARED
from tests.jetstream_server import DID, OTHER, T0_US, account, message
from tests.mangling import accounted, mangled

RIGHTS = Rights(index=True, train=False, show=True, policy="bluesky-default")
REAL = SHARED / "bluesky-jetstream"
FUZZ = 50_000
ME, THEY = f"bluesky:@{DID}", f"bluesky:@{OTHER}"
THEIRS = {"uri": f"at://{OTHER}/app.bsky.feed.post/3aaa", "cid": "bafy"}
AT_MS = 1_767_571_200_000
FACET = "app.bsky.richtext.facet#"


def reading_of(value: Any) -> Reading:
    reading = read(value, "bluesky", lambda owner: RIGHTS)
    assert accounted(reading)
    return reading


def said(value: Any) -> Any:
    reading = reading_of(value)
    assert not reading.refusals
    (one,) = reading.said
    (event,) = one.events
    return event


def reasons(value: Any) -> list[tuple[str, str]]:
    return [(one.what, one.reason) for one in reading_of(value).refusals]


def post(text: str = "hello", operation: str = "create", **record: Any) -> dict[str, Any]:
    base = {"$type": "app.bsky.feed.post", "createdAt": "2026-01-05T00:00:00.000Z", "text": text}
    given = {key: value for key, value in {**base, **record}.items() if value is not None}
    return message(T0_US, rkey="3kk2abcdefg2x", operation=operation, record=given)


def act(collection: str, subject: Any, operation: str = "create", rkey: Any = "3kk2abcdefg2x") -> dict[str, Any]:
    record = {"$type": collection, "createdAt": "2026-01-05T00:00:00.000Z", "subject": subject}
    value = message(T0_US, collection, operation=operation, rkey=rkey, record=record)
    if operation == "delete":
        del value["commit"]["record"]
    return value


def facet(text: str, part: str, kind: str, **feature: Any) -> dict[str, Any]:
    start = text.encode().index(part.encode())
    index = {"byteStart": start, "byteEnd": start + len(part.encode())}
    return {"index": index, "features": [{"$type": FACET + kind, **feature}]}


def test_a_full_post_becomes_what_was_said() -> None:
    text = "👩‍👩‍👧 é @they.example #茶 $ACME example.org/a…"
    event = said(
        post(
            text,
            langs=["en-GB", "ja"],
            tags=["more", "茶"],
            reply={"parent": THEIRS, "root": {"uri": f"at://{DID}/app.bsky.feed.post/3root", "cid": "b"}},
            embed={
                "$type": "app.bsky.embed.recordWithMedia",
                "record": {"$type": "app.bsky.embed.record", "record": THEIRS},
                "media": {"$type": "app.bsky.embed.images", "images": [{"alt": ""}, {"alt": ""}]},
            },
            labels={"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "nudity"}]},
            facets=[
                facet(text, "@they.example", "mention", did=OTHER),
                facet(text, "#茶", "tag", tag="茶"),
                facet(text, "$ACME", "tag", tag="$ACME"),
                facet(text, "example.org/a…", "link", uri="https://example.org/a?b=1"),
                facet(text, "é", "new-kind", x=1),
            ],
        )
    )
    assert type(event) is PostObserved
    assert (event.post, event.owner, event.revision) == (f"bluesky:{DID}~3kk2abcdefg2x", ME, 1)
    assert (event.parent, event.reply_to) == (f"bluesky:{OTHER}~3aaa", THEY)
    assert event.conversation == f"bluesky:{DID}~3root"
    assert (event.quoted, event.quoted_author) == (f"bluesky:{OTHER}~3aaa", THEY)
    assert (event.mentions, event.media, event.media_kinds) == ((THEY,), 2, ("photo", "photo"))
    assert (event.lang, event.claimed_ms, event.rights) == ("en-GB", AT_MS, RIGHTS)
    content = event.content
    assert content.text == text
    assert (content.hashtags, content.cashtags) == (("茶", "more"), ("ACME",))
    assert content.links == ("https://example.org/a?b=1",)
    assert event.words == words_of_post(event.post, content, 1, 2, AT_MS, lang="en-GB")


@pytest.mark.parametrize(
    ("embed", "kinds", "links"),
    [
        ({"$type": "app.bsky.embed.video", "video": {}}, ("video",), ()),
        ({"$type": "app.bsky.embed.video", "video": {}, "presentation": "gif"}, ("gif",), ()),
        ({"$type": "app.bsky.embed.external", "external": {"uri": "https://e.org/"}}, (), ("https://e.org/",)),
        ({"$type": "app.bsky.embed.record", "record": {"uri": f"at://{OTHER}/app.bsky.feed.generator/x"}}, (), ()),
        ({"$type": "app.bsky.embed.tomorrow", "what": 5}, (), ()),
    ],
)
def test_every_embed_says_what_it_holds_and_one_that_is_new_says_nothing(embed: Any, kinds: Any, links: Any) -> None:
    event = said(post(embed=embed))
    assert (event.media_kinds, event.media, event.content.links, event.quoted) == (kinds, len(kinds), links, None)


def test_places_in_a_text_are_counted_in_bytes_and_one_that_is_not_in_it_marks_nothing() -> None:
    text = "é #a"

    def tags(start: Any, end: Any) -> Any:
        mark = {"index": {"byteStart": start, "byteEnd": end}, "features": [{"$type": FACET + "tag", "tag": "a"}]}
        return said(post(text, facets=[mark])).content.hashtags

    assert tags(3, 5) == ("a",)
    # As places in characters these would be in the text; in bytes they cut a letter, or lie outside.
    assert [tags(start, end) for start, end in ((1, 3), (0, 1), (4, 4), (5, 3), (-1, 2), (3, 6), ("3", 5))] == [()] * 7


def test_an_update_is_a_later_revision_told_from_others_by_its_rev_and_a_delete_names_the_post() -> None:
    edited = said(post("other", "update"))
    assert type(edited) is PostEdited
    assert (edited.post, edited.revision) == (f"bluesky:{DID}~3kk2abcdefg2x", 2)
    back = post("other", "update")
    back["commit"]["rev"] = "3mptbypcq3abc"  # changed to something else in between, and back
    assert said(back).raw_sha256 != edited.raw_sha256
    gone = message(T0_US, operation="delete", rkey="3kk2abcdefg2x")
    del gone["commit"]["record"], gone["commit"]["cid"]
    assert said(gone) == PostDeleted(post=edited.post, owner=ME, source="bluesky")


def test_one_post_from_two_servers_is_one_event() -> None:
    here, there = post(), post()
    there["time_us"] += 12_345
    assert said(here) == said(there)
    assert said(post("a")).raw_sha256 != said(post("b")).raw_sha256


@pytest.mark.parametrize(
    ("collection", "kind", "subject", "target_post"),
    [
        ("app.bsky.feed.like", "like", THEIRS, f"bluesky:{OTHER}~3aaa"),
        ("app.bsky.feed.repost", "repost", THEIRS, f"bluesky:{OTHER}~3aaa"),
        ("app.bsky.graph.follow", "follow", OTHER, None),
        ("app.bsky.graph.block", "block", OTHER, None),
    ],
)
def test_an_act_is_named_so_that_it_can_be_undone(collection: str, kind: Any, subject: Any, target_post: Any) -> None:
    name = f"bluesky:{DID}~{kind}~3kk2abcdefg2x"
    assert said(act(collection, subject)) == ReactionObserved(
        act=name, owner=ME, source="bluesky", kind=kind, target=THEY, post=target_post, claimed_ms=AT_MS, rights=RIGHTS
    )
    assert said(act(collection, None, "delete")) == ReactionRetracted(act=name, owner=ME, source="bluesky")


def test_a_like_of_what_is_no_post_is_of_no_use() -> None:
    liked = act("app.bsky.feed.like", {"uri": f"at://{OTHER}/app.bsky.feed.generator/cats"})
    assert reading_of(liked) == Reading(of_no_use=1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (account(True), AuthorShown(owner=ME, source="bluesky", claimed_ms=AT_MS)),
        (account(False, "deleted"), AuthorErased(owner=ME, source="bluesky")),
        (account(False, "takendown"), AuthorHidden(owner=ME, source="bluesky", reason="takendown", claimed_ms=AT_MS)),
        (account(False, "suspended"), AuthorHidden(owner=ME, source="bluesky", reason="suspended", claimed_ms=AT_MS)),
        (
            account(False, "deactivated"),
            AuthorHidden(owner=ME, source="bluesky", reason="deactivated", claimed_ms=AT_MS),
        ),
        (account(False), AuthorHidden(owner=ME, source="bluesky", reason="inactive", claimed_ms=AT_MS)),
        (account(False, "new\nword"), AuthorHidden(owner=ME, source="bluesky", reason="inactive", claimed_ms=AT_MS)),
        (account(False, "throttled"), None),
        (account(False, "desynchronized"), None),
        ({"did": DID, "time_us": 1, "kind": "identity", "identity": {"did": DID, "handle": "me.example"}}, None),
        ({"did": DID, "time_us": 1, "kind": "sync"}, None),
        (message(T0_US, "fm.teal.alpha.actor.status"), None),
        (message(T0_US, operation="resync"), None),
    ],
)
def test_accounts_come_and_go_and_what_is_not_for_us_is_counted(value: Any, expected: Any) -> None:
    if expected is None:
        assert reading_of(value) == Reading(posts_in=reading_of(value).posts_in, of_no_use=1)
    else:
        assert said(value) == expected


@pytest.mark.parametrize(
    ("record", "train"),
    [
        ({"syntheticContentGeneration": {"allow": True, "updatedAt": "x"}}, True),
        ({"syntheticContentGeneration": {"allow": False}}, False),
        ({"syntheticContentGeneration": {"updatedAt": "x"}}, None),
        ({"syntheticContentGeneration": {"allow": None}}, None),
        ({"bulkDataset": {"allow": False}, "publicAccessArchive": {"allow": False}}, None),
        ({}, None),
    ],
)
def test_an_intent_maps_only_where_its_words_are_clear(record: Any, train: Any) -> None:
    declared = message(T0_US, INTENTS, rkey="self", record={"$type": INTENTS, **record})
    assert said(declared) == IntentDeclared(owner=ME, source="bluesky", train=train, index=None, claimed_ms=AT_MS)


def test_a_declaration_that_is_deleted_says_nothing_any_more_and_one_for_somebody_else_is_not_ours() -> None:
    gone = message(T0_US, INTENTS, rkey="self", operation="delete")
    assert said(gone) == IntentDeclared(owner=ME, source="bluesky", claimed_ms=AT_MS)
    for operation in ("create", "delete"):
        other = message(T0_US, INTENTS, rkey="did:web:else.example", operation=operation)
        assert reading_of(other) == Reading(of_no_use=1)


@pytest.mark.parametrize("time_us", [None, "5", 0, -5, True, 1.5, 10**30])
def test_nobody_stays_visible_for_a_time_that_is_none(time_us: Any) -> None:
    odd = {**account(False, "suspended"), "time_us": time_us}
    assert said(odd) == AuthorHidden(owner=ME, source="bluesky", reason="suspended")


BAD: list[tuple[str, str, Any]] = [
    ("value", "unknown-shape", 5),
    ("value", "unknown-shape", {}),
    ("value", "unknown-shape", {"did": DID, "kind": 5}),
    ("value", "unknown-shape", {"did": DID, "kind": "commit"}),
    ("value", "bad-shape", {"did": DID, "kind": "commit", "commit": 5}),
    ("post", "bad-id", post() | {"did": "did:plc:a~b"}),
    ("post", "bad-id", post() | {"did": "handle.example"}),
    ("post", "bad-id", post() | {"did": None}),
    ("post", "bad-id", message(T0_US, rkey="a/b")),
    ("post", "bad-id", message(T0_US, rkey="a~b")),
    ("post", "bad-id", message(T0_US, rkey="..")),
    ("post", "bad-shape", message(T0_US, rkey="x" * 512)),
    ("post", "bad-shape", post(**{"$type": "app.bsky.feed.like"})),
    ("post", "no-text", post(text=None)),  # type: ignore[arg-type]
    ("post", "no-text", post(5)),  # type: ignore[arg-type]
    ("post", "nul-in-text", post("a\0b")),
    ("post", "not-unicode", post("a\ud800")),
    ("post", "not-unicode", post(bridgyOriginalText="\udcff")),
    ("post", "bad-number", post(x=Unreadable())),
    ("post", "bad-time", post(createdAt="2026-01-05T00:00:00")),
    ("post", "bad-time", post(createdAt="1969-12-31T23:59:59Z")),
    ("post", "bad-time", post(createdAt=5)),
    ("post", "bad-shape", post(langs="en")),
    ("post", "bad-shape", post(langs=[5])),
    ("post", "nul-in-text", post(langs=["e\0"])),
    ("post", "bad-shape", post(tags=[5])),
    ("post", "bad-shape", post(tags=["x" * 513])),
    ("post", "bad-shape", post(facets=[5])),
    ("post", "bad-uri", post(reply={"parent": {"uri": "at://handle.example/app.bsky.feed.post/3a"}, "root": THEIRS})),
    ("post", "bad-uri", post(reply={"parent": THEIRS})),
    ("post", "bad-uri", post(reply={"parent": {"uri": f"at://{OTHER}/app.bsky.feed.like/3a"}, "root": THEIRS})),
    ("post", "bad-uri", post(embed={"$type": "app.bsky.embed.record", "record": {"uri": "https://e.org"}})),
    ("post", "bad-shape", post(embed={"$type": "app.bsky.embed.images", "images": 5})),
    ("reaction", "bad-uri", act("app.bsky.feed.like", {"uri": "at://x/y/z"})),
    ("reaction", "bad-shape", act("app.bsky.feed.like", OTHER)),
    ("reaction", "bad-id", act("app.bsky.graph.follow", "handle.example")),
    ("reaction", "bad-shape", message(T0_US, "app.bsky.graph.follow", record=5)),
    ("reaction", "bad-id", act("app.bsky.graph.block", OTHER, "delete", rkey=None)),
    ("compliance", "bad-id", message(T0_US, operation="delete", rkey=5)),
    ("author", "bad-shape", account("true")),
    ("author", "bad-shape", account(False, 5)),
    ("author", "bad-id", account(False, "deleted", did=OTHER)),
    ("author", "bad-shape", message(T0_US, INTENTS, rkey="self", record={"syntheticContentGeneration": {"allow": 0}})),
]  # fmt: skip


@pytest.mark.parametrize(("what", "reason", "value"), BAD)
def test_a_message_that_does_not_fit_is_refused_with_its_reason(what: str, reason: str, value: Any) -> None:
    assert reasons(value) == [(what, reason)]


@pytest.mark.parametrize(("at", "ms"), [("1970-01-01T00:00:00Z", 0), ("2100-01-01T00:00:00+00:00", 4_102_444_800_000)])
def test_a_time_may_lie_and_stays_claimed(at: str, ms: int) -> None:
    assert said(post(createdAt=at)).claimed_ms == ms


SEEDS: list[Any] = [
    post(
        "a #b c",
        langs=["en"],
        tags=["t"],
        reply={"parent": THEIRS, "root": THEIRS},
        embed={
            "$type": "app.bsky.embed.recordWithMedia",
            "record": {"record": THEIRS},
            "media": {"$type": "app.bsky.embed.images", "images": [{}]},
        },
        facets=[facet("a #b c", "#b", "tag", tag="b"), facet("a #b c", "c", "mention", did=OTHER)],
    ),
    post("x", "update", embed={"$type": "app.bsky.embed.external", "external": {"uri": "https://e.org"}}),
    act("app.bsky.feed.like", THEIRS),
    act("app.bsky.graph.follow", OTHER),
    act("app.bsky.graph.follow", OTHER, "delete"),
    account(False, "deleted"),
    message(T0_US, INTENTS, rkey="self", record={"syntheticContentGeneration": {"allow": True}}),
]


def test_whatever_is_mangled_in_a_message_everything_has_one_fate() -> None:
    seed = 20_260_105
    rng = random.Random(seed)
    fates: Counter[str] = Counter()
    for number in range(FUZZ):
        value = mangled(rng, rng.choice(SEEDS))
        try:
            reading = read(value, "bluesky", lambda owner: RIGHTS)
            assert accounted(reading)
            assert len(reading.said) + len(reading.refusals) + reading.of_no_use == 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, number {number}") from error
        fates[reading.refusals[0].reason if reading.refusals else "said" if reading.said else "of no use"] += 1
    for name in ("said", "of no use", "bad-id", "bad-shape", "bad-uri", "bad-time"):
        assert fates[name] > 20, name


@pytest.mark.skipif(not REAL.exists(), reason=f"real messages are not on this machine ({REAL})")
def test_real_messages_are_taken_whole_with_the_counts_that_are_known_of_them() -> None:
    values = [json.loads(line) for line in (REAL / "expected_v1.jsonl").read_text().splitlines()]
    kinds: Counter[str] = Counter()
    of_no_use = 0
    authors = set()
    for value in values:
        reading = reading_of(value)
        assert not reading.refusals
        of_no_use += reading.of_no_use
        for one in reading.said:
            kinds[getattr(one.events[0], "kind", type(one.events[0]).__name__)] += 1
            authors.add(one.events[0].owner.removeprefix("bluesky:@"))  # type: ignore[attr-defined]
            if isinstance(one.events[0], PostObserved):
                record = value["commit"]["record"]
                assert one.events[0].lang == record["langs"][0]
                found = [f["tag"] for x in record.get("facets", []) for f in x["features"] if "tag" in f]
                assert list(one.events[0].content.hashtags) == found  # type: ignore[union-attr]
    assert kinds == {"like": 34, "repost": 6, "follow": 3, "PostObserved": 5, "ReactionRetracted": 1}
    assert of_no_use == 1
    manifest = json.loads((REAL / "manifest.json").read_text())  # of the whole capture, of which this is the beginning
    assert len(values) <= manifest["v1_events"]
    assert authors <= set(manifest["commit_dids"])
