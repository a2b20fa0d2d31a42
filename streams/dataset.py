"""Dataset: closed batches -> rows of words, by going back to the records that they name.

The log holds ids and hashes; the words are unsealed here, held against their hashes, and never written back. A pair
whose words are gone (deleted, erased) is withheld and counted; the batch's root still verifies, because its leaves
never held words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agents.batching import pair_leaf
from agents.content import prompt_text
from models.rows import Row
from schemas import envelope, merkle, seal
from schemas.envelope import Refused
from schemas.events import AnswerGiven
from schemas.facts import AnswerContent, PostContent, Side, Where
from schemas.ids import text_hash
from schemas.learned import BatchClosed, PairFormed, PairWithdrawn
from schemas.posts import PostObserved
from streams.reader import Reader

HELD_BACK_ONE_IN = 5


class BatchBroken(Exception):
    """A batch does not verify: what the log holds is not what was closed."""


@dataclass
class Dataset:
    """The rows of some batches, in the order of their ids, and what was left out."""

    rows: list[Row] = field(default_factory=list)
    withheld: dict[str, int] = field(default_factory=dict)  # reason -> pairs
    pairs: dict[str, PairFormed] = field(default_factory=dict)

    def split(self) -> tuple[list[Row], list[Row]]:
        """Divide into (to train on, held back) by the pair's id, so a pair is on the same side in every version."""
        held = [row for row in self.rows if held_back(row.id)]
        return [row for row in self.rows if not held_back(row.id)], held


def held_back(pair: str) -> bool:
    """Say whether a pair is for evaluation only."""
    return int(pair[:8], 16) % HELD_BACK_ONE_IN == 0


async def closed_batches(reader: Reader, stop: int | None = None) -> list[tuple[int, BatchClosed]]:
    """List (offset, batch) of `batches`, duplicates left out."""
    found: dict[str, tuple[int, BatchClosed]] = {}
    async for raw in reader.records("batches", 0, 0, stop):
        record = envelope.decode("batches", 0, raw.offset, raw.timestamp, raw.headers, raw.value)
        if isinstance(record.event, BatchClosed):
            found.setdefault(record.id, (raw.offset, record.event))
    return sorted(found.values(), key=lambda one: one[0])


async def load(reader: Reader, batches: Sequence[BatchClosed], keys: seal.Keys) -> Dataset:
    """Rebuild the rows of closed batches. BatchBroken if a root, a leaf or a word's hash does not agree."""
    dataset = Dataset()
    withdrawn: set[str] = set()
    if not batches:
        return dataset
    wanted = {ref.offset: ref for batch in batches for ref in batch.pairs}
    async for raw in reader.records("preferences", 0, min(batch.first_offset for batch in batches)):
        record = envelope.decode("preferences", 0, raw.offset, raw.timestamp, raw.headers, raw.value)
        if isinstance(record.event, PairWithdrawn):
            withdrawn.add(record.event.pair)
        elif isinstance(record.event, PairFormed) and raw.offset in wanted:
            dataset.pairs[record.event.pair] = record.event
    for batch in batches:
        _check(batch, dataset.pairs)
    used = [pair for name, pair in sorted(dataset.pairs.items()) if name not in withdrawn]
    _count(dataset, "withdrawn", len(dataset.pairs) - len(used))
    places = [where for pair in used for where in (pair.prompt_where, pair.chosen.where, pair.rejected.where)]
    words = _Words(await reader.at(places), keys)
    for pair in used:
        row = words.row(pair)
        if row is None:
            _count(dataset, "words-gone", 1)
        else:
            dataset.rows.append(row)
    return dataset


def _count(dataset: Dataset, reason: str, number: int) -> None:
    if number:
        dataset.withheld[reason] = dataset.withheld.get(reason, 0) + number


def _check(batch: BatchClosed, pairs: dict[str, PairFormed]) -> None:
    leaves = [bytes.fromhex(ref.leaf) for ref in batch.pairs]
    if merkle.root(leaves).hex() != batch.root:
        raise BatchBroken(f"batch {batch.batch}: its leaves do not give its root {batch.root}")
    for ref in batch.pairs:
        if ref.pair not in pairs:
            raise BatchBroken(f"batch {batch.batch}: preferences/0/{ref.offset} does not hold pair {ref.pair}")
        if pair_leaf(pairs[ref.pair]).hex() != ref.leaf:
            raise BatchBroken(f"batch {batch.batch}: pair {ref.pair} is not the one that was closed")


class _Words:
    """The records that hold the words of some pairs, unsealed one at a time."""

    def __init__(self, records: dict[tuple[str, int, int], object], keys: seal.Keys) -> None:
        self._records = records
        self._keys = keys

    def row(self, pair: PairFormed) -> Row | None:
        prompt = self._prompt(pair.prompt, pair.prompt_where, pair.prompt_hash)
        chosen, rejected = self._side(pair.chosen), self._side(pair.rejected)
        if prompt is None or chosen is None or rejected is None:
            return None
        return Row(id=pair.pair, prompt=prompt, chosen=chosen, rejected=rejected, weight=pair.weight)

    def _content(self, where: Where) -> tuple[object, object]:
        raw = self._records[where.topic, where.partition, where.offset]
        record = envelope.decode(where.topic, where.partition, where.offset, 0, raw.headers, raw.value)  # type: ignore[attr-defined]
        try:
            event = seal.unseal(record.event, record.id, self._keys)
        except Refused:
            return record.event, None  # altered, or sealed under another key: nothing that can be trained on
        return event, event.content  # type: ignore[attr-defined]

    def _prompt(self, name: str, where: Where, expected: str) -> list[dict[str, str]] | None:
        event, content = self._content(where)
        if isinstance(content, PostContent) and isinstance(event, PostObserved):
            if name not in (event.post, event.named):  # replies to an edited post name the revision that they saw
                raise BatchBroken(f"{where.topic}/{where.partition}/{where.offset} is {event.post}, not {name}")
            _hold(text_hash(event.post, content.text), expected, where)
            return [{"role": "user", "content": content.text}]
        if isinstance(content, AnswerContent):
            _hold(text_hash(name, prompt_text(content.messages)), expected, where)
            return [{"role": turn.role, "content": turn.content} for turn in content.messages]
        return None

    def _side(self, side: Side) -> str | None:
        event, content = self._content(side.where)
        item = side.subject.partition("/")[2]
        if isinstance(content, PostContent):
            text = content.text
        elif isinstance(content, AnswerContent) and isinstance(event, AnswerGiven):
            text = content.texts[event.items.index(item)]
        else:
            return None
        _hold(text_hash(item, text), side.text_hash, side.where)
        return text


def _hold(found: str, expected: str, where: Where) -> None:
    if found != expected:
        raise BatchBroken(
            f"{where.topic}/{where.partition}/{where.offset}: its words have another hash than the pair says"
        )


def window(batches: Iterable[BatchClosed], pairs_max: int) -> list[BatchClosed]:
    """Take whole batches from the newest back until the window is full; always at least one."""
    taken: list[BatchClosed] = []
    pairs = 0
    for batch in reversed(list(batches)):
        if taken and pairs + len(batch.pairs) > pairs_max:
            break
        taken.append(batch)
        pairs += len(batch.pairs)
    return list(reversed(taken))
