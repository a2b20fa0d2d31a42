"""Feeds: a seed -> records as sources and people write them, for tests that attack the log."""

import random
from collections.abc import Iterator

from agents.content import words_of_answer, words_of_post
from schemas import events as e
from schemas import facts
from schemas import posts as ps
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
        said: list[tuple[facts.Event, str]] = [(_post(post, owner, parent, now, rng), "/sources/x")]
        if rng.random() < 0.7:
            said.append((_engagement(post, owner, parent, rng), "/sources/x"))
        if rng.random() < 0.02:
            said.append((ps.PostDeleted(post=post, owner=owner, source="x"), "/sources/x"))
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


def worded(event: facts.Event) -> facts.Event:
    """Give a post or an answer what the edge would have counted of its words."""
    if isinstance(event, ps.PostObserved) and isinstance(event.content, facts.PostContent):
        words = words_of_post(
            event.post, event.content, len(event.mentions), event.media, event.claimed_ms, lang=event.lang
        )
        return event.model_copy(update={"words": words})
    if isinstance(event, e.AnswerGiven) and isinstance(event.content, facts.AnswerContent):
        items = event.items[: len(event.content.texts)]
        texts = event.content.model_copy(update={"texts": event.content.texts[: len(items)]})
        prompt_hash, said = words_of_answer(event.prompt, items, texts)
        return event.model_copy(update={"prompt_hash": prompt_hash, "words": said})
    return event


def _post(post: str, owner: str, parent: str | None, now: int, rng: random.Random) -> ps.PostObserved:
    words = " ".join(
        rng.choice(("river", "stone", "light", "market", "train", "garden")) for _ in range(rng.randrange(3, 20))
    )
    content = facts.PostContent(text=f"{words} {post}")
    return ps.PostObserved(
        post=post,
        owner=owner,
        source="x",
        claimed_ms=now - rng.randrange(100_000),
        parent=parent,
        raw_sha256=ZERO,
        rights=RIGHTS,
        words=words_of_post(post, content, 0, 0, None),
        content=content,
    )


def _engagement(post: str, owner: str, parent: str | None, rng: random.Random) -> ps.EngagementObserved:
    return ps.EngagementObserved(
        post=post, owner=owner, source="x", parent=parent, likes=rng.randrange(60), views=1_000, rights=RIGHTS
    )
