"""Doctor: a deployment, running or not -> a table of checks, each with a verdict, what was seen, and the mend.

Nothing is started and nothing is changed. Checks do not know of each other: one that fails is a verdict of its own,
and the others go on. Exit code 1 means that something is wrong; what deserves a look does not fail a script.
"""

import asyncio
import contextlib
import inspect
import json
from collections import Counter
from collections.abc import Awaitable, Callable

from streams import broker as embedded
from streams import doctor_folder as folder
from streams import doctor_log as log
from streams import doctor_machine as machine
from streams.doctor_check import Answer, Check, Context, worst
from streams.kafka import KafkaSettings, cluster_id
from streams.settings import Settings
from streams.show import Screen

ANSWER_S_MAX = 20.0  # of one check; a broker in trouble must not keep the rest of the table away

Look = Callable[[Context], Check | Awaitable[Check]]

HERE: tuple[Look, ...] = (
    machine.check_versions,
    machine.check_java,
    machine.check_jars,
    machine.check_instructions,
    machine.check_base,
    machine.check_adapters,
    machine.check_encoder,
    machine.check_policy,
    machine.check_disk,
    machine.check_memory,
    machine.check_open_files,
    machine.check_ports,
    folder.check_modes,
    folder.check_vault,
    folder.check_snapshots,
    folder.check_troubles,
    folder.check_processes,
    folder.check_sources,
    folder.check_clock,
    log.check_broker,
)
"""What can be seen with nothing running."""
ASKED: tuple[Look, ...] = (
    log.check_topics,
    log.check_lag,
    log.check_log_time,
    log.check_letters,
    log.check_alerts,
    log.check_forgotten,
    log.check_release,
)
"""What only a running log can answer."""
UNSEEN = "not seen, for the log does not answer; the doctor starts nothing"


async def examine(context: Context) -> list[Check]:
    """Run every check; never raises for what a check found or failed on."""
    if context.log is not None:
        return [await _one(check, context) for check in (*HERE, *ASKED)]
    here = [await _one(check, context) for check in HERE]
    return [*here, *(Check(name_of(one), "look", UNSEEN, "see the line of the broker") for one in ASKED)]


async def _one(check: Look, context: Context) -> Check:
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            found = check(context)
            return await found if inspect.isawaitable(found) else found
    except Exception as error:  # noqa: BLE001 - the failure of a check is what it found
        said = (str(error).strip().splitlines() or [f"no answer in {ANSWER_S_MAX:.0f} s"])[0]
        return Check(name_of(check), "wrong", f"{type(error).__name__}: {said}", "the sentence says what to do")


def name_of(check: Look) -> str:
    """Name a check as its rows are named."""
    return NAMES.get(check.__name__, check.__name__.removeprefix("check_").replace("_", " "))


NAMES = {"check_modes": "file modes", "check_letters": "dead letters"}


async def answering(context: Context) -> Answer | None:
    """Find the log if it answers: the cluster that is named, or the broker of this folder with its own id."""
    if context.env.get("XINFLUENCER_KAFKA"):
        with contextlib.suppress(Exception):  # check_broker asks again, and says why
            kafka = context.settings.kafka(context.env)
            async with asyncio.timeout(ANSWER_S_MAX):
                return Answer(kafka, await cluster_id(kafka))
        return None
    bootstrap = embedded.running(context.settings.data / "broker")
    cluster = folder.cluster_of(context.log_folder)
    return Answer(KafkaSettings(bootstrap=bootstrap), cluster) if bootstrap and cluster else None


def run_doctor(settings: Settings, as_json: bool = False) -> int:
    """Print the table, or JSON (a list of name, verdict, seen, mend); gives the exit code."""

    async def run() -> list[Check]:
        context = Context(settings)
        return await examine(Context(settings, await answering(context)))

    found = asyncio.run(run())
    screen = Screen()
    if as_json:
        screen.say(json.dumps([one._asdict() for one in found], indent=2))
    else:
        for one in found:
            if one.seen != UNSEEN:
                screen.say(f"  {one.verdict:<5}  {one.name:<13} {one.seen}")
                if one.mend:
                    screen.say(f"  {'':<5}  {'':<13}   mend: {one.mend}")
        if unseen := [one.name for one in found if one.seen == UNSEEN]:
            screen.say(f"  look   {', '.join(unseen)}: {UNSEEN}")
        counts = Counter(one.verdict for one in found)
        screen.say(f"  {counts['ok']} ok, {counts['look']} to look at, {counts['wrong']} wrong")
    return 1 if worst([one.verdict for one in found]) == "wrong" else 0
