"""A server that speaks Confluent's Schema Registry protocol, on loopback, and can be told to fail.

Codes and shapes of answers follow Confluent's API reference; the tests hold it to a real registry on the same calls.
Whether a shape is compatible is decided by schemas/compat.py. `fault` says what a call meets in place of an answer.
"""

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from schemas.compat import breaks

LEVELS = ("BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE", "NONE")
Fault = tuple[int, bytes, dict[str, str]] | None
CUT: Fault = (0, b"", {})
"""The connection is closed in place of an answer."""


class RegistryServer:
    """One registry in memory. `calls` is what was asked, `sent` with which headers, `writes` what changed something."""

    def __init__(self, certificate: Path | None = None, own_level: str = "BACKWARD") -> None:
        self.shapes: dict[str, list[str]] = {}
        self.ids: list[str] = []
        self.levels: dict[str, str] = {}
        self.own_level = own_level
        self.calls: list[tuple[str, str]] = []
        self.sent: list[dict[str, str]] = []
        self.writes = 0
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "RegistryServer":
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, asked: Any) -> tuple[int, Any]:
        """Give status and body of one call, as Confluent does."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if method == "GET" and parts == ["config"]:
            return 200, {"compatibilityLevel": self.own_level}
        if method == "GET" and parts == ["subjects"]:
            return 200, list(self.shapes)
        if parts[0] == "config":
            return self._config(method, parts[1], asked)
        if parts[:2] == ["compatibility", "subjects"] and method == "POST":
            name = parts[2]
            return self._judged(name, asked, lambda broken: (200, {"is_compatible": not broken, "messages": broken}))
        if method == "POST" and len(parts) == 2:
            return self._look_up(parts[1], asked)
        if method == "POST" and parts[2:] == ["versions"]:
            return self._register(parts[1], asked)
        if method == "GET" and parts[2:3] == ["versions"] and len(parts) == 4:
            known = self.shapes.get(parts[1], [])
            return 200, self._found(parts[1], len(known) if parts[3] == "latest" else int(parts[3]))
        if method == "GET" and parts[2:] == ["versions"]:
            return 200, list(range(1, len(self.shapes.get(parts[1], [])) + 1))
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _config(self, method: str, name: str, asked: Any) -> tuple[int, Any]:
        if method == "PUT":
            if asked["compatibility"] not in LEVELS:
                return 422, {"error_code": 42203, "message": f"Invalid compatibility level: {asked['compatibility']}"}
            self.levels[name] = asked["compatibility"]
            self.writes += 1
            return 200, asked
        if name not in self.levels:
            message = f"Subject '{name}' does not have subject-level compatibility configured"
            return 404, {"error_code": 40408, "message": message}
        return 200, {"compatibilityLevel": self.levels[name]}

    def _look_up(self, name: str, asked: Any) -> tuple[int, Any]:
        if name not in self.shapes:
            return 404, {"error_code": 40401, "message": f"Subject '{name}' not found."}
        if asked["schema"] not in self.shapes[name]:
            return 404, {"error_code": 40403, "message": "Schema not found"}
        return 200, self._found(name, self.shapes[name].index(asked["schema"]) + 1)

    def _register(self, name: str, asked: Any) -> tuple[int, Any]:
        if asked["schema"] in self.shapes.get(name, ()):
            return 200, {"id": self.ids.index(asked["schema"]) + 1}

        def judged(broken: list[str]) -> tuple[int, Any]:
            if broken:
                said = f'Schema being registered is incompatible with an earlier schema for subject "{name}", details: '
                return 409, {"error_code": 409, "message": f"{said}{broken}"}
            if asked["schema"] not in self.ids:
                self.ids.append(asked["schema"])
            self.shapes.setdefault(name, []).append(asked["schema"])
            self.writes += 1
            return 200, {"id": self.ids.index(asked["schema"]) + 1}

        return self._judged(name, asked, judged)

    def _judged(self, name: str, asked: Any, then: Callable[[list[str]], tuple[int, Any]]) -> tuple[int, Any]:
        try:
            new = _modern(asked["schema"])
        except ValueError:
            return 422, {"error_code": 42201, "message": "Either the input schema or one of its references is invalid"}
        level, known = self.levels.get(name, self.own_level), self.shapes.get(name, [])
        against = known if level.endswith("TRANSITIVE") else known[-1:] if level != "NONE" else []
        return then([fault for old in against for fault in breaks(_modern(old), new)])

    def _found(self, name: str, version: int) -> dict[str, Any]:
        schema = self.shapes[name][version - 1]
        found = {"subject": name, "version": version, "id": self.ids.index(schema) + 1}
        return {**found, "schemaType": "JSON", "schema": schema}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # an answer is two writes: 40 ms each otherwise

            def _any(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                path = urlsplit(self.path).path
                server.calls.append((self.command, path))
                server.sent.append({name.lower(): value for name, value in self.headers.items()})
                fault = server.fault(self.command, path)
                if fault == CUT:
                    self.close_connection = True
                    return
                if fault is None:
                    code, answer = server.answer(self.command, path, json.loads(data) if data else None)
                    fault = (code, json.dumps(answer).encode(), {"content-type": "application/json"})
                code, body, headers = fault
                self.send_response(code)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = _any  # noqa: N815 - the names that http.server calls

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        return Handler


def _modern(text: str) -> dict[str, Any]:
    """Read a draft-07 shape as compat.py knows shapes; ValueError where it is none."""
    found = json.loads(text.replace("#/definitions/", "#/$defs/"))
    if not isinstance(found, dict):
        raise ValueError("a shape is an object")
    return {key.replace("definitions", "$defs"): value for key, value in found.items() if key != "title"}
