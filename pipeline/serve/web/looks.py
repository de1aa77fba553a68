"""What the pages are made of: their texts, their templates and how a page is answered."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.chat.resources import data
from pipeline.serve.errors import ApiError

HERE = Path(__file__).parent
# Our own pages need neither inline scripts nor inline styles.
STRICT = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@cache
def words() -> dict[str, Any]:
    """The page's texts (shared: do not change what it returns)."""
    return yaml.safe_load((HERE / "texts.yaml").read_text("utf-8"))


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def html(name: str, /, **values: Any) -> str:
    """A template filled in; values are escaped."""
    return _templates().get_template(f"{name}.html.j2").render(t=words(), lines=data("help_lines"), **values)


def trouble(error: ApiError) -> HTMLResponse:
    """A page for whoever cannot be shown what they asked for."""
    return page("trouble", status=error.status, message=error.plain["detail"])


def page(name: str, /, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of our own."""
    headers = {"Content-Security-Policy": STRICT, "Cache-Control": "no-store"}
    return HTMLResponse(html(name, **{"error": None, "note": None, "need_consent": False, **values}), status, headers)
