"""Wire: an event as a record, and keys in memory, for the tests of what a record is."""

import hashlib

from hypothesis import HealthCheck, settings

from schemas import envelope, facts, seal
from schemas import events as e
from schemas import posts as ps

RIGHTS = facts.Rights(index=True, train=True, show=True, policy="test")

VERSION = "a" * 64

POST = ps.PostObserved(
    post="p:1",
    owner="x:@ann",
    source="x",
    raw_sha256="0" * 64,
    rights=RIGHTS,
    content=facts.PostContent(text="the words of a post", hashtags=("words",)),
)

ANSWER = e.AnswerGiven(
    prompt="q:1",
    owner="u:1",
    items=("i:1",),
    release=0,
    version=VERSION,
    seed=1,
    rights=RIGHTS,
    prompt_hash="0" * 64,
    words=(),
    content=facts.AnswerContent(messages=(facts.Turn(role="user", content="why?"),), texts=("because",)),
)

QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


class Keyring(seal.Unpunctured):
    """Keys in memory; `gone` are destroyed."""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    def get(self, owner: str) -> bytes | None:
        return None if owner in self.gone else hashlib.sha512(owner.encode()).digest()

    make = get


def written(event: facts.Event, event_id: str = "id-1", keys: Keyring | None = None) -> tuple[envelope.Headers, bytes]:
    sealed = seal.seal(event, event_id, keys or Keyring())
    return envelope.headers(event, event_id, "/sources/test", 1_700_000_000_123), envelope.body(sealed)
