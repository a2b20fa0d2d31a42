"""Mutants: plausible mistakes in the runtime, by name; each must be killed by the tests that it names.

`python -m tests.mutants [NAMES]` runs those, or all. A mutant whose line was rewritten no longer applies, and
tests/test_mutants.py says so: change it with the line, so that the list never rots.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutating import Mutant, judge, keep, plant, sound

ONCE = "each output once, whatever dies"
WHOLE = "nothing is lost"
OWNER = "one owner a partition; a zombie changes nothing"
ROTTEN = "what is damaged or of another log is noticed"
FORGET = "what is forgotten is gone, and a receipt is true"
SEALED = "words lie sealed, and only where they were said"
PROVEN = "a version names exactly what it was made of, and is made of it again"
SAFE = "no version answers that is worse or retracted"
FAIR = "a reward says what people did, once each, in time"
RIGHTS = "nothing is used that its author or the policy forbids"

_LIFE = "tests/test_simulation.py::test_every_life_ends_as_if_nothing_had_gone_wrong"
_CARE = "tests/test_dead_letters.py::test_the_one_record_that_fails_is_found_and_nothing_else_changes"


def _m(name: str, file: str, old: str, new: str, why: str, promise: str, *killers: str) -> Mutant:
    """Shorten what every line would repeat: killers are `file::test` below tests/."""
    where = tuple(one if one.startswith("tests/") else f"tests/test_{one}" for one in killers)
    return Mutant(name, file, old, new, why, promise, where)


# ---- the fold: what was applied, and how outputs are named ----------------------------------------------------------

FOLD = (
    _m("dedupe-below-instead-of-at", "streams/fold.py",
       "if mark <= self.memory.applied.get(source, (-1, -1)):",
       "if mark < self.memory.applied.get(source, (-1, -1)):",
       "the last record before a retry is applied twice", ONCE, _LIFE),
    _m("dedupe-without-ordinal", "streams/fold.py",
       "mark = (origin.offset, origin.ordinal)\n            if mark <=",
       "mark = (origin.offset, 0)\n            if mark <=",
       "of several outputs of one input a reader takes only the first", WHOLE,
       "survivors.py::test_all_outputs_of_one_input_are_applied_and_none_twice"),
    _m("dedupe-without-partition", "streams/fold.py",
       'source = f"{origin.stage}/{origin.topic}/{origin.partition}"\n            mark',
       'source = f"{origin.stage}/{origin.topic}"\n            mark',
       "one input partition's progress hides another's records", WHOLE,
       "survivors.py::test_all_outputs_of_one_input_are_applied_and_none_twice"),
    _m("dedupe-mark-not-kept", "streams/fold.py",
       "self.memory.applied[source] = mark",
       "self.memory.applied.setdefault(source, mark)",
       "a reader remembers the first output that it applied, not the newest", ONCE, _LIFE),
    _m("dedupe-believes-outsiders", "streams/fold.py",
       "if origin is not None and not self.stage.reads.outside:",
       "if origin is not None:",
       "any client can hide other people's records behind an origin with a high offset", WHOLE,
       "survivors.py::test_an_origin_that_an_outsider_wrote_hides_nothing"),
    _m("seen-forgets-too-early", "streams/fold.py",
       "remember(self.memory.seen, name, payload, SEEN_MAX)",
       "remember(self.memory.seen, name, payload, HEAD_BYTES_MAX)",
       "a duplicate within the stated window of 100,000 ids is applied again", ONCE,
       "survivors.py::test_a_duplicate_within_the_stated_window_is_applied_once"),
    _m("seen-hides-conflicts", "streams/fold.py",
       "if before != payload:",
       "if before == 0:",
       "another payload under a known id vanishes without a dead letter", WHOLE, _LIFE),
    _m("output-id-without-ordinal", "streams/fold.py",
       "event_id = output_id(stage.name, stage.version, name, ordinal)",
       "event_id = output_id(stage.name, stage.version, name, 0)",
       "two outputs of one input have one id", WHOLE, _LIFE),
    _m("output-id-from-offset", "streams/fold.py",
       "cause.offset, cause.id,",
       "cause.offset, str(cause.offset),",
       "records of two partitions at one offset give outputs with one id", WHOLE, _LIFE),
    _m("ordinal-counts-on", "streams/fold.py",
       "ordinal = ordinal + 1 if offset == cause else 0",
       "ordinal = ordinal + 1 if cause >= 0 else 0",
       "an output's name depends on where its chunk was cut", ONCE,
       "agents.py::test_splitting_a_chunk_anywhere_changes_nothing", _LIFE),
    _m("refusals-after-outputs", "streams/fold.py",
       "caused = sorted(caused + refusals, key=lambda one: one[0])",
       "caused = caused + refusals",
       "a dead letter arrives behind a later output of its origin, and readers skip it", WHOLE,
       "survivors.py::test_dead_letters_leave_in_the_order_of_their_causes_whoever_refused"),
    _m("last-record-not-remembered", "streams/fold.py",
       "self.memory.last = fingerprint(raws[-1])",
       "self.memory.last = fingerprint(raws[0])",
       "a snapshot's last record is another's, so a sound log is refused, or a cut one is not", ROTTEN,
       "shell.py::test_a_log_that_was_cut_and_refilled_is_refused"),
    _m("careful-keeps-half-a-state", "streams/fold.py",
       "self.memory = unpack(before, self.stage)\n            if len(raws) == 1:",
       "if len(raws) == 1:",
       "what a failed step had half done stays in the state", ONCE, _CARE),
    _m("trouble-by-equal-starts", "streams/trouble.py",
       'again = known is not None and start < known["end"] and known["start"] < end',
       'again = known is not None and start == known["start"]',
       "chunks are cut otherwise at each start, so a bug stops its partition for ever", WHOLE,
       "shell.py::test_trouble_is_the_same_trouble_however_the_chunk_was_cut"),
)  # fmt: skip

# ---- names and envelopes --------------------------------------------------------------------------------------------

NAMES = (
    _m("digest-runs-parts-together", "schemas/ids.py",
       'state.update(len(data).to_bytes(8, "big"))',
       'state.update(b"")',
       '("ab", "c") and ("a", "bc") have one id', WHOLE,
       "schemas.py::test_parts_of_an_id_do_not_run_together"),
    _m("partition-without-mask", "schemas/ids.py",
       "return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions",
       "return murmur2(key.encode()) % partitions",
       "a key lands where other Kafka clients do not put it, and its order is lost", WHOLE,
       "schemas.py::test_a_key_lands_where_every_kafka_client_puts_it"),
    _m("open-words-accepted", "schemas/envelope.py",
       "if kind in WORDED and not isinstance(event.content, str | None):",
       "if kind in WORDED and event.content is None:",
       "a record with words in the open is used, and spreads", SEALED,
       "schemas.py::test_open_words_are_refused", _LIFE),
    _m("none-fields-written", "schemas/envelope.py",
       "data = event.__pydantic_serializer__.to_json(event, exclude_none=True)",
       "data = event.__pydantic_serializer__.to_json(event)",
       "adding an optional field changes every older event's bytes, and so its id", ONCE,
       "survivors.py::test_a_field_that_is_not_said_leaves_no_byte"),
    _m("any-time-accepted", "schemas/envelope.py",
       "if not 0 <= time_ms <= MS_MAX:",
       "if time_ms > MS_MAX:",
       "a record from before 1970 stops its stage", WHOLE,
       "schemas.py::test_a_timestamp_that_is_no_time_is_refused_and_stops_nobody"),
)  # fmt: skip

# ---- snapshots ------------------------------------------------------------------------------------------------------

_BYTES = "snapshots.py::test_a_snapshot_with_any_byte_changed_or_missing_is_not_used"
_STEP = "survivors.py::test_a_kill_at_any_step_of_a_write_leaves_the_new_snapshot_or_the_one_before_it"
SNAPSHOTS = (
    _m("snapshot-of-any-claim", "streams/snapshots.py",
       "if self._number(place) != claim:",
       "if self._number(place) < claim:",
       "a process that lost its partition overwrites the new owner's snapshot", OWNER,
       "snapshots.py::test_an_older_claim_writes_nothing"),
    _m("snapshot-without-its-hash", "streams/snapshots.py",
       "if data[: len(MAGIC)] != MAGIC or hashlib.sha256(data[head:]).digest() != data[len(MAGIC) : head]:",
       "if data[: len(MAGIC)] != MAGIC:",
       "a torn snapshot is read as if it were whole", ROTTEN, _BYTES),
    _m("snapshot-of-another-log", "streams/snapshots.py",
       "if snapshot.bound != bound:",
       "if (snapshot.bound.stage, snapshot.bound.version) != (bound.stage, bound.version):",
       "a wiped log is read from where the old one ended", ROTTEN,
       "snapshots.py::test_a_snapshot_of_another_log_is_refused_with_what_to_do"),
    _m("snapshot-without-marks", "streams/fold.py",
       "return Memory(**{name: getattr(typed, name) for name in Memory.__struct_fields__})",
       'return Memory(**{name: getattr(typed, name) for name in Memory.__struct_fields__ if name != "applied"})',
       "after a restart what was applied is applied again", ONCE,
       "snapshots.py::test_a_snapshot_gives_back_all_that_a_fold_knows"),
    _m("snapshot-in-place", "streams/snapshots.py",
       'temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")',
       "temporary = path",
       "a kill while writing leaves half a snapshot", ROTTEN, _STEP),
    _m("snapshot-oldest-first", "streams/snapshots.py",
       'for name in ("snapshot", "snapshot.previous"):',
       'for name in ("snapshot.previous", "snapshot"):',
       "an owner starts from the snapshot before the newest, though the commit is past it", ONCE,
       "snapshots.py::test_a_torn_snapshot_is_reported_and_the_one_before_it_used"),
    _m("snapshot-previous-moved-first", "streams/snapshots.py",
       "os.link(path, older)",
       "os.replace(path, older)",
       "a kill between two names leaves only the snapshot before the newest", ONCE,
       _STEP),
    _m("claim-given-twice", "streams/snapshots.py",
       "number = self._number(place) + 1",
       "number = self._number(place) or 1",
       "two owners hold one claim, and both write", OWNER,
       "snapshots.py::test_no_two_owners_ever_get_the_same_claim"),
    _m("claim-without-lock", "streams/snapshots.py",
       "fcntl.flock(lock, fcntl.LOCK_EX)",
       "fcntl.flock(lock, fcntl.LOCK_SH)",
       "two owners who claim at once get one number", OWNER,
       "snapshots.py::test_no_two_owners_ever_get_the_same_claim"),
    _m("store-takes-any-claim", "streams/object_snapshots.py",
       "if max(claims, default=0) != claim:",
       "if claim not in claims:",
       "in an object store a zombie goes on writing", OWNER,
       "object_snapshots.py::test_an_older_claim_writes_nothing"),
    _m("store-loads-the-oldest", "streams/object_snapshots.py",
       "for name in reversed(self._look(place)[1]):",
       "for name in self._look(place)[1]:",
       "in an object store an owner starts from the oldest snapshot", ONCE,
       "object_snapshots.py::test_a_torn_snapshot_is_reported_and_the_one_before_it_used"),
)  # fmt: skip

# ---- the shell, the transport, the sender ---------------------------------------------------------------------------

_SEND = "        await asyncio.wait_for(self.sender.send(sent, self.crash_point), SEND_S_MAX)\n"
_DESTROY = """        for one in sent:
            if isinstance(one.event, AuthorForgotten):
                self.vault.destroy(one.event.owner)  # before its receipt is sent
"""
_RECEIPT = "shell.py::test_a_key_is_gone_before_its_receipt_is_sent"
_SENDS = "shell.py::test_a_batch_is_sent_only_after_the_one_before_it_was_acknowledged"
_ORDER = "shell.py::test_nothing_is_kept_or_committed_before_what_follows_from_it_was_sent"
SHELL = (
    _m("snapshot-before-send", "streams/shell.py", _SEND,
       "        owned.fold.memory.next = chunk.end\n        self._snapshot(owned)\n" + _SEND,
       "a crash in between loses the outputs of a chunk", WHOLE, _ORDER),
    _m("send-not-awaited", "streams/shell.py", _SEND,
       "        asyncio.ensure_future(self.sender.send(sent, self.crash_point))  # noqa: RUF006\n",
       "the state goes ahead of outputs that may never arrive", WHOLE, _ORDER),
    _m("commit-before-snapshot", "streams/shell.py",
       "return {tp: owned.covered for tp, owned",
       "return {tp: owned.fold.memory.next for tp, owned",
       "the group says done what no snapshot holds", WHOLE, _ORDER),
    _m("full-disk-counts-as-kept", "streams/shell.py",
       'log.error("cannot write the snapshot of %s/%s: %s", owned.tp.topic, owned.tp.partition, error)',
       "owned.covered = owned.fold.memory.next",
       "a snapshot that could not be written is committed all the same", WHOLE,
       "shell.py::test_a_snapshot_that_could_not_be_written_is_not_committed"),
    _m("hole-not-noticed", "streams/shell.py",
       "if at != chunk.start:",
       "if at > chunk.start:",
       "records between two chunks are skipped without a word", WHOLE,
       "shell.py::test_a_chunk_that_does_not_begin_where_its_partition_stands_ends_the_process"),
    _m("old-epoch-applied", "streams/shell.py",
       "if owned is None or chunk.epoch != self.epoch:",
       "if owned is None:",
       "a chunk from before a seek is applied after it", ONCE,
       "shell.py::test_a_chunk_of_an_old_epoch_is_nobodys"),
    _m("starts-at-the-commit", "streams/shell.py",
       "            fold.memory = memory\n        elif start > 0:",
       "            fold.memory = memory\n            fold.memory.next = committed or memory.next\n"
       "        elif start > 0:",
       "an owner goes on where the group stood, with a state from before", WHOLE,
       "shell.py::test_an_owner_goes_on_where_its_snapshot_stands_and_not_at_the_commit"),
    _m("missing-records-accepted", "streams/shell.py",
       "        elif start > 0:",
       "        elif start > end:",
       "what retention took before it was read is not missed", WHOLE,
       "shell.py::test_records_that_are_gone_before_they_were_read_are_missed"),
    _m("cut-log-accepted", "streams/shell.py",
       "if memory is not None and at > start:",
       "if memory is not None and at > end:",
       "a log that was cut and refilled is read on as if it were the same", ROTTEN,
       "shell.py::test_a_log_that_was_cut_and_refilled_is_refused"),
    _m("key-destroyed-after-the-receipt", "streams/shell.py", _DESTROY + _SEND, _SEND + _DESTROY,
       "a crash in between leaves a receipt for a key that is still there", FORGET, _RECEIPT),
    _m("key-destroyed-under-another-name", "streams/shell.py",
       "self.vault.destroy(one.event.owner)  # before its receipt is sent",
       "self.vault.destroy(str(one.key))  # before its receipt is sent",
       "a receipt is sent and the key stands", FORGET, _RECEIPT),
    _m("failed-step-goes-on", "streams/shell.py",
       '            await self.alert("step-failed", f"{failed} (attempt {attempts} of {ATTEMPTS_MAX})")\n'
       "            stop_process(str(failed))\n",
       '            await self.alert("step-failed", f"{failed} (attempt {attempts} of {ATTEMPTS_MAX})")\n',
       "the chunk that failed is dropped, and the next one finds half a state", WHOLE,
       "shell.py::test_a_step_that_fails_ends_the_process_and_counts"),
    _m("fetch-across-a-seek-accepted", "streams/transport.py",
       "fetched.epoch = epoch if epoch == self.epoch else -1",
       "fetched.epoch = self.epoch",
       "records fetched before a seek pass for records after it", ONCE,
       "shell.py::test_a_fetch_that_crossed_a_seek_belongs_to_no_epoch"),
    _m("seek-without-an-epoch", "streams/transport.py",
       "            self.epoch += 1\n",
       "            self.epoch = max(self.epoch, 1)\n",
       "from the second seek on, chunks from before it are taken for new", ONCE,
       "shell.py::test_every_seek_begins_an_epoch_of_its_own"),
    _m("chunk-starts-at-its-first-record", "streams/transport.py",
       "chunk = Chunk(tp, self.handed[tp], part[-1].offset + 1, part, fetched.epoch)",
       "chunk = Chunk(tp, part[0].offset, part[-1].offset + 1, part, fetched.epoch)",
       "behind a transaction's marker a worker ends, starts and ends for ever", WHOLE,
       "shell.py::test_chunks_join_without_a_hole_over_a_transactions_marker"),
    _m("batches-pipelined", "streams/sender.py",
       '                await self._send_batch(producer, batch, topic, partition)\n'
       '                crash_point("mid-send")  # between',
       '                asyncio.ensure_future(self._send_batch(producer, batch, topic, partition))  # noqa: RUF006\n'
       '                crash_point("mid-send")  # between',
       "a failed batch leaves a hole in front of the next one, and readers skip what fills it", WHOLE, _SENDS),
    _m("acknowledgement-not-awaited", "streams/sender.py",
       "        await acknowledged\n",
       "        acknowledged.cancelled()\n",
       "sent means handed to the client", WHOLE, _SENDS),
    _m("failed-send-swallowed", "streams/sender.py",
       "await asyncio.gather(*tasks)",
       "await asyncio.gather(*tasks, return_exceptions=True)",
       "a partition that failed is taken for sent", WHOLE, _SENDS),
    _m("one-replica-is-enough", "streams/sender.py",
       'acks="all",',
       "acks=1,",
       "what only a broker that dies had is gone", WHOLE,
       "shell.py::test_a_sender_waits_for_all_replicas_and_repeats_without_doubling"),
)  # fmt: skip

# ---- the trainer and its dataset ------------------------------------------------------------------------------------

_FORGED = "survivors.py::test_a_batch_that_is_not_what_was_closed_is_refused"
TRAINER = (
    _m("window-of-the-newest-only", "streams/dataset.py",
       "if taken and pairs + len(batch.pairs) > pairs_max:",
       "if taken:",
       "a version forgets all that the one before it learned", PROVEN,
       "survivors.py::test_a_window_is_whole_batches_from_the_newest_back"),
    _m("window-of-the-oldest", "streams/dataset.py",
       "for batch in reversed(list(batches)):",
       "for batch in list(batches):",
       "once the window is full, nothing new is learned any more", PROVEN,
       "survivors.py::test_a_window_is_whole_batches_from_the_newest_back"),
    _m("held-back-by-position", "streams/dataset.py",
       "held = [row for row in self.rows if held_back(row.id)]\n"
       "        return [row for row in self.rows if not held_back(row.id)], held",
       "held = self.rows[::HELD_BACK_ONE_IN]\n        return [row for row in self.rows if row not in held], held",
       "a pair that one version learned from examines the next", PROVEN,
       "survivors.py::test_a_pair_is_on_the_same_side_in_every_version"),
    _m("withdrawn-pairs-trained-on", "streams/dataset.py",
       "if name not in withdrawn]",
       "if name not in dataset.withheld]",
       "a deleted post is learned from", FORGET,
       "survivors.py::test_a_pair_that_was_withdrawn_after_its_batch_closed_is_withheld"),
    _m("root-not-checked", "streams/dataset.py",
       "if merkle.root(leaves).hex() != batch.root:",
       "if not leaves:",
       "a batch with other leaves than were closed is trained on", PROVEN, _FORGED),
    _m("leaf-not-checked", "streams/dataset.py",
       "if pair_leaf(pairs[ref.pair]).hex() != ref.leaf:",
       "if not ref.leaf:",
       "another pair in a closed one's place is trained on", PROVEN, _FORGED),
    _m("words-not-held-against-their-hash", "streams/dataset.py",
       "        _hold(text_hash(item, text), side.text_hash, side.where)\n",
       "",
       "a version learns words that nobody judged", PROVEN, _FORGED),
    _m("leaf-without-weight", "agents/batching.py",
       '        f"{pair.weight:.6f}",\n',
       "",
       "a pair's weight can be changed under an unchanged root", PROVEN,
       "batching.py::test_a_leaf_pins_what_makes_a_pair_this_pair"),
    _m("root-in-order-of-arrival", "agents/batching.py",
       "in sorted(state.open.items())]",
       "in state.open.items()]",
       "the same pairs have another root in another run", PROVEN,
       "batching.py::test_the_root_does_not_depend_on_the_order_of_arrival"),
    _m("withdrawn-pair-stays-open", "agents/batching.py",
       "gone = state.open.pop(event.pair, None)",
       "gone = state.open.get(event.pair)",
       "a pair that was taken back is in the batch that closes next", FORGET,
       "batching.py::test_a_withdrawn_pair_leaves_the_open_batch_and_no_closed_one"),
    _m("leaf-may-pass-for-a-node", "schemas/merkle.py",
       'return hashlib.sha256(b"\\x00" + data).digest()',
       "return hashlib.sha256(data).digest()",
       "a node of the tree can be shown as a leaf of it", PROVEN,
       "schemas.py::test_a_root_is_that_of_certificate_transparency",
       "schemas.py::test_roots_and_proofs_are_those_of_the_rfc"),
    _m("proof-on-the-wrong-side", "schemas/merkle.py",
       "path.append((level[sibling], sibling < index))",
       "path.append((level[sibling], sibling > index))",
       "no proof holds", PROVEN, "schemas.py::test_roots_and_proofs_are_those_of_the_rfc"),
    _m("announced-without-its-offset", "streams/trainer.py",
       "            if offset is not None:\n                done",
       "            if offset is None:\n                done",
       "a batch is trained on and announced again at every start", ONCE,
       "survivors.py::test_a_version_and_the_end_of_its_batch_are_one_transaction"),
    _m("announced-outside-the-transaction", "streams/trainer.py",
       '            self.crash_point("in-transaction")\n            if offset',
       '            self.crash_point("in-transaction")\n        async with self.producer.transaction():\n'
       "            if offset",
       "a crash in between announces a version twice", ONCE,
       "survivors.py::test_a_version_and_the_end_of_its_batch_are_one_transaction"),
    _m("adapter-written-under-its-name", "models/folders.py",
       '    crash_point("before_rename")\n    temp.rename(final)\n',
       '    final.mkdir()\n    crash_point("before_rename")\n    final.rmdir()\n    temp.rename(final)\n',
       "a name can be read before what it names is whole", PROVEN,
       "models.py::test_killed_anywhere_no_half_version_is_readable_and_the_rerun_gives_the_same"),
    _m("adapter-not-checked", "models/adapters.py",
       'if manifest.get("sha256") != sha256 or manifest.get("files") != hashes:',
       'if manifest.get("sha256") != sha256:',
       "a damaged adapter answers people", PROVEN,
       "models.py::test_every_damage_to_every_file_is_noticed"),
)  # fmt: skip

# ---- forgetting: the vault, seals, deletions ------------------------------------------------------------------------

_LATE = "metadata.py::test_a_delete_that_comes_before_its_post_waits_for_it"
_NEVER = "snapshots.py::test_a_destroyed_key_is_never_made_again_by_anyone"
_GONE = "snapshots.py::test_the_bytes_of_a_destroyed_key_are_in_no_file"
ERASURE = (
    _m("destroyed-key-made-again", "streams/vault.py",
       '"insert into keys values (?, null) on conflict do update set key = null", (owner,)',
       '"delete from keys where owner = ?", (owner,)',
       "an erased author comes in again under a new key", FORGET, _NEVER),
    _m("key-replaced", "streams/vault.py",
       'self._db.execute("insert or ignore into keys values (?, ?)", (owner, os.urandom(KEY_BYTES)))',
       'self._db.execute("insert or replace into keys values (?, ?)", (owner, os.urandom(KEY_BYTES)))',
       "two processes seal under two keys, and one of them is lost", SEALED, _NEVER,
       "snapshots.py::test_processes_that_make_a_key_at_once_get_the_same_one"),
    _m("key-bytes-left-in-the-file", "streams/vault.py",
       "pragma secure_delete=on",
       "pragma secure_delete=off",
       "a destroyed key can be read off the disk", FORGET, _GONE),
    _m("key-bytes-left-in-the-log", "streams/vault.py",
       'if self._db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]:',
       'if self._db.execute("pragma wal_checkpoint(passive)").fetchone()[0]:',
       "a destroyed key can be read off the write-ahead log", FORGET, _GONE,
       "snapshots.py::test_a_key_is_not_called_destroyed_while_a_reader_keeps_its_bytes_in_the_log"),
    _m("cache-outlives-the-key", "streams/vault.py",
       "                self._version = version\n                self._cache.clear()\n",
       "                self._version = version\n",
       "other processes go on sealing and reading for who was erased", FORGET,
       "snapshots.py::test_a_key_destroyed_by_another_process_is_out_of_the_cache_at_the_next_chunk"),
    _m("nonce-random", "schemas/seal.py",
       'nonce = hmac.digest(key[32:], len(aad).to_bytes(4, "big") + aad + plain, "sha256")[:12]',
       'nonce = __import__("os").urandom(12)',
       "a retry is another payload under the same id", ONCE, _LIFE),
    _m("nonce-without-the-words", "schemas/seal.py",
       'len(aad).to_bytes(4, "big") + aad + plain, "sha256")',
       'len(aad).to_bytes(4, "big") + aad, "sha256")',
       "two texts under one nonce give each other away", SEALED,
       "schemas.py::test_equal_nonces_mean_equal_words_in_the_same_event"),
    _m("seal-without-the-event", "schemas/seal.py",
       'return f"{type(event).__name__}/{event_id}".encode()',
       'return f"{type(event).__name__}".encode()',
       "sealed words can be moved into another of their owner's posts", SEALED,
       "schemas.py::test_a_seal_opens_only_where_it_was_made"),
    _m("key-in-both-halves", "schemas/seal.py",
       "return AESGCM(key[:32])",
       "return AESGCM(key[32:])",
       "what makes nonces also encrypts: no key of two halves", SEALED,
       "survivors.py::test_the_half_of_a_key_that_makes_nonces_opens_nothing"),
    _m("deletion-does-not-wait", "agents/metadata.py",
       "if post.post in state.deleted or not _used(post.owner, state):",
       "if not _used(post.owner, state):",
       "a post whose deletion came first comes in for good", FORGET, _LATE),
    _m("erased-author-comes-back", "agents/metadata.py",
       "return owner not in state.erased and owner not in state.hidden",
       "return owner not in state.hidden",
       "posts of an erased author are used again", FORGET,
       "metadata.py::test_an_erased_author_who_is_shown_again_stays_erased",
       "metadata.py::test_an_erased_author_is_withdrawn_everywhere_and_gets_one_receipt"),
    _m("revisions-stay-behind", "agents/metadata.py",
       "for name in (post, *known.names):",
       "for name in (post,):",
       "the words of a later version outlive the deletion of the first", FORGET,
       "metadata.py::test_deleting_any_version_deletes_the_post_under_every_id_it_had"),
    _m("late-revision-wins", "agents/metadata.py",
       "late = known is not None and post.revision < known.revision",
       "late = known is not None and post.revision == known.revision",
       "an older version that comes late brings replaced words back", FORGET,
       "metadata.py::test_an_older_version_that_comes_late_does_not_bring_replaced_words_back"),
    _m("undone-before-it-came", "agents/metadata.py",
       "    remember(state.retracted, undone.act, True, GONE_MAX)\n",
       "",
       "a like that was taken back counts if it arrives late", FAIR,
       "metadata.py::test_an_act_that_was_undone_before_it_came_is_never_counted"),
    _m("receipt-while-bytes-are-left", "streams/embedder.py",
       "        if clean:\n            for at in",
       "        if owed:\n            for at in",
       "a receipt is sent while the vectors of a deleted post lie on the disk", FORGET,
       "embedder.py::test_no_receipt_is_written_while_bytes_are_left"),
    _m("checkpoint-before-the-rows", "streams/embedder.py",
       "        self._forget(made)\n        self._write(made)\n"
       "        self.ledger.commit(moved, self._bound(), made.deleted, made.owners)\n",
       "        self.ledger.commit(moved, self._bound(), made.deleted, made.owners)\n"
       "        self._forget(made)\n        self._write(made)\n",
       "a crash in between leaves a post out of the index for ever", WHOLE,
       "embedder.py::test_chunks_cut_anywhere_and_begun_again_after_a_crash_end_at_the_same_rows"),
)  # fmt: skip

# ---- what the agents decide -----------------------------------------------------------------------------------------

AGENTS = (
    _m("worse-version-released", "agents/releases.py",
       "if measured.neutral_nats > baseline.neutral_nats * NEUTRAL_NATS_RATIO_MAX:",
       "if baseline.neutral_nats > measured.neutral_nats * NEUTRAL_NATS_RATIO_MAX:",
       "a version that lost its language answers people", SAFE,
       "releases.py::test_a_version_that_is_worse_is_refused_with_each_reason"),
    _m("unmeasured-version-released", "agents/releases.py",
       'return ["it was not evaluated"]',
       "return []",
       "a version that nobody examined answers people", SAFE,
       "releases.py::test_a_version_is_refused_with_all_its_reasons_and_without_an_evaluation"),
    _m("roll-back-to-the-retracted", "agents/releases.py",
       "if version is None or event.version in state.retracted:",
       "if version is None:",
       "a retracted version answers again", SAFE,
       "releases.py::test_a_command_about_a_retracted_or_unknown_version_is_refused_with_an_alert",
       "releases.py::test_the_alias_never_points_at_what_is_retracted"),
    _m("retraction-takes-the-last-only", "agents/releases.py",
       "state.stack = [name for name in state.stack if name != event.version]",
       "state.stack = state.stack[:-1] if was == event.version else state.stack",
       "a version that was rolled back to and retracted is pointed at again", SAFE,
       "releases.py::test_retracting_the_present_release_goes_back_to_the_one_before"),
    _m("late-engagement-used", "agents/rewards.py",
       "index = bisect.bisect_left(ages_ms, counted.time_ms - noted.time_ms)",
       "index = min(bisect.bisect_left(ages_ms, counted.time_ms - noted.time_ms), len(ages_ms) - 1)",
       "a late tick lets reactions from after the age count", FAIR,
       "rewards.py::test_a_count_belongs_to_the_first_age_not_reached_before_it_however_late_the_tick"),
    _m("late-judgement-taken", "agents/rewards.py",
       '    if event.subject in state.closed:\n        return [_refused(record, event, "too-late"',
       '    if event.subject in state.gone:\n        return [_refused(record, event, "too-late"',
       "a judgement after the last age vanishes without a word", FAIR,
       "rewards.py::test_feedback_after_the_last_age_is_refused_with_that_reason"),
    _m("a-vote-for-each-judgement", "agents/rewards.py",
       "return round(math.fsum(math.fsum(own) / len(own) for own in votes) / (len(votes) + PRIOR_VOTES), 6)",
       "return round(math.fsum(math.fsum(own) for own in votes) / (sum(map(len, votes)) + PRIOR_VOTES), 6)",
       "who judges often buys a reward", FAIR,
       "rewards.py::test_a_person_has_one_vote_on_a_subject_however_many_judgements_they_give"),
    _m("untrainable-prompt-trained-on", "agents/rewards.py",
       "trainable=noted.train and (prompt.train or prompt.text_hash is None),",
       "trainable=noted.train,",
       "words are trained on under a prompt that may not be", RIGHTS,
       "rewards.py::test_both_the_words_and_their_prompt_must_be_trainable"),
    _m("worse-text-chosen", "agents/pairing.py",
       "if prompt.closed[chosen].total < prompt.closed[rejected].total:",
       "if prompt.closed[chosen].total > prompt.closed[rejected].total:",
       "the model learns what people dislike", FAIR,
       "pairing.py::test_the_better_is_chosen_whichever_closed_first"),
    _m("untrainable-text-paired", "agents/pairing.py",
       "        and event.trainable\n",
       "",
       "words that may not be trained on are", RIGHTS,
       "pairing.py::test_what_the_policy_or_the_measure_does_not_allow_makes_no_pair"),
    _m("pairs-of-a-gone-subject-stay", "agents/pairing.py",
       "if whole or event.subject in sides]",
       "if whole or event.subject == sides[0]]",
       "a deleted post is learned from as the worse answer", FORGET,
       "survivors.py::test_whichever_of_two_texts_is_gone_their_pair_is_withdrawn"),
    _m("reaction-counted-twice", "agents/reactions.py",
       "        if act in state.acts:\n            return ()\n",
       "        if state.acts.get(act) == UNDONE:\n            return ()\n",
       "a like that a source repeats counts twice", FAIR,
       "reactions.py::test_an_act_counts_once_and_what_was_taken_back_does_not_come_again"),
    _m("anybody-takes-an-act-back", "agents/acts.py",
       "if _ROW.unpack_from(self.rows, slot * _ROW.size)[4] == who]",
       "if _ROW.unpack_from(self.rows, slot * _ROW.size)[4] != NONE]",
       "one author can undo what another did", FAIR, "graph.py::test_nobody_takes_back_what_another_did"),
    _m("edges-the-other-way", "agents/influence.py",
       "given = np.bincount(target, share * rank[source], n) + (kept * rank).sum() * begin",
       "given = np.bincount(source, share * rank[target], n) + (kept * rank).sum() * begin",
       "influence goes to who likes, not to who is liked", FAIR,
       "graph.py::test_who_is_acted_on_more_stands_higher_and_equals_stand_alike",
       "graph.py::test_the_ranks_are_those_of_networkx"),
    _m("a-time-in-the-future-stays-fresh", "agents/graph.py",
       "at_ms = time_ms if event.at_ms is None else min(event.at_ms, time_ms)",
       "at_ms = time_ms if event.at_ms is None else event.at_ms",
       "an act that claims to be from the future never fades", FAIR,
       "graph.py::test_a_time_in_the_future_does_not_keep_an_act_fresh"),
    _m("forgotten-author-stays-in-edges", "agents/acts.py",
       '        self.names[number] = ""\n        return True',
       "        return True",
       "an erased author keeps their place in the graph", FORGET,
       "graph.py::test_a_forgotten_author_is_in_no_edge_until_they_post_again"),
    _m("choice-needs-no-common-prompt", "agents/intake.py",
       "if prompt_of(given.other) != prompt_of(given.subject):",
       "if given.other is given.subject:",
       "answers to different questions are compared", FAIR,
       "intake.py::test_a_judgement_that_makes_no_sense_is_refused_with_its_fault"),
)  # fmt: skip

# ---- sources and rights ---------------------------------------------------------------------------------------------

_NO = "policy.py::test_a_no_always_wins_and_nothing_is_granted_that_nobody_granted"
SOURCES = (
    _m("cursor-before-the-acknowledgement", "streams/follow.py",
       '        self.crash_point("before-send")\n        try:\n',
       '        if cursor is not None and cursor != self.kept:\n            self._keep(cursor, made_ms)\n'
       '        self.crash_point("before-send")\n        try:\n',
       "what the log did not take is never asked for again", WHOLE,
       "follow.py::test_whatever_source_and_log_do_every_message_is_taken_and_none_is_seen_twice"),
    _m("torn-cursor-believed", "streams/cursors.py",
       "if not data.startswith(MAGIC) or hashlib.sha256(body).hexdigest().encode() != digest:",
       "if not data.startswith(MAGIC):",
       "a stream goes on at a place where it never stood", ROTTEN,
       "follow.py::test_a_cursor_that_rotted_is_refused_and_never_believed"),
    _m("cursor-of-another-log", "streams/cursors.py",
       "if kept.log != self.log:",
       "if not kept.log:",
       "after the log was wiped what it held is not asked for again", ROTTEN,
       "survivors.py::test_a_cursor_of_another_log_is_refused"),
    _m("gap-not-told", "streams/follow.py",
       "records = [*alerts, *await asyncio.to_thread(self.intake.take, lines, now_ms)]",
       "records = [*await asyncio.to_thread(self.intake.take, lines, now_ms)]",
       "messages that may be missing are missed in silence", WHOLE,
       "follow.py::test_a_gap_is_in_alerts_before_the_cursor_passes_it"),
    _m("policy-open-by-default", "streams/policy.py",
       'UNKNOWN = Verdict("unknown-source", index=False, train=False, show=False)',
       'UNKNOWN = Verdict("unknown-source", index=True, train=True, show=True)',
       "a source that nobody decided about is trained on", RIGHTS,
       "policy.py::test_a_source_that_is_not_named_may_be_used_for_nothing"),
    _m("declared-no-ignored", "streams/policy.py",
       "    if declared.train is False:\n",
       "    if declared.train is False and train == DECLARED:\n",
       "an author's no does not count where the policy says yes", RIGHTS, _NO),
    _m("silence-taken-for-yes", "streams/policy.py",
       "granted = train is True or (train == DECLARED and declared.train is True)",
       "granted = train is True or (train == DECLARED and declared.train is not False)",
       "who never declared anything is trained on where a yes is asked for", RIGHTS, _NO),
    _m("older-declaration-wins", "streams/intents.py",
       "where excluded.at_ms = 0 or excluded.at_ms >= at_ms",
       "where excluded.at_ms = 0 or excluded.at_ms <= at_ms",
       "an archive taken in late undoes an author's no", RIGHTS,
       "policy.py::test_declarations_last_and_an_older_one_changes_nothing"),
    _m("no-learning-from-now-on-only", "agents/metadata.py",
       'if intent.train is False else []',
       "if intent.train is None else []",
       "what an author posted before their no goes on being learned from", RIGHTS,
       "metadata.py::test_whoever_declares_that_nobody_may_learn_from_them_is_taken_out_of_use"),
)  # fmt: skip

MUTANTS = (*FOLD, *NAMES, *SNAPSHOTS, *SHELL, *TRAINER, *ERASURE, *AGENTS, *SOURCES)
BY_NAME = {one.name: one for one in MUTANTS}


def main(names: Sequence[str]) -> int:
    """Run mutants and print what became of each; gives 1 if one was not killed, 2 if none could be judged."""
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        sys.stderr.write(f"there is no mutant {unknown[0]!r}; there are {', '.join(BY_NAME)}\n")
        return 2
    chosen = [BY_NAME[name] for name in names] or list(MUTANTS)
    killed = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        unchanged = Path(folder, "unchanged")
        plant(unchanged)
        fault = sound(unchanged, chosen)
        if fault:
            sys.stderr.write(f"{fault}\nThe tests must pass before they can kill anything.\n")
            return 2
        for mutant in chosen:
            outcome = judge(mutant, unchanged, Path(folder, mutant.name))
            keep(outcome)
            killed += outcome.status == "killed"
            sys.stdout.write(f"{outcome.status:9} {mutant.name:36} {outcome.seconds:6.1f} s  {outcome.by}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(chosen)} killed\n")
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
