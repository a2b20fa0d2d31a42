"""Bench: a name in, a table out. `python -m bench` lists the names, `python -m bench NAME [--json FILE]` measures."""

import argparse
import ast
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.rows import Row

FOLDER = Path(__file__).parent
ALONE = ("memory", "soak")  # they hold a limit and measure no ratio; their options are their own


def benchmarks() -> dict[str, str]:
    """Name and first docstring line of every module here that defines `run`; read, not imported, so it is quick."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text; a ratio above 1 is better for us."""
    head = ("what", "ours", "peer", "unit", "ratio", "n", "against")
    body = [(r.what, f"{r.ours:.4g}", f"{r.peer:.4g}", r.unit, f"{r.ratio:.2f}", str(r.n), r.peer_name) for r in rows]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in (head, *body)
    )


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 2 for a name that does not exist."""
    if arguments[:1] and arguments[0] in ALONE:
        status: int = importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:])
        return status
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure ours against a peer.")
    parser.add_argument("name", nargs="?", help="which benchmark; without it, list them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    options = parser.parse_args(arguments)
    names = benchmarks()
    if options.name is None:
        for name, idea in names.items():
            print(f"{name:<12} {idea}")
        return 0
    if options.name not in names:
        print(f"no benchmark named {options.name!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    rows: list[Row] = importlib.import_module(f"bench.{options.name}").run()
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
