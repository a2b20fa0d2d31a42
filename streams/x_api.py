"""X's API: a secret and an address -> requests that carry the token, and what X's refusals mean.

The token is read again for each connection (a rotated file is taken up) and is in no message, repr or log: whatever
httpx has to say of a request is never passed on. It travels in clear to this machine only.
"""

import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from streams.live import RateLimited, SourceBroken, SourceRefused

TOKEN = "XINFLUENCER_X_TOKEN"
TOKEN_SHAPE = re.compile(r"[A-Za-z0-9\-._~+/%=]{1,4096}")  # RFC 6750's b64token, and % as X gives its own out
LONG = re.compile(r"[^\s,]{32,}")  # in what X says: should it ever repeat the token, this is how it looks
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECT_S_MAX = 20.0
PROBLEM_BYTES_MAX = 1 << 16  # of an answer that is no stream
WINDOW_S = 900.0  # X counts requests in windows of 15 minutes
CONNECTIONS_WAIT_S = 30.0  # X notices only after a while that a connection of ours is gone


def token(env: Mapping[str, str] | None = None) -> str:
    """Read the bearer token; SourceRefused says how to give one."""
    env = os.environ if env is None else env
    given, file = env.get(TOKEN, ""), env.get(f"{TOKEN}_FILE", "")
    if bool(given) == bool(file):
        raise SourceRefused(f"X needs a bearer token: set one of {TOKEN} and {TOKEN}_FILE.")
    if file:
        try:
            with open(file, encoding="utf-8") as reader:
                given = reader.read(PROBLEM_BYTES_MAX)
        except (OSError, ValueError) as error:
            raise SourceRefused(
                f"{TOKEN}_FILE cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}."
            ) from None
    given = given.strip()
    if not TOKEN_SHAPE.fullmatch(given):
        raise SourceRefused(f"{TOKEN} holds what no bearer token has: look for quotes, spaces or a second line in it.")
    return given


def checked_url(url: str) -> str:
    """Give the API's address without a slash at its end; SourceRefused where the token would travel in clear."""
    try:
        parts = urlsplit(url)
        httpx.URL(url)  # its rules are stricter: ports, names
        parts.port  # noqa: B018 - reading it checks it
    except (ValueError, httpx.InvalidURL):
        raise SourceRefused("XINFLUENCER_X_URL is no address: it must be https://host.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise SourceRefused("XINFLUENCER_X_URL must be https://host, with nothing but a path behind it.")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise SourceRefused("XINFLUENCER_X_URL is http: the token would travel in clear. Use https.")
    return url.rstrip("/")


def client(url: str, read_s: float) -> httpx.AsyncClient:
    """Open a client for one connection; `read_s` is how long X may be silent."""
    return httpx.AsyncClient(
        headers={"Accept-Encoding": "identity", "User-Agent": "xinfluencer"},  # no compression: sizes are bounds
        timeout=httpx.Timeout(CONNECT_S_MAX, read=read_s),
        follow_redirects=False,  # a token is not carried to wherever an answer points
        trust_env=urlsplit(url).hostname not in LOOPBACK,
    )


def authorized(env: Mapping[str, str] | None) -> dict[str, str]:
    """Give the header of one request."""
    return {"Authorization": f"Bearer {token(env)}"}


def refusal(code: int, headers: Mapping[str, str], body: bytes) -> Exception:
    """Say what an answer other than a stream means: SourceRefused, RateLimited or SourceBroken."""
    problem = _problem(body)
    said = _said(problem)
    if code == 429:
        if problem.get("title") == "ConnectionException":
            return RateLimited(f"X still counts another connection of this app{said}", CONNECTIONS_WAIT_S)
        return RateLimited(f"X asks to wait{said}", _wait_s(headers))
    if code >= 500:
        return SourceBroken(f"X answered {code}{said}")
    if code == 401:
        return SourceRefused(f"X does not take the token (401){said}: make a new bearer token and set {TOKEN}.")
    if code in (402, 403):
        return SourceRefused(f"X refuses this app ({code}){said}: its plan or its project must allow this endpoint.")
    return SourceRefused(f"X answered {code}{said}: is XINFLUENCER_X_URL right, and does the plan allow what is asked?")


async def read_answer(response: httpx.Response) -> bytes:
    """Read an answer that is no stream, as far as it matters."""
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > PROBLEM_BYTES_MAX:
            break
    return body


def _problem(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    errors = found.get("errors") if isinstance(found, dict) else None
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        return {**found, **errors[0]}
    return found if isinstance(found, dict) else {}


def _said(problem: Mapping[str, Any]) -> str:
    words = [str(problem[key])[:200] for key in ("title", "detail") if isinstance(problem.get(key), str)]
    text = LONG.sub("...", ", ".join(dict.fromkeys(words)))
    return f" ({text if text.isprintable() else text.encode('unicode_escape').decode()})" if text else ""


def _wait_s(headers: Mapping[str, str]) -> float:
    """Read `retry-after` (seconds) or `x-rate-limit-reset` (epoch seconds), else a window."""
    for name, since in (("retry-after", 0.0), ("x-rate-limit-reset", time.time())):
        text = headers.get(name, "")
        if text.isdecimal() and len(text) < 16:
            return max(1.0, float(text) - since)
    return WINDOW_S
