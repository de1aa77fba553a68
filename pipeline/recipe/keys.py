"""What is known about the libraries' keys: those they once had, those the pipeline sets, and bounds of values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class KeyHint(NamedTuple):
    """What to say about a key that a library once had, or that the pipeline sets itself."""

    owned: bool
    text: str


def key_hint(section: str, key: str) -> KeyHint | None:
    """What is known about a key that is not accepted in ``section`` (``lora`` for the keys of peft)."""
    groups = (section, "training") if section in ("classify", "style", "sft", "dpo") else (section,)
    for group in groups:
        if why := known_keys()["owned"].get(group, {}).get(key):
            return KeyHint(True, why)
        known = known_keys()["renamed"].get(group, {}).get(key)
        if known is not None:
            now, note = known.get("now"), known.get("note", "")
            return KeyHint(False, "; ".join(filter(None, [f"use {now}" if now else "it was removed", note])))
    return None


@cache
def known_keys() -> dict[str, Any]:
    """keys.yaml: `renamed` and `owned`, each by section."""
    return _read("keys.yaml")


@cache
def limits() -> dict[str, dict[str, dict[str, Any]]]:
    """limits.yaml: section (``lora`` for the keys of peft) to key to bounds, named as in pydantic's Field."""
    return _read("limits.yaml")


def _read(name: str) -> dict[str, Any]:
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(Path(__file__).with_name(name).read_text("utf-8"), fast)
