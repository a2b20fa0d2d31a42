"""Seal: words + the key of their post -> a token that is noise once that key, or its owner's, is destroyed.

AES-256-GCM (NIST SP 800-38D) with the event's type and id as associated data, so that a token cannot be moved to
another event. The nonce is made of the words themselves (HMAC-SHA256 under a second key, first 96 bits, as SIV modes
do): sealing again gives the same bytes, so a retry is the same record, and equal nonces only ever mean equal words.

A post's key is made of its owner's key and of its leaf in the owner's tree (schemas/puncture.py); all revisions of a
post share it, an answer has one of its own. Under the owner's key alone are refused records, which belong to no post,
and what was sealed before posts had keys: it still opens, is opened for nobody once its post is deleted, and its bytes
become noise only with their owner's key.
"""

import base64
import hashlib
import hmac
from functools import lru_cache
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from schemas.envelope import Refused, parse
from schemas.events import AnswerGiven, RecordRefused
from schemas.facts import SEALED_CHARS_MAX, AnswerContent, Event, Fact, PostContent, RefusedContent
from schemas.posts import PostEdited, PostObserved

KEY_BYTES = 64  # the first half encrypts, the second half makes nonces
CONTENT: dict[type[Event], type[Fact]] = {
    PostObserved: PostContent,
    PostEdited: PostContent,
    AnswerGiven: AnswerContent,
    RecordRefused: RefusedContent,
}
"""Which events carry words, and as what. Each also has an `owner`."""


class Keys(Protocol):
    """Where keys live. A key service at scale, one SQLite file on one machine (streams/vault.py)."""

    def get(self, owner: str) -> bytes | None:
        """Give the owner's key (KEY_BYTES), or None if there is none or it was destroyed."""

    def make(self, owner: str) -> bytes | None:
        """Give the owner's key, made now if need be; None if it was destroyed: it is never made again."""

    def leaf(self, owner: str, name: str) -> bytes | None:
        """Give the secret of one name among its owner's (`name_of`); None if it, or the owner's key, was destroyed."""


class Unpunctured:
    """The leaves of keys that know nothing of single posts (in memory, for tests): none is ever destroyed."""

    def leaf(self, owner: str, name: str) -> bytes | None:
        """Give a leaf."""
        return hashlib.blake2b(f"{owner}/{name}".encode(), digest_size=16).digest()


def post_name(post: str) -> str:
    """Give the name under which a post's key stands among its owner's, for whoever destroys it."""
    return f"post/{post}"


def name_of(event: Event) -> str | None:
    """Give the name of the key that an event's words are sealed with; None: its owner's."""
    if isinstance(event, PostObserved):  # and PostEdited
        return post_name(event.post)
    return f"answer/{event.prompt}" if isinstance(event, AnswerGiven) else None


@lru_cache(maxsize=1024)
def _cipher(key: bytes) -> AESGCM:
    return AESGCM(key[:32])


def seal_bytes(key: bytes, plain: bytes, aad: bytes) -> str:
    """Seal bytes to a `v1.` token."""
    nonce = hmac.digest(key[32:], len(aad).to_bytes(4, "big") + aad + plain, "sha256")[:12]
    return "v1." + base64.urlsafe_b64encode(nonce + _cipher(key).encrypt(nonce, plain, aad)).decode().rstrip("=")


def open_bytes(key: bytes, token: str, aad: bytes) -> bytes:
    """Open a token, or raise Refused("seal-broken") if it was altered, moved, or sealed with another key."""
    try:
        raw = base64.urlsafe_b64decode(token[3:] + "=" * (-len(token[3:]) % 4))
        return _cipher(key).decrypt(raw[:12], raw[12:], aad)
    except (InvalidTag, ValueError):
        raise Refused("seal-broken", "the sealed content was altered or belongs to another event") from None


def post_key(key: bytes, leaf: bytes) -> bytes:
    """Make the key (KEY_BYTES) of a post: nobody who lacks its owner's key or its leaf can."""
    return hashlib.blake2b(leaf, key=key, digest_size=KEY_BYTES, person=b"xi-post").digest()


def _aad(event: Event, event_id: str) -> bytes:
    return f"{type(event).__name__}/{event_id}".encode()


def seal(event: Event, event_id: str, keys: Keys) -> Event:
    """Give the event with its words sealed; Refused("owner-erased") or Refused("deleted") where their key is gone."""
    if type(event) not in CONTENT:
        return event
    content = event.content  # type: ignore[attr-defined]
    if content is None or isinstance(content, str):
        return event
    owner: str = event.owner  # type: ignore[attr-defined]
    key = keys.make(owner)
    if key is None:
        raise Refused("owner-erased", "the owner of this text was erased; nothing of theirs is taken in again")
    name = name_of(event)
    if name is not None:
        leaf = keys.leaf(owner, name)
        if leaf is None:
            raise Refused("deleted", "this was deleted before it came; its words are not taken in")
        key = post_key(key, leaf)
    plain = content.__pydantic_serializer__.to_json(content, exclude_none=True)
    token = seal_bytes(key, plain, _aad(event, event_id))
    if len(token) > SEALED_CHARS_MAX:
        raise Refused("too-large", f"{len(token)} sealed characters; at most {SEALED_CHARS_MAX}")
    return _with_content(event, token)


def unseal(event: Event, event_id: str, keys: Keys) -> Event:
    """Give the event with its words open, or with content None if they were deleted, or their owner erased."""
    kind = CONTENT.get(type(event))
    if kind is None:
        return event
    token = event.content  # type: ignore[attr-defined]
    if not isinstance(token, str):
        return event
    owner: str = event.owner  # type: ignore[attr-defined]
    key, name, aad = keys.get(owner), name_of(event), _aad(event, event_id)
    leaf = keys.leaf(owner, name) if name is not None else None
    if key is None or (name is not None and leaf is None):
        return _with_content(event, None)
    try:
        plain = open_bytes(post_key(key, leaf) if leaf is not None else key, token, aad)
    except Refused:
        if leaf is None:
            raise
        plain = open_bytes(key, token, aad)  # sealed before posts had keys
    return _with_content(event, parse(kind, plain)[0])


def _with_content(event: Event, content: Any) -> Event:
    return event.model_copy(update={"content": content})
