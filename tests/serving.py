"""Serving: a tiny base with adapters, and servers in threads over a log of the test's own."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from schemas import envelope, seal
from schemas.facts import Event
from schemas.learned import ModelReleased, ReleasePointed
from streams import places
from streams.kafka import KafkaSettings, ensure_topics
from streams.reader import reader
from streams.records import outside
from streams.sender import Sender
from streams.server import listen, make_app
from streams.settings import Settings
from streams.topics import specs
from streams.vault import Vault
from tests import tiny_llama

ROOT = Path(__file__).resolve().parent.parent
ASKED = [{"role": "user", "content": "Why do zebracorns hum at night?"}]
SECRET = b"zebracorns"
HIDDEN, RANK = 32, 4  # of the tiny base; of its adapters


@dataclass
class World:
    """A tiny base, adapters over it, and a generator of the test's own to say what each version says alone."""

    spec: str
    cache: Path
    store: Path
    base: Any
    adapters: list[str]
    alone: Any

    def text(self, adapter: str | None, seed: int, tokens: int = 24, **more: Any) -> str:
        found = self.alone.generate(ASKED, adapter, max_tokens=tokens, temperature=1.0, top_p=1.0, seed=seed, **more)
        return found[0].text

    @classmethod
    def make(cls, folder: Path) -> "World":
        """Build everything in a folder."""
        from models.adapters import open_verified
        from models.base import prepare_base
        from models.generate import Generator

        spec = tiny_llama.build(folder / "tiny").path
        base = prepare_base(str(spec), places.base_folder(Settings(cache=folder / "cache")), lambda line: None)
        adapters = [make_adapter(folder / "store", base, seed) for seed in (1, 2, 3, 4)]
        alone = Generator(base, threads=1)
        for name in adapters:
            alone.load(name, open_verified(folder / "store", name))
        return cls(str(spec), folder / "cache", folder / "store", base, adapters, alone)


def make_adapter(store: Path, base: Any, seed: int) -> str:
    """Publish an adapter of seeded noise, strong enough to change every answer; gives its name."""
    import torch
    from safetensors.torch import save_file

    from models.adapters import write

    def save(folder: Path) -> None:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(2):
            for module in ("q_proj", "o_proj"):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator)
                tensors[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=generator)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "o_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))

    store.mkdir(parents=True, exist_ok=True)
    return write(store, save, {"base_model": base.id})


@dataclass
class Deployed:
    """A log of the test's own, and servers in threads of this process."""

    world: World
    settings: Settings
    kafka: KafkaSettings
    servers: list[tuple[uvicorn.Server, threading.Thread]] = field(default_factory=list)
    url: str = ""
    app: Any = None
    # One client, since making its TLS context costs 30 ms; no connection is kept, since servers come and go.
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(
            timeout=60, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
    )

    def start(self, waiting_max: int = 32) -> "Deployed":
        """Start a server on a free port."""
        listener = listen("127.0.0.1", 0)
        self.app = make_app(self.settings, self.kafka, waiting_max)
        config = uvicorn.Config(self.app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        thread.start()
        self.servers.append((server, thread))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        eventually(lambda: self.get("/healthz").status_code == 200)
        return self

    def stop(self) -> None:
        for server, thread in self.servers:
            server.should_exit = True
            thread.join(10)
        self.servers.clear()

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(self.url + path, **more)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(self.url + path, json=body, headers=named)

    def ask(self, key: str | None = None, **body: Any) -> httpx.Response:
        whole = {"messages": ASKED, "temperature": 1.0, "top_p": 1.0, "max_tokens": 24, **body}
        return self.post("/v1/chat/completions", whole, **({"idempotency_key": key} if key else {}))

    def stream(self, key: str | None = None, **body: Any) -> list[dict[str, Any]]:
        """Ask for a stream; gives its events, the last of which was [DONE]."""
        found = self.ask(key, stream=True, **body)
        assert found.status_code == 200, found.text
        lines = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    def write(self, *events: Event) -> None:
        """Write events as their stages would."""

        async def send() -> None:
            await ensure_topics(self.kafka, specs(self.settings))
            sender = Sender(self.settings, self.kafka)
            vault = Vault(self.settings.data / "vault" / "keys.sqlite")
            now_ms = int(time.time() * 1000)
            await sender.send([outside(e, "/test", now_ms, self.settings.partitions, vault) for e in events])
            await sender.stop()
            vault.close()

        asyncio.run(send())

    def release(self, number: int, adapter: str | None, announce: bool = True) -> None:
        """Announce a release and point the alias at it."""
        base = self.world.base
        facts = {
            "release": number,
            "version": adapter or base.sha256,
            "base": base.sha256,
            "base_name": base.name,
            "adapter": adapter,
        }
        if adapter is not None and not (places.adapter_store(self.settings) / adapter).exists():
            shutil.copytree(self.world.store / adapter, places.adapter_store(self.settings) / adapter)
        pointed = ReleasePointed(alias="default", **facts)
        self.write(*([ModelReleased(**facts)] if announce else []), pointed)

    def read(self, topic: str) -> list[Any]:
        """Read the raw records of a topic."""

        async def everything() -> list[Any]:
            async with reader(self.settings, self.kafka) as log:
                return [raw for records in (await log.everything(topic)).values() for raw in records]

        return asyncio.run(everything())

    def events(self, topic: str) -> list[tuple[str, Any]]:
        """Read the events of a topic, unsealed, each id once."""
        vault = Vault(self.settings.data / "vault" / "keys.sqlite")
        seen = {}
        for raw in self.read(topic):
            record = envelope.decode(topic, raw.partition, raw.offset, raw.timestamp, raw.headers, raw.value)
            event = seal.unseal(record.event, record.id, vault)
            assert seen.setdefault(record.id, event) == event, "one id, two payloads"
        vault.close()
        return list(seen.items())

    def metric(self, name: str, **labels: str) -> float:
        text = self.get("/metrics").text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def follows(self, version: str) -> bool:
        return any(m["id"] == version and m["current"] for m in self.get("/v1/models").json()["data"])


def eventually(true: Callable[[], bool], seconds_max: float = 20.0) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            if true():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def server_process(settings: Settings, bootstrap: str) -> subprocess.Popen[str]:
    """Start a server as a process of its own."""
    env = {**os.environ, **settings.to_env(), "XINFLUENCER_KAFKA": bootstrap, "HF_HUB_OFFLINE": "1"}
    program = (
        "from streams.server import run_server; from streams.settings import Settings; run_server(Settings.from_env())"
    )
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
