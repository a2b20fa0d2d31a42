"""Dataset: closed batches -> rows of words, by going back to the records that they name.

The log holds ids and hashes; the words are unsealed here, held against their hashes, and never written back. A pair
whose words were taken back (deleted, erased, hidden, declared no) is withheld and counted by reason; the batch's root
still verifies, because its leaves never held words.

The rows are a function of the batches and of the log up to a cut, the ends of `preferences` and `tweets`. A deletion
that comes after the batch and before the cut counts; one that comes after the cut counts for the next version. Keys
have a life of their own, a little behind the log: words that are gone though nothing before the cut says why make a
new cut, which then says it. At an older cut, what was forgotten since is withheld too, as `words-gone`.
"""

from collections.abc import Iterable, Mapping, Sequence
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
from schemas.topics import PREFERENCES, TWEETS
from streams.reader import Reader
from streams.withheld import Withheld

HELD_BACK_ONE_IN = 5
Cut = Mapping[tuple[str, int], int]  # (topic, partition) -> the offset after the last record that counts


class BatchBroken(Exception):
    """A batch does not verify: what the log holds is not what was closed."""


@dataclass
class Dataset:
    """The rows of some batches, in the order of their ids, and what was left out."""

    rows: list[Row] = field(default_factory=list)
    withheld: dict[str, int] = field(default_factory=dict)  # reason -> pairs
    pairs: dict[str, PairFormed] = field(default_factory=dict)
    cut: Cut = field(default_factory=dict)

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


async def load(
    reader: Reader, batches: Sequence[BatchClosed], keys: seal.Keys, withheld: Withheld | None = None
) -> Dataset:
    """Rebuild the rows of closed batches from the log as it is now; `cut` says how far that was.

    `withheld` is what was read of `tweets` so far; it is read on. BatchBroken if a root, a leaf or a word's hash does
    not agree.
    """
    withheld = withheld or Withheld()
    unsaid = 0
    while True:
        cut = await reader.ends(PREFERENCES.name, TWEETS.name)
        dataset = await load_at(reader, batches, keys, cut, withheld)
        gone = dataset.withheld.get("words-gone", 0)
        if gone == unsaid:
            return dataset
        unsaid = gone
        refresh = getattr(keys, "refresh", None)
        if refresh is not None:
            refresh()


async def load_at(
    reader: Reader, batches: Sequence[BatchClosed], keys: seal.Keys, cut: Cut, withheld: Withheld
) -> Dataset:
    """Rebuild the rows of closed batches as they were at a cut; `withheld` was read to no later place."""
    dataset = Dataset(cut=cut)
    withdrawn: set[str] = set()
    if not batches:
        return dataset
    await withheld.read(reader, cut)
    wanted = {ref.offset: ref for batch in batches for ref in batch.pairs}
    first = min(batch.first_offset for batch in batches)
    async for raw in reader.records(PREFERENCES.name, 0, first, cut[PREFERENCES.name, 0]):
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
    words = _Words(await reader.at(places), keys, withheld)
    for pair in used:
        try:
            dataset.rows.append(words.row(pair))
        except TakenBack as why:
            _count(dataset, str(why), 1)
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


class TakenBack(Exception):
    """Words may not be used, or are there no more; the message is the reason that is counted."""


class _Words:
    """The records that hold the words of some pairs, unsealed one at a time."""

    def __init__(self, records: dict[tuple[str, int, int], object], keys: seal.Keys, withheld: Withheld) -> None:
        self._records = records
        self._keys = keys
        self._withheld = withheld

    def row(self, pair: PairFormed) -> Row:
        for where in (pair.prompt_where, pair.chosen.where, pair.rejected.where):
            if reason := self._withheld.reason(where, self._record(where).event):
                raise TakenBack(reason)  # before any of the words is looked for: the reason does not hang on keys
        prompt = self._prompt(pair.prompt, pair.prompt_where, pair.prompt_hash)
        chosen, rejected = self._side(pair.chosen), self._side(pair.rejected)
        return Row(id=pair.pair, prompt=prompt, chosen=chosen, rejected=rejected, weight=pair.weight)

    def _record(self, where: Where) -> envelope.Record:
        raw = self._records[where.topic, where.partition, where.offset]
        return envelope.decode(where.topic, where.partition, where.offset, 0, raw.headers, raw.value)  # type: ignore[attr-defined]

    def _content(self, where: Where) -> tuple[object, object]:
        record = self._record(where)
        try:
            event = seal.unseal(record.event, record.id, self._keys)
        except Refused:
            raise TakenBack("words-gone") from None  # altered, or sealed under another key: nothing to train on
        return event, event.content  # type: ignore[attr-defined]

    def _prompt(self, name: str, where: Where, expected: str) -> list[dict[str, str]]:
        event, content = self._content(where)
        if isinstance(content, PostContent) and isinstance(event, PostObserved):
            if name not in (event.post, event.named):  # replies to an edited post name the revision that they saw
                raise BatchBroken(f"{where.topic}/{where.partition}/{where.offset} is {event.post}, not {name}")
            _hold(text_hash(event.post, content.text), expected, where)
            return [{"role": "user", "content": content.text}]
        if isinstance(content, AnswerContent):
            _hold(text_hash(name, prompt_text(content.messages)), expected, where)
            return [{"role": turn.role, "content": turn.content} for turn in content.messages]
        raise TakenBack("words-gone")

    def _side(self, side: Side) -> str:
        event, content = self._content(side.where)
        item = side.subject.partition("/")[2]
        if isinstance(content, PostContent):
            text = content.text
        elif isinstance(content, AnswerContent) and isinstance(event, AnswerGiven):
            text = content.texts[event.items.index(item)]
        else:
            raise TakenBack("words-gone")
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
