"""A version is released when it is no worse; the alias never points at what was retracted."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from agents import releases
from schemas import events as e
from schemas import facts, learned
from tests.folding import (
    BASELINE,
    BETTER,
    command,
    of,
    run,
    trained,
)


def candidates(*events: facts.Event) -> list[Any]:
    return run(releases.step, releases.State(), *events)


def pointed(said: Sequence[Any]) -> list[tuple[int, str]]:
    return [(one.release, one.version[0]) for one in of(learned.ReleasePointed, said)]


def test_the_base_is_release_zero_once() -> None:
    said = candidates(trained("0", None, None), trained("0", None, None))
    assert [type(one) for one in said] == [learned.ModelReleased, learned.ReleasePointed]
    assert pointed(said) == [(0, "0")]
    assert (said[1].alias, said[1].adapter) == ("default", None)


def test_a_version_that_is_no_worse_is_released_and_says_how_much_that_means() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("1"))
    assert pointed(said) == [(0, "0"), (1, "1")]
    assert said[2].notes == ("300 held-back pairs",)
    few = candidates(trained("0", None, None), trained("1", BETTER.model_copy(update={"pairs": 12})))
    assert "can only catch a collapse" in few[2].notes[1]


LIMITS_OF_A_RELEASE = {
    "neutral_nats": BASELINE.neutral_nats * releases.NEUTRAL_NATS_RATIO_MAX,
    "safety_margin": BASELINE.safety_margin - releases.SAFETY_MARGIN_LOSS_MAX,
    "safety_preferred": BASELINE.safety_preferred,
    "empty_rate": releases.EMPTY_RATE_MAX,
    "repetition_rate": BASELINE.repetition_rate + releases.REPETITION_RATE_GAIN_MAX,
    "accuracy": releases.ACCURACY_MIN,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"neutral_nats": LIMITS_OF_A_RELEASE["neutral_nats"] + 0.01}, "neutral text costs"),
        ({"safety_margin": LIMITS_OF_A_RELEASE["safety_margin"] - 0.01}, "safety margin"),
        ({"safety_preferred": LIMITS_OF_A_RELEASE["safety_preferred"] - 0.01}, "prefers the safe answer in"),
        ({"empty_rate": LIMITS_OF_A_RELEASE["empty_rate"] + 0.01}, "of its answers are empty"),
        ({"repetition_rate": LIMITS_OF_A_RELEASE["repetition_rate"] + 0.01}, "repetition"),
        ({"accuracy": LIMITS_OF_A_RELEASE["accuracy"] - 0.01}, "of 300 held-back pairs"),
        ({"margin": 0.0}, "mean margin"),
    ],
)
def test_a_version_that_is_worse_is_refused_with_each_reason(change: dict[str, float], reason: str) -> None:
    said = candidates(trained("0", None, None), trained("1", BETTER.model_copy(update=change)))
    (refused,) = of(learned.ModelRefused, said)
    assert len(refused.reasons) == 1
    assert reason in refused.reasons[0]
    assert pointed(said) == [(0, "0")]


def test_the_last_value_that_is_allowed_is_released() -> None:
    edge = {**LIMITS_OF_A_RELEASE, "margin": 1e-9}
    assert pointed(candidates(trained("0", None, None), trained("1", BETTER.model_copy(update=edge))))[-1] == (1, "1")
    none_held_back = BETTER.model_copy(update={"pairs": 0, "accuracy": 0.0, "margin": 0.0})
    assert pointed(candidates(trained("0", None, None), trained("1", none_held_back)))[-1] == (1, "1")


def test_a_version_is_refused_with_all_its_reasons_and_without_an_evaluation() -> None:
    bad = BETTER.model_copy(update={"neutral_nats": 9.0, "empty_rate": 1.0})
    said = candidates(trained("0", None, None), trained("1", bad), trained("2", None))
    assert [len(one.reasons) for one in of(learned.ModelRefused, said)] == [2, 1]
    assert of(learned.ModelRefused, said)[1].reasons == ("it was not evaluated",)


def test_an_operator_can_release_what_was_refused() -> None:
    said = candidates(trained("0", None, None), trained("1", None), command("release", "1"))
    assert pointed(said) == [(0, "0"), (1, "1")]
    assert of(learned.ModelReleased, said)[-1].notes == ("by olga: because",)


def test_a_roll_back_points_at_the_earlier_release_under_its_own_number() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("2"), command("roll-back", "1"))
    assert pointed(said) == [(0, "0"), (1, "1"), (2, "2"), (1, "1")]
    (rolled,) = of(learned.ModelRolledBack, said)
    assert (rolled.release, rolled.version, rolled.reason) == (1, "1" * 64, "because")
    again = candidates(trained("0", None, None), trained("1"), command("roll-back", "1"), command("release", "1"))
    assert pointed(again) == [(0, "0"), (1, "1")]
    never = candidates(trained("0", None, None), trained("1", None), command("roll-back", "1"))
    assert "never released" in of(e.AlertRaised, never)[0].detail


def test_retracting_the_present_release_goes_back_to_the_one_before() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("2"), command("retract", "2"))
    assert pointed(said)[-1] == (1, "1")
    assert [one.version[0] for one in of(learned.ModelRetracted, said)] == ["2"]
    both = candidates(
        trained("0", None, None), trained("1"), trained("2"), command("retract", "1"), command("retract", "2")
    )
    assert pointed(both)[-1] == (0, "0")
    turns = [command("roll-back", "1"), command("roll-back", "2"), command("retract", "2")]
    assert pointed(candidates(trained("0", None, None), trained("1"), trained("2"), *turns))[-1] == (1, "1")


def test_retracting_an_older_release_moves_nobody() -> None:
    said = candidates(trained("0", None, None), trained("1"), trained("2"), command("retract", "1"))
    assert pointed(said) == [(0, "0"), (1, "1"), (2, "2")]
    assert len(of(learned.ModelRetracted, said)) == 1


def test_the_base_cannot_be_retracted() -> None:
    said = candidates(trained("0", None, None), command("retract", "0"))
    assert said[-1].detail == "retract: the base stays"
    assert of(learned.ModelRetracted, said) == []


@pytest.mark.parametrize("what", ["release", "roll-back", "retract"])
def test_a_command_about_a_retracted_or_unknown_version_is_refused_with_an_alert(what: str) -> None:
    said = candidates(trained("0", None, None), trained("1"), command("retract", "1"), command(what, "1"))
    assert said[-1] == e.AlertRaised(kind="command-refused", stage="releases", detail=f"{what}: version is retracted")
    (alert,) = candidates(command(what, "9"))
    assert alert.detail == f"{what}: version is not known"


ATTACKS = st.lists(
    st.builds(command, st.sampled_from(["release", "roll-back", "retract"]), st.sampled_from("1203"))
    | st.builds(trained, st.sampled_from("34"), st.sampled_from([BETTER, None])),
    min_size=3,
    max_size=14,
)


MANY = settings(max_examples=500, deadline=None)


def attack(events: Sequence[Any]) -> None:
    """Fold event by event beside a model: who answers is who answered last of those that nobody retracted."""
    state, numbers, alias = releases.State(), dict[int, str](), None
    answered, known, retracted = list[str](), set[str](), set[str]()
    for event in (trained("0", None, None), trained("1"), trained("2"), *events):
        name = event.version
        before = next((one for one in reversed(answered) if one not in retracted), None)
        if isinstance(event, learned.ModelTrained):
            if name not in known and (event.adapter is None or event.measured is not None):
                answered.append(name)
            known.add(name)
        elif name in known and name not in retracted:
            if event.command == "retract" and name != "0" * 64:
                retracted.add(name)
            elif event.command == "release" or (event.command == "roll-back" and name in answered):
                answered += [name] if name != before else []
        said = run(releases.step, state, event)
        for pointed in of(learned.ReleasePointed, said):
            assert numbers.setdefault(pointed.release, pointed.version) == pointed.version
            alias = pointed.version
        assert {one.version for one in of(learned.ModelRetracted, said)} <= retracted
        assert set(state.retracted) == retracted
        assert alias == next(one for one in reversed(answered) if one not in retracted)
    assert len(set(numbers.values())) == len(numbers)


@MANY
@given(ATTACKS)
def test_the_alias_never_points_at_what_is_retracted(events: list[facts.Event]) -> None:
    attack(events)


def forgetting_who_was_retracted(event: learned.ReleaseCommanded, state: releases.State) -> list[facts.Event]:
    state.retracted.clear()
    return COMMANDED(event, state)


def taking_back_one_place_of_two(event: learned.ReleaseCommanded, state: releases.State) -> list[facts.Event]:
    stack = [*state.stack]
    said = RETRACT(event, state)
    if event.version in stack and isinstance(said[0], learned.ModelRetracted):
        last = len(stack) - 1 - stack[::-1].index(event.version)
        state.stack = stack[:last] + stack[last + 1 :]
    return said


def saying_nothing_of_who_answers_then(event: learned.ReleaseCommanded, state: releases.State) -> list[facts.Event]:
    return [one for one in RETRACT(event, state) if not isinstance(one, learned.ReleasePointed)]


def going_back_to_the_base(event: learned.ReleaseCommanded, state: releases.State) -> list[facts.Event]:
    del state.stack[1:]
    return RETRACT(event, state)


def numbering_again(name: str, state: releases.State, notes: tuple[str, ...]) -> list[facts.Event]:
    state.next_release = len(state.stack)
    return RELEASE(name, state, notes)


COMMANDED, RETRACT, RELEASE = releases._commanded, releases._retract, releases._release
WRONG = {
    forgetting_who_was_retracted: "_commanded",
    taking_back_one_place_of_two: "_retract",
    saying_nothing_of_who_answers_then: "_retract",
    going_back_to_the_base: "_retract",
    numbering_again: "_release",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_control_the_same_attacks_find_releases_that_are_wrong(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def red(events: list[facts.Event]) -> bool:
        try:
            attack(events)
        except AssertionError:
            return True
        return False

    monkeypatch.setattr(releases, WRONG[wrong], wrong)
    found = find(ATTACKS, red, settings=MANY, random=random.Random(1))
    assert len(found) <= 6


def test_a_version_that_comes_before_any_base_is_refused_and_the_base_is_release_0() -> None:
    said = candidates(trained("1"), trained("0", None, None))
    assert isinstance(said[0], learned.ModelRefused)
    assert pointed(said)
