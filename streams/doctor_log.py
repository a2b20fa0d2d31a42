"""Doctor, the log: whose it is, how topics are kept, who is behind, what was refused; asked of a running broker."""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from models.adapters import AdapterRefused, open_verified
from schemas import envelope
from schemas.envelope import Record, Refused
from schemas.events import AlertRaised, AuthorForgotten, PostForgotten, RecordRefused
from schemas.learned import ReleasePointed
from schemas.topics import ALERTS, DEAD_LETTERS, ERASURES, MODEL_RELEASES, TOPICS, TWEETS
from streams import places
from streams.doctor_check import DAY_MS, Check, Context, duration, listed, worst
from streams.doctor_folder import CLOCK_MS_MAX, alive, cluster_of
from streams.kafka import cluster_id, committed_offsets, topic_ids
from streams.reader import reader
from streams.settle import TRANSACTIONAL
from streams.topics import specs
from streams.topology import TICKED, stages
from streams.vault import untrue
from streams.vectors import folder
from streams.warehouse import folder_of

Place = tuple[str, int]  # topic of the table, partition
Offsets = Mapping[Place, int]

LAG_LOOK = 10_000  # records; two seconds of a worker's work, so more than a breath behind
MARKERS_MAX = 2  # offsets at the end of a partition that hold transaction markers, which no commit reaches
READ_MAX = 100_000  # newest letters, alerts or receipts looked at
TICKS_MISSED_LOOK = 12  # one minute, as ticks are set


async def check_broker(context: Context) -> Check:
    """Say whose broker answers where ours would."""
    if context.env.get("XINFLUENCER_KAFKA"):
        settings = context.settings.kafka(context.env)
        found = context.log.cluster if context.log else await cluster_id(settings)
        return Check("broker", "ok", f"the cluster {found} at {settings.bootstrap}")
    ours = cluster_of(context.log_folder)
    if ours is None:
        mend = "`xinfluencer up` or `demo` makes one; or name the right folder with --data"
        return Check("broker", "look", f"there is no log in {context.settings.data} yet", mend)
    if context.log is not None:
        return Check("broker", "ok", f"ours ({ours}) at {context.log.kafka.bootstrap}")
    kept = context.settings.data / "broker" / "broker.json"
    port = json.loads(kept.read_text())["port"] if kept.exists() else None
    other = await _who(f"127.0.0.1:{port}", context) if port else None
    if other is not None:
        seen = f"another broker ({other}) answers on 127.0.0.1:{port}; ours is {ours}"
        return Check("broker", "wrong", seen, "stop that one, or start ours again: it takes another port")
    return Check("broker", "look", f"ours ({ours}) does not run", "start it with `xinfluencer up` or `broker`")


async def _who(bootstrap: str, context: Context) -> str | None:
    try:
        return await cluster_id(context.settings.kafka({"XINFLUENCER_KAFKA": bootstrap}))
    except Exception as error:  # noqa: BLE001 - whatever it is that answers there, it is no broker of ours
        return None if "Connect" in f"{type(error).__name__} {error}" else f"not Kafka: {type(error).__name__}"


async def check_topics(context: Context) -> Check:
    """Hold partitions, copies and settings of every topic against the table."""
    wanted = {spec.name: spec for spec in specs(context.settings)}
    async with _admin(context) as admin:
        there = sorted(wanted.keys() & set(await admin.list_topics()))
        described = {one["topic"]: one["partitions"] for one in await admin.describe_topics(there)} if there else {}
        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
        answers = await admin.describe_configs(asked) if there else []
    configs = {one[3]: {entry[0]: entry[1] for entry in one[4]} for answer in answers for one in answer.resources}
    wrong = []
    for name in there:
        spec = wanted[name]
        if len(described[name]) != spec.partitions:
            wrong.append(f"{name} has {len(described[name])} partitions, not {spec.partitions}")
        copies = min(len(one["replicas"]) for one in described[name])
        if copies < spec.replication:
            wrong.append(f"{name} has {copies} copies, not {spec.replication}")
        for key, value in spec.configs.items():
            if (have := configs[name].get(key)) != value:
                wrong.append(f"{name} has {key}={have}, not {value}")
    if wrong:
        mend = (
            "set the topic's settings with the cluster's own tools (kafka-configs --alter); a partition count is "
            "frozen: set XINFLUENCER_PARTITIONS to what the log was made with"
        )
        return Check("topics", "wrong", listed(wrong), mend)
    if missing := sorted(wanted.keys() - set(there)):
        return Check(
            "topics", "look", f"not made yet: {listed(missing)}", "nothing: a worker makes them when it starts"
        )
    return Check("topics", "ok", f"{len(there)} topics as in the table")


async def check_lag(context: Context) -> Check:
    """Say how many records wait, and whether anybody reads: the groups, and who reads without one."""
    there = await _made(context, [topic.name for topic in TOPICS])
    async with reader(context.settings, _kafka(context)) as log:
        ends, begins = await log.ends(*there), await log.begins(*there)
    parts = [await _groups(context, ends, begins), await _embedder(context, ends), _sink(context, ends, begins)]
    odd = [part for part in parts if part.verdict != "ok"]
    seen = "; ".join(part.seen for part in odd or parts)
    return Check("lag", worst([part.verdict for part in parts]), seen, "; ".join(part.mend for part in odd))


async def _groups(context: Context, ends: Offsets, begins: Offsets) -> Check:
    """Look at what groups have committed, and at what the agents read and no group of a worker has."""
    prefix, kafka = context.settings.group(""), _kafka(context)
    async with _admin(context) as admin:
        groups = sorted(name for name, *_ in await admin.list_consumer_groups() if name.startswith(prefix))
        # One at a time: aiokafka 0.14 reads the answer of version 3 as one of version 2, which fits one group only.
        answers = [one for group in groups for one in await admin.describe_consumer_groups([group])]
    states = {one[1]: one[2] for answer in answers for one in answer.groups}
    agents_read = {stage.reads.name for stage in stages(context.settings.tuning)}
    unread = {place: begins[place] for place in ends if place[0] in agents_read}
    said, total, working = [], 0, False
    for group in groups:
        done = {
            (context.settings.logical(tp.topic), tp.partition): at
            for tp, at in (await committed_offsets(kafka, group)).items()
        }
        behind: Counter[str] = Counter()
        for place in done.keys() & ends.keys():
            behind[place[0]] += _waiting(place, max(done[place], begins[place]), ends)
        total += behind.total()
        # The trainer commits without being a member; of the others an empty group is one that nobody works for.
        idle = states.get(group) == "Empty" and "worker" in group
        if "worker" in group:
            working = working or not idle
            unread = {place: begin for place, begin in unread.items() if done.get(place, -1) < 0}
        for topic, number in behind.items():
            if number > (0 if idle else LAG_LOOK):
                said.append(f"{group} is {number} behind in {topic}{', and nobody reads' if idle else ''}")
    never: Counter[str] = Counter()
    for place, begin in unread.items():
        never[place[0]] += _waiting(place, begin, ends)
    total += never.total()
    said += [
        f"{number} records of {topic} were never read, and no worker reads them"
        for topic, number in never.items()
        if number > (LAG_LOOK if working else 0)
    ]
    if said:
        mend = "start what reads it (`xinfluencer up`), or more workers; if it runs and stands still, read its log"
        return Check("lag", "look", listed(said), mend)
    return Check("lag", "ok", f"{len(groups)} groups, {total} records behind in all")


async def _embedder(context: Context, ends: Offsets) -> Check:
    """Hold the ledger beside the vectors against the log."""
    path = folder(context.settings) / "ledger.sqlite"
    if not path.exists():
        return Check("lag", "ok", "the embedder never ran here")
    again = f"put back the log and {path.parent} of one backup, or remove that folder: all is encoded again"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            done = {(TWEETS.name, part): at for part, at in db.execute("select partition, next from place")}
            bound = db.execute("select value from bound where name = 'log'").fetchone()
    except sqlite3.DatabaseError as error:
        return Check("lag", "wrong", f"where the embedder stands cannot be read: {error}", again)
    physical = context.settings.physical(TWEETS.name)
    ids = await topic_ids(_kafka(context), [physical]) if (TWEETS.name, 0) in ends else {}
    assert context.log is not None
    if bound and bound[0] != f"{context.log.cluster}/{physical}/{ids.get(physical)}":
        return Check("lag", "wrong", f"the vectors belong to another log ({bound[0]})", again)
    missing = {place: 0 for place in ends if place[0] == TWEETS.name}
    return _copied(context, "embedder", missing | done, ends, again)


def _sink(context: Context, ends: Offsets, begins: Offsets) -> Check:
    """Hold what the sink last said that it has written against the log; its checkpoint is in the database it holds."""
    told = context.said().get("sink", {}).get("partitions")
    base = folder_of(context.settings)
    if not isinstance(told, dict):
        if base.exists():
            mend = "start it (`xinfluencer up` or `sink`): it goes on from its checkpoint, and says where that is"
            return Check("lag", "look", f"{base} was filled, and where the sink stands is not known here", mend)
        return Check("lag", "ok", "the sink never ran here")
    done = {(name, int(part)): at for place, (at, *_) in told.items() for name, _, part in [place.rpartition("/")]}
    gone = {place: begins[place] - at for place, at in done.items() if at < begins.get(place, 0)}
    if gone:
        lost = [f"{number} records of {topic}/{part}" for (topic, part), number in gone.items()]
        mend = "start it: it goes on behind them and raises `records-missed`; a backup from before may still have them"
        return Check("lag", "wrong", f"retention took {listed(lost)} before the sink copied them", mend)
    again = f"put back the log and {base} of one backup, or let the sink fill a new database"
    return _copied(context, "sink", dict.fromkeys(ends, 0) | done, ends, again)


def _copied(context: Context, name: str, done: Offsets, ends: Offsets, again: str) -> Check:
    """Judge a process that keeps its place itself; `again` mends a copy that is ahead of its log."""
    ahead = [f"{topic}/{part} up to {at}" for (topic, part), at in done.items() if at > ends.get((topic, part), 0)]
    if ahead:
        return Check("lag", "wrong", f"the {name} has read {listed(ahead)}, and the log ends before", again)
    behind: Counter[str] = Counter()
    for place, at in done.items():
        behind[place[0]] += _waiting(place, at, ends)
    runs = alive(context.said().get(name, {}))
    late = [f"{number} behind in {topic}" for topic, number in behind.items() if number > (LAG_LOOK if runs else 0)]
    if late:
        mend = f"start it (`xinfluencer up` or `{name}`); if it runs and stands still, read its log"
        return Check("lag", "look", f"the {name} is {listed(late)}{'' if runs else ', and does not run'}", mend)
    return Check("lag", "ok", f"the {name} is {behind.total()} behind")


def _waiting(place: Place, at: int, ends: Offsets) -> int:
    """Count what lies between a place and the end; the last markers of a transaction are no records."""
    number = max(0, ends[place] - at)
    return 0 if place[0] in TRANSACTIONAL and number <= MARKERS_MAX else number


async def check_letters(context: Context) -> Check:
    """Count dead letters by stage and reason: of the last day, and in all."""
    every = [one for one in await _events(context, DEAD_LETTERS.name) if isinstance(one.event, RecordRefused)]
    names = [(one, f"{one.event.stage} {one.event.reason}") for one in every]  # type: ignore[attr-defined]
    recent = Counter(name for one, name in names if one.time_ms > context.now_ms() - DAY_MS)
    in_all = Counter(name for _, name in names)
    counts = [f"{name}: {recent[name]} in the last day, {number} in all" for name, number in in_all.most_common()]
    seen = listed(counts, 6)
    mend = "`xinfluencer dead-letters list` says why, and `replay` writes them again when the cause is mended"
    if any(name.endswith("step-failed") for name in recent):
        return Check("dead letters", "wrong", seen, f"a step of ours failed: read the worker's log; {mend}")
    if recent:
        return Check("dead letters", "look", seen, mend)
    return Check("dead letters", "ok", seen or "none")


async def check_alerts(context: Context) -> Check:
    """List what was raised in the last day, by kind."""
    since = context.now_ms() - DAY_MS
    recent = [one for one in await _events(context, ALERTS.name) if one.time_ms > since]
    kinds = Counter(one.event.kind for one in recent if isinstance(one.event, AlertRaised))
    if not kinds:
        return Check("alerts", "ok", "none in the last day")
    last = next(one.event.detail for one in reversed(recent) if isinstance(one.event, AlertRaised))
    seen = f"{listed([f'{kind}: {number}' for kind, number in kinds.most_common()], 8)}; the last: {last}"
    return Check("alerts", "look", seen, "docs/OPERATING.md says for each kind what to do")


async def check_forgotten(context: Context) -> Check:
    """See that nobody and nothing that has a receipt has a key again, as after an old vault was put back."""
    receipts = [one.event for one in await _events(context, ERASURES.name)]
    authors = {one.owner for one in receipts if isinstance(one, AuthorForgotten)}
    posts = {(one.owner, one.post) for one in receipts if isinstance(one, PostForgotten)}
    alive = untrue(context.vault, receipts) if context.vault.exists() else []
    if alive:
        again = {one.owner for one in alive if isinstance(one, AuthorForgotten)}
        opened = {one.post for one in alive if isinstance(one, PostForgotten)}
        mend = "stop everything and put a vault in place that knows of them: keys/keys.sqlite of the newest backup"
        seen = (
            f"{len(again)} of {len(authors)} forgotten authors have a key again, "
            f"{len(opened)} of {len(posts)} forgotten posts"
        )
        return Check("forgotten", "wrong", seen, mend)
    return Check("forgotten", "ok", f"{len(authors)} authors and {len(posts)} posts have receipts, none of them a key")


async def check_release(context: Context) -> Check:
    """See that the version that answers people is in the store, whole."""
    pointed: dict[str, ReleasePointed] = {}
    for one in await _events(context, MODEL_RELEASES.name):
        if isinstance(one.event, ReleasePointed):
            pointed[one.event.alias] = one.event
    said = []
    for alias, release in pointed.items():
        if release.adapter is not None:
            try:
                open_verified(places.adapter_store(context.settings), release.adapter)
            except AdapterRefused as refused:
                said.append(f"{alias} points to {release.version[:12]}, and {refused}")
    if said:
        mend = "put its folder back from a backup, or `xinfluencer command roll-back` to a version that is there"
        return Check("release", "wrong", listed(said), mend)
    what = [f"{alias}: release {one.release}, {one.version[:12]}" for alias, one in pointed.items()]
    return Check("release", "ok", listed(what) if what else "none yet")


async def check_log_time(context: Context) -> Check:
    """Hold the newest records against this clock, and see whether log time goes on."""
    newest, ticked = 0, 0
    timed = [topic.name for topic in TICKED]
    topics = await _made(context, [TWEETS.name, *timed])
    async with reader(context.settings, _kafka(context)) as log:
        for topic in topics:
            begins = await log.begins(topic)
            for (name, partition), end in (await log.ends(topic)).items():
                if name in timed and partition:
                    continue  # a tick goes to all partitions
                async for raw in log.records(name, partition, max(begins[name, partition], end - 1), end):
                    newest = max(newest, raw.timestamp)
                    ticked = max(ticked, raw.timestamp if name in timed else 0)
    if not newest:
        return Check("log time", "ok", "the log is empty")
    ahead, now_ms = newest - context.now_ms(), context.now_ms()
    if ahead > CLOCK_MS_MAX:
        seen = f"the newest record is {duration(ahead)} in the future: this clock was set back, or a writer's is ahead"
        return Check("log time", "wrong", seen, "set every machine's clock by NTP; what was written keeps its time")
    if context.supervised() and now_ms - ticked > TICKS_MISSED_LOOK * context.settings.tick_s * 1000:
        seen = f"no tick for {duration(now_ms - ticked)}: rewards and batches wait for one"
        return Check("log time", "look", seen, "one `xinfluencer ticker` (or `up`) must run for a deployment")
    return Check("log time", "ok", f"the newest record was written {duration(-ahead)} ago")


def _kafka(context: Context) -> Any:
    assert context.log is not None
    return context.log.kafka


@asynccontextmanager
async def _admin(context: Context) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**_kafka(context).client_kwargs())
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _made(context: Context, topics: Iterable[str]) -> list[str]:
    """Give those of the topics that there are; a reader would wait for one that is not made yet."""
    async with _admin(context) as admin:
        there = set(await admin.list_topics())
    return [name for name in topics if context.settings.physical(name) in there]


async def _events(context: Context, topic: str) -> list[Record]:
    """Read a narrow topic's newest records, duplicates left out; what cannot be read is no event of ours."""
    found: dict[str, Record] = {}
    if topic not in await _made(context, [topic]):
        return []
    async with reader(context.settings, _kafka(context)) as log:
        end, begin = (await log.ends(topic))[topic, 0], (await log.begins(topic))[topic, 0]
        async for raw in log.records(topic, 0, max(begin, end - READ_MAX), end):
            try:
                record = envelope.decode(topic, 0, raw.offset, raw.timestamp, raw.headers, raw.value)
            except Refused:
                continue  # written past our edge, and a dead letter of whoever read it
            found.setdefault(record.id, record)
    return list(found.values())
