"""Wrong variants of the runtime, by name: all still apply, and each that is run is killed by the tests that it names.

CI runs a few of them; `make night` and `python -m tests.mutants` run all.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import BY_NAME, MUTANTS
from tests.mutating import FOLDERS, DoesNotApply, Mutant, applied, environment, judge, keep, plant, sound, verdict
from tests.proof import ROOT, SCALE, Say

QUICK = ("snapshot-before-send", "dedupe-without-ordinal", "declared-no-ignored")
RUN = [BY_NAME[name] for name in QUICK] if SCALE == "ci" else MUTANTS
PASSES = "tests/test_batching.py::test_a_batch_closes_by_count"
PARTS = {"fold", "shell", "transport", "sender", "snapshots", "trainer", "dataset", "vault", "seal", "metadata"} | {
    "guard", "forgetting", "backup", "backup_store", "restore", "dead_letters", "trouble", "written", "ingest",
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_still_applies_once_and_is_python(mutant: Mutant) -> None:
    ast.parse(applied(mutant))
    assert mutant.why
    assert mutant.promise


def test_every_mistake_has_a_name_of_its_own_and_tests_that_are_there() -> None:
    assert [name for name, count in Counter(one.name for one in MUTANTS).items() if count > 1] == []
    tests = {test for mutant in MUTANTS for test in mutant.killers}
    gone = []
    for test in tests:
        file, _, name = test.partition("::")
        if not re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE):
            gone.append(test)
    assert gone == []
    assert all(mutant.killers for mutant in MUTANTS)
    assert {Path(mutant.file).stem for mutant in MUTANTS} >= PARTS


def test_a_mistake_whose_line_was_rewritten_is_named() -> None:
    for old in ("a line that nobody wrote", "self.memory"):
        with pytest.raises(DoesNotApply, match=r"lost: \d+ places in streams/fold.py read"):
            applied(Mutant("lost", "streams/fold.py", old, "", "", "", ()))


# ---- is it the tree that is judged? ---------------------------------------------------------------------------------


def test_everything_is_imported_from_the_tree(tmp_path: Path) -> None:
    plant(tmp_path / "tree")
    code = "import agents, models, native, schemas, streams.fold, tests.proof as t; print(streams.fold.__file__, "
    code += "*(m.__file__ for m in (agents, models, native, schemas, streams, t)), native.backend())"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path / "tree"), capture_output=True, text=True,
        check=True,
    ).stdout.split()  # fmt: skip
    import native

    assert said.pop() == native.backend()
    assert all(path.startswith(str(tmp_path / "tree")) for path in said)
    assert {Path(path).relative_to(tmp_path / "tree").parts[0] for path in said} == set(FOLDERS)


def test_control_what_is_written_is_what_is_judged(tmp_path: Path) -> None:
    old = "if len(state.open) >= limits.pairs_max:"
    for new, killer, status, by in (
        (old, PASSES, "survived", ""),
        ("if len(state.open) > limits.pairs_max:", PASSES, "killed", PASSES.removeprefix("tests/")),
        ("if (:", PASSES, "broken", "cannot be collected"),
        (old, f"{PASSES}_or_not", "broken", "is not there"),
    ):
        outcome = judge(Mutant("m", "agents/batching.py", old, new, "", "", (killer,)), ROOT, tmp_path / "tree")
        assert (outcome.status, by in outcome.by) == (status, True), outcome
        assert list(tmp_path.iterdir()) == [], "a tree was left behind"


def test_a_process_that_hangs_or_ends_is_killed_and_one_whose_tests_were_skipped_says_nothing() -> None:
    assert verdict(None, "", 7.0) == ("killed", "it hung for 7 s")
    assert verdict(75, "", 7.0) == ("killed", "the process ended with 75")
    assert verdict(0, "1 passed in 0.1s", 7.0) == ("survived", "")
    assert verdict(0, "1 skipped in 0.1s", 7.0)[0] == "broken"
    said = "FAILED tests/test_x.py::test_y[1-a] - assert 1 == 2\n1 failed in 0.1s"
    assert verdict(1, said, 7.0) == ("killed", "test_x.py::test_y[1-a]")


# ---- the score ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree without a mistake, on which every test passes that is to kill something: else a kill would say nothing."""
    tree = tmp_path_factory.mktemp("mutants") / "unchanged"
    plant(tree)
    assert sound(tree, RUN) == ""
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("mutant", RUN, ids=lambda mutant: mutant.name)
def test_a_mistake_is_killed(mutant: Mutant, unchanged: Path, tmp_path: Path, proof: Say) -> None:
    proof(
        "MUTANT", "control: named wrong variants of the runtime, each with the tests that must kill it", 1, "variants"
    )
    outcome = judge(mutant, unchanged, tmp_path / "tree")
    keep(outcome)
    assert outcome.status == "killed", f"{mutant.name} {outcome.status}: {outcome.by or mutant.why}"
