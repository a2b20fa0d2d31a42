"""Access rules: the topology -> what each process may do on a cluster with access control, and no more.

Every process has a user of its own. A rule allows one operation on one resource by its whole name, from any address
(the operator may look at the groups of all workers, whichever agents they run); what no rule allows is refused. In
Kafka, who may read or write may also describe, and who may write any topic may write idempotently (KIP-679). The tests
hold this table against a broker's own record of what it was asked.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiokafka.errors import GroupAuthorizationFailedError

from schemas import topics as t
from streams.kafka import KafkaSettings, LogInRefused, allowed, committed_offsets
from streams.kafka_metadata import TopicForbidden
from streams.settings import Settings
from streams.show import Screen
from streams.topology import ALWAYS, OUTSIDE, stages

PROCESSES = ("worker", "trainer", "server", "ingest", "follow", "ticker", "embedder", "sink", "operator")
ALSO_READS = {
    "trainer": (t.PREFERENCES, t.TWEETS, t.ANSWERS, t.CANDIDATES),  # the pairs' words, and whether a base is announced
    "server": (t.MODELS,),
    "sink": t.TOPICS,
    "operator": t.TOPICS,
}
"""What is looked up beside the topics that drive a process; the topology leaves it out."""
ALSO_WRITES = {
    # A dead letter's record goes back to where it stood; that a step changed its version is told.
    "operator": (*(stage.reads for stage in stages()), t.ALERTS),
}
MAKES_TOPICS = "operator"  # `xinfluencer topics --create`; every other process finds them there
OPTIONS = {"topic": "--topic", "group": "--group", "transactional-id": "--transactional-id"}


class NotAllowed(Exception):
    """The cluster refuses what a process needs; the message names each right."""


REFUSED = (NotAllowed, TopicForbidden, LogInRefused)
"""Starting again will not help: a process ends with 78 (EX_CONFIG), and a person must act."""


@dataclass(frozen=True, order=True)
class Rule:
    """One user may do one operation on one resource of a kind (topic, group, transactional-id).

    `prefixed`: on every resource whose name begins so.
    """

    user: str
    kind: str
    name: str
    operation: str
    prefixed: bool = False


def rules(settings: Settings, process: str, prefix: str = "") -> list[Rule]:
    """Give a process's rules, the user being `prefix` and its name.

    A process is one of PROCESSES, or `worker:AGENT,...` for a worker that runs some of the agents. ValueError names
    one that does not exist.
    """
    kind, _, given = process.partition(":")
    if kind not in PROCESSES or (given and kind != "worker"):
        raise ValueError(f"there is no process {process!r}; there are {', '.join(PROCESSES)}, worker:AGENT,...")
    agents = sorted(given.split(",")) if given else []
    reads, writes = _of_worker(agents) if kind == "worker" else _of_outside(kind)
    user = prefix + "-".join((kind, *agents))
    found = {Rule(user, "topic", settings.physical(topic.name), "Read") for topic in reads}
    found |= {Rule(user, "topic", settings.physical(topic.name), "Write") for topic in writes}
    # At its start a process looks whether every topic of the table stands as it must.
    others = set(t.TOPICS) - set(reads) - set(writes)
    found |= {Rule(user, "topic", settings.physical(topic.name), "Describe") for topic in others}
    if kind == "worker":
        found.add(Rule(user, "group", settings.group("-".join(("worker", *agents))), "Read"))
    elif kind == "trainer":
        group = settings.group("trainer")
        found |= {Rule(user, "group", group, "Read"), Rule(user, "transactional-id", group, "Write")}
    elif kind == MAKES_TOPICS:
        for topic in t.TOPICS:
            found |= {Rule(user, "topic", settings.physical(topic.name), op) for op in ("Create", "DescribeConfigs")}
        found.add(Rule(user, "group", settings.group("trainer"), "Describe"))
        found.add(Rule(user, "group", settings.group("worker"), "Describe", prefixed=True))
    return sorted(found)


async def require(settings: Settings, kafka: KafkaSettings, process: str) -> None:
    """Raise NotAllowed if the cluster does not let us do what this process does: a consumer would wait in silence."""
    wanted = rules(settings, process)
    may = await allowed(kafka, [one.name for one in wanted if one.kind == "topic"])
    missing = [one for one in wanted if one.kind == "topic" and one.operation not in may[one.name]]
    for one in wanted:
        if one.kind == "group":
            try:
                await committed_offsets(kafka, one.name)
            except GroupAuthorizationFailedError:
                missing.append(one)
    if missing:
        raise lacking(kafka, [f"{one.operation} {one.kind} {one.name}" for one in missing], process)


def lacking(kafka: KafkaSettings, rights: Sequence[str], process: str) -> NotAllowed:
    """Say which rights, such as `Read topic tweets`, a process has not."""
    said = ", ".join(rights)
    return NotAllowed(f"User {kafka.sasl_username} may not {said}: `xinfluencer acls {process}` prints the rules.")


def _of_worker(agents: Sequence[str]) -> tuple[list[t.Topic], list[t.Topic]]:
    table = {stage.name: stage for stage in stages()}
    for name in agents:
        if name not in table:
            raise ValueError(f"there is no agent {name!r}; there are {', '.join(table)}")
    chosen = [table[name] for name in agents] or list(table.values())
    return [stage.reads for stage in chosen], [*ALWAYS, *(topic for stage in chosen for topic in stage.writes)]


def _of_outside(name: str) -> tuple[list[t.Topic], list[t.Topic]]:
    row = "ingest" if name == "follow" else name
    known = [process for process in OUTSIDE if process.name == row]
    reads = [topic for process in known for topic in process.reads]
    writes = [topic for process in known for topic in process.writes]
    return [*reads, *ALSO_READS.get(name, ())], [*writes, *ALSO_WRITES.get(name, ())]


def lines(given: Iterable[Rule]) -> list[str]:
    """Render rules as arguments of Kafka's own kafka-acls.sh, the operations on one resource together."""
    together: dict[tuple[str, str, str, bool], list[str]] = {}
    for rule in given:
        together.setdefault((rule.user, rule.kind, rule.name, rule.prefixed), []).append(rule.operation)
    return [
        shlex.join(
            ["--add", "--allow-principal", f"User:{user}", OPTIONS[kind], name]
            + [word for operation in operations for word in ("--operation", operation)]
            + (["--resource-pattern-type", "prefixed"] if prefixed else [])
        )
        for (user, kind, name, prefixed), operations in together.items()
    ]


def run_acls(settings: Settings, processes: Sequence[str], prefix: str, table: bool) -> None:
    """Print the rules: as a table, or as lines for a shell that has Kafka's tools."""
    found = [rule for process in processes or PROCESSES for rule in rules(settings, process, prefix)]
    screen = Screen()
    if table:
        rows = [(one.user, one.kind, one.name + "*" * one.prefixed, one.operation) for one in found]
        screen.table(("user", "kind", "name", "may"), rows)
        return
    for line in lines(found):
        screen.say(f'kafka-acls.sh --bootstrap-server "$XINFLUENCER_KAFKA" --command-config admin.properties {line}')
