"""The rights of a source are what the operator's file says, and nothing where it says nothing."""

from pathlib import Path

import pytest

from schemas.facts import Rights
from streams.policy import DEFAULT, Policy, PolicyRefused

GOOD = '[x]\npolicy = "mine"\nindex = true\ntrain = true\nshow = false\n'


def test_the_default_takes_the_safe_side_for_others_words() -> None:
    policy = Policy.load()
    assert policy.rights("x") == Rights(index=True, train=False, show=True, policy="x-default")
    assert not policy.rights("bluesky").train
    assert policy.rights("simulator") == Rights(index=True, train=True, show=True, policy="simulator")
    assert policy.rights("server") == Rights(index=True, train=True, show=True, policy="server")
    assert policy.rights("own").policy == "own"


def test_a_source_that_is_not_named_may_be_used_for_nothing() -> None:
    assert Policy.load().rights("mastodon") == Rights(index=False, train=False, show=False, policy="unknown-source")


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
        (GOOD.replace("train = true", 'train = "yes"'), "[x], train: must be true or false"),
        (GOOD.replace("train = true\n", ""), "[x], train: must be true or false"),
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
