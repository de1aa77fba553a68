"""Data preparation: from raw Korean dialogue files to clean, leak-free conversations and preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.conversation import Conversation, Turn

if TYPE_CHECKING:
    from data_prep.options import PrepareOptions

__all__ = ["Conversation", "PrepareOptions", "Turn", "prepare", "samples"]


def samples() -> Path:
    """The folder of the packaged sample corpora (CC0, written for this project)."""
    return Path(__file__).parent / "samples"


def __getattr__(name: str) -> Any:
    """Load the heavier parts (pydantic) only when they are asked for."""
    if name == "PrepareOptions":
        from data_prep.options import PrepareOptions

        return PrepareOptions
    if name == "prepare":
        from data_prep.build import prepare

        return prepare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
