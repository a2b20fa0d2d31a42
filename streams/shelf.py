"""Shelf: the versions that lie in memory, each held by the requests that began with it.

A version is looked through before it is loaded (models/adapters.py), loaded beside the others, and put away only when
nobody holds it and no alias points at it. So a swap is nothing but a new answer to "which one now".
"""

import asyncio
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from models.adapters import AdapterRefused, open_verified
from streams import places
from streams.problems import Problem
from streams.settings import Settings

if TYPE_CHECKING:
    from models.generate import Generator

log = logging.getLogger("xinfluencer.server")

Result = TypeVar("Result")

VERSIONS_LOADED_MAX = 2  # beside the base: now, and the one before or one asked for by name; 425 MB each for SmolLM2
RETRY_AFTER_S = 10


@dataclass(frozen=True)
class Known:
    """A version that was announced: its number, its hash, the adapter that makes it (None: the base alone)."""

    release: int
    version: str
    base: str
    base_name: str
    adapter: str | None
    created_ms: int


class Shelf:
    """The base, and the versions loaded over it. Everything but the loading happens in the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = places.adapter_store(settings)
        self._generator: Generator | None = None
        self._loaded: OrderedDict[str, None] = OrderedDict()  # the one used last is last
        self._held: Counter[str] = Counter()
        self._loading = asyncio.Lock()
        # Always the same thread, for glibc keeps what one thread freed for that thread: with several, memory grew.
        self._thread = ThreadPoolExecutor(1, "shelf")
        self._leaving: set[str] = set()  # put away as soon as nothing is being loaded
        self._tasks: set[asyncio.Task[None]] = set()
        self.pointed: Callable[[], set[str]] = set  # adapters that aliases point at: never put away
        self.ready = asyncio.Event()

    async def prepare(self, well: Callable[[], None]) -> None:
        """Find or make the base, load it, say `well`. Raises BaseRefused or OSError."""
        self._generator = await self._aside(_prepared, self._settings)
        self.ready.set()
        well()
        log.info("the base %s is loaded", self.generator.base.sha256[:12])

    @property
    def generator(self) -> "Generator":
        """Give what generates, or Problem 503 while the base is being prepared."""
        if self._generator is None:
            raise Problem(503, "not_ready", "The base model is still being prepared; try again.", None, 5)
        return self._generator

    async def _aside(self, do: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *arguments)

    async def hold(self, known: Known, whatever: bool = False) -> None:
        """Load a version if need be, and keep it until `release`. Raises AdapterRefused.

        One more than the limit may be loaded, for somebody who asks for it by name; beyond that, Problem 429, unless
        it is loaded `whatever` else is: an alias is to point at it.
        """
        if known.adapter is None or known.adapter not in self._loaded:
            async with self._loading:
                if known.adapter is not None and known.adapter not in self._loaded:
                    self.tidy()
                    await self._put_away()
                    if len(self._loaded) > VERSIONS_LOADED_MAX and not whatever:
                        busy = f"{len(self._loaded)} other versions are answering; try again later."
                        raise Problem(429, "busy_versions", busy, "model", RETRY_AFTER_S)
                await self._load(known)
        # Nothing is awaited between being there and being held.
        if known.adapter is not None:
            self._loaded.move_to_end(known.adapter)
            self._held[known.adapter] += 1

    def release(self, known: Known) -> None:
        """Let go of what `hold` gave."""
        if known.adapter is not None:
            self._held[known.adapter] -= 1
            self.tidy()

    async def _load(self, known: Known) -> None:
        generator = self.generator
        if known.base != generator.base.sha256:
            raise AdapterRefused("it was made for another base than the one that is served")
        if known.adapter is None or known.adapter in self._loaded:
            return
        try:
            folder = await self._aside(open_verified, self._store, known.adapter)
            await self._aside(generator.load, known.adapter, folder)
        except AdapterRefused:
            raise
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            # A file that vanished, or a tensor library that finds what our own look through did not.
            raise AdapterRefused(f"it could not be loaded ({type(error).__name__})") from error
        self._loaded[known.adapter] = None

    def tidy(self) -> None:
        """Put away what is over the limit, the longest unused first."""
        keep = self.pointed()
        for adapter in list(self._loaded):
            if len(self._loaded) <= VERSIONS_LOADED_MAX:
                break
            if adapter not in keep and not self._held[adapter]:
                del self._loaded[adapter]  # from here on nobody takes hold of it without loading it again
                self._leaving.add(adapter)
        if self._leaving:
            task = asyncio.create_task(self._make_room())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make_room(self) -> None:
        async with self._loading:
            await self._put_away()

    async def _put_away(self) -> None:
        """Unload what is leaving, but what came back meanwhile; whoever calls it is the only one who loads."""
        while self._leaving:
            adapter = self._leaving.pop()
            if adapter not in self._loaded:
                await self._aside(self.generator.unload, adapter)


def _prepared(settings: Settings) -> "Generator":
    from models.base import prepare_base
    from models.generate import Generator

    base = prepare_base(settings.base, places.base_folder(settings), log.info)
    return Generator(base, threads())


def threads() -> int:
    """Count the threads to generate with: OMP_NUM_THREADS where a machine is shared, else every core we may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else cores
