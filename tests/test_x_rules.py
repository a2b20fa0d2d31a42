"""X's rules: those of a file become ours, and nobody else's are touched."""

import asyncio
from pathlib import Path

import pytest

from streams.live import SourceRefused
from streams.settings import Settings
from streams.x_rules import PREFIX, Rules, RulesRefused, load_rules
from tests.x_server import XServer, serving
from tests.x_streaming import ENV


def rules_of(server: XServer) -> Rules:
    return Rules(Settings(x_url=server.url), ENV)


def test_rules_become_those_of_the_file_and_nobody_elses_are_touched(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[rules]\ncats = "cat has:images"\n"two words" = "from:nasa -is:retweet"\n')

    async def run() -> None:
        async with serving() as server:
            server.rules["1"] = {"value": "dog", "tag": "mine"}
            rules = rules_of(server)
            changed = await rules.set(load_rules(file))
            assert (changed.added, changed.deleted, changed.foreign) == (("cats", "two words"), (), 1)
            before = dict(server.rules)
            changed = await rules.set(load_rules(file))
            assert (changed.added, changed.kept) == ((), ("cats", "two words"))
            assert server.rules == before
            # The same query under another name, another query under the same name, and one taken away.
            changed = await rules.set({"kittens": "cat has:images", "cats": "kitten"})
            assert sorted((rule.tag, rule.value) for rule in await rules.all()) == [
                ("mine", "dog"), (f"{PREFIX}cats", "kitten"), (f"{PREFIX}kittens", "cat has:images"),
            ]  # fmt: skip
            assert changed.deleted == ("cats", "two words")

    asyncio.run(run())


def test_a_rule_that_x_refuses_changes_nothing() -> None:
    async def run() -> None:
        async with serving(bad_rules=("bad:",)) as server:
            rules = rules_of(server)
            await rules.set({"old": "cat"})
            before = dict(server.rules)
            with pytest.raises(RulesRefused, match=r"wrong: X refuses it .*no such operator.*nothing was changed"):
                await rules.set({"new": "dog", "wrong": "bad:"})
            server.rules["1"] = before["1"] = {"value": "dog", "tag": ""}
            with pytest.raises(RulesRefused, match="not from here"):
                await rules.set({"new": "dog"})
            assert server.rules == before

    asyncio.run(run())


def test_more_rules_than_fit_a_page_are_all_listed() -> None:
    async def run() -> None:
        async with serving(rules={str(n): {"value": f"v{n}", "tag": ""} for n in range(2_100)}) as server:
            assert len(await rules_of(server).all()) == 2_100

    asyncio.run(run())


@pytest.mark.parametrize(
    "text",
    ["", "rules = 5", "[rules]\na = 5", '[rules]\na = ""', '[other]\na = "b"', '[rules]\na = "b"\n[x]', "[rules",
     '[rules]\na = "b"\nc = "b"', '[rules]\na = "b\\nc"', f'[rules]\na = "{"x" * 3000}"',
     f'[rules]\n{"n" * 120} = "b"'],
)  # fmt: skip
def test_a_file_of_rules_that_is_unclear_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(RulesRefused):
        load_rules(file)


def test_rules_without_a_right_token_say_so() -> None:
    async def run() -> None:
        async with serving(token="another") as server:
            with pytest.raises(SourceRefused, match="401"):
                await rules_of(server).all()

    asyncio.run(run())
