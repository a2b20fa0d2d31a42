"""What may be done with a post is said in sentences: who decided it, then and now, and where it was looked for."""

import asyncio
import json
from pathlib import Path

import pytest
from conftest import SessionBroker

from schemas.posts import AuthorErased, AuthorHidden, PostDeleted, PostObserved
from schemas.seal import Unpunctured
from streams.comply import events_for, run_comply, wanted
from streams.ingest import Known, ingest
from streams.intents import Declared
from streams.kafka import ensure_topics
from streams.lines import Line
from streams.policy import Policy
from streams.policy_explain import Found, explain, names_of, owner_of, run_policy_explain
from streams.sender import Sender
from streams.topics import specs
from streams.vault import Vault
from tests.harness import settings_for
from tests.ingest_ends import DID, Recorder, as_lines, declaration, dump, jetstream, page, post, take, user

NOW_MS = 1_767_571_200_000


def found(end: Recorder, wanted_posts: frozenset[str]) -> Found:
    out = Found()
    for record in end.read(_keys):
        out.keep(record, wanted_posts)
    return out


class _None(Unpunctured):
    def get(self, owner: str) -> bytes | None:
        return None

    def make(self, owner: str) -> bytes | None:
        return None


_keys = _None()  # words stay shut: nothing here needs them


def told(values: list[object], of: str, policy: Policy | None = None, declared: Declared | None = None) -> str:
    _, end = take(as_lines(dump(*values)), source=None)
    now = declared or Declared()
    return "\n".join(explain(found(end, names_of(of)), policy or Policy.load(), lambda owner: now))


def test_a_post_of_xs_is_explained_by_its_table() -> None:
    text = told([post(1)], str(10**18 + 1))
    assert "x:1000000000000000001 by x:@7001, source x, revision 1" in text
    assert "decided then, by policy x-default ([x] of" in text
    assert "it may be stored, embedded, searched and scored" in text
    assert "it may not become training data: train = false" in text
    assert "the author's declaration: none is known" in text
    assert "taken in 2026-01-05T00:00:00Z" in text


def test_a_declaration_explains_the_verdict_then_and_now() -> None:
    uri = f"at://{DID}/app.bsky.feed.post/3k"
    text = told([declaration(True), jetstream()], uri, declared=Declared(train=False))
    assert "by policy bluesky-default+declared-yes" in text
    assert "it may become training data: its author had declared yes" in text
    assert "it may not become training data: its author declares no, and an author's no always wins" in text
    assert "What is in the log stays under the verdict it came with" in text
    silent = told([jetstream()], uri)
    assert 'it may not become training data: train = "declared", and its author declares nothing about it' in silent


def test_another_file_than_todays_is_said_to_be_another(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[x]\npolicy = "mine"\nindex = true\ntrain = true\nshow = false\n')
    text = told([post(1)], str(10**18 + 1), policy=Policy.load(file))
    assert f"no table for x in {file} bears that name" in text
    assert "policy mine" in text
    assert "it may become training data: train = true" in text
    file.write_text("")
    nothing = told([post(1)], str(10**18 + 1), policy=Policy.load(file))
    assert "under no table [x], policy unknown-source" in nothing
    assert "what no table names may be used for nothing" in nothing


def test_all_revisions_and_what_happened_to_the_post_and_its_author_are_said() -> None:
    history = ["101", "102"]
    gone = {"delete": {"tweet": {"id": "101", "author_id": "7001"}}}
    hidden = {"user_suspend": {"user": {"id": "7001"}}}
    values = [post(1, id=one, edit_history_tweet_ids=history) for one in history]
    text = told([*values, hidden, gone, {"user_suspend": {"user": {"id": "9"}}}], "102")
    only = told([*values, gone], "101")
    assert "x:101 by x:@7001, source x, revision 2" in text
    assert "the account was hidden (suspended)" in text
    assert text.count("was hidden") == 1
    assert "revision 1" in only
    assert "revision 2" in only
    assert "the post was deleted" in only


def test_names_are_what_a_person_may_mean() -> None:
    assert names_of("123") == {"x:123", "own:123", "sim:123"}
    assert names_of("x:123") == {"x:123"}
    assert f"bluesky:{DID}~3k" in names_of(f"at://{DID}/app.bsky.feed.post/3k")
    assert (owner_of("5"), owner_of("x:@5"), owner_of(DID)) == ("x:@5", "x:@5", f"bluesky:@{DID}")


# ---- batch compliance -----------------------------------------------------------------------------------------------


def answers(*lines: object) -> list[Line]:
    return [Line(f"made:{number}", json.dumps(one).encode()) for number, one in enumerate(lines, 1)]


def test_a_job_about_posts_deletes_those_that_the_log_holds_under_any_of_their_ids() -> None:
    given, unused = wanted(answers({"id": "102", "action": "delete", "reason": "deleted"}, {"id": "x"}, 5), "tweets")
    assert (given, unused) == ({"x:102": "deleted"}, {"unknown-shape": 2})
    history = ["101", "102"]
    _, end = take(as_lines(dump(*(post(1, id=one, edit_history_tweet_ids=history) for one in history), post(3))))
    events = [one for said in end.events(PostObserved) for one in events_for(said, given, "tweets")]
    assert events == [PostDeleted(post="x:101", owner="x:@7001", source="x")]


def test_a_job_about_accounts_erases_the_deleted_and_hides_the_others() -> None:
    _, end = take(as_lines(dump(post(1))))
    (said,) = end.events(PostObserved)
    for reason, event in (
        ("deleted", AuthorErased(owner=said.owner, source="x")),
        ("suspended", AuthorHidden(owner=said.owner, source="x", reason="suspended")),
        (5, AuthorHidden(owner=said.owner, source="x", reason="unsaid")),
    ):
        number = said.owner.removeprefix("x:@")
        given, _ = wanted(answers({"id": number, "action": "delete", "reason": reason}), "users")
        assert events_for(said, given, "users") == [event]
    assert events_for(said, {"x:@1": "deleted"}, "users") == []


@pytest.mark.parametrize("order", [1, -1])
def test_who_was_deleted_stays_so_whatever_another_line_of_the_job_says(order: int) -> None:
    lines = [
        {"id": "5", "action": "delete", "reason": "deleted"},
        {"id": "5", "action": "delete", "reason": "suspended"},
    ]
    assert wanted(answers(*lines[::order]), "users")[0] == {"x:@5": "deleted"}


# ---- with a real log ------------------------------------------------------------------------------------------------


def test_the_command_finds_a_post_in_the_log_or_says_where_it_looked(
    broker: SessionBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path / "data", "explain")
    kafka = broker.settings
    monkeypatch.setenv("XINFLUENCER_KAFKA", kafka.bootstrap)
    versions = [post(4, id=one, edit_history_tweet_ids=["101", "102"]) for one in ("101", "102")]
    values = [page(post(1), post(2), includes={"users": [user(7001)]}), *versions, declaration(False), jetstream()]

    async def fill() -> None:
        await ensure_topics(kafka, specs(settings))
        sender, vault = Sender(settings, kafka), Vault(settings.data / "vault" / "keys.sqlite")
        known = Known.of(settings)
        try:
            await ingest(as_lines(dump(*values)), None, settings, sender, vault, Policy.load(), lambda: NOW_MS)
            assert known.intents.declared(f"bluesky:@{DID}").train is False
        finally:
            known.close()
            await sender.stop()
            vault.close()

    asyncio.run(fill())
    run_policy_explain(settings, str(10**18 + 1))
    assert "it may not become training data: train = false" in capsys.readouterr().out
    run_policy_explain(settings, f"at://{DID}/app.bsky.feed.post/3k", DID)
    said = capsys.readouterr().out
    assert "bluesky-default+declared-no" in said
    assert "declared: training: no" in said
    run_policy_explain(settings, "102")
    said = capsys.readouterr().out
    assert all(f"x:101 by x:@7001, source x, revision {number}" in said for number in (1, 2))
    with pytest.raises(SystemExit):
        run_policy_explain(settings, "404", "x:@7001")
    missing = capsys.readouterr().out
    assert "not found: own:404 or sim:404 or x:404" in missing
    assert "only the partition of x:@7001 was searched" in missing

    job = tmp_path / "job.jsonl"
    job.write_text(json.dumps({"id": str(10**18 + 1), "action": "delete", "reason": "deleted"}) + "\n")
    run_comply(settings, str(job), "tweets")
    assert "1 answers, 1 PostDeleted written" in capsys.readouterr().out
    run_policy_explain(settings, str(10**18 + 1))
    assert "the post was deleted" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--type"):
        run_comply(settings, str(job), "posts")
