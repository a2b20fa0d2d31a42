"""Seals: words open where they were made, for whoever holds their owner's key, and nowhere else."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import envelope, seal
from schemas import posts as ps
from schemas.envelope import Refused
from tests.wire import POST, QUICK, Keyring, written


def test_a_seal_opens_only_where_it_was_made() -> None:
    keys = Keyring()
    token = seal.seal(POST, "id-1", keys).content
    sealed = POST.model_copy(update={"content": token})
    assert seal.unseal(sealed, "id-1", keys) == POST
    edited = ps.PostEdited(**dict(sealed))
    moved = sealed.model_copy(update={"owner": "x:@bob"})
    for event, name in ((sealed, "id-2"), (edited, "id-1"), (moved, "id-1")):
        with pytest.raises(Refused, match="seal-broken"):
            seal.unseal(event, name, keys)


def test_a_seal_with_any_bit_flipped_is_refused() -> None:
    import base64

    key = Keyring().make("o")
    token = seal.seal_bytes(key, b"words", b"aad")
    raw = base64.urlsafe_b64decode(token[3:] + "=" * (-len(token[3:]) % 4))
    assert seal.open_bytes(key, token, b"aad") == b"words"
    for bit in range(len(raw) * 8):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused, match="seal-broken"):
            seal.open_bytes(key, "v1." + base64.urlsafe_b64encode(broken).decode().rstrip("="), b"aad")
    for short in ("v1.", "v1.A", "v1.AAAA", token[:-8]):
        with pytest.raises(Refused, match="seal-broken"):
            seal.open_bytes(key, short, b"aad")
    with pytest.raises(Refused, match="seal-broken"):
        seal.open_bytes(Keyring().make("other"), token, b"aad")


@settings(QUICK, max_examples=100)
@given(*[st.tuples(st.binary(max_size=3), st.binary(max_size=3))] * 2)
@example((b"a", b"bc"), (b"ab", b"c"))
@example((b"a", b"words"), (b"b", b"words"))
def test_equal_nonces_mean_equal_words_in_the_same_event(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> None:
    key = Keyring().make("o")
    first, second = (seal.seal_bytes(key, words, aad) for aad, words in (one, other))
    assert first == seal.seal_bytes(key, one[1], one[0])
    assert (first[:19] == second[:19]) == (one == other)  # "v1." and 16 characters: the 96 bits of the nonce


def test_words_of_an_erased_owner_are_none_and_nothing_of_theirs_is_taken_in() -> None:
    keys = Keyring()
    headers, value = written(POST, keys=keys)
    keys.gone.add("x:@ann")
    record = envelope.decode("tweets", 0, 0, 1, headers, value)
    assert seal.unseal(record.event, record.id, keys).content is None
    with pytest.raises(Refused, match="owner-erased"):
        seal.seal(POST, "id-2", keys)
