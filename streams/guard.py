"""Guard: a person's SQL -> one statement that can only read tables, or a reason.

The engine's own readonly mode is the wall: no insert, no change of a table or a setting, no url(), file() or s3() as a
table. It has gaps (seen with ClickHouse 26.9): the scalar function file() reads any file, INTO OUTFILE writes one, KILL
and USE pass, and functions that ask services are none of its business. Those are refused here by their words, read
as ClickHouse reads them; what cannot be read is refused as well.
"""

import re
from collections.abc import Collection

FIRST = frozenset({"select", "with", "show", "describe", "desc", "explain", "exists"})
READS_NO_FILE = frozenset(
    {"format", "generate_series", "generaterandom", "generateseries", "loop", "merge", "null", "primes", "values"}
    | {"numbers", "numbers_mt", "sqlstandardvalues", "view", "zeros", "zeros_mt"}
)
"""Table functions that stay inside the database; whatever else the engine knows is refused."""
OUTSIDE = re.compile(r"(?i)file|catboostevaluate|ai_?[a-z]+|sleep|sleepeachrow")
QUERY_CHARS_MAX = 100_000

_TOKEN = re.compile(
    r"""(?P<blank>\s+|--[^\n]*|\#[\ !][^\n]*|/\*.*?\*/)
    |(?P<string>'(?:[^'\\]|\\.|'')*')
    |(?P<quoted>"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>[0-9][A-Za-z0-9_.]*)
    |(?P<other>[][(){}.,:*/%+<>=!?|&^~@;-])""",
    re.VERBOSE | re.DOTALL,
)


class QueryRefused(Exception):
    """The query cannot be answered; the message says why."""


def guarded(query: str, table_functions: Collection[str] = ()) -> str:
    """Give the query without what ends it, if it only reads; QueryRefused says what it may not do.

    `table_functions` are the names that this engine knows.
    """
    if len(query) > QUERY_CHARS_MAX:
        raise QueryRefused(f"the query has {len(query)} characters; at most {QUERY_CHARS_MAX}")
    tokens = list(_tokens(query))
    while tokens and tokens[-1][1] == ";":
        query = query[: tokens.pop()[2]]
    words = [text.lower() for kind, text, _ in tokens if kind == "word"]
    if not words or words[0] not in FIRST:
        raise QueryRefused("only questions are answered: SELECT, WITH, SHOW, DESCRIBE, EXPLAIN, EXISTS")
    outside = {name.lower() for name in table_functions} - READS_NO_FILE
    for (kind, text, _), (next_kind, following, _) in zip(tokens, [*tokens[1:], ("end", "", 0)], strict=True):
        low = text.lower()
        if text == ";":
            raise QueryRefused("give one statement at a time")
        if following == "(" and kind == "quoted":
            raise QueryRefused("write the names of functions without quotes")
        if following == "(" and kind == "word" and (low in outside or OUTSIDE.fullmatch(low)) and low not in FIRST:
            raise QueryRefused(f"{text}() is not allowed: questions reach neither files nor the network")
        if kind == "word" and low == "into" and following.lower() == "outfile":
            raise QueryRefused("INTO OUTFILE is not allowed: use --format and your shell")
        if kind == "word" and low == "format" and next_kind == "word":
            raise QueryRefused("leave FORMAT out and use --format table, json or csv")
    return query


def _tokens(query: str) -> list[tuple[str, str, int]]:
    found, at = [], 0
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None:
            raise QueryRefused(f"the query cannot be read at {query[at : at + 20]!r}")
        if match.lastgroup != "blank":
            found.append((str(match.lastgroup), match.group(), at))
        at = match.end()
    return found
