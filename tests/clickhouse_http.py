"""ClickHouse over HTTP, as far as our client speaks it, with chDB behind it; a process of its own.

Run as `python clickhouse_http.py FOLDER`; prints its port. It is no ClickHouse server: it shows that what we send over
HTTP (settings in the address, queries and inserted blocks in the body, a password in the headers) does what we mean.
"""

import base64
import re
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb

USER, PASSWORD = "sink", "secret"
OURS = {"database", "query", "session_id", "compress", "query_id", "client_protocol_version", "wait_end_of_query"}
TRANSPORT = OURS | {"enable_http_compression", "send_progress_in_http_headers", "http_headers_progress_interval_ms"}


class Handler(BaseHTTPRequestHandler):
    """One request: its settings are set for it alone."""

    engine: Any
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        given = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while (size := int(self.rfile.readline(), 16)) > 0:
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode():
            return self._say(403, b"Code: 516. DB::Exception: Authentication failed. (AUTHENTICATION_FAILED)\n")
        connection = chdb.connect(self.engine)
        try:
            return self._say(200, self._answer(connection, given, body), form="Native")
        except Exception as error:  # noqa: BLE001 - whatever the engine says goes to the client
            return self._say(500, str(error).encode())
        finally:
            connection.close()

    do_GET = do_POST  # noqa: N815

    def _answer(self, connection: Any, given: dict[str, str], body: bytes) -> bytes:
        if given.get("database"):
            connection.query(f"USE `{given['database']}`")
        params = {name[6:]: value for name, value in given.items() if name.startswith("param_")}
        settings = {n: v for n, v in given.items() if n not in TRANSPORT and not n.startswith("param_")}
        # As the server does, all of them are held against what was in force before the request: readonly last.
        for name, value in sorted(settings.items(), key=lambda one: one[0] == "readonly"):
            connection.query(f"SET {name} = '{value}'")
        sql = given.get("query", "")
        if re.match(r"(?is)\s*insert\b", sql or body[:200].decode(errors="replace")):
            if not sql:
                head, _, body = body.partition(b"\n")
                sql = head.decode()
            insert, _, form = sql.strip().rpartition("FORMAT ")
            with tempfile.NamedTemporaryFile(suffix=f".{form}") as file:
                file.write(body)
                file.flush()
                connection.query(f"{insert} FROM INFILE '{file.name}' FORMAT {form}")
            return b""
        sql = sql + body.decode()
        form = "Native" if re.search(r"(?i)format\s+native\s*$", sql) else "TabSeparated"
        return bytes(connection.query(sql, form, params=params).bytes() or b"")

    def _say(self, code: int, data: bytes, form: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        if form:
            self.send_header("X-ClickHouse-Format", form)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        print(*args, file=sys.stderr)


if __name__ == "__main__":
    Handler.engine = sys.argv[1]
    keep = chdb.connect(sys.argv[1])  # the engine ends with its last connection
    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
