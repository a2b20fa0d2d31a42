"""Talk: a patient client of our own server, for the demo: asks, judges, and tries again while the server is away.

Every request names itself (Idempotency-Key), so trying again is the same answer under the same ids.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from streams import places
from streams.raters import Judgement
from streams.settings import Settings

READY_S_MAX = 300.0
RETRY_S_MAX = 120.0
REQUEST_S_MAX = 120.0
MANNER = "Answer briefly, in one or two sentences."


class ServerAway(Exception):
    """The server did not answer in time."""


@dataclass(frozen=True)
class Answer:
    """What the server said, under which names."""

    prompt: str
    subjects: tuple[str, ...]
    texts: tuple[str, ...]
    version: str


class Talk:
    """Talks to the server of a deployment, wherever it listens after a restart."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def _url(self) -> str:
        path = places.run(self._settings) / "server.json"
        return str(json.loads(path.read_text())["url"])

    async def _request(
        self, method: str, path: str, body: Any = None, key: str = "", seconds_max: float = RETRY_S_MAX
    ) -> Any:
        deadline = time.monotonic() + seconds_max
        last = "it was not asked"
        while time.monotonic() < deadline:
            try:
                headers = {"Idempotency-Key": key} if key else {}
                async with httpx.AsyncClient(timeout=REQUEST_S_MAX, trust_env=False) as client:
                    found = await client.request(method, self._url() + path, json=body, headers=headers)
                if found.status_code < 400:
                    return found.json()
                last = f"{found.status_code}: {found.text[:200]}"
                if found.status_code in (400, 401, 403, 404, 409, 410, 413, 422):
                    raise ServerAway(f"the server refuses {path}: {last}")
            except (httpx.HTTPError, OSError, ValueError) as error:
                last = repr(error)
            await asyncio.sleep(0.5)
        raise ServerAway(f"the server did not do {path} within {seconds_max:.0f} s: {last}")

    async def ready(self) -> None:
        """Wait until the server follows a release."""
        await self._request("GET", "/readyz", seconds_max=READY_S_MAX)

    async def follows(self, version: str) -> None:
        """Wait until the server answers with this version."""
        deadline = time.monotonic() + RETRY_S_MAX
        while time.monotonic() < deadline:
            models = await self._request("GET", "/v1/models")
            if any(model["id"] == version and model.get("current") for model in models["data"]):
                return
            await asyncio.sleep(0.5)
        raise ServerAway(f"the server does not follow version {version[:12]}")

    async def ask(
        self, question: str, n: int, tokens: int, key: str, version: str = "default", greedy: bool = False
    ) -> Answer:
        """Ask one question for n answers of at most `tokens` tokens."""
        body = {
            "model": version,
            "messages": [{"role": "system", "content": MANNER}, {"role": "user", "content": question}],
            "n": n,
            "max_tokens": tokens,
            "temperature": 0.0 if greedy else 1.0,
            "top_p": 0.95,
            "user": "demo",
        }
        found = await self._request("POST", "/v1/chat/completions", body, f"{key}-{version[:12]}")
        ours = found["xinfluencer"]
        texts = tuple(choice["message"]["content"] for choice in found["choices"])
        return Answer(ours["prompt"], tuple(ours["subjects"]), texts, found["model"])

    async def judge(self, one: Judgement) -> None:
        """Hand in one judgement, marked as simulated."""
        body = {
            "kind": one.kind,
            "subject": one.subject,
            "other": one.other,
            "value": one.value,
            "rater": one.rater,
            "feedback": one.id,
            "simulated": True,
        }
        await self._request("POST", "/v1/feedback", {name: value for name, value in body.items() if value is not None})
