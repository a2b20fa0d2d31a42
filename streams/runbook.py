"""Runbook: the table of rules, and what else must be known at three in the morning -> docs/OPERATING.md.

`python -m streams.alerting` writes it. A test gives every command on the page to the command line's own parser, and
holds exit codes, kinds and names to the code.
"""

from typing import NamedTuple

from streams.alert_rules import RULES
from streams.readings import promql, span


class Advice(NamedTuple):
    """What a rule does not say of itself: what may be lost or late, and how one sees that it is over."""

    risk: str
    over: str


ADVICE = {
    "XinfluencerStuck": Advice(
        "What follows from this partition is late: rewards, pairs, versions. Nothing is lost, the log keeps it.",
        "`xinfluencer doctor` (lag) counts down. The alert ends when the first record is applied.",
    ),
    "XinfluencerBehind": Advice(
        "Searches and reports are old. Erasures wait in the same queue, and count as owed only once they are read: do "
        "not let this stand for a day.",
        "Fewer than 10,000 records wait.",
    ),
    "XinfluencerDeadLetters": Advice(
        "Those records have no effect. They are kept, sealed, and can be replayed.",
        "Nothing was refused for 15 minutes.",
    ),
    "XinfluencerIdConflict": Advice(
        "Someone may be trying to change what was said. The log is as it was; what is new under the id is ignored.",
        "No second payload came for 15 minutes, and you know who wrote it.",
    ),
    "XinfluencerStepFailed": Advice(
        "The one record has no effect until the step is mended; the process starts again, and others wait seconds.",
        "No record was set aside for 15 minutes, and the replayed letters are applied.",
    ),
    "XinfluencerRewardsDrift": Advice(
        "The next version may learn from too little, or from what somebody floods in. A version is measured before it "
        "is released, and can be rolled back.",
        "The last six hours are like the day before them; after a lasting change of the feed that takes a day.",
    ),
    "XinfluencerRefusalsDrift": Advice(
        "A source's posts are missing from everything that is made of them, until they are replayed.",
        "Fewer than one in a hundred is refused, or it is as it was the day before.",
    ),
    "XinfluencerPairsDrift": Advice(
        "The next version learns from too little, or from one person.",
        "Batches are as large as the day before.",
    ),
    "XinfluencerDiskFilling": Advice(
        "Nothing yet. Without room the broker stops, and everything with it.",
        "5 GB are free.",
    ),
    "XinfluencerDiskFull": Advice(
        "The broker stops, and what sources send meanwhile may be a gap. What was acknowledged is safe.",
        "1 GB is free, and `xinfluencer doctor` finds the broker well.",
    ),
    "XinfluencerStaleSnapshot": Advice(
        "Time: a restart reads everything since the last snapshot again. Nothing is lost or doubled.",
        "The age falls to seconds with the next snapshot.",
    ),
    "XinfluencerReleaseRefused": Advice(
        "None: people are answered by the version before.",
        "By itself after an hour.",
    ),
    "XinfluencerSourceGap": Advice(
        "Messages between the two places are not in the log, deletions among them: words may still be used that their "
        "author has deleted.",
        "The alert ends by itself after 15 minutes; the gap is closed when the export is ingested.",
    ),
    "XinfluencerSourceSilent": Advice(
        "If the source keeps less than the silence lasts, a gap.",
        "The first message, or keep-alive, ends it.",
    ),
    "XinfluencerSourceParked": Advice(
        "A gap, once the source keeps less than it has been parked for; deletions do not arrive either.",
        "It is connected again: `xinfluencer metrics | grep connected`.",
    ),
    "XinfluencerAdapterRefused": Advice(
        "Files were damaged or changed by somebody. People are answered by the version before.",
        "`xinfluencer doctor` (adapters) reads every file as its hash says.",
    ),
    "XinfluencerAnswersUnrecorded": Advice(
        "People get errors in place of answers (503, with Retry-After).",
        "Nothing failed for 15 minutes.",
    ),
    "XinfluencerErasureOverdue": Advice(
        "A right of a person, and a term of the sources' contracts: treat it as an incident, and note times.",
        "`xinfluencer metrics | grep owed_since` shows nothing older than a day.",
    ),
    "XinfluencerRestarting": Advice(
        "It works between the ends, late. Nothing is lost or doubled, at any point of dying.",
        "It stayed up for a quarter of an hour.",
    ),
    "XinfluencerMetricsStale": Advice(
        "What the process does is not done, and its other alerts are blind.",
        "Its figures are fresh, or it said that it ends.",
    ),
    "XinfluencerAlertRaised": Advice("As its kind says.", "Nothing was raised for 15 minutes."),
}

KINDS = {
    "adapter-refused": "XinfluencerAdapterRefused: put its files back, or retract it.",
    "batch-refused": "A closed batch does not verify, and was not trained on: `xinfluencer verify`, and keep the log.",
    "command-refused": "An operator's command named a version that it cannot be about: read the detail, command again.",
    "id-conflict": "XinfluencerIdConflict: find the writer.",
    "log-mismatch": "A snapshot and the log are of different pasts, and the worker refuses to run: restore both from "
    "one backup; if the broker's folder was emptied on purpose, remove `snapshots` too.",
    "records-missed": "Retention took records before the sink had copied them: let it run, or keep topics longer.",
    "release-unreadable": "Somebody wrote into `models` or `model-releases` what is no event: find the writer.",
    "snapshot-broken": "A snapshot was torn and the one before it used: look at the disk.",
    "source-gap": "XinfluencerSourceGap: fill it from an export.",
    "source-refused": "XinfluencerSourceParked: token, plan, rights, cursor or clock; the detail says which.",
    "step-failed": "XinfluencerStepFailed, or about to become it: read the worker's log.",
    "version-adopted": "No fault: a step's new version went on from the state of the one before.",
    "vectors-refused": "The vector store is not of this log or this encoder: the detail says what to remove.",
}
"""What is raised in the topic `alerts`, by kind."""

CODES = (
    ("0", "It was asked to end, and did."),
    ("1", "A command failed, or found something: an alert that fires, a check that is wrong, a fault in the log."),
    ("75", "Start me again (EX_TEMPFAIL): a lost broker, a lost claim, anything odd. `up` does, within 10 seconds."),
    ("78", "A person must act (EX_CONFIG); the last line of the log says what to do. `up` ends with that line, and 1."),
    ("130", "Ctrl-C."),
    ("137, -9", "It was killed: by the supervisor when it stood still, by a container's memory limit, or by you."),
)
"""Exit codes, and what each says."""

DEATHS = (
    (
        "broker",
        "Everything waits or ends with 75 and comes back; sources go on from their cursors; the server says 503.",
    ),
    ("worker, graph", "Its partitions wait some seconds; another worker, or itself, goes on from the last snapshot."),
    ("ticker", "Rewards and batches that wait for an age wait; the next tick makes up for it."),
    ("trainer", "The batch in hand is trained again from its beginning, to the same hash."),
    ("server", "Requests in hand are lost to those who asked; what was answered with success is in the log."),
    ("embedder, sink", "Searches and reports grow old; it repeats what it had not noted, and ids make that invisible."),
    ("follow", "It asks for what it missed from its cursor; doubles are absorbed, what cannot be had is a gap."),
    ("up", "Children end with it. Start `xinfluencer up` again: there is nothing to clean up."),
)
"""What happens when a process dies, by its name in `logs`."""

FIRST = """
1. `xinfluencer alerts` says what fires now, since when it is true, and ends with 1 if anything does. It needs no
   Prometheus and no broker.
2. `xinfluencer doctor` looks at everything once; each line that is not ok has its mend. It changes nothing.
3. `tail -n 50 "$XINFLUENCER_DATA"/logs/NAME.log`; in containers `docker compose logs --tail 50 NAME`. The names are in
   `run/processes.json`, with the process's number.

Commands are those of `.venv/bin`; `export XINFLUENCER_DATA=FOLDER` first, or give `--data FOLDER` behind `xinfluencer`.
In containers each is `docker compose run --rm -T cli COMMAND`.

**It is safe to kill any process at any time**, with `kill -9` too: that is how every promise here is tested. It is not
safe to remove or edit anything in `broker`, `vault` or `snapshots`. If several alerts fire, begin with the disk, then
the broker, then what is stuck; the others often follow from these.
"""

DRILL = """
A backup is cold: the copy is taken while nothing runs, and the time that takes is the time to copy what is new.

1. Stop `xinfluencer up` (Ctrl-C, or SIGTERM). With a cluster of your own, stop the processes and back up the cluster by
   its own means too.
2. `xinfluencer backup STORE --keep 14`, onto another disk; then start again. `STORE/keys` opens every backup in
   it: whoever has the store can read the words.
3. `xinfluencer backup STORE --list` says what there is; `xinfluencer backup STORE --verify` reads every byte.

Once a month, restore it: a backup that was never restored is a hope.

1. `xinfluencer --data /elsewhere/restored restore STORE`; it writes into an empty place only, whole or not at all.
2. `xinfluencer --data /elsewhere/restored doctor`, and nothing is wrong but what does not run.
3. `xinfluencer --data /elsewhere/restored verify`: 0 faults. Every output follows from its input.
4. Remove it again: it holds the words and their keys.

After a loss: restore into the place of the old folder, `doctor`, `verify`, then `xinfluencer up`. Sources go on from
their cursors; what they no longer keep is a `source-gap`. Vectors and tables are not in a backup, and fill themselves
again from the log. Whoever was forgotten after the backup is not: their receipts are newer than it, so send the
requests since then once more.
"""

PROMETHEUS = """
Every process writes `run/NAME.prom` in the data folder for a node exporter's textfile collector
(`--collector.textfile.directory`), and `deploy/prometheus/alerts.yml` holds the rules. Do not scrape the server's
`/metrics` beside that, or its figures count twice. `xinfluencer metrics` prints all. With `promtool`:
`promtool check rules deploy/prometheus/alerts.yml` and `promtool test rules deploy/prometheus/alerts_test.yml`, which
fires every rule once, and comes near to some without firing them.

What no process says of itself (disk, restarts, the stores) is written by `up`. Where processes are started by something
else, a cron job does it each minute: `python -m streams.machine_metrics`; and `xinfluencer alerts`, if no Prometheus
watches.

`xinfluencer trace VERSION --out FILE` walks from a version back to its posts and writes the way as spans.

Alerts about the topic `alerts` need the sink, which reads every topic. Without it: `xinfluencer doctor` (alerts).
"""


def page() -> str:
    """Render docs/OPERATING.md."""
    parts = [
        "# Operating",
        "For the person on call. Written by `python -m streams.alerting` from `alert_rules.py` and `runbook.py`.",
        "## First",
        FIRST.strip(),
        "## Alerts",
        _table(("alert", "severity", "what it means"), [(_link(r.name), r.severity, r.means) for r in RULES]),
    ]
    for rule in RULES:
        when = f"after {span(rule.for_s)}" if rule.for_s else "at once"
        parts += [
            f"## {rule.name}",
            f"*{rule.severity}, {when}.* {rule.means}",
            f"**At risk:** {ADVICE[rule.name].risk}",
            f"**Look:** {rule.look}",
            f"**Do:** {rule.do}",
            f"**Over when:** {ADVICE[rule.name].over}",
            f"```promql\n{promql(rule.any_of)}\n```",
        ]
    parts += ["## Kinds in the topic `alerts`", "\n".join(f"- `{kind}`: {text}" for kind, text in KINDS.items())]
    parts += ["## When a process dies", _table(("process", "what happens"), DEATHS)]
    parts += ["## Exit codes", _table(("code", "what it says"), CODES)]
    parts += ["## Backup, and the drill", DRILL.strip(), "## Prometheus", PROMETHEUS.strip()]
    return "\n\n".join(parts) + "\n"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _table(head: tuple[str, ...], rows: "list[tuple[str, ...]] | tuple[tuple[str, ...], ...]") -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
