"""Wrong worker: the worker with one mistake, by name; the fault tests must find each of them.

Run as `python tests/wrong_worker.py VARIANT`. The mistakes are those that Faust's usual patterns make.
"""

import asyncio
import sys
import uuid
from collections.abc import Sequence

from streams import fold
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


VARIANTS = {one.__name__: one for one in (agent_raises, unawaited_send, random_ids)}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    run_worker(Settings.from_env())
