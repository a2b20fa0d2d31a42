"""Render: a kind of event -> its JSON Schema, the same bytes each time, as it lies in schemas/golden/.

The golden files are what others may rely on, so a test holds them against the models: a shape that others may hold
data in changes only together with its VERSION. What a docstring says is no part of a shape and is left out.
`python -m schemas.render` writes the files of the present versions; those of older versions stay.
"""

import json
from pathlib import Path
from typing import Any

from schemas.compat import breaks
from schemas.envelope import TYPE_PREFIX
from schemas.facts import Event
from schemas.topics import KINDS

GOLDEN = Path(__file__).parent / "golden"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
WORDS = ("title", "description")


def json_schema(kind: type[Event]) -> str:
    """Render one kind's JSON Schema (draft 2020-12): keys sorted, two spaces, a newline at the end."""
    shape = _shape(kind.model_json_schema())
    named = {"$schema": DIALECT, "$id": f"{TYPE_PREFIX}{kind.__name__}.v{kind.VERSION}", **shape}
    return json.dumps(named, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def path_of(kind: type[Event], version: int | None = None) -> Path:
    """Name the golden file of a kind, at its present version unless told."""
    return GOLDEN / f"{kind.__name__}.v{kind.VERSION if version is None else version}.json"


class ShapeBroken(Exception):
    """Records written under a shape of this version would be refused, or lose something, under the new one."""


def write() -> list[Path]:
    """Write the golden files of the present versions; gives those that changed. ShapeBroken where one may not."""
    GOLDEN.mkdir(exist_ok=True)
    changed = []
    for kind in KINDS.values():
        path, text = path_of(kind), json_schema(kind)
        if path.exists() and (broken := breaks(json.loads(path.read_text("utf-8")), json.loads(text))):
            raise ShapeBroken(f"{kind.__name__} v{kind.VERSION}: {'; '.join(broken)}: raise its VERSION first")
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            changed.append(path)
    return changed


def _shape(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out titles and descriptions of a schema node and of those inside it; fields of that name stay."""
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in WORDS:
            continue
        if key in ("properties", "$defs"):
            kept[key] = {name: _shape(node) for name, node in value.items()}
        elif isinstance(value, dict):
            kept[key] = _shape(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            kept[key] = [_shape(node) for node in value]
        else:
            kept[key] = value
    return kept


if __name__ == "__main__":
    for written in write():
        print(written)
