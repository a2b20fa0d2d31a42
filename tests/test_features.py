"""What is counted in a text, when it was said and by whom: by rules that can be checked by hand, and on real posts."""

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import content
from agents.describing import OLDEST_MS, age_ms, engagement_described, moment, post_described, standing
from agents.entities import Entities, entities
from agents.language import language
from schemas import facts
from schemas import posts as ps
from streams.xv2_post import unescape
from tests.folding import HOUR_MS, RIGHTS, T0_MS, post
from tests.ingest_ends import SHARED

V2 = SHARED / "v2-academic" / "tweets_v2.jsonl.gz"
V1 = SHARED / "rumoureval2017" / "tweets_v11.jsonl.gz"
needs_posts = pytest.mark.skipif(not (V2.exists() and V1.exists()), reason=f"real posts are not on this machine ({V2})")
DAY_MS = 24 * HOUR_MS


def counted(text: str, **more: int) -> facts.Features:
    marks = {"hashtags": 0, "mentions": 0, "links": 0, "media": 0, **more}
    return content.features(text, at_ms=None, **marks)


# ---- counts ---------------------------------------------------------------------------------------------------------


def quality(text: str, hashtags: int = 0) -> float:
    return counted(text, hashtags=hashtags).quality


def test_quality_can_be_checked_by_hand() -> None:
    assert quality("one two three four five") == 1.0
    assert quality("one two") == pytest.approx(2 * 2 / 5 - 1)
    assert quality("") == -1.0
    assert quality(" ".join(f"w{i}" for i in range(120))) == pytest.approx(2 * (120 / 180) - 1, abs=1e-4)
    assert quality("one one one one one") == pytest.approx(1 - 0.8)
    assert quality("ONE TWO THREE FOUR FIVE") == pytest.approx(0.0)
    assert quality("one two three four five", hashtags=5) == pytest.approx(1 - 0.75)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.integers(0, 9), st.none() | st.integers(0, facts.MS_MAX))
def test_any_text_has_features_that_fit_and_always_the_same(text: str, marks: int, at_ms: int | None) -> None:
    def features() -> facts.Features:
        return content.features(text, hashtags=marks, mentions=marks, links=marks, media=marks, at_ms=at_ms)

    found = features()
    assert facts.Features.model_validate(found.model_dump()) == found == features()
    assert found.long_words is None or found.long_words <= found.words
    assert found.sentences is not None
    assert (found.sentences == 0) == (not re.search(r"[^\W_]", content.LINK.sub(" ", text)))


@pytest.mark.parametrize(
    ("text", "pictures"),
    [
        ("no", 0),
        ("👍 👍🏽", 2),
        ("👨‍👩‍👧‍👦", 1),
        ("🇩🇪🇫🇷", 2),
        ("1️⃣ # 1", 1),
        ("❤️ ❤ ❤︎", 2),
        ("© ™ ® ©️", 1),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", 1),
        ("🙇🏻‍♀️!", 1),
        ("🏳️‍🌈", 1),
        ("今日は😀", 1),
    ],
)
def test_what_people_see_as_one_picture_is_one_emoji(text: str, pictures: int) -> None:
    assert counted(text).emoji == pictures


def test_words_sentences_and_long_words_are_what_a_reader_counts() -> None:
    found = counted("It's 3.5 metres long. Really?! “Yes.” he said… see https://t.co/AbcDefGhij.\nExtraordinary")
    assert (found.words, found.sentences, found.long_words) == (11, 6, 1)  # 3.5 is two words, and ends nothing
    assert counted("nothing but https://t.co/AbcDefGhijk").words == 2
    hindi = counted("हिन्दी में लिखा हुआ पाठ।")
    assert (hindi.words, hindi.sentences) == (5, 1)
    assert counted("один превосходительство").long_words == 1


def test_where_a_script_has_no_spaces_two_characters_are_a_word_and_none_is_long() -> None:
    found = counted("今日はいい天気ですね。明日も？")
    assert (found.words, found.sentences, found.long_words) == (7, 2, None)
    assert counted("a few words and 天気").long_words == 0


def test_capitals_are_counted_among_letters_of_every_script() -> None:
    assert counted("ABCDabcd").caps_share == 0.5
    assert counted("ЖЗИКжзик").caps_share == 0.5
    assert counted("ABCDжзик 12!?").caps_share == 0.5
    assert counted("ABC").caps_share == 0.0
    assert counted("日本語の文章は大文字がない").caps_share == 0.0


def test_a_language_that_the_payload_names_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    words = facts.PostContent(text="this is plain English text", cashtags=("X", "Y"))
    found = content.words_of_post("p", words, 0, 0, None).features
    assert (found.lang, found.cashtags) == ("en", 2)
    monkeypatch.setattr(content, "language", lambda text: pytest.fail("looked for"))
    assert content.words_of_post("p", words, 0, 0, None, lang="de").features.lang is None


# ---- language -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("Where have all the flowers gone?", "en"),
        ("Das ist ja nicht zu fassen, oder?", "de"),
        ("¿Dónde está la biblioteca?", "es"),
        ("今日はいい天気ですね", "ja"),
        ("这是一个测试句子", "zh"),
        ("זה מבחן קצר בעברית", "he"),
        ("@bob #fridaysforfuture https://example.org/where-have-all", None),
        ("lol", None),
        ("😂😂😂 100%", None),
        ("", None),
        ("\x00\x01 plain words \ud800 of English \ufdd0 here", "en"),
    ],
)
def test_a_text_is_in_the_language_that_a_reader_would_name(text: str, lang: str | None) -> None:
    assert language(text) == lang


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_a_language_or_none(text: str) -> None:
    found = language(text)
    assert found is None or re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{2,4})?", found)


# ---- entities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#One, #two_2! (#drei) #1 ＃四", (("One", "two_2", "drei", "四"), (), (), ())),
        ("a#no &#39; #x#y #ok😀#ok ❤️#after #️⃣", (("ok", "ok", "after"), (), (), ())),
        ("$TSLA $brk.b $5 US$ x$no $toolongtag", ((), ("TSLA", "brk.b"), (), ())),
        ("@ann: .@bob RT@cat mail@no.org @@no @é ＠dan @eve@no", ((), (), ("ann", "bob", "cat", "dan"), ())),
        (
            "see https://t.co/Ab1. (http://example.org/a_(b)) x.org https://t.co/Cd2#frag",
            ((), (), (), ("https://t.co/Ab1", "http://example.org/a_(b", "https://t.co/Cd2")),
        ),
        ("https://example.org/#no?@no=$NO", ((), (), (), ("https://example.org/#no?@no=$NO",))),
        ("RT @ann: all of #this and #tha…", (("this",), (), ("ann",), ())),
        ("I do like #this…", (("this",), (), (), ())),
    ],
)
def test_entities_are_found_by_the_rules_of_x(text: str, found: tuple[Any, ...]) -> None:
    assert entities(text) == Entities(*found)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80) | st.text("#@$＃ah.:/t共…tps ", max_size=40))
def test_entities_of_any_text_stand_in_it(text: str) -> None:
    found = entities(text)
    for sign, some in (("#＃", found.hashtags), ("$", found.cashtags), ("@＠", found.mentions)):
        assert all(any(f"{one}{word}" in text for one in sign) for word in some)
    assert all(link in text for link in found.links)


def lines(path: Any) -> Iterator[Any]:
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


def listed(raw: dict[str, Any]) -> Entities:
    """Read a payload's own entities, of either version of X's API."""

    def some(*names: str) -> list[Any]:
        return [one for name in names for one in (raw.get("entities") or {}).get(name) or ()]

    return Entities(
        tuple(one.get("tag") or one["text"] for one in some("hashtags")),
        tuple(one.get("tag") or one["text"] for one in some("cashtags", "symbols")),
        tuple((one.get("username") or one["screen_name"]).lower() for one in some("mentions", "user_mentions")),
        tuple(dict.fromkeys(one["url"] for one in some("urls", "media"))),  # four photos are one link
    )


def agreement(path: Any, find: Callable[[str], Entities]) -> Counter[str]:
    """Count posts whose entities are found as the payload lists them; reposts are cut, and their words not ours."""
    equal: Counter[str] = Counter()
    for raw in lines(path):
        if raw["text"].startswith("RT @"):
            continue
        found, payload = find(unescape(raw["text"])), listed(raw)
        found = found._replace(mentions=tuple(one.lower() for one in found.mentions))
        equal["posts"] += 1
        for field in Entities._fields:
            ours, theirs = getattr(found, field), getattr(payload, field)
            if field == "links":
                ours = tuple(dict.fromkeys(ours))
            equal[field] += Counter(ours) == Counter(theirs)
            if field == "mentions":  # a name that nobody has is no mention, which only the source can know
                equal["mentions listed"] += not Counter(theirs) - Counter(ours)
    return equal


@needs_posts
@pytest.mark.parametrize("path", [V2, V1], ids=["v2", "v1.1"])
def test_entities_found_in_real_posts_are_those_that_the_payload_lists(path: Any) -> None:
    equal = agreement(path, entities)
    posts = equal["posts"]
    assert posts > 4_000
    assert equal["hashtags"] == equal["cashtags"] == equal["links"] == equal["mentions listed"] == posts
    assert equal["mentions"] / posts > 0.99


@needs_posts
def test_control_entities_found_by_simpler_rules_would_be_noticed() -> None:
    def simple(text: str) -> Entities:
        return Entities(
            *(tuple(re.findall(rule, text)) for rule in (r"#(\w+)", r"\$(\w+)", r"@(\w+)", r"https?://\S+"))
        )

    equal = agreement(V1, simple)
    assert equal["posts"] > max(equal["hashtags"], equal["mentions listed"] - 1, equal["links"])


@needs_posts
@pytest.mark.parametrize(("path", "named_min", "equal_min"), [(V2, 0.995, 0.985), (V1, 0.995, 0.99)])
def test_languages_found_in_real_posts_are_those_that_the_payload_names(
    path: Any, named_min: float, equal_min: float
) -> None:
    renamed = {"in": "id", "iw": "he"}
    seen = named = equal = 0
    for raw in lines(path):
        if raw["lang"] != "und":
            found = language(unescape(raw["text"]))
            seen += 1
            named += found is not None
            equal += found is not None and found.split("-")[0] == renamed.get(raw["lang"], raw["lang"])
    assert seen > 4_000
    assert named / seen >= named_min
    assert equal / named >= equal_min


# ---- moments, standing, rates ---------------------------------------------------------------------------------------


def turn(sine: float, cosine: float) -> float:
    return math.atan2(sine, cosine) / (2 * math.pi) % 1


@settings(max_examples=200, deadline=None)
@given(st.integers(OLDEST_MS, 4_102_444_800_000), st.integers(-50_400, 50_400))
def test_a_moment_lies_where_the_calendar_has_it(at_ms: int, offset_s: int) -> None:
    found = moment(at_ms, offset_s)
    at = datetime.fromtimestamp(at_ms // 1000 + offset_s, UTC)
    minutes = at.hour * 60 + at.minute

    def apart(one: float, other: float) -> float:
        return abs((one - other + 0.5) % 1 - 0.5)

    assert apart(turn(found.hour_sin, found.hour_cos), minutes / 1440) < 1e-4
    assert apart(turn(found.weekday_sin, found.weekday_cos), (at.weekday() + minutes / 1440) / 7) < 1e-4
    year = (at - datetime(at.year, 1, 1, tzinfo=UTC)).total_seconds() / (366 * 86_400)
    assert apart(turn(found.season_sin, found.season_cos), year) < 2 / 365
    assert facts.Moment.model_validate(found.model_dump()) == found


def test_the_last_hour_of_a_day_is_next_to_the_first() -> None:
    last, first = moment(T0_MS - T0_MS % DAY_MS - HOUR_MS // 2), moment(T0_MS - T0_MS % DAY_MS + HOUR_MS // 2)
    assert math.dist((last.hour_sin, last.hour_cos), (first.hour_sin, first.hour_cos)) < 0.27


def test_an_author_stands_as_the_payload_says_and_a_post_knows_the_hour_where_they_live() -> None:
    who = facts.AuthorFacts(
        created_ms=T0_MS - 100 * DAY_MS, followers=30, following=10, posts=250, listed=4, verified=True, bot=False,
        utc_offset_s=7200,
    )  # fmt: skip
    seen = post("p", author=who, claimed_ms=T0_MS, media_kinds=("photo",), quoted="q")
    found = post_described(seen, T0_MS + 5)
    assert found.author == facts.Standing(
        age_days=100.0, followers=30, followers_ratio=0.75, posts_a_day=2.5, listed=4, verified=True, bot=False
    )
    assert (found.utc, found.local) == (moment(T0_MS), moment(T0_MS + 2 * HOUR_MS))
    assert (found.kind, found.quote, found.age_ms, found.media_kinds) == ("root", True, 5, ("photo",))
    assert found.features == seen.words.features  # type: ignore[union-attr]
    assert (found.lang, post_described(post("p", lang="fr"), T0_MS).lang) == ("en", "fr")


@pytest.mark.parametrize("claimed_ms", [None, 0, OLDEST_MS - 1, T0_MS + 2 * HOUR_MS])
def test_a_date_that_cannot_be_gives_no_number_rather_than_a_wrong_one(claimed_ms: int | None) -> None:
    who = facts.AuthorFacts(created_ms=T0_MS - DAY_MS, utc_offset_s=0)
    found = post_described(post("p", author=who, claimed_ms=claimed_ms), T0_MS)
    assert (found.age_ms, found.utc, found.local) == (None, None, None)
    assert found.author is not None
    assert (found.author.age_days is None) == (claimed_ms is not None)


def test_two_clocks_may_differ_by_a_minute() -> None:
    assert [age_ms(T0_MS + ahead, T0_MS) for ahead in (-1, 0, 60_000, 60_001)] == [1, 0, 0, None]


@pytest.mark.parametrize(
    "who",
    [
        facts.AuthorFacts(),
        facts.AuthorFacts(created_ms=0, followers=0, following=0, posts=9),
        facts.AuthorFacts(created_ms=T0_MS + 1, followers=3, posts=9),
    ],
)
def test_an_account_that_cannot_be_has_no_age_no_ratio_and_no_pace(who: facts.AuthorFacts) -> None:
    found = standing(who, T0_MS)
    assert (found.age_days, found.followers_ratio, found.posts_a_day) == (None, None, None)
    young = standing(facts.AuthorFacts(created_ms=T0_MS - HOUR_MS, posts=9), T0_MS)
    assert (young.age_days, young.posts_a_day) == (0.042, None)


def engagement(**counts: int | None) -> ps.EngagementObserved:
    return ps.EngagementObserved(post="p", owner="ann", source="x", rights=RIGHTS, **counts)


def test_rates_are_proportions_of_something() -> None:
    full = engagement(likes=5, replies=2, reposts=2, quotes=1, views=100, claimed_ms=T0_MS)
    assert engagement_described(full, 40, T0_MS + 2 * HOUR_MS).rates == facts.Rates(
        a_view=0.1, a_follower=0.25, an_hour=5.0
    )
    for seen, followers, after_ms in (
        (engagement(likes=5), None, HOUR_MS),
        (engagement(likes=5, views=0, claimed_ms=T0_MS), 0, 59_999),
        (engagement(views=100, claimed_ms=T0_MS), 10, HOUR_MS),
        (engagement(likes=5, claimed_ms=T0_MS + DAY_MS), None, HOUR_MS),
    ):
        assert engagement_described(seen, followers, T0_MS + after_ms).rates == facts.Rates()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, facts.MS_MAX), st.none() | st.integers(0, facts.MS_MAX), st.integers(0, 2**53 - 1))
def test_any_times_and_counts_give_numbers_that_fit(seen_ms: int, claimed_ms: int | None, count: int) -> None:
    who = facts.AuthorFacts(created_ms=claimed_ms, followers=count, following=1, posts=count, utc_offset_s=-50_400)
    for found in (
        post_described(post("p", author=who, claimed_ms=claimed_ms), seen_ms),
        engagement_described(engagement(likes=count, views=count, claimed_ms=claimed_ms), count, seen_ms),
    ):
        assert type(found).model_validate_json(found.model_dump_json(exclude_none=True)) == found
