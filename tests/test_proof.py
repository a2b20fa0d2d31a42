"""The page of proofs: what was not shown is named, and a failure is never a bound."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests import proof as p


def shown() -> list[p.Case]:
    """One case for each demand of the catalogue, all passed."""
    parts = [wanted.partition(" ") for wanted in p.CATALOGUE]
    return [p.Case(name, what or "an attack", 1, "runs", 1, f"t::{name}{what}", "passed") for name, _, what in parts]


def test_what_the_catalogue_demands_and_nobody_showed_is_named() -> None:
    cases = shown()
    assert p.lacking(cases) == []
    for at, gone in enumerate(cases):
        rest = cases[:at] + cases[at + 1 :]
        assert p.lacking(rest) == [f"no proof of {p.CATALOGUE[at]}"], gone


def test_the_slow_controls_are_demanded_of_the_night_alone() -> None:
    cases = [one for one in shown() if f"{one.id} {one.what}" not in p.SLOW]
    assert p.lacking(cases, "ci") == []
    assert p.lacking(cases, "night") == [f"no proof of {one}" for one in sorted(p.SLOW, key=p.CATALOGUE.index)]


def test_ten_is_not_one() -> None:
    cases = [one for one in shown() if one.id != "C1"]
    assert any(one.id == "C10" for one in cases)
    assert p.lacking(cases) == ["no proof of C1"]


@pytest.mark.parametrize("result", ["failed", "skipped", "did not end"])
def test_an_attack_that_did_not_pass_proves_nothing(result: str) -> None:
    cases = shown()
    cases[0].result = result
    assert p.lacking(cases) == [f"no proof of {p.CATALOGUE[0]}", f"C1 an attack: {result}"]


def test_a_row_with_a_failure_has_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "ROOT", tmp_path)
    folder = tmp_path / ".proof" / "ci"
    folder.mkdir(parents=True)
    for n in range(3):
        case = p.Case("C1", "kills", 100, "kills", 7, f"tests/t.py::test[{n}]", "passed" if n else "failed")
        (folder / f"{n}.json").write_text(json.dumps(asdict(case)))
    row = next(line for line in p.page().splitlines() if line.startswith("| C1 "))
    assert "300 kills" in row
    assert "1 of 3 FAILED" in row
    assert " at 95 %" not in row
    (folder / "0.json").unlink()
    row = next(line for line in p.page().splitlines() if line.startswith("| C1 "))
    assert "held | below 0.015 at 95 %" in row
