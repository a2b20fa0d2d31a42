"""Generate: messages and a release -> answers, the same ones every time.

A call holds one release from its first token to its last, and its draws come from generators of its own, so what ran
before, or at the same time, changes nothing. A release is loaded beside the others and then worn by exchanging
pointers; unloading waits for the call that wears it.

The loop is written out: it keeps the n answers to one prompt in one batch (the prompt is read once, and on a CPU the
weights' way through memory, not arithmetic, is what a token costs), drops each as it ends, and asks after every token
whether to stop.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.base import Base, load_model
from models.chat import Chat, Message
from models.merge import Weights, base_weights, merged, wear
from models.score import answer_logprobs

ANSWERS_MAX = 8
PROMPT_TOKENS_MAX = 2048  # reading it takes about 4 s on two cores
ANSWER_TOKENS_MAX = 1024
LIKELY = 200  # top_p cuts among this many tokens; sorting all 49,152 for it costs more than the model's last layer


@dataclass(frozen=True)
class Completion:
    """One answer. `tokens` counts the end-of-turn token; `finish_reason` is stop, length or cancelled."""

    text: str
    tokens: int
    finish_reason: str


def never() -> bool:
    return False


class Generator:
    """One base in memory, and the releases that were loaded over it. Calls from several threads queue."""

    def __init__(self, base: Base, threads: int) -> None:
        torch.set_num_threads(threads)
        self.base = base
        self.chat = Chat(base.path)
        self._model = load_model(base)
        self._by_release: dict[str | None, Weights] = {None: base_weights(self._model)}
        self._lock = threading.Lock()

    def load(self, name: str, adapter: Path) -> None:
        """Make a verified adapter available as `name`; calls go on meanwhile. Raises AdapterRefused."""
        weights = merged(self._by_release[None], self.base, adapter)
        with self._lock:
            self._by_release[name] = weights

    def unload(self, name: str) -> None:
        """Forget a release once no call wears it. Raises KeyError when it is not loaded."""
        with self._lock:
            del self._by_release[name]
            wear(self._model, self._by_release[None])

    @property
    def loaded(self) -> list[str]:
        return sorted(name for name in list(self._by_release) if name is not None)

    def generate(
        self,
        messages: Sequence[Message],
        release: str | None,
        n: int = 1,
        max_tokens: int = 64,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        stop: Callable[[], bool] = never,
    ) -> list[Completion]:
        """`n` answers by `release` (None is the base). Temperature 0 takes the likeliest token.

        `on_text` gets the text of a single answer as it grows; it and `stop` run in the calling thread. Raises KeyError
        for a release that is not loaded, ValueError for an input beyond the limits above.
        """
        if not 1 <= n <= ANSWERS_MAX or (on_text and n != 1):
            raise ValueError(f"n is between 1 and {ANSWERS_MAX}, and 1 when the text is streamed")
        if not 1 <= max_tokens <= ANSWER_TOKENS_MAX or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"max_tokens is at most {ANSWER_TOKENS_MAX}, temperature at least 0, top_p in (0, 1]")
        prompt = self.chat.prompt_ids(messages)
        if len(prompt) > PROMPT_TOKENS_MAX:
            raise ValueError(f"the prompt has {len(prompt)} tokens; the limit is {PROMPT_TOKENS_MAX}")
        with self._lock:
            wear(self._model, self._by_release[release])
            return self._answers(prompt, n, max_tokens, Draw(temperature, top_p, seed, n), on_text, stop)

    @torch.inference_mode()
    def logprobs(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], release: str | None) -> list[float]:
        """Natural log-probability of each token of an answer, under a release."""
        with self._lock:
            wear(self._model, self._by_release[release])
            return answer_logprobs(self._model, prompt_ids, answer_ids).tolist()

    @torch.inference_mode()
    def _answers(
        self,
        prompt: list[int],
        n: int,
        max_tokens: int,
        draw: Draw,
        on_text: Callable[[str], None] | None,
        stop: Callable[[], bool],
    ) -> list[Completion]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        ids_BT = torch.tensor([prompt])
        answers: list[list[int]] = [[] for _ in range(n)]
        reasons = ["length"] * n
        rows = list(range(n))  # which answer each row of the batch belongs to
        told = ""
        while rows:
            if stop():
                for row in rows:
                    reasons[row] = "cancelled"
                break
            out = self._model(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits_BV = out.logits[:, -1]
            if not answers[0] and n > 1:
                cache.batch_repeat_interleave(n)
                logits_BV = logits_BV.expand(n, -1)
            tokens = draw(logits_BV, rows)
            kept = []
            for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                answers[row].append(token)
                if token in self.chat.special:  # the end of the turn, or a mark that no answer may contain
                    reasons[row] = "stop"
                elif len(answers[row]) < max_tokens:
                    kept.append(place)
            if on_text:
                told = _tell(on_text, told, self.chat.decode(answers[0]), final=not kept)
            if kept and len(kept) < len(rows):
                cache.batch_select_indices(torch.tensor(kept))
            ids_BT = torch.tensor([[tokens[place]] for place in kept])
            rows = [rows[place] for place in kept]
        if on_text:
            _tell(on_text, told, self.chat.decode(answers[0]), final=True)
        return [
            Completion(self.chat.decode(answer), len(answer), reason)
            for answer, reason in zip(answers, reasons, strict=True)
        ]


class Draw:
    """Logits -> one token a row. Row k draws from a generator seeded by (seed, k): rows do not disturb each other, and
    two releases asked with one seed meet the same chances."""

    def __init__(self, temperature: float, top_p: float, seed: int, n: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        digests = [hashlib.sha256(f"{seed}/{row}".encode()).digest() for row in range(n)]
        self._generators = [torch.Generator().manual_seed(int.from_bytes(d[:8], "big") >> 1) for d in digests]

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> list[int]:
        if self.temperature == 0:
            return logits_BV.argmax(-1).tolist()
        # The likeliest come first, so the nucleus (arXiv:1904.09751) is where the sum before a token is under top_p.
        probs_BV = torch.softmax(logits_BV.float() / self.temperature, dim=-1)
        probs_BK, tokens_BK = probs_BV.topk(min(LIKELY, probs_BV.shape[-1]))
        before_BK = probs_BK.cumsum(-1) - probs_BK
        probs_BK = probs_BK.masked_fill(before_BK >= self.top_p, 0)
        sums_BK = probs_BK.cumsum(-1)
        chance_B1 = torch.stack([torch.rand(1, generator=self._generators[row]) for row in rows])
        choice_B1 = torch.searchsorted(sums_BK, chance_B1 * sums_BK[:, -1:], right=True)
        last_B1 = (probs_BK > 0).sum(-1, keepdim=True) - 1  # rounding may point one past it
        return tokens_BK.gather(-1, torch.minimum(choice_B1, last_B1)).flatten().tolist()


def _tell(on_text: Callable[[str], None], told: str, text: str, final: bool) -> str:
    """Send what is new. A letter of several tokens is held back until it is whole."""
    if not final and text.endswith("\ufffd"):
        return told
    if len(text) > len(told):
        on_text(text[len(told) :])
    return text
