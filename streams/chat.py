"""Chat: OpenAI's shapes <-> our ids; a request that is repeated has the same names and the same seed.

Shapes as in the Chat Completions API (https://platform.openai.com/docs/api-reference/chat); fields that it has and we
do not are ignored, as it does with ours. Names are made of what was asked, by whom, under which key and of which
version, so the same key with other parameters is another request and never two texts under one id.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from schemas.facts import Turn
from schemas.ids import digest, subject_id
from streams.problems import Problem

MESSAGES_MAX = 64
CHARS_MAX = 20_000  # of all messages; the model reads at most 2,048 tokens, about 8,000 characters of English
ANSWERS_MAX = 8
TOKENS_MAX = 1024  # an answer; 26 s on two cores
TOKENS_DEFAULT = 256
STOPS_MAX, STOP_CHARS_MAX = 4, 64
USER_CHARS_MAX = 200
KEY_CHARS_MAX = 256
SEED_MAX = 2**53 - 1  # what JSON readers hold exactly
TEMPERATURE_DEFAULT, TOP_P_DEFAULT = 0.7, 0.95


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Part(_Shape):
    """A piece of a message; only text is known here."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=CHARS_MAX)]


class Said(_Shape):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=CHARS_MAX)] | Annotated[list[Part], Field(max_length=MESSAGES_MAX)]

    def turn(self) -> Turn:
        """Give the one form that ids are made of: parts joined, `developer` under its older name."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(_Shape):
    """What a stream says beside the text."""

    include_usage: bool | None = None


class ChatRequest(_Shape):
    """A conversation to go on with."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=MESSAGES_MAX)]
    model: Annotated[str, Field(max_length=128)] = "default"
    n: Annotated[int, Field(ge=1, le=ANSWERS_MAX)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=STOP_CHARS_MAX)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=STOP_CHARS_MAX)]], Field(max_length=STOPS_MAX)]
        | None
    ) = None
    user: Annotated[str, Field(min_length=1, max_length=USER_CHARS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


@dataclass(frozen=True)
class Ask:
    """A request in its one form, named."""

    turns: tuple[Turn, ...]
    owner: str
    key: str
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """Name the question: the same words are the same prompt, whoever asks."""
        return prompt_id(self.turns)

    def items(self, version: str) -> tuple[str, ...]:
        """Name each answer that `version` gives to this request."""
        return tuple("a:" + digest(self.prompt, version, self.key, str(ordinal)) for ordinal in range(self.n))


def read(request: ChatRequest, idempotency_key: str | None) -> Ask:
    """Name a request. Problem 400 if it is longer than the limits."""
    turns = tuple(said.turn() for said in request.messages)
    if sum(len(turn.content) for turn in turns) > CHARS_MAX:
        raise Problem(400, "too_long", f"messages: all together they may have {CHARS_MAX} characters.", "messages")
    owner = owner_id(request.user)
    tokens = request.max_completion_tokens or request.max_tokens or TOKENS_DEFAULT
    temperature = TEMPERATURE_DEFAULT if request.temperature is None else request.temperature
    top_p = TOP_P_DEFAULT if request.top_p is None else request.top_p
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    n = request.n or 1
    key = uuid4().hex
    if idempotency_key is not None:
        rest = json.dumps([n, tokens, temperature, top_p, request.seed, stops])
        key = digest("request", owner, checked_key(idempotency_key), rest)
    seed = int(digest("seed", key)[:13], 16) if request.seed is None else request.seed
    return Ask(turns, owner, key, n, tokens, temperature, top_p, seed, stops)


def checked_key(idempotency_key: str) -> str:
    """Give the key back, or Problem 400 if it is longer than the limit."""
    if not 0 < len(idempotency_key) <= KEY_CHARS_MAX:
        raise Problem(400, "bad_key", f"Idempotency-Key: give 1 to {KEY_CHARS_MAX} characters.", "Idempotency-Key")
    return idempotency_key


def prompt_id(turns: Sequence[Turn]) -> str:
    """Name a conversation by its roles and words."""
    return "q:" + digest(*(part for turn in turns for part in (turn.role, turn.content)))


def owner_id(user: str | None) -> str:
    """Name whoever asks; what an id may not hold is written as %XX, so two users never share a name."""
    if user is None:
        return "user:anonymous"
    name = "user:" + re.sub(r"[\x00-\x20/%]", lambda found: f"%{ord(found[0]):02X}", user)
    if len(name) > 256:
        raise Problem(400, "bad_input", "user: too many characters that a name may not hold.", "user")
    return name


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Count as OpenAI does."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def ours(ask: Ask, release: int, version: str) -> dict[str, Any]:
    """Say what OpenAI's shape has no place for: exactly what answered, and the names to give feedback on."""
    subjects = [subject_id(ask.prompt, item) for item in ask.items(version)]
    return {"release": release, "version": version, "prompt": ask.prompt, "subjects": subjects, "seed": ask.seed}


def completion(name: str, created_s: int, version: str, texts: Sequence[str], reasons: Sequence[str]) -> dict[str, Any]:
    """Shape a whole answer."""
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": created_s,
        "model": version,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ],
    }


def chunk(
    name: str, created_s: int, version: str, choices: Sequence[tuple[int, dict[str, str], str | None]]
) -> dict[str, Any]:
    """Shape one step of a stream; a choice is (index, delta, finish reason)."""
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion.chunk",
        "created": created_s,
        "model": version,
        "choices": [{"index": index, "delta": delta, "finish_reason": reason} for index, delta, reason in choices],
    }


def sse(data: dict[str, Any] | str) -> bytes:
    """Frame one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
