"""Reward report: the topic `rewards` -> the table of components, their coverage and their agreement with people."""

import asyncio

from agents.reward_report import COLUMNS, ReportRow, reward_report
from schemas import envelope
from schemas.facts import Event
from streams.access import log_access
from streams.reader import reader
from streams.settings import Settings
from streams.show import Screen


def run_reward_report(settings: Settings) -> None:
    """Print the report as the log stands now."""
    screen = Screen()
    screen.table(COLUMNS, [row.cells() for row in asyncio.run(read_report(settings, screen))])
    screen.say("  real: judged by people only; simulated: by simulated raters only; n < 3 or no variance: -")


async def read_report(settings: Settings, screen: Screen) -> list[ReportRow]:
    """Read `rewards` and make the report; duplicates by id are left out."""
    events: dict[str, Event] = {}
    async with log_access(settings, screen.say) as kafka, reader(settings, kafka) as log_reader:
        for (topic, partition), raws in (await log_reader.everything("rewards")).items():
            for raw in raws:
                try:
                    record = envelope.decode(topic, partition, raw.offset, raw.timestamp, raw.headers, raw.value)
                except envelope.Refused:
                    continue  # its reader wrote a dead letter in its place
                events.setdefault(record.id, record.event)
    return reward_report(events.values())
