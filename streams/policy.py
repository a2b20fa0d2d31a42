"""Policy: a source -> what may be done with it; read from one file that an operator can read too.

A verdict is given once, at ingest, and travels with the event (schemas.events.Rights). What is not said is forbidden:
a source without a table may be used for nothing. A file that says anything unclear is refused as a whole.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.facts import Rights

DEFAULT = Path(__file__).with_name("policy.toml")
FILE_BYTES_MAX = 1 << 20
NAME_CHARS_MAX = 64
PURPOSES = ("index", "train", "show")
UNKNOWN = Rights(index=False, train=False, show=False, policy="unknown-source")
RESERVED = ("simulator", "server", UNKNOWN.policy)
"""Names that later stages read a meaning from: pairs under "simulator" count as simulated."""


class PolicyRefused(ValueError):
    """A policy file cannot be used; one sentence names the file, the table and the key."""


@dataclass(frozen=True)
class Policy:
    """The verdict of each source that is named."""

    verdicts: Mapping[str, Rights]

    def rights(self, source: str) -> Rights:
        """Give the verdict on a source; one that is not named may be used for nothing."""
        return self.verdicts.get(source, UNKNOWN)

    @classmethod
    def load(cls, path: Path | None = None) -> "Policy":
        """Read a file, or the default that comes with the program; PolicyRefused if anything in it is unclear."""
        file = DEFAULT if path is None else path
        try:
            with open(file, "rb") as reader:
                data = reader.read(FILE_BYTES_MAX + 1)
            if len(data) > FILE_BYTES_MAX:
                raise PolicyRefused(f"{file}: the file is larger than {FILE_BYTES_MAX} bytes")
            tables = tomllib.loads(data.decode())
        except OSError as error:
            raise PolicyRefused(f"{file}: the file cannot be read ({error.strerror or error})") from None
        except UnicodeDecodeError:
            raise PolicyRefused(f"{file}: the file is not UTF-8") from None
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise PolicyRefused(f"{file}: the file is not TOML ({error})") from None
        return cls({source: _verdict(f"{file}, [{source}]", source, table) for source, table in tables.items()})


def _verdict(place: str, source: str, table: Any) -> Rights:
    if not isinstance(table, dict):
        raise PolicyRefused(f"{place}: must be a table, with {', '.join(PURPOSES)} and policy")
    for key in table:
        if key not in (*PURPOSES, "policy"):
            raise PolicyRefused(f"{place}, {key}: is no key of a source; there are {', '.join(PURPOSES)} and policy")
    for key in PURPOSES:
        if not isinstance(table.get(key), bool):
            raise PolicyRefused(f"{place}, {key}: must be true or false")
    name = table.get("policy")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable() or " " in name:
        raise PolicyRefused(f"{place}, policy: must be a name of 1 to {NAME_CHARS_MAX} characters without spaces")
    if (name in RESERVED or source in RESERVED) and name != source:
        raise PolicyRefused(f"{place}, policy: {', '.join(RESERVED)} each belong to the source of that name")
    return Rights(index=table["index"], train=table["train"], show=table["show"], policy=name)
