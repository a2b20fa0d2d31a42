"""A subject closes at its ages with what was measured until then, and says what was not."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import rewards
from schemas import events as e
from schemas import facts
from tests.folding import (
    T0_MS,
    noted,
    of,
    prompt_noted,
    reacted,
    run,
    subject,
    ticked,
)

AGES_MS = (1000, 5000)
ACTS = ("root", "answer", "thumb", "gone", "tick")


def signals(*events: Any, state: rewards.State | None = None) -> list[Any]:
    at_t0 = [one if isinstance(one, tuple) else (one, T0_MS) for one in events]
    return run(rewards.step, state or rewards.State(), *at_t0, ages_ms=AGES_MS)


def closed(*events: Any, name: str = "p/a") -> e.RewardClosed:
    said = signals(*events, ticked(AGES_MS[0]))
    return next(one for one in of(e.RewardClosed, said) if one.subject == name)


def test_a_reward_with_every_component_is_the_weighted_sum() -> None:
    reward = closed(
        prompt_noted(), subject(temporal=0.4, review=-0.2), noted("thumb", 1), reacted(likes=5, views=1000, replies=10)
    )
    parts = reward.components
    assert parts.human == 0.5  # one thumb up and a neutral vote
    assert parts.engagement == pytest.approx(2 * ((5 + 15) / 1000 / 0.10) - 1)
    assert (parts.review, parts.temporal, parts.content, parts.network) == (-0.2, 0.4, 0.5, None)
    assert reward.missing == ("network",)
    present = {"human": 0.25, "review": 0.20, "engagement": 0.25, "temporal": 0.10, "content": 0.05}
    assert reward.weights == {part: pytest.approx(weight / 0.85, abs=1e-6) for part, weight in present.items()}
    by_hand = (0.25 * 0.5 + 0.20 * -0.2 + 0.25 * -0.6 + 0.10 * 0.4 + 0.05 * 0.5) / 0.85
    assert reward.total == pytest.approx(by_hand, abs=1e-5)
    assert (reward.judgements, reward.simulated, reward.trainable) == (1, 0, True)


def test_what_was_not_measured_is_named_and_its_weight_shared() -> None:
    reward = closed(subject())
    assert reward.missing == ("human", "review", "engagement", "network", "temporal")
    assert reward.weights == {"content": 1.0}
    assert reward.total == 0.5
    assert (reward.prompt_hash, reward.prompt_where) == (None, None)
    assert sum(closed(subject(), noted("thumb")).weights.values()) == pytest.approx(1.0, abs=1e-5)
    assert sum(rewards.WEIGHTS.values()) == pytest.approx(1.0)


def test_nobody_saw_it_is_not_the_same_as_nobody_liked_it() -> None:
    assert closed(subject()).components.engagement is None
    assert closed(subject(), reacted(0, views=1000)).components.engagement == -1.0
    assert closed(subject(), reacted(0)).components.engagement == -1.0
    assert closed(subject(), reacted(100, views=1000)).components.engagement == 1.0
    assert closed(subject(), reacted(10**6)).components.engagement == 1.0
    by_hand = 2 * math.log1p(99) / math.log1p(10_000) - 1
    assert closed(subject(), reacted(99)).components.engagement == pytest.approx(by_hand, abs=1e-6)


def test_reactions_that_come_before_their_subject_wait_for_it() -> None:
    assert closed(reacted(100, views=1000), subject()).components.engagement == 1.0
    assert closed(reacted(100, views=1000), subject(), reacted(0, views=1000)).components.engagement == -1.0


@pytest.mark.parametrize(
    ("votes", "human"),
    [
        ([("thumb", -1)], -1 / 2),
        ([("stars", 5)], 1 / 2),
        ([("stars", 3)], 0.0),
        ([("stars", 1), ("thumb", 1)], 0.0),
        ([("thumb", 1)] * 3, 3 / 4),
    ],
)
def test_votes_are_averaged_with_a_neutral_one(votes: list[tuple[str, int]], human: float) -> None:
    given_ = [noted(kind, value, rater=f"r{i}") for i, (kind, value) in enumerate(votes)]
    assert closed(subject(), *given_).components.human == pytest.approx(human)


def test_a_report_is_a_penalty_of_its_own_and_no_vote() -> None:
    plain = closed(subject())
    reports = [noted("report", rater=f"r{i}") for i in range(6)]
    one, two, six = (closed(subject(), *reports[:n]) for n in (1, 2, 6))
    assert (one.components, one.judgements) == (plain.components, 0)
    assert [x.penalty for x in (plain, one, two, six)] == [0, 0.25, 0.5, 1.0]
    assert two.total == pytest.approx(plain.total - 0.5)
    assert closed(subject(), reports[0], reports[0]).penalty == 0.25


def test_a_choice_counts_for_one_and_against_the_other() -> None:
    both = (subject("p/a"), subject("p/b"), noted("choice", 1, "p/b"))
    assert closed(*both, name="p/a").components.human == 0.5
    assert closed(*both, name="p/b").components.human == -0.5
    tie = (subject("p/a"), subject("p/b"), noted("choice", 0, "p/b"))
    assert {closed(*tie, name=name).components.human for name in ("p/a", "p/b")} == {0.0}


def test_a_rater_who_changes_their_mind_counts_once() -> None:
    turned = (noted("choice", 1, "p/b"), noted("choice", 1, "p/a", subject="p/b"))
    reward = closed(subject("p/a"), subject("p/b"), *turned, name="p/a")
    assert (reward.components.human, reward.judgements) == (-0.5, 1)
    assert closed(subject(), noted("thumb", 1), noted("thumb", -1)).components.human == -0.5
    assert closed(subject(), noted("thumb", 1), noted("thumb", -1, rater="eve")).judgements == 2


def test_a_correction_speaks_for_the_better_words() -> None:
    both = (subject("p/a"), subject("p/b"), noted("correction", 1, "p/b", simulated=True))
    assert closed(*both, name="p/a").components.human == -0.5
    better = closed(*both, name="p/b")
    assert (better.components.human, better.simulated) == (0.5, 1)


def test_a_judgement_taken_back_no_longer_counts() -> None:
    back = e.FeedbackWithdrawn(prompt="p", subject="p/a", feedback="f:ron", rater="ron")
    assert closed(subject(), noted("thumb"), back).components.human is None
    assert closed(subject(), noted("thumb"), back.model_copy(update={"rater": "eve"})).components.human == 0.5
    assert closed(subject(), noted("thumb"), back.model_copy(update={"feedback": "f:other"})).components.human == 0.5


def test_a_subject_is_measured_at_its_two_ages_and_at_no_other_time() -> None:
    said = signals(
        prompt_noted(), subject(), ticked(999), ticked(1000), ticked(4999), noted("thumb"), ticked(5000), ticked(9999)
    )
    assert [(one.age_ms, one.final, one.components.human) for one in said] == [(1000, False, None), (5000, True, 0.5)]


def test_a_tick_that_comes_late_closes_what_it_missed() -> None:
    said = signals(subject(), ticked(60_000), ticked(60_001))
    assert [(one.age_ms, one.final) for one in said] == [(1000, False), (5000, True)]


def test_feedback_after_the_last_age_is_refused_with_that_reason() -> None:
    state = rewards.State()
    signals(subject(), ticked(1000), ticked(5000), state=state)
    (refused,) = signals(noted("thumb"), state=state)
    assert (refused.reason, refused.owner) == ("too-late", "ron")
    assert signals(subject(), reacted(5), ticked(60_000), state=state) == []


def test_a_withdrawn_subject_never_closes_and_says_so_once() -> None:
    away = e.SubjectWithdrawn(prompt="p", subject="p/a", reason="post-deleted")
    said = signals(prompt_noted(), subject(), noted("thumb"), away, subject(), reacted(3), ticked(1000), ticked(5000))
    assert said == [e.RewardWithdrawn(prompt="p", subject="p/a", reason="post-deleted")]


def test_a_prompt_whose_words_are_gone_can_be_in_no_pair() -> None:
    away = e.SubjectWithdrawn(prompt="p", subject="p/p", reason="post-deleted")
    reward = closed(prompt_noted(), subject(), noted("thumb"), away)
    assert (reward.prompt_hash, reward.prompt_where) == (None, None)
    assert closed(prompt_noted(), subject(), noted("thumb")).prompt_hash == "b" * 64


def test_a_prompt_takes_so_many_judgements_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "JUDGEMENTS_MAX", 2)
    said = signals(subject(), *[noted("thumb", rater=f"r{i}") for i in range(3)], noted("thumb", -1, rater="r0"))
    assert [one.reason for one in said] == ["too-many-judgements"]


@pytest.mark.parametrize(("subject_train", "prompt_train", "may"), [(1, 1, True), (0, 1, False), (1, 0, False)])
def test_both_the_words_and_their_prompt_must_be_trainable(subject_train: int, prompt_train: int, may: bool) -> None:
    reward = closed(prompt_noted(train=bool(prompt_train)), subject(train=bool(subject_train)))
    assert reward.trainable is may


ARRIVALS = [
    prompt_noted(),
    subject("p/a"),
    subject("p/b"),
    subject("q/c"),
    noted("thumb", rater="r1"),
    noted("stars", 2, rater="r2", subject="p/b"),
    noted("choice", 1, "p/b", rater="r3"),
    noted("report", rater="r4"),
    reacted(40, views=1000, age_ms=5),
    reacted(7, name="p/b", age_ms=5),
]


@settings(max_examples=150, deadline=None)
@given(st.permutations(ARRIVALS))
def test_the_order_of_arrival_within_an_age_does_not_matter(arrivals: list[facts.Event]) -> None:
    def closed_in(order: list[facts.Event]) -> list[facts.Event]:
        return signals(*[(one, T0_MS + at) for at, one in enumerate(order)], ticked(1100), ticked(5100))

    assert closed_in(arrivals) == closed_in(ARRIVALS)
    assert len(closed_in(arrivals)) == 6


def test_the_order_of_two_judgements_of_one_person_does_matter() -> None:
    one, two = noted("thumb", 1), noted("thumb", -1)
    assert closed(subject(), one, two).total != closed(subject(), two, one).total


def test_a_retraction_that_comes_before_its_judgement_still_counts() -> None:
    back = e.FeedbackWithdrawn(prompt="p", subject="p/a", feedback="f:ron", rater="ron")
    assert closed(subject(), back, noted("thumb")).components.human is None


def test_a_judgement_of_a_withdrawn_subject_is_refused() -> None:
    away = e.SubjectWithdrawn(prompt="p", subject="p/a", reason="post-deleted")
    refused = signals(subject(), away, noted("thumb"))[-1]
    assert isinstance(refused, e.RecordRefused)
    assert refused.reason == "subject-withdrawn"


# ---- the network ----------------------------------------------------------------------------------------------------


def stands(score: float, name: str = "p/a") -> e.NetworkNoted:
    return e.NetworkNoted(prompt=name.split("/")[0], subject=name, score=score)


def test_the_authors_place_in_the_graph_counts_whether_it_comes_before_or_after_the_subject() -> None:
    before, after = closed(stands(0.4), subject()), closed(subject(), stands(0.4))
    assert before == after
    assert before.components.network == 0.4
    assert "network" not in before.missing
    assert before.weights["network"] == pytest.approx(0.15 / 0.20)
    assert closed(subject(), stands(0.4), stands(-0.4)).components.network == -0.4
    assert closed(stands(0.4), subject(), subject(text_hash="d" * 64)).components.network == 0.4  # an edit


def test_what_comes_before_its_subject_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "EARLY_MAX", 3)
    state = rewards.State()
    signals(*[stands(0.1, f"p/{i}") for i in range(9)], *[reacted(i, name="p/8") for i in range(30)], state=state)
    assert list(state.prompts["p"].early) == ["p/6", "p/7", "p/8"]
    assert len(state.prompts["p"].early["p/8"].counts) == rewards.EARLY_COUNTS_MAX


# ---- never late -----------------------------------------------------------------------------------------------------


def at(after_ms: int, likes: int, **more: Any) -> tuple[e.EngagementNoted, int]:
    return reacted(likes, **more), T0_MS + after_ms


def used(*events: Any) -> list[tuple[int, float | None, int | None]]:
    """Give (age, engagement, how old the counts were) of each closing."""
    return [
        (one.age_ms, one.components.engagement, one.engagement_age_ms) for one in of(e.RewardClosed, signals(*events))
    ]


def score(likes: int) -> float:
    return closed(subject(), reacted(likes)).components.engagement or 0.0


def test_a_count_belongs_to_the_first_age_not_reached_before_it_however_late_the_tick() -> None:
    counts = [at(500, 1), at(1001, 50), at(2000, 70), at(5001, 9000)]
    late = used(subject(), *counts, ticked(99_000))
    assert late == [(1000, score(1), 500), (5000, score(70), 2000)]
    on_time = used(subject(), counts[0], ticked(1000), *counts[1:3], ticked(5000), counts[3], ticked(6000))
    assert late == on_time


def test_a_count_at_the_very_age_is_used_and_one_a_millisecond_later_is_not() -> None:
    assert used(subject(), at(1000, 5), ticked(4000)) == [(1000, score(5), 1000)]
    assert used(subject(), at(1001, 5), ticked(4000)) == [(1000, None, None)]


def test_without_a_new_count_the_one_before_stands_for_the_next_age() -> None:
    assert used(subject(), at(10, 3), ticked(9000)) == [(1000, score(3), 10), (5000, score(3), 10)]


def test_counts_in_the_wrong_order_and_before_their_subject_are_used_by_their_time() -> None:
    counts = [at(900, 9), at(100, 1), at(4000, 40), at(1500, 15)]
    expected = [(1000, score(9), 900), (5000, score(40), 4000)]
    assert used(subject(), *counts, ticked(9000)) == expected
    assert used(*counts, subject(), ticked(9000)) == expected


def test_how_old_the_counts_were_is_what_the_source_says_where_it_says_so() -> None:
    assert used(subject(), at(10, 3, age_ms=86_400_000), ticked(1000)) == [(1000, score(3), 86_400_000)]


COUNTS = st.lists(st.tuples(st.integers(0, 7000), st.integers(0, 99)), max_size=8)


def closings(counts: list[tuple[int, int]], ticks: list[int]) -> list[tuple[int, float | None, int | None]]:
    """Fold counts and ticks in the order of their times; a tick comes after what came in its millisecond."""
    line = [((when, 0, i), at(when, likes)) for i, (when, likes) in enumerate(counts)]
    line += [((when, 1, 0), ticked(when)) for when in ticks]
    return used(subject(), *[one for _, one in sorted(line, key=lambda one: one[0])])


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.lists(st.integers(0, 7000), max_size=4))
def test_how_late_the_ticks_are_changes_nothing_of_the_reactions_used(
    counts: list[tuple[int, int]], ticks: list[int]
) -> None:
    assert closings(counts, [*AGES_MS]) == closings(counts, [*ticks, 9000])


def test_a_reward_that_takes_the_newest_count_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def newest(noted: rewards.Noted, counted: rewards.Counted, ages_ms: tuple[int, ...]) -> None:
        noted.counts[0] = counted

    monkeypatch.setattr(rewards, "_sort_in", newest)
    counts = [(500, 1), (2000, 50)]
    assert closings(counts, [*AGES_MS]) != closings(counts, [9000])


# ---- a crowd --------------------------------------------------------------------------------------------------------


def test_a_person_has_one_vote_on_a_subject_however_many_judgements_they_give() -> None:
    one = closed(subject(), noted("thumb", 1, rater="ann"))
    many = [noted("choice", 1, f"p/{i}", rater="ann", feedback=f"f:{i}") for i in range(60)]
    often = closed(subject(), noted("thumb", 1, rater="ann"), noted("stars", 5, rater="ann"), *many)
    assert often.components.human == one.components.human == 0.5
    assert often.judgements == 62
    against = closed(subject(), *many, noted("thumb", -1, rater="bob"))
    assert against.components.human == 0.0


# ---- a feed that is too fast ----------------------------------------------------------------------------------------


def test_a_prompt_that_there_is_no_room_for_is_closed_at_the_age_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "PROMPTS_MAX", 1)
    counted, late = (reacted(10**6), T0_MS + 100), (noted("thumb", 1), T0_MS + 800)
    again = (subject(), T0_MS + 800)
    said = signals(subject(), counted, (subject("q/a"), T0_MS + 700), again, late, ticked(1700), ticked(6000))
    assert [(one.subject, one.age_ms, one.final) for one in of(e.RewardClosed, said)] == [
        ("p/a", 700, True), ("q/a", 1000, False), ("q/a", 5000, True),
    ]  # fmt: skip
    assert of(e.RewardClosed, said)[0].components.engagement == 1.0
    assert [one.reason for one in of(e.RecordRefused, said)] == ["too-late"], "what comes later is told so"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["root", "answer", "thumb", "gone", "tick"]), st.integers(0, 40)), max_size=80)
)
def test_every_subject_ends_once_however_little_room_there_is(acts: list[tuple[str, int]]) -> None:
    state, said, known = rewards.State(), [], set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "PROMPTS_MAX", 8)
        for number, (kind, of_prompt) in enumerate([*acts, ("tick", 10**6)]):
            name, after_ms = f"p{of_prompt}/a", 100 * number if kind != "tick" or number < len(acts) else 10**6
            if kind == "thumb":
                event: Any = noted(kind, 1, subject=name)
            elif kind == "gone":
                event = e.SubjectWithdrawn(prompt=f"p{of_prompt}", subject=name, reason="post-deleted")
            elif kind == "tick":
                event = ticked(after_ms)[0]
            else:
                event = subject(name, kind=kind)
                known.add(name)
            said += run(rewards.step, state, (event, T0_MS + after_ms), ages_ms=AGES_MS)
            assert len(state.prompts) <= 8
    ends = [one.subject for one in of(e.RewardClosed, said) if one.final]
    assert len(ends) == len(set(ends))
    assert known <= {*ends, *(one.subject for one in of(e.RewardWithdrawn, said))}


def test_a_feed_pushes_its_own_posts_out_before_what_people_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "PROMPTS_MAX", 16)
    feed = [(subject(f"f{number}/a", kind="root"), T0_MS + number) for number in range(900)]
    ours = [subject(), subject("q/a", kind="root"), noted("thumb", 1, subject="q/a")]
    state = rewards.State()
    said = signals(*ours, *feed, (noted("thumb", 1), T0_MS + 950), ticked(1000), ticked(6000), state=state)
    ends = {one.subject: one for one in of(e.RewardClosed, said) if one.final}
    assert [(ends[name].age_ms, ends[name].judgements) for name in ("p/a", "q/a")] == [(5000, 1), (5000, 1)]
    assert ends["f0/a"].age_ms < 100
    assert len(ends) == 902
    with monkeypatch.context() as patch:  # the control: without another turn, ours go with the rest
        patch.setattr(rewards, "_awaited", lambda prompt: False)
        ends = {one.subject: one for one in of(e.RewardClosed, signals(*ours, *feed, ticked(6000))) if one.final}
    assert (ends["p/a"].age_ms, ends["p/a"].judgements) == (14, 0)


def test_what_is_due_is_forgotten_with_what_there_was_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "PROMPTS_MAX", 16)
    state = rewards.State()
    signals(*((subject(f"f{number}/a"), T0_MS + number) for number in range(900)), state=state)
    assert len(state.due) <= 3 * 16
