"""Describing: a post, or the counts of its reactions -> numbers about when, by whom, and in proportion to what.

Nothing is guessed: a time that cannot be, an account younger than its post, a proportion of nothing give None rather
than a wrong number. Everything that goes through the platform's own mathematics is rounded, so that two machines write
the same bytes.
"""

from functools import lru_cache
from math import cos, pi, sin

from schemas.events import EngagementDescribed, PostDescribed
from schemas.facts import AuthorFacts, Moment, Rates, Standing
from schemas.posts import EngagementObserved, PostObserved

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
OLDEST_MS = 1_072_915_200_000  # 2004-01-01: no network read here is older; what claims to be has no date
SKEW_MS_MAX = MINUTE_MS  # two clocks may differ: a post from a minute ahead is new, from further ahead has no age
AGE_MS_MIN = MINUTE_MS  # younger, and a rate an hour says nothing
AGE_DAYS_MIN = 1.0  # younger, and an account's posts a day say nothing
MINUTES_A_DAY = 1440
MONDAY = 3 * MINUTES_A_DAY  # 1970 began on a Thursday
MINUTES_A_YEAR = 525_949.2  # 365.2425 days; a year begins on 1 January to within a day
DIGITS = 6


def dated(claimed_ms: int | None, seen_ms: int) -> int | None:
    """Give a claimed time back, or None where it cannot be."""
    if claimed_ms is None or claimed_ms < OLDEST_MS or claimed_ms > seen_ms + SKEW_MS_MAX:
        return None
    return claimed_ms


def age_ms(claimed_ms: int | None, seen_ms: int) -> int | None:
    """Say how old a post was when it was seen."""
    at_ms = dated(claimed_ms, seen_ms)
    return max(0, seen_ms - at_ms) if at_ms is not None else None


@lru_cache(maxsize=4096)
def _moment(minute: int) -> Moment:
    def wave(turn: float) -> tuple[float, float]:
        return round(sin(2 * pi * turn), DIGITS), round(cos(2 * pi * turn), DIGITS)

    hour = wave(minute % MINUTES_A_DAY / MINUTES_A_DAY)
    weekday = wave((minute + MONDAY) % (7 * MINUTES_A_DAY) / (7 * MINUTES_A_DAY))
    season = wave(minute % MINUTES_A_YEAR / MINUTES_A_YEAR)
    return Moment(
        hour_sin=hour[0],
        hour_cos=hour[1],
        weekday_sin=weekday[0],
        weekday_cos=weekday[1],
        season_sin=season[0],
        season_cos=season[1],
    )


def moment(at_ms: int, offset_s: int = 0) -> Moment:
    """Place a time on the day, the week (from Monday) and the year, to the minute, in a zone `offset_s` east of UTC."""
    return _moment((at_ms + offset_s * 1000) // MINUTE_MS)


def standing(author: AuthorFacts, at_ms: int | None) -> Standing:
    """Say how an author stood at a time; the facts themselves are as the payload had them."""
    created = author.created_ms
    life = None
    if at_ms is not None and created is not None and OLDEST_MS <= created <= at_ms:
        life = (at_ms - created) / DAY_MS
    followers, following = author.followers, author.following
    known = (followers or 0) + (following or 0) if followers is not None and following is not None else 0
    return Standing(
        age_days=round(life, 3) if life is not None else None,
        followers=followers,
        followers_ratio=round(followers / known, DIGITS) if followers is not None and known else None,
        posts_a_day=round(author.posts / life, DIGITS)
        if author.posts is not None and life is not None and life >= AGE_DAYS_MIN
        else None,
        listed=author.listed,
        verified=author.verified,
        bot=author.bot,
    )


def post_described(post: PostObserved, seen_ms: int) -> PostDescribed:
    """Describe a post as it was seen; a repost has no words and so no features."""
    at_ms = dated(post.claimed_ms, seen_ms)
    features = post.words.features if post.words else None
    author = post.author
    zone = author.utc_offset_s if author else None
    return PostDescribed(
        post=post.post,
        owner=post.owner,
        source=post.source,
        kind="repost" if post.reposted is not None else "reply" if post.parent is not None else "root",
        quote=post.quoted is not None,
        lang=post.lang or (features.lang if features else None),
        age_ms=age_ms(post.claimed_ms, seen_ms),
        features=features,
        media_kinds=post.media_kinds,
        utc=moment(at_ms) if at_ms is not None else None,
        local=moment(at_ms, zone) if at_ms is not None and zone is not None else None,
        author=standing(author, at_ms if post.claimed_ms is not None else seen_ms) if author else None,
        rights=post.rights,
    )


def engagement_described(seen: EngagementObserved, followers: int | None, seen_ms: int) -> EngagementDescribed:
    """Put counts in proportion: to the views, to the author's followers as last seen, to the hours they had."""
    age = age_ms(seen.claimed_ms, seen_ms)
    given = [one for one in (seen.likes, seen.replies, seen.reposts, seen.quotes, seen.bookmarks) if one is not None]
    acts = sum(given)
    rates = Rates()
    if given:
        rates = Rates(
            a_view=round(acts / seen.views, DIGITS) if seen.views else None,
            a_follower=round(acts / followers, DIGITS) if followers else None,
            an_hour=round(acts * HOUR_MS / age, DIGITS) if age is not None and age >= AGE_MS_MIN else None,
        )
    return EngagementDescribed(
        post=seen.post,
        owner=seen.owner,
        source=seen.source,
        age_ms=age,
        likes=seen.likes,
        replies=seen.replies,
        reposts=seen.reposts,
        quotes=seen.quotes,
        bookmarks=seen.bookmarks,
        views=seen.views,
        rates=rates,
    )
