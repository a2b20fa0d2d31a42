"""Soak: a local server's stream, through the real pump, into an embedded broker, for as long as is asked for.

`python -m bench.soak --seconds 3600 --rate 200 --source x` (or bluesky). Every 30 s a line: rate, lag, memory of the
following process, reconnects. The connection is cut every few minutes and what was missed is asked for, as in life. At
the end the log is read: every post that was made must be there, and memory must not have grown over the second half.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection, serve

from schemas.topics import TWEETS
from streams import broker as embedded
from streams.kafka import KafkaSettings
from streams.reader import reader
from streams.settings import Settings

SNOWFLAKE_MS = 1_288_834_974_657
TELL_S = 30.0
CUT_S = 240.0
KEEP_ALIVE_S = 20.0
BACKFILL_S = 300
AUTHORS = 20_000
FLAT_MB_PER_H_MAX = 5.0  # an hour's noise on a quiet machine is below 1
FOLLOW = """
import sys
from streams.follow import run_follow
from streams.settings import Settings
run_follow(Settings.from_env(), sys.argv[1:])
"""
WORDS = ("river", "stone", "light", "market", "train", "garden", "window", "signal", "paper", "metal", "harbour")


class Feed(ABC):
    """Posts at a rate, to whoever is connected; what was made lately is kept for those who ask for it again."""

    status: ClassVar[str]  # the file in which the follower says how it fares

    def __init__(self, rate: float, seed: int = 7) -> None:
        self.rate, self.rng = rate, random.Random(seed)
        self.made = 0
        self.kept: deque[tuple[float, bytes]] = deque()
        self.clients: set[asyncio.Queue[list[bytes]]] = set()

    @abstractmethod
    def post(self, now_s: float) -> bytes:
        """Make one message of this source."""

    @abstractmethod
    def serving(self) -> AbstractAsyncContextManager[dict[str, str]]:
        """Serve on loopback; gives the settings that lead here."""

    def text(self) -> str:
        """Make the words of a post."""
        return " ".join(self.rng.choices(WORDS, k=self.rng.randrange(5, 40)))

    def author(self) -> int:
        """Choose who posts; some post often."""
        return min(self.rng.randrange(AUTHORS), self.rng.randrange(AUTHORS))

    async def make(self, seconds: float) -> None:
        """Make posts for so long."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            now_s = time.time()
            made = []
            for _ in range(int(passed * self.rate) - self.made):
                self.made += 1
                made.append(self.post(now_s))
            self.kept.extend((now_s, one) for one in made)
            while self.kept and self.kept[0][0] < now_s - BACKFILL_S - 5:
                self.kept.popleft()
            for queue in self.clients:
                queue.put_nowait(made)
            await asyncio.sleep(0.05)

    async def given(self, since_s: float) -> AsyncGenerator[list[bytes], None]:
        """Give one client what was made since, and then what is made, until it is time to cut; [] while it is quiet."""
        queue: asyncio.Queue[list[bytes]] = asyncio.Queue()
        queue.put_nowait([one for at_s, one in self.kept if at_s >= since_s])
        self.clients.add(queue)
        cut_s = time.monotonic() + CUT_S
        try:
            while time.monotonic() < cut_s:
                try:
                    yield await asyncio.wait_for(queue.get(), KEEP_ALIVE_S)
                except TimeoutError:
                    yield []
        finally:
            self.clients.discard(queue)


class XFeed(Feed):
    """X's filtered stream as far as the soak needs it."""

    status = "follow-x-filtered.status.json"

    def post(self, now_s: float) -> bytes:
        """One post with its author as X sends them, about 1.5 kB; its id holds its time and its number."""
        post_id = str(((int(now_s * 1000) - SNOWFLAKE_MS) << 22) | (self.made & 0x3FFFFF))
        author = str(10_000 + self.author())
        created = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now_s))
        counts = {"retweet_count": 0, "reply_count": 0, "like_count": 0, "quote_count": 0, "impression_count": 1}
        post = {
            "id": post_id, "text": self.text(), "author_id": author, "conversation_id": post_id, "created_at": created,
            "edit_history_tweet_ids": [post_id], "lang": "en", "public_metrics": counts, "possibly_sensitive": False,
            "entities": {"hashtags": [{"start": 0, "end": 5, "tag": "river"}]}, "reply_settings": "everyone",
        }  # fmt: skip
        user = {
            "id": author, "username": f"p{author}", "name": f"Person {author}", "verified": False,
            "created_at": "2015-02-03T04:05:06.000Z", "description": "words " * 20, "location": "somewhere",
            "public_metrics": {
                "followers_count": self.made % 5000, "following_count": 20, "tweet_count": 30, "listed_count": 4,
            },
        }  # fmt: skip
        body = {"data": post, "includes": {"users": [user]}, "matching_rules": [{"id": "1", "tag": "soak"}]}
        return json.dumps(body).encode()

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[dict[str, str], None]:
        """Serve on loopback; gives the settings that lead here."""
        tasks: set[asyncio.Task[Any]] = set()

        async def answer(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                target = (await incoming.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                minutes = int(dict(parse_qsl(urlsplit(target).query)).get("backfill_minutes", "0"))
                outgoing.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                async with aclosing(self.given(time.time() - 60 * minutes)) as given:
                    async for lines in given:
                        data = b"".join(one + b"\r\n" for one in lines) or b"\r\n"
                        outgoing.write(b"%x\r\n%b\r\n" % (len(data), data))
                        await outgoing.drain()
            outgoing.transport.abort()  # in the middle of a line, if it so happens
            tasks.discard(task)

        listener = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
        try:
            port = listener.sockets[0].getsockname()[1]
            yield {"x_url": f"http://127.0.0.1:{port}", "x_backfill_minutes": "5"}
        finally:
            listener.close()
            for task in tasks:
                task.cancel()


class BlueskyFeed(Feed):
    """Jetstream as far as the soak needs it."""

    status = "follow-bluesky-jetstream.status.json"

    def post(self, now_s: float) -> bytes:
        """One post as Jetstream sends it; its key holds its number."""
        number = self.made
        letters = "".join(chr(97 + int(digit)) for digit in f"{self.author():024d}")
        record = {
            "$type": "app.bsky.feed.post", "text": self.text(), "langs": ["en"],
            "createdAt": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now_s)),
        }  # fmt: skip
        commit = {
            "rev": f"3l{number:011d}", "operation": "create", "collection": "app.bsky.feed.post",
            "rkey": f"3k{number:011d}", "record": record, "cid": "bafyreib" + "a" * 51,
        }  # fmt: skip
        time_us = int(now_s * 1e6) + number % 1000
        return json.dumps(
            {"did": f"did:plc:{letters}", "time_us": time_us, "kind": "commit", "commit": commit}
        ).encode()

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[dict[str, str], None]:
        """Serve on loopback; gives the settings that lead here."""

        async def answer(socket: ServerConnection) -> None:
            assert socket.request is not None
            cursor = dict(parse_qsl(urlsplit(socket.request.path).query)).get("cursor")
            async with aclosing(self.given(int(cursor) / 1e6 if cursor else time.time())) as given:
                async for messages in given:
                    for one in messages:
                        await socket.send(one.decode())
            socket.transport.abort()

        async with serve(answer, "127.0.0.1", 0, compression=None) as server:
            yield {"bluesky_url": f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/subscribe"}


FEEDS: dict[str, type[Feed]] = {"x": XFeed, "bluesky": BlueskyFeed}


def memory_mb(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: units of y per unit of x; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


async def watch(feed: Feed, pid: int, status: Path, seconds: float) -> list[tuple[float, float]]:
    """Print a line every TELL_S; give (hours, MB)."""
    began = time.monotonic()
    points: list[tuple[float, float]] = []
    while time.monotonic() - began < seconds:
        await asyncio.sleep(min(TELL_S, max(0.0, seconds - (time.monotonic() - began)) + 0.01))
        passed = time.monotonic() - began
        points.append((passed / 3600, memory_mb(pid)))
        told = json.loads(status.read_text())
        print(
            f"{passed:7.0f} s  made {feed.made:8d}  {told['per_s']:7.1f}/s  lag {told['lag_ms']:6d} ms  "
            f"memory {points[-1][1]:6.1f} MB  reconnects {told['reconnects']:3d}  duplicates {told['duplicates']:6d}  "
            f"gaps {told['gaps']}",
            flush=True,
        )
    return points


async def counted(settings: Settings, kafka: KafkaSettings) -> tuple[int, int]:
    """Count the posts in `tweets`: distinct by id, and records in all."""
    ids: set[bytes] = set()
    records = 0
    async with reader(settings, kafka) as log:
        for partition in range(settings.partitions):
            async for record in log.records(TWEETS.name, partition):
                headers = dict(record.headers)
                if headers.get("ce_type", b"").split(b".")[-2:-1] == [b"PostObserved"]:
                    records += 1
                    ids.add(headers["ce_id"])
    return len(ids), records


async def soak(source: str, seconds: float, rate: float, folder: Path, cache: Path) -> bool:
    """Run it; True if nothing is missing and memory is flat."""
    prepared = embedded.prepare(folder / "broker", cache)
    jvm = embedded.start(prepared)
    feed = FEEDS[source](rate)
    kafka = KafkaSettings(bootstrap=prepared.bootstrap)
    child: subprocess.Popen[bytes] | None = None
    try:
        async with feed.serving() as served:
            settings = Settings.model_validate({"data": folder, **served})
            own = {"XINFLUENCER_KAFKA": kafka.bootstrap, "XINFLUENCER_X_TOKEN": "soak", "XINFLUENCER_X_TOKEN_FILE": ""}
            await asyncio.to_thread(embedded.wait_ready, prepared, jvm)
            with open(folder / "follow.log", "ab") as told:
                command = [sys.executable, "-c", FOLLOW, source]
                child = subprocess.Popen(  # noqa: ASYNC220
                    command, env={**os.environ, **settings.to_env(), **own}, stderr=told
                )
            while not feed.clients:
                await asyncio.sleep(0.1)
                if child.poll() is not None:
                    print((folder / "follow.log").read_text())
                    return False
            _, points = await asyncio.gather(
                feed.make(seconds), watch(feed, child.pid, folder / "run" / feed.status, seconds)
            )
            await asyncio.sleep(2.0)
            child.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(child.wait, 15)
        distinct, records = await counted(settings, kafka)
    finally:
        if child is not None and child.poll() is None:
            child.kill()
        embedded.stop(jvm)
    growth = slope(points[len(points) // 2 :])
    print(f"made {feed.made}, in the log {distinct} ({records} records), exit code {code}")
    print(f"memory over the second half: {growth:+.2f} MB/h, highest {max(mb for _, mb in points):.1f} MB")
    whole, flat = distinct == feed.made and code == 0, growth <= FLAT_MB_PER_H_MAX
    print(f"{'nothing missing' if whole else 'NOT WHOLE'}; {'memory is flat' if flat else 'MEMORY IS NOT FLAT'}")
    return whole and flat


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 if it held."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Follow a stream for a long time.")
    parser.add_argument("--source", choices=sorted(FEEDS), default="x")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rate", type=float, default=200, help="posts a second")
    options = parser.parse_args(arguments)
    cache = Path(os.environ.get("XINFLUENCER_CACHE") or Path.home() / ".cache" / "xinfluencer")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return 0 if asyncio.run(soak(options.source, options.seconds, options.rate, Path(folder), cache)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
