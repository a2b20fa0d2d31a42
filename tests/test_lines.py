"""Lines: the same posts come out however a file is written, and what is damaged is named and stepped over."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.posts import PostObserved
from streams import lines
from streams.lines import IngestRefused, read_lines
from tests.ingest_ends import MemoryKeys, dump, page, post, take


def posts_of(file: Path) -> tuple[list[str], list[tuple[str, str]]]:
    summary, end = take(read_lines(str(file)))
    assert summary.unaccounted == 0
    return [one.content.text for one in end.events(PostObserved)], end.letters()


TWO = [page(post(1)), page(post(2))]
WRITTEN = {
    "lines": b"\n".join(dump(*TWO)),
    "lines, Windows": b"\xef\xbb\xbf" + b"\r\n".join(dump(*TWO)) + b"\r\n",
    "lines with gaps": b"\n\n \n" + b"\n\n".join(dump(*TWO)) + b"\n\n\n",
    "an array": json.dumps(TWO).encode(),
    "a pretty array": b"\xef\xbb\xbf\n" + json.dumps(TWO, indent=2).encode() + b"\n",
    "pretty objects": "\n".join(json.dumps(one, indent=1) for one in TWO).encode(),
    "lines of arrays": b"\n".join(b"[" + one + b"]" for one in dump(*TWO)),
    "an array in a line": b"\n".join([b'{"meta":{}}', json.dumps(TWO).encode()]),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("how", WRITTEN)
def test_the_same_posts_are_read_however_the_file_is_written(tmp_path: Path, how: str, packed: bool) -> None:
    file = tmp_path / "feed"
    file.write_bytes(gzip.compress(WRITTEN[how]) if packed else WRITTEN[how])
    assert posts_of(file) == (["post 1", "post 2"], [])


def test_one_pretty_object_is_one_page(tmp_path: Path) -> None:
    file = tmp_path / "page.json"
    file.write_text(json.dumps(page(*(post(n, text="x" * 3000) for n in range(50))), indent=4))
    assert len(posts_of(file)[0]) == 50


def test_a_letter_names_the_line_and_keeps_its_size_hash_and_head(tmp_path: Path) -> None:
    file = tmp_path / "feed.jsonl"
    file.write_bytes(b"\n".join([*dump(post(1)), b"{" + b"x" * 999, *dump(page(post(2), post(3, text=None)))]))
    keys = MemoryKeys()
    _, end = take(read_lines(str(file)), keys=keys)
    assert end.letters() == [("feed.jsonl:2", "bad-json"), ("feed.jsonl:3", "no-text")]
    line, one = (record.event for record in end.read(keys, "dead-letters"))
    assert (line.size, len(line.sha256), line.owner, line.stage) == (1000, 64, "refused:x", "ingest")
    assert line.content.head.startswith("e3h4eHh4")
    assert one.detail == "post: text is NoneType"


def test_a_truncated_gzip_gives_what_could_be_read_and_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join(dump(*(post(n, text=os.urandom(300).hex()) for n in range(100)))))
    file = tmp_path / "cut.gz"
    file.write_bytes(whole[: len(whole) // 2])
    texts, letters = posts_of(file)
    assert 30 < len(texts) < 70
    assert [reason for _, reason in letters] == ["truncated"]
    file.write_bytes(whole[:-4])  # only the length at the end is missing: every post is there
    assert len(posts_of(file)[0]) == 100
    file.write_bytes(whole[:1000] + b"\0" * 50 + whole[1050:])
    assert [reason for _, reason in posts_of(file)[1]] == ["damaged"]


def test_a_cut_array_gives_its_whole_values_and_a_bad_one_ends_the_reading(tmp_path: Path) -> None:
    file = tmp_path / "array.json"
    text = json.dumps([post(n) for n in range(9)], indent=1)
    file.write_text(text[: text.index("post 5")])
    texts, letters = posts_of(file)
    assert len(texts) == 5
    assert [reason for _, reason in letters] == ["bad-json"]
    file.write_text(text[:-2])
    assert [reason for _, reason in posts_of(file)[1]] == ["truncated"]
    file.write_text(text.replace('"post 5"', "post 5"))
    assert len(posts_of(file)[0]) == 5
    file.write_text("[1, 23, \ud800]".encode("utf-8", "surrogatepass").decode("latin-1"))
    assert len(posts_of(file)[1]) == 3


BAD_FIRST = {
    "a brace": b"{",
    "a cut array": b'[{"data": {"id": "1"',
    "an open string": b'[{"data": "cut',
    "too deep": b"[" * 100_000,
    "not UTF-8": b'[{"data": \xe9',
    "a bracket and words": b"[oops]",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bad", BAD_FIRST)
def test_a_bad_first_line_costs_that_line_only(tmp_path: Path, bad: str, packed: bool) -> None:
    file = tmp_path / "feed"
    data = b"\xef\xbb\xbf\n" + b"\n".join([BAD_FIRST[bad], *dump(*(page(post(n, text=f"é{n}")) for n in range(200)))])
    file.write_bytes(gzip.compress(data) if packed else data)
    texts, letters = posts_of(file)
    assert texts == [f"é{n}" for n in range(200)]
    assert [place for place, _ in letters] == ["feed:2"]


def test_control_without_looking_at_what_follows_a_bad_first_line_costs_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "feed"
    file.write_bytes(b"\n".join([b"{", *dump(*(page(post(n)) for n in range(200)))]))
    monkeypatch.setattr(lines, "_are_lines", lambda text: False)
    assert posts_of(file) == ([], [("feed:1", "bad-json")])


def test_a_pretty_file_with_a_bad_first_value_is_one_refusal_and_not_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "page.json"
    for whole in (page(post(1), post(2)), [post(1), post(2)]):
        file.write_text(json.dumps(whole, indent=1).replace('"id": "', "oops", 1))
        place = "page.json:1" if isinstance(whole, dict) else "page.json:2"
        assert posts_of(file) == ([], [(place, "bad-json")])


ODD = st.sampled_from([b"{", b"[", b"}", b"[{", b"x", b'{"meta":{}}', b"[]", b"", b'{"a":', b'[{"a": "', b"[1"])


@given(ODD, st.lists(ODD, max_size=5))
def test_whatever_the_first_line_is_all_good_ones_that_follow_it_are_read(
    tmp_path_factory: pytest.TempPathFactory, first: bytes, last: list[bytes]
) -> None:
    file = tmp_path_factory.mktemp("lines") / "feed"
    file.write_bytes(b"\n".join([first, *dump(*(page(post(n)) for n in range(20))), *last]))
    assert posts_of(file)[0] == [f"post {n}" for n in range(20)]


def test_nothing_at_all_is_said_to_be_nothing(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\n \r\n", b"\xef\xbb\xbf", gzip.compress(b""))):
        file = tmp_path / f"empty{number}"
        file.write_bytes(data)
        assert posts_of(file) == ([], [(f"empty{number}:1", "empty")])


def test_a_pipe_is_read_as_it_comes() -> None:
    code = (
        "from streams.lines import read_lines\n"
        "for one in read_lines('-'): print('idle' if one is None else one.place, flush=True)"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b'{"a": 1}\n{"b"')
        child.stdin.flush()
        assert child.stdout.readline() == b"stdin:1\n"
        assert child.stdout.readline() == b"idle\n"  # half a line waits, and whoever waits for it is told
        child.stdin.write(b": 2}\n")
        child.stdin.close()
        assert child.stdout.read().split()[-1] == b"stdin:2"


@pytest.mark.parametrize("name", ["none.jsonl", "", "a\0b"])
def test_a_file_that_cannot_be_opened_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(IngestRefused, match="cannot be read"):
        read_lines(str(tmp_path / name))
