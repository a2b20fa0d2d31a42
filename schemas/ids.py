"""Ids: what caused an event -> its name, so that doing a thing twice names it once.

An output's id is a hash of (stage, schema version, input ids, ordinal); an observation's id is a hash of what was seen.
Neither holds a clock or an offset, so a replay, a retry and a second worker all arrive at the same id.
"""

import hashlib
from functools import lru_cache

ID_BYTES = 16  # 128 bits: a collision among 10^12 events has a chance below 10^-14.


def digest(*parts: str) -> str:
    """Hash the parts to 32 hex digits; a length goes before each, so ("ab", "c") and ("a", "bc") differ."""
    state = hashlib.blake2b(digest_size=ID_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def output_id(stage: str, version: int, input_id: str, ordinal: int) -> str:
    """Name the ordinal-th output that `stage` at schema `version` makes of the event `input_id`."""
    return hashlib.blake2b(f"{stage}|{version}|{input_id}|{ordinal}".encode(), digest_size=ID_BYTES).hexdigest()


def text_hash(owner_id: str, text: str) -> str:
    """Bind a text to the record that said it: sha256 over (record id, text), 64 hex digits.

    Two people who write the same words have different hashes. It stays in the log after the words are gone: it can
    confirm a guess at the text but never yields it (docs/decisions/0002-text-hash.md).
    """
    return hashlib.sha256(
        f"xinfluencer/text/1\0{owner_id}\0".encode() + text.encode("utf-8", "surrogatepass")
    ).hexdigest()


def subject_id(prompt: str, item: str) -> str:
    """Name what is judged: an item under its prompt. It begins with the prompt, so it finds the prompt's partition."""
    return f"{prompt}/{item}"


def prompt_of(subject: str) -> str:
    """Give back the prompt that a subject id begins with; a subject without a slash is its own prompt."""
    return subject.partition("/")[0]


def murmur2(data: bytes) -> int:
    """Hash as Kafka's default partitioner does (org.apache.kafka.common.utils.Utils.murmur2), as unsigned 32 bits."""
    length = len(data)
    m = 0x5BD1E995
    h = (0x9747B28C ^ length) & 0xFFFFFFFF
    whole = length & ~3
    for k in memoryview(data)[:whole].cast("I") if _LITTLE else _words(data, whole):
        k = (k * m) & 0xFFFFFFFF
        k = ((k ^ (k >> 24)) * m) & 0xFFFFFFFF
        h = ((h * m) & 0xFFFFFFFF) ^ k
    rest = length & 3
    if rest:
        h ^= int.from_bytes(data[whole:], "little")
        h = (h * m) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * m) & 0xFFFFFFFF
    return h ^ (h >> 15)


def _words(data: bytes, whole: int) -> list[int]:
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, whole, 4)]


_LITTLE = memoryview(b"\x01\0\0\0").cast("I")[0] == 1


@lru_cache(maxsize=65_536)
def partition_of(key: str, partitions: int) -> int:
    """Choose the partition that any Kafka client with the default partitioner chooses for this key."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
