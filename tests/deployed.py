"""Deployed: what docker-compose.yml, the Dockerfile and the workflow say, as values that tests can ask."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
OURS = "xinfluencer:"
_PLACE = re.compile(r"\$\{(\w+)(?:(:?[-?])([^}]*))?\}")


class Missing(Exception):
    """A variable that Compose must have is not set; the message is what Compose would say."""


class Line(NamedTuple):
    """One instruction of a Dockerfile, its continuation lines joined."""

    instruction: str
    words: str


def read_yaml(name: str) -> dict[Any, Any]:
    """Read a YAML file of the project, merge keys resolved, variables as they stand."""
    found: dict[Any, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return found


def filled(text: str, env: Mapping[str, str]) -> str:
    """Put values for `${NAME}`, `${NAME:-default}` and `${NAME:?message}` as Compose does; Missing if one is needed."""

    def value(place: re.Match[str]) -> str:
        name, how, rest = place.groups()
        given = env.get(name, "")
        if given or not how:
            return given
        if how.endswith("?"):
            raise Missing(f"{name}: {rest}")
        return str(rest)

    return _PLACE.sub(value, text)


def words(command: str | list[str]) -> list[str]:
    """Split a command as Compose does, variables at their defaults."""
    return [filled(word, {}) for word in command] if isinstance(command, list) else shlex.split(filled(command, {}))


def kafka_properties(service: Mapping[str, Any]) -> dict[str, str]:
    """Translate a service's environment as the apache/kafka image does (its docker/examples/README.md)."""
    found = {}
    for name, value in service["environment"].items():
        if name.startswith("KAFKA_") and not name.endswith("_OPTS"):
            dotted = name.removeprefix("KAFKA_").lower().replace("_", ".")
            found[dotted.replace("...", "-").replace("..", "_")] = str(value)
    return found


def dockerfile(text: str) -> list[Line]:
    """Read a Dockerfile: comments and empty lines left out, continued lines joined."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    found = []
    for line in joined.splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction:
            found.append(Line(instruction.upper(), " ".join(rest.split())))
    return found
