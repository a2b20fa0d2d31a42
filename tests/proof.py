"""Proof: each attack of the fault catalogue -> one row of docs/PROOF.md, written by the run that made it.

A test asks for the fixture `proof` and says what it is, how many times and from which seed; tests that live elsewhere
are named in BESIDE. What came out lies in .proof/<scale>/, one file a test; `python -m tests.proof` makes the page.
"""

import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCALES = ("ci", "night", "release")
SCALE = os.environ.get("XINFLUENCER_PROOF", "ci")
SEED = int(os.environ.get("XINFLUENCER_PROOF_SEED", "11"))
PACKAGES = ("faust-streaming", "aiokafka", "torch", "lancedb", "chdb", "hypothesis")
KAFKA = "4.1.0"

SIZES = {  # name -> (ci, night, release)
    "kills": (20, 300, 3_000),
    "events": (5_000, 100_000, 1_000_000),
    "points": (2, 10, 50),  # deaths at each named point
    "terms": (3, 40, 200),  # SIGTERM while chunks are in hand
    "zombies": (1, 10, 50),
    "broker kills": (1, 20, 100),
    "broker pauses": (1, 3, 10),
    "broker kills at a start": (3, 30, 300),
    "trainer rounds": (1, 7, 30),  # of 10 points each
    "fuzz decoder": (50_000, 500_000, 5_000_000),  # of each of the four sources
    "fuzz broker": (2_000, 50_000, 500_000),
    "burst": (1_000, 10_000, 100_000),
    "simulation": (2_000, 100_000, 1_000_000),
    "disorder": (10, 300, 3_000),
    "crowd": (2_000, 100_000, 1_000_000),
}
"""How often each attack is made. A size that the night could not end in two hours is smaller, and NOTES say so."""

NOTES = (
    "`kill -9` is not a power cut: Kafka with one replica does not fsync each message.",
    "What a machine that loses power keeps is not shown here.",
    "N attacks without a failure only say that a failure is rarer than 3/N at 95 %, if the attacks are independent.",
    "Attacks of one run share a feed and a seed; where a row says so, they share a process.",
    "A control is a purpose-built wrong variant; it must turn the same oracle red for the reason named.",
)

CATALOGUE = (
    *(f"C{n}" for n in range(1, 12)),
    *(f"D{n}" for n in range(1, 11)),
    *(f"CONTROL {what}" for what in (
        "agent raises", "take and raise", "concurrency 2", "unawaited send", "stream_wait_empty=False", "random ids",
        "ids per chunk", "LanceDB without the primary-key metadata", "an aggregating view", "counter in a table",
        "exactly_once in place of ids",
    )),
    *(f"SECURITY {what}" for what in (
        "adapters", "adapter names", "links never fetched", "special tokens", "filters", "SQL", "formulas", "ANSI",
        "SASL without TLS", "addresses that are listened on",
    )),
    "CLUSTER",
    "MUTANT",
    "SIM",
)  # fmt: skip
"""What a scale must have a row for: an id, or an id and how what it says begins."""

SLOW = ("CONTROL stream_wait_empty=False", "CONTROL ids per chunk", "CONTROL exactly_once in place of ids")
"""What `make test` leaves to the night."""

BESIDE = (  # id, what, where it is proved, how many attacks one test stands for, of what, seed
    ("C8", "the trainer killed at every named point", "test_trainer.py::test_a_trainer_killed_at_a_named_point*", 1,
     "kills", 5),
    ("C9", "two trainers by mistake", "test_trainer.py::test_of_two_trainers*", 1, "runs", 5),
    ("C10", "the disk fills up under a snapshot", "test_snapshots.py::test_a_disk_that_fills_up*", 1, "runs", 0),
    ("C11", "every damage to every file of an adapter", "test_models.py::test_every_damage_to_every_file*", 1,
     "damages", 0),
    ("C11", "the server goes on with the release before", "test_server.py::test_a_damaged_adapter_is_refused*", 1,
     "runs", 0),
    ("D1", "payloads of all formats, damaged", "test_ingest_faults.py::test_d1_damaged_values*", ("FUZZ_CASES", 0.7),
     "cases", 20_260_105),
    ("D1", "lines of all formats, scrambled", "test_ingest_faults.py::test_d1_scrambled_lines*", ("FUZZ_CASES", 0.3),
     "cases", 20_260_105),
    ("D3", "a step that fails on one record", "test_dead_letters.py::test_a_step_that_fails_on_one_post*", 1, "runs",
     5),
    ("D7", "a line of 100 MB at the edge", "test_ingest_faults.py::test_d7_*100_mb*", 1, "runs", 0),
    ("D7", "just under and just over the limit, at the edge", "test_ingest_faults.py::test_d7_the_largest*", 1, "runs",
     0),
    ("D10", "an author is erased: pairs are withheld, the root verifies", "test_trainer.py::test_an_erased_author*", 1,
     "runs", 5),
    ("SIM", "seeded lives of the whole topology in memory", "test_simulation.py::test_every_life*",
     ("XINFLUENCER_SEEDS", 1), "seeds", 0),
    ("SIM", "control: delivery broken on purpose, in memory", "test_simulation.py::test_a_broken_delivery*", 1,
     "variants", 0),
    ("CONTROL", "LanceDB without the primary-key metadata", "test_vectors.py::test_control_without_the_mark*", 1,
     "variants", 0),
    ("CONTROL", "an aggregating view", "test_tables.py::test_control_an_aggregating_view*", 1, "variants", 0),
    ("D10", "the embedder forgets, and says so once", "test_embedder.py::test_every_request_has_one_receipt*", 1,
     "runs", 0),
    ("D10", "the sink forgets, down to the bytes, with a receipt", "test_sink.py::test_what_is_forgotten*", 1, "runs",
     0),
    ("SECURITY", "special tokens of the chat in a text", "test_models.py::test_text_cannot_open*", 1, "cases", 0),
    ("SECURITY", "special tokens of the chat in what is trained on", "test_models.py::test_what_is_trained_on*", 1,
     "cases", 0),
    ("SECURITY", "filters made of what users write", "test_vectors.py::test_a_value_never_becomes*", 1, "cases", 0),
    ("SECURITY", "SQL that changes or reaches out", "test_analytics.py::test_whatever_changes*", 1, "queries", 0),
    ("SECURITY", "formulas and ANSI in what is exported", "test_analytics.py::test_csv_runs_no*", 1, "cases", 0),
    ("SECURITY", "configurations of adapters that are not plain LoRA", "test_models.py::test_a_configuration*", 1,
     "cases", 0),
    ("SECURITY", "versions that are links or missing", "test_models.py::test_a_version_that_is_a_link*", 1, "cases", 0),
    ("SECURITY", "the broker listens on loopback only", "test_broker.py::test_it_listens_on_loopback*", 1, "runs", 0),
    ("SECURITY", "the server listens on loopback only", "test_server.py::test_the_process_listens_on_loopback*", 1,
     "runs", 0),
    ("SECURITY", "other hosts, forms and sizes at the server's edge", "test_server.py::test_the_edge_refuses*", 1,
     "runs", 0),
    ("SECURITY", "adapters that are pickles, forged or not finite", "test_models.py::test_forged_weights*", 1, "cases",
     0),
    ("SECURITY", "adapter names that are paths", "test_models.py::test_a_name_that_is_no_hash*", 1, "cases", 0),
)  # fmt: skip


def size(name: str, scale: str = SCALE) -> int:
    """Give how often an attack is made at this scale."""
    return SIZES[name][SCALES.index(scale)]


@dataclass
class Case:
    """One attack: what it was, and what came of it."""

    id: str
    what: str
    n: int
    unit: str
    seed: int
    node: str = ""
    result: str = "did not end"
    seconds: float = 0.0
    detail: str = ""
    versions: dict[str, str] = field(default_factory=dict)


Say = Callable[..., Case]
CASES = pytest.StashKey[list[Case]]()


@functools.cache
def versions() -> dict[str, str]:
    """Name what was under attack: this program by its commit, and what it stands on."""
    said = subprocess.run(
        ("git", "describe", "--always", "--dirty", "--exclude=*"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = {"commit": said.stdout.strip() or "unknown", "python": platform.python_version(), "kafka": KAFKA}
    for name in PACKAGES:
        found[name] = version(name)
    return found


# ---- pytest ---------------------------------------------------------------------------------------------------------


def beside(node: str) -> Case | None:
    """Find the row of a test that knows nothing of proofs."""
    for name, what, pattern, count, unit, seed in BESIDE:
        if fnmatch(node, f"tests/{pattern}"):
            n = count if isinstance(count, int) else int(int(os.environ[count[0]]) * count[1])
            return Case(name, what, n, unit, seed, node)
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proof: an attack of the fault catalogue, a row of docs/PROOF.md")
    os.environ.setdefault("XINFLUENCER_SEEDS", str(size("simulation")))
    os.environ.setdefault("FUZZ_CASES", str(size("fuzz decoder")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Kill the trainer more often than once at each point, at the larger scales."""
    rounds = size("trainer rounds")
    if rounds > 1 and metafunc.definition.name.startswith("test_a_trainer_killed_at_a_named_point"):
        metafunc.fixturenames.append("proof_round")
        metafunc.parametrize("proof_round", range(rounds))


def mark(items: list[pytest.Item]) -> None:
    """Give the tests that prove something their mark, and those that live elsewhere their row."""
    for item in items:
        case = beside(item.nodeid)
        if case is not None:
            item.stash[CASES] = [case]
        if case is not None or "proof" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.proof)
            if SCALE != "ci":
                item.add_marker(pytest.mark.timeout(0), append=False)


@pytest.fixture
def proof_round(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Say:
    """Say what this test proves: proof(id, what, n, unit, seed). Another id adds a row, the same one says it anew."""

    def say(name: str, what: str, n: int = 1, unit: str = "runs", seed: int = SEED, detail: str = "") -> Case:
        case = Case(name, what, n, unit, seed, request.node.nodeid, detail=detail)
        before = [one for one in request.node.stash.get(CASES, []) if one.id != name]
        request.node.stash[CASES] = [*before, case]
        keep(case)  # "did not end": what ends the interpreter leaves a row too
        return case

    return say


def pytest_runtest_setup(item: pytest.Item) -> None:
    for case in item.stash.get(CASES, []):
        keep(case)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    cases = item.stash.get(CASES, [])
    if not cases or (report.when != "call" and report.passed):
        return
    for case in cases:
        case.result, case.seconds = report.outcome, round(call.duration, 1)
        keep(case)
    if report.failed:
        report.sections.append(("the same again", command(cases[0])))


def command(case: Case, scale: str = SCALE, whole: bool = True) -> str:
    """Write the one line that makes an attack again; not `whole`: all tests of a row."""
    seed = "" if os.environ.get("XINFLUENCER_PROOF_SEED") is None else f"XINFLUENCER_PROOF_SEED={SEED} "
    return f"XINFLUENCER_PROOF={scale} {seed}python -m pytest '{case.node if whole else case.node.partition('[')[0]}'"


def keep(case: Case) -> None:
    """Write a case to .proof/<scale>/."""
    case.versions = versions()
    folder = ROOT / ".proof" / SCALE
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in f"{case.id}-{case.node.removeprefix('tests/')}")[:180]
    temporary = folder / f"{name}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(asdict(case), indent=1) + "\n")
    temporary.replace(folder / f"{name}.json")


# ---- the page -------------------------------------------------------------------------------------------------------


def page() -> str:
    """Render docs/PROOF.md from all that was recorded."""
    out = [
        "# Proof",
        "",
        "Generated by `python -m tests.proof` from what the tests recorded; not edited by hand.",
        "One table a scale: the sizes of `make test` (ci), `make night` and `make release-proof`.",
        "",
        *(f"- {note}" for note in NOTES),
    ]
    for scale in SCALES:
        cases = recorded(scale)
        out += ["", f"## {scale}", "", *(_table(scale, cases) if cases else [f"Not run yet: `{HOW[scale]}`."])]
    return "\n".join(out) + "\n"


def recorded(scale: str) -> list[Case]:
    """Read what a scale's tests recorded."""
    return [Case(**json.loads(path.read_text())) for path in sorted((ROOT / ".proof" / scale).glob("*.json"))]


def lacking(cases: list[Case], scale: str = "night") -> list[str]:
    """Name what the catalogue demands and these cases do not show, and what they show to be wrong."""
    demanded = [wanted for wanted in CATALOGUE if scale != "ci" or wanted not in SLOW]
    rows = [f"{one.id} {one.what}" for one in cases if one.result == "passed"]
    missing = [wanted for wanted in demanded if not any(re.match(rf"{re.escape(wanted)}\b", row) for row in rows)]
    wrong = [f"{one.id} {one.what}: {one.result}" for one in cases if one.result != "passed"]
    return [*(f"no proof of {wanted}" for wanted in missing), *wrong]


HOW = {"ci": "make test", "night": "make night", "release": "make release-proof"}


def _table(scale: str, cases: list[Case]) -> list[str]:
    named = sorted({f"{name} {one}" for case in cases for name, one in case.versions.items()})
    rows: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        rows.setdefault((case.id, case.what), []).append(case)
    minutes = sum({one.node: one.seconds for one in cases}.values()) / 60
    out = [f"Versions: {', '.join(named)}. Machine: {os.cpu_count()} cores. Attacks: {minutes:.0f} minutes in all.", ""]
    out += [*(f"- Missing: {one}." for one in lacking(cases, scale)), ""] if lacking(cases, scale) else []
    out += ["- Left to the night: " + ", ".join(SLOW) + ".", ""] if scale == "ci" else []
    out += ["| id | what | N | seed | result | bound | s | command |", "|---|---|---|---|---|---|---|---|"]
    for (name, what), group in sorted(rows.items(), key=lambda row: _order(row[0])):
        n, failed = sum(one.n for one in group), [one for one in group if one.result != "passed"]
        result = f"{len(failed)} of {len(group)} FAILED" if failed else "caught" if _control(name, what) else "held"
        details = "; ".join(sorted({one.detail for one in group if one.detail}))
        result += f" ({details})" if details else ""
        bound = "" if failed or n < 2 or _control(name, what) else f"below {_share(3 / n)} at 95 %"
        seconds = sum(one.seconds for one in group)
        line = f"`{command(group[0], scale, whole=len(group) == 1)}`"
        out.append(f"| {name} | {what} | {n:,} {group[0].unit} | {group[0].seed} | {result} | {bound} | {seconds:.0f} "
                   f"| {line} |")  # fmt: skip
    return out


def _control(name: str, what: str) -> bool:
    return name == "CONTROL" or what.startswith("control")


def _order(row: tuple[str, str]) -> tuple[int, int, str]:
    name, what = row
    if name[:1] in "CD" and name[1:].isdigit():
        return ("CD".index(name[0]), int(name[1:]), what)
    return (2, 0, f"{name} {what}")


def _share(value: float) -> str:
    return "any" if value >= 1 else f"{value:.2g}"


if __name__ == "__main__":
    (ROOT / "docs" / "PROOF.md").write_text(page())
    missing = lacking(recorded(SCALE), SCALE)
    sys.stdout.write(
        "".join(f"docs/PROOF.md: {SCALE}: {one}\n" for one in missing) or f"docs/PROOF.md: {SCALE}: whole\n"
    )
    sys.exit(bool(missing))
