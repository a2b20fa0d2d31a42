"""Backups: what was stored comes back to the byte or not at all, and nobody who was forgotten comes back with it."""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from models.rows import dataset_sha256
from schemas.events import AuthorForgotten
from schemas.facts import Where
from schemas.learned import ModelTrained
from schemas.posts import AuthorErased
from schemas.topics import TOPICS
from streams import backup, restore
from streams.backup import BackupRefused, Store, faults, left_out, make, run_backup, run_backup_list, run_backup_verify
from streams.broker import FolderInUse, FolderLock
from streams.dataset import closed_batches, load
from streams.fold import Sent
from streams.kafka import KafkaSettings, end_offsets, ensure_topics
from streams.reader import reader
from streams.records import outside
from streams.restore import run_restore
from streams.segments import SegmentBroken, span
from streams.settings import Settings
from streams.supervisor import deployment
from streams.topics import specs
from streams.vault import Vault
from tests.feeds import feed
from tests.harness import Workers, ended, finish, judge, settings_for, write
from tests.logfolder import batch, segment, stopped

NOW_MS = 1_900_000_000_000
ROW = (b"key", b"value", [("name", b"text")], NOW_MS)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Give mode and bytes of every file that a backup keeps; the vault is compared by what it answers."""
    return {
        name: (path.stat().st_mode & 0o777, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not left_out(name := path.relative_to(folder).as_posix())
    }


def known(vault: Path) -> dict[str, bytes | None]:
    with sqlite3.connect(vault) as db:
        return dict(db.execute("select owner, key from keys").fetchall())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return stopped(tmp_path / "data")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def lost(settings: Settings) -> Path:
    shutil.rmtree(settings.data)
    return settings.data


# ---- there and back -------------------------------------------------------------------------------------------------


def test_what_was_backed_up_comes_back_to_the_byte(settings: Settings, store: Store) -> None:
    before, keys = tree(settings.data), known(settings.data / "vault" / "keys.sqlite")
    name = make(settings, store, NOW_MS)
    assert faults(store) == []
    done = restore.restore(lost(settings), store.folder)
    assert done.name == name
    assert tree(settings.data) == before
    assert known(settings.data / "vault" / "keys.sqlite") == keys
    assert (settings.data / "vault" / "keys.sqlite").stat().st_mode & 0o777 == 0o600
    assert settings.data.stat().st_mode & 0o777 == 0o700
    assert any(path.endswith("claim") for path in before)
    assert any(path.endswith("cursor") for path in before)


def test_a_data_folder_that_is_a_link_is_restored_to_where_it_leads(settings: Settings, store: Store) -> None:
    before = tree(settings.data)
    make(settings, store, NOW_MS)
    link, disk = lost(settings), settings.data.with_name("disk")
    disk.mkdir()
    link.symlink_to(disk)
    restore.restore(link, store.folder)
    assert link.is_symlink()
    assert tree(disk) == before
    assert not list(link.parent.glob(".*restoring"))


def test_words_in_clear_and_what_can_be_made_again_stay_away(settings: Settings, store: Store) -> None:
    make(settings, store, NOW_MS)
    names = {one.path for one in store.manifest(store.names()[-1]).files}
    for part in ("analytics", "vectors", "logs", "run", "vault/keys"):
        assert not any(name.startswith(part) for name in names)
    assert left_out("broker/lock")
    assert left_out("models/adapters/.writing/x")
    assert not left_out("vault/intents.sqlite-wal")
    assert not left_out("something/new")


def test_the_second_backup_stores_only_what_is_new_and_both_come_back(settings: Settings, store: Store) -> None:
    first_tree = tree(settings.data)
    first = make(settings, store, NOW_MS)
    objects = set((store.folder / "objects").glob("*/*"))
    log = segment(settings.data, "tweets-0", 1, [batch(1, [ROW, ROW])])
    second_tree = tree(settings.data)
    second = make(settings, store, NOW_MS + 1)
    assert len(set((store.folder / "objects").glob("*/*")) - objects) == 1
    assert store.manifest(second).log()["tweets-0"] == (0, 3, 3)
    log.unlink()
    restore.restore(lost(settings), store.folder / "backups" / f"{first}.json")
    assert tree(settings.data) == first_tree
    restore.restore(lost(settings), store.folder)
    assert tree(settings.data) == second_tree


def test_pruning_keeps_the_newest_whole(settings: Settings, store: Store) -> None:
    for n in range(3):
        (settings.data / "ingest" / "bluesky" / "cursor").write_text(f"cursor {n}")
        make(settings, store, NOW_MS + n)
    before = tree(settings.data)
    assert store.prune(1) == (2, 2)
    assert faults(store) == []
    with pytest.raises(BackupRefused, match="newest backup stays"):
        store.prune(0)
    restore.restore(lost(settings), store.folder)
    assert tree(settings.data) == before


# ---- what is not restored, or not backed up -------------------------------------------------------------------------


def test_a_folder_that_holds_anything_is_not_written_to(settings: Settings, store: Store) -> None:
    make(settings, store, NOW_MS)
    before = tree(settings.data)
    with pytest.raises(BackupRefused, match="not empty"):
        restore.restore(settings.data, store.folder)
    assert tree(settings.data) == before


def test_nothing_is_backed_up_while_something_runs(settings: Settings, store: Store) -> None:
    with FolderLock(settings.data), pytest.raises(FolderInUse, match="stop it first"):
        make(settings, store, NOW_MS)
    with open(settings.data / "broker" / "jvm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BackupRefused, match="Kafka still runs"):
            make(settings, store, NOW_MS)
    status = settings.data / "run" / "sink.status.json"
    status.write_text(json.dumps({"time": time.time(), "pid": os.getppid()}))
    with pytest.raises(BackupRefused, match=r"sink .* still runs"):
        make(settings, store, NOW_MS)
    status.write_text(json.dumps({"time": time.time() - 3600, "pid": os.getppid()}))
    with pytest.raises(BackupRefused, match=r"sink .* still runs"):  # no room on its disk: it only touches the file
        make(settings, store, NOW_MS)
    os.utime(status, (time.time() - 3600,) * 2)
    assert make(settings, store, NOW_MS)


def test_a_store_takes_one_deployment_and_time_forward_only(settings: Settings, store: Store, tmp_path: Path) -> None:
    make(settings, store, NOW_MS)
    with pytest.raises(BackupRefused, match="mend the clock"):
        make(settings, store, NOW_MS - 1)
    other = stopped(tmp_path / "other")
    meta = other.data / "broker" / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("AAAA", "BBBB"))
    with pytest.raises(BackupRefused, match="choose another"):
        make(other, store, NOW_MS + 1)
    with pytest.raises(BackupRefused, match="another disk"):
        make(settings, Store(settings.data / "backups"), NOW_MS + 1)
    shutil.rmtree(other.data / "broker")
    with pytest.raises(BackupRefused, match="there is no log"):
        make(other, store, NOW_MS + 1)
    (settings.data / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(BackupRefused, match="is a link"):
        make(settings, store, NOW_MS + 1)


def test_a_damaged_log_is_not_backed_up_over_a_whole_one(settings: Settings, store: Store) -> None:
    make(settings, store, NOW_MS)
    log = settings.data / "broker" / "data" / "tweets-0" / f"{0:020}.log"
    rotten = bytearray(log.read_bytes())
    rotten[-1] ^= 1
    log.write_bytes(rotten)
    with pytest.raises(BackupRefused, match=r"damaged at byte 0.*older backup"):
        make(settings, store, NOW_MS + 1)
    assert len(store.names()) == 1


def test_a_broker_that_was_killed_may_leave_half_a_batch_at_the_end_only(settings: Settings, store: Store) -> None:
    log = settings.data / "broker" / "data" / "tweets-0" / f"{0:020}.log"
    log.write_bytes(log.read_bytes() + batch(1, [ROW])[:70])
    with pytest.raises(BackupRefused, match="damaged"):
        make(settings, store, NOW_MS)
    (settings.data / "broker" / "data" / ".kafka_cleanshutdown").unlink()
    manifest = store.manifest(make(settings, store, NOW_MS))
    assert manifest.log()["tweets-0"] == (0, 1, 1)
    assert not manifest.stopped_cleanly


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 1 << 40), st.integers(0, 400))
def test_a_segment_says_where_it_goes_and_no_cut_of_it_passes_for_whole(sizes: list[int], first: int, cut: int) -> None:
    parts, at = [], first
    for size in sizes:
        parts.append(batch(at, [ROW] * size))
        at += size
    data = b"".join(parts)
    path = Path(f"{first:020}.log")
    assert span(path, data) == (first, at, sum(sizes))
    if 0 < cut < len(data):
        whole = len(data) - cut
        ends = {sum(map(len, parts[:n])) for n in range(len(parts) + 1)}
        assert span(path, data[:whole], torn_end=True).end <= at
        if whole not in ends:
            with pytest.raises(SegmentBroken):
                span(path, data[:whole])


def test_a_deployment_that_sealed_nothing_yet_has_no_keys_and_comes_back(
    settings: Settings, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `topics --create`: there is a log, and no vault."""
    for gone in ("keys.sqlite", None):
        shutil.rmtree(settings.data / "vault") if gone is None else (settings.data / "vault" / gone).unlink()
        before = tree(settings.data)
        run_backup(settings, store.folder)
        assert "the store holds no keys" in capsys.readouterr().out
        assert not (settings.data / "vault" / "keys.sqlite").exists(), "looking made one"
        assert faults(store) == []
        restore.restore(lost(settings), store.folder)
        assert tree(settings.data) == before
        assert known(settings.data / "vault" / "keys.sqlite") == {}
        vault = Vault(settings.data / "vault" / "keys.sqlite")
        assert vault.make("x:@1"), "and it is a vault like any other"
        vault.close()
    run_backup(settings, store.folder)
    assert "no keys" not in capsys.readouterr().out
    assert set(known(store.keys)) == {"x:@1"}


def test_a_lost_vault_does_not_replace_the_one_that_opens_all_backups(settings: Settings, store: Store) -> None:
    make(settings, store, NOW_MS)
    path = settings.data / "vault" / "keys.sqlite"
    before, kept, sent = known(path), store.keys.read_bytes(), path.read_bytes()
    path.unlink()
    with pytest.raises(BackupRefused, match=r"knows 0 owners, .* 3: its keys are lost.*Put that file in its place"):
        make(settings, store, NOW_MS + 1)
    vault = Vault(path)  # as the next start makes it
    vault.make("x:@4")
    vault.close()
    with pytest.raises(BackupRefused, match="knows 1 owners"):
        make(settings, store, NOW_MS + 1)
    assert (store.keys.read_bytes(), store.keys_fault(), len(store.names())) == (kept, "", 1)
    path.write_bytes(sent)
    make(settings, store, NOW_MS + 1)
    assert known(store.keys) == before
    store.keys.write_bytes(b"rotten")
    path.unlink()
    make(settings, store, NOW_MS + 2)  # what is damaged opens nothing: it keeps nobody from a backup
    assert store.keys_fault() == ""


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("whole")
    found = Store(folder / "store")
    make(stopped(folder / "data"), found, NOW_MS)
    return found


def of_use(store: Store) -> list[Path]:
    return [path for path in sorted(store.folder.rglob("*")) if path.is_file() and path.name != "lock"]


@budget(max_examples=60, deadline=None)
@given(st.data())
def test_one_bit_anywhere_is_found_and_nothing_is_restored_from_it(whole: Store, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(of_use(whole)))
    kept = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(kept) - 1)), data.draw(st.integers(0, 7))
    rotten = bytearray(kept)
    rotten[at] ^= 1 << bit
    target = whole.folder.parent / "restored"
    try:
        path.write_bytes(rotten)
        if faults(whole):
            with pytest.raises(BackupRefused):
                restore.restore(target, whole.folder)
            assert not target.exists()
        else:  # the bits that fill a compressed stream's last byte mean nothing
            assert "objects" in path.parts
            restore.restore(target, whole.folder)
            assert tree(target) == tree(whole.folder.parent / "data")
    finally:
        path.write_bytes(kept)
        shutil.rmtree(target, ignore_errors=True)


def test_every_bit_of_the_sum_of_the_keys_counts(whole: Store) -> None:
    path = whole.keys.with_suffix(".sha256")
    kept = path.read_bytes()
    try:
        for at in range(8 * len(kept)):
            rotten = bytearray(kept)
            rotten[at // 8] ^= 1 << at % 8
            path.write_bytes(rotten)
            assert "is not the file that was written" in whole.keys_fault(), f"bit {at}"
    finally:
        path.write_bytes(kept)
    assert whole.keys_fault() == ""


def test_a_content_under_another_ones_name_is_found(settings: Settings, store: Store) -> None:
    """Whole, well pressed and of the right length, and yet not what was stored: only the hash tells."""
    (settings.data / "ingest" / "bluesky" / "cursor").write_text("cursor 1")
    make(settings, store, NOW_MS)
    (settings.data / "ingest" / "bluesky" / "cursor").write_text("cursor 2")
    make(settings, store, NOW_MS + 1)
    one, other = (
        next(file.sha256 for file in store.manifest(name).files if file.path.endswith("cursor"))
        for name in store.names()
    )
    shutil.copy(store.folder / "objects" / one[:2] / one, store.folder / "objects" / other[:2] / other)
    assert any("not what its name says" in fault for fault in faults(store))
    with pytest.raises(BackupRefused, match="not what its name says"):
        restore.restore(lost(settings), store.folder)
    assert not settings.data.exists()


def test_a_file_that_is_gone_is_found(whole: Store) -> None:
    for path in of_use(whole):
        aside = path.with_name("aside")
        path.rename(aside)
        assert faults(whole), path
        aside.rename(path)
    assert faults(whole) == []


def test_a_store_that_believed_its_names_would_restore_a_rotten_file(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the bits: without the look at the hash, wrong bytes come back and nobody says so."""
    make(settings, store, NOW_MS)
    before = tree(settings.data)
    wanted = next(one for one in store.manifest(store.names()[0]).files if one.path.endswith("claim"))
    monkeypatch.setattr(Store, "content", lambda self, sha256, size: iter((b"8" if sha256 == wanted.sha256 else b"",)))
    restore.restore(lost(settings), store.folder)
    assert tree(settings.data) != before


@pytest.mark.parametrize("path", ["../outside", "/etc/outside", "a/../../outside", "a\0b", ""])
def test_a_manifest_writes_nothing_outside_the_folder(settings: Settings, store: Store, path: str) -> None:
    manifest = store.manifest(make(settings, store, NOW_MS))
    files = [backup.File(path, 0o600, 1, 1, manifest.files[0].sha256)]
    forged = backup.Manifest(1, NOW_MS, "x", "c", "", True, [], backup.root_of(files), files)
    store.announce("20990101T000000000Z", forged)
    with pytest.raises(BackupRefused, match="may not be written"):
        restore.restore(lost(settings), store.folder)


class Died(BaseException):
    pass


def test_a_restore_that_dies_anywhere_leaves_nothing_and_the_next_one_everything(
    settings: Settings, store: Store
) -> None:
    before = tree(settings.data)
    make(settings, store, NOW_MS)
    lost(settings)
    for fatal in range(len(before) + 1):
        points: Iterator[int] = iter(range(len(before) + 1))

        def crash(name: str, points: Iterator[int] = points, fatal: int = fatal) -> None:
            if next(points) == fatal:
                raise Died

        with pytest.raises(Died):
            restore.restore(settings.data, store.folder, crash_point=crash)
        assert not settings.data.exists()
    restore.restore(settings.data, store.folder)
    assert tree(settings.data) == before


# ---- the forgotten --------------------------------------------------------------------------------------------------


def receipt(owner: str, vault: Vault) -> Sent:
    said = AuthorForgotten(owner=owner, requested=Where(topic="tweets", partition=0, offset=0))
    return outside(said, "/stages/metadata", NOW_MS, 1, vault, f"receipt-{owner}")


def test_whoever_is_forgotten_is_forgotten_in_every_older_backup_too(settings: Settings, store: Store) -> None:
    path = settings.data / "vault" / "keys.sqlite"
    key = known(path)["x:@2"]
    assert key is not None
    older = make(settings, store, NOW_MS)
    copy = path.read_bytes()
    vault = Vault(path)
    vault.destroy("x:@2")
    vault.close()
    make(settings, store, NOW_MS + 1)
    kept = b"".join(file.read_bytes() for file in of_use(store))
    assert key not in kept
    assert key in copy, "the control: a copy of the file, as other backups make it, would have kept the key"
    restore.restore(lost(settings), store.folder / "backups" / f"{older}.json")
    assert known(path)["x:@2"] is None
    assert known(path)["x:@1"] is not None


@pytest.mark.parametrize("namespace", ["", "mine"])
def test_an_old_vault_does_not_bring_back_who_has_a_receipt_in_the_log(
    tmp_path: Path, store: Store, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Vault(tmp_path / "scratch")
    settings = stopped(tmp_path / "data", [receipt("x:@2", scratch), receipt("x:@9", scratch)], namespace)
    path = settings.data / "vault" / "keys.sqlite"
    make(settings, store, NOW_MS)  # this vault still has the key of x:@2: it was put back from somewhere
    done = restore.restore(lost(settings), store.folder)
    assert (done.forgotten, done.keys_destroyed) == (2, 1)
    found = known(path)
    assert (found["x:@2"], found["x:@9"]) == (None, None)
    assert found["x:@1"]
    opened = Vault(path)
    assert opened.make("x:@2") is None
    assert opened.make("x:@9") is None
    opened.close()
    monkeypatch.setattr(restore, "forget", lambda vault, receipts: 0)
    restore.restore(lost(settings), store.folder)
    assert known(path)["x:@2"] is not None, "the control: without a second forgetting the key is there again"


# ---- the drill ------------------------------------------------------------------------------------------------------


async def trained(settings: Settings, kafka: KafkaSettings, vault: Vault, digit: str) -> None:
    """Announce a version as the trainer does, in a transaction; its marker takes an offset in `candidates`."""
    event = ModelTrained(version=digit * 64, base=digit * 64, base_name="base")
    one = outside(event, "/trainer", int(time.time() * 1000), settings.partitions, vault)
    name = settings.group("trainer")
    async with (
        AIOKafkaProducer(**kafka.client_kwargs(), transactional_id=name) as producer,
        producer.transaction(),
    ):
        topic = settings.physical(one.topic)
        await producer.send_and_wait(topic, one.value, one.key, one.partition, one.time_ms, one.headers)


async def seen(settings: Settings, kafka: KafkaSettings) -> dict[str, Any]:
    """Look at all that must be the same after a restore."""
    verdict = await judge(settings, kafka)
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    async with reader(settings, kafka) as log:
        everything = await log.everything(*(topic.name for topic in TOPICS))
        batches = [one for _, one in await closed_batches(log)]
        dataset = await load(log, batches, vault)
    vault.close()
    records = {
        (*place, raw.offset): (raw.timestamp, raw.key, raw.value, tuple(raw.headers))
        for place, raws in everything.items()
        for raw in raws
    }
    ends = await end_offsets(kafka, [settings.physical(topic.name) for topic in TOPICS])
    return {
        "faults": verdict.faults,
        "states": verdict.states,
        "records": records,
        "ends": {(tp.topic, tp.partition): end for tp, end in ends.items()},
        "roots": [one.root for one in batches],
        "dataset": (dataset_sha256(dataset.rows), len(dataset.rows), dataset.withheld),
    }


@pytest.mark.broker
@pytest.mark.slow
def test_the_drill_a_lost_machine_is_made_again_and_goes_on(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XINFLUENCER_KAFKA", raising=False)
    settings = settings_for(tmp_path / "data", "", cache=cache, partitions=2)
    settings.data.chmod(0o700)

    async def life(seed: int, digit: str, erase: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start, look, take in more, stop: what was seen first and last."""
        async with deployment(settings, {}, print) as running:
            await running.start_broker(lambda done, of, what: None)
            kafka = running.kafka
            await ensure_topics(kafka, specs(settings))
            first = {} if erase else await seen(settings, kafka)
            vault = Vault(settings.data / "vault" / "keys.sqlite")
            vault.make("x:@gone")
            now_ms = int(time.time() * 1000)
            records = list(feed(seed, 60, settings.partitions, vault, now_ms))
            if erase is not None:
                erased = AuthorErased(owner=erase, source="x")
                records.append(outside(erased, "/sources/x", now_ms + 1_000, settings.partitions, vault))
            await write(settings, kafka, records)
            await trained(settings, kafka, vault, digit)
            vault.close()
            workers = Workers(settings, kafka)
            with ended(workers):
                workers.start()
                await finish(settings, kafka, workers)
                await asyncio.to_thread(workers.signal, signal.SIGTERM)
            assert workers.ended == [], workers.log()[-3000:]
            return first, await seen(settings, kafka)

    _, before = asyncio.run(life(1, "1", erase="x:@gone"))
    assert before["faults"] == []
    assert before["roots"], "the drill needs a batch to compare"
    assert before["dataset"][1] > 0
    assert before["ends"]["candidates", 0] == 2, "the record and its marker"
    key_gone = known(settings.data / "vault" / "keys.sqlite")
    assert key_gone["x:@gone"] is None

    store = tmp_path / "store"
    began_s = time.monotonic()
    run_backup(settings, store, keep=3)
    backed_up_s = time.monotonic()
    assert run_backup_verify(store) == 0
    run_backup_list(store)
    listed = Store(store).manifest(Store(store).names()[0])
    for (topic, partition), end in before["ends"].items():
        assert listed.log()[f"{topic}-{partition}"].end == end
    shutil.rmtree(settings.data)
    lost_s = time.monotonic()
    run_restore(settings, store)
    restored_s = time.monotonic()
    assert known(settings.data / "vault" / "keys.sqlite") == key_gone

    after, later = asyncio.run(life(2, "2"))
    assert after == before
    assert later["faults"] == []
    assert len(later["records"]) > len(before["records"])
    assert later["records"].items() >= before["records"].items()
    assert len(later["roots"]) > len(before["roots"])
    with capsys.disabled():
        print(f"\ndrill: backup {backed_up_s - began_s:.1f} s, restore {restored_s - lost_s:.1f} s")
