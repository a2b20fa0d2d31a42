"""Wrong worker: the worker with one mistake, by name; the fault tests must find each of them.

Run as `python tests/wrong_worker.py VARIANT`. The mistakes are those that Faust's usual patterns make.
"""

import asyncio
import sys
import uuid
from collections.abc import Sequence

from streams import fold, shell
from streams.sender import Sender
from streams.settings import Settings
from streams.worker import run_worker


def agent_raises() -> None:
    """An agent that raises: the chunk is taken as done, as Faust's ack does; it raises on some records."""
    right = fold.Fold.take

    def take(self: fold.Fold, raws: Sequence[fold.Raw]) -> list[fold.Sent]:
        if any(raw.offset % 97 == 13 for raw in raws):
            self.memory.last = fold.fingerprint(raws[-1])  # or the check at the next start would find it first
            return []
        return right(self, raws)

    fold.Fold.take = take  # type: ignore[method-assign]


def unawaited_send() -> None:
    """Outputs are handed to the producer and not waited for; the state and the commit go ahead of them."""
    right = Sender.send
    tasks = set()

    async def send(self: Sender, records: object, crash_point: object = None) -> None:
        async def later() -> None:
            await asyncio.sleep(0.5)
            await right(self, records)  # type: ignore[arg-type]

        task = asyncio.ensure_future(later())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    Sender.send = send  # type: ignore[method-assign,assignment]


def random_ids() -> None:
    """Outputs are named at random, so a second attempt is another event."""
    fold.output_id = lambda *parts: uuid.uuid4().hex  # type: ignore[assignment]


def no_dedupe() -> None:
    """What was applied before is applied again."""
    fold.Fold._known = lambda self, record, value: False  # type: ignore[method-assign,assignment]


def commit_first() -> None:
    """The state is kept before the outputs are sent."""
    right = shell.Shell._handle

    async def handle(self: shell.Shell, chunk: object) -> None:
        owned = self.owned.get(chunk.tp)  # type: ignore[attr-defined]
        if owned is not None:
            send = self.sender.send

            async def keep_first(records: object, crash_point: object = None) -> None:
                owned.fold.memory.next = chunk.end  # type: ignore[attr-defined]
                self._snapshot(owned)
                self.crash_point("after-send")
                owned.fold.memory.next = chunk.start  # type: ignore[attr-defined]
                await send(records)  # type: ignore[arg-type]

            self.sender.send = keep_first  # type: ignore[method-assign,assignment]
            try:
                await right(self, chunk)  # type: ignore[arg-type]
            finally:
                self.sender.send = send  # type: ignore[method-assign]
            return
        await right(self, chunk)  # type: ignore[arg-type]

    shell.Shell._handle = handle  # type: ignore[method-assign,assignment]


VARIANTS = {one.__name__: one for one in (agent_raises, unawaited_send, random_ids, no_dedupe, commit_first)}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    run_worker(Settings.from_env())
