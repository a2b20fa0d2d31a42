"""The peer of `hop`: what the Faust manual would write for the same hop, with JSON Records and gathered sends."""

import asyncio
import os

import faust

from streams.settings import Settings

GATHER = 500  # sends in flight before they are awaited; one by one would be slower still


class Given(faust.Record, serializer="json"):  # type: ignore[misc,call-arg]
    """The fields of FeedbackGiven."""

    feedback: str
    subject: str
    rater: str
    kind: str
    value: int
    simulated: bool


class Noted(faust.Record, serializer="json"):  # type: ignore[misc,call-arg]
    """The fields of FeedbackNoted."""

    prompt: str
    subject: str
    feedback: str
    rater: str
    kind: str
    value: int
    simulated: bool


def main() -> None:
    """Run the agent until killed."""
    settings = Settings.from_env()
    app = faust.App(
        settings.group("plain"),
        broker=f"kafka://{os.environ['XINFLUENCER_KAFKA']}",
        store="memory://",
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=settings.partitions,
        producer_acks=-1,
        broker_commit_interval=settings.snapshot_s,
        web_enabled=False,
        datadir=settings.data / "faust",
        consumer_auto_offset_reset="earliest",
    )
    source = app.topic(settings.physical("feedback"), key_type=bytes, value_type=Given)
    target = app.topic(settings.physical("signals"), key_type=bytes, value_type=Noted)

    @app.agent(source)  # type: ignore[untyped-decorator]
    async def hop(stream: faust.StreamT) -> None:
        pending = []
        async for given in stream:
            noted = Noted(
                prompt=given.subject.partition("/")[0],
                subject=given.subject,
                feedback=given.feedback,
                rater=given.rater,
                kind=given.kind,
                value=given.value,
                simulated=given.simulated,
            )
            pending.append(await target.send(key=noted.prompt.encode(), value=noted))
            if len(pending) >= GATHER:
                await asyncio.gather(*pending)
                pending.clear()

    faust.Worker(app, quiet=True, override_logging=False).execute_from_commandline()


if __name__ == "__main__":
    main()
