"""Letters: what ingest refused -> a dead letter, or none where nothing may be kept: it would keep a hash for ever.

A letter is about what did not fit, so permission is asked of whatever can still be read in it: an account that says no,
a status that is not for everyone, an author whose key is destroyed, a source that may not be stored. A no anywhere in
a refused object is a no to the letter. All are counted by reason.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import msgspec

from schemas.envelope import Refused
from schemas.events import RecordRefused
from schemas.facts import RefusedContent
from schemas.seal import Keys
from streams.fold import HEAD_BYTES_MAX, Sent
from streams.formats import source_of
from streams.mastodon_post import HOST, PUBLIC, forbids
from streams.policy import UNKNOWN, Policy
from streams.reading import RightsOf
from streams.records import outside
from streams.xv2_post import FAMILY, canonical

UNLETTERED = frozenset(("rights-index", "not-public", "owner-erased", "deleted"))
"""Refusals of what may not be kept: counted by reason, and no letter."""
AUTHORS = ("author_id", "did", "user_id", "user_id_str")
PEOPLE = ("account", "user")
"""Fields that name an author, and those that hold one."""
OWNERS_MAX = 1_000  # people asked after in one object: a page's; whoever names a million does not make it wait
SERVERS_MAX = 4
NUMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:%-]{0,255}")  # anything that an author could have been named by


class Letters:
    """What one intake says of what it refused, and how often."""

    def __init__(
        self, source: str | None, width: int, keys: Keys, policy: Policy, rights: Callable[[str, str | None], RightsOf]
    ) -> None:
        self.source, self.width, self.keys, self.policy, self.rights = source, width, keys, policy, rights
        self.refused: Counter[str] = Counter()

    def about(
        self, fault: Refused, place: str, time_ms: int, data: bytes, raw: Any = None, value: Any = None
    ) -> Iterator[Sent]:
        """Give the letter about some bytes, if there may be one; `raw` is what they mean, `value` what it lay in."""
        head, sha256 = data[:HEAD_BYTES_MAX], hashlib.sha256(data).hexdigest()
        return self.of(fault, place, time_ms, len(data), sha256, head, raw, value)

    def of(
        self, fault: Refused, place: str, time_ms: int, size: int, sha256: str, head: bytes,
        raw: Any = None, value: Any = None,
    ) -> Iterator[Sent]:  # fmt: skip
        """Give the letter about what is known by its hash and its first bytes alone, if there may be one."""
        forbidden = fault.reason if fault.reason in UNLETTERED else self._forbidden(raw, value)
        self.refused[forbidden or fault.reason] += 1
        if forbidden:
            return
        source = self.source or source_of(value) or UNKNOWN.policy
        owner = f"refused:{source}"
        keep = bool(head) and self.keys.make(owner) is not None  # an operator may have erased all heads of a source
        letter = RecordRefused(
            owner=owner,
            reason=fault.reason,
            detail=fault.detail,
            stage="ingest",
            place=place[-512:],
            size=size,
            sha256=sha256,
            content=RefusedContent(head=base64.b64encode(head).decode()) if keep else None,
        )
        yield outside(letter, f"/sources/{source}", time_ms, self.width, self.keys)

    def _forbidden(self, raw: Any, value: Any) -> str | None:
        """Say why nothing may be kept of a refused object, or of bytes that nobody could read (`raw` None)."""
        if (said := said_no(raw)) is not None:
            return said
        native = source_of(value)
        source = self.source or native
        if source is None:
            return None  # nobody's, as far as anyone can tell: no table says what may be done with it
        if not self.policy.verdict(source).index:
            return "rights-index"
        for one in dict.fromkeys((source, native or source)):
            rights = self.rights(one, native if one == source != native else None)
            prefixes = [f"{FAMILY.get(one, one)}:@{server}" for server in _servers(raw, value, native)]
            owners = [*islice(owners_in(raw, prefixes), OWNERS_MAX)]
            if not all(rights(owner).index for owner in owners):
                return "rights-index"
            make_all = getattr(self.keys, "make_all", None)
            if make_all is not None:  # there is no other way to ask whether a key was destroyed or never made
                make_all(owners)
            if any(self.keys.make(owner) is None for owner in owners):
                return "owner-erased"
        return None


def said_no(raw: Any) -> str | None:
    """Say whether anything in an object says that it is not to be kept, and why."""
    for _, one in _objects(raw):
        if {"account", "content"} <= one.keys() and str(one.get("visibility")) not in PUBLIC:
            return "not-public"
        if forbids(one):
            return "rights-index"
    return None


def owners_in(raw: Any, prefixes: Sequence[str]) -> Iterator[str]:
    """Name everybody whose words an object may hold, in each of the ways that names may begin."""
    for key, one in _objects(raw):
        found = [one.get(name) for name in (*AUTHORS, *(("id", "id_str") if key in PEOPLE else ()))]
        for number in dict.fromkeys(str(one) for one in found if isinstance(one, str | int)):
            if NUMBER.fullmatch(number):
                yield from (prefix + number for prefix in prefixes)


def _servers(raw: Any, value: Any, native: str | None) -> Iterator[str]:
    """Give what stands between "@" and a number: a server of Mastodon's; nothing where a number alone is a name."""
    found = [value.get("host")] if isinstance(value, dict) else []
    for _, one in islice(_objects(raw), OWNERS_MAX):
        for url in (one.get("uri"), one.get("url")):
            with suppress(ValueError):
                found.append(urlsplit(url).netloc.rpartition("@")[2].lower() if isinstance(url, str) else None)
    hosts = dict.fromkeys(host for host in found if isinstance(host, str) and HOST.fullmatch(host))
    yield from (f"{host}:" for host in islice(hosts, SERVERS_MAX))
    if native != "mastodon":
        yield ""


def _objects(raw: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every object in a value with the name of the field that it stands in, texts that hold JSON opened too."""
    waiting: list[tuple[str, Any]] = [("", raw)]
    while waiting:
        key, one = waiting.pop()
        if isinstance(one, str) and one.startswith(("{", "[")):
            try:
                one = msgspec.json.decode(one)
            except (ValueError, RecursionError):
                continue
        if isinstance(one, dict):
            yield key, one
            waiting.extend(one.items())
        elif isinstance(one, list):
            waiting.extend((key, each) for each in one)


def bytes_of(raw: Any) -> bytes:
    """Write what was refused as well as it can be written; it was parsed, so its own bytes are no more."""
    try:
        return canonical(raw)
    except Refused:
        try:
            return json.dumps(raw, default=lambda one: None).encode()
        except (RecursionError, TypeError, ValueError):
            return b""
