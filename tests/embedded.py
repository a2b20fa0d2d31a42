"""Embedded: posts, an embedder without a model, and what must be in its store."""

from typing import Any

from agents.content import words_of_post
from schemas import posts as ps
from schemas.facts import Event, PostContent, Rights
from schemas.ids import text_hash
from schemas.posts import PostDeleted, PostEdited, PostObserved

POINTS = (
    "after-owe",
    "after-delete",
    "after-encode",
    "after-merge",
    "after-checkpoint",
    "after-tidy",
    "after-receipt",
)

NOW = 1_700_000_000_000

SHOWN = Rights(index=True, train=True, show=True, policy="simulator")

SHY = SHOWN.model_copy(update={"show": False})

UNINDEXED = SHOWN.model_copy(update={"index": False})


def post(name: str, owner: str, text: str, revision: int = 1, rights: Rights = SHOWN, **more: Any) -> PostObserved:
    """Make a post, or an edit of it where the revision says so."""
    content = PostContent(text=text)
    kind = PostObserved if revision == 1 else PostEdited
    words = words_of_post(name, content, 0, 0, None)
    own = {"post": name, "owner": owner, "source": "x", "revision": revision, "raw_sha256": "0" * 64, "rights": rights}
    return kind(**{"claimed_ms": NOW, "words": words, "content": content, **own, **more})


def gone(name: str, owner: str) -> PostDeleted:
    return PostDeleted(post=name, owner=owner, source="x")


class Oracle:
    """What must stand in the store: one record at a time, no chunks, nothing forgotten, written for the tests alone."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, str, str]] = {}  # post -> revision, owner, hash of words
        self.deleted: set[str] = set()
        self.named: dict[str, str] = {}  # a revision's own name -> its post
        self.erased: set[str] = set()
        self.hidden: set[str] = set()
        self.asked: set[tuple[str, str | None]] = set()

    def take(self, event: Event) -> None:
        if isinstance(event, PostObserved):
            self._post(event)
        elif isinstance(event, PostDeleted):
            self._delete(event.post, self.named.get(event.post, event.post))
            self.asked.add((event.owner, event.post))
        elif isinstance(event, ps.AuthorShown):
            self.hidden.discard(event.owner)
        elif isinstance(event, ps.AuthorErased | ps.AuthorHidden | ps.IntentDeclared):
            if isinstance(event, ps.IntentDeclared) and event.index is not False:
                return
            if isinstance(event, ps.AuthorErased):
                self.erased.add(event.owner)
            if isinstance(event, ps.AuthorHidden):
                self.hidden.add(event.owner)
            self.rows = {name: row for name, row in self.rows.items() if row[1] != event.owner}
            self.asked.add((event.owner, None))

    def _delete(self, *names: str) -> None:
        for name in names:
            self.deleted.add(name)
            self.rows.pop(name, None)

    def _post(self, event: PostObserved) -> None:
        assert isinstance(event.content, PostContent)
        if event.named is not None:
            self.named[event.named] = event.post
            if event.named in self.deleted:
                self._delete(event.post)
        if event.reposted or event.post in self.deleted or event.owner in self.erased | self.hidden:
            return
        if not event.rights.index or not event.content.text.strip():
            self.rows.pop(event.post, None)
        elif event.revision >= self.rows.get(event.post, (0,))[0]:
            words = text_hash(event.post, event.content.text)
            self.rows[event.post] = (event.revision, event.owner, words)
