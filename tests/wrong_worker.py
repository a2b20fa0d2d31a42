"""Wrong worker: the worker with one mistake, by name; the fault tests must find each of them.

Run as `python tests/wrong_worker.py VARIANT`. The mistakes are those that Faust's usual patterns make. The last two are
no mistakes: a worker that is slow, so that a signal finds it at work, and one that falls asleep with a chunk in hand.
"""

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from schemas.ids import digest
from streams import crash, fold
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


def ids_per_chunk() -> None:
    """Outputs are named by the chunk that they came from; a second attempt may cut other chunks."""
    right = fold.Fold.take

    def take(self: fold.Fold, raws: Sequence[fold.Raw]) -> list[fold.Sent]:
        made = 0

        def name(*parts: object) -> str:
            nonlocal made
            made += 1
            return digest(self.stage.name, str(self.partition), str(raws[0].offset), str(made))

        fold.output_id = name  # type: ignore[assignment]
        return right(self, raws)

    fold.Fold.take = take  # type: ignore[method-assign]


def slow() -> None:
    """Every chunk takes as long as XINFLUENCER_SLOW_S says."""
    right, pause_s = fold.Fold.take, float(os.environ["XINFLUENCER_SLOW_S"])

    def take(self: fold.Fold, raws: Sequence[fold.Raw]) -> list[fold.Sent]:
        time.sleep(pause_s)
        return right(self, raws)

    fold.Fold.take = take  # type: ignore[method-assign]


def sleeper() -> None:
    """Falls asleep once at a named point: XINFLUENCER_SLEEP is point@file, the file says that it slept."""
    point, _, path = os.environ["XINFLUENCER_SLEEP"].partition("@")

    def fall_asleep() -> Callable[[str], None]:
        def at(name: str) -> None:
            if name == point and not Path(path).exists():
                Path(path).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)

        return at

    crash.from_env = fall_asleep


VARIANTS = {one.__name__: one for one in (agent_raises, unawaited_send, random_ids, ids_per_chunk, slow, sleeper)}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    run_worker(Settings.from_env(), (), sys.argv[sys.argv.index("--instance") + 1] if "--instance" in sys.argv else "0")
