"""Command line: words -> one of the functions that do it; nothing heavy is imported before it is needed."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
DEBUG = False


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


def _settings() -> "Settings":
    from streams.settings import Settings

    return Settings.from_env()


@app.command()
def up() -> None:
    """Run everything on this machine until Ctrl-C: broker, worker, trainer, server, clock."""
    from streams.up import run_up

    run_up(_settings())


@app.command()
def demo(
    feed: Annotated[
        Path | None, typer.Option(help="X API v2 posts or pages (JSON Lines, .gz) in place of the simulator.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same posts, answers, pairs and adapter.")] = 7,
    prompts: Annotated[int, typer.Option(help="Questions asked of the server.", min=4, max=200)] = 16,
) -> None:
    """Show the whole loop once, from posts to a released version, and leave the data for `up` to go on from."""
    from streams.demo import run_demo

    run_demo(_settings(), feed, seed, prompts)


@app.command()
def worker(
    agents: Annotated[list[str] | None, typer.Argument(help="Agents to run; all if none is named.")] = None,
    instance: Annotated[str, typer.Option(help="A name that stays over restarts, one for each worker.")] = "0",
) -> None:
    """Run agents against the cluster (XINFLUENCER_KAFKA)."""
    from streams.worker import run_worker
    from streams.zygote import die_with_parent

    if os.environ.get("XINFLUENCER_SUPERVISED"):
        die_with_parent()
    run_worker(_settings(), agents or (), instance)


@app.command()
def trainer() -> None:
    """Train a version on every batch that closes."""
    from streams.trainer import run_trainer

    run_trainer(_settings())


@app.command()
def server() -> None:
    """Answer people with the released version, over HTTP."""
    from streams.server import run_server

    run_server(_settings())


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

    run_zygote(_settings(), {"trainer": run_trainer, "server": run_server})


@app.command()
def ingest(
    file: Annotated[str, typer.Argument(help="A file of JSON Lines or JSON (.gz too), or - for standard input.")],
    source: Annotated[str, typer.Option(help="Whose posts these are, for the rights policy.")] = "x",
) -> None:
    """Write posts from a file to `tweets`."""
    from streams.commands import run_ingest

    run_ingest(_settings(), file, source)


@app.command()
def broker() -> None:
    """Run only the embedded Kafka broker until Ctrl-C."""
    from streams.commands import run_broker

    run_broker(_settings())


@app.command()
def topology(
    png: Annotated[Path | None, typer.Option(help="Draw it into this PNG file.")] = None,
) -> None:
    """Print the graph of topics and agents, from the table that runs."""
    from streams.commands import print_topology

    print_topology(png)


@app.command()
def topics() -> None:
    """List topics: what they hold, how they are kept, how many records (if the log can be reached)."""
    from streams.commands import print_topics

    print_topics(_settings())


@app.command()
def replay(
    out: Annotated[Path, typer.Option(help="File to write: JSON Lines in TRL's prompt/chosen/rejected shape.")],
) -> None:
    """Rebuild the training set from the log; the same log gives the same bytes."""
    from streams.commands import run_replay

    run_replay(_settings(), out)


@app.command()
def verify() -> None:
    """Fold the whole log again and say whether every output follows from its input."""
    from streams.commands import run_verify

    run_verify(_settings())


@app.command()
def command(
    what: Annotated[str, typer.Argument(help="release, roll-back or retract")],
    version: Annotated[str, typer.Argument(help="The version's sha256 (64 digits).")],
    reason: Annotated[str, typer.Option(help="Why; it is kept for ever.")],
) -> None:
    """Give an operator's command about a version."""
    from streams.commands import run_command

    run_command(_settings(), what, version, reason)


@app.command()
def settings() -> None:
    """List every setting, its variable and its value."""
    from streams.commands import print_settings

    print_settings(_settings())


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
        sys.exit(78 if name in ("SettingsRefused", "KafkaSettingsRefused", "Fenced") else 1)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors are one sentence, with a traceback only under --debug."""
    run: Callable[..., Any] = app
    with _one_sentence():
        return run(arguments)


if __name__ == "__main__":
    main()
