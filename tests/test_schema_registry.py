"""Schema registry: every shape is registered once, a break is refused, and no secret or silence goes unnoticed.

Fast tests talk to a server of ours (tests/registry_server.py). At the end a real registry, where it can be had, is
asked the same things, and says whether that server and schemas/compat.py judge as it does.
"""

import base64
import copy
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import envelope
from schemas.compat import breaks
from schemas.facts import Event
from schemas.render import json_schema
from schemas.topics import KEEP_FOR_EVER, KINDS, TOPICS
from streams import registry_access, schema_registry
from streams.registry_access import access
from streams.schema_registry import connected, register_if_set, run_schemas, shape, subjects
from streams.settings import Settings, SettingsRefused
from tests import real_registry, strategies
from tests.registry_server import CUT, RegistryServer
from tests.secure_broker import write_certificates
from tests.test_cli import run as command_line
from tests.test_compat import CHANGES

NAME = registry_access.NAME
SECRET = "s3cret-of-the-registry"
HTML = (404, b"<html>nothing here</html>", {"content-type": "text/html"})
PAIR = "preferences-xinfluencer.PairFormed"


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture(scope="module")
def real(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with real_registry.running(cache / "registry", tmp_path_factory.mktemp("real")) as url:
            yield url
    except real_registry.NotToBeHad as error:
        pytest.skip(str(error))


def at(url: str, **more: Any) -> Settings:
    return Settings(schema_registry=url, **more)


def refuse(code: int, message: str = "", of: str = "") -> Callable[[str, str], Any]:
    """Answer so to every call, or to those whose path holds `of`."""
    body = json.dumps({"error_code": code, "message": message}).encode()
    return lambda method, path: (code, body, {}) if of in path else None


# ---- what is registered ---------------------------------------------------------------------------------------------


def test_registering_twice_changes_nothing_and_a_check_never_does(server: RegistryServer) -> None:
    wanted = subjects(at(server.url))
    assert run_schemas(at(server.url), check=True, env={}) == 0
    assert (server.writes, server.shapes) == (0, {})
    assert run_schemas(at(server.url), env={}) == 0
    assert server.shapes == {one.name: [one.shape] for one in wanted}
    assert server.levels == {one.name: one.level for one in wanted}
    assert server.writes == 2 * len(wanted)
    server.calls.clear()
    assert run_schemas(at(server.url), env={}) == run_schemas(at(server.url), check=True, env={}) == 0
    assert not [path for method, path in server.calls if method == "PUT" or path.endswith("/versions")]


@pytest.mark.parametrize("namespace", ["", "blue"])
def test_a_reader_finds_a_records_subject_from_its_topic_and_its_type_header(namespace: str) -> None:
    found = {one.name: one for one in subjects(Settings(namespace=namespace))}
    assert len(found) == sum(len(topic.events) for topic in TOPICS)
    for topic in TOPICS:
        for kind in topic.events:
            said = envelope.TYPE_PREFIX + f"{kind.__name__}.v{kind.VERSION}"
            name = f"{namespace}{'.' if namespace else ''}{topic.name}-{said.rpartition('.v')[0]}"
            one = found[name]
            assert json.loads(one.shape)["title"] == said.rpartition(".v")[0]
            assert (one.level == "BACKWARD_TRANSITIVE") == (topic.keep_ms == KEEP_FOR_EVER)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_what_is_written_fits_the_shape_that_is_registered(data: st.DataObject) -> None:
    kind: type[Event] = data.draw(st.sampled_from(list(KINDS.values())))
    event = data.draw(strategies.model(kind))
    written = json.loads(event.model_dump_json(exclude_none=True))
    for rendered in (shape(kind), json_schema(kind)):
        judge = jsonschema.validators.validator_for(json.loads(rendered))(json.loads(rendered))
        judge.validate(written)
        assert not judge.is_valid({**written, "never_said": 1}), "the shape is open"


def test_a_shape_is_draft_07_and_the_same_bytes_each_time() -> None:
    words = set(jsonschema.Draft7Validator.META_SCHEMA["properties"])

    def keywords(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(keywords, node)) if node else set()
        if not isinstance(node, dict):
            return set()
        named = [*node.get("properties", {}).values(), *node.get("definitions", {}).values()]
        others = [value for key, value in node.items() if key not in ("properties", "definitions", "enum", "const")]
        return set(node) | set().union(*map(keywords, [*named, *others]), set())

    for kind in KINDS.values():
        loaded = json.loads(shape(kind))
        jsonschema.Draft7Validator.check_schema(loaded)
        assert keywords(loaded) <= words
        assert "$defs" not in shape(kind)
        assert shape(kind) == shape(kind)


def test_an_independent_client_finds_what_was_registered(server: RegistryServer) -> None:
    assert run_schemas(at(server.url), env={}) == 0
    _read_by_confluents_client(server.url)


def _read_by_confluents_client(url: str) -> None:
    confluent = pytest.importorskip("confluent_kafka.schema_registry", reason="needs authlib and cachetools")
    from confluent_kafka.serialization import MessageField, SerializationContext

    with confluent.SchemaRegistryClient({"url": url}) as client:
        names = set(client.get_subjects())
        for topic in TOPICS:
            for kind in topic.events:
                context = SerializationContext(topic.name, MessageField.VALUE)
                title = json.loads(shape(kind))["title"]
                name = confluent.topic_record_subject_name_strategy(context, title)
                assert name in names
                found = client.get_latest_version(name)
                assert (found.version, found.schema.schema_type) == (1, "JSON")
                assert json.loads(found.schema.schema_str) == json.loads(shape(kind))
                assert client.get_compatibility(name) == schema_registry.level(topic)
                assert client.lookup_schema(name, found.schema).schema_id == found.schema_id


# ---- what is refused ------------------------------------------------------------------------------------------------


def older(kind: str, change: Callable[[Any], Any]) -> str:
    """A shape that a registry may hold from before."""
    found = json.loads(shape(KINDS[kind]))
    change(found)
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def hold(server: RegistryServer, name: str, text: str) -> None:
    server.shapes[name] = [text]
    server.ids.append(text)


def test_a_break_is_refused_with_its_subject_and_its_mend_and_the_others_are_registered(
    server: RegistryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(server, PAIR, older("PairFormed", lambda s: s["properties"].update(gone={"type": "string"})))
    server.levels[PAIR] = "NONE"
    assert run_schemas(at(server.url), check=True, env={}) == 0
    assert "compatible under NONE, to be BACKWARD_TRANSITIVE" in capsys.readouterr().out
    server.levels[PAIR] = "BACKWARD_TRANSITIVE"
    assert run_schemas(at(server.url), check=True, env={}) == 78
    said = capsys.readouterr()
    assert PAIR in said.err
    assert "gone" in said.err
    assert server.writes == 0
    server.levels[PAIR] = "NONE"  # as someone may have set it: ours is set before the shape is sent
    assert run_schemas(at(server.url), env={}) == 78
    said = capsys.readouterr()
    assert f"{PAIR}: records of an older shape would not be read (409" in said.err
    assert "put back what was taken away" in said.err
    assert "refused" in next(line for line in said.out.splitlines() if PAIR in line)
    assert len(server.shapes[PAIR]) == 1
    assert len(server.shapes) == len(subjects(Settings()))


def test_growth_becomes_the_next_version_and_a_level_that_was_another_is_told(
    server: RegistryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(server, PAIR, older("PairFormed", lambda s: s["properties"].pop("simulated")))
    server.levels[PAIR] = "FULL"
    assert run_schemas(at(server.url), env={}) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if PAIR in line)
    assert line.split()[1:3] == ["BACKWARD_TRANSITIVE", "2"]
    assert "registered, level was FULL" in line


def test_a_passing_topics_shape_may_break(server: RegistryServer, capsys: pytest.CaptureFixture[str]) -> None:
    name = "rewards-xinfluencer.RewardClosed"
    hold(server, name, older("RewardClosed", lambda s: s["properties"].update(gone={"type": "string"})))
    assert run_schemas(at(server.url), check=True, env={}) == 0
    assert "changed" in next(line for line in capsys.readouterr().out.splitlines() if name in line)
    assert run_schemas(at(server.url), env={}) == 0
    assert len(server.shapes[name]) == 2


FAULTS = {
    "401": (refuse(401, "Unauthorized"), 78, f"set {NAME}_TOKEN", 1),
    "503": (refuse(503), 75, "run `xinfluencer schemas` again", None),
    "429": (refuse(429), 75, "run `xinfluencer schemas` again", None),
    "no answer": (lambda method, path: CUT, 75, "look whether it runs", schema_registry.UNANSWERED_MAX),
    "another site": (lambda method, path: HTML, 78, "is no schema registry", 1),
    "another site that is fond of 200": (lambda method, path: (200, b"[]", {}), 78, "is no schema registry", 1),
    "no version": (lambda method, path: (200, b'{"id": 1, "version": "x"}', {}), 78, "has no 'version'", 1),
    "a redirect": (lambda method, path: (302, b"", {"location": "http://127.0.0.1:9/"}), 78, "correct", 1),
    "deep nonsense": (lambda method, path: (200, b"[" * 100_000, {}), 78, "is no schema registry", 1),
    "not what it says": (lambda method, path: (200, b"plain", {"content-encoding": "gzip"}), 75, "no answer", 3),
}
FAULTS_OF_ONE = {
    "403": (refuse(403, "Forbidden", PAIR), 78, "give this user the right"),
    "409": (refuse(409, "no", f"{PAIR}/versions"), 78, "put back what was taken away"),
    "422": (refuse(422, "Invalid", f"{PAIR}/versions"), 78, "must take JSON Schema draft-07"),
    "500": (refuse(500, "store", PAIR), 75, "look at the registry's log"),
    "cut": (lambda method, path: CUT if PAIR in path else None, 75, "look whether it runs"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("check", [False, True])
def test_a_fault_of_the_registry_is_a_sentence_with_a_mend_and_an_exit_code(
    server: RegistryServer, capsys: pytest.CaptureFixture[str], fault: str, check: bool
) -> None:
    server.fault, code, mend, calls = FAULTS[fault]
    assert run_schemas(at(server.url), check, env={}) == code
    said = capsys.readouterr()
    assert mend in said.err
    assert "tweets-xinfluencer.PostObserved" in said.err or f"at {server.url}" in said.err
    assert len(said.out.splitlines()) == len(subjects(Settings())) + 1
    if calls is not None:
        assert len(server.calls) == calls
        assert "not asked" in said.out


@pytest.mark.parametrize("fault", FAULTS_OF_ONE)
def test_a_fault_with_one_subject_does_not_hold_up_the_others(
    server: RegistryServer, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    server.fault, code, mend = FAULTS_OF_ONE[fault]
    assert run_schemas(at(server.url), env={}) == code
    said = capsys.readouterr().err
    assert said.startswith(f"xinfluencer: {PAIR}: ")
    assert mend in said
    assert len(said.splitlines()) == 1
    assert set(server.shapes) == {one.name for one in subjects(Settings())} - {PAIR}


def test_a_fault_that_passes_does_not_hide_one_that_a_person_must_mend(server: RegistryServer) -> None:
    refused, failing = FAULTS_OF_ONE["422"][0], refuse(500, "store", "PairWithdrawn")
    server.fault = lambda method, path: refused(method, path) or failing(method, path)
    assert run_schemas(at(server.url), env={}) == 78


def test_an_answer_without_end_is_not_read_to_its_end(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schema_registry, "ANSWER_BYTES_MAX", 1000)
    server.fault = lambda method, path: (200, b"{" + b" " * 100_000, {})
    assert run_schemas(at(server.url), env={}) == 78
    assert "more than 1000 bytes" in capsys.readouterr().err


def test_a_registry_never_stops_a_start_and_nothing_is_sent_where_none_is_set(server: RegistryServer) -> None:
    said: list[str] = []
    register_if_set(Settings(), said.append, {})
    assert said == []
    register_if_set(at(server.url), said.append, {})
    assert said == [f"the schema registry holds {len(subjects(Settings()))} of {len(subjects(Settings()))} shapes"]
    server.fault = lambda method, path: CUT
    register_if_set(at(server.url), said.append, {})
    assert said[-1].startswith("the schema registry holds 0 of ")
    with pytest.raises(SettingsRefused, match=f"{NAME} is empty"):
        run_schemas(Settings(), env={})


def test_the_command_ends_with_what_a_supervisor_understands(server: RegistryServer, tmp_path: Path) -> None:
    found = command_line("schemas", data=tmp_path, **{NAME: server.url})
    assert (found.returncode, found.stderr) == (0, "")
    assert PAIR in found.stdout
    server.fault = refuse(401, "who are you?")
    found = command_line("schemas", "--check", data=tmp_path, **{NAME: server.url, f"{NAME}_TOKEN": SECRET})
    assert found.returncode == 78
    assert SECRET not in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


# ---- who asks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["token", "token file", "password", "password file"])
def test_credentials_come_from_the_environment_and_are_in_nothing_that_is_said(
    server: RegistryServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    pair = base64.b64encode(f"ann:{SECRET}".encode()).decode()
    header = f"Bearer {SECRET}" if "token" in way else f"Basic {pair}"
    name = f"{NAME}_{'TOKEN' if 'token' in way else 'PASSWORD'}"
    env = {name: SECRET} if "file" not in way else {f"{name}_FILE": str(tmp_path / "secret")}
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    if "password" in way:
        env[f"{NAME}_USER"] = "ann"
    server.fault = refuse(422, f"I was told {header}, that is {SECRET} \x1b[31m", "config")
    assert run_schemas(at(server.url), env=env) == 78
    assert {sent["authorization"] for sent in server.sent} == {header}
    said = "".join(capsys.readouterr()) + repr(access(at(server.url), env)) + str(at(server.url).to_env())
    assert "I was told" in said
    assert SECRET not in said
    assert pair not in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("url", "env", "why"),
    [
        ("http://registry.example:8081", {f"{NAME}_TOKEN": SECRET}, "in clear"),
        ("http://registry.example:8081", {f"{NAME}_USER": "a", f"{NAME}_PASSWORD": SECRET}, "in clear"),
        ("http://127.0.0.1.example", {f"{NAME}_TOKEN": SECRET}, "in clear"),
        ("https://ann:pass@registry.example", {}, "holds a user"),
        ("registry.example:8081", {}, "must be http"),
        ("ftp://registry.example", {}, "must be http"),
        ("https://registry.example/?a=1", {}, "must be http"),
        ("https://registry.example:99999", {}, "must be http"),
        ("https://", {}, "must be http"),
        ("https://a\nb", {}, "must be http"),
        ("https://registry.example", {f"{NAME}_TOKEN": SECRET, f"{NAME}_USER": "a"}, "not both"),
        ("https://registry.example", {f"{NAME}_USER": "a"}, "together"),
        ("https://registry.example", {f"{NAME}_PASSWORD": SECRET}, "together"),
        ("https://registry.example", {f"{NAME}_TOKEN": SECRET, f"{NAME}_TOKEN_FILE": "/x"}, "only one"),
        ("https://registry.example", {f"{NAME}_TOKEN_FILE": "/no/such/file"}, "cannot be read"),
        ("https://registry.example", {f"{NAME}_TOKEN_FILE": "/dev/null"}, "is empty"),
        ("https://registry.example", {f"{NAME}_TOKEN": f"{SECRET}\r\nx: y"}, "control character"),
        ("https://registry.example", {f"{NAME}_TOKEN": f"'{SECRET} '"}, "what no token has"),
        ("https://registry.example", {f"{NAME}_USER": "a:b", f"{NAME}_PASSWORD": SECRET}, "a : in USER"),
    ],
)
def test_what_would_give_a_secret_away_or_cannot_be_used_is_refused_before_a_word_is_sent(
    url: str, env: dict[str, str], why: str
) -> None:
    with pytest.raises(SettingsRefused) as refused:
        access(at(url), env)
    assert why in str(refused.value)
    assert NAME in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "pass@" not in str(refused.value)


def test_a_password_stays_where_it_was_sent_when_the_answer_points_elsewhere(server: RegistryServer) -> None:
    with RegistryServer() as other:
        server.fault = lambda method, path: (307, b"", {"location": other.url + path})
        assert run_schemas(at(server.url), env={f"{NAME}_TOKEN": SECRET}) == 78
        assert other.calls == []


def test_tls_is_judged_by_the_ca_that_was_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_certificates(tmp_path)
    with RegistryServer(tmp_path / "broker.pem") as secure:
        assert run_schemas(at(secure.url), env={}) == 78
        assert f"is not trusted: set {NAME}_CA" in capsys.readouterr().err
        assert secure.calls == []
        trusting = at(secure.url, schema_registry_ca=tmp_path / "ca.pem")
        assert run_schemas(trusting, env={f"{NAME}_TOKEN": SECRET}) == 0
    (tmp_path / "no.pem").write_text("no certificate")
    for file in ("missing.pem", "no.pem"):
        with pytest.raises(SettingsRefused, match=f"{NAME}_CA cannot be used"):
            access(at(secure.url, schema_registry_ca=tmp_path / file), {})


# ---- the real one ---------------------------------------------------------------------------------------------------


FRESH = itertools.count()


class Judge:
    """Any registry: may `new` follow `old` in a fresh subject?"""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        found = self.client.request(method, path, json=body)
        return found.status_code, found.json()

    def __call__(self, old: Any, new: Any) -> bool:
        name = f"judged-{next(FRESH)}"
        path = f"/subjects/{name}/versions"
        assert self.call("PUT", f"/config/{name}", {"compatibility": "BACKWARD_TRANSITIVE"})[0] == 200
        assert self.call("POST", path, _sent(old))[0] == 200
        code, answer = self.call("POST", path, _sent(new))
        assert code in (200, 409), answer
        asked = self.call("POST", f"/compatibility{path}?verbose=true", _sent(new))
        assert asked[0] == 200
        assert asked[1]["is_compatible"] == (code == 200), "the check and the registration disagree"
        return code == 200


def _sent(loaded: Any) -> dict[str, str]:
    return {"schemaType": "JSON", "schema": json.dumps(schema_registry._draft_7(loaded) | _DRAFT)}


_DRAFT = {"$schema": schema_registry.DRAFT_7, "$id": "x"}


def opened(node: Any) -> Any:
    """The same shape with an open content model."""
    if isinstance(node, list):
        return [opened(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: opened(value) for key, value in node.items() if (key, value) != ("additionalProperties", False)}


def loaded(kind: str) -> Any:
    return json.loads(json_schema(KINDS[kind]))


def mutated(old: Any, chance: random.Random) -> tuple[Any, set[str]]:
    """Change one to three things of a shape, anywhere in it, as people do; gives also what was done."""
    new, done = copy.deepcopy(old), set()
    for _ in range(chance.randint(1, 3)):
        objects = [node for node in (new, *new.get("$defs", {}).values()) if node.get("properties")]
        node = chance.choice(objects)
        name = chance.choice(sorted(node["properties"]))
        field, needed = node["properties"][name], node.setdefault("required", [])
        limits = [key for key in ("maximum", "minimum", "maxLength", "minLength", "pattern", "enum") if key in field]
        what = chance.choice(("remove", "add", "add needed", "need not", "nullable", "limit", "limit", "limit"))
        done.add(what)
        if what == "remove" and len(node["properties"]) > 1:
            del node["properties"][name]
            node["required"] = [one for one in needed if one != name]
        elif what == "add":
            node["properties"][f"new{chance.randrange(9)}"] = {"type": "string", "default": ""}
        elif what == "add needed":
            node["properties"]["needed"] = {"type": "string"}
            node["required"] = [*(one for one in needed if one != "needed"), "needed"]
        elif what == "need not":
            node["required"] = [one for one in needed if one != name]
        elif what == "nullable" and "anyOf" not in field and "$ref" not in field:
            node["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        elif what == "limit" and limits:
            _move(field, chance.choice(limits), chance)
    return new, done


def _move(field: Any, limit: str, chance: random.Random) -> None:
    if chance.random() < 0.3:
        del field[limit]
    elif limit == "enum":
        field["enum"] = [*field["enum"], "another"] if chance.random() < 0.5 else (field["enum"][1:] or ["another"])
    elif limit == "pattern":
        field["pattern"] = "^other$"
    else:
        field[limit] += chance.choice((-1, 1)) if field[limit] > 0 else chance.choice((0, 1))


OURS_IS_STRICTER = {"a word nobody knows": "registries leave out keywords that they do not know, such as format"}
THEIRS_IS_STRICTER = {
    "nullable": "a field that may be null now: Apicurio takes it of strings alone, Confluent not of enums"
}


@pytest.mark.slow
def test_a_real_registry_takes_every_shape_once_and_an_independent_client_finds_them(
    real: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_schemas(at(real), check=True, env={}) == 0
    assert run_schemas(at(real), env={}) == 0
    once = capsys.readouterr().out
    assert run_schemas(at(real), env={}) == run_schemas(at(real), check=True, env={}) == 0
    assert once.count("registered") == len(subjects(Settings()))
    assert capsys.readouterr().out.count(" there\n") == 2 * len(subjects(Settings()))
    _read_by_confluents_client(real)


@pytest.mark.slow
def test_a_real_registry_refuses_what_compat_calls_a_break_and_takes_the_rest(real: str) -> None:
    judge, seen = Judge(real), set()
    old = loaded("PairFormed")
    for name, (change, _) in CHANGES.items():
        new = copy.deepcopy(old)
        change(new)
        assert judge(old, new) == (name in OURS_IS_STRICTER), name
    kinds = sorted({kind.__name__ for topic in TOPICS if topic.keep_ms == KEEP_FOR_EVER for kind in topic.events})
    for seed in range(80):
        chance = random.Random(seed)
        old = loaded(chance.choice(kinds))
        new, done = mutated(old, chance)
        broken, taken = breaks(old, new), judge(old, new)
        assert not (broken and taken), (seed, broken)
        assert broken or taken or done & set(THEIRS_IS_STRICTER), (seed, done)
        seen.add(taken)
    assert seen == {True, False}


@pytest.mark.slow
def test_shapes_left_open_would_be_judged_the_wrong_way_round(real: str) -> None:
    judge, old = Judge(real), loaded("PairFormed")
    grown, cut = copy.deepcopy(old), copy.deepcopy(old)
    grown["properties"]["note"] = {"type": "string", "default": ""}
    del cut["properties"]["origin"]
    cut["required"].remove("origin")
    assert (judge(old, grown), judge(old, cut)) == (True, False)
    assert (judge(opened(old), opened(grown)), judge(opened(old), opened(cut))) == (False, True)


def _conversation(judge: Judge) -> list[Any]:
    """Every kind of call that we make, in one order; of the answers what we look at."""
    old = loaded("PairFormed")
    grown, cut = copy.deepcopy(old), copy.deepcopy(old)
    grown["properties"]["note"] = {"type": "string", "default": ""}
    del cut["properties"]["origin"]
    name, level = "/subjects/talk", {"compatibility": "BACKWARD_TRANSITIVE"}
    calls: list[tuple[str, str, Any]] = [
        ("POST", name, _sent(old)),
        ("GET", "/config/talk", None),
        ("GET", "/config", None),
        ("PUT", "/config/talk", level),
        ("GET", "/config/talk", None),
        ("POST", f"{name}/versions", _sent(old)),
        ("POST", f"{name}/versions", _sent(old)),
        ("POST", name, _sent(old)),
        ("POST", name, _sent(grown)),
        ("POST", f"/compatibility{name}/versions?verbose=true", _sent(grown)),
        ("POST", f"/compatibility{name}/versions?verbose=true", _sent(cut)),
        ("POST", f"{name}/versions", _sent(cut)),
        ("POST", f"{name}/versions", _sent(grown)),
        ("POST", name, _sent(grown)),
        ("POST", f"{name}/versions", {"schemaType": "JSON", "schema": "{no"}),
        ("PUT", "/config/talk", {"compatibility": "SOMETIMES"}),
    ]
    said = []
    for method, path, body in calls:
        code, answer = judge.call(method, path, body)
        looked_at = {"version": answer.get("version"), "is_compatible": answer.get("is_compatible")}
        if path != "/config":  # each has a level of its own there
            looked_at["level"] = answer.get("compatibilityLevel")
        if method == "POST" and code == 404:
            looked_at["error_code"] = answer["error_code"]
        said.append((method, path, code, looked_at, isinstance(answer.get("error_code"), int)))
    return said


@pytest.mark.slow
def test_the_tests_own_server_and_a_real_registry_answer_alike(real: str, server: RegistryServer) -> None:
    assert _conversation(Judge(server.url)) == _conversation(Judge(real))


def test_the_tests_own_server_judges_as_compat_does(server: RegistryServer) -> None:
    judge, old = Judge(server.url), loaded("PairFormed")
    for change, _ in CHANGES.values():
        new = copy.deepcopy(old)
        change(new)
        assert not judge(old, new)
    with connected(access(at(server.url), {})) as registry:  # type: ignore[arg-type]
        assert registry.check(subjects(Settings())[0]).state == "new"
