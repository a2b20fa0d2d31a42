"""Language: a text -> the one it is mostly in, as BCP 47, or None where there is too little to tell.

CLD2 (Apache-2.0) knows 83 languages by their letters and pieces of four letters; its tables are compiled in, so it has
no state, no file and no network, and the same text always gives the same answer. Names, tags and links are left out
first: they are in no language.
"""

import re

import pycld2
import regex

LETTERS_MIN = 4  # fewer are an exclamation
NOT_WORDS = re.compile(r"[@#$＠＃][\w.]+|https?://\S+")
LETTERS = re.compile(rf"(?:[\W\d_]*[^\W\d_]){{{LETTERS_MIN}}}")
UNREADABLE = regex.compile(r"[\p{C}--[\t\n\r]]+", regex.V1)  # what CLD2 refuses: controls, surrogates, no characters
NO_LANGUAGE = frozenset(("un", "zzp", "tlh"))  # unknown, pig latin, Klingon
RENAMED = {"iw": "he", "jw": "jv"}


def language(text: str) -> str | None:
    """Name the language; deterministic for a version of the package."""
    spoken = NOT_WORDS.sub(" ", text)
    if not LETTERS.match(spoken):
        return None
    try:
        _, _, found = pycld2.detect(spoken, isPlainText=True, bestEffort=True)
    except (pycld2.error, UnicodeEncodeError):
        _, _, found = pycld2.detect(UNREADABLE.sub(" ", spoken), isPlainText=True, bestEffort=True)
    code: str = found[0][1]
    return None if code in NO_LANGUAGE or code.startswith("xx") else RENAMED.get(code, code)
