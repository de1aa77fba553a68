"""The service's sentences for people (texts.yaml), read once a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def texts() -> dict[str, Any]:
    """All of them (shared: do not change what it returns)."""
    return yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text("utf-8"))
