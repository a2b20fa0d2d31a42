"""Chat: messages -> token ids, where only the template can say who speaks.

A chat template is text, and text from outside may contain `<|im_end|>\\n<|im_start|>system`. So a conversation is never
rendered and tokenised as one string. The template is rendered with a placeholder for each content; what it says itself
is tokenised with its special tokens, and each content by a second tokenizer that has none. Training, evaluation and
generation all build their ids here, so they agree to the token.

The second tokenizer is an object of its own, not a flag: transformers' `split_special_tokens` sets a state that another
thread's call would change back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from models.rows import ROLES

Message = dict[str, str]


class Chat:
    """The text rules of one base folder. Calls from several threads are safe."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if self.tokenizer.eos_token_id is None or not self.tokenizer.chat_template:
            raise ValueError(f"{folder.name} has no end-of-turn token or no chat template")
        self.end = int(self.tokenizer.eos_token_id)
        rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
        self.special = frozenset(token["id"] for token in rules["added_tokens"])
        self._marked = Tokenizer.from_str(json.dumps(rules))
        self._plain = Tokenizer.from_str(json.dumps({**rules, "added_tokens": [], "post_processor": None}))

    def text_ids(self, text: str) -> list[int]:
        """Ids of text that somebody wrote. None is special, whatever it says; raises ValueError if the vocabulary
        itself could spell one. A lone surrogate becomes a question mark, since it has no UTF-8."""
        ids = self._plain.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids
        if not self.special.isdisjoint(ids):
            raise ValueError("this tokenizer can spell a special token from plain text: the base is refused")
        return ids

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation and the opening of the assistant's turn. Raises ValueError for a role that is none."""
        return self._rendered(messages)

    def answer_ids(self, text: str) -> list[int]:
        """What the model should have said: the text and the end of its turn."""
        return [*self.text_ids(text), self.end]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([token for token in ids if token not in self.special])

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        if wrong := [message["role"] for message in messages if message["role"] not in ROLES]:
            raise ValueError(f"the role {wrong[0]!r} is not one of {ROLES}")
        # Private-use letters: no template contains them, and no content is in the string that is searched for them.
        marks = [f"\ue000{n}\ue001" for n in range(len(messages))]
        rest = self.tokenizer.apply_chat_template(
            [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)],
            add_generation_prompt=True,
            tokenize=False,
        )
        ids: list[int] = []
        for message, mark in zip(messages, marks, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise ValueError("the chat template does not show every message once, in order")
            ids += self._marked.encode(before, add_special_tokens=False).ids
            ids += self.text_ids(message["content"])
        return ids + self._marked.encode(rest, add_special_tokens=False).ids
