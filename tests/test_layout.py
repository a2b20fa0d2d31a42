"""Layout: the style guide and the direction of imports, as tests; each rule is shown a bad text that it must find."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "native", "models", "agents", "streams", "bench")
CODE = (".py", ".cpp", ".hpp")
TEXT = (*CODE, ".pyi", ".md", ".toml", ".txt", ".yml", ".yaml", ".sh", ".json", ".html", ".css", ".js")
LINE_CHARS_MAX = 120
FILE_LINES_MAX = 400  # past this, ask whether the file holds two ideas
FILE_BYTES_MAX = 1_000_000  # a repository is no place for data
IDEA_WORDS_MIN = 3
VAGUE_NAMES = ("utils", "util", "common", "helpers", "helper", "manager", "managers", "misc")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")  # split, so that this file does not hold them
GENERATED = ("constraints.txt",)


def files() -> list[Path]:
    """What git tracks or would track; without git, everything outside hidden folders, builds and var/."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        hidden = re.compile(r"(^|/)(\.[^/]+|build|var|__pycache__)(/|$)|\.so$")
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if not hidden.search(str(p.relative_to(ROOT)))]
    return sorted(ROOT / name for name in set(names) if name and (ROOT / name).is_file())


def idea(name: str, text: str) -> str:
    """First line of the module docstring, or of the first comment in C++; empty if there is none."""
    if name.endswith(".py"):
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].strip()
    first = text.partition("\n")[0]
    return first.removeprefix("//").strip() if first.startswith("//") else ""


def swallows(text: str) -> Iterator[int]:
    """Lines where every error, or any, is caught and forgotten."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or (
            isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
        )
        silent = all(
            isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            for s in node.body
        )
        if broad and silent:
            yield node.lineno


def faults(name: str, text: str) -> list[str]:
    """What is untidy in one file, a sentence each; `name` is its path from the root, with forward slashes."""
    found = []
    path = Path(name)
    lines = text.split("\n")
    in_package = path.parts[0] in PACKAGES
    if path.suffix in CODE and set(re.split(r"[_.]", path.name)) & set(VAGUE_NAMES):
        found.append("its name says nothing about what is in it")
    if in_package and path.suffix in CODE:
        first = idea(name, text)
        if len(first.split()) < IDEA_WORDS_MIN:
            found.append("its first line does not state its idea")
        if len(lines[0]) > LINE_CHARS_MAX:
            found.append(f"its first line is longer than {LINE_CHARS_MAX} characters")
        if len(lines) - 1 > FILE_LINES_MAX:
            found.append(f"it has {len(lines) - 1} lines, more than {FILE_LINES_MAX}")
    if path.suffix == ".py":
        found += [f"line {line} swallows an error" for line in swallows(text)]
    if path.suffix in TEXT:
        for number, line in enumerate(lines, 1):
            if "\t" in line:
                found.append(f"line {number} has a tab")
            if line != line.rstrip():
                found.append(f"line {number} has trailing blanks")
            if UNFINISHED.search(line):
                found.append(f"line {number} says that it is unfinished")
    return found


def run_contracts(config: Path) -> subprocess.CompletedProcess[str]:
    """Exit status and report of import-linter, run where the configuration lies."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=config.parent,
        env={**os.environ, "COLUMNS": "200"},  # names of contracts on one line
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_every_file_is_tidy() -> None:
    found = []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if path.stat().st_size > FILE_BYTES_MAX:
            found.append(f"{name}: it is larger than {FILE_BYTES_MAX} bytes")
        elif path.suffix in TEXT and name not in GENERATED:
            found += [f"{name}: {fault}" for fault in faults(name, path.read_text(encoding="utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_the_tidy_test_sees_the_code() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in files()}
    assert {"native/topk.cpp", "native/reference.py", "bench/rows.py", "tests/test_layout.py"} <= names


GOOD = '"""Row: numbers in, one line out."""\n'


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("streams/a.py", "x = 1\n", "its first line does not state its idea"),
        ("streams/a.py", '"""Row."""\n', "its first line does not state its idea"),
        ("native/a.cpp", "#include <vector>\n", "its first line does not state its idea"),
        ("agents/a.py", f'"""Row: {"long " * 30}"""\n', "its first line is longer than 120 characters"),
        ("models/utils.py", GOOD, "its name says nothing about what is in it"),
        ("tests/feed_helpers.py", GOOD, "its name says nothing about what is in it"),
        ("schemas/a.py", GOOD + "x = 1\n" * 400, "it has 401 lines, more than 400"),
        ("bench/a.py", GOOD + "try:\n    f()\nexcept:\n    pass\n", "line 4 swallows an error"),
        ("bench/a.py", GOOD + "try:\n    f()\nexcept Exception:\n    ...\n", "line 4 swallows an error"),
        ("bench/a.py", GOOD + "\tx = 1\n".replace("\t", "if 1:\n\t"), "line 3 has a tab"),
        ("docs/a.md", "word \n", "line 1 has trailing blanks"),
        ("docs/a.md", "TO" + "DO: write this\n", "line 1 says that it is unfinished"),
    ],
)
def test_each_rule_finds_a_text_that_breaks_it_and_only_that(name: str, text: str, fault: str) -> None:
    assert faults(name, text) == [fault]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("streams/a.py", GOOD + "try:\n    f()\nexcept KeyError:\n    pass\n"),
        ("native/a.cpp", "// Row: numbers in, one line out.\n"),
        ("schemas/a.py", GOOD + "x = 1\n" * 399),
    ],
)
def test_tidy_text_has_no_fault(name: str, text: str) -> None:
    assert faults(name, text) == []


def test_imports_go_one_way() -> None:
    result = run_contracts(ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        (None, None, None),
        ("agents", "import bad_models", "Direction"),
        ("schemas", "import bad_native", "Direction"),
        ("models", "import bad_streams", "Direction"),
        ("agents", "import faust", "Kafka"),
        ("native", "import torch", "Torch: unknown"),
        ("streams", "import torch", "Torch: hosted"),
        ("agents", "import time", "Purity"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(
    tmp_path: Path, module: str | None, line: str | None, contract: str | None
) -> None:
    # The real contracts on five empty packages of other names, so that the installed ones are not found instead.
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.importlinter]")
    renamed = re.sub(r"\b(schemas|native|models|agents|streams)\b", r"bad_\1", "".join(contracts[1:]))
    (tmp_path / "pyproject.toml").write_text(renamed, encoding="utf-8")
    for package in ("schemas", "native", "models", "agents", "streams"):
        folder = tmp_path / f"bad_{package}"
        folder.mkdir()
        (folder / "__init__.py").write_text(f"{line}\n" if package == module else "", encoding="utf-8")
    result = run_contracts(tmp_path / "pyproject.toml")
    broken = re.findall(r"^(.+) BROKEN$", result.stdout, re.MULTILINE)
    if contract is None:
        assert result.returncode == 0, result.stdout + result.stderr
    else:
        assert result.returncode == 1
        assert len(broken) == 1, result.stdout
        assert broken[0].startswith(contract)
