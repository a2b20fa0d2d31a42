"""Command line, second half: commands that look at what is there, or say one thing to it, and end."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streams.settings import Settings

look = typer.Typer()
graph = typer.Typer(help="Who is influential, and who belongs together.", no_args_is_help=True)
policy = typer.Typer(help="What may be done with which posts.", no_args_is_help=True)
rules = typer.Typer(help="What X's filtered stream is asked for.", no_args_is_help=True)
look.add_typer(graph, name="graph")
look.add_typer(policy, name="policy")
look.add_typer(rules, name="x-rules")
letters = typer.Typer(help="What could not be used, and why.", no_args_is_help=True)
look.add_typer(letters, name="dead-letters")


def settings_now() -> "Settings":
    """Read the settings; late, so that --help needs nothing."""
    from streams.settings import Settings

    return Settings.from_env()


@look.command()
def topology(
    png: Annotated[Path | None, typer.Option(help="Draw it into this PNG file.")] = None,
) -> None:
    """Print the graph of topics and agents, from the table that runs."""
    from streams.commands import print_topology

    print_topology(png)


@look.command()
def topics(
    create: Annotated[bool, typer.Option("--create", help="Create what is missing, where processes may not.")] = False,
) -> None:
    """List topics: what they hold, how they are kept, how many records (if the log can be reached)."""
    from streams.commands import create_topics, print_topics

    if create:
        from streams.schema_registry import register_if_set

        create_topics(settings_now())
        register_if_set(settings_now(), typer.echo)
    print_topics(settings_now())


@look.command()
def trace(
    version: Annotated[str, typer.Argument(help="The beginning of a version's sha256.")],
    out: Annotated[Path | None, typer.Option(help="Write the spans here: OTLP/JSON, one a line.")] = None,
) -> None:
    """Walk from a version back to the posts it was made of."""
    from streams.lineage import run_trace

    run_trace(settings_now(), version, out)


@look.command()
def schemas(
    check: Annotated[bool, typer.Option("--check", help="Only ask whether they could be registered.")] = False,
) -> None:
    """Register the topics' shapes with the schema registry (XINFLUENCER_SCHEMA_REGISTRY)."""
    from streams.schema_registry import run_schemas

    sys.exit(run_schemas(settings_now(), check))


@look.command()
def acls(
    processes: Annotated[list[str] | None, typer.Argument(help="Which; all if none is named.")] = None,
    user_prefix: Annotated[str, typer.Option(help="What the names of users begin with.")] = "",
    table: Annotated[bool, typer.Option("--table", help="A table in place of lines for kafka-acls.sh.")] = False,
) -> None:
    """Print the least rights that each process needs on a cluster."""
    from streams.access_rules import run_acls

    run_acls(settings_now(), processes or (), user_prefix, table)


@look.command()
def adopt(
    stage: Annotated[str, typer.Argument(help="An agent whose version changed.")],
    before: Annotated[int, typer.Option("--from", help="The version that ran last.", min=1)],
) -> None:
    """Let a new version of an agent go on from the state of the one before, on a drained log."""
    from streams.commands import run_adopt

    run_adopt(settings_now(), stage, before)


@look.command()
def replay(
    out: Annotated[Path, typer.Option(help="File to write: JSON Lines in TRL's prompt/chosen/rejected shape.")],
) -> None:
    """Rebuild the training set from the log; the same log gives the same bytes."""
    from streams.commands import run_replay

    run_replay(settings_now(), out)


@look.command()
def verify() -> None:
    """Fold the log again: does every output follow from its input? It is read into memory, 1 GB for 330,000 records."""
    from streams.commands import run_verify

    run_verify(settings_now())


@look.command()
def command(
    what: Annotated[str, typer.Argument(help="release, roll-back or retract")],
    version: Annotated[str, typer.Argument(help="The version's sha256 (64 digits).")],
    reason: Annotated[str, typer.Option(help="Why; it is kept for ever.")],
) -> None:
    """Give an operator's command about a version."""
    from streams.commands import run_command

    run_command(settings_now(), what, version, reason)


@look.command()
def settings() -> None:
    """List every setting, its variable and its value."""
    from streams.commands import print_settings

    print_settings(settings_now())


@look.command()
def similar(
    post: Annotated[str | None, typer.Argument(help="A post's id; or give --text.")] = None,
    text: Annotated[str | None, typer.Option(help="Words to look for in place of a post.")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=100)] = 10,
    source: Annotated[str | None, typer.Option(help="Only posts of this source.")] = None,
    lang: Annotated[str | None, typer.Option(help="Only posts in this language.")] = None,
    since: Annotated[str | None, typer.Option(help="Only posts claimed since this date, ISO 8601.")] = None,
) -> None:
    """Find the posts whose meaning is nearest."""
    from streams.similar import run_similar

    run_similar(settings_now(), post, text, number, source, lang, since)


@look.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT; tables and columns: SHOW TABLES, DESCRIBE name.")],
    form: Annotated[str, typer.Option("--format", help="table, json or csv")] = "table",
) -> None:
    """Ask the analytics tables; nothing can be changed."""
    from streams.analytics import run_sql

    run_sql(settings_now(), query, form)


@look.command()
def report(
    name: Annotated[str | None, typer.Argument(help="Which one; without it, list them.")] = None,
    days: Annotated[int, typer.Option(help="How far back.", min=1, max=36_500)] = 30,
    png: Annotated[Path | None, typer.Option(help="Draw it into this PNG file.")] = None,
) -> None:
    """Print a named report over the analytics tables, with a chart if wanted."""
    from streams.reports import run_report

    run_report(settings_now(), name, days, png)


@graph.command()
def top(number: Annotated[int, typer.Option("--number", "-n", min=1, max=10_000)] = 20) -> None:
    """List the most influential authors."""
    from streams.graph_view import run_graph_top

    run_graph_top(settings_now(), number)


@graph.command()
def author(name: Annotated[str, typer.Argument(help="An author's id, such as x:@12.")]) -> None:
    """Show one author's place in the graph, and who acts towards whom."""
    from streams.graph_view import run_graph_author

    run_graph_author(settings_now(), name)


@graph.command()
def export(
    file: Annotated[Path, typer.Argument(help=".graphml or .json (node-link); .png or .svg draws it.")],
) -> None:
    """Write the graph to a file."""
    from streams.graph_view import run_graph_export

    run_graph_export(settings_now(), file)


@policy.command()
def explain(
    post: Annotated[str, typer.Argument(help="A post's id, or a Bluesky at:// URI.")],
    author: Annotated[str | None, typer.Option(help="Its author's id, where known: far less to read.")] = None,
) -> None:
    """Say what may be done with a post, and why."""
    from streams.policy_explain import run_policy_explain

    run_policy_explain(settings_now(), post, author)


@rules.command("list")
def list_rules() -> None:
    """List the rules that X holds for this token."""
    from streams.x_rules import run_rules_list

    run_rules_list(settings_now())


@rules.command("set")
def set_rules(file: Annotated[Path, typer.Argument(help="The rules wanted; see docs/SOURCES.md.")]) -> None:
    """Make X hold just the rules of a file; others' rules are left alone."""
    from streams.x_rules import run_rules_set

    run_rules_set(settings_now(), file)


@letters.command("list")
def list_letters(reason: Annotated[str | None, typer.Option(help="List those of one reason.")] = None) -> None:
    """Count them by stage and reason."""
    from streams.dead_letters import run_list

    run_list(settings_now(), reason)


@letters.command()
def show(letter: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Show one, and the first bytes of what was refused."""
    from streams.dead_letters import run_show

    run_show(settings_now(), letter)


@letters.command("replay")
def replay_letters(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of letters.")] = None,
    reason: Annotated[str | None, typer.Option(help="All of one reason, in place of ids.")] = None,
) -> None:
    """Write the records that they name again, once the cause is mended."""
    from streams.dead_letters import run_replay_letters

    run_replay_letters(settings_now(), ids or [], reason)


@look.command()
def comply(
    file: Annotated[str, typer.Argument(help="Results of a batch compliance job of X's, JSON Lines.")],
    kind: Annotated[str, typer.Option("--type", help="What the job was about: tweets or users.")] = "tweets",
) -> None:
    """Delete and erase what X's compliance job says is gone."""
    from streams.comply import run_comply

    run_comply(settings_now(), file, kind)


@look.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Look at everything of this deployment, and say how to mend what is wrong."""
    from streams.doctor import run_doctor

    sys.exit(run_doctor(settings_now(), as_json))


@look.command()
def backup(
    store: Annotated[Path, typer.Argument(help="Folder of backups of this deployment, on another disk.")],
    keep: Annotated[int | None, typer.Option(min=1, help="Forget all but so many backups afterwards.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Make none: read every byte of those there are.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Make none: list them.")] = False,
) -> None:
    """Keep all that is needed after the loss of this machine; everything must be stopped."""
    from streams.backup import run_backup, run_backup_list, run_backup_verify

    if verify:
        sys.exit(run_backup_verify(store))
    if listing:
        run_backup_list(store)
    else:
        run_backup(settings_now(), store, keep)


@look.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A store (its newest backup), or one STORE/backups/NAME.json.")],
) -> None:
    """Make the data folder again from a backup; it must be empty or missing."""
    from streams.restore import run_restore

    run_restore(settings_now(), source)


@look.command()
def metrics() -> None:
    """Print what every process of this deployment counts, in Prometheus' text format."""
    from streams.metrics import run_metrics

    run_metrics(settings_now())


@look.command()
def alerts() -> None:
    """Say which alert rules fire now, what each means, and what to do."""
    from streams.alerting import run_alerts

    run_alerts(settings_now())
