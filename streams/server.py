"""Server: questions over HTTP -> answers by exactly one released version, each in the log before it ends.

The wire is OpenAI's (`/v1/chat/completions`, streamed or whole, `/v1/models`) and a little more: every answer names
its version, its release and the subjects to judge it by, and `/v1/feedback` takes the judgement. A stream that breaks
off leaves no record and no subject: what was not finished cannot be judged.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from streams import chat, judging, places
from streams.answering import Answering, event_name
from streams.chat import Ask, ChatRequest
from streams.exits import EXIT_REFUSED, leave
from streams.gate import Gate
from streams.judging import FeedbackRequest
from streams.kafka import KafkaSettings
from streams.problems import Problem, bad_input
from streams.settings import Settings
from streams.shelf import Known
from streams.speaking import REQUESTS_WAITING_MAX, Spoken
from streams.timed import TimedJob

log = logging.getLogger("xinfluencer.server")

Text = Annotated[str | None, Header()]

STOP_S_MAX = 4  # for requests to end by themselves; then they are cut, and the rest takes under a second


async def _whole(here: Answering, request: Request, ask: Ask, model: str, asked: bytes | None) -> Response:
    known, job = await here.begin(ask, model, asked)
    result = asyncio.create_task(job.result())
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            return Response(status_code=499)
        spoken = _finished(result.result())
        await here.record(ask, known, spoken.texts, asked)
    finally:
        job.stopped.set()
        result.cancel()
        gone.cancel()
    body = chat.completion(event_name(ask, known), int(time.time()), known.version, spoken.texts, spoken.reasons)
    body["usage"] = chat.usage(spoken.prompt_tokens, spoken.completion_tokens)
    body["xinfluencer"] = chat.ours(ask, known.release, known.version)
    return JSONResponse(body, headers={"x-xinfluencer-version": known.version})


def _asked(traceparent: str | None) -> bytes | None:
    return traceparent.encode(errors="replace") if traceparent is not None else None


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _finished(spoken: Spoken) -> Spoken:
    if "cancelled" in spoken.reasons:
        raise Problem(503, "stopping", "The server is stopping; ask again.", None, 5)
    return spoken


async def _streamed(here: Answering, ask: Ask, model: str, with_usage: bool, asked: bytes | None) -> Response:
    known, job = await here.begin(ask, model, asked, streamed=True)
    try:
        first = await job.said.get()  # what cannot be read is said with a status, not inside a stream
    except asyncio.CancelledError:
        job.stopped.set()
        raise
    if isinstance(first, Exception):
        raise first
    events = _events(here, ask, known, job, first, with_usage)
    headers = {"x-xinfluencer-version": known.version, "cache-control": "no-store"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(
    here: Answering, ask: Ask, known: Known, job: TimedJob, item: Any, with_usage: bool
) -> AsyncIterator[bytes]:
    name, created_s, version = event_name(ask, known), int(time.time()), known.version
    try:
        opening = [(index, {"role": "assistant", "content": ""}, None) for index in range(ask.n)]
        yield chat.sse(chat.chunk(name, created_s, version, opening))
        while isinstance(item, tuple):
            yield chat.sse(chat.chunk(name, created_s, version, [(item[0], {"content": item[1]}, None)]))
            item = await job.said.get()
        if isinstance(item, Exception):
            raise item
        spoken = _finished(item)
        await here.record(ask, known, spoken.texts, job.telling.asked)
        last = chat.chunk(name, created_s, version, [(i, {}, reason) for i, reason in enumerate(spoken.reasons)])
        yield chat.sse({**last, "xinfluencer": chat.ours(ask, known.release, version)})
        if with_usage:
            counted = chat.usage(spoken.prompt_tokens, spoken.completion_tokens)
            yield chat.sse({**chat.chunk(name, created_s, version, []), "usage": counted})
        yield chat.sse("[DONE]")
    except Problem as problem:
        yield chat.sse(problem.body())
    finally:
        job.stopped.set()


def make_app(settings: Settings, kafka: KafkaSettings, waiting_max: int = REQUESTS_WAITING_MAX) -> FastAPI:
    """Build the application; its parts start with its lifespan."""
    here = Answering(settings, kafka, waiting_max)
    app = FastAPI(title="Xinfluencer", lifespan=here.running, docs_url=None, redoc_url=None)
    app.state.answering = here
    app.add_middleware(Gate, metrics=here.metrics, host=settings.host, names=settings.names)

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return bad_input(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "bad_json")
        return Problem(error.status_code, code, f"{error.detail}.").response()

    @app.post("/v1/chat/completions")
    async def completions(
        body: ChatRequest, request: Request, idempotency_key: Text = None, traceparent: Text = None
    ) -> Response:
        ask, asked = chat.read(body, idempotency_key), _asked(traceparent)
        if body.stream:
            options = body.stream_options
            return await _streamed(here, ask, body.model, bool(options and options.include_usage), asked)
        return await _whole(here, request, ask, body.model, asked)

    @app.post("/v1/feedback")
    async def feedback(body: FeedbackRequest, idempotency_key: Text = None, traceparent: Text = None) -> dict[str, Any]:
        said = judging.read(body, here.rights, idempotency_key)
        for one in said:
            await here.recorder.record(one.event, one.event_id, _asked(traceparent))
        return said[-1].event.model_dump(exclude_none=True)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": here.following.models()}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        version = here.following.find(name).version
        return next(one for one in here.following.models() if one["id"] == version)

    @app.get("/healthz")
    async def alive() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz")
    async def ready() -> Response:
        reasons = await here.unready()
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(here.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def listen(host: str, port: int) -> socket.socket:
    """Take the address, or raise OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then end within 5 s. An address that cannot be had ends it with code 1.

    A cluster that does not let us do our work ends it with EXIT_REFUSED.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    for noisy in ("aiokafka", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or str(error)
        sys.exit(f"xinfluencer: cannot listen on {settings.host}:{settings.port} ({reason}); set XINFLUENCER_PORT.")
    app = make_app(settings, settings.kafka())
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", timeout_graceful_shutdown=STOP_S_MAX
    )
    server = uvicorn.Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # uvicorn raises it once more at its end; then this is what it meets
    told = announce(listener, places.run(settings))
    asyncio.run(_serve(server, listener, told, app.state.answering.refused))


def announce(listener: socket.socket, run: Path) -> Path:
    """Write who listens where to run/server.json: with port 0 only this says it."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    run.mkdir(parents=True, exist_ok=True)
    told, temporary = run / "server.json", run / f"server.{os.getpid()}.tmp"
    temporary.write_text(json.dumps({"pid": os.getpid(), "url": url}))
    temporary.replace(told)
    log.info("listening on %s", url)
    return told


async def _serve(server: uvicorn.Server, listener: socket.socket, told: Path, refused: asyncio.Event) -> None:
    async def end_when_refused() -> None:
        await refused.wait()
        server.should_exit = True

    ending = asyncio.create_task(end_when_refused())
    try:
        await server.serve(sockets=[listener])
    finally:
        ending.cancel()
        _withdraw(told)
    # A thread inside torch cannot be interrupted and would hold the process; what was promised is in the log.
    leave(EXIT_REFUSED if refused.is_set() else 0 if server.started else 1)


def _withdraw(told: Path) -> None:
    """Take the announcement back, unless another server has made its own meanwhile."""
    with suppress(OSError, ValueError):
        if json.loads(told.read_text())["pid"] == os.getpid():
            told.unlink()
