"""Ids and trees: a name never stands for two things, and a root is that of the RFC."""

import hashlib
import random
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import events as e
from schemas import ids, merkle, topics
from schemas import posts as ps
from streams.records import content_id
from tests import strategies
from tests.wire import POST, QUICK


@QUICK
@given(strategies.model(ps.PostObserved), strategies.model(ps.PostObserved))
def test_two_events_have_one_id_exactly_when_they_say_the_same(one: Any, other: Any) -> None:
    assert (content_id(one) == content_id(other)) == (one == other)
    assert content_id(one) == content_id(one.model_copy())
    assert content_id(one) != content_id(one.model_copy(update={"post": one.post + "x"}))


def test_an_edit_and_an_observation_with_the_same_fields_have_different_ids() -> None:
    assert content_id(POST) != content_id(ps.PostEdited(**dict(POST)))


# ---- ids, hashes, seals ---------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=300)
@given(st.binary(max_size=40), st.integers(1, 64))
@example(b"", 1)
def test_a_key_lands_where_every_kafka_client_puts_it(data: bytes, partitions: int) -> None:
    assert ids.murmur2(data) == aiokafka_murmur2(data) & 0xFFFFFFFF
    expected = DefaultPartitioner()(data, list(range(partitions)), [])
    assert (ids.murmur2(data) & 0x7FFFFFFF) % partitions == expected
    text = data.hex()
    assert ids.partition_of(text, partitions) == DefaultPartitioner()(text.encode(), list(range(partitions)), [])


def test_another_hash_would_be_noticed() -> None:
    keys = [str(i).encode() for i in range(64)]
    other = [(int.from_bytes(hashlib.md5(key).digest()[:4], "big") & 0x7FFFFFFF) % 7 for key in keys]
    assert other != [DefaultPartitioner()(key, list(range(7)), []) for key in keys]


@settings(QUICK, max_examples=300)
@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
@example(["ab", "c"], ["a", "bc"])
@example(["a", ""], ["a"])
@example([], [""])
def test_parts_of_an_id_do_not_run_together(one: list[str], other: list[str]) -> None:
    assert (ids.digest(*one) == ids.digest(*other)) == (one == other)


@settings(QUICK, max_examples=300)
@given(
    *[st.tuples(st.sampled_from(["a", "ab"]), st.integers(0, 12), st.text("1|2", max_size=4), st.integers(0, 12))] * 2
)
@example(("a", 1, "2|3", 4), ("a", 1, "2", 34))
@example(("a", 1, "1|1", 1), ("a", 11, "1", 1))
def test_the_causes_of_an_output_do_not_run_together(one: Any, other: Any) -> None:
    assert (ids.output_id(*one) == ids.output_id(*other)) == (one == other)


@settings(QUICK, max_examples=200)
@given(*[st.tuples(st.text("ab", min_size=1, max_size=2), st.text("ab\0", max_size=3))] * 2)
@example(("a", "b"), ("ab", ""))
def test_a_text_and_its_owner_do_not_run_together(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (ids.text_hash(*one) == ids.text_hash(*other)) == (one == other)


@settings(QUICK, max_examples=100)
@given(strategies.model(e.PromptNoted), st.text(strategies.ID_CHARS, min_size=1, max_size=9))
def test_a_subject_gives_its_prompt_back(noted: Any, item: str) -> None:
    subject = ids.subject_id(noted.prompt, item)
    assert ids.prompt_of(subject) == noted.prompt
    given = e.FeedbackGiven(feedback="f", subject=subject, rater="r", kind="thumb")
    assert topics.FEEDBACK.key_of(given) == topics.SIGNALS.key_of(noted)


def naive_root(data: list[bytes]) -> bytes:
    """Hash as RFC 6962 section 2.1 words it."""
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = 1 << (len(data) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + naive_root(data[:k]) + naive_root(data[k:])).digest()


def naive_path(m: int, data: list[bytes]) -> list[bytes]:
    """List the audit path as RFC 6962 section 2.1.1 words it."""
    if len(data) <= 1:
        return []
    k = 1 << (len(data) - 1).bit_length() - 1
    if m < k:
        return [*naive_path(m, data[:k]), naive_root(data[k:])]
    return [*naive_path(m - k, data[k:]), naive_root(data[:k])]


def test_roots_and_proofs_are_those_of_the_rfc() -> None:
    for count in range(70):
        data = [bytes([i]) * (i % 5) for i in range(count)]
        leaves = [merkle.leaf(one) for one in data]
        assert merkle.root(leaves) == naive_root(data)
        for index in range(count):
            path = merkle.proof(leaves, index)
            assert [sibling for sibling, _ in path] == naive_path(index, data)
            assert merkle.verify(leaves[index], path, naive_root(data))
    with pytest.raises(IndexError):
        merkle.proof([], 0)


def test_a_root_is_that_of_certificate_transparency() -> None:
    texts = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [merkle.leaf(bytes.fromhex(text)) for text in texts]
    assert merkle.root(leaves[:3]).hex() == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert merkle.root(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_a_proof_of_anything_else_does_not_hold() -> None:
    data = [bytes([i]) for i in range(11)]
    leaves = [merkle.leaf(one) for one in data]
    whole = merkle.root(leaves)
    rng = random.Random(0)
    for index in range(11):
        path = merkle.proof(leaves, index)
        assert not merkle.verify(merkle.leaf(b"other"), path, whole)
        assert not merkle.verify(leaves[(index + 1) % 11], path, whole)
        at = rng.randrange(len(path))
        sibling, on_left = path[at]
        flipped = bytes([sibling[0] ^ 1]) + sibling[1:]
        assert not merkle.verify(leaves[index], [*path[:at], (flipped, on_left), *path[at + 1 :]], whole)
        assert not merkle.verify(leaves[index], [*path[:at], (sibling, not on_left), *path[at + 1 :]], whole)
        assert not merkle.verify(leaves[index], path[:-1], whole)
    assert merkle.root(leaves[:2] + leaves[:1]) != merkle.root(leaves[:2])
    # A node passed off as a leaf, which the prefixes are there to stop.
    assert merkle.root(leaves[:2]) != merkle.leaf(leaves[0] + leaves[1])


def test_a_tree_that_doubles_its_last_node_would_be_noticed() -> None:
    def doubling(level: list[bytes]) -> bytes:
        while len(level) > 1:
            level = level + level[-1:] * (len(level) % 2)
            level = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    data = [b"a", b"b", b"c"]
    assert doubling([merkle.leaf(one) for one in data[:2]]) == naive_root(data[:2])
    assert doubling([merkle.leaf(one) for one in data]) != naive_root(data)
