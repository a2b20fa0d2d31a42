"""Policy: a source, and what the author declared -> what may be done; read from one file that an operator can read too.

A verdict is given once, at ingest, and travels with the event (schemas.facts.Rights). What is not said is forbidden: a
source without a table may be used for nothing. An author's no always wins; their yes counts only where the policy asks
for it (train = "declared"). A file that says anything unclear is refused as a whole.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from schemas.facts import Rights
from streams.intents import NOTHING, Declared

DEFAULT = Path(__file__).with_name("policy.toml")
FILE_BYTES_MAX = 1 << 20
NAME_CHARS_MAX = 64
PURPOSES = ("index", "train", "show")
DECLARED = "declared"
RESERVED = ("simulator", "server", "unknown-source")
"""Names that later stages read a meaning from: pairs under "simulator" count as simulated."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A source's table."""

    policy: str
    index: bool
    train: bool | Literal["declared"]
    show: bool


UNKNOWN = Verdict("unknown-source", index=False, train=False, show=False)


class PolicyRefused(ValueError):
    """A policy file cannot be used; one sentence names the file, the table and the key."""


@dataclass(frozen=True)
class Policy:
    """The verdict of each source that is named, and the file that names them."""

    verdicts: Mapping[str, Verdict]
    file: Path = DEFAULT

    def verdict(self, source: str) -> Verdict:
        """Give a source's table; one that is not named may be used for nothing."""
        return self.verdicts.get(source, UNKNOWN)

    def rights(self, source: str, declared: Declared = NOTHING) -> Rights:
        """Join a source's table with what the author declared; the policy's name says so where that counted."""
        return _join(self.verdict(source), declared)

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
        verdicts = {source: _verdict(f"{file}, [{source}]", source, table) for source, table in tables.items()}
        return cls(verdicts, Path(file))


@lru_cache(maxsize=1024)  # few tables, few declarations, and one question a post
def _join(table: Verdict, declared: Declared) -> Rights:
    name, train = table.policy, table.train
    if declared.index is False and table.index:
        # Not stored at all, so there is nothing to show or to train on either.
        return Rights(index=False, train=False, show=False, policy=f"{name}+declared-no-index")
    granted = train is True or (train == DECLARED and declared.train is True)
    if declared.train is False:
        granted, name = False, f"{name}+declared-no"
    elif train == DECLARED and granted:
        name = f"{name}+declared-yes"
    return Rights(index=table.index, train=table.index and granted, show=table.index and table.show, policy=name)


def _verdict(place: str, source: str, table: Any) -> Verdict:
    if not isinstance(table, dict):
        raise PolicyRefused(f"{place}: must be a table, with {', '.join(PURPOSES)} and policy")
    for key in table:
        if key not in (*PURPOSES, "policy"):
            raise PolicyRefused(f"{place}, {key}: is no key of a source; there are {', '.join(PURPOSES)} and policy")
    for key in PURPOSES:
        said = table.get(key)
        if not isinstance(said, bool) and not (key == "train" and said == DECLARED):
            choice = f'true, false or "{DECLARED}"' if key == "train" else "true or false"
            raise PolicyRefused(f"{place}, {key}: must be {choice}")
    name = table.get("policy")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable() or " " in name:
        raise PolicyRefused(f"{place}, policy: must be a name of 1 to {NAME_CHARS_MAX} characters without spaces")
    if "+" in name:
        raise PolicyRefused(f"{place}, policy: may hold no +, which goes before what authors declared")
    if (name in RESERVED or source in RESERVED) and name != source:
        raise PolicyRefused(f"{place}, policy: {', '.join(RESERVED)} each belong to the source of that name")
    return Verdict(name, index=table["index"], train=table["train"], show=table["show"])
