"""Guard alone, without an engine: what is refused by its words is refused however they are written."""

import pytest

from streams.guard import QUERY_CHARS_MAX, QueryRefused, guarded

KNOWN = ("url", "file", "numbers", "Executable")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT `file`('/etc/passwd')",
        "SELECT \"file\"('/etc/passwd')",
        "SELECT file /* between */ ('/etc/passwd')",
        "SELECT File('/etc/passwd')",
        "SELECT * FROM executable('ls', 'CSV', 'a String')",
        "WITH x AS (SELECT * FROM URL('http://a')) SELECT 1",
        "SELECT aiGenerate('x')",
        "SELECT 1 INTO OUTFILE 'a'",
        "SELECT 1 into -- here\n OutFile 'a'",
        "SELECT 1; DROP TABLE a",
        "SELECT 1;; DROP TABLE a;",
        "SELECT 1 FORMAT CSV",
        "(INSERT INTO a VALUES (1))",
        "x" * (QUERY_CHARS_MAX + 1),
    ],
)
def test_whatever_is_no_question_is_refused_however_it_is_written(query: str) -> None:
    with pytest.raises(QueryRefused, match=r"\w"):
        guarded(query, KNOWN)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "SELECT number FROM numbers(3)",
        "SELECT 'file(1); INTO OUTFILE', `file` FROM a WHERE into = 1 -- file('x')",
        "SELECT count(*) FROM a GROUP BY url",
    ],
)
def test_a_question_passes_as_it_is(query: str) -> None:
    assert guarded(query, KNOWN) == query
    assert guarded(f"{query};;", KNOWN) == query or query.endswith("file('x')")
