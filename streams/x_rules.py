"""X's rules: a readable file -> the rules of the filtered stream; only what this program added is ever taken away.

The file is TOML: one table, `rules`, with a name and a query a line. On X a rule of ours is tagged `xinfluencer:NAME`;
rules without that prefix are somebody else's. Everything new is tried with X's dry run before anything is changed.
See "Filtered stream" and "Building a rule" (docs.x.com).
"""

import asyncio
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from streams.live import RateLimited
from streams.settings import Settings
from streams.show import Screen
from streams.x_api import authorized, checked_url, client, refusal

PREFIX = "xinfluencer:"
TAG_CHARS_MAX = 120
VALUE_CHARS_MAX = 2_048  # of the largest plan; X itself refuses what is too long for a smaller one
RULES_MAX = 1_000  # of one stream, and of one page of X's list
FILE_BYTES_MAX = 4 << 20
ANSWER_S_MAX = 30.0


class RulesRefused(ValueError):
    """The rules cannot be set; the message names the rule, and nothing was changed unless it says so."""


@dataclass(frozen=True)
class Rule:
    """One rule as X has it; `tag` is empty where it has none."""

    id: str
    value: str
    tag: str

    @property
    def ours(self) -> bool:
        """Say whether this program added it."""
        return self.tag.startswith(PREFIX)


@dataclass(frozen=True)
class Changed:
    """What was done, by name; `foreign` counts the rules that are not ours."""

    added: tuple[str, ...]
    deleted: tuple[str, ...]
    kept: tuple[str, ...]
    foreign: int


def load_rules(path: Path) -> dict[str, str]:
    """Read a file: name -> query. RulesRefused says what is unclear in it."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise RulesRefused(f"{path}: the file is larger than {FILE_BYTES_MAX} bytes")
        tables = tomllib.loads(data.decode())
    except OSError as error:
        raise RulesRefused(f"{path}: the file cannot be read ({error.strerror or error})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RulesRefused(f"{path}: the file is not TOML ({error})") from None
    rules = tables.get("rules")
    if not isinstance(rules, dict) or len(tables) > 1:
        raise RulesRefused(f'{path}: there must be one table, [rules], with lines such as cats = "cat has:images"')
    if len(rules) > RULES_MAX:
        raise RulesRefused(f"{path}: {len(rules)} rules; X takes at most {RULES_MAX}")
    names: dict[str, str] = {}
    for name, value in rules.items():
        if not name.isprintable() or not 0 < len(PREFIX + name) <= TAG_CHARS_MAX:
            raise RulesRefused(f"{path}, {name!r}: a name has 1 to {TAG_CHARS_MAX - len(PREFIX)} printable characters")
        if not isinstance(value, str) or not value.strip() or len(value) > VALUE_CHARS_MAX or not value.isprintable():
            raise RulesRefused(f"{path}, {name}: a query is one line of 1 to {VALUE_CHARS_MAX} characters")
        if value in names:
            raise RulesRefused(f"{path}, {name}: {names[value]} is the same query, and X takes each only once")
        names[value] = name
    return dict(rules)


class Rules:
    """The rules of one stream, asked and changed over HTTP."""

    def __init__(self, settings: Settings, env: Mapping[str, str] | None = None) -> None:
        self._url = f"{checked_url(settings.x_url)}/2/tweets/search/stream/rules"
        self._env = env

    async def all(self) -> list[Rule]:
        """List every rule, ours and others'. Raises SourceRefused, RateLimited or RulesRefused."""
        found: list[Rule] = []
        page: dict[str, str] = {}
        while True:
            answer = await self._ask("GET", {"max_results": str(RULES_MAX), **page})
            rows = answer.get("data") or []
            found += [Rule(str(one["id"]), str(one["value"]), str(one.get("tag") or "")) for one in rows]
            following = (answer.get("meta") or {}).get("next_token")
            if not following or len(found) > 10 * RULES_MAX:
                return found
            page = {"pagination_token": str(following)}

    async def set(self, wanted: Mapping[str, str]) -> Changed:
        """Make our rules these (name -> query), and leave all others. RulesRefused names a rule that X refuses."""
        there = await self.all()
        ours = [(rule.tag.removeprefix(PREFIX), rule) for rule in there if rule.ours]
        kept = {name for name, rule in ours if wanted.get(name) == rule.value}
        stale = [(name, rule) for name, rule in ours if wanted.get(name) != rule.value]
        new = {name: value for name, value in wanted.items() if name not in kept}
        foreign = {rule.value for rule in there if not rule.ours}
        for name, value in new.items():
            if value in foreign:
                raise RulesRefused(f"{name}: the stream has this query already, not from here; X takes each only once")
        held = {rule.value for _, rule in stale}  # X refuses a query it has: these go in when the old name is gone
        first = {name: value for name, value in new.items() if value not in held}
        await self._add(first, dry=True)
        await self._add(first)
        if stale:
            await self._ask("POST", {}, {"delete": {"ids": [rule.id for _, rule in stale]}})
        await self._add({name: value for name, value in new.items() if value in held})
        gone = sorted(name for name, _ in stale)
        return Changed(tuple(sorted(new)), tuple(gone), tuple(sorted(kept)), len(foreign))

    async def _add(self, rules: Mapping[str, str], dry: bool = False) -> None:
        if not rules:
            return
        body = {"add": [{"value": value, "tag": PREFIX + name} for name, value in rules.items()]}
        answer = await self._ask("POST", {"dry_run": "true"} if dry else {}, body)
        for error in answer.get("errors") or []:
            names = [name for name, value in rules.items() if value == error.get("value")]
            details = error.get("details") or [error.get("detail") or ""]
            raise RulesRefused(
                f"{names[0] if names else 'a rule'}: X refuses it ({error.get('title')}: {str(details[0])[:300]}); "
                + ("nothing was changed" if dry else "some rules were changed: set them again")
            )

    async def _ask(self, method: str, params: Mapping[str, str], body: Any = None) -> dict[str, Any]:
        content = msgspec.json.encode(body) if body is not None else None
        try:
            async with client(self._url, ANSWER_S_MAX) as http:
                headers = {**authorized(self._env), "Content-Type": "application/json"}
                response = await http.request(method, self._url, params=params, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise RulesRefused(f"X could not be asked: {type(error).__name__}") from None
        try:
            answer = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            answer = None
        problems = isinstance(answer, dict) and isinstance(answer.get("errors"), list)
        if response.status_code in (200, 201) or (response.status_code == 400 and problems):
            if isinstance(answer, dict):
                return answer
            raise RulesRefused("X's answer is no JSON object")
        refused = refusal(response.status_code, response.headers, response.content)
        if isinstance(refused, RateLimited):
            raise RulesRefused(f"{refused}: try again in {refused.wait_s:.0f} s")
        raise refused


def run_rules_list(settings: Settings) -> None:
    """Print every rule that X holds for this token, ours first."""
    found = asyncio.run(Rules(settings).all())
    rows = [(rule.tag.removeprefix(PREFIX) if rule.ours else rule.tag, rule.ours, rule.value) for rule in found]
    screen = Screen()
    screen.table(
        ("name", "whose", "query"),
        [
            (name, "ours" if ours else "not ours", value)
            for name, ours, value in sorted(rows, key=lambda row: not row[1])
        ],
    )


def run_rules_set(settings: Settings, file: Path) -> None:
    """Make our rules those of a file, and say what changed."""
    changed = asyncio.run(Rules(settings).set(load_rules(file)))
    screen = Screen()
    for how, names in (("added", changed.added), ("taken away", changed.deleted), ("kept", changed.kept)):
        screen.say(f"  {how}: {', '.join(names) or 'none'}")
    screen.say(f"  {changed.foreign} rules of others were left alone; a change takes effect within about 20 s")
