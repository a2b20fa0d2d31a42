"""Failing worker: the right worker with a bug in one step, which raises on one post half way through its work.

Run as `python tests/failing_worker.py POST`.
"""

import sys
from collections.abc import Sequence

from agents import metadata
from schemas.envelope import Out, Record
from streams.settings import Settings
from streams.worker import run_worker


class Bug(Exception):
    """What a mistake in a step looks like from outside."""


def main(post: str) -> None:
    right = metadata.step

    def step(chunk: Sequence[Record], state: metadata.State) -> tuple[list[Out], metadata.State]:
        outs, state = right(chunk, state)
        if any(getattr(record.event, "post", None) == post for record in chunk):
            raise Bug(post)  # after the state has taken it in: nobody may go on with this state
        return outs, state

    metadata.step = step
    run_worker(Settings.from_env())


if __name__ == "__main__":
    main(sys.argv[1])
