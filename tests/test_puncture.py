"""Puncturing: what was destroyed is gone, and nothing else: in the tree, in the vault's bytes, in a backup's vault."""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import seal
from schemas.envelope import Refused
from schemas.events import AuthorForgotten, PostForgotten
from schemas.facts import PostContent, Where
from schemas.posts import PostEdited
from schemas.puncture import DEPTH, NODE_BYTES, Node, leaf, place_of, without
from schemas.seal import post_name
from streams import restore
from streams.backup_store import Store
from streams.vault import Vault, untrue
from tests.wire import POST

ROOT = Node(0, 0, bytes(range(NODE_BYTES)))
PLACES = st.integers(0, ROOT.end - 1)
NEAR = st.integers(0, 40)  # places that share nearly all of their path
OWNER = "x:@ann"


def punctured(places: list[int]) -> list[Node]:
    nodes = [ROOT]
    for place in places:
        for node in [node for node in nodes if node.low <= place < node.end]:
            nodes.remove(node)
            nodes += without(node, place)
    return sorted(nodes)


def covering(nodes: list[Node], place: int) -> list[Node]:
    return [node for node in nodes if node.low <= place < node.end]


@settings(max_examples=150, deadline=None)
@given(st.lists(PLACES | NEAR, max_size=8), st.lists(PLACES | NEAR, max_size=8))
def test_after_any_punctures_exactly_the_punctured_fail_and_the_others_are_what_they_were(
    gone: list[int], others: list[int]
) -> None:
    nodes = punctured(gone)
    for place in {*gone, *others, *(one + 1 for one in gone if one + 1 < ROOT.end)}:
        found = covering(nodes, place)
        assert len(found) == (place not in gone)
        assert [leaf(node, place) for node in found] == [leaf(ROOT, place)] * len(found)
    assert all(one.end <= other.low for one, other in pairwise(nodes)), "nodes overlap: one would bring another back"
    # Nothing that is left lies on a path to what is gone: no secret of such a path is kept.
    paths = {path_secret(place, depth) for place in gone for depth in range(DEPTH + 1)}
    assert not paths & {node.secret for node in nodes}


def path_secret(place: int, depth: int) -> bytes:
    """Give the secret of the node above a place, derived another way than by the code that is tested."""
    secret = ROOT.secret
    for level in range(depth):
        at = (place >> 2 * (DEPTH - level - 1) & 3) * NODE_BYTES
        secret = hashlib.blake2b(secret, person=b"xi-tree").digest()[at : at + NODE_BYTES]
    return secret


def test_a_leaf_is_the_end_of_its_path() -> None:
    """The control of the property: the other derivation agrees, and a node that was left would be found."""
    for place in (0, 1, ROOT.end - 1, place_of("post/x:1")):
        assert leaf(ROOT, place) == path_secret(place, DEPTH)
        careless = [ROOT, *without(ROOT, place)]
        assert len(covering(careless, place)) == 1


def test_a_place_costs_72_nodes_and_a_name_has_one_place() -> None:
    assert len(list(without(ROOT, 5))) == 3 * DEPTH
    assert place_of("post/x:1") == place_of("post/x:1") != place_of("post/x:2")
    assert len({place_of(str(n)) for n in range(10_000)}) == 10_000


# ---- the vault ------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vault" / "keys.sqlite"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    opened = Vault(path)
    yield opened
    opened.close()


def on_disk(path: Path) -> bytes:
    """Read every byte of the vault's folder: the file, the write-ahead log, the index."""
    return b"".join(one.read_bytes() for one in sorted(path.parent.iterdir()))


def leaves(vault: Vault, posts: range | list[int], owner: str = OWNER) -> dict[int, bytes | None]:
    return {post: vault.leaf(owner, post_name(f"x:{post}")) for post in posts}


def secrets(root: bytes, post: int) -> list[bytes]:
    """Give every secret from the root to a post's leaf: whoever has one of them has the post."""
    found, place = [root], place_of(post_name(f"x:{post}"))
    for level in range(DEPTH):
        at = (place >> 2 * (DEPTH - level - 1) & 3) * NODE_BYTES
        found.append(hashlib.blake2b(found[-1], person=b"xi-tree").digest()[at : at + NODE_BYTES])
    return found


def root_of(path: Path, owner: str = OWNER) -> bytes:
    with sqlite3.connect(path) as db:
        root: bytes = db.execute("select root from keys where owner = ?", (owner,)).fetchone()[0]
    db.close()
    return root


def test_no_byte_on_disk_leads_to_a_forgotten_post_and_every_other_stays(vault: Vault, path: Path) -> None:
    vault.make(OWNER)
    before, root, gone = leaves(vault, range(60)), root_of(path), [3, 17, 18, 41]
    assert all(before.values())
    assert root in on_disk(path), "control: the root lies there before"
    vault.destroy_all(posts=[(OWNER, f"x:{post}") for post in gone])
    data = on_disk(path)
    for post in gone:
        assert not [secret for secret in secrets(root, post) if secret in data]
    for again in (vault, Vault(path)):
        assert leaves(again, range(60)) == {post: None if post in gone else one for post, one in before.items()}
        assert again.get(OWNER) == again.make(OWNER) is not None
    # The next one: its node, a child of what is gone, is in the file before and not after.
    (held,) = [one for one in secrets(root, 5) if one in data]
    vault.destroy_all(posts=[(OWNER, "x:5")])
    assert held not in on_disk(path)
    assert leaves(vault, [5, 6]) == {5: None, 6: before[6]}


def test_without_secure_delete_the_root_would_be_found(vault: Vault, path: Path) -> None:
    """The negative control of the search through the bytes."""
    vault._db.execute("pragma secure_delete=off")
    owners = [f"x:@{n}" for n in range(50)]
    vault.make_all(owners)
    roots = [root_of(path, owner) for owner in owners]
    for owner in owners:
        vault._db.execute("delete from keys where owner = ?", (owner,))
    vault._db.execute("pragma wal_checkpoint(truncate)")
    assert any(root in on_disk(path) for root in roots)


def test_a_key_is_not_called_destroyed_while_a_reader_keeps_it_in_the_log(vault: Vault, path: Path) -> None:
    vault.make(OWNER)
    root = root_of(path)
    vault._db.execute("pragma busy_timeout=50")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("begin")
    reader.execute("select count(*) from keys").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="write-ahead log"):
        vault.destroy_all(posts=[(OWNER, "x:1")])
    assert root in on_disk(path)
    reader.execute("commit")
    vault.destroy_all(posts=[(OWNER, "x:1")])
    assert root not in on_disk(path)


def test_a_deletion_that_comes_before_its_author_waits_and_is_for_good(vault: Vault, path: Path) -> None:
    vault.destroy_all(posts=[(OWNER, "x:1"), (OWNER, "x:1"), ("x:@bob", "x:1")])
    assert vault.get(OWNER) is None, "a deletion makes nobody a key"
    assert len(on_disk(path)) < 100_000
    for opened in (vault, Vault(path)):
        assert opened.make(OWNER)
        assert [one is None for one in leaves(opened, range(3)).values()] == [False, True, False]
    vault.make_all([OWNER, "x:@bob", "x:@cy"])
    assert leaves(vault, [1], "x:@bob") == {1: None}
    assert leaves(vault, [1], "x:@cy")[1]
    with pytest.raises(Refused, match="deleted"):
        seal.seal(POST.model_copy(update={"post": "x:1"}), "id-1", vault)
    assert seal.seal(POST.model_copy(update={"post": "x:2"}), "id-1", vault)


def test_an_erased_author_stays_erased_whatever_is_deleted_of_them(vault: Vault) -> None:
    vault.make(OWNER)
    vault.destroy_all(posts=[(OWNER, "x:1")])
    vault.destroy(OWNER)
    vault.destroy_all(posts=[(OWNER, "x:2")])
    assert vault.make(OWNER) is vault.get(OWNER) is None
    assert set(leaves(vault, range(4)).values()) == {None}
    assert vault._db.execute("select count(*) from nodes").fetchone() == (0,)


def _puncture(path: Path, first: int) -> None:
    mine = Vault(path)
    mine.make(OWNER)
    for post in range(first, first + 10):
        mine.destroy_all(posts=[(OWNER, f"x:{post}")])


def test_processes_that_forget_at_once_forget_what_each_was_told(vault: Vault, path: Path) -> None:
    vault.make(OWNER)
    before = leaves(vault, range(40))
    work = [get_context("fork").Process(target=_puncture, args=(path, first)) for first in (0, 10, 20)]
    for one in work:
        one.start()
    for one in work:
        one.join(60)
        assert one.exitcode == 0
    assert leaves(vault, [0])[0], "the cache answers until the chunk is over"
    vault.refresh()
    assert leaves(vault, range(40)) == {post: one if post >= 30 else None for post, one in before.items()}
    rows = vault._db.execute("select low, depth, secret from nodes order by low").fetchall()
    assert all(Node(*one).end <= Node(*other).low for one, other in pairwise(rows))


def test_a_receipt_is_untrue_where_an_older_file_was_put_back(vault: Vault, path: Path, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        vault._db.execute("vacuum into ?", (str(tmp_path / name),))
        return tmp_path / name

    where = Where(topic="tweets", partition=0, offset=0)
    post, other = (PostForgotten(owner=OWNER, post=name, requested=where) for name in ("x:1", "x:2"))
    author, unknown = (AuthorForgotten(owner=name, requested=where) for name in (OWNER, "x:@nobody"))
    said = [post, other, author, unknown]
    vault.make(OWNER)
    before = copied("before")
    vault.forget([post])
    between = copied("between")
    assert untrue(path, [post]) == []
    vault.forget(said)
    assert untrue(path, said) == []
    assert untrue(between, said) == [other, author]
    assert untrue(before, said) == [post, other, author]
    with sqlite3.connect(before) as db:  # from before posts had keys
        db.execute("alter table keys drop column root")
        db.execute("drop table nodes")
    db.close()
    assert untrue(before, said) == [post, other, author]


# ---- words ----------------------------------------------------------------------------------------------------------


def test_all_revisions_of_a_post_go_with_it_and_no_other_post_does(vault: Vault) -> None:
    second = PostEdited(**{**dict(POST), "revision": 2, "named": "x:900", "content": PostContent(text="other words")})
    third = POST.model_copy(update={"post": "x:33"})
    sealed = [(seal.seal(one, f"id-{n}", vault), f"id-{n}", one) for n, one in enumerate((POST, second, third))]
    assert [seal.unseal(token, name, vault) for token, name, _ in sealed] == [one for _, _, one in sealed]
    vault.destroy_all(posts=[(POST.owner, POST.post)])
    found = [seal.unseal(token, name, vault).content for token, name, _ in sealed]  # type: ignore[attr-defined]
    assert found == [None, None, third.content]


def test_a_vault_from_before_posts_had_keys_opens_what_it_sealed_until_its_post_is_deleted(path: Path) -> None:
    path.parent.mkdir()
    key = os.urandom(seal.KEY_BYTES)
    with sqlite3.connect(path) as db:
        db.execute("create table keys (owner text primary key, key blob) without rowid")
        db.executemany("insert into keys values (?, ?)", [(POST.owner, key), ("x:@gone", None)])
    db.close()
    assert POST.content is not None
    plain = POST.content.model_dump_json(exclude_none=True).encode()  # type: ignore[union-attr]
    old = POST.model_copy(update={"content": seal.seal_bytes(key, plain, b"PostObserved/id-1")})
    for _ in range(2):
        vault = Vault(path)
        assert vault.get(POST.owner) == key
        assert vault.make("x:@gone") is vault.leaf("x:@gone", "post/x:1") is None
        assert seal.unseal(old, "id-1", vault) == POST
    new = seal.seal(POST, "id-1", vault)
    assert new.content != old.content  # type: ignore[attr-defined]
    vault.destroy_all(posts=[(POST.owner, POST.post)])
    assert seal.unseal(old, "id-1", vault).content is None  # type: ignore[attr-defined]
    assert seal.unseal(new, "id-1", vault).content is None  # type: ignore[attr-defined]
    # The limit that is stated: whoever has the file still opens the old token, and it alone, until the author goes.
    assert seal.open_bytes(key, old.content, b"PostObserved/id-1") == plain  # type: ignore[arg-type]
    with pytest.raises(Refused, match="seal-broken"):
        seal.open_bytes(key, new.content, b"PostObserved/id-1")  # type: ignore[attr-defined]


# ---- backups --------------------------------------------------------------------------------------------------------


def test_a_post_is_forgotten_once_more_in_a_vault_that_comes_from_before(
    vault: Vault, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.make(OWNER)
    before, root = leaves(vault, range(9)), root_of(path)
    store = Store(tmp_path / "store")
    store.put_keys(path)
    where = Where(topic="tweets", partition=0, offset=0)
    receipts: list[Any] = [
        PostForgotten(owner=OWNER, post="x:4", requested=where),
        AuthorForgotten(owner="x:@never", requested=where),
    ]
    old = tmp_path / "old" / "keys.sqlite"
    old.parent.mkdir()
    old.write_bytes(store.keys.read_bytes())
    assert root in on_disk(old), "control: the copy from before has the root of all"
    assert restore.forget(old, receipts) == 1
    assert restore.forget(old, receipts) == 0
    assert not [secret for secret in secrets(root, 4) if secret in on_disk(old)]
    assert leaves(Vault(old), range(9)) == {**before, 4: None}
    vault.forget(receipts)
    store.put_keys(path)
    assert not [secret for secret in secrets(root, 4) if secret in on_disk(store.keys)], "the next backup forgot it too"
