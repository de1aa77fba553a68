"""The counsellor's data files: texts, rules and personas, read once a process."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent / "data"


@cache
def data(name: str) -> dict[str, Any]:
    """A YAML file under ``pipeline/chat/data`` (shared: do not change what it returns)."""
    return yaml.safe_load((DATA / f"{name}.yaml").read_text("utf-8"))


@cache
def patterns(name: str, key: str) -> re.Pattern[str]:
    """A list of regular expressions in a data file as one."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in data(name)[key]))


def squeeze(text: str) -> str:
    """The text without spaces, punctuation and signs, in lower case: what rules are matched against."""
    return re.sub(r"[^0-9a-z가-힣ㄱ-ㅎㅏ-ㅣ]", "", text.lower())
