"""Follow: a live source -> the log, without holes: take, send, acknowledge, and only then keep the cursor.

A crash anywhere repeats what followed the last cursor kept; ids and a window of what was seen lately absorb that. What
cannot be filled is a Gap, which is in `alerts` before the cursor moves past it. When the broker is slow, reading
pauses: two batches at most are in memory, the connection's own buffers fill, and a source that then cuts us off is
connected again from the cursor. A broker that is away ends the process with EXIT_AGAIN, as everywhere here.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

from schemas.events import AlertRaised
from schemas.facts import MS_MAX
from schemas.seal import Keys
from schemas.topics import TWEETS
from streams import crash, places
from streams.access import log_access
from streams.access_rules import REFUSED, require
from streams.backoff import Backoff
from streams.crash import CrashPoint
from streams.cursors import CursorRefused, Cursors
from streams.exits import EXIT_AGAIN, EXIT_REFUSED, stop_process
from streams.fold import Sent
from streams.inbox import Inbox, Window
from streams.ingest import Intake, Known, Sends, Summary
from streams.kafka import KafkaSettings, KafkaSettingsRefused, cluster_id, ensure_topics, topic_ids
from streams.lines import Line
from streams.live import Arrival, Gap, Source, SourceBroken, SourceRefused
from streams.parking import Parking
from streams.policy import Policy, PolicyRefused
from streams.pulse import Pulse
from streams.records import outside
from streams.sender import SEND_S_MAX, Sender
from streams.settings import Settings, SettingsRefused
from streams.topics import specs
from streams.vault import Vault

log = logging.getLogger("xinfluencer.follow")

FLUSH_S = 0.2  # how long an arrival may wait for others to share its batch: five waits for the disk a second
STOP_S_MAX = 8.0  # a supervisor waits 10 s


class Pump:
    """One source being followed; `run` once."""

    def __init__(
        self, source: Source, settings: Settings, sender: Sends, keys: Keys, policy: Policy,
        clock_ms: Callable[[], int], stop: asyncio.Event, tell: Callable[[str], None],
        cursors: Cursors, backoff: Backoff, known: Known | None, crash_point: CrashPoint, pulse: Pulse | None = None,
    ) -> None:  # fmt: skip
        self.source, self.settings, self.sender, self.keys = source, settings, sender, keys
        self.clock_ms, self.stop, self.tell, self.cursors, self.backoff = clock_ms, stop, tell, cursors, backoff
        self.crash_point = crash_point
        self.intake = Intake(source.name, settings, keys, policy, known)
        self.pulse = pulse or Pulse(source.stream, places.run(settings))
        self.window = Window()
        self.wake = asyncio.Event()
        self.inbox = Inbox(self.wake)
        self.received: str | None = None  # the newest cursor that came; the one kept is never ahead of the log
        self.kept: str | None = None

    async def run(self, from_now: bool) -> Summary:
        """Follow until `stop`, and finish what is in hand. Raises SourceRefused, and what the sender raises."""
        await self._resume(from_now)
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self.wake.set())
        relay = asyncio.create_task(self._relay())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_S):
                        await self.wake.wait()
                self.wake.clear()
                if self.stop.is_set() and not reading.done():
                    reading.cancel()
                    await asyncio.wait({reading})
                await self._take(self.inbox.take())
                self._write_pulse()
                if reading.done() and not len(self.inbox):
                    break
        finally:
            for task in (reading, relay):
                task.cancel()
            await asyncio.gather(reading, relay, return_exceptions=True)
            self._write_pulse(due=True)
        if not reading.cancelled():
            reading.result()
        return self.intake.summary()

    async def _relay(self) -> None:
        await self.stop.wait()
        self.wake.set()

    async def _resume(self, from_now: bool) -> None:
        """Find the cursor; leaving one behind is a gap that the operator chose."""
        stream = self.source.stream
        if not from_now:
            kept = self.cursors.load(stream)
            self.received = self.kept = kept.cursor if kept is not None else None
            return
        try:
            kept = self.cursors.load(stream)
        except CursorRefused as refused:
            await self.inbox.put(Gap(None, self.clock_ms(), f"started from now: {refused}"))
            return
        if kept is not None:
            after_ms = kept.made_ms if kept.made_ms is not None else kept.saved_ms
            await self.inbox.put(Gap(after_ms, self.clock_ms(), "started from now, as the operator asked"))

    async def _read(self) -> None:
        """Connect, and connect again, for ever. Raises SourceRefused."""
        while True:
            began_s = time.monotonic()
            ended = SourceBroken("the source ended the stream")
            self.pulse.connections += 1
            try:
                async with aclosing(self.source.connect(self.received)) as arrivals:  # type: ignore[type-var]
                    async for one in arrivals:
                        self.pulse.connected, self.pulse.parked = True, False
                        self.pulse.heard_s = time.monotonic()
                        if isinstance(one, Arrival):
                            self.received = one.cursor or self.received
                        await self.inbox.put(one)
            except SourceRefused as refused:
                self.pulse.last_error = str(refused)
                raise
            except SourceBroken as broken:
                ended = broken
            finally:
                self.pulse.connected = False
            wait_s = self.backoff.after(time.monotonic() - began_s, getattr(ended, "wait_s", 0.0))
            self.pulse.last_error = str(ended)
            self.tell(f"{self.source.stream}: {ended}; connecting again in {wait_s:.1f} s")
            await asyncio.sleep(wait_s)

    async def _take(self, batch: list[Arrival | Gap]) -> None:
        """Write one batch to the log, and then keep its cursor."""
        if not batch:
            return
        now_ms = self.clock_ms()
        cursor, made_ms = self.kept, None
        lines: list[Line] = []
        alerts: list[Sent] = []
        arrived = 0
        for one in batch:
            if isinstance(one, Gap):
                alerts.append(self._gap(one, now_ms))
                continue
            cursor = one.cursor or cursor
            if one.made_ms is not None:
                made_ms = max(made_ms or 0, one.made_ms)
            if one.data is not None:
                arrived += 1
                if self.window.is_new(one.data):
                    lines.append(Line(f"{self.source.stream}:{one.cursor or ''}", one.data))
        self.pulse.messages += arrived
        self.pulse.duplicates += arrived - len(lines)
        self.pulse.waiting = len(batch)
        # In a thread, for parsing and sealing take their time, while the connections must be kept.
        records = [*alerts, *await asyncio.to_thread(self.intake.take, lines, now_ms)]
        self.crash_point("before-send")
        try:
            await asyncio.wait_for(self.sender.send(records), SEND_S_MAX)
        except TimeoutError:
            raise TimeoutError(f"the log did not acknowledge a batch within {SEND_S_MAX:.0f} s") from None
        self.crash_point("after-send")
        await asyncio.to_thread(self.intake.acknowledged, records)
        self.pulse.taken += len(lines)
        self.pulse.waiting = len(self.inbox)
        self.pulse.refused = dict(self.intake.summary().refused)
        if made_ms is not None:
            self.pulse.newest_ms = made_ms
            self.pulse.lag_ms = self.clock_ms() - made_ms
        if cursor is not None and cursor != self.kept:
            await asyncio.to_thread(self._keep, cursor, made_ms)
            self.crash_point("after-cursor")

    def _keep(self, cursor: str, made_ms: int | None) -> None:
        try:
            self.cursors.save(self.source.stream, cursor, made_ms, self.clock_ms())
        except OSError as error:  # a full disk: the older cursor stands, and a restart would only repeat more
            self.pulse.last_error = f"the cursor could not be kept: {error.strerror or error}"
            self.tell(f"{self.source.stream}: {self.pulse.last_error}")
        else:
            self.kept = self.pulse.cursor = cursor

    def _gap(self, gap: Gap, now_ms: int) -> Sent:
        self.pulse.gaps += 1
        since = f"from {_utc(gap.after_ms)} " if gap.after_ms is not None else ""
        text = f"{self.source.stream}: messages {since}to {_utc(gap.until_ms)} may be missing: {gap.reason}"
        self.tell(text)
        return alert("source-gap", text, now_ms, self.settings, self.keys)

    def _write_pulse(self, due: bool = False) -> None:
        try:
            self.pulse.write(self.clock_ms(), due)
        except OSError as error:
            self.tell(f"{self.source.stream}: the status could not be written: {error.strerror or error}")


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(min(max(ms, 0), MS_MAX) / 1000, UTC).isoformat(timespec="seconds")


def alert(kind: str, detail: str, now_ms: int, settings: Settings, keys: Keys) -> Sent:
    """Make the record of an alert from a source."""
    event = AlertRaised(kind=kind, stage="follow", detail=detail[:500])
    return outside(event, "/follow", now_ms, settings.partitions, keys)


async def follow(
    source: Source, settings: Settings, sender: Sends, keys: Keys, policy: Policy, clock_ms: Callable[[], int],
    stop: asyncio.Event, tell: Callable[[str], None], from_now: bool = False, *, cursors: Cursors,
    backoff: Backoff | None = None, known: Known | None = None, crash_point: CrashPoint = crash.nowhere,
    pulse: Pulse | None = None,
) -> Summary:  # fmt: skip
    """Take in a live source until `stop` is set; gives what was taken in.

    Raises SourceRefused (CursorTooOld and CursorRefused among them) when a person must act, FolderInUse when another
    process follows this stream, and what the sender raises: then nothing is kept that is not in the log.
    """
    with cursors.claim(source.stream):
        backoff = backoff or Backoff(random.Random())
        pump = Pump(
            source, settings, sender, keys, policy, clock_ms, stop, tell, cursors, backoff, known, crash_point, pulse
        )
        return await pump.run(from_now)


# ---- the process ----------------------------------------------------------------------------------------------------


def sources(name: str, settings: Settings) -> list[Source]:
    """Give the streams that a name stands for; SourceRefused where one cannot be asked at all."""
    if name == "x":
        from streams.x_stream import filtered

        return [filtered(settings)]
    if name == "x-compliance":
        from streams.x_stream import every_compliance

        return [*every_compliance(settings)]
    if name == "bluesky":
        from streams.jetstream import Jetstream

        return [Jetstream(settings)]
    if name == "mastodon":
        from streams.mastodon_stream import MastodonStream

        return [MastodonStream(settings)]
    raise SettingsRefused(f"{name!r} is no live source: there are x, x-compliance, bluesky and mastodon")


def run_follow(settings: Settings, names: Sequence[str], from_now: bool = False) -> None:
    """Follow several sources until SIGTERM or SIGINT. Exits with EXIT_REFUSED when every one of them is refused.

    A stream that is refused is parked (streams/parking.py) and told of, in the log and in `alerts`; the others go on,
    and so does the process if it is supervised. Whatever else goes wrong ends it with EXIT_AGAIN: the supervisor starts
    it again, and it goes on from its cursors.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    for noisy in ("aiokafka", "httpx", "httpcore", "websockets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    names = list(dict.fromkeys(names))
    if not names:
        raise SettingsRefused("nothing to follow: name x, x-compliance, bluesky or mastodon, or set XINFLUENCER_FOLLOW")
    code = asyncio.run(_follow_all(settings, names, from_now))
    if code:
        logging.shutdown()
        sys.exit(code)


async def _follow_all(settings: Settings, names: Sequence[str], from_now: bool) -> int:
    found: list[Source] = []
    refused: list[str] = []
    for name in names:
        try:
            found += sources(name, settings)
        except SourceRefused as error:
            refused.append(f"{name} is refused: {error}")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        policy = Policy.load(settings.policy)
        async with log_access(settings, log.info, make=True) as kafka:
            refused += await _follow_in(kafka, settings, policy, found, refused, stop, from_now)
    except (PolicyRefused, KafkaSettingsRefused, *REFUSED) as error:
        log.critical("%s", error)
        return EXIT_REFUSED
    except Exception as error:  # noqa: BLE001 - fail-stop is the whole of our error handling
        stop_process(f"{type(error).__name__}: {error}", EXIT_AGAIN)
    if stop.is_set():
        return 0
    log.critical("nothing is left to follow: %s", "; ".join(refused))  # the supervisor shows this line
    return EXIT_REFUSED


async def _follow_in(
    kafka: KafkaSettings, settings: Settings, policy: Policy, found: Sequence[Source], before: Sequence[str],
    stop: asyncio.Event, from_now: bool,
) -> list[str]:  # fmt: skip
    """Follow all until each has ended; gives what was refused meanwhile. `before`: what was refused already."""
    await ensure_topics(kafka, specs(settings))
    await require(settings, kafka, "follow")
    tweets = settings.physical(TWEETS.name)
    bound = f"{await cluster_id(kafka)}/{tweets}/{(await topic_ids(kafka, [tweets]))[tweets]}"
    sender, vault = Sender(settings, kafka), Vault(settings.data / "vault" / "keys.sqlite")
    cursors, known, point = Cursors(settings.data / "ingest", bound), await Known.at(settings, kafka), crash.from_env()

    async def refuse(text: str) -> None:
        record = alert("source-refused", text, _now_ms(), settings, vault)
        await asyncio.wait_for(sender.send([record]), SEND_S_MAX)

    parking = Parking("XINFLUENCER_SUPERVISED" in os.environ, stop, refuse, _now_ms)

    async def keep(source: Source) -> None:
        pulse = Pulse(source.stream, places.run(settings))
        skips = iter((from_now,))  # once: what it is tried again with is the cursor that it then has
        summary = await parking.keep(
            pulse,
            lambda: follow(
                source, settings, sender, vault, policy, _now_ms, stop, log.info, next(skips, False),
                cursors=cursors, known=known, crash_point=point, pulse=pulse,
            ),
        )  # fmt: skip
        if summary is not None:
            log.info("%s: stopped after %s messages, %s posts", source.stream, summary.lines, summary.posts)

    for text in before:
        log.error("%s", text)
        await refuse(text)
    leaving = asyncio.create_task(_leave(stop))
    parking.going.update(source.stream for source in found)
    await asyncio.gather(*map(keep, found))
    leaving.cancel()
    await sender.stop()
    return [*parking.refused.values()]


async def _leave(stop: asyncio.Event) -> None:
    """End the process, where a stop takes longer than a supervisor waits."""
    await stop.wait()
    await asyncio.sleep(STOP_S_MAX)
    stop_process("what was in hand is not acknowledged yet; the cursors stand before it", EXIT_AGAIN)


def _now_ms() -> int:
    return int(time.time() * 1000)
