"""Alert rules: the one table of what is wrong, since when it counts, what it means and what to do about it.

Prometheus' rules (deploy/prometheus/alerts.yml), our own evaluator (`xinfluencer alerts`) and the operator's page
(docs/OPERATING.md) are rendered from it. Limits that doctor has too are doctor's; a test holds
them together, since doctor imports what imports this.
"""

from dataclasses import dataclass
from typing import Literal

from streams.readings import Compare, Reading, Share

MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
RECENT_S = 15 * MINUTE_S  # how long a single thing that happened is worth an alert
DRIFT_NOW_S, DRIFT_PAST_S = 6 * HOUR_S, DAY_S
DRIFT_TIMES = 3  # a rate's day and night differ by less than this in the feeds we have seen
DRIFT_EVENTS_MIN = 200  # a share of fewer events moves this much by chance
DRIFT_TOP_MIN = 30
SHARE_REFUSED_MIN = 0.01  # below one in a hundred, threefold is still little
BEHIND_MAX = 10_000
STALE_S_MAX = 300
DISK_BYTES_LOOK, DISK_BYTES_MIN = 5_000_000_000, 1_000_000_000
OVERDUE_S = DAY_S
RESTARTS_MAX = 2.5  # two, and not three: Prometheus makes 2.03 of two when it extrapolates to the window's edges

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class Rule:
    """One alert. It fires when one of `any_of` (each: all of these) was true for `for_s` seconds at every look."""

    name: str
    severity: Severity
    any_of: tuple[tuple[Compare, ...], ...]
    for_s: int
    means: str
    look: str
    do: str


def _events(event: str, over_s: int, by: tuple[str, ...] = (), back_s: int = 0) -> Reading:
    return Reading("xinfluencer_events_sent_total", by, (("event", event),), "increase", over_s, back_s)


def _happened(metric: str, *where: tuple[str, str], by: tuple[str, ...] = (), over_s: int = RECENT_S) -> Compare:
    return Compare(Reading(metric, by, where, "increase", over_s), ">", 0)


def _lately(metric: str, *where: tuple[str, str], by: tuple[str, ...] = ()) -> Compare:
    return Compare(Reading(metric, by, where, "age", fold="min"), "<", RECENT_S)


def _written(topic: str) -> Compare:
    where = (("process", "sink"), ("topic", topic))
    return Compare(Reading("xinfluencer_end_offset", (), where, "delta", RECENT_S), ">", 0)


def _drift(top: str, bottom: str) -> tuple[tuple[Compare, ...], tuple[Compare, ...]]:
    """Compare the share of the last hours with that of the day before them: a third or less, or three times or more."""
    now = Share(_events(top, DRIFT_NOW_S), _events(bottom, DRIFT_NOW_S))
    past = Share(_events(top, DRIFT_PAST_S, (), DRIFT_NOW_S), _events(bottom, DRIFT_PAST_S, (), DRIFT_NOW_S))
    few = DRIFT_EVENTS_MIN if bottom == "PostDescribed" else 3
    enough = (Compare(now.bottom, ">", few), Compare(past.bottom, ">", few), Compare(past.top, ">", DRIFT_TOP_MIN))
    fell = Compare(now, "<", past, round(1 / DRIFT_TIMES, 3))
    rose = Compare(now, ">", past, DRIFT_TIMES)
    return (fell, *enough), (rose, *enough)


_BY_PLACE = ("process", "topic", "partition")
_REFUSED = Share(_events("RecordRefused", DRIFT_NOW_S), _events("PostDescribed", DRIFT_NOW_S))
_REFUSED_PAST = Share(
    _events("RecordRefused", DRIFT_PAST_S, (), DRIFT_NOW_S), _events("PostDescribed", DRIFT_PAST_S, (), DRIFT_NOW_S)
)

RULES = (
    Rule(
        "XinfluencerStuck",
        "critical",
        (
            (
                Compare(Reading("xinfluencer_lag_records", _BY_PLACE, fold="max"), ">", 0),
                Compare(
                    Reading("xinfluencer_next_offset", _BY_PLACE, (), "changes", 10 * MINUTE_S, fold="max"), "==", 0
                ),
            ),
        ),
        5 * MINUTE_S,
        "Records wait in a partition and its reader applies none of them.",
        "`xinfluencer doctor` (lag, processes), then the last lines of the process's log in `logs`.",
        "`up` ends what stands still after 45 seconds; elsewhere end it yourself and start it ten seconds later, so "
        "that its group gives out the partitions anew: it starts from its snapshot. If it stands still at the same "
        "place again, a step is in an endless loop there: keep a backup, mend the step.",
    ),
    Rule(
        "XinfluencerBehind",
        "warning",
        (
            (
                Compare(
                    Reading("xinfluencer_lag_records", ("process",), (("process", "embedder|sink"),)), ">", BEHIND_MAX
                ),
            ),
        ),
        RECENT_S,
        "The embedder or the sink reads slower than the feed writes: searches and reports lack the newest posts.",
        "`xinfluencer metrics | grep lag_records`; whether the machine is busy with training.",
        "Nothing is lost. If it does not shrink overnight, give it more cores, or a machine of its own.",
    ),
    Rule(
        "XinfluencerDeadLetters",
        "warning",
        (
            (_lately("xinfluencer_record_refused_timestamp_seconds"),),
            (_happened("xinfluencer_source_refused_total"),),
        ),
        0,
        "Records came that cannot be used; they were set aside with a reason, and nothing else stopped. What people "
        "judge too late, or after it was deleted, is set aside too and raises no alert.",
        "`xinfluencer dead-letters list`, and `xinfluencer dead-letters show ID` for one; `logs/follow.log`.",
        "Mend what sends them; when the cause is gone, `xinfluencer dead-letters replay --reason REASON`.",
    ),
    Rule(
        "XinfluencerIdConflict",
        "critical",
        ((_lately("xinfluencer_record_refused_timestamp_seconds", ("reason", "id-conflict"), by=("stage",)),),),
        0,
        "An id was written again with another payload: somebody makes ids that are not unique, or forges events.",
        "`xinfluencer dead-letters list --reason id-conflict`: the letter names the place of the second one.",
        "Find the writer and stop it. The first payload counts; the second one changed nothing.",
    ),
    Rule(
        "XinfluencerStepFailed",
        "critical",
        ((_lately("xinfluencer_record_refused_timestamp_seconds", ("reason", "step-failed"), by=("stage",)),),),
        0,
        "A step raised three times on the same record, which was then set aside: a fault of this program.",
        "`xinfluencer dead-letters list --reason step-failed`, and the worker's log for the traceback.",
        "Mend the step, start the worker, then `xinfluencer dead-letters replay --reason step-failed`.",
    ),
    Rule(
        "XinfluencerRewardsDrift",
        "warning",
        _drift("RewardClosed", "PostDescribed"),
        30 * MINUTE_S,
        "Rewards for each post are a third, or three times, what they were the day before.",
        "`xinfluencer report rewards`: which components are missing, and of which source.",
        "Look for a source that stopped giving counts, a ticker that does not run, or raters that flood; what they "
        "wrote can be withdrawn by their id.",
    ),
    Rule(
        "XinfluencerRefusalsDrift",
        "warning",
        (
            (
                Compare(_REFUSED, ">", _REFUSED_PAST, DRIFT_TIMES),
                Compare(_REFUSED, ">", SHARE_REFUSED_MIN),
                Compare(_REFUSED.bottom, ">", DRIFT_EVENTS_MIN),
                Compare(_REFUSED_PAST.bottom, ">", DRIFT_EVENTS_MIN),
            ),
        ),
        30 * MINUTE_S,
        "More than one record in a hundred posts is refused, three times as many as the day before.",
        "`xinfluencer dead-letters list`: one reason, and one stage, will stand out.",
        "Most often a source changed its format: stop following it, mend its reader, replay the letters.",
    ),
    Rule(
        "XinfluencerPairsDrift",
        "warning",
        _drift("PairFormed", "BatchClosed"),
        30 * MINUTE_S,
        "Batches hold a third, or three times, the pairs that they held the day before.",
        "`xinfluencer report models` and `xinfluencer report rewards`.",
        "Few: judgements stopped, or agree too little. Many: one rater or one prompt may flood; look before the next "
        "release. If one was made of it: `xinfluencer command roll-back VERSION --reason WHY`, to the version before.",
    ),
    Rule(
        "XinfluencerDiskFilling",
        "warning",
        ((Compare(Reading("xinfluencer_disk_free_bytes", ("folder",), fold="min"), "<", DISK_BYTES_LOOK),),),
        5 * MINUTE_S,
        "Less than 5 GB is free: about a day of a busy feed.",
        "`du -xh --max-depth=2` in the data folder.",
        "Make room, or move the data folder while nothing runs. Never delete inside `broker` or `snapshots` by hand.",
    ),
    Rule(
        "XinfluencerDiskFull",
        "critical",
        ((Compare(Reading("xinfluencer_disk_free_bytes", ("folder",), fold="min"), "<", DISK_BYTES_MIN),),),
        MINUTE_S,
        "Less than 1 GB is free: the broker will stop when it cannot make its next segment.",
        "`du -xh --max-depth=2` in the data folder.",
        "Stop following sources, make room, and start again: what was acknowledged is there.",
    ),
    Rule(
        "XinfluencerStaleSnapshot",
        "warning",
        (
            (
                Compare(
                    Reading("xinfluencer_snapshot_age_seconds", ("stage", "partition"), fold="max"), ">", STALE_S_MAX
                ),
            ),
        ),
        2 * MINUTE_S,
        "What a partition applied is in no snapshot for five minutes: a restart would do it all again, slowly.",
        "`logs/worker.log` says `cannot write the snapshot` and why; `df -h`; an object store: whether it answers.",
        "Make room, or the folder writable, or the store reachable. Nothing needs to be started again.",
    ),
    Rule(
        "XinfluencerReleaseRefused",
        "warning",
        ((Compare(_events("ModelRefused", HOUR_S), ">", 0),),),
        0,
        "A trained version did worse than it may on what was held back, and is not released; the present one goes on.",
        "`xinfluencer report models`: the reason and both measurements.",
        "Nothing, if it is one. If several in a row are refused, look at what was learned: XinfluencerPairsDrift.",
    ),
    Rule(
        "XinfluencerSourceGap",
        "critical",
        ((_lately("xinfluencer_source_gap_timestamp_seconds", by=("stream",)),),),
        0,
        "A live source could not go on where it was: messages are missing between two places that the alert names.",
        "`xinfluencer doctor` (alerts): kind source-gap, from when to when; `logs/follow.log`.",
        "Get a backfill, a recovery or an export of that time from the source, and `xinfluencer ingest FILE`; what is "
        "in the log already is not written again.",
    ),
    Rule(
        "XinfluencerSourceSilent",
        "warning",
        ((Compare(Reading("xinfluencer_source_silent_seconds", ("stream",), fold="max"), ">", 2 * MINUTE_S),),),
        2 * MINUTE_S,
        "A live source has sent nothing for two minutes, not even a keep-alive.",
        "`xinfluencer doctor` (sources): the last error; the source's own status page.",
        "Check token and network: it connects again by itself and asks for what it missed. If its process does not "
        "run, start it.",
    ),
    Rule(
        "XinfluencerSourceParked",
        "critical",
        ((Compare(Reading("xinfluencer_source_parked", ("stream",), fold="max"), ">", 0),),),
        MINUTE_S,
        "A live source refuses us: token, plan, rights, cursor or clock. Others go on; this one waits for a person.",
        "`xinfluencer doctor` (sources) and `logs/follow.log` say why, in the source's own words.",
        "Mend what it names. It is tried again by itself, seldom; start `follow` again to have it tried at once.",
    ),
    Rule(
        "XinfluencerAdapterRefused",
        "critical",
        ((_lately("xinfluencer_adapter_refused_timestamp_seconds"),),),
        0,
        "The server was told of a version whose files do not match their hashes, and goes on with the one before.",
        "`xinfluencer doctor` (adapters, release) names the file.",
        "`xinfluencer --data /elsewhere restore STORE`, and copy `models/adapters` of the version from there; or "
        "`xinfluencer command retract VERSION --reason WHY`. Ask who can write there.",
    ),
    Rule(
        "XinfluencerAnswersUnrecorded",
        "critical",
        ((_happened("xinfluencer_records_failed_total"),),),
        2 * MINUTE_S,
        "The log did not acknowledge answers or judgements in time; those who asked were told to try again.",
        "Whether the broker runs and its disk has room: `xinfluencer doctor`.",
        "Bring the broker back. Nothing that was answered with success is missing.",
    ),
    Rule(
        "XinfluencerErasureOverdue",
        "critical",
        (
            (
                Compare(
                    Reading("xinfluencer_erasure_owed_since_timestamp_seconds", ("process",), (), "age", fold="max"),
                    ">",
                    OVERDUE_S,
                ),
            ),
        ),
        0,
        "A store has owed a receipt for a whole day: somebody who asked to be forgotten may still be in it.",
        "`xinfluencer metrics | grep erasure`; whether the store's process runs, and what its log says.",
        "Start it again. If it still owes, stop it, remove its store (the folder `vectors` of the embedder, "
        "`analytics` of the sink) and start it: it is filled anew from the log, which no longer has the words.",
    ),
    Rule(
        "XinfluencerRestarting",
        "warning",
        (
            (
                Compare(
                    Reading("xinfluencer_process_restarts_total", ("process",), (), "increase", RECENT_S),
                    ">",
                    RESTARTS_MAX,
                ),
            ),
        ),
        0,
        "A process ended and was started again more than twice in a quarter of an hour.",
        "The last lines of its log say why it stopped, its exit code what kind of end that was; `xinfluencer doctor`.",
        "It recovers by itself from what passes. What comes back each time is a full disk, a lost broker or a fault.",
    ),
    Rule(
        "XinfluencerMetricsStale",
        "warning",
        (
            (
                Compare(
                    Reading("xinfluencer_written_timestamp_seconds", ("process",), (), "age", fold="max"),
                    ">",
                    2 * MINUTE_S,
                ),
            ),
        ),
        MINUTE_S,
        "A process has left no figures for two minutes and did not say that it ends: it is dead, or stands still.",
        "`xinfluencer doctor` (processes); `df -h`; the process's log.",
        "Start what should run. If a process was removed for good, remove its `run/NAME.prom` (and, of a store, its "
        "`run/NAME.status.json`) too.",
    ),
    Rule(
        "XinfluencerAlertRaised",
        "info",
        ((_written("alerts"),),),
        0,
        "A process wrote into the topic `alerts`; the list below says what each kind means.",
        "`xinfluencer doctor` (alerts) shows the newest.",
        "As the list below says for its kind.",
    ),
)
