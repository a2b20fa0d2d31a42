"""Gate: what every HTTP request passes first: the host it names, the size of its body, the count of how it ended.

A server on a loopback address answers only requests that name that address: a web page that has its own name resolve
to 127.0.0.1 could otherwise read answers. No error's text is logged, because an error may quote what a person wrote.
"""

import asyncio
import ipaddress
import logging
import traceback
from collections.abc import Collection
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams.metrics import Metrics
from streams.problems import Problem

log = logging.getLogger("xinfluencer.server")

BODY_BYTES_MAX = 1 << 19  # the longest allowed conversation in the longest encoding, and as much again
PATHS = ("/v1/chat/completions", "/v1/feedback", "/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json")
CLIENT_GONE = 499  # as nginx counts it; nobody is there to receive it


class Gate:
    """An ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, metrics: Metrics, host: str, names: Collection[str] = ()) -> None:
        """Answer to `names`; without any, to a loopback address's own, and on any other address to all."""
        self.app = app
        self.metrics = metrics
        own = {"localhost", "127.0.0.1", "::1", host} if _is_loopback(host) else None
        self.hosts = frozenset(names) or (frozenset(own) if own else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a Problem."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None
        taken = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_BYTES_MAX:
                raise HTTPException(413, f"The body may have {BODY_BYTES_MAX} bytes")
            return message

        problem: Problem | None = None
        try:
            if self.hosts is not None and _host(scope) not in self.hosts:
                raise Problem(403, "wrong_host", "This server is for this machine only: ask it as localhost.")
            await self.app(scope, limited, counted)
        except Problem as known:
            problem = known
        except asyncio.CancelledError:
            # Only the end of the server cancels a request: its time to finish is over.
            problem = Problem(503, "stopping", "The server is stopping; ask again.", None, 5)
        except Exception as error:  # noqa: BLE001 - the last one who can keep its text out of the log
            log.error("%s failed: %s", path_of(scope), _where(error))
            problem = Problem(500, "internal", "Something went wrong here; the server's log says where.")
        if problem is not None and status is None:
            await problem.response()(scope, receive, counted)
        self.metrics.requests.labels(path_of(scope), str(status or CLIENT_GONE)).inc()


def path_of(scope: Scope) -> str:
    """Give the path if it is one of ours, so that a scan makes no new time series."""
    path: str = scope["path"]
    return path if path in PATHS else "/v1/models" if path.startswith("/v1/models/") else "other"


def _host(scope: Scope) -> str:
    named: Any = next((value for name, value in scope["headers"] if name == b"host"), b"")
    text = named.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _where(error: BaseException) -> str:
    """Say what kind of error it was and where, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at {' < '.join(f'{f.filename}:{f.lineno}' for f in reversed(frames))}"
