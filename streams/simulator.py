"""Simulator: a seed in, the pages and compliance events that X would send for a small social network out.

The trick is one queue of future moments (a post, an answer, a deletion, a poll) read in time order; every post is born
from it and may put its own answers into it. Each page is what a connector's poll would have got at that moment, with
counts as they stood then. What nobody on X can see (who belongs where, how good a post is) goes to `truth`.

The same seed gives the same bytes on Python 3.11 to 3.13: chance comes from `random()` and `getrandbits()` alone, and
numbers from + - * / and sqrt, which round alike everywhere; no float goes through `sum`, which changed in 3.12. Lines
share objects, so treat them as read-only. Memory grows with the truth, by about 400 bytes a post.
"""

import heapq
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from typing import Any

from streams import payloads as x_api
from streams.payloads import Author, Extra, Line, Post
from streams.phrases import ATTACKS, CASHTAGS, COMMUNITIES, EDIT_NOTES, FIRST_NAMES, LAST_NAMES, SITES, compose, pick

START_MS = 1_767_571_200_000  # Monday 2026-01-05T00:00:00Z
AUTHORS_MIN = 2 * len(COMMUNITIES)  # two in each community, so that there is someone to answer
PAGE_POSTS_MAX = 50
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
POLL_MS = 30 * MINUTE_MS
REFRESH_AGES_MS = (HOUR_MS, 6 * HOUR_MS, 30 * HOUR_MS)  # when a post's counts are asked for again
VERSIONS_MAX = 6  # X allows five edits, within half an hour
EDIT_DELAY_MS = 4 * MINUTE_MS  # the longest wait before each, so that five fit
REPLIES_MAX = 6  # by others, to one post
ROOTS_PER_AUTHOR_DAY = 1.4
ATTACK_SHARE = 0.015
DELETE_SHARE = 0.02
EDIT_SHARE = 0.05  # of posts that X lets people edit
REGRET_SHARE = 0.1  # of edits: deleted after all
ACTIVITY = (3, 2, 1, 1, 1, 2, 4, 7, 9, 10, 10, 10, 11, 11, 10, 10, 11, 12, 14, 16, 17, 16, 11, 6)  # by hour, UTC
ACTIVITY_MEAN = 8.5


@dataclass(frozen=True, slots=True)
class Truth:
    """What the network knows and X does not say, by X's ids; every version of an edited post is a post."""

    community: Mapping[str, str]  # author -> community
    influence: Mapping[str, float]  # author -> 0..1, one over the rank
    author: Mapping[str, str]  # post -> author
    quality: Mapping[str, float]  # post -> 0..1; a repost has its original's
    deleted: tuple[str, ...]  # in the order of the delete events
    erased_authors: tuple[str, ...]
    edited: tuple[tuple[str, ...], ...]  # chains of versions, oldest first
    siblings: Mapping[str, tuple[str, ...]]  # parent -> two or more replies, none by the parent's author
    reposts: Mapping[str, tuple[str, ...]]  # original -> reposts: they carry its words and get no delete event
    attacks: tuple[str, ...]


class Simulator:
    """A seeded network of `authors` that ends after `posts` (every version, answer and repost counts as one).

    Raises ValueError for fewer than AUTHORS_MIN authors or a negative number of posts.
    """

    def __init__(self, seed: int, authors: int = 60, posts: int = 300, start_ms: int = START_MS) -> None:
        if authors < AUTHORS_MIN or posts < 0:
            raise ValueError(f"at least {AUTHORS_MIN} authors and 0 posts, not {authors} and {posts}")
        self._settings = (seed, authors, posts, start_ms)
        self._truth: Truth | None = None

    def events(self) -> Iterator[Line]:
        """Yield the lines a connector would store, in time order; every call begins anew and yields the same."""
        return (line for _, line in self.timed())

    def timed(self) -> Iterator[tuple[int, Line]]:
        """Yield (moment of the poll or event in ms, line): X's own pages do not say when they were fetched."""
        world = _World(*self._settings)
        yield from world.run()
        self._truth = world.truth()

    @property
    def truth(self) -> Truth:
        """The hidden side; runs the network once unless `events` was already read to its end."""
        if self._truth is None:
            deque(self.timed(), maxlen=0)
        assert self._truth is not None
        return self._truth


class _World:
    """One run: the people, the queue of future moments, and what the connector has yet to store."""

    def __init__(self, seed: int, authors: int, posts: int, start_ms: int) -> None:
        rng = random.Random(seed)
        self.draw, self.bits = rng.random, rng.getrandbits
        self.now_ms, self.last_post_ms, self.posts_left, self.asked = start_ms, start_ms, posts, 0
        self.authors = [self._person(rank) for rank in range(authors)]
        groups = [self.authors, *(self.authors[i :: len(COMMUNITIES)] for i in range(len(COMMUNITIES)))]
        self.groups = [(group, list(accumulate(1 + self.bits(5) for _ in group))) for group in groups]
        self.root_gap_ms = DAY_MS / (authors * ROOTS_PER_AUTHOR_DAY) * ACTIVITY_MEAN
        self.erase_every = posts // (max(1, authors // 40) + 1) + 1
        self.queue: list[tuple[int, int, str, Post | None, Any]] = []
        self.fresh: list[Post] = []
        self.due: tuple[deque[Post], ...] = tuple(deque() for _ in REFRESH_AGES_MS)
        self.quality: dict[str, float] = {}
        self.author_of: dict[str, str] = {}
        self.deleted, self.erased = list[str](), list[str]()
        self.chains: dict[str, tuple[str, ...]] = {}
        self.replies_to, self.reposts_of = dict[str, list[str]](), dict[str, list[str]]()
        self.attacks: dict[str, None] = {}  # a set that keeps its order

    def _person(self, rank: int) -> Author:
        draw = self.draw
        made_ms = self.now_ms - int((0.2 + 8.0 * draw()) * 365 * DAY_MS)
        followers = int((90 + 40_000 / (rank + 1)) * (0.6 + 0.8 * draw()))
        name = f"{pick(draw, FIRST_NAMES)}_{pick(draw, LAST_NAMES)}{rank}"
        user = x_api.user_object(name, made_ms, followers, 40 + int(900 * draw()), 50 + int(9_000 * draw()), self.bits)
        odd = draw()
        lang = "de" if odd < 0.05 else "es" if odd < 0.1 else "en"
        return Author(user["id"], name, rank % len(COMMUNITIES), 1.0 / (rank + 1), followers, draw(), lang, user)

    def truth(self) -> Truth:
        return Truth(
            community={a.id: COMMUNITIES[a.community].name for a in self.authors},
            influence={a.id: a.influence for a in self.authors},
            author=self.author_of,
            quality=self.quality,
            deleted=tuple(self.deleted),
            erased_authors=tuple(self.erased),
            edited=tuple(self.chains.values()),
            siblings={parent: tuple(replies) for parent, replies in self.replies_to.items() if len(replies) > 1},
            reposts={original: tuple(copies) for original, copies in self.reposts_of.items()},
            attacks=tuple(self.attacks),
        )

    # ---- time -------------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[tuple[int, Line]]:
        """Yield (moment, line) until the counts of the last post have been asked for the last time."""
        self._later(0, "next")
        self._later(POLL_MS, "poll")
        until_erasure = self.erase_every
        while self.queue:
            at_ms, _, what, post, extra = heapq.heappop(self.queue)
            self.now_ms = max(at_ms, self.now_ms)
            if what == "poll":
                yield from self._flush()
                yield from self._refresh()
                if self.posts_left or any(self.due):
                    self._later(POLL_MS, "poll")
            elif what == "delete":
                if post is not None and not post.gone():
                    yield from self._flush()
                    for version in _newest(post).versions:
                        version.deleted = True
                        self.deleted.append(version.id)
                        yield self.now_ms, x_api.deleted(version, self.now_ms)
            elif self.posts_left and self._happen(what, post, extra):
                self.posts_left -= 1
                until_erasure -= 1
                if len(self.fresh) == PAGE_POSTS_MAX:
                    yield from self._flush()
                if until_erasure == 0:
                    until_erasure = self.erase_every
                    yield from self._flush()
                    yield from self._erase()

    def _later(self, delay_ms: float, what: str, post: Post | None = None, extra: Any = None) -> None:
        self.asked += 1  # breaks ties in the order of asking, so posts are never compared
        heapq.heappush(self.queue, (self.now_ms + int(delay_ms), self.asked, what, post, extra))

    def _soon(self, scale_ms: int) -> float:
        """Draw a wait with a heavy tail: half of them under twice the scale, the longest a hundred times it."""
        return scale_ms / (self.draw() + 0.01)

    def _flush(self) -> Iterator[tuple[int, Line]]:
        """Store what was said since the last page, before anything of it can disappear."""
        if self.fresh:
            posts, self.fresh = self.fresh[::-1], []
            yield self.now_ms, x_api.page(posts, self.now_ms)

    def _refresh(self) -> Iterator[tuple[int, Line]]:
        """Ask again for posts that reached an age; X answers with the newest version of those still there."""
        posts: list[Post] = []
        for stage, queue in enumerate(self.due):
            while queue and queue[0].ms <= self.now_ms - REFRESH_AGES_MS[stage]:
                post = queue.popleft()
                if not post.gone() and post.later is None:
                    posts.append(post)
                    if stage + 1 < len(self.due):
                        self.due[stage + 1].append(post)
        posts.sort(key=lambda post: -post.ms)
        for first in range(0, len(posts), PAGE_POSTS_MAX):
            yield self.now_ms, x_api.page(posts[first : first + PAGE_POSTS_MAX], self.now_ms)

    def _erase(self) -> Iterator[tuple[int, Line]]:
        """Let one account that has spoken disappear."""
        found = [author for _ in range(20) if (author := self._someone(0)) is not None and author.posts]
        if found:
            found[0].gone = True
            self.erased.append(found[0].id)
            yield self.now_ms, x_api.user_deleted(found[0], self.now_ms)

    # ---- people -----------------------------------------------------------------------------------------------------

    def _someone(self, group: int, other: Author | None = None) -> Author | None:
        """Find an active account that is not `other`: of everyone (0) or of a community (from 1)."""
        people, weights = self.groups[group]
        for _ in range(8):
            author = people[bisect_right(weights, int(self.draw() * weights[-1]))]
            if not author.gone and author is not other:
                return author
        return None

    def _happen(self, what: str, target: Post | None, extra: Any) -> bool:
        """Let one thing be said, if whoever says it and what it is about are still there; tell whether it was."""
        draw = self.draw
        if what == "next":
            self._later(self.root_gap_ms / ACTIVITY[self.now_ms // HOUR_MS % 24] * 2.0 * draw(), "next")
            if (author := self._someone(0)) is None:
                return False
            odd, quality = draw(), 0.45 * author.taste + 0.55 * draw()
            post = self._speak("reply" if odd < 0.02 else "root" if odd < 0.7 else "ask", author, None, quality)
            if odd > 0.985:
                self._later(MINUTE_MS, "thread", post, 3 + int(8 * draw()))
            return True
        if target is None or (target := _newest(target)).gone():
            return False
        if what == "edit":
            self._edit(target, extra)
            return True
        if what == "thread":
            post = self._speak("thread", target.author, target, target.quality)
            if extra > 1:
                self._later(MINUTE_MS * (0.5 + draw()), "thread", post, extra - 1)
            return True
        if (author := self._someone(target.author.community + 1 if draw() < 0.85 else 0, target.author)) is None:
            return False
        if what == "repost":
            self._repost(author, target)
        else:
            self._speak(what, author, target, extra)
        return True

    def _speak(self, kind: str, author: Author, parent: Post | None, quality: float) -> Post:
        """Write a post of this kind and put into the queue what it will lead to."""
        draw, group = self.draw, COMMUNITIES[(parent.author if parent else author).community]
        thing = parent.thing if parent else int(draw() * len(group.things))
        attack = kind != "thread" and draw() < ATTACK_SHARE
        if attack:
            quality *= 0.15
            body, tags, lang = pick(draw, ATTACKS), list[str](), "en"
        else:
            body, tags, lang = compose(draw, group, thing, quality, kind, author.lang)
        extras: list[Extra] = [("hashtags", tag) for tag in tags]
        odd = draw()
        if odd < 0.03:
            extras.append(("cashtags", pick(draw, CASHTAGS)))
        elif odd < 0.13:
            path = f"{group.name}/{group.things[thing].replace(' ', '-')}/{int(draw() * 1000)}"
            extras.append(("urls", f"https://{pick(draw, SITES)}/{path}"))
        elif odd > 0.94 and kind != "reply":
            extras.append(("photo" if odd < 0.985 else "video", ""))
        post = self._publish(kind, author, parent, body, extras, lang, quality, thing)
        if attack:
            self.attacks[post.id] = None
        self._lead(post, kind, (kind, body, extras, lang))
        return post

    def _lead(self, post: Post, kind: str, draft: tuple[str, str, list[Extra], str]) -> None:
        """Queue what a new post leads to: the better it is and the better known its author, the more."""
        draw, fame = self.draw, sqrt(post.author.influence)
        if kind != "thread":
            mean = (1.3 + 3.2 * fame) * (0.3 + 0.7 * post.quality)
            mean *= 1.6 if kind == "ask" else 0.22 if kind == "reply" else 1.0
            count = min(REPLIES_MAX, int(mean * (draw() + draw()) + draw()))
            for i in range(count):  # one from each band of quality, so that siblings differ; their order is chance
                self._later(self._soon(4 * MINUTE_MS), "reply", post, (i + draw()) / count)
            if draw() < 0.15 * (0.3 + fame):
                self._later(self._soon(10 * MINUTE_MS), "quote", post, 0.5 * draw() + 0.5 * post.quality)
        for _ in range(int((0.15 + 2.2 * fame) * post.quality * post.quality * 2.0 * draw() + draw())):
            self._later(self._soon(5 * MINUTE_MS), "repost", post)
        odd = draw()
        if odd < DELETE_SHARE:
            self._later(HOUR_MS * (0.1 + 20 * draw()), "delete", post)
        if odd > 1.0 - EDIT_SHARE and kind in ("root", "ask", "quote"):
            self._later(MINUTE_MS + EDIT_DELAY_MS * draw(), "edit", post, draft)

    def _edit(self, old: Post, draft: tuple[str, str, list[Extra], str]) -> None:
        kind, body, extras, lang = draft
        body = f"{body[:150]} {pick(self.draw, EDIT_NOTES)}"
        post = self._publish(kind, old.author, old.parent, body, extras, lang, old.quality, old.thing, old)
        if old.id in self.attacks:
            self.attacks[post.id] = None
        if self.draw() < REGRET_SHARE:  # X then deletes every version
            self._later(HOUR_MS * (0.1 + 2 * self.draw()), "delete", post)
        if len(post.versions) < VERSIONS_MAX and self.draw() < 0.2:
            self._later(MINUTE_MS + EDIT_DELAY_MS * self.draw(), "edit", post, draft)

    def _publish(
        self, kind: str, author: Author, parent: Post | None, body: str, extras: list[Extra], lang: str,
        quality: float, thing: int, old: Post | None = None,
    ) -> Post:  # fmt: skip
        post = self._born(author, quality, lang)
        post.thing, post.parent = thing, parent
        reply_to = x_api.refer(post, kind, self.bits)
        if old:
            self.chains[old.versions[0].id] = x_api.supersede(old, post)
        elif parent and kind == "quote":
            parent.quotes += 1
        elif parent:
            parent.replies += 1
            if kind == "reply":
                self.replies_to.setdefault(parent.id, []).append(post.id)
        x_api.write(post, reply_to, parent if kind == "quote" else None, body, extras, self.bits)
        post.reach = 40 + int(author.followers * (0.25 + 0.5 * self.draw()) * (0.3 if kind == "reply" else 1.0))
        post.like_rate = (0.004 + 0.07 * quality) * (0.4 + 1.2 * self.draw())
        self.due[0].append(post)
        return post

    def _repost(self, author: Author, original: Post) -> None:
        post = self._born(author, original.quality, original.base["lang"])
        post.parent, post.repost = original, True
        post.base["referenced_tweets"] = [{"type": "retweeted", "id": original.id}]
        x_api.write_repost(post, original)
        original.reposts += 1
        original.reach += author.followers // 4
        self.reposts_of.setdefault(original.id, []).append(post.id)
        if self.draw() < 0.6 * sqrt(author.influence):  # a cascade: whoever reposts has followers too
            self._later(self._soon(5 * MINUTE_MS), "repost", original)

    def _born(self, author: Author, quality: float, lang: str) -> Post:
        """Give a new post its id and its place in the books."""
        self.now_ms = self.last_post_ms = max(self.now_ms, self.last_post_ms + 1)  # so ids rise
        base = x_api.tweet_object(self.now_ms, author, lang, self.bits)
        post = Post(base["id"], self.now_ms, author, base, quality)
        post.versions = (post,)
        self.quality[post.id], self.author_of[post.id] = quality, author.id
        self.fresh.append(post)
        author.posts += 1
        return post


def _newest(post: Post) -> Post:
    while post.later is not None:
        post = post.later
    return post
