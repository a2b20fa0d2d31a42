"""Mastodon API: a server's address, a timeline and a token -> its stream and its pages, and what its refusals mean.

The token is optional for what a server shows everyone; it is read again for each request (a rotated file is taken up),
is in no message, repr or log, and travels to the server itself and to its subdomains alone, in clear to this machine
only. Statuses and headers: docs.joinmastodon.org, "streaming", "timelines" and "rate limits".
"""

import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import httpx
import msgspec

from streams.live import RateLimited, SourceBroken, SourceRefused
from streams.mastodon_post import HOST

TOKEN = "XINFLUENCER_MASTODON_TOKEN"
TOKEN_SHAPE = re.compile(r"[A-Za-z0-9\-._~+/=]{1,4096}")  # RFC 6750's b64token
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECT_S_MAX = 20.0
ANSWER_BYTES_MAX = 32 << 20  # 40 statuses are about 200 kB
PROBLEM_BYTES_MAX = 1 << 16
WAIT_S = 300.0  # Mastodon's limits are for five minutes


class Timeline(NamedTuple):
    """Where a timeline streams and where it is read, with the parameters of each."""

    stream: str
    stream_params: dict[str, str]
    pages: str
    pages_params: dict[str, str]


def timeline_of(name: str) -> Timeline:
    """Read a stream's name as Mastodon writes it, `hashtag:NAME` and `list:ID` with what they are for."""
    found = re.fullmatch(r"public(:local|:remote)?(:media)?", name)
    if found:
        place = (found[1] or "")[1:]
        media = {"only_media": "true"} if found[2] else {}
        path = f"public/{place}" if place else "public"
        return Timeline(path, media, "public", ({place: "true"} if place else {}) | media)
    found = re.fullmatch(r"hashtag(:local)?:(\w{1,128})", name)
    if found:
        local = {"local": "true"} if found[1] else {}
        path = "hashtag/local" if local else "hashtag"
        return Timeline(path, {"tag": found[2]}, f"tag/{quote(found[2], safe='')}", local)
    found = re.fullmatch(r"list:([A-Za-z0-9_-]{1,64})", name)
    if found:
        return Timeline("list", {"list": found[1]}, f"list/{found[1]}", {})
    if name == "user":
        return Timeline("user", {}, "home", {})
    raise SourceRefused(
        f"XINFLUENCER_MASTODON_STREAM: {name[:60]!r} is no stream of posts. There are public, public:local, "
        "public:remote (each with :media), hashtag:NAME, hashtag:local:NAME, list:ID and user."
    )


def token_of(env: Mapping[str, str]) -> str:
    """Read the token, empty if there is none; SourceRefused says what is wrong with it and never what it is."""
    given, file = env.get(TOKEN, ""), env.get(f"{TOKEN}_FILE", "")
    if given and file:
        raise SourceRefused(f"set only one of {TOKEN} and {TOKEN}_FILE.")
    if file:
        try:
            with open(file, encoding="utf-8") as reader:
                given = reader.read(PROBLEM_BYTES_MAX)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise SourceRefused(f"{TOKEN}_FILE cannot be read: {why}.") from None
    given = given.strip()
    if given and not TOKEN_SHAPE.fullmatch(given):
        raise SourceRefused(f"{TOKEN} holds what no token has: look for quotes, spaces or a second line in it.")
    return given


class Api:
    """One server. `host` is how ids name it."""

    def __init__(self, url: str, env: Mapping[str, str] | None, stall_s: float) -> None:
        try:
            parts = urlsplit(url)
            self.host = (parts.hostname or "").lower() + (f":{parts.port}" if parts.port else "")
        except ValueError:
            raise SourceRefused("XINFLUENCER_MASTODON_URL is no address.") from None
        extra = parts.username or parts.query or parts.fragment or parts.path.strip("/")
        if parts.scheme not in ("http", "https") or extra or not HOST.fullmatch(self.host):
            raise SourceRefused("XINFLUENCER_MASTODON_URL must be https://host, with nothing behind it.")
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise SourceRefused("XINFLUENCER_MASTODON_URL is http: the token would travel in clear. Use https.")
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._env = os.environ if env is None else env
        self._stall_s = stall_s

    @asynccontextmanager
    async def open(self, timeline: Timeline) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the stream and give its bytes as they come. Raises SourceRefused, RateLimited or SourceBroken."""
        url = f"{self._base}/api/v1/streaming/{timeline.stream}"
        async with self._client() as http:
            try:
                response = await self._stream(http, url, timeline.stream_params)
                if response.has_redirect_location:  # a server may stream from a host of its own
                    url = self._moved(url, response.headers.get("location", ""))
                    await response.aclose()
                    response = await self._stream(http, url, timeline.stream_params)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _broken(error) from None
            try:
                if response.status_code != 200:
                    raise await self._refusal(response)
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise SourceBroken("Mastodon answered with something that is no event stream")
                async with aclosing(self._pieces(response)) as pieces:
                    yield pieces
            finally:
                await response.aclose()

    async def page(self, timeline: Timeline, min_id: str, limit: int) -> list[bytes]:
        """Read the statuses that follow one, each as its own bytes, the newest first."""
        url = f"{self._base}/api/v1/timelines/{timeline.pages}"
        params = {**timeline.pages_params, "min_id": min_id, "limit": str(limit)}
        try:
            async with self._client() as http, http.stream("GET", url, params=params, headers=self._headers()) as found:
                if found.status_code != 200:
                    raise await self._refusal(found)
                body = bytearray()
                async for piece in found.aiter_raw():
                    body += piece
                    if len(body) > ANSWER_BYTES_MAX:
                        raise SourceBroken(f"a page of more than {ANSWER_BYTES_MAX} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _broken(error) from None
        try:
            return [bytes(one) for one in msgspec.json.decode(body, type=list[msgspec.Raw])]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise SourceBroken("a page of the timeline is no list of statuses") from None

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", "User-Agent": "xinfluencer"},  # no compression: sizes are bounds
            timeout=httpx.Timeout(CONNECT_S_MAX, read=self._stall_s),
            follow_redirects=False,
            trust_env=urlsplit(self._base).hostname not in LOOPBACK,
        )

    def _headers(self) -> dict[str, str]:
        token = token_of(self._env)
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _stream(self, http: httpx.AsyncClient, url: str, params: Mapping[str, str]) -> httpx.Response:
        headers = {"Accept": "text/event-stream", **self._headers()}
        return await http.send(http.build_request("GET", url, params=params, headers=headers), stream=True)

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in response.aiter_raw():
                yield piece
        except httpx.ReadTimeout:
            raise SourceBroken(f"nothing came for {self._stall_s:g} s, not even a heartbeat") from None
        except httpx.HTTPError as error:
            raise _broken(error) from None

    def _moved(self, url: str, location: str) -> str:
        """Follow a server to its own streaming host; to any other the token would be given away."""
        try:
            here, there = urlsplit(self._base), urlsplit(urljoin(url, location))
            host = there.hostname or ""
        except ValueError:
            raise SourceBroken("Mastodon redirects the stream to what is no address") from None
        same = host == here.hostname or (host.endswith(f".{here.hostname}") and here.hostname not in LOOPBACK)
        if not same or there.scheme != here.scheme:
            raise SourceRefused(
                f"{self.host} sends its stream to {_plain(host)[:100]!r}, which is no host of its own: "
                "set XINFLUENCER_MASTODON_URL to the server that is meant."
            )
        return f"{there.scheme}://{there.netloc.rpartition('@')[2]}{there.path}"

    async def _refusal(self, response: httpx.Response) -> Exception:
        """Say what an answer other than 200 means."""
        code, said = response.status_code, await self._said(response)
        if code == 429 or (code == 503 and "retry-after" in response.headers):
            return RateLimited(f"Mastodon asks to wait ({code})", _wait_s(response.headers))
        if code >= 500:
            return SourceBroken(f"Mastodon answered {code}{said}")
        if code in (401, 403):
            return SourceRefused(
                f"Mastodon does not let us in ({code}){said}: most servers want a user's token with read:statuses; "
                f"make one under Preferences, Development, and set {TOKEN} or {TOKEN}_FILE."
            )
        return SourceRefused(
            f"Mastodon answered {code}{said}: are XINFLUENCER_MASTODON_URL and XINFLUENCER_MASTODON_STREAM right?"
        )

    async def _said(self, response: httpx.Response) -> str:
        body = bytearray()
        try:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > PROBLEM_BYTES_MAX:
                    return ""
            found = msgspec.json.decode(body)
        except (httpx.HTTPError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
        text = found.get("error") if isinstance(found, dict) else None
        if not isinstance(text, str):
            return ""
        token = token_of(self._env)
        return f" ({_plain(text.replace(token, '...') if token else text)[:200]})"


def _broken(error: Exception) -> SourceBroken:
    return SourceBroken(f"{type(error).__name__}: the connection to Mastodon broke")  # httpx's words name the request


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _wait_s(headers: Mapping[str, str]) -> float:
    """Read `retry-after` (seconds) or `x-ratelimit-reset` (a time), else five minutes; 1 s to an hour."""
    text, reset = headers.get("retry-after", ""), headers.get("x-ratelimit-reset", "")
    try:
        wait_s = float(text) if text.isdecimal() else datetime.fromisoformat(reset).timestamp() - time.time()
    except (ValueError, OverflowError):
        return WAIT_S
    return min(3_600.0, max(1.0, wait_s))
