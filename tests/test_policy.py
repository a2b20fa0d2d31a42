"""The rights of a source are what the operator's file says, and nothing where it says nothing."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import Record
from schemas.facts import Rights
from schemas.posts import IntentDeclared
from streams.intents import NOTHING, Declared, Intents, intents_file
from streams.policy import DEFAULT, Policy, PolicyRefused, Verdict

GOOD = '[x]\npolicy = "mine"\nindex = true\ntrain = true\nshow = false\n'


def test_the_default_takes_the_safe_side_for_others_words() -> None:
    policy = Policy.load()
    assert policy.rights("x") == Rights(index=True, train=False, show=True, policy="x-default")
    for source in ("bluesky", "mastodon"):
        assert policy.rights(source) == Rights(index=True, train=False, show=True, policy=f"{source}-default")
        assert policy.rights(source, Declared(train=True)).train
    assert policy.rights("simulator") == Rights(index=True, train=True, show=True, policy="simulator")
    assert policy.rights("server") == Rights(index=True, train=True, show=True, policy="server")
    assert policy.rights("own").policy == "own"


def test_a_source_that_is_not_named_may_be_used_for_nothing() -> None:
    assert Policy.load().rights("gab") == Rights(index=False, train=False, show=False, policy="unknown-source")


def test_an_operators_file_replaces_the_default_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(GOOD)
    assert Policy.load(file).rights("x") == Rights(index=True, train=True, show=False, policy="mine")
    assert Policy.load(file).rights("simulator").policy == "unknown-source"


def test_every_verdict_of_the_default_says_why() -> None:
    for line in DEFAULT.read_text().splitlines():
        if line.startswith("train"):
            assert "#" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("train = true", 'train = "yes"'), '[x], train: must be true, false or "declared"'),
        (GOOD.replace("train = true\n", ""), '[x], train: must be true, false or "declared"'),
        (GOOD.replace("index = true", 'index = "declared"'), "[x], index: must be true or false"),
        (GOOD.replace("train = true", 'train = "Declared"'), '[x], train: must be true, false or "declared"'),
        (GOOD.replace('"mine"', '"mine+yours"'), "[x], policy: may hold no +"),
        (GOOD + "trian = false\n", "[x], trian: is no key"),
        (GOOD.replace('"mine"', "5"), "[x], policy: must be a name"),
        (GOOD.replace('"mine"', '"two words"'), "[x], policy: must be a name"),
        (GOOD.replace('"mine"', '"simulator"'), "[x], policy: simulator, server, unknown-source each belong"),
        (GOOD.replace("[x]", "[simulator]"), "[simulator], policy: simulator, server"),
        ("x = 5\n", "[x]: must be a table"),
        (GOOD + GOOD, "is not TOML"),
        ("[x\n", "is not TOML"),
        ("x = " + "[" * 100_000, "is not TOML"),
        ("#" * (1 << 21), "is larger than"),
    ],
)
def test_a_bad_file_is_refused_with_its_table_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(PolicyRefused) as refused:
        Policy.load(file)
    assert str(refused.value).startswith(str(file))
    assert says in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    for file, says in ((tmp_path / "none.toml", "cannot be read"), (tmp_path, "cannot be read"),
                       (tmp_path / "latin.toml", "not UTF-8")):  # fmt: skip
        with pytest.raises(PolicyRefused, match=says):
            Policy.load(file)


CHOICES = (None, True, False)


@given(st.booleans(), st.sampled_from((True, False, "declared")), st.booleans(), st.sampled_from(CHOICES),
       st.sampled_from(CHOICES))  # fmt: skip
def test_a_no_always_wins_and_nothing_is_granted_that_nobody_granted(
    index: bool, train: Any, show: bool, says_train: bool | None, says_index: bool | None
) -> None:
    policy = Policy({"x": Verdict("mine", index, train, show)})
    rights = policy.rights("x", Declared(says_train, says_index))
    assert not (rights.train and says_train is False)
    assert not (rights.index and says_index is False)
    assert not (rights.train and train == "declared" and says_train is not True)
    assert not (rights.train and train is False)
    assert not (rights.train or rights.show) or rights.index  # what may not be stored may not be used
    assert rights.policy.partition("+")[0] == "mine"
    if rights.train != policy.rights("x").train:
        assert "+declared-" in rights.policy
    assert policy.rights("x", NOTHING) == policy.rights("x")


def said(owner: str, train: bool | None, index: bool | None = None) -> IntentDeclared:
    return IntentDeclared(owner=owner, source="bluesky", train=train, index=index)


def test_declarations_last_and_an_older_one_changes_nothing(tmp_path: Path) -> None:
    file = intents_file(tmp_path)
    intents = Intents(file)
    assert intents.declared("a") == NOTHING
    assert intents.note(said("a", True), 2_000)
    assert intents.note(said("a", False, False), 3_000)
    assert not intents.note(said("a", True), 2_000)  # an archive, taken in late
    other = Intents(file)  # another process
    assert other.declared("a") == Declared(train=False, index=False)
    assert other.note(said("a", None), 4_000)
    assert intents.declared("a") == NOTHING
    assert intents.note(said("a", True))  # of unknown time: the order of arrival counts
    assert other.declared("a") == Declared(train=True)


TIMES = st.none() | st.integers(1, 5)  # a few, so that archives come in late and two fall together


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(CHOICES), st.sampled_from(CHOICES), TIMES), max_size=20)
)
def test_declarations_can_be_rebuilt_from_the_log(declared: list[tuple[str, bool | None, bool | None, Any]]) -> None:
    live, again = Intents(), Intents()
    again.note(said("gone", True))
    records = []
    for offset, (owner, train, index, claimed_ms) in enumerate(declared, 1):
        one = said(owner, train, index).model_copy(update={"claimed_ms": claimed_ms})
        live.note(one, claimed_ms or 0)
        records.append(Record("tweets", 0, offset, offset, str(offset), one))
    assert again.rebuild(records) == len(declared)
    assert [again.declared(owner) for owner in ("a", "b", "gone")] == [*map(live.declared, "ab"), NOTHING]
