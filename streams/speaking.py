"""Speaking: jobs -> text, by one thread, in order of arrival; the queue before it has a limit.

One thread, because the model's weights are worn by one call at a time and a CPU gains nothing from two. A job is
bound to one version from its first token to its last. It ends early when a stop word was said or nobody listens.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from streams.chat import Ask
from streams.metrics import Metrics
from streams.problems import Problem

if TYPE_CHECKING:
    from models.generate import Generator

log = logging.getLogger("xinfluencer.server")

REQUESTS_WAITING_MAX = 32  # at 5 s an answer the last one waits under three minutes
RETRY_AFTER_S = 10


@dataclass(frozen=True)
class Spoken:
    """What a job came to: one text and one reason (stop, length, cancelled) an answer."""

    texts: tuple[str, ...]
    reasons: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Job:
    """One request on its way through the thread. `said` gets (index, text), and at last a Spoken or an exception."""

    ask: Ask
    adapter: str | None
    generator: "Generator"
    on_end: Callable[[], None]  # called in the event loop, once, however the job ended
    said: "asyncio.Queue[tuple[int, str] | Spoken | Exception]" = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    stopped: threading.Event = field(default_factory=threading.Event)

    def tell(self, item: "tuple[int, str] | Spoken | Exception") -> None:
        """Hand something to whoever waits in the event loop."""
        self._call(self.said.put_nowait, item)

    def tell_part(self, index: int, text: str) -> None:
        """Hand over the next words of one answer."""
        self.tell((index, text))

    def end(self) -> None:
        """Let go of the version."""
        self._call(self.on_end)

    def _call(self, what: Callable[..., object], *arguments: object) -> None:
        # The loop may have been closed by a shutdown that did not wait for this thread: then nobody listens.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what, *arguments)

    async def result(self) -> Spoken:
        """Wait for the end; the pieces are left out. Raises what the thread raised."""
        while True:
            item = await self.said.get()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Spoken):
                return item


class Speaker:
    """The thread."""

    def __init__(self, metrics: Metrics, waiting_max: int = REQUESTS_WAITING_MAX) -> None:
        self._metrics = metrics
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting_max)
        self._now: Job | None = None
        self._closed = False
        metrics.waiting.set_function(self._jobs.qsize)
        self._thread = threading.Thread(target=self._run, name="speaker", daemon=True)
        self._thread.start()

    def admit(self) -> None:
        """Raise Problem 429 if no job can be queued now: whoever is to be refused is not loaded for."""
        if self._closed:
            raise Problem(503, "stopping", "The server is stopping.", None, RETRY_AFTER_S)
        if self._jobs.full():
            busy = f"{self._jobs.maxsize} requests are waiting; try again later."
            raise Problem(429, "busy", busy, None, RETRY_AFTER_S)

    def submit(self, job: Job) -> None:
        """Queue a job, or raise Problem 429. Only the event loop queues, so what was admitted there just now fits."""
        self.admit()
        self._jobs.put_nowait(job)

    def close(self) -> None:
        """Cut what is being said and drop what waits. The thread ends at its next token."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while job := self._jobs.get_nowait():
                job.stopped.set()
                self._serve(job)
        if self._now is not None:
            self._now.stopped.set()
        self._jobs.put_nowait(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._now = job
            self._serve(job)
            self._now = None

    def _serve(self, job: Job) -> None:
        try:
            if job.stopped.is_set():
                job.tell(Spoken((), ("cancelled",), 0, 0))
                return
            began = time.monotonic()
            spoken = speak(job)
            self._metrics.generation.observe(time.monotonic() - began)
            self._metrics.tokens.labels("prompt").inc(spoken.prompt_tokens)
            self._metrics.tokens.labels("completion").inc(spoken.completion_tokens)
            job.tell(spoken)
        except Exception as error:  # noqa: BLE001 - it is raised again where the request waits
            job.tell(error)
        finally:
            job.end()


def speak(job: Job) -> Spoken:
    """Generate. Problem 400 for a conversation that the model cannot read."""
    ask = job.ask
    messages = [{"role": turn.role, "content": turn.content} for turn in ask.turns]
    cuts = [Cut(ask.stops, partial(job.tell_part, index)) for index in range(ask.n)]
    alone = ask.n == 1
    try:
        prompt_tokens = len(job.generator.chat.prompt_ids(messages))
        completions = job.generator.generate(
            messages,
            job.adapter,
            n=ask.n,
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=ask.seed,
            on_text=cuts[0].hear if alone else None,
            stop=lambda: job.stopped.is_set() or (alone and cuts[0].found),
        )
    except ValueError as error:
        raise Problem(400, "unreadable", f"messages: {error}.", "messages") from None
    reasons = []
    for cut, done in zip(cuts, completions, strict=True):
        if not alone and done.finish_reason != "cancelled":
            cut.hear(done.text)
        cut.finish()
        reasons.append("stop" if cut.found else done.finish_reason)
    # What was told is what is kept, so a stream, its record and the same request without a stream agree to the letter.
    tokens = sum(done.tokens for done in completions)
    return Spoken(tuple(cut.text for cut in cuts), tuple(reasons), prompt_tokens, tokens)


class Cut:
    """Text as it grows -> the same up to the first stop word; what may begin one is held back until that is clear."""

    def __init__(self, stops: tuple[str, ...], tell: Callable[[str], None]) -> None:
        self.text = ""
        self.found = False
        self._stops = stops
        self._tell = tell
        self._told = 0

    def hear(self, piece: str) -> None:
        """Take the next piece."""
        if self.found:
            return
        self.text += piece
        ends = [at for stop in self._stops if (at := self.text.find(stop)) >= 0]
        if ends:
            self.found = True
            self.text = self.text[: min(ends)]
        self._tell_until(len(self.text) if self.found else len(self.text) - self._held())

    def finish(self) -> None:
        """No more will come."""
        self._tell_until(len(self.text))

    def _held(self) -> int:
        return max(
            (size for stop in self._stops for size in range(1, len(stop)) if self.text.endswith(stop[:size])), default=0
        )

    def _tell_until(self, end: int) -> None:
        if end > self._told:
            self._tell(self.text[self._told : end])
            self._told = end
