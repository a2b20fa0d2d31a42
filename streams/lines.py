"""Lines: a file or a pipe -> JSON values one by one, with bounded memory, and what was damaged in between.

JSON Lines is the normal case: a bad line costs that line. A file that is one JSON array, one pretty-printed object, or
several of them after each other is read value by value; where a bad beginning is followed by a value a line, it is read
as lines after all. Gzip is recognised by its first bytes. None in between means that a pipe is silent for the moment:
send what you have.
"""

import codecs
import gzip
import hashlib
import io
import json
import math
import re
import select
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from schemas.envelope import Refused

LINE_BYTES_MAX = 16 << 20  # a search page of 500 posts with every field is about 2 MB
BLOCK_BYTES = 1 << 16
INT_DIGITS_MAX = 400  # more than any float; Python's own limit of 4,300 raises
IDLE_S = 0.5
SURE_CHARS = 16  # an error so far before the end of what is here is none of a value that goes on
LINES_LOOKED_AT = 100  # of a file that may be JSON Lines with a bad first line
HEAD_BYTES_MAX = 256
BOM = codecs.BOM_UTF8


class IngestRefused(Exception):
    """Nothing can be taken in at all; one sentence says why."""


class Line(NamedTuple):
    """One line, not yet parsed; `place` is file:line."""

    place: str
    data: bytes


class Value(NamedTuple):
    """One JSON value, parsed; `size` in bytes where it was read from a file."""

    place: str
    value: Any
    size: int = 0


class Damage(NamedTuple):
    """A stretch of input that cannot be read."""

    place: str
    reason: str
    detail: str
    size: int
    sha256: str
    head: bytes


Item = Line | Value | Damage | None
Block = bytes | Refused | None


class Unreadable:
    """Stands where JSON text held what is no number for us: NaN, infinity, or hundreds of digits."""


def _whole(text: str) -> Any:
    return int(text) if len(text) <= INT_DIGITS_MAX else Unreadable()


def _broken(text: str) -> Any:
    number = float(text)
    return number if math.isfinite(number) else Unreadable()


_TOLERANT = json.JSONDecoder(parse_int=_whole, parse_float=_broken, parse_constant=lambda name: Unreadable())


def parse(data: bytes) -> Any:
    """Read JSON text; of two equal keys the last counts. Refused: bad-json, too-deep.

    What is wrong inside one string or number (bytes that are not UTF-8, lone surrogates, NaN) is kept in a form that
    is refused where it is used, so that it costs one post and not the page around it.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            return _TOLERANT.decode(data.decode("utf-8", "surrogateescape"))
        except RecursionError:
            raise Refused("too-deep", "JSON nested deeper than this program follows") from None
        except ValueError as error:
            raise Refused("bad-json", str(error)) from None


def read_lines(file: str) -> Iterator[Item]:
    """Open a path, or "-" for standard input, and give what is in it; IngestRefused if it cannot be opened."""
    try:
        raw = io.FileIO(0, closefd=False) if file == "-" else io.FileIO(file)
        stream: io.BufferedReader[Any] = io.BufferedReader(raw, BLOCK_BYTES)
        packed = stream.peek(2)[:2] == b"\x1f\x8b"
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise IngestRefused(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    name = "stdin" if file == "-" else Path(file).name.encode("utf-8", "replace").decode()
    return _items(_blocks(stream, packed, waits=file == "-" and not packed), name)


def _blocks(stream: "io.BufferedReader[Any]", packed: bool, waits: bool) -> Iterator[Block]:
    """Give bytes as they come, None while there are none, and a Refused as the last item if reading broke off."""
    with stream:
        source: Any = gzip.GzipFile(fileobj=stream) if packed else stream
        first = True  # `peek` has filled the buffer, which select does not see
        while True:
            if waits and not first and not select.select([stream], [], [], IDLE_S)[0]:
                yield None
                continue
            first = False
            try:
                block = source.read1(BLOCK_BYTES)
            except EOFError:
                yield Refused("truncated", "the gzip file ends in the middle")
                return
            except (zlib.error, OSError) as error:
                yield Refused("damaged", str(error))
                return
            if not block:
                return
            yield block


def _items(blocks: Iterator[Block], name: str) -> Iterator[Item]:
    """Look at the first bytes that are no space and choose how to read the rest."""
    start = b""
    for block in blocks:
        if isinstance(block, Refused):
            yield from _lines(iter([start, block]), name)
            return
        if block is None:
            yield None
            continue
        start += block
        if BOM.startswith(start):
            continue
        bare = start.removeprefix(BOM)
        # A lone opening brace is pretty-printed JSON: no line of JSON Lines can be just that.
        seen = re.match(rb"\s*(?:(\[|\{[ \t\r]*\n)|\{[ \t\r]*[^ \t\r\n]|[^\s\[{])", bare[:4096])
        if seen or len(bare) >= 4096:
            rest = _chain(bare, blocks)
            yield from _documents(rest, name) if seen and seen[1] else _lines(rest, name)
            return
    if start.removeprefix(BOM).strip():
        yield from _lines(iter([start.removeprefix(BOM)]), name)
    else:
        yield _damage(f"{name}:1", Refused("empty", "there is nothing in it"), start)


def _chain(first: bytes, rest: Iterator[Block]) -> Iterator[Block]:
    yield first
    yield from rest


def _lines(blocks: Iterator[Block], name: str) -> Iterator[Item]:
    held: list[bytes] = []
    size, number = 0, 1
    excess: Any = None  # a running hash while a line is too long to hold
    for block in blocks:
        if block is None:
            yield None
            continue
        if isinstance(block, Refused):
            if excess is not None:
                yield from _line(f"{name}:{number}", held, size, excess)
                held = []
            yield from _cut(f"{name}:{number}", block, b"".join(held))
            return
        pieces = block.split(b"\n")
        for index, piece in enumerate(pieces):
            size += len(piece)
            if excess is not None:
                excess.update(piece)
            else:
                held.append(piece)
                if size > LINE_BYTES_MAX:
                    excess = hashlib.sha256(b"".join(held))
                    held = [b"".join(held)[:HEAD_BYTES_MAX]]
            if index + 1 < len(pieces):
                yield from _line(f"{name}:{number}", held, size, excess)
                held, size, excess, number = [], 0, None, number + 1
    yield from _line(f"{name}:{number}", held, size, excess)


def _line(place: str, held: list[bytes], size: int, excess: Any) -> Iterator[Item]:
    data = b"".join(held)
    if excess is not None:
        detail = f"a line of {size} bytes; at most {LINE_BYTES_MAX}"
        yield Damage(place, "too-large", detail, size, excess.hexdigest(), data)
    elif data.strip():
        yield Line(place, data)


def _cut(place: str, refused: Refused, rest: bytes) -> Iterator[Item]:
    """Use the last piece before a break if it is whole, and say that the rest is missing."""
    try:
        msgspec.json.decode(rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield _damage(place, refused, rest)
    else:
        yield Line(place, rest)
        yield _damage(place, refused, b"")


def _damage(place: str, refused: Refused, data: bytes) -> Damage:
    digest = hashlib.sha256(data).hexdigest()
    return Damage(place, refused.reason, refused.detail, len(data), digest, data[:HEAD_BYTES_MAX])


_BETWEEN = re.compile(r"[\s,]*")


def _documents(blocks: Iterator[Block], name: str) -> Iterator[Item]:
    """Give the values of arrays and of objects that follow each other; after a bad one nothing can be trusted."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, at, number, inside = "", 0, 1, False
    before: str | None = ""  # what stood before the first value, for whoever must begin again
    broke: Refused | None = None
    more, wanted = True, 0
    while True:
        while more and len(text) - at <= wanted:
            block = next(blocks, b"")
            if block is None:
                yield None
            else:
                if before is not None:
                    before = before + text[:at] if len(before) + at <= LINE_BYTES_MAX else None
                text, at = text[at:], 0
                if isinstance(block, Refused) or not block:
                    broke, more = block or None, False
                    text += decoder.decode(b"", True)
                else:
                    text += decoder.decode(block)
        gap = _BETWEEN.match(text, at)
        end = gap.end() if gap else at
        number += text.count("\n", at, end)
        at, wanted = end, 0
        if at == len(text):
            if more:
                continue
            if inside or broke:
                yield _damage(f"{name}:{number}", broke or Refused("truncated", "the array has no end"), b"")
            return
        if text[at] == ("]" if inside else "["):
            inside, at = not inside, at + 1
            continue
        try:
            value, end = _TOLERANT.raw_decode(text, at)
        except (RecursionError, ValueError) as error:
            deep = isinstance(error, RecursionError)
            sure = deep or not more or _sure(error, len(text))
            lines = _are_lines(all_of_it := before + text) if sure and before is not None else False
            if lines:
                begun = all_of_it.encode("utf-8", "surrogateescape") + decoder.getstate()[0]
                yield from _lines(_chain(begun, iter([broke]) if broke else blocks), name)
                return
            if more and len(text) - at <= LINE_BYTES_MAX and (not sure or lines is None):
                wanted = 2 * (len(text) - at)  # doubling, so that a long value is tried again only a few times
                continue
            if deep:
                refused = Refused("too-deep", "the rest of the file is not read")
            elif not sure:
                refused = Refused("too-large", f"no value within {LINE_BYTES_MAX} characters; the rest is not read")
            else:
                refused = broke or Refused(
                    "bad-json", f"{getattr(error, 'msg', error)}; the rest of the file is not read"
                )
            yield _stop(f"{name}:{number}", refused, text, at)
            return
        if end == len(text) and more and not isinstance(value, dict | list):
            wanted = end - at  # a number may go on in the next block
            continue
        before = None
        yield Value(f"{name}:{number}", value, len(text[at:end].encode("utf-8", "surrogateescape")))
        number += text.count("\n", at, end)
        at = end


def _sure(error: Exception, size: int) -> bool:
    """Say whether a value is wrong whatever follows, and not only cut by the end of what is here."""
    return getattr(error, "pos", size) + SURE_CHARS < size and not str(error).startswith("Unterminated")


def _are_lines(text: str) -> bool | None:
    """Say whether half of the lines after a bad first one are an object each; None where there are few yet."""
    following = [one for one in text.split("\n", LINES_LOOKED_AT + 2)[1:-1] if one.strip()][:LINES_LOOKED_AT]
    objects = 0
    for one in following:
        try:
            objects += isinstance(msgspec.json.decode(one.encode("utf-8", "surrogateescape")), dict)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    if 2 * objects >= len(following) > 0:
        return True
    return False if len(following) == LINES_LOOKED_AT else None


def _stop(place: str, refused: Refused, text: str, at: int) -> Damage:
    return _damage(place, refused, text[at:].encode("utf-8", "surrogateescape"))
