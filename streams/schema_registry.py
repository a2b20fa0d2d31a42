"""Schema registry: the topic table -> subjects of a Confluent-compatible registry, each with its shape and its level.

A subject is `<topic>-<record type>` (Confluent's TopicRecordNameStrategy): the cluster's topic and a record's `ce_type`
without its version, which is also the shape's title, where Confluent's clients look. Shapes are rendered as draft-07,
the newest that every such registry reads (Apicurio 3 answers 500 to 2020-12), and closed, as our writers are: only
between closed shapes do their checkers call a new optional field compatible and a removed one not; left open it is the
other way round. A closed shape says what may be written; our readers leave out what they do not know.

What a registry holds already is looked up first, so registering again changes nothing. A shape that is refused does
not hold up the others. API: docs.confluent.io, "Schema Registry API Reference".
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from schemas.envelope import TYPE_PREFIX
from schemas.facts import Event
from schemas.render import json_schema
from schemas.topics import KEEP_FOR_EVER, TOPICS, Topic
from streams.registry_access import NAME, Access, access
from streams.settings import Settings, SettingsRefused
from streams.show import Screen

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
KEPT_LEVEL = "BACKWARD_TRANSITIVE"  # the newest shape reads what was written under any older one (schemas/compat.py)
PASSING_LEVEL = "NONE"
"""For topics that keep records for days only: what must be read for ever is not there, so a new VERSION may break."""
MEDIA = "application/vnd.schemaregistry.v1+json"
ANSWER_BYTES_MAX = 4 << 20  # our largest shape has 12 kB; an answer repeats it, escaped
UNANSWERED_MAX = 3  # in a row; then the registry is gone, and waiting for each of fifty subjects would take an hour
CONNECT_S_MAX, READ_S_MAX = 10.0, 30.0
NO_SUBJECT = 40401  # Confluent's code in an answer 404; a 404 without any code comes from something else
EX_TEMPFAIL, EX_CONFIG = 75, 78


class Subject(NamedTuple):
    """One shape in one topic: its name in the registry, the level that is promised for it, its JSON Schema."""

    name: str
    level: str
    shape: str


class Outcome(NamedTuple):
    """What became of one subject. `fault` is a sentence with its mend; `later` says that trying again may be enough."""

    subject: Subject
    state: str
    version: int | None = None
    id: int | None = None
    fault: str = ""
    later: bool = False


class Unusable(Exception):
    """A call did not do what it is for: `later` where trying again may help, `everywhere` where no subject could."""

    def __init__(self, said: str, *, later: bool = False, everywhere: bool = False) -> None:
        super().__init__(said)
        self.later, self.everywhere = later, everywhere


class Unanswered(Unusable):
    """Nobody answered in time."""


def subjects(settings: Settings) -> list[Subject]:
    """Render the whole table, in its order; an event that goes to several topics is a subject in each."""
    return [
        Subject(f"{settings.physical(topic.name)}-{record_type(kind)}", level(topic), shape(kind))
        for topic in TOPICS
        for kind in topic.events
    ]


def record_type(kind: type[Event]) -> str:
    """Name a kind as its records' `ce_type` does, without the version: versions of a shape are the registry's own."""
    return f"{TYPE_PREFIX}{kind.__name__}"


def level(topic: Topic) -> str:
    """Say which compatibility a topic's subjects have."""
    return KEPT_LEVEL if topic.keep_ms == KEEP_FOR_EVER else PASSING_LEVEL


def shape(kind: type[Event]) -> str:
    """Render a kind as closed JSON Schema draft-07 in one line, the same bytes each time."""
    found: dict[str, Any] = _draft_7(json.loads(json_schema(kind)))
    found |= {"$schema": DRAFT_7, "title": record_type(kind)}
    del found["$id"]  # it names our VERSION; references inside would be resolved against it
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _draft_7(node: Any) -> Any:
    if isinstance(node, list):
        return [_draft_7(item) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):  # what is inside are names, not keywords
            out[key.replace("$defs", "definitions")] = {name: _draft_7(inner) for name, inner in value.items()}
        else:
            out[key] = value.replace("#/$defs/", "#/definitions/") if key == "$ref" else _draft_7(value)
    return out


@contextmanager
def connected(to: Access) -> Iterator["Registry"]:
    """Open a connection; nothing is sent before the first call."""
    with httpx.Client(
        headers={"Accept": MEDIA, "Content-Type": MEDIA, "User-Agent": "xinfluencer", **to.headers},
        timeout=httpx.Timeout(READ_S_MAX, connect=CONNECT_S_MAX),
        verify=to.tls,
        follow_redirects=False,  # a password is not carried to wherever an answer points
        trust_env=not to.here,
    ) as client:
        yield Registry(client, to)


class Registry:
    """A connection to one registry; every method is one or more calls about one subject, and raises Unusable."""

    def __init__(self, client: httpx.Client, to: Access) -> None:
        self._client, self._to = client, to

    def register(self, subject: Subject) -> Outcome:
        """Set the level where it is another, then register the shape where it is not there yet."""
        found = self._look_up(subject)
        before = self._level(subject)
        if before != subject.level:
            self._call("PUT", subject, f"config/{_quoted(subject)}", {"compatibility": subject.level})
        note = f", level was {before}" if before not in (None, subject.level) else ""
        if isinstance(found, Outcome):
            return found._replace(state=f"there{note}")
        self._call("POST", subject, f"subjects/{_quoted(subject)}/versions", _body(subject))
        found = self._look_up(subject)
        if not isinstance(found, Outcome):
            raise Unusable(
                f"{subject.name}: was registered and is not found: run `xinfluencer schemas` again", later=True
            )
        return found._replace(state=f"registered{note}")

    def check(self, subject: Subject) -> Outcome:
        """Ask whether the shape could be registered, and change nothing."""
        found = self._look_up(subject)
        if isinstance(found, Outcome):
            return found
        if found == NO_SUBJECT:
            return Outcome(subject, "new")
        if subject.level == PASSING_LEVEL:
            return Outcome(subject, "changed")
        path = f"compatibility/subjects/{_quoted(subject)}/versions?verbose=true"
        code, answer = self._call("POST", subject, path, _body(subject), missing=True)
        if code == 404:  # it has a level and no shape
            return Outcome(subject, "new")
        judged = self._level(subject) or self._level(None)
        under = f" under {judged}, to be {subject.level}" if judged != subject.level else ""
        if _field(self._to, answer, "is_compatible", bool):
            return Outcome(subject, f"compatible{under}")
        reasons = self._to.clean(str(answer.get("messages") or "the registry does not say why"))
        return Outcome(subject, f"incompatible{under}", fault=_incompatible(subject, reasons))

    def _look_up(self, subject: Subject) -> Outcome | int:
        """Find this very shape; the registry's code where it is not there."""
        code, answer = self._call("POST", subject, f"subjects/{_quoted(subject)}", _body(subject), missing=True)
        if code == 404:
            return int(answer["error_code"])
        version, number = (_field(self._to, answer, name, int) for name in ("version", "id"))
        return Outcome(subject, "there", version, number)

    def _level(self, subject: Subject | None) -> str | None:
        """Read a subject's own level, or the registry's; None where a subject has none of its own."""
        path = f"config/{_quoted(subject)}" if subject else "config"
        code, answer = self._call("GET", subject, path, missing=subject is not None)
        return None if code == 404 else _field(self._to, answer, "compatibilityLevel", str)

    def _call(
        self, method: str, subject: Subject | None, path: str, body: Any = None, *, missing: bool = False
    ) -> tuple[int, dict[str, Any]]:
        name = subject.name if subject else "the registry's own level"
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        data = b""
        try:
            with self._client.stream(method, f"{self._to.url}/{path}", content=content) as response:
                code = response.status_code
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > ANSWER_BYTES_MAX:
                        raise _no_registry(self._to, f"its answer has more than {ANSWER_BYTES_MAX} bytes")
        except httpx.RequestError as error:
            raise _unanswered(self._to, name, error) from None  # httpx's error holds the request, with its headers
        answer = _object(data)
        if code == 200 and answer is None:
            raise _no_registry(self._to, "its answer is no JSON object")
        if code == 200 or (code == 404 and missing and isinstance((answer or {}).get("error_code"), int)):
            return code, answer or {}
        raise _refused(self._to, name, subject, code, self._to.clean(str((answer or {}).get("message", ""))))


def _quoted(subject: Subject) -> str:
    return quote(subject.name, safe="")


def _body(subject: Subject) -> dict[str, str]:
    return {"schemaType": "JSON", "schema": subject.shape}


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _field(to: Access, answer: Mapping[str, Any], name: str, kind: type) -> Any:
    value = answer.get(name)
    if type(value) is not kind:
        raise _no_registry(to, f"its answer has no {name!r}")
    return value


def _no_registry(to: Access, why: str) -> Unusable:
    return Unusable(
        f"what answers at {to.url} is no schema registry ({why}): correct {NAME}, path and all "
        "(Apicurio's is /apis/ccompat/v7)",
        everywhere=True,
    )


def _unanswered(to: Access, name: str, error: Exception) -> Unusable:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Unusable(f"the certificate of {to.url} is not trusted: set {NAME}_CA to its CA's file", everywhere=True)
    return Unanswered(
        f"{name}: no answer from {to.url} ({type(error).__name__}): look whether it runs, then run "
        "`xinfluencer schemas` again",
        later=True,
    )


def _incompatible(subject: Subject, said: str) -> str:
    return (
        f"{subject.name}: records of an older shape would not be read ({said}): put back what was taken away or "
        "narrowed, give new fields a default, or make it a new event"
    )


def _refused(to: Access, name: str, subject: Subject | None, code: int, said: str) -> Unusable:
    words = f"{code}{f', {said}' if said else ''}"
    if code == 401:
        mend = f"set {NAME}_TOKEN, or {NAME}_USER and {NAME}_PASSWORD (each secret also as _FILE)"
        return Unusable(f"{name}: the registry does not take who asks ({words}): {mend}", everywhere=True)
    if code == 403:
        return Unusable(f"{name}: not allowed ({words}): give this user the right to read and write the subject")
    if code == 409 and subject:
        return Unusable(_incompatible(subject, words))
    if code == 422:
        mend = "if it names the shape, the registry must take JSON Schema draft-07; otherwise its mode or its rules"
        return Unusable(f"{name}: the registry cannot use it ({words}): {mend}")
    if code in (408, 425, 429) or code >= 500:
        mend = "look at the registry's log, then run `xinfluencer schemas` again"
        return Unusable(f"{name}: the registry failed ({words}): {mend}", later=True)
    return _no_registry(to, f"{name}: it answers {words}")


def register_all(registry: Registry, wanted: list[Subject], *, check: bool = False) -> Iterator[Outcome]:
    """Register, or only check, one subject after another; a refusal is told and does not stop the others.

    What no subject could pass, such as a wrong password, ends it: the rest is told as not asked.
    """
    unanswered, gone = 0, ""
    for subject in wanted:
        if gone:
            yield Outcome(subject, "not asked")
            continue
        try:
            yield registry.check(subject) if check else registry.register(subject)
            unanswered = 0
        except Unusable as error:
            unanswered = unanswered + 1 if isinstance(error, Unanswered) else 0
            if error.everywhere or unanswered == UNANSWERED_MAX:
                gone = str(error)
            yield Outcome(subject, "failed" if error.later else "refused", fault=str(error), later=error.later)


def run_schemas(settings: Settings, check: bool = False, env: Mapping[str, str] | None = None) -> int:
    """Register or check every shape and print what became of it.

    Gives the exit code: 0, EX_TEMPFAIL where trying again may be enough, EX_CONFIG where a person must act.
    SettingsRefused where no registry is set, or its address or credentials cannot be used.
    """
    to = access(settings, env)
    if to is None:
        raise SettingsRefused(f"{NAME} is empty: set it to a registry's address to register shapes there")
    with connected(to) as registry:
        outcomes = list(register_all(registry, subjects(settings), check=check))
    rows = [(*one.subject[:2], _or_dash(one.version), _or_dash(one.id), one.state) for one in outcomes]
    Screen().table(("subject", "compatibility", "version", "id", "state"), rows)
    faults = [one for one in outcomes if one.fault]
    for one in faults:
        print(f"xinfluencer: {one.fault}.", file=sys.stderr)
    if not faults:
        return 0
    return EX_TEMPFAIL if all(one.later for one in faults) else EX_CONFIG


def register_if_set(settings: Settings, say: Callable[[str], None], env: Mapping[str, str] | None = None) -> None:
    """Register at a start, where a registry is set: a line for each fault and one in sum; nothing waits for it to hold.

    SettingsRefused where the registry's address or credentials cannot be used.
    """
    to = access(settings, env)
    if to is None:
        return
    with connected(to) as registry:
        outcomes = list(register_all(registry, subjects(settings)))
    held = sum(one.version is not None for one in outcomes)
    for one in outcomes:
        if one.fault:
            say(one.fault)
    say(f"the schema registry holds {held} of {len(outcomes)} shapes")


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)
