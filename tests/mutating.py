"""Mutating: one wrong line in a copy of the project -> do the tests that should see it see it?

Each mutant is judged in a tree of its own, by processes that import from there and nowhere else, and only after the
same tests passed on an unchanged tree. Killed means: a named test failed, or the process ended or hung where it must
not. A mutant that cannot be imported is no mistake that anybody would ship: it is broken, and does not count.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.proof import ROOT, SCALE

FOLDERS = ("schemas", "native", "models", "agents", "streams", "tests")
LIMIT_S = 120.0  # six times what the slowest killer takes on a busy machine
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
BROKEN = {
    2: "cannot be collected",
    3: "pytest failed",
    4: "is not there or cannot be collected",
    5: "no test was found",
}
OURS = """# Imports come from this tree, before whatever an editable install says of the same names.
import sys
from importlib.machinery import PathFinder
class Here:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {folders!r}:
            return PathFinder.find_spec(name, path or [{tree!r}])
sys.meta_path.insert(0, Here)
"""


@dataclass(frozen=True)
class Mutant:
    """A mistake: in `file`, `old` (there exactly once) becomes `new`; the tests in `killers` must fail of it."""

    name: str
    file: str
    old: str
    new: str
    why: str  # what would come of it
    promise: str  # which promise it breaks
    killers: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed (by the test named), survived, or broken (the reason)."""

    name: str
    status: str
    by: str
    seconds: float


class DoesNotApply(Exception):
    """The code that a mutant changes is not there, or more than once; the message names the mutant."""


def applied(mutant: Mutant, root: Path = ROOT) -> str:
    """Give the file's text with the mistake in it."""
    text = (root / mutant.file).read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise DoesNotApply(f"{mutant.name}: {found} places in {mutant.file} read {mutant.old!r}; there must be one")
    return text.replace(mutant.old, mutant.new)


def plant(tree: Path, mutant: Mutant | None = None, root: Path = ROOT) -> None:
    """Copy the project to `tree`, with the mistake in it."""
    for folder in FOLDERS:
        # Copies, not links: a test that writes into its own folder must not reach the real one.
        shutil.copytree(root / folder, tree / folder, ignore=shutil.ignore_patterns("*.tmp", "*.pyc.*"))
    shutil.copy2(root / "pyproject.toml", tree)
    built = importlib.util.find_spec("native._kernels")
    if built is not None and built.origin is not None:
        shutil.copy2(built.origin, tree / "native")
    (tree / "sitecustomize.py").write_text(OURS.format(folders=set(FOLDERS), tree=str(tree)))
    if mutant is not None:
        path = tree / mutant.file
        path.write_text(applied(mutant, tree))
        for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):  # of a file that may look equally old and long
            stale.unlink()


def environment(tree: Path) -> dict[str, str]:
    """Make the environment of a process that sees only the tree."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "XINFLUENCER_P"))}
    small = {"XINFLUENCER_SEEDS": "40", "FUZZ_CASES": "2000"}
    return {**inherited, **small, "PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "PASSIVE"}


def run(tree: Path, tests: Sequence[str], limit_s: float = LIMIT_S) -> tuple[int | None, str]:
    """Run tests in a tree; gives the exit code (None: it hung) and what was printed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-rfE", "--hypothesis-seed=0",
               "-p", "no:cacheprovider", *tests]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tree, env=environment(tree), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, text=True, errors="replace",
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return None, said
    return process.returncode, said


def judge(mutant: Mutant, root: Path, tree: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Run a mutant's tests on it, in a tree that is gone afterwards."""
    began = time.monotonic()
    try:
        plant(tree, mutant, root)
        status, by = verdict(*run(tree, mutant.killers, limit_s), limit_s)
    except DoesNotApply as fault:
        status, by = "broken", str(fault)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return Outcome(mutant.name, status, by, round(time.monotonic() - began, 1))


def verdict(code: int | None, said: str, limit_s: float) -> tuple[str, str]:
    """Read pytest's end: (status, by what)."""
    if code == 0:
        return ("survived", "") if re.search(r"\d passed", said) else ("broken", "every test was skipped")
    if code is None:
        return "killed", f"it hung for {limit_s:.0f} s"
    failed = FAILED.search(said)
    if code == 1 and failed:
        return "killed", failed[1].removeprefix("tests/")
    if code in BROKEN:
        return "broken", f"{BROKEN[code]}: {said.strip()[-300:]}"
    return "killed", f"the process ended with {code}"


def sound(tree: Path, mutants: Iterable[Mutant]) -> str:
    """Run every test that is to kill something on an unchanged tree; gives what it says if one does not pass, or ""."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.killers))
    code, said = run(tree, tests, LIMIT_S * max(1, len(tests) // 4))
    return "" if code == 0 else said[-3000:] or f"pytest ended with {code}"


def keep(outcome: Outcome, scale: str = SCALE) -> None:
    """Write what became of a mutant to .proof/<scale>/mutants/mutants.json: {name: {status, by, seconds}}."""
    path = ROOT / ".proof" / scale / "mutants" / "mutants.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = kept(scale)
    known[outcome.name] = {name: value for name, value in asdict(outcome).items() if name != "name"}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def kept(scale: str = SCALE) -> dict[str, dict[str, object]]:
    """Read what was kept."""
    path = ROOT / ".proof" / scale / "mutants" / "mutants.json"
    found: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}
    return found
