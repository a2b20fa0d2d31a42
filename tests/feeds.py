"""Feeds: a seed -> records as sources and people write them, for tests that attack the log."""

import random
from collections.abc import Iterator

from schemas import events as e
from schemas import facts
from schemas.seal import Keys
from streams.fold import Sent
from streams.records import outside

RIGHTS = facts.Rights(index=True, train=True, show=True, policy="simulator")
ZERO = "0" * 64


def feed(seed: int, posts: int, width: int, keys: Keys, start_ms: int, doubled: float = 0.05) -> Iterator[Sent]:
    """Write posts, replies, reactions, deletions, judgements and some of each twice; about 2.3 records a post."""
    rng = random.Random(seed)
    known: list[tuple[str, str | None]] = []
    for index in range(posts):
        now = start_ms + index
        owner = f"x:@{min(rng.randrange(40), rng.randrange(40))}"
        parent = rng.choice(known)[0] if known and rng.random() < 0.6 else None
        post = f"x:{seed}-{index}"
        known.append((post, parent))
        subject = f"{parent or post}/{post}"
        said: list[tuple[e.Event, str]] = [(_post(post, owner, parent, now, rng), "/sources/x")]
        if rng.random() < 0.7:
            said.append((_engagement(post, owner, parent, rng), "/sources/x"))
        if rng.random() < 0.02:
            said.append((e.PostDeleted(post=post, owner=owner, source="x"), "/sources/x"))
        for rater in range(rng.randrange(3)):
            thumb = e.FeedbackGiven(
                feedback=f"f:{seed}-{index}-{rater}",
                subject=subject,
                rater=f"r:{rater}",
                kind="thumb",
                value=rng.choice((-1, 1)),
            )
            said.append((thumb, "/people"))
        for event, source in said:
            record = outside(event, source, now, width, keys)
            yield record
            if rng.random() < doubled:
                yield record


def _post(post: str, owner: str, parent: str | None, now: int, rng: random.Random) -> e.PostObserved:
    words = " ".join(
        rng.choice(("river", "stone", "light", "market", "train", "garden")) for _ in range(rng.randrange(3, 20))
    )
    return e.PostObserved(
        post=post,
        owner=owner,
        source="x",
        claimed_ms=now - rng.randrange(100_000),
        parent=parent,
        raw_sha256=ZERO,
        rights=RIGHTS,
        content=facts.PostContent(text=f"{words} {post}"),
    )


def _engagement(post: str, owner: str, parent: str | None, rng: random.Random) -> e.EngagementObserved:
    return e.EngagementObserved(
        post=post, owner=owner, source="x", parent=parent, likes=rng.randrange(60), views=1_000, rights=RIGHTS
    )
