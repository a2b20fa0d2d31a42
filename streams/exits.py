"""Exits: how a process of ours ends when it cannot go on, and what its exit code asks of whoever started it."""

import logging
import os

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
