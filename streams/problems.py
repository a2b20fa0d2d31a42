"""Problems: what went wrong -> OpenAI's error shape, as one sentence that never repeats what the client wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse


class Problem(Exception):
    """A request that cannot be answered. `code` is for programs, the message for people."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Give the object that OpenAI's clients read."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Give the HTTP answer."""
        headers = {"retry-after": str(self.retry_after_s)} if self.retry_after_s is not None else None
        return JSONResponse(self.body(), self.status, headers)


def bad_input(faults: Sequence[Mapping[str, Any]]) -> Problem:
    """Name the first field that does not fit; pydantic's messages hold the rule and not the input."""
    first = faults[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] in ("json_invalid", "model_attributes_type", "missing") and not place:
        return Problem(400, "bad_json", "The body must be a JSON object, sent with content-type application/json.")
    name = ".".join(part for part in place if not part.startswith(("function-", "list[")) and part != "str")
    return Problem(400, "bad_input", f"{name}: {first['msg']}.", param=name)
