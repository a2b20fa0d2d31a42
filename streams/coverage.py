"""Coverage: files of posts -> for each format, the share of posts that get each field that applies to them.

`python -m streams.coverage FILE...` prints the table. A field applies where the payload holds what it is made of: no
source gives the number of views of every post, and none of the accounts that Jetstream tells of has followers there.
The posts go through the readers and through `metadata` as they would in a deployment, and nothing is sent or kept.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agents import metadata
from schemas.envelope import Record
from schemas.events import EngagementDescribed, PostDescribed
from schemas.facts import Event, Rights
from streams.formats import READERS, SOURCES, Format, detect
from streams.lines import Line, Value, parse, read_lines

RIGHTS = Rights(index=True, train=True, show=True, policy="coverage")
UNSPACED = frozenset(("ja", "zh", "th", "lo", "km", "my"))  # languages in which words have no length
NAMES = {"x2": "X v2", "x1": "X v1.1", "jetstream": "Bluesky", "mastodon": "Mastodon"}
COUNTED = ("chars", "words", "sentences", "emoji", "hashtags", "mentions", "links", "cashtags", "caps_share",
           "distinct_share", "quality")  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One format: how many posts, and for each field to how many it applies and how many got it."""

    posts: Counter[str] = field(default_factory=Counter)  # read, refused
    applies: Counter[str] = field(default_factory=Counter)
    got: Counter[str] = field(default_factory=Counter)

    def share(self, name: str) -> float | None:
        """Give the share of a field, None where it applies to no post."""
        return self.got[name] / self.applies[name] if self.applies[name] else None


# A name; whether it applies to what was seen (beside what was made of it, or its author); whether it is there.
Row = tuple[str, Callable[[Any, Any], bool], Callable[[Any], bool]]


def _given(name: str) -> Callable[[Any], bool]:
    return lambda found: found is not None and getattr(found, name) is not None


POST: tuple[Row, ...] = (
    ("age when seen", lambda seen, _: True, _given("age_ms")),
    ("hour, weekday, season (UTC)", lambda seen, _: True, _given("utc")),
    (
        "hour, weekday, season (author's zone)",
        lambda seen, _: seen.author is not None and seen.author.utc_offset_s is not None,
        _given("local"),
    ),
    ("language", lambda seen, _: seen.words is not None, _given("lang")),
    *(
        (name, lambda seen, _: seen.words is not None, lambda found, name=name: _given(name)(found.features))
        for name in COUNTED
    ),
    (
        "long words (readability)",
        lambda seen, found: seen.words is not None and (found.lang or "").split("-")[0] not in UNSPACED,
        lambda found: found.features.long_words is not None,
    ),
    ("kinds of media", lambda seen, _: seen.media > 0, lambda found: bool(found.media_kinds)),
    *(
        (
            f"author: {name}",
            lambda seen, _, needs=needs: (
                seen.author is not None and all(getattr(seen.author, one) is not None for one in needs)
            ),
            lambda found, name=name: _given(name)(found.author),
        )
        for name, needs in {
            "age_days": ["created_ms"],
            "posts_a_day": ["created_ms", "posts"],
            "followers": ["followers"],
            "followers_ratio": ["followers", "following"],
            "listed": ["listed"],
            "verified": ["verified"],
            "bot": ["bot"],
        }.items()
    ),
)
ENGAGEMENT: tuple[Row, ...] = (
    ("counts: age", lambda seen, _: True, _given("age_ms")),
    *(
        (f"counts: {name}", lambda seen, _, name=name: getattr(seen, name) is not None, _given(name))
        for name in ("likes", "replies", "reposts", "quotes", "bookmarks", "views")
    ),
    ("rate a view", lambda seen, _: bool(seen.views), lambda found: found.rates.a_view is not None),
    (
        "rate a follower",
        lambda _, author: bool(author and author.followers),
        lambda found: found.rates.a_follower is not None,
    ),
    ("rate an hour", lambda seen, _: True, lambda found: found.rates.an_hour is not None),
)


def values(files: Iterable[str]) -> Iterator[Any]:
    """Give the JSON values of files; damaged ones are left out (ingest says what was wrong with them)."""
    for file in files:
        for item in read_lines(file):
            if isinstance(item, Value):
                yield item.value
            elif isinstance(item, Line):
                try:
                    yield parse(item.data)
                except ValueError:
                    continue


def coverage(given: Iterable[Any], seen_ms: int) -> dict[Format, Column]:
    """Read values of any mixture of formats as if all were seen at `seen_ms`."""
    columns: dict[Format, Column] = {}
    state = metadata.State()
    for value in given:
        form = detect(value)
        if form is None:
            continue
        column = columns.setdefault(form, Column())
        reading = READERS[form](value, SOURCES[form], lambda owner: RIGHTS)
        column.posts["read"] += reading.posts_in - reading.repeated
        column.posts["refused"] += sum(one.what == "post" for one in reading.refusals)
        for said in reading.said:
            for event in said.events:
                _measure(event, state, seen_ms, column)
    return columns


def _measure(event: Event, state: metadata.State, seen_ms: int, column: Column) -> None:
    outs, _ = metadata.step([Record("tweets", 0, 0, seen_ms, "", event)], state)
    for out in outs:  # nothing of an author who is hidden, nor of a post that was refused as future-dated
        if isinstance(out.event, PostDescribed):
            _tell(POST, event, out.event, out.event, column)
        elif isinstance(out.event, EngagementDescribed):
            _tell(ENGAGEMENT, event, state.authors.get(out.event.owner), out.event, column)


def _tell(rows: tuple[Row, ...], seen: Event, beside: Any, found: Event, column: Column) -> None:
    column.posts[type(found).__name__] += 1
    for name, applies, got in rows:
        if applies(seen, beside):
            column.applies[name] += 1
            column.got[name] += got(found)


def table(columns: dict[Format, Column]) -> str:
    """Write the shares as a table in Markdown: share of the posts that the field applies to, and their number."""
    forms = [form for form in NAMES if form in columns]
    lines = [
        "| field | " + " | ".join(NAMES[form] for form in forms) + " |",
        "|---|" + "---|" * len(forms),
        "| posts described | " + " | ".join(f"{columns[form].posts['PostDescribed']:,}" for form in forms) + " |",
    ]
    for name, _, _ in POST + ENGAGEMENT:
        cells = []
        for form in forms:
            share = columns[form].share(name)
            cells.append("–" if share is None else f"{100 * share:.1f} % of {columns[form].applies[name]:,}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("Name the files to look at: python -m streams.coverage FILE...")
    print(table(coverage(values(sys.argv[1:]), int(time.time() * 1000))))
