"""Feed: a seeded stream of posts with authors, replies, mentions and reactions, as records ready to send."""

import random
from collections.abc import Iterator

from agents.content import words_of_post
from schemas.facts import AuthorFacts, PostContent, Rights
from schemas.posts import EngagementObserved, PostObserved
from schemas.seal import Keys
from streams.fold import Sent
from streams.records import outside

RIGHTS = Rights(index=True, train=True, show=True, policy="bench")
WORDS = ("river", "stone", "light", "market", "train", "garden", "winter", "paper", "signal", "morning", "city", "idea")
REPLY_SHARE, MENTION_SHARE, ENGAGEMENT_SHARE = 0.35, 0.25, 0.25
SHAPES = 64  # different texts: making words is the edge's work and not what is measured


def feed(
    seed: int, posts: int, authors: int, width: int, keys: Keys, now_ms: int, even: bool = False
) -> Iterator[Sent]:
    """Give the records of `posts` posts by `authors` authors, a third of them replies, some with reaction counts.

    Few authors make most posts, as in life; with `even` each makes as many.
    """
    rng = random.Random(seed)
    texts = [PostContent(text=" ".join(rng.choice(WORDS) for _ in range(rng.randrange(4, 24)))) for _ in range(SHAPES)]
    recent: list[tuple[str, str]] = []
    for index in range(posts):
        post, who = f"x:{seed}{index:012}", index % authors if even else int(authors * rng.random() ** 2)
        owner = f"x:@{who}"
        parent = rng.choice(recent) if recent and rng.random() < REPLY_SHARE else None
        mentions = (f"x:@{int(authors * rng.random() ** 3)}",) if rng.random() < MENTION_SHARE else ()
        content = texts[index % SHAPES]
        observed = PostObserved(
            post=post,
            owner=owner,
            source="x",
            claimed_ms=now_ms - 1_000,
            lang="en",
            parent=parent[0] if parent else None,
            reply_to=parent[1] if parent else None,
            mentions=mentions,
            author=AuthorFacts(created_ms=now_ms - 10**10, followers=who, following=100, posts=1_000, verified=False),
            raw_sha256="0" * 64,
            rights=RIGHTS,
            words=words_of_post(post, content, len(mentions), 0, None),
            content=content,
        )
        yield outside(observed, "/sources/x", now_ms, width, keys)
        if rng.random() < ENGAGEMENT_SHARE:
            seen = EngagementObserved(
                post=post, owner=owner, source="x", parent=observed.parent, likes=index % 60, views=1_000, rights=RIGHTS
            )
            yield outside(seen, "/sources/x", now_ms, width, keys)
        recent = [*recent[-200:], (post, owner)]
