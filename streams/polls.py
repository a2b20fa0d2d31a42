"""Polls: counts of a post that come once more -> the name that they are written under, or that they are known.

Counts are named by what they say, as everything from outside is. So counts that go back to what they were once (10
likes, 5,000 bought ones, 10 again) would have a name that the log has, and the peak would stay for ever. They are
another event, if two things hold: the newest counts that the log took of this post say something else, and the message
that they came in was never taken in. It is the message that tells the times apart: the same message, from a file taken
in again or a stream that repeats itself, says nothing new.

What is remembered lies in streams/written.py, noted when it is acknowledged: a crash names all in the same way again.
"""

from collections.abc import Callable

from schemas.ids import digest
from streams.written import Written


class Polls:
    """One intake's counts on their way to the log, over what the log is known to hold."""

    def __init__(self, written: Written) -> None:
        self._written = written
        self._names: set[str] = set()
        self._newest: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, post: str, content: str, message: Callable[[], str]) -> str | None:
        """Name counts that say `content` (its id) and came in a message (its hash); None: a repetition."""
        sight = digest(content, message())
        name: str | None = content
        if self._knows(content):
            if self._knows(sight):
                return None
            newest = self._newest.get(post) or self._written.newest(post)
            # Of whom no newest is known (an older file, or long ago) it stays as it is: nothing is written twice.
            name = None if newest is None or newest == content else sight
        self._names |= {content, sight}
        if name is not None:
            self._newest[post] = content
        return name

    def taken(self) -> tuple[set[str], dict[str, str]]:
        """Give the names and the newest counts since the last time, for the log has them now."""
        names, newest = self._names, self._newest
        self._names, self._newest = set(), {}
        return names, newest

    def _knows(self, name: str) -> bool:
        return name in self._names or self._written.knows(name)
