"""Analytics: a question in SQL -> rows, through whoever holds the database, and nothing can be changed by asking.

chDB's folder is opened by one process. While the sink runs it answers, on a socket that only this user can open; when
none runs, the command opens the folder itself, under the same lock. A ClickHouse server is asked directly. Each
question is guarded (streams/guard.py), limited in rows, time and memory, and sees each record once (FINAL).
"""

import asyncio
import contextlib
import csv
import datetime as dt
import json
import math
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.ids import digest
from streams import places
from streams.broker import FolderInUse
from streams.guard import QUERY_CHARS_MAX, QueryRefused, guarded
from streams.settings import Settings
from streams.show import Screen, clean
from streams.warehouse import WarehouseRefused, client, folder_of, locked

ROWS_MAX = 100_000
TABLE_ROWS_MAX = 1_000  # on a screen
CELL_CHARS_MAX = 60
QUERY_S_MAX = 60
LIMITS: dict[str, Any] = {
    "final": 1,
    "join_use_nulls": 1,  # as SQL has it: where nothing is joined, there is NULL and not 0
    "max_execution_time": QUERY_S_MAX,
    "max_memory_usage": 2_000_000_000,
    "max_result_rows": ROWS_MAX + 1,
    "result_overflow_mode": "break",
    "allow_introspection_functions": 0,
    "readonly": 1,  # the last: from here on not even a setting can be changed
}
START_S_MAX = 15.0  # a sink that starts holds the folder before it answers
PATH_BYTES_MAX = 100  # of a socket: the kernel's sun_path has 104 bytes or 108
REQUEST_BYTES_MAX = 8 * QUERY_CHARS_MAX
CODES = re.compile(r"^(HTTP driver [^:]*: )?(Code: \d+\. DB::Exception: )+")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run (OWASP, CSV injection)


class NothingThere(Exception):
    """There is no analytics database yet."""


@dataclass(frozen=True)
class Answer:
    """Rows under their columns; `cut` when there were more than asked for."""

    columns: tuple[str, ...]
    rows: list[list[Any]]
    cut: bool = False


class Asker:
    """A connection that can only read."""

    def __init__(self, settings: Settings) -> None:
        self._client = client(settings, LIMITS)
        self._functions = self._names("SELECT name FROM system.table_functions")

    def _names(self, sql: str) -> frozenset[str]:
        return frozenset(row[0] for row in self._client.query(sql).result_rows)

    def ask(self, query: str, parameters: Mapping[str, Any], rows_max: int) -> Answer:
        """Answer one question; QueryRefused with the engine's own sentence if it cannot."""
        from clickhouse_connect.driver.exceptions import Error

        query = guarded(query, self._functions)
        try:
            found = self._client.query(query, parameters=dict(parameters) or None)
        except Error as error:
            sentence = (str(error).strip().splitlines() or ["no answer"])[0]
            raise QueryRefused(CODES.sub("", sentence)[:500]) from None
        rows = [[_plain(cell) for cell in row] for row in found.result_rows[:rows_max]]
        return Answer(tuple(found.column_names), rows, len(found.result_rows) > rows_max)

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


def _plain(cell: Any) -> Any:
    """Turn a value of the engine into one that JSON has."""
    if cell is None or isinstance(cell, bool | int | str):
        return cell
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if isinstance(cell, dt.datetime | dt.date):
        return cell.isoformat()
    if isinstance(cell, bytes):
        return cell.decode(errors="replace")
    if isinstance(cell, Mapping):
        return {str(key): _plain(value) for key, value in cell.items()}
    if isinstance(cell, Sequence):
        return [_plain(one) for one in cell]
    return str(cell)


def ask(settings: Settings, query: str, rows_max: int = ROWS_MAX, **parameters: Any) -> Answer:
    """Answer one question, through the sink where one runs; QueryRefused or NothingThere say why not."""
    deadline = time.monotonic() + START_S_MAX
    while True:
        if not settings.clickhouse:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return _ask_sink(settings, query, rows_max, parameters)
            if not (folder_of(settings) / "chdb" / "metadata").exists():
                raise NothingThere(
                    f"there is no analytics database in {settings.data}: run `xinfluencer up` (or `sink`) first, "
                    "or give --data"
                )
        try:
            with locked(settings):
                asker = Asker(settings)
                try:
                    return asker.ask(query, parameters, rows_max)
                finally:
                    asker.close()
        except FolderInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


# ---- the socket -----------------------------------------------------------------------------------------------------


def socket_path(settings: Settings) -> Path:
    """Where the sink listens: in run/, or in a folder of this user's own where that path is too long for a socket."""
    path = places.run(settings) / "sink.sock"
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        return path
    return Path(os.environ.get("TMPDIR", "/tmp")) / f"xinfluencer-{os.getuid()}" / f"{digest(str(path))}.sock"


def _private(folder: Path) -> None:
    """Make the folder, or refuse one that others can enter: a socket of theirs could stand in it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise WarehouseRefused(f"{folder} belongs to somebody else: remove it, or choose a shorter XINFLUENCER_DATA")
    folder.chmod(0o700)


class Answering:
    """The sink's side: one question at a time, each in a thread, for whoever may open the socket."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1)
        self._asker: Asker | None = None

    async def serve(self, stopping: asyncio.Event) -> None:
        """Answer until told to stop; a ClickHouse server needs nobody in between."""
        if self._settings.clickhouse:
            return
        path = socket_path(self._settings)
        _private(path.parent)
        path.unlink(missing_ok=True)  # of a process before this: the folder's lock is ours
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._answer, path, limit=REQUEST_BYTES_MAX)
        finally:
            os.umask(before)
        try:
            await stopping.wait()
        finally:  # without `wait_closed`: from Python 3.12 on it waits for clients, however silent
            server.close()
            path.unlink(missing_ok=True)
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        try:
            said = json.loads(await incoming.readline())
            reply = await asyncio.get_running_loop().run_in_executor(self._thread, self._reply, said)
        except asyncio.CancelledError:
            reply = {"refused": "the sink is stopping; ask again"}
        except (ValueError, KeyError, TypeError) as error:
            reply = {"refused": f"the question cannot be read: {error}"}
        with contextlib.suppress(ConnectionError):
            outgoing.write(json.dumps(reply).encode() + b"\n")
            await outgoing.drain()
        outgoing.close()

    def _reply(self, said: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if self._asker is None:
                self._asker = Asker(self._settings)
            found = self._asker.ask(str(said["query"]), said["parameters"], min(int(said["rows_max"]), ROWS_MAX))
        except QueryRefused as refused:
            return {"refused": str(refused)}
        return {"columns": found.columns, "rows": found.rows, "cut": found.cut}


def _ask_sink(settings: Settings, query: str, rows_max: int, parameters: Mapping[str, Any]) -> Answer:
    path = socket_path(settings)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(2 * QUERY_S_MAX)
        link.connect(str(path))
        if path.lstat().st_uid != os.getuid():
            raise WarehouseRefused(f"{path} belongs to somebody else")
        question = {"query": query, "parameters": parameters, "rows_max": rows_max}
        link.sendall(json.dumps(question).encode() + b"\n")
        with link.makefile("rb") as lines:
            reply = json.loads(lines.readline() or b'{"refused": "the sink ended before it answered; ask again"}')
    if "refused" in reply:
        raise QueryRefused(reply["refused"])
    return Answer(tuple(reply["columns"]), reply["rows"], reply["cut"])


# ---- what a person sees ---------------------------------------------------------------------------------------------


def run_sql(settings: Settings, query: str, form: str) -> None:
    """Print the answer as a table, JSON Lines or CSV."""
    if form not in ("table", "json", "csv"):
        raise QueryRefused("--format is one of table, json, csv")
    most = TABLE_ROWS_MAX if form == "table" else ROWS_MAX
    found = ask(settings, query, most)
    if form == "table":
        Screen().table(found.columns, ([cell_text(cell) for cell in row] for row in found.rows))
    elif form == "json":
        for row in found.rows:
            print(json.dumps(dict(zip(found.columns, row, strict=True))))
    else:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(_safe, found.columns))
        writer.writerows(map(_safe, row) for row in found.rows)
    if found.cut:
        print(f"xinfluencer: only the first {most} rows are shown", file=sys.stderr)


def cell_text(cell: Any) -> Any:
    """Give a cell as a table shows it: numbers as they are, anything else as one short clean line."""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return cell
    text = "-" if cell is None else cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    text = clean(text).replace("\n", " ")
    return text if len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 1] + "…"


def _safe(cell: Any) -> Any:
    """Give a cell that no terminal obeys and no spreadsheet runs."""
    if cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool)):
        return cell
    text = cell if isinstance(cell, str) else json.dumps(cell)
    return "'" + clean(text) if text.startswith(FORMULA) else clean(text)


def columns_of(answer: Answer) -> dict[str, list[Any]]:
    """Turn an answer into lists by column."""
    return {name: [row[i] for row in answer.rows] for i, name in enumerate(answer.columns)}


def named(answer: Answer) -> Iterator[dict[str, Any]]:
    """Give rows as dictionaries."""
    return (dict(zip(answer.columns, row, strict=True)) for row in answer.rows)
