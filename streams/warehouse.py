"""Warehouse: the analytics database, chDB in a folder or a ClickHouse server, brought to the tables of streams/tables.

One process writes: in a folder it holds a lock. Reading goes through streams/analytics.py. A database is only ever
brought forward: what is missing is created or added, nothing is dropped, and one that a newer program made is refused.
"""

import hashlib
import ipaddress
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streams import tables as t
from streams.broker import FolderLock
from streams.settings import Settings

DATABASE = "analytics"
OWN = (
    (
        "sink_schema",
        "version UInt32, sha256 String, at_ms UInt64, statements UInt32",
        "ReplacingMergeTree ORDER BY (version, sha256)",
        "Which rendering of the tables this database was brought to, and when.",
    ),
    (
        "sink_checkpoint",
        "topic String, partition UInt32, log String, next UInt64",
        "ReplacingMergeTree(next) ORDER BY (topic, partition)",
        "Up to which offset each partition is in the tables; log: the ids of cluster and topic.",
    ),
    (
        "sink_skipped",
        "topic String, partition UInt32, offset UInt64, time_ms UInt64, reason LowCardinality(String), bytes UInt32",
        "ReplacingMergeTree ORDER BY (topic, partition, offset)",
        "Records that could not be read; whoever owns the topic has put them into dead-letters.",
    ),
    (
        "sink_forgotten",
        "name String, at_ms UInt64",
        "ReplacingMergeTree ORDER BY name",
        "Hashes of people and posts that were forgotten, so that nothing about them comes back.",
    ),
    (
        "sink_erasure",
        "topic String, partition UInt32, offset UInt64, state UInt8, rows UInt64, at_ms UInt64",
        "ReplacingMergeTree(state) ORDER BY (topic, partition, offset)",
        "Requests to forget by their place in the log: 0 asked, 1 counted, 2 erased and receipt sent.",
    ),
    (
        "sink_erasing",
        "name String, person UInt8",
        "Memory",
        "What is being erased now; in memory, so that no file of a mutation names it.",
    ),
)
"""The sink's own tables: name, columns, engine, meaning."""

WIDER = {"UInt8": 1, "Int8": 1, "UInt16": 2, "Int16": 2, "UInt32": 4, "Int32": 4, "UInt64": 8, "Int64": 8}
_PREFIX = "XINFLUENCER_CLICKHOUSE"


class WarehouseRefused(Exception):
    """The database cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class Server:
    """Where a ClickHouse server is, and who we are there."""

    host: str
    port: int
    secure: bool
    database: str
    user: str = "default"
    password: str = field(default="", repr=False)


def server_of(settings: Settings, env: Mapping[str, str] | None = None) -> Server | None:
    """Read the server's address and credentials; None where chDB is meant. WarehouseRefused names the variable."""
    env = os.environ if env is None else env
    if not settings.clickhouse:
        return None
    try:
        url = urlsplit(settings.clickhouse)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    database = url.path.strip("/") or DATABASE
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
        raise WarehouseRefused(
            f"{_PREFIX} must be http(s)://host:port/database; user and password go into {_PREFIX}_USER and _PASSWORD"
        )
    if not database.replace("_", "").isalnum() or not database.isascii():
        raise WarehouseRefused(f"{_PREFIX}: a database's name is letters, digits and _")
    password, file = env.get(f"{_PREFIX}_PASSWORD", ""), env.get(f"{_PREFIX}_PASSWORD_FILE")
    if file:
        if password:
            raise WarehouseRefused(f"set only one of {_PREFIX}_PASSWORD and {_PREFIX}_PASSWORD_FILE")
        try:
            password = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise WarehouseRefused(f"{_PREFIX}_PASSWORD_FILE cannot be read: {error.strerror}") from None
    secure = url.scheme == "https"
    if password and not secure and not _on_this_machine(url.hostname):
        raise WarehouseRefused(f"{_PREFIX}: http would send the password in clear to {url.hostname}; use https")
    return Server(
        url.hostname,
        port or (8443 if secure else 8123),
        secure,
        database,
        env.get(f"{_PREFIX}_USER", "default"),
        password,
    )


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def folder_of(settings: Settings) -> Path:
    """Where chDB's files, the lock and the files on their way into it lie."""
    return settings.data / DATABASE


def client(settings: Settings, limits: Mapping[str, Any] | None = None) -> Any:
    """Connect to the database, made now if need be; with `limits` (engine settings, last readonly) only to read."""
    import clickhouse_connect

    server = server_of(settings)
    if server is not None:
        kwargs = {
            "host": server.host,
            "port": server.port,
            "secure": server.secure,
            "username": server.user,
            "password": server.password,
            "autogenerate_session_id": False,  # a session would refuse two queries at once
        }
        try:
            if limits is None:
                first = clickhouse_connect.get_client(**kwargs)
                first.command(f"CREATE DATABASE IF NOT EXISTS `{server.database}`")
                first.close()
            return clickhouse_connect.get_client(**kwargs, database=server.database, settings=dict(limits or {}))
        except clickhouse_connect.driver.exceptions.Error as error:
            raise WarehouseRefused(f"ClickHouse at {server.host}:{server.port}: {_sentence(error)}") from None
    place = str(folder_of(settings) / "chdb")
    if limits is None:
        first = clickhouse_connect.get_client(interface="chdb", path=place)
        first.command(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
        both = clickhouse_connect.get_client(interface="chdb", path=place, database=DATABASE)
        first.close()  # after the second is open: the engine ends with its last client
        return both
    found = clickhouse_connect.get_client(interface="chdb", path=place, database=DATABASE)
    for name, value in limits.items():
        found.set_client_setting(name, value)
    return found


def _sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the folder of chDB (FolderInUse if another process does); a server needs no lock.

    What is inserted goes through a file; it is written inside the folder, so that a crash leaves nothing of a person
    where an erasure does not look.
    """
    if settings.clickhouse:
        yield
        return
    folder = folder_of(settings)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FolderLock(folder):
        passing = folder / "passing"
        shutil.rmtree(passing, ignore_errors=True)
        passing.mkdir(mode=0o700)
        before, tempfile.tempdir = tempfile.tempdir, str(passing)
        try:
            yield
        finally:
            tempfile.tempdir = before


class Warehouse:
    """The one writer's view of the database."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.remote = "chdb" not in type(client).__name__.lower()

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Ask; gives the rows. Our own questions see each record once."""
        return [tuple(row) for row in self.client.query(sql, parameters=parameters, settings={"final": 1}).result_rows]

    def insert(self, table: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> int:
        """Insert columns of values under their SQL types; gives the number of rows. Acknowledged when it returns."""
        import pyarrow as pa

        block = pa.table({name: pa.array(values, t.arrow(types[name])) for name, values in columns.items()})
        if block.num_rows:
            # A server may gather inserts and answer before they are in a table, unless told.
            self.client.insert_arrow(f"`{table}`", block, settings={"async_insert": 0} if self.remote else None)
        return int(block.num_rows)

    def keep(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Insert rows into one of the sink's own tables."""
        columns = next(columns for name, columns, _, _ in OWN if name == table)
        types = dict(one.strip().split(" ", 1) for one in columns.split(", "))
        rows = list(rows)
        self.insert(table, {name: [row[i] for row in rows] for i, name in enumerate(types)}, types)

    def places(self) -> dict[tuple[str, int], tuple[str, int]]:
        """Give (log, next offset) for each (topic, partition) that was read before."""
        return {(topic, part): (log, at) for topic, part, log, at in self.rows("SELECT * FROM sink_checkpoint")}

    def migrate(self, tables: Iterable[t.Table] = tuple(t.TABLES.values()), version: int = t.VERSION) -> int:
        """Bring the database to these tables; gives how many statements it took. WarehouseRefused if it cannot be.

        Every statement can be repeated, so a crash in the middle is mended by the next start.
        """
        tables = list(tables)
        for name, columns, engine, about in OWN:
            self.client.command(f"CREATE TABLE IF NOT EXISTS {name} ({columns}) ENGINE = {engine} COMMENT '{about}'")
        newest = self.rows("SELECT max(version) FROM sink_schema")[0][0]
        if newest > version:
            raise WarehouseRefused(
                f"the analytics database was brought to version {newest} by a newer program; this one knows {version}. "
                "Run the newer program, or let this one fill a new database (XINFLUENCER_CLICKHOUSE, XINFLUENCER_DATA)"
            )
        found: dict[str, dict[str, str]] = {}
        for table, column, sql in self.rows(
            "SELECT table, name, type FROM system.columns WHERE database = currentDatabase()"
        ):
            found.setdefault(table, {})[column] = sql
        statements = [one for table in tables for one in _steps(table, found.get(table.name))]
        for statement in statements:
            self.client.command(statement, settings={"mutations_sync": 2, "alter_sync": 2})
        sha256 = hashlib.sha256(t.rendering(tables).encode()).hexdigest()
        if not self.rows(
            "SELECT 1 FROM sink_schema WHERE version = {v:UInt32} AND sha256 = {s:String}", v=version, s=sha256
        ):
            self.keep("sink_schema", [(version, sha256, int(time.time() * 1000), len(statements))])
        return len(statements)


def _steps(table: t.Table, there: Mapping[str, str] | None) -> Iterator[str]:
    if there is None:
        yield t.ddl(table)
        return
    before = t.RECORD[-1][0]
    for column in table.columns:
        has = there.get(column.name)
        if has is None:
            yield f"ALTER TABLE `{table.name}` ADD COLUMN IF NOT EXISTS `{column.name}` {column.sql} AFTER `{before}`"
        elif has != column.sql:
            if not _widens(has, column.sql):
                raise WarehouseRefused(
                    f"{table.name}.{column.name} is {has} in the analytics database and would have to become "
                    f"{column.sql}, which may lose values: let the sink fill a new database from the log"
                )
            yield f"ALTER TABLE `{table.name}` MODIFY COLUMN `{column.name}` {column.sql}"
        before = column.name


def _widens(old: str, new: str) -> bool:
    """Say whether every value of the old type is one of the new: a longer number of the same sign, or NULL too."""
    old_bare, new_bare = _bare(old), _bare(new)
    if "Nullable(" in old and "Nullable(" not in new:
        return False
    if old_bare == new_bare:
        return True
    same_sign = old_bare.startswith("U") or not new_bare.startswith("U")
    longer = WIDER.get(old_bare, 99) < WIDER.get(new_bare, 0)
    return longer and same_sign


def _bare(sql: str) -> str:
    for outer in ("LowCardinality(", "Nullable("):
        if sql.startswith(outer):
            sql = sql[len(outer) : -1]
    return sql
