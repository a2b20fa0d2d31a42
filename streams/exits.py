"""Exits: how a process of ours ends when it cannot go on, and what its exit code asks of whoever started it."""

import asyncio
import logging
import os
from collections.abc import Awaitable

EXIT_AGAIN = 75  # sysexits.h EX_TEMPFAIL: start me again
EXIT_REFUSED = 78  # EX_CONFIG: starting again will not help; a person must act

log = logging.getLogger("xinfluencer.exits")


def stop_process(reason: str, code: int = EXIT_AGAIN) -> None:
    """End the process at once, without clean-up: whatever is half done must not be finished by a shutdown handler."""
    log.critical("stopping: %s", reason)
    leave(code)


def leave(code: int) -> None:
    """End at once and say nothing."""
    logging.shutdown()
    os._exit(code)


async def or_fail(work: Awaitable[None]) -> None:
    """Do a task's work: a task group takes one that ends as cancelled, by whomever, for one that is done."""
    try:
        await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it was cancelled, and nobody had asked") from None
