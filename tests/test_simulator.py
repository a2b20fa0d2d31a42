"""Simulator and raters: shaped as X shapes it, repeatable to the byte, with a hidden truth that can be found."""

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from html import escape, unescape
from itertools import combinations, pairwise

import pytest

from schemas.events import FeedbackGiven
from streams.payloads import COUNTS, SNOWFLAKE_EPOCH_MS, Line
from streams.raters import Judgement, Raters
from streams.simulator import AUTHORS_MIN, PAGE_POSTS_MAX, Simulator, Truth

SEEDS = (1, 2, 3, 4, 5)
BIG = 11  # this seed is run for 6,000 posts instead of 800, for what is rare
GOLDEN_7 = "01271e092e9f83d585bc7e1bafde730e8be91b048f135f858cb881bebb551d77"
CORRELATION_MIN = 0.7  # Spearman of hidden quality and final engagement rate, every seed
SIBLING_SPREAD_MIN = 0.3
FIELDS = {
    "id",
    "text",
    "author_id",
    "created_at",
    "conversation_id",
    "edit_history_tweet_ids",
    "lang",
    "public_metrics",
}


@dataclass(frozen=True)
class Run:
    """One network read to its end."""

    timed: tuple[tuple[int, Line], ...]
    truth: Truth

    def pages(self) -> Iterator[tuple[int, Line]]:
        return ((at, line) for at, line in self.timed if "meta" in line)

    def tweets(self) -> Iterator[tuple[int, Line]]:
        """Every tweet object seen, also as an expansion, with the moment it was seen."""
        for at, line in self.pages():
            for tweet in [*line["data"], *line["includes"].get("tweets", ())]:
                yield at, tweet

    def first_seen(self) -> dict[str, Line]:
        seen: dict[str, Line] = {}
        for _, line in self.pages():
            for tweet in reversed(line["data"]):
                seen.setdefault(tweet["id"], tweet)
        return seen

    def last_seen(self) -> dict[str, Line]:
        return {tweet["id"]: tweet for _, tweet in self.tweets()}


@cache
def run(seed: int) -> Run:
    simulator = Simulator(seed, posts=6000 if seed == BIG else 800)
    return Run(tuple(simulator.timed()), simulator.truth)


def sha256(simulator: Simulator) -> str:
    state = hashlib.sha256()
    for line in simulator.events():
        state.update(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return state.hexdigest()


def ms_of(time: str) -> int:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def ranks(values: Sequence[float]) -> list[float]:
    """Rank from 1; equal values share the mean of their ranks."""
    places: dict[float, list[int]] = defaultdict(list)
    for place, value in enumerate(sorted(values), 1):
        places[value].append(place)
    return [sum(places[value]) / len(places[value]) for value in values]


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    a, b = ranks(xs), ranks(ys)
    mean = (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return covariance / (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5


def kind(tweet: Line) -> str:
    return tweet["referenced_tweets"][0]["type"] if "referenced_tweets" in tweet else ""


# ---- the same again -------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bytes_on_every_machine_and_in_every_release() -> None:
    assert sha256(Simulator(7)) == GOLDEN_7


def test_reading_again_changes_nothing_and_another_seed_everything() -> None:
    simulator = Simulator(3, posts=120)
    truth = simulator.truth
    assert sha256(simulator) == sha256(simulator) == sha256(Simulator(3, posts=120))
    assert simulator.truth == truth
    assert sha256(simulator) != sha256(Simulator(4, posts=120))


def test_lines_already_given_out_are_not_changed_by_what_happens_later() -> None:
    at_once = [json.dumps(line) for line in Simulator(2, posts=2000).events()]
    assert at_once == [json.dumps(line) for line in list(Simulator(2, posts=2000).events())]


def test_a_network_too_small_to_answer_each_other_is_refused() -> None:
    with pytest.raises(ValueError, match="authors"):
        Simulator(1, authors=AUTHORS_MIN - 1)
    assert len(run(1).truth.quality) == 800
    assert len(Simulator(1, authors=AUTHORS_MIN, posts=100).truth.quality) == 100
    assert list(Simulator(1, posts=0).events()) == []


# ---- the shape of X -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_ids_are_unique_rise_from_page_to_page_and_hold_their_time(seed: int) -> None:
    seen: dict[str, Line] = {}
    for _, line in run(seed).pages():
        fresh = [tweet["id"] for tweet in line["data"] if tweet["id"] not in seen]
        assert not fresh or len(fresh) == len(line["data"]), "a page is of new posts or of known ones"
        assert [int(name) for name in fresh] == sorted(map(int, fresh), reverse=True)
        assert not fresh or not seen or int(fresh[-1]) > max(map(int, seen))
        seen |= {tweet["id"]: tweet for tweet in line["data"]}
    assert seen.keys() == run(seed).truth.quality.keys()
    for name, tweet in seen.items():
        assert (int(name) >> 22) + SNOWFLAKE_EPOCH_MS - ms_of(tweet["created_at"]) in range(1000)


@pytest.mark.parametrize("seed", SEEDS)
def test_pages_have_the_fields_and_the_meta_of_a_v2_response(seed: int) -> None:
    for _, line in run(seed).pages():
        data = line["data"]
        ids = [int(tweet["id"]) for tweet in data]
        assert 1 <= len(data) <= PAGE_POSTS_MAX
        assert ids == sorted(set(ids), reverse=True)
        newest, oldest = str(ids[0]), str(ids[-1])
        assert line["meta"] == {"newest_id": newest, "oldest_id": oldest, "result_count": len(ids)}
        assert line.keys() <= {"data", "includes", "meta", "errors"}
        for tweet in data:
            assert tweet.keys() >= FIELDS
            assert tuple(tweet["public_metrics"]) == COUNTS
            assert all(isinstance(count, int) for count in tweet["public_metrics"].values())
            assert tweet["public_metrics"]["like_count"] <= tweet["public_metrics"]["impression_count"]
            assert kind(tweet) in ("", "replied_to", "quoted", "retweeted")
            assert ("in_reply_to_user_id" in tweet) == (kind(tweet) == "replied_to")
        for user in line["includes"]["users"]:
            assert re.fullmatch(r"[A-Za-z0-9_]{1,15}", user["username"])
            assert ms_of(user["created_at"]) < ms_of(data[-1]["created_at"])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_page_refers_to_is_expanded_or_listed_as_missing(seed: int) -> None:
    missing: Counter[str] = Counter()
    for _, line in run(seed).pages():
        includes = line["includes"]
        users = {user["id"]: user["username"] for user in includes["users"]}
        tweets = {tweet["id"] for tweet in includes.get("tweets", ())}
        media = {item["media_key"] for item in includes.get("media", ())}
        errors = {error["resource_id"]: error["resource_type"] for error in line.get("errors", ())}
        assert not errors.keys() & (users.keys() | tweets)
        for tweet in line["data"]:
            assert tweet["author_id"] in users
            assert media.issuperset(tweet.get("attachments", {}).get("media_keys", ()))
            for reference in tweet.get("referenced_tweets", ()):
                assert (reference["id"] in tweets) != (errors.get(reference["id"]) == "tweet")
                missing[reference["type"]] += reference["id"] in errors
            if target := tweet.get("in_reply_to_user_id"):
                assert (target in users) != (errors.get(target) == "user")
    assert missing["replied_to"], "some answers refer to what nobody can see"


@pytest.mark.parametrize("seed", SEEDS)
def test_entity_offsets_are_code_points_of_the_text_as_sent(seed: int) -> None:
    signs = {"hashtags": "#", "cashtags": "$", "mentions": "@", "urls": ""}
    found: Counter[str] = Counter()
    for _, tweet in run(seed).tweets():
        text, last_end = tweet["text"], 0
        assert escape(unescape(text), quote=False) == text
        spoken = text[tweet["entities"]["mentions"][0]["end"] :] if text.startswith("@") else text
        assert len(unescape(spoken)) <= 281
        entities = tweet.get("entities", {})
        for name, items in entities.items():
            for item in items:
                word = item.get("tag") or item.get("username") or item["url"]
                assert text[item["start"] : item["end"]] == signs[name] + word
                found[name] += 1
        for item in sorted((item for items in entities.values() for item in items), key=lambda item: item["start"]):
            assert item["start"] >= last_end
            last_end = item["end"]
    assert found.keys() == signs.keys()


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_never_fall_and_end_at_what_was_seen(seed: int) -> None:
    before: dict[str, Line] = {}
    first, last = run(seed).first_seen(), run(seed).last_seen()
    answers = Counter(t["referenced_tweets"][0]["id"] for t in first.values() if kind(t) == "replied_to")
    grown = 0
    for _, tweet in run(seed).tweets():
        now, old = tweet["public_metrics"], before.get(tweet["id"])
        if old:
            assert all(now[count] >= old[count] for count in COUNTS)
            grown += now["impression_count"] > old["impression_count"]
        before[tweet["id"]] = now
    assert grown > 800
    truth = run(seed).truth
    replaced = {name for chain in truth.edited for name in chain[:-1]}
    settled = before.keys() - replaced - set(truth.deleted)
    for name in settled:
        if truth.author[name] not in truth.erased_authors and kind(last[name]) != "retweeted":
            assert before[name]["reply_count"] == answers[name]


@pytest.mark.parametrize("seed", [*SEEDS, BIG])
def test_a_refresh_asks_for_living_posts_only_in_their_newest_version(seed: int) -> None:
    truth, seen, gone = run(seed).truth, Counter[str](), set[str]()
    replaced = {name for chain in truth.edited for name in chain[:-1]}
    for _, line in run(seed).timed:
        if "meta" not in line:
            (event,) = line["data"].values()
            if "tweet" in event:
                assert seen[event["tweet"]["id"]], "a deletion of a post never seen"
                assert truth.author[event["tweet"]["id"]] == event["tweet"]["author_id"]
                gone.add(event["tweet"]["id"])
            else:
                gone |= {name for name, author in truth.author.items() if author == event["user"]["id"] and seen[name]}
            continue
        for tweet in [*line["data"], *line["includes"].get("tweets", ())]:
            assert tweet["id"] not in gone
        for tweet in line["data"]:
            seen[tweet["id"]] += 1
    assert gone >= set(truth.deleted)
    assert len(truth.erased_authors) == 1
    assert all(seen[name] == 1 for name in replaced)
    gone |= replaced
    last = run(seed).last_seen()
    assert all(seen[name] == (1 if kind(last[name]) == "retweeted" else 4) for name in last if name not in gone)


@pytest.mark.parametrize("seed", [*SEEDS, BIG])
def test_an_edit_is_a_new_post_that_names_the_whole_chain(seed: int) -> None:
    first, truth = run(seed).first_seen(), run(seed).truth
    chains = {name: chain for chain in truth.edited for name in chain}
    assert truth.edited
    for name, tweet in first.items():
        history = tweet["edit_history_tweet_ids"]
        assert name in history
        assert tuple(history) == chains.get(name, (name,))[: len(history)]
        if kind(tweet) in ("replied_to", "retweeted"):
            assert history == [name]
    for chain in truth.edited:
        times = [ms_of(first[name]["created_at"]) for name in chain]
        assert times == sorted(times)
        assert times[-1] - times[0] <= 31 * 60_000
        assert len({first[name]["text"] for name in chain[:2]}) == 2
        assert len({first[name]["author_id"] for name in chain}) == 1
        assert 2 <= len(chain) <= 6
        assert not set(chain) & set(truth.deleted) or set(chain) <= set(truth.deleted)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_repost_carries_the_first_140_characters_under_the_authors_name(seed: int) -> None:
    first, truth = run(seed).first_seen(), run(seed).truth
    names = {user["id"]: user["username"] for _, line in run(seed).pages() for user in line["includes"]["users"]}
    cut = 0
    reposts = [tweet for tweet in first.values() if kind(tweet) == "retweeted"]
    assert {tweet["id"] for tweet in reposts} == {name for group in truth.reposts.values() for name in group}
    for tweet in reposts:
        original = first[tweet["referenced_tweets"][0]["id"]]
        whole = f"RT @{names[original['author_id']]}: {unescape(original['text'])}"
        text = unescape(tweet["text"])
        assert text == (whole if len(whole) <= 140 else whole[:139] + "…")
        assert tweet["author_id"] != original["author_id"]
        assert tweet["conversation_id"] == tweet["id"]
        cut += text != whole
    assert 0 < cut < len(reposts)


@pytest.mark.parametrize("seed", SEEDS)
def test_lines_come_in_time_order_and_never_before_what_they_tell(seed: int) -> None:
    timed = run(seed).timed
    assert all(a[0] <= b[0] for a, b in pairwise(timed))
    for at, line in timed:
        if "meta" in line:
            assert ms_of(line["data"][0]["created_at"]) <= at
        else:
            (event,) = line["data"].values()
            assert at - ms_of(event["event_at"]) in range(1000)


# ---- the truth ------------------------------------------------------------------------------------------------------


def engagement(seed: int) -> tuple[list[float], list[float]]:
    """Quality and engagement rate of every post that people could react to, as counted last."""
    quality, rates = [], []
    for name, tweet in run(seed).last_seen().items():
        counts = tweet["public_metrics"]
        if kind(tweet) != "retweeted" and counts["impression_count"] >= 20:
            total = sum(counts[name] for name in COUNTS[:4])
            quality.append(run(seed).truth.quality[name])
            rates.append(total / counts["impression_count"])
    return quality, rates


@pytest.mark.parametrize("seed", SEEDS)
def test_better_posts_are_liked_more_and_shuffled_qualities_fail_the_same_check(seed: int) -> None:
    quality, rates = engagement(seed)
    assert len(quality) > 400
    assert spearman(quality, rates) > CORRELATION_MIN
    random.Random(seed).shuffle(quality)
    assert abs(spearman(quality, rates)) < 0.2


@pytest.mark.parametrize("seed", SEEDS)
def test_many_posts_have_answers_of_clearly_different_quality(seed: int) -> None:
    truth, first = run(seed).truth, run(seed).first_seen()
    spread = [max(q) - min(q) for q in ([truth.quality[r] for r in group] for group in truth.siblings.values())]
    assert len(spread) >= 50
    assert sum(value > SIBLING_SPREAD_MIN for value in spread) > 0.7 * len(spread)
    assert all(2 <= len(group) <= 6 for group in truth.siblings.values())
    for parent, group in truth.siblings.items():
        for name in group:
            assert first[name]["referenced_tweets"] == [{"type": "replied_to", "id": parent}]
            assert first[name]["author_id"] != truth.author[parent]


def test_quality_can_be_read_off_the_words() -> None:
    truth, first = run(1).truth, run(1).first_seen()
    plain = [t for t in first.values() if t["lang"] == "en" and kind(t) != "retweeted" and t["id"] not in truth.attacks]
    loud = [t for t in plain if "!!!" in t["text"] or len(t.get("entities", {}).get("hashtags", ())) > 4]
    polite = [t for t in plain if re.search(r"Thanks for|Good question|same problem|worked for me", t["text"])]

    def mean(tweets: list[Line]) -> float:
        return sum(truth.quality[t["id"]] for t in tweets) / len(tweets)

    assert mean(loud) + 0.2 < mean(plain) < mean(polite) - 0.1


def test_people_answer_their_own_community_and_whoever_is_known() -> None:
    truth, first = run(BIG).truth, run(BIG).first_seen()
    same, received = 0, Counter[str]()
    pairs = [(t["author_id"], t["in_reply_to_user_id"]) for t in first.values() if kind(t) == "replied_to"]
    pairs = [(a, b) for a, b in pairs if b in truth.community and a != b]
    for actor, target in pairs:
        same += truth.community[actor] == truth.community[target]
        received[target] += 1
    assert 3 <= len(set(truth.community.values())) <= 5
    assert same / len(pairs) > 0.8
    posted = Counter(t["author_id"] for t in first.values() if kind(t) == "")
    ranked = sorted(truth.influence, key=lambda author: -truth.influence[author])

    def answers_a_post(authors: Sequence[str]) -> float:
        return sum(received[author] for author in authors) / sum(posted[author] for author in authors)

    assert answers_a_post(ranked[:10]) > 1.5 * answers_a_post(ranked[10:])


def test_odd_content_is_there_attacks_within_one_and_two_percent() -> None:
    big = run(BIG)
    first = big.first_seen()
    spoken = [tweet for tweet in first.values() if kind(tweet) != "retweeted"]
    attacks = set(big.truth.attacks)
    assert 0.01 < len(attacks) / len(spoken) < 0.02
    texts = [unescape(first[name]["text"]) for name in attacks]
    assert any("<|im_end|>" in text for text in texts)
    assert any("gnore previous instructions" in text for text in texts)
    assert not any("<|" in unescape(tweet["text"]) for tweet in spoken if tweet["id"] not in attacks)
    assert {tweet["lang"] for tweet in spoken} == {"en", "de", "es", "ar", "he", "und"}
    assert any("\u200d" in tweet["text"] for tweet in spoken), "an emoji of several code points"
    assert any("&amp;" in tweet["text"] for tweet in spoken)
    assert {item["type"] for _, line in big.pages() for item in line["includes"].get("media", ())} == {"photo", "video"}
    links = [url["expanded_url"] for tweet in spoken for url in tweet.get("entities", {}).get("urls", ())]
    assert len({link.split("/")[2] for link in links}) == 4, "three sites and X itself"
    up = {t["id"]: t["referenced_tweets"][0]["id"] for t in spoken if t.get("in_reply_to_user_id") == t["author_id"]}
    depth: dict[str, int] = {}
    for name in up:  # in time order, so whatever is answered was seen
        depth[name] = depth.get(up[name], 0) + 1
    assert max(depth.values()) >= 6, "a long thread"


# ---- raters ---------------------------------------------------------------------------------------------------------


def styles(question: str) -> list[str]:
    """Answers to a question as a small model gives them: good, padded, listed, off the point, cut off, empty."""
    topic = " ".join(re.findall(r"[a-z]+", question.lower())[-3:])
    good = f"Start small with {topic}: set out what you need, work slowly for ten minutes, and check before going on."
    return [
        good,
        f"Sure, I'm happy to help! {good} Let me know if you need anything else.",
        f"Here are some tips for {topic}:\n1. Plan ahead.\n2. Take your time.\n3. Ask a friend.\n4. Try again.",
        "Paris is the capital of France and has many famous museums along a wide river, which people visit all year.",
        f"To begin with {topic} you should first think about what you want and then",
        f"You should think about {topic} because " + " and ".join(f"reason {i} matters a lot" for i in range(20)),
        "It depends.",
        question,
    ]


def verdict(judgements: Sequence[Judgement]) -> int:
    """Sum the choices: how many more preferred subject a to subject b."""
    return sum(1 if j.subject.endswith("/a") else -1 for j in judgements if j.kind == "choice")


def test_questions_are_distinct_and_there_are_at_least_two_hundred() -> None:
    questions = Raters(1).questions(200)
    assert len(set(questions)) == 200
    assert questions == Raters(1).questions(200) != Raters(2).questions(200)
    assert all(question[0].isupper() and question[-1] in "?." for question in questions)
    with pytest.raises(ValueError, match="questions"):
        Raters(1).questions(10_000)


def test_a_judgement_depends_on_words_and_not_on_order_or_ids() -> None:
    raters = Raters(5)
    for number, question in enumerate(raters.questions(30)):
        answers = [(f"q{number}/{letter}", text) for letter, text in zip("abcd", styles(question), strict=False)]
        given = raters.judge(f"q{number}", question, answers)
        assert given == raters.judge(f"q{number}", question, answers[::-1])
        assert given == Raters(5).judge(f"q{number}", question, answers)
        assert len({j.id for j in given}) == len(given)
        renamed = raters.judge(f"q{number}", question, [(f"{subject}2", text) for subject, text in answers])
        assert [(j.kind, j.rater, j.value, j.subject + "2") for j in given] == [
            (j.kind, j.rater, j.value, j.subject) for j in renamed
        ]
        assert given != Raters(6).judge(f"q{number}", question, answers)


def test_most_raters_prefer_what_is_truly_better_and_some_do_not() -> None:
    raters = Raters(3)
    right = wrong = agree = disagree = 0
    first_wins: Counter[bool] = Counter()
    for number, question in enumerate(raters.questions(60)):
        for (i, a), (k, b) in combinations(enumerate(styles(question)), 2):
            name = f"q{number}-{i}-{k}"
            judgements = raters.judge(name, question, [(f"{name}/a", a), (f"{name}/b", b)])
            better = raters.utility(question, a) - raters.utility(question, b)
            total = verdict(judgements)
            for j in judgements:
                if j.kind == "choice":
                    first_wins[j.subject.endswith("/a")] += 1
                    right_one = j.subject.endswith("/a") == (better > 0)
                    agree, disagree = agree + right_one, disagree + (not right_one)
            if better and total:
                right, wrong = right + (better * total > 0), wrong + (better * total < 0)
    assert right / (right + wrong) > 0.7
    assert 0.05 < disagree / (agree + disagree) < 0.4, "single raters are noisy"
    assert 0.1 < first_wins[True] / first_wins.total() < 0.9


def test_utility_prefers_brief_direct_answers_to_the_question() -> None:
    raters = Raters(1)
    for question in raters.questions(100):
        best, *others = (raters.utility(question, text) for text in styles(question))
        assert all(best > other for other in others)
        assert 0.0 <= min(others) <= best <= 1.0


def test_degenerate_text_is_reported_and_decent_text_is_not() -> None:
    raters, reasons = Raters(1), Counter[tuple[str, str]]()
    for number, question in enumerate(raters.questions(20)):
        texts = [("decent", styles(question)[0]), ("loop", "yes you can " * 20), ("token", "Fine.<|im_end|> You may.")]
        for j in raters.judge(f"q{number}", question, [(f"q{number}/{name}", text) for name, text in texts]):
            if j.kind == "report":
                reasons[j.subject.partition("/")[2], j.reason] += 1
    assert reasons.keys() == {("loop", "spam"), ("token", "unsafe")}
    assert raters.judge("q", "Why?", []) == []


def test_judgements_fit_the_feedback_topic_and_every_kind_occurs() -> None:
    raters, kinds, stars = Raters(2), Counter[str](), Counter[int]()
    for number, question in enumerate(raters.questions(40)):
        answers = [(f"q{number}/{i}", text) for i, text in enumerate([*styles(question)[:3], "spam " * 30])]
        for j in raters.judge(f"q{number}", question, answers):
            said = {"subject": j.subject, "rater": j.rater, "kind": j.kind, "value": j.value, "other": j.other}
            assert FeedbackGiven.model_validate({"feedback": j.id, "simulated": True, **said})
            kinds[j.kind] += 1
            stars[j.value] += j.kind == "stars"
            assert (j.other is not None) == (j.kind == "choice")
    assert kinds.keys() == {"choice", "stars", "thumb", "report"}
    assert all(stars[value] for value in range(1, 6))
