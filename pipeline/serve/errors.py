"""Errors as the API tells them: in OpenAI's form under /v1, as FastAPI's ``detail`` elsewhere; never with a text."""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, OperationalError
from starlette.exceptions import HTTPException

from gonggam.errors import UserError
from pipeline.chat.backends import BackendError
from pipeline.cipher import WrongKey
from pipeline.serve.texts import texts

logger = logging.getLogger("gonggam.serve")

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

CODES = {400: "bad_body", 404: "not_found", 405: "bad_method"}
"""What the framework refuses by itself."""

KINDS_TRIED = re.compile(r"(constrained-)?(str|list\[.*)")
"""What pydantic puts into the place of a problem where a value may be a text or a list."""

APIS = ("/v1/", "/api/", "/health/", "/metrics")
"""Where programs ask."""


class ApiError(Exception):
    """A refusal with everything OpenAI's clients look at.

    Args:
        status: HTTP status.
        message: one English sentence, without anything a user wrote.
        param: the parameter it is about.
        code: a word for programs.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """``{"error": {message, type, param, code}}``."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def plain(self) -> dict[str, Any]:
        """``{"detail", "code"}``; the detail is for people, in Korean where texts.yaml has words for the code."""
        known = texts()["refused"].get(self.code, {})
        return {"detail": known.get("message", self.message), "code": self.code}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After and WWW-Authenticate where they belong."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers


def as_api_error(error: Exception) -> ApiError:
    """Whatever went wrong, as a refusal; what nobody foresaw is logged without its message, which may quote a user."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), code=CODES.get(error.status_code))
        case BackendError():
            return ApiError(503, str(error), code="model_unavailable", retry_after=5)
        case UserError() if not _unkept(error):
            return ApiError(400, str(error))
    log_fault(error)
    if _unkept(error):
        return ApiError(503, "Nothing can be kept now.", code="storage_unavailable", retry_after=60)
    if isinstance(error, OperationalError):  # the server is gone, the disk is full, others write all the time
        return ApiError(503, "The database cannot be used now.", code="database_unavailable", retry_after=5)
    return ApiError(500, "The service made a mistake; it was noted.", code="internal_error")


def _unkept(error: Exception) -> bool:
    """Whether the disk is full or may not be written, or somebody changed the key under the running service."""
    cause = error.__cause__ or error
    refused = isinstance(cause, OSError) and not isinstance(cause, ConnectionError | TimeoutError)
    return refused or isinstance(error, WrongKey)


def log_fault(error: BaseException) -> None:
    """Kind and place of a fault and the system's name for it, without its message and without local values."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error("fault: %s%s at %s", type(error).__name__, _named(error), where)


def _named(error: BaseException) -> str:
    """What the operating system or the database calls it: a name or a number, never a message."""
    cause = error.orig if isinstance(error, DBAPIError) else error.__cause__ or error
    if isinstance(cause, OSError):
        return f" ({os.strerror(cause.errno)})" if cause.errno else ""
    name = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)  # SQLite's; PostgreSQL's
    if isinstance(error, DBAPIError) and cause and cause.args and isinstance(cause.args[0], int):
        name = cause.args[0]  # MySQL's
    return f" ({name})" if name else ""


def refusal(path: str, error: ApiError) -> JSONResponse:
    """What a program is told, in the form of the API it asked."""
    return JSONResponse(error.body if path.startswith("/v1/") else error.plain, error.status, error.headers)


def add_handlers(app: FastAPI, show: Callable[[ApiError], Response] | None = None) -> None:
    """Let every error leave in its form.

    Args:
        app: the application.
        show: makes the page that a person is shown who asked for one; None: there are no pages.
    """

    def told(request: Request, error: Exception) -> Response:
        found = as_api_error(error)
        if show and _wants_page(request):
            return show(found)
        answer = refusal(request.url.path, found)
        answer.headers.update(getattr(error, "headers", None) or {})
        return answer

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # Starlette's type knows no narrower handlers
        problems = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
        if show and _wants_page(request):
            return show(ApiError(422, "The form cannot be read.", code="bad_form"))
        if not request.url.path.startswith("/v1/"):
            return JSONResponse({"detail": problems}, 422)
        return told(request, _first(problems))

    for kind in (ApiError, HTTPException, UserError):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(RequestValidationError, invalid)


def _wants_page(request: Request) -> bool:
    return not request.url.path.startswith(APIS) and "text/html" in request.headers.get("accept", "")


def _place(problem: dict[str, Any]) -> list[str]:
    """Where a problem lies in the body, without the names of the kinds that pydantic tried there."""
    parts = [str(part) for part in problem["loc"] if part != "body"]
    return [part for place, part in enumerate(parts) if not (place and KINDS_TRIED.fullmatch(part))]


def _first(problems: list[dict[str, Any]]) -> ApiError:
    """The first problem, worded as OpenAI words it.

    Where a value may be of several kinds, pydantic tells what each kind finds wrong with it: what is told is the
    finding that lies deepest, and rather one about a value than one about its kind.
    """
    first = _place(problems[0])
    same = [problem for problem in problems if _place(problem)[: len(first)] == first]
    problem = max(same, key=lambda problem: (len(_place(problem)), not problem["type"].endswith("_type")))
    where = _place(problem)
    param = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in where).lstrip(".") or None
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if problem["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if problem["type"] == "json_invalid":
        return ApiError(400, "The body of the request is not valid JSON.", code="invalid_json")
    return ApiError(400, f"Invalid value for '{param}': {problem['msg']}.", param=param, code="invalid_value")
