"""D5: the same records doubled, shuffled and days late; what the contract says does not depend on order does not.

Order-free: how often a post was liked, which posts and acts are gone, which acts stand, and of a reward the judged part
and the counts that a source gives. Elsewhere the log's order wins, and reading that log again gives the same (verify).
"""

import json
import random
from collections import Counter
from typing import Any

from schemas import posts as ps
from schemas import topics as t
from schemas.events import FeedbackGiven
from schemas.facts import Event, PostContent
from streams.fold import Sent
from streams.memory import Engine
from streams.records import outside, tick
from streams.topology import Tuning, stages
from streams.verify import verify
from tests.feeds import RIGHTS, ZERO, worded
from tests.ingest_ends import MemoryKeys
from tests.proof import SEED, Say, size

TUNING = Tuning(ages_ms=(10_000, 50_000))
T0_MS = 1_700_000_000_000


def social(seed: int, posts: int, keys: Any, width: int) -> list[Sent]:
    """Posts, single reactions and their undoing, deletions, judgements; each rater judges a subject once."""
    rng, made, at = random.Random(seed), [], T0_MS
    roots: list[str] = []

    def say(event: Event, source: str = "/sources/bluesky") -> None:
        nonlocal at
        at += 1
        made.append(outside(event, source, at, width, keys))

    for index in range(posts):
        source = rng.choice(("bluesky", "x"))  # the first gives single reactions and no counts
        post, owner = f"{source}:{seed}-{index}", f"b:@{rng.randrange(30)}"
        parent = rng.choice(roots) if roots and rng.random() < 0.6 else None
        if parent is None:
            roots.append(post)
        content = PostContent(text=f"some words of {post}")
        values: dict[str, Any] = {"post": post, "owner": owner, "source": source, "rights": RIGHTS}
        say(worded(ps.PostObserved(**values, parent=parent, raw_sha256=ZERO, claimed_ms=at, content=content)))
        if source == "x":
            counts = {"likes": rng.randrange(60), "views": 1_000}
            say(ps.EngagementObserved(post=post, owner=owner, source="x", parent=parent, rights=RIGHTS, **counts))
        for number in range(rng.randrange(4)):
            act, who = f"a:{post}-{number}", f"b:@{rng.randrange(30)}"
            target = post if rng.random() < 0.7 else rng.choice(roots)
            say(ps.ReactionObserved(act=act, owner=who, source="bluesky", kind="like", post=target, rights=RIGHTS))
            if rng.random() < 0.2:
                say(ps.ReactionRetracted(act=act, owner=who, source="bluesky"))
        if rng.random() < 0.05:
            say(ps.PostDeleted(post=post, owner=owner, source="bluesky"))
        for rater in range(rng.randrange(3)):
            given = {"feedback": f"f:{post}-{rater}", "subject": f"{parent or post}/{post}", "rater": f"r:{rater}"}
            say(FeedbackGiven(**given, kind="thumb", value=rng.choice((-1, 1))), "/people")
    return made


def disordered(records: list[Sent], rng: random.Random) -> list[Sent]:
    """20 % twice, shuffled within 1,000, 5 % only at the end: days late. Log times stay those of the first writing."""
    doubled = [one for one in records for _ in range(1 + (rng.random() < 0.2))]
    late = [one for one in doubled if rng.random() < 0.05]
    kept, gone = [], Counter(map(id, late))
    for one in doubled:
        if gone[id(one)] > 0:
            gone[id(one)] -= 1
        else:
            kept.append(one)
    for start in range(0, len(kept), 1000):
        window = kept[start : start + 1000]
        rng.shuffle(window)
        kept[start : start + 1000] = window
    rng.shuffle(late)
    return kept + late


def lived(records: list[Sent], keys: Any) -> Engine:
    """Read a log in memory, then let everything come of age."""
    engine = Engine(stages(TUNING), keys, 2)
    engine.append(records)
    engine.run()
    for after_ms in (200_000, 400_000, 600_000):
        engine.append([tick(t.SIGNALS, part, T0_MS + after_ms) for part in range(2)])
        engine.run()
    return engine


def whatever_the_order(engine: Engine) -> dict[str, Any]:
    """Give what the contract says does not depend on the order in which records came in."""
    found: dict[str, Any] = {"reactions": {}, "gone": set(), "undone": set(), "acts": set(), "rewards": {}}
    for (stage, _), fold in engine.folds.items():
        state = fold.memory.state
        if stage == "reactions":
            found["reactions"] |= {n: (c.prompt, c.like, c.reply, c.repost, c.quote) for n, c in state.posts.items()}
        if stage == "metadata":
            found["gone"] |= set(state.deleted)
            found["undone"] |= set(state.retracted)
    for kind, name in (("InteractionObserved", "acts"), ("RewardClosed", "rewards")):
        for raw in (raw for (topic, _), raws in engine.log.items() for raw in raws if topic in HOMES):
            if dict(raw.headers)["ce_type"].decode() == f"xinfluencer.{kind}.v1":
                tree = json.loads(raw.value or b"{}")
                if name == "acts":
                    found["acts"].add((tree["kind"], tree["actor"], tree["post"]))
                else:
                    # The log's order wins for the author's rhythm (temporal), and for which of several running counts
                    # of single reactions is the newest at a closing age.
                    parts = tree["components"]
                    counted = parts.get("engagement") if "/x:" in tree["subject"] else None
                    judged = (parts.get("human"), tree["penalty"], tree["judgements"])
                    found["rewards"][tree["subject"], tree["age_ms"]] = (counted, *judged)
    # Of a post that was deleted nobody asks how it was liked: deleted before it came, it was never placed.
    found["reactions"] = {post: one for post, one in found["reactions"].items() if post not in found["gone"]}
    found["acts"] = {act for act in found["acts"] if act[2] not in found["gone"] | found["undone"]}
    return found


HOMES = ("interactions", "rewards")


def test_disorder_changes_nothing_that_the_contract_says_does_not_depend_on_it(proof: Say) -> None:
    """D5: counts of reactions, what is gone or undone, acts, the judged and counted parts of rewards."""
    seeds = size("disorder")
    proof("D5", "20 % doubled, shuffled within 1,000, 5 % days late: order-free states equal the ordered run", seeds,
          "seeds")  # fmt: skip
    for seed in range(SEED, SEED + seeds):
        keys = MemoryKeys()
        records = social(seed, 250, keys, 2)
        ordered, other = lived(records, keys), lived(disordered(records, random.Random(seed)), keys)
        left, right = whatever_the_order(ordered), whatever_the_order(other)
        for name in left:
            assert left[name] == right[name], (f"XINFLUENCER_PROOF_SEED={seed}", name, _differ(left[name], right[name]))
        assert verify(other.log, other.table, 2, keys).faults == []
        assert len(left["rewards"]) > 100
        assert len(left["reactions"]) > 60


def _differ(left: Any, right: Any) -> Any:
    both = (left.items(), right.items()) if isinstance(left, dict) else (left, right)
    return sorted(set(both[0]) ^ set(both[1]), key=str)[:6]


def test_control_a_count_that_is_not_deduplicated_depends_on_disorder() -> None:
    """The negative control: without the ids of acts the comparison above is red."""
    keys = MemoryKeys()
    records = social(SEED, 100, keys, 2)
    wrong = [
        outside(one.event.model_copy(update={"act": f"{one.event.act}-{index}"}), "/s", one.time_ms, 2, keys)
        if isinstance(one.event, ps.ReactionObserved) else one
        for index, one in enumerate(disordered(records, random.Random(SEED)))
    ]  # fmt: skip
    left, right = whatever_the_order(lived(records, keys)), whatever_the_order(lived(wrong, keys))
    assert left["reactions"] != right["reactions"]
