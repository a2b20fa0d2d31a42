"""Lettering: any text -> one that a picture's fonts can draw: no box stands for a letter, no control character acts."""

from functools import cache
from itertools import groupby

from streams.show import clean

OWN = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, signs, some emoji
OTHERS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "IPAGothic", "Hiragino Sans", "PingFang SC",
    "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai",
    "Noto Emoji", "Symbola",
)  # fmt: skip
"""Fonts that hold other scripts, asked in this order; used where they are installed."""


@cache
def families() -> tuple[str, ...]:
    """Name the fonts to draw with, for matplotlib's `font.family`: each letter comes from the first that has it."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return (OWN, *(name for name in OTHERS if name in installed))


@cache
def letters() -> frozenset[int]:
    """Collect the characters that some of these fonts can draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    found: set[int] = set()
    for name in families():
        found.update(get_font(findfont(FontProperties(family=name))).get_charmap())
    return frozenset(found)


def drawable(text: object) -> str:
    """Give a text on one line, where "[3 letters]" stands for three in a row that no font here has."""
    out = []
    for known, run in groupby(clean(text).replace("\n", " "), lambda one: ord(one) in letters()):
        some = "".join(run)
        out.append(some if known else f"[{len(some)} letter{'s' * (len(some) > 1)}]")
    return "".join(out)


def fitted(text: object, chars_max: int) -> str:
    """Give a drawable text of at most so many characters, cut in its middle: ids differ at their ends."""
    whole = drawable(text)
    if len(whole) <= chars_max:
        return whole
    tail = (chars_max - 1) // 2
    return f"{whole[: chars_max - 1 - tail]}…{whole[-tail:]}"
