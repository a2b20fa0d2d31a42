"""Acts: single acts between authors, one row each, so that taking one back leaves what would be there without it.

Rows of 41 bytes stand in a ring, the oldest overwritten first; authors are numbers in them, posts and acts 60-bit
hashes (two of a million share one with a chance of 4 in 10^7; then one of the two acts is not counted). A forgotten
author's number loses its name at once, which takes every edge from them and to them; the rows go when the ring is
compacted. Then authors are numbered in the order of their names, so that the same acts are always the same bytes.

Rows are found by open addressing over an array of their places: 10 MB a million acts where a dict takes 110.
"""

import hashlib
from array import array
from collections.abc import Callable
from struct import Struct

import msgspec
import numpy as np
import numpy.typing as npt

ACTS_MAX = 1_000_000  # 41 MB of rows
POSTS_MAX = 300_000  # posts whose author is known, to find whom an act was towards; the oldest eighth goes first
AUTHORS_MAX = 400_000  # names between two compactions; at this many the older half of all acts is forgotten
ACTS_A_POST_MAX = 64  # a post that mentions more is counted towards the first so many only
KINDS = ("gone", "like", "mention", "reply", "repost", "quote", "follow", "block")
GONE = 0
LASTING = (KINDS.index("follow"), KINDS.index("block"))  # stand until they are undone, and do not fade
NONE = 0xFFFFFFFF  # no author, no row
LEFT = NONE - 1  # a row was found here once: those behind it may still be
KEY_BITS = 60  # two of Python's digits
ROWS_A_PLACE_MAX = 0.5  # of the array of places, counting LEFT ones

_ROW = Struct("<QQqqIIB")  # without gaps: numpy leaves in a gap what lay in memory before
_KIND, _KEY = 40, Struct("<Q")
ROWS = np.dtype(
    [
        ("post", "<u8"),
        ("target_post", "<u8"),
        ("at_ms", "<i8"),
        ("arrived_ms", "<i8"),
        ("actor", "<u4"),
        ("target", "<u4"),
        ("kind", "u1"),
    ]
)
_POST = Struct("<QI")
POSTS = np.dtype([("post", "<u8"), ("author", "<u4")])
Numbers = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.void]
Expired = Callable[[Rows], npt.NDArray[np.bool_]]


def key(name: str) -> int:
    """Hash a post's name to KEY_BITS; never 0."""
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 4 or 1


class Acts(msgspec.Struct, dict=True):
    """The ring and its names. What `_index` makes follows from the fields."""

    rows: bytearray = msgspec.field(default_factory=bytearray)
    head: int = 0  # the oldest row, once the ring is full
    names: list[str] = msgspec.field(default_factory=list)  # by number; "" for a forgotten author
    posts: bytearray = msgspec.field(default_factory=bytearray)  # (a post's key, its author), the newest last

    def __post_init__(self) -> None:
        self._index()

    def author(self, name: str) -> int:
        """Give the author's number, a new one to a new author."""
        number = self.ids.get(name)
        if number is None:
            number = self.ids[name] = len(self.names)
            self.names.append(name)
        return number

    def note(self, post: str, owner: str) -> int:
        """Remember who posted; gives the author's number."""
        name, number = key(post), self.author(owner)
        if self.owners.get(name) != number:
            self.owners[name] = number
            self.posts += _POST.pack(name, number)
            if len(self.posts) > POSTS_MAX * _POST.size:
                del self.posts[: (POSTS_MAX // 8 + 1) * _POST.size]
                self._index_posts()
        return number

    def add(
        self, post: str, actor: str, kind: str, target: str | None, target_post: str | None, at_ms: int, arrived_ms: int
    ) -> bool:
        """Add one act; one towards oneself, towards nobody or seen before is not kept."""
        name, who, what = key(post), self.author(actor), KINDS.index(kind)
        towards = key(target_post) if target_post is not None else 0
        whom = self.author(target) if target is not None else self.owners.get(towards, NONE)
        if whom == who or (whom == NONE and not towards):
            return False
        before = self._rows_of(name)
        for slot in before:
            _, its_post, _, _, actor_, target_, its_kind = _ROW.unpack_from(self.rows, slot * _ROW.size)
            if not self.names[actor_]:  # forgotten, and back under another number
                self._remove(slot, name)
            elif actor_ != who or (its_kind == what and (its_post == towards if towards else target_ == whom)):
                return False
        if len(before) >= ACTS_A_POST_MAX:
            return False
        self._append(name, _ROW.pack(name, towards, at_ms, arrived_ms, who, whom, what))
        return True

    def take_back(self, post: str, actor: str) -> bool:
        """Remove every act of that name by that author; False if there is none."""
        name, who = key(post), self.ids.get(actor)
        mine = [slot for slot in self._rows_of(name) if _ROW.unpack_from(self.rows, slot * _ROW.size)[4] == who]
        for slot in mine:
            self._remove(slot, name)
        return bool(mine)

    def forget(self, author: str) -> bool:
        """Forget an author: nothing from them or to them counts any more; False if they are not known."""
        number = self.ids.pop(author, None)
        if number is None:
            return False
        self.names[number] = ""
        return True

    def table(self) -> Rows:
        """Copy the rows, oldest first."""
        cut = self.head * _ROW.size
        rows = self.rows[cut:]
        rows += self.rows[:cut]
        return np.frombuffer(rows, ROWS)

    def compact(self, expired: Expired | None, others: list[int], newest: float = 1.0) -> Numbers:
        """Drop what counts no more (and all but a share of the newest); gives old number -> new, NONE for gone.

        `expired` marks rows that are too old. Authors stay whom an act, a post or `others` name.
        """
        rows = self.table()
        self.rows, self.head = bytearray(), 0  # made anew below: two copies of 41 MB are enough
        posts = np.frombuffer(bytes(self.posts), POSTS)
        open_ = np.flatnonzero(rows["target"] == NONE)
        rows["target"][open_] = [self.owners.get(post, NONE) for post in rows["target_post"][open_].tolist()]
        named = np.append(np.array([bool(name) for name in self.names], bool), True)  # the last stands for NONE
        whom = np.minimum(rows["target"], len(self.names))
        keep = (rows["kind"] != GONE) & named[rows["actor"]] & named[whom] & (rows["actor"] != rows["target"])
        if expired is not None:
            keep &= ~expired(rows)
        rows, posts = rows[keep], posts[named[posts["author"]]]
        if newest < 1.0:
            rows = rows[len(rows) - int(len(rows) * newest) :]
            posts = posts[len(posts) - int(len(posts) * newest) :]
        used = np.zeros(len(self.names) + 1, bool)
        for some in (rows["actor"], np.minimum(rows["target"], len(self.names)), posts["author"], others):
            used[np.asarray(some, np.int64)] = True
        used &= named
        order = sorted(np.flatnonzero(used[:-1]).tolist(), key=self.names.__getitem__)
        numbers = np.full(len(self.names) + 1, NONE, np.uint32)
        numbers[order] = np.arange(len(order), dtype=np.uint32)
        rows["target"] = numbers[np.minimum(rows["target"], len(self.names))]
        rows["actor"] = numbers[rows["actor"]]
        self.rows = bytearray(np.ascontiguousarray(rows).view(np.uint8))
        posts["author"] = numbers[posts["author"]]
        self.posts = bytearray(posts.tobytes())
        self.names = [self.names[number] for number in order]
        self._index()
        return numbers[:-1]

    def _rows_of(self, name: int) -> list[int]:
        found = []
        at = name >> self.shift
        while (slot := self.places[at]) != NONE:
            if slot != LEFT and _KEY.unpack_from(self.rows, slot * _ROW.size)[0] == name:
                found.append(slot)
            at += 1
        return found

    def _append(self, name: int, row: bytes) -> None:
        slot = len(self.rows) // _ROW.size
        if slot < ACTS_MAX:
            self.rows += row
        else:
            slot, self.head = self.head, (self.head + 1) % ACTS_MAX
            oldest = slot * _ROW.size
            if self.rows[oldest + _KIND] != GONE:
                self._remove(slot, _KEY.unpack_from(self.rows, oldest)[0])
            self.rows[oldest : oldest + _ROW.size] = row
        at = name >> self.shift
        while self.places[at] != NONE:
            at += 1
        self.places[at] = slot
        self.taken += 1
        if self.taken > self.room or at == len(self.places) - 1:  # the last place stays free: it ends every search
            self._index_rows()

    def _remove(self, slot: int, name: int) -> None:
        self.rows[slot * _ROW.size + _KIND] = GONE
        at = name >> self.shift
        while self.places[at] != slot:
            at += 1
        self.places[at] = LEFT

    def _index(self) -> None:
        self.ids: dict[str, int] = {name: number for number, name in enumerate(self.names) if name}
        self._index_posts()
        self._index_rows()

    def _index_posts(self) -> None:
        posts = np.frombuffer(self.posts, POSTS)
        self.owners: dict[int, int] = dict(zip(posts["post"].tolist(), posts["author"].tolist(), strict=True))

    def _index_rows(self) -> None:
        """Lay the rows' numbers out anew, in the order of keys: a row stands at its home or right behind it."""
        rows = np.frombuffer(self.rows, ROWS)  # a view: while it lives the ring cannot grow
        live = np.flatnonzero(rows["kind"] != GONE)
        bits = max(10, int(len(live) / ROWS_A_PLACE_MAX * 1.5).bit_length())
        self.shift, self.taken, self.room = KEY_BITS - bits, len(live), int(2**bits * ROWS_A_PLACE_MAX)
        keys = rows["post"][live]
        order = np.argsort(keys, kind="stable")
        behind = np.arange(len(live))
        at = np.maximum.accumulate((keys[order] >> np.uint64(self.shift)).astype(np.int64) - behind) + behind
        places = np.full(max(2**bits, int(at[-1]) + 1 if len(at) else 0) + 256, NONE, np.uint32)
        places[at] = live[order]
        self.places = array("I", places.tobytes())
