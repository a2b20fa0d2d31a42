"""Command line: words -> one of the functions that do it; nothing heavy is imported before it is needed."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli_look import look, settings_now

if TYPE_CHECKING:
    from streams.settings import Settings

app = typer.Typer(
    name="xinfluencer",
    help="A live feed of posts and reactions in, a language model that keeps learning out; every step is an event.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(look)
DEBUG = False
REFUSALS = (
    "SettingsRefused", "KafkaSettingsRefused", "Fenced", "SourceRefused", "CursorRefused", "LogInRefused", "NotAllowed",
    "TopicForbidden", "TopicMismatch", "TopicRefused", "StoreRefused", "CannotAdopt", "WarehouseRefused",
)  # fmt: skip
"""Errors that starting again will not mend: exit code 78 (EX_CONFIG) tells the supervisor that a person must act."""


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of all state (XINFLUENCER_DATA, default ./var).")] = None,
) -> None:
    """Options of every command; all other settings are XINFLUENCER_* variables (see `xinfluencer settings`)."""
    global DEBUG
    DEBUG = debug
    if data is not None:
        os.environ["XINFLUENCER_DATA"] = str(data)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Torch's threads spin while they wait, which is ruinous beside a broker on two cores (docs/LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _die_with_supervisor() -> None:
    """Leave nothing behind where a supervisor is killed."""
    from streams.zygote import die_with_parent

    if os.environ.get("XINFLUENCER_SUPERVISED"):
        die_with_parent()


@app.command()
def up() -> None:
    """Run everything on this machine until Ctrl-C: broker, worker, trainer, server, clock."""
    from streams.up import run_up

    run_up(settings_now())


@app.command()
def demo(
    feed: Annotated[
        Path | None, typer.Option(help="A file of posts (X, Jetstream, Mastodon; .gz too) in place of the simulator.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same posts, answers, pairs and adapter.")] = 7,
    prompts: Annotated[int, typer.Option(help="Questions asked of the server.", min=4, max=200)] = 16,
) -> None:
    """Show the whole loop once, from posts to a released version, and leave the data for `up` to go on from."""
    from streams.demo import run_demo

    run_demo(settings_now(), feed, seed, prompts)


@app.command()
def worker(
    agents: Annotated[list[str] | None, typer.Argument(help="Agents to run; all if none is named.")] = None,
    instance: Annotated[str, typer.Option(help="A name that stays over restarts, one for each worker.")] = "0",
) -> None:
    """Run agents against the cluster (XINFLUENCER_KAFKA)."""
    from streams.worker import run_worker

    _die_with_supervisor()
    run_worker(settings_now(), agents or (), instance)


@app.command()
def trainer() -> None:
    """Train a version on every batch that closes."""
    from streams.trainer import run_trainer

    run_trainer(settings_now())


@app.command()
def server() -> None:
    """Answer people with the released version, over HTTP."""
    from streams.server import run_server

    run_server(settings_now())


@app.command(hidden=True)
def zygote() -> None:
    """Fork trainer and server from one process that has imported torch."""
    from streams.zygote import run_zygote

    def run_trainer(settings: "Settings") -> None:
        from streams.trainer import run_trainer

        run_trainer(settings)

    def run_server(settings: "Settings") -> None:
        from streams.server import run_server

        run_server(settings)

    def run_embedder(settings: "Settings") -> None:
        from streams.embedder import run_embedder

        run_embedder(settings)

    run_zygote(settings_now(), {"trainer": run_trainer, "server": run_server, "embedder": run_embedder})


@app.command()
def ticker() -> None:
    """Write log time for the agents that wait for an age (one a deployment; `up` has its own)."""
    from streams.commands import run_ticker

    run_ticker(settings_now())


@app.command()
def embedder() -> None:
    """Keep a vector of every post that may be indexed, in LanceDB."""
    from streams.embedder import run_embedder

    _die_with_supervisor()
    run_embedder(settings_now())


@app.command()
def sink() -> None:
    """Copy every topic into tables for analysis, in chDB or ClickHouse."""
    from streams.sink import run_sink

    _die_with_supervisor()
    run_sink(settings_now())


@app.command()
def follow(
    sources: Annotated[
        list[str] | None, typer.Argument(help="x, x-compliance, bluesky, mastodon; else XINFLUENCER_FOLLOW.")
    ] = None,
    from_now: Annotated[
        bool, typer.Option("--from-now", help="Forget where it stood and take a gap into account.")
    ] = False,
) -> None:
    """Take in live sources until Ctrl-C."""
    from streams.follow import run_follow

    _die_with_supervisor()
    settings = settings_now()
    run_follow(settings, sources or settings.follow, from_now)


@app.command()
def ingest(
    file: Annotated[str, typer.Argument(help="A file of JSON Lines or JSON (.gz too), or - for standard input.")],
    source: Annotated[str | None, typer.Option(help="Whose posts these are, for the policy; else by content.")] = None,
) -> None:
    """Write posts from a file to `tweets`: X (v2, v1.1), Jetstream, Mastodon, told apart by what they hold."""
    from streams.commands import run_ingest

    run_ingest(settings_now(), file, source)


@app.command()
def broker() -> None:
    """Run only the embedded Kafka broker until Ctrl-C."""
    from streams.commands import run_broker

    run_broker(settings_now())


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception as error:
        if DEBUG:
            raise
        text = str(error).strip().splitlines()
        name = type(error).__name__
        known = type(error).__module__.split(".")[0] in ("streams", "models", "agents", "schemas")
        sentence = text[0] if text else name
        print(f"xinfluencer: {sentence if known else f'{name}: {sentence}'}", file=sys.stderr)
        if not known:
            print("Run it again with --debug in front of the command for the traceback.", file=sys.stderr)
        sys.exit(78 if name in REFUSALS else 1)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors are one sentence, with a traceback only under --debug."""
    run: Callable[..., Any] = app
    with _one_sentence():
        return run(arguments)


if __name__ == "__main__":
    main()
