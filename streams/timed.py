"""Timed: a job of the server, whose times and tokens are counted and, where wanted, told as a span.

Names, meanings and boundaries are those of OpenTelemetry's semantic conventions for GenAI (server metrics, inference
span): the same in semconv 1.41 and in the repository that they moved to with 1.42 (semantic-conventions-genai), where
they are in development and have no release yet. What was asked and said is never told.
"""

import time
from dataclasses import dataclass, field

from streams.metrics import CHAT, Metrics
from streams.problems import Problem
from streams.shelf import Known
from streams.speaking import Job, Spoken
from streams.tracing import Span, Spans, parent


@dataclass(frozen=True)
class Telling:
    """Where a job's figures go, and what the job is about."""

    metrics: Metrics
    spans: Spans
    model: str  # as a label: an alias, "base" or "version", however it was asked for
    known: Known
    answer: str  # id of the answer's event
    traceparent: bytes  # of the answer's event
    asked: bytes | None = None  # the client's
    streamed: bool = False


@dataclass
class TimedJob(Job):
    """A job that notes when it began, when its first words came and when it ended; the model's thread tells."""

    telling: Telling = field(kw_only=True)
    began_ns: int = field(default_factory=time.time_ns)
    began_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None

    def tell(self, item: "tuple[int, str] | Spoken | Exception") -> None:
        """Hand it on, and note it."""
        if isinstance(item, tuple):
            if self.first_s is None:
                self.first_s = time.perf_counter() - self.began_s
        else:
            self._ended(item)
        super().tell(item)

    def _ended(self, item: "Spoken | Exception") -> None:
        telling, took_s = self.telling, time.perf_counter() - self.began_s
        metrics, labels = telling.metrics, {**CHAT, "gen_ai_request_model": telling.model}
        error = _error(item)
        metrics.duration.labels(**labels, error_type=error).observe(took_s)
        if isinstance(item, Spoken) and not error:
            metrics.usage.labels(**labels, gen_ai_token_type="input").observe(item.prompt_tokens)
            metrics.usage.labels(**labels, gen_ai_token_type="output").observe(item.completion_tokens)
            if (
                self.ask.n == 1 and self.first_s is not None
            ):  # of several answers at once nothing is told before the end
                metrics.first.labels(**labels).observe(self.first_s)
                if item.completion_tokens > 1:
                    metrics.each.labels(**labels).observe((took_s - self.first_s) / (item.completion_tokens - 1))
        telling.spans.write(self._span(item, error, took_s))

    def _span(self, item: "Spoken | Exception", error: str, took_s: float) -> Span:
        telling, ask = self.telling, self.ask
        attributes: dict[str, str | int | float | tuple[str, ...]] = {
            "gen_ai.operation.name": CHAT["gen_ai_operation_name"],
            "gen_ai.provider.name": CHAT["gen_ai_provider_name"],
            "gen_ai.request.model": telling.model,
            "gen_ai.response.model": telling.known.version,
            "gen_ai.response.id": f"chatcmpl-{telling.answer}",  # as the client sees it
            "gen_ai.request.max_tokens": ask.max_tokens,
            "gen_ai.request.temperature": ask.temperature,
            "gen_ai.request.top_p": ask.top_p,
            "gen_ai.request.seed": ask.seed,
            "xinfluencer.release": telling.known.release,
        }
        if ask.n != 1:
            attributes["gen_ai.request.choice.count"] = ask.n
        if telling.streamed:
            attributes["gen_ai.request.stream"] = True
            if self.first_s is not None and ask.n == 1:
                attributes["gen_ai.response.time_to_first_chunk"] = round(self.first_s, 6)
        if isinstance(item, Spoken):
            attributes["gen_ai.usage.input_tokens"] = item.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = item.completion_tokens
            attributes["gen_ai.response.finish_reasons"] = item.reasons
        return Span(
            f"chat {telling.model}",
            telling.traceparent,
            self.began_ns,
            self.began_ns + int(took_s * 1e9),
            attributes,
            parent(telling.asked),
            error,
        )


def _error(item: "Spoken | Exception") -> str:
    """Give the class of error, '' for none."""
    if isinstance(item, Spoken):
        return "cancelled" if "cancelled" in item.reasons else ""
    return item.code if isinstance(item, Problem) else type(item).__name__
