"""Raters: simulated people with a hidden taste -> judgements of the system's own answers.

Everyone likes an answer that is brief, direct and about the question; each person adds a taste of their own, a little
noise, and a few want the opposite, so a majority is right and one person may not be. Every bit of chance is a hash of
(seed, person, question id, text): asking again, or in another order, gives the same judgements. People see words only,
so two candidates with the same text are never compared, and an id never sways anybody.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from schemas.ids import digest

Kind = Literal["choice", "stars", "thumb", "report"]

WORDS_BEST = (15.0, 30.0)  # no penalty for length within
WORDS_MAX = 90.0  # as bad as nothing
CONTRARIAN_SHARE = 0.17
NOISE = 0.12  # either way, on a utility in 0..1
WEIGHTS = (0.30, 0.35, 0.35)  # brief, on topic, direct


def _items(text: str) -> list[str]:
    return " ".join(text.split()).split("; ")


TASKS = _items("""
    remove a coffee stain; keep bread fresh; sleep better; learn the guitar; save money on food; fix a squeaky
    door; clean a keyboard; start running; remember names; boil an egg; repot a plant; write a short email; pack
    a small suitcase; sharpen a knife; stop snoring; make better coffee; back up my phone; clean windows; cook
    rice; peel garlic; plan a week of meals; focus at work; descale a kettle; store potatoes; wash a wool
    sweater; meet new neighbours; speak more slowly; read more books; oil a bike chain; calm a crying baby; cut
    an onion without tears; dry wet shoes; unclog a sink; choose a password; make a bed quickly; get up earlier;
    grow basil; thank a teacher; say no politely; carry a heavy box
""")  # fmt: skip
WONDERS = _items("""
    does the sky look blue; does bread rise; does ice float; does the moon change shape; does my phone get warm;
    do onions make people cry; does soap clean grease; do leaves turn red; does the sea taste salty; does
    popcorn pop; do cats purr; does metal feel cold; does my bike squeak; does milk boil over; does thunder come
    after lightning; does glass fog up; does honey keep for years; do magnets stick to steel; does yeast need
    sugar; do tides come and go; does salt melt ice; does coffee keep people awake; does my bread dry out; does
    wood float; do balloons stick to hair; does the wind blow at the coast; does rust form on iron; do
    boomerangs return; do stars twinkle; does hair turn grey
""")  # fmt: skip
PURSUITS = _items("""
    baking bread; hiking in the rain; a job interview; long train rides; growing tomatoes; learning a language;
    a first camping trip; painting a wall; a small garden; giving a talk; working from home; cooking for six
    people; a morning routine; travelling with children; taking night photos; buying a used bike; keeping a
    diary; moving house; learning chess; cleaning the kitchen; swimming in cold water; writing a birthday card;
    saving electricity; drawing faces; a long drive; feeding birds; making soup; training a puppy; studying for
    an exam; mending clothes; a picnic; setting up a desk; walking every day; hosting a dinner; learning to code
""")  # fmt: skip
FORMS = (
    ("How do I {}?", TASKS), ("What is the quickest way to {}?", TASKS), ("Why {}?", WONDERS),
    ("Give me one tip for {}.", PURSUITS), ("What should I prepare for {}?", PURSUITS),
    ("What is a common mistake with {}?", PURSUITS),
)  # fmt: skip

FILLER = re.compile(
    r"\b(i'?m happy to help|happy to help|as an ai|certainly|absolutely|great question|of course|sure[,!]"
    r"|let me know if|i hope this helps|in conclusion|it'?s important to note|here (are|is) (a|an|some|the)\b)",
    re.IGNORECASE,
)
LIST_LINE = re.compile(r"(?m)^\s*(?:[-*•]|\d{1,2}[.)])\s+\S")
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
TAG = re.compile(r"#\w")
ENDING = re.compile(r"[.!?…][\"')\]”’]*\s*$")
UNSAFE = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|</?s>|ignore (?:all )?previous", re.IGNORECASE)
STOP = frozenset(WORD.findall("""
    a an and are as at be but by can child common do does explain for from get give has have how i in is it its
    keep make me mistake my need not of on one or prepare quickest should so that the them they this tip to use
    was way what when where which why will with you your
"""))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person said. choice: `subject` was preferred to `other`. stars: 1-5. thumb: -1 or 1. report: 1."""

    kind: Kind
    rater: str
    subject: str
    other: str | None
    value: int
    id: str
    reason: str = ""  # of a report: "spam" or "unsafe"


def _chance(*parts: str) -> float:
    """Turn the parts into a number in 0..1."""
    return int(digest(*parts)[:13], 16) / 16**13


def _stems(text: str) -> set[str]:
    """Give the content words, cut to five letters so that bake, baking and bakes nearly meet."""
    return {word[:5] for word in WORD.findall(text.lower()) if word not in STOP and len(word) > 2}


def _parts(question: str, answer: str) -> tuple[float, float, float]:
    """Measure an answer: (brief, on topic, direct), each in 0..1."""
    count, (low, high) = len(words := WORD.findall(answer.lower())), WORDS_BEST
    brief = count / low if count < low else 1.0 if count <= high else max(0.0, (WORDS_MAX - count) / (WORDS_MAX - high))
    asked, said = _stems(question), _stems(answer)
    topic = min(1.0, 2.0 * len(asked & said) / max(1, len(asked)))
    direct = 1.0 - 0.35 * min(2, len(FILLER.findall(answer)))
    direct -= 0.5 * (len(LIST_LINE.findall(answer)) > 1) + 0.3 * (ENDING.search(answer) is None)
    direct -= 1.2 * _repetition(words)
    if len(said - asked) < 3:  # one word, or the question given back, is no answer
        return brief, 0.2 * topic, max(0.0, 0.3 * direct)
    return brief, topic, max(0.0, direct)


def _dot(weights: Sequence[float], parts: Sequence[float]) -> float:
    """Weigh in a fixed order; the built-in sum rounds differently from Python 3.12 on."""
    return weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * parts[2]


def _repetition(words: Sequence[str]) -> float:
    """Give the share of three-word runs that occurred before."""
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def _fault(answer: str) -> str:
    """Name what makes a text worth reporting: "unsafe", "spam" or nothing."""
    if UNSAFE.search(answer):
        return "unsafe"
    words = WORD.findall(answer.lower())
    return "spam" if not words or _repetition(words) > 0.4 or len(TAG.findall(answer)) > 4 else ""


class Raters:
    """`count` people, numbered; of each ask more than half answer, an odd number where that can be."""

    def __init__(self, seed: int, count: int = 12) -> None:
        if count < 1:
            raise ValueError(f"at least one rater, not {count}")
        self._seed = str(seed)
        self.names = tuple(f"rater-{i:03d}" for i in range(count))
        order = sorted(self.names, key=lambda name: digest("contrarian", self._seed, name))
        self.contrarians = frozenset(order[: int(count * CONTRARIAN_SHARE)])
        self._asked = min(count, count // 2 + 1 | 1)

    def questions(self, n: int) -> list[str]:
        """Give n distinct everyday questions in an order of this seed; ValueError if there are not so many."""
        every = [form.format(item) for form, items in FORMS for item in items]
        if n > len(every):
            raise ValueError(f"there are {len(every)} questions, not {n}")
        return sorted(every, key=lambda question: digest("question", self._seed, question))[:n]

    def utility(self, question: str, answer: str) -> float:
        """Say how good an answer truly is, 0..1: what all these people would agree on without taste or noise."""
        return 0.0 if _fault(answer) else _dot(WEIGHTS, _parts(question, answer))

    def judge(self, question_id: str, question: str, answers: Sequence[tuple[str, str]]) -> list[Judgement]:
        """Let some of the people judge these answers, each a (subject id, text); sorted by rater.

        A person compares two of them, stars them all, or gives one a thumb; and may report a degenerate text.
        """
        order = sorted(answers, key=lambda answer: (digest("text", answer[1]), answer[0]))
        pairs = [(a, b) for a, b in combinations(order, 2) if a[1] != b[1]]
        faults = {text: _fault(text) for _, text in order}
        parts = {text: _parts(question, text) for _, text in order if not faults[text]}
        people = sorted(self.names, key=lambda name: digest("asked", self._seed, name, question_id))[: self._asked]
        judgements: list[Judgement] = []

        def say(kind: Kind, rater: str, subject: str, value: int, other: str | None = None, reason: str = "") -> None:
            name = digest("judgement", self._seed, rater, question_id, subject, other or "", kind)
            judgements.append(Judgement(kind, rater, subject, other, value, name, reason))

        for rater in sorted(people) if order else ():
            mood = _chance("mood", self._seed, rater, question_id)
            feels = {text: self._feel(rater, question_id, text, parts.get(text)) for _, text in order}
            if pairs and mood < 0.6:
                first, second = pairs[int(_chance("pair", self._seed, rater, question_id) * len(pairs))]
                if feels[first[1]] < feels[second[1]]:
                    first, second = second, first
                say("choice", rater, first[0], 1, second[0])
            elif mood < 0.8:
                for subject, text in order:
                    say("stars", rater, subject, 1 + min(4, max(0, int(5.0 * feels[text]))))
            else:
                subject, text = order[int(_chance("thumb", self._seed, rater, question_id) * len(order))]
                say("thumb", rater, subject, 1 if feels[text] > 0.5 else -1)
            for subject, text in order:
                if faults[text] and _chance("report", self._seed, rater, question_id, text) < 0.4:
                    say("report", rater, subject, 1, reason=faults[text])
        return judgements

    def _feel(self, rater: str, question_id: str, text: str, parts: Sequence[float] | None) -> float:
        """Give one person's liking: own weights on the same three things, noise, and the contrary for some."""
        if parts is None:  # a degenerate text pleases nobody
            return 0.0
        own = [w * (0.6 + 0.8 * _chance("taste", self._seed, rater, str(i))) for i, w in enumerate(WEIGHTS)]
        liking = _dot(own, parts) / _dot(own, (1.0, 1.0, 1.0))
        liking = 1.0 - liking if rater in self.contrarians else liking
        return liking + NOISE * (2.0 * _chance("noise", self._seed, rater, question_id, text) - 1.0)
