"""A post becomes a prompt, a subject, edges and a rhythm; what is deleted or erased is withdrawn."""

import math
from typing import Any

import pytest

from agents import metadata
from schemas import events as e
from schemas import facts
from schemas import posts as ps
from schemas.ids import text_hash
from tests.folding import (
    HOUR_MS,
    RIGHTS,
    T0_MS,
    gone,
    of,
    post,
    run,
)


def tweets(*events: Any) -> list[facts.Event]:
    return run(metadata.step, metadata.State(), *events)


def withdrawn_only(said: list[facts.Event]) -> bool:
    return {type(one) for one in said} <= {e.InteractionWithdrawn, e.PostForgotten}


def test_a_post_is_noted_as_a_prompt_and_as_a_subject() -> None:
    said = tweets(post("p", text="Hello WORLD", media=2, mentions=("bob",), claimed_ms=T0_MS))
    (prompt,), (subject,) = of(e.PromptNoted, said), of(e.SubjectNoted, said)
    assert of(e.PostNoted, said) == [e.PostNoted(post="p", prompt="p", owner="ann", source="x", at_ms=T0_MS)]
    assert (prompt.prompt, subject.prompt, subject.subject, subject.kind) == ("p", "p", "p/p", "root")
    assert prompt.text_hash == subject.text_hash == text_hash("p", "Hello WORLD")
    assert (subject.features.words, subject.features.media, subject.features.mentions) == (2, 2, 1)
    reply = of(e.SubjectNoted, tweets(post("r", parent="p", reply_to="bob")))[0]
    assert (reply.prompt, reply.subject, reply.kind) == ("p", "p/r", "reply")


def test_a_delete_that_comes_before_its_post_waits_for_it() -> None:
    assert withdrawn_only(tweets(gone("p"), post("p"), post("p", kind=ps.PostEdited)))
    assert not withdrawn_only(tweets(gone("q"), post("p")))


def test_a_deleted_post_is_withdrawn_once_as_a_subject_and_as_a_prompt() -> None:
    said = of(e.SubjectWithdrawn, tweets(post("r", parent="p"), gone("r"), gone("r")))
    assert [(one.prompt, one.subject, one.reason) for one in said] == [
        ("p", "p/r", "post-deleted"),
        ("r", "r/r", "post-deleted"),
    ]
    (root,) = of(e.SubjectWithdrawn, tweets(post("p"), gone("p")))
    assert (root.prompt, root.subject) == ("p", "p/p")
    assert of(e.SubjectWithdrawn, tweets(gone("p"))) == []


def test_every_deletion_has_a_receipt_under_the_name_it_gave_and_the_post_it_meant() -> None:
    def receipts(*said: Any) -> list[tuple[str, int]]:
        return [(one.post, one.requested.offset) for one in of(e.PostForgotten, tweets(*said))]

    assert receipts(gone("p"), gone("p"), post("p")) == [("p", 0), ("p", 1)], "known or not, and again"
    edited = post("p", kind=ps.PostEdited, revision=2, named="p2")
    assert receipts(post("p"), edited, gone("p2")) == [("p", 2), ("p2", 2)]
    assert receipts(gone("p2"), edited) == [("p2", 0), ("p", 1)], "the edit says which post was meant"


def test_reactions_to_a_deleted_post_say_nothing() -> None:
    seen = ps.EngagementObserved(post="p", owner="ann", source="x", likes=3, views=9, rights=RIGHTS)
    noted, described = tweets(seen)
    assert noted == e.EngagementNoted(prompt="p", subject="p/p", likes=3, views=9)
    assert isinstance(described, e.EngagementDescribed)
    assert withdrawn_only(tweets(gone("p"), seen))


def test_an_edit_replaces_the_words_and_does_not_count_as_another_post() -> None:
    state = metadata.State()
    times = [T0_MS + i * HOUR_MS for i in range(3)]
    run(metadata.step, state, *[post(f"p{i}", claimed_ms=at) for i, at in enumerate(times)])
    rhythm = state.authors["ann"].posts
    edited = post("p2", text="other words", kind=ps.PostEdited, revision=2, claimed_ms=times[2] + 5)
    (subject,) = of(e.SubjectNoted, run(metadata.step, state, edited))
    assert subject.text_hash == text_hash("p2", "other words")
    assert subject.temporal == 1.0
    assert state.authors["ann"].posts == rhythm == 3


def test_a_repost_gives_an_edge_and_nothing_to_judge() -> None:
    edge, described = tweets(post("r", reposted="p", reposted_author="cat", mentions=("bob",), text=None))
    assert (edge.kind, edge.target_post, edge.target) == ("repost", "p", "cat")
    assert (described.kind, described.features) == ("repost", None)


def test_edges_name_whom_the_payload_names_and_no_one_twice() -> None:
    said = of(
        e.InteractionObserved,
        tweets(post("r", parent="p", reply_to="bob", quoted="q", quoted_author="dan", mentions=("bob", "cat", "ann"))),
    )
    assert [(one.kind, one.target, one.target_post) for one in said] == [
        ("reply", "bob", "p"),
        ("quote", "dan", "q"),
        ("mention", "cat", None),
    ]


def test_a_steady_author_has_a_rhythm_and_a_new_one_has_none() -> None:
    steady = [post(f"p{i}", claimed_ms=T0_MS + i * HOUR_MS) for i in range(6)]
    scores = [one.temporal for one in of(e.SubjectNoted, tweets(*steady))]
    assert scores == [None, None, 1.0, 1.0, 1.0, 1.0]
    bursts = [0, 1, 2, 50_000, 50_001, 5_000_000]
    jumpy = [post(f"p{i}", claimed_ms=T0_MS - bursts[-1] * 1000 + at * 1000) for i, at in enumerate(bursts)]
    assert of(e.SubjectNoted, tweets(*jumpy))[-1].temporal < 0
    # By hand: gaps of 100 s, then 100 e s: the mean deviation is 0.2, of 3 that would be no rhythm at all.
    gaps = (0, 100_000, 100_000 + round(100_000 * math.e))
    scored = of(e.SubjectNoted, tweets(*[post(f"p{i}", claimed_ms=T0_MS - HOUR_MS + at) for i, at in enumerate(gaps)]))
    assert scored[-1].temporal == pytest.approx(1 - 2 * 0.2 / 3, abs=1e-4)


def test_a_post_from_before_the_last_one_does_not_move_an_author_back_in_time() -> None:
    state = metadata.State()
    run(metadata.step, state, post("p0", claimed_ms=T0_MS), post("p1", claimed_ms=T0_MS - HOUR_MS), post("p2"))
    assert (state.authors["ann"].last_ms, state.authors["ann"].posts) == (T0_MS, 1)


def test_a_post_from_the_future_is_set_aside_with_a_reason() -> None:
    late = T0_MS + metadata.FUTURE_MS_MAX
    assert of(e.SubjectNoted, tweets((post("p", claimed_ms=late), T0_MS)))
    (refused,) = tweets((post("p", claimed_ms=late + 1), T0_MS))
    assert (refused.reason, refused.stage, refused.place) == ("future-dated", "metadata", "t/0/0")
    assert withdrawn_only(tweets(gone("p"), (post("p", claimed_ms=0), T0_MS)))
    assert of(e.SubjectNoted, tweets(post("p", claimed_ms=0)))[0].features.hour == 0


def test_an_erased_author_is_withdrawn_everywhere_and_gets_one_receipt() -> None:
    said = tweets(
        post("p"),
        post("r", parent="p"),
        post("o", owner="bob"),
        ps.AuthorErased(owner="ann", source="x"),
        post("p9"),
    )
    withdrawn = of(e.SubjectWithdrawn, said)
    assert sorted((one.prompt, one.subject) for one in withdrawn) == [("p", "p/p"), ("p", "p/r"), ("r", "r/r")]
    assert {one.reason for one in withdrawn} == {"author-erased"}
    assert said[-1] == e.AuthorForgotten(owner="ann", requested=facts.Where(topic="t", partition=0, offset=3))
    assert of(e.AuthorWithdrawn, said) == [e.AuthorWithdrawn(owner="ann", reason="author-erased")]


def test_a_post_without_words_leaves_edges_and_what_is_known_of_its_author() -> None:
    said = tweets(post("r", parent="p", text=None))
    assert [type(one) for one in said] == [e.InteractionObserved, e.PostDescribed]


def test_what_follows_from_a_post_does_not_depend_on_whether_its_words_can_still_be_read() -> None:
    def life(erased: bool) -> list[facts.Event]:
        seen = [post("p"), post("r", parent="p"), post("s", parent="p", kind=ps.PostEdited)]
        if erased:
            seen = [one.model_copy(update={"content": None}) for one in seen]
        return tweets(*seen, gone("p"), ps.AuthorErased(owner="ann", source="x"))

    assert life(erased=False) == life(erased=True)
    assert [type(one) for one in life(erased=True)].count(e.SubjectNoted) == 3


def test_the_longest_unseen_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "POSTS_MAX", 2)
    state = metadata.State()
    run(metadata.step, state, post("p0"), post("p1"), post("p2"))
    assert list(state.posts) == ["p1", "p2"]


# ---- versions of a post ---------------------------------------------------------------------------------------------


def revised(name: str, number: int, text: str = "the same in better words") -> ps.PostObserved:
    return post(name, text=text, kind=ps.PostEdited, revision=number, named=f"{name}v{number}")


def test_a_reply_that_names_a_later_version_finds_its_prompt() -> None:
    said = tweets(post("p"), revised("p", 2), revised("p", 3, "words of the third version"))
    newest = text_hash("p", "words of the third version")
    assert [(one.prompt, one.text_hash == newest) for one in of(e.PromptNoted, said)] == [
        ("p", False), ("p", False), ("pv2", False), ("p", True), ("pv2", True), ("pv3", True),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["p", "pv2", "pv3"])
def test_deleting_any_version_deletes_the_post_under_every_id_it_had(name: str) -> None:
    state = metadata.State()
    said = run(metadata.step, state, post("p"), revised("p", 2), revised("p", 3), gone(name))
    assert [one.subject for one in of(e.SubjectWithdrawn, said)] == ["p/p", "pv2/pv2", "pv3/pv3"]
    assert of(e.InteractionWithdrawn, said) == [e.InteractionWithdrawn(post="p", actor="ann")]
    assert of(e.SubjectNoted, run(metadata.step, state, revised("p", 4), post("p"))) == []
    assert (state.posts, state.named) == ({}, {})


HIDE = ps.AuthorHidden(owner="ann", source="x", reason="protected")
SHOW = ps.AuthorShown(owner="ann", source="x")
MUTE = ps.IntentDeclared(owner="ann", source="x", train=False)


@pytest.mark.parametrize("name", ["p", "pv2", "pv3"])
@pytest.mark.parametrize("between", [(HIDE,), (HIDE, SHOW), (MUTE,)])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_post_of_somebody_who_was_hidden_is_forgotten_under_every_id_it_had(
    name: str, between: tuple[Any, ...], at: int
) -> None:
    """Its words lie under the key of its first id, whoever could see them when they came."""
    posts = [post("p"), revised("p", 2), revised("p", 3)]
    said = tweets(*posts[:at], *between, *posts[at:], gone(name))
    assert {one.post for one in of(e.PostForgotten, said)} == {"p", name}
    assert len(of(e.PostForgotten, said)) == len({"p", name})


def test_a_deletion_of_a_version_that_comes_before_it_takes_the_post_back_when_it_comes() -> None:
    said = tweets(post("p"), gone("pv2"), revised("p", 2))
    assert [one.subject for one in of(e.SubjectWithdrawn, said)] == ["p/p"]
    assert len(of(e.SubjectNoted, said)) == 1


def test_an_older_version_that_comes_late_does_not_bring_replaced_words_back() -> None:
    state = metadata.State()
    run(metadata.step, state, revised("p", 3))
    late = run(metadata.step, state, revised("p", 2), post("p"))
    assert of(e.SubjectNoted, late) == []
    assert [one.prompt for one in of(e.PromptNoted, late)] == ["pv2"]
    assert [one.subject for one in of(e.SubjectWithdrawn, run(metadata.step, state, gone("p")))] == [
        "p/p", "pv3/pv3", "pv2/pv2",
    ]  # fmt: skip


# ---- reactions ------------------------------------------------------------------------------------------------------


def act(name: str, kind: str, owner: str = "ron", source: str = "bluesky", **more: Any) -> ps.ReactionObserved:
    return ps.ReactionObserved(act=name, owner=owner, source=source, kind=kind, rights=RIGHTS, **more)


def sky(name: str, owner: str = "ann", **more: Any) -> ps.PostObserved:
    return post(name, owner, **more).model_copy(update={"source": "bluesky"})


def undone(name: str, owner: str = "ron") -> ps.ReactionRetracted:
    return ps.ReactionRetracted(act=name, owner=owner, source="bluesky")


@pytest.mark.parametrize("kind", ["like", "repost", "follow", "block"])
def test_an_act_without_words_is_an_edge_until_it_is_undone(kind: str) -> None:
    said = tweets(act("a", kind, target="ann", post="p", claimed_ms=T0_MS), undone("a"), undone("a"))
    (edge,), (back,) = of(e.InteractionObserved, said), of(e.InteractionWithdrawn, said)
    assert (edge.kind, edge.actor, edge.target, edge.target_post) == (kind, "ron", "ann", "p")
    assert (edge.post, edge.at_ms) == ("a", T0_MS)
    assert back == e.InteractionWithdrawn(post="a", actor="ron")
    if kind in ("like", "repost"):
        assert of(e.ReactionNoted, said) == [e.ReactionNoted(post="p", act="a", actor="ron", kind=kind)]
        assert of(e.ReactionWithdrawn, said) == [e.ReactionWithdrawn(post="p", act="a")]
    else:
        assert len(said) == 2


def test_an_act_that_was_undone_before_it_came_is_never_counted() -> None:
    assert withdrawn_only(tweets(undone("a"), act("a", "like", post="p")))


def test_single_reactions_are_counted_only_where_the_source_does_not_count() -> None:
    seen = (sky("p"), sky("r", parent="p"))
    said = tweets(*seen, sky("q", quoted="p"), gone("r"), gone("q"))
    assert [(one.post, one.prompt) for one in of(e.PostPlaced, said)] == [("p", "p"), ("r", "p"), ("q", "q")]
    assert [(one.post, one.act, one.kind) for one in of(e.ReactionNoted, said)] == [
        ("p", "r", "reply"),
        ("p", "q", "quote"),
    ]
    assert [(one.post, one.act) for one in of(e.ReactionWithdrawn, said)] == [("p", "r"), ("p", "q")]
    x = tweets(post("p"), post("r", parent="p"), post("q", quoted="p"), act("a", "like", source="x", post="p"))
    assert not of(e.PostPlaced, x)
    assert not of(e.ReactionNoted, x)


def test_a_reply_that_quotes_what_it_answers_is_one_reaction() -> None:
    (one,) = of(e.ReactionNoted, tweets(sky("r", parent="p", quoted="p")))
    assert one.kind == "reply"


def test_the_oldest_acts_are_forgotten_first_and_then_stay_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "ACTS_MAX", 2)
    said = tweets(*(act(f"a{i}", "like", post="p") for i in range(3)), undone("a0"), undone("a2"))
    assert [one.act for one in of(e.ReactionWithdrawn, said)] == ["a2"]
    assert [one.post for one in of(e.InteractionWithdrawn, said)] == ["a0", "a2"]


def test_counts_have_the_age_at_which_they_were_counted() -> None:
    seen = ps.EngagementObserved(
        post="p", owner="ann", source="x", claimed_ms=T0_MS, likes=6, replies=1, bookmarks=3, views=1000, rights=RIGHTS
    )
    people = facts.AuthorFacts(followers=200)
    *_, noted, described = tweets(post("p", author=people), (seen, T0_MS + 2 * HOUR_MS))
    assert (noted.age_ms, noted.bookmarks) == (2 * HOUR_MS, 3)
    assert described.age_ms == 2 * HOUR_MS
    assert described.rates == facts.Rates(a_view=0.01, a_follower=0.05, an_hour=5.0)


# ---- authors --------------------------------------------------------------------------------------------------------


def hidden(owner: str = "ann") -> ps.AuthorHidden:
    return ps.AuthorHidden(owner=owner, source="x", reason="suspended")


def test_nothing_of_a_hidden_author_is_used_until_they_are_shown_again() -> None:
    state = metadata.State()
    said = run(metadata.step, state, post("p"), post("o", owner="bob"), act("a", "like", "ann", post="o"), hidden())
    assert [(one.subject, one.reason) for one in of(e.SubjectWithdrawn, said)] == [("p/p", "author-hidden")]
    assert of(e.AuthorWithdrawn, said) == [e.AuthorWithdrawn(owner="ann", reason="author-hidden")]
    assert of(e.ReactionWithdrawn, said) == [e.ReactionWithdrawn(post="o", act="a")]
    assert of(e.AuthorForgotten, said) == []
    seen = ps.EngagementObserved(post="p", owner="ann", source="x", likes=3, rights=RIGHTS)
    assert run(metadata.step, state, hidden(), post("p2"), act("b", "like", "ann"), seen) == []
    shown = ps.AuthorShown(owner="ann", source="x")
    assert [one.subject for one in of(e.SubjectNoted, run(metadata.step, state, shown, post("p3")))] == ["p3/p3"]


def test_an_erased_author_who_is_shown_again_stays_erased() -> None:
    erased, shown = ps.AuthorErased(owner="ann", source="x"), ps.AuthorShown(owner="ann", source="x")
    assert of(e.SubjectNoted, tweets(erased, shown, post("p"))) == []


def test_whoever_declares_that_nobody_may_learn_from_them_is_taken_out_of_use() -> None:
    def declared(**what: bool) -> ps.IntentDeclared:
        return ps.IntentDeclared(owner="ann", source="bluesky", **what)

    said = tweets(
        post("p"), post("r", parent="o"), post("b", owner="bob"), declared(train=False), declared(train=False)
    )
    assert [(one.subject, one.reason) for one in of(e.SubjectWithdrawn, said)] == [
        ("p/p", "intent-declared"),
        ("o/r", "intent-declared"),
        ("r/r", "intent-declared"),
    ]
    for allowed in (declared(train=True), declared(index=False), declared()):
        assert of(e.SubjectWithdrawn, tweets(post("p"), allowed)) == []


def test_the_memory_of_a_partition_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("AUTHORS_MAX", "POSTS_MAX", "GONE_MAX", "ACTS_MAX"):
        monkeypatch.setattr(metadata, limit, 3)
    state = metadata.State()
    for i in range(9):
        many = [sky(f"p{i}", f"ann{i}", quoted="o", claimed_ms=T0_MS), revised(f"p{i}", 2)]
        run(metadata.step, state, *many, gone(f"g{i}"), undone(f"u{i}"), hidden(f"h{i}"))
        run(metadata.step, state, ps.AuthorErased(owner=f"e{i}", source="x"))
    assert {field: len(getattr(state, field)) for field in state.__struct_fields__} == dict.fromkeys(
        state.__struct_fields__, 3
    )


def test_an_erasure_of_the_name_that_dead_letters_are_sealed_under_is_refused() -> None:
    """With its key destroyed, the next record that cannot be used could not be set aside: every worker would end."""
    (refused,) = tweets(ps.AuthorErased(owner="refused:tweets", source="own"))
    assert (refused.reason, refused.owner) == ("no-author", "refused:tweets")
    assert of(e.AuthorForgotten, tweets(ps.AuthorErased(owner="ann", source="own")))
