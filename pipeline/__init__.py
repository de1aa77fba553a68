"""gonggam: from Korean empathetic dialogues to a counselling model and a service around it.

`from pipeline import Counselor` is the way in for developers; nothing heavy is imported before a counsellor is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.chat.counselor import Counselor, Reply

__all__ = ["Counselor", "Reply"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use (PEP 562)."""
    if name in __all__:
        from pipeline.chat import counselor

        return getattr(counselor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
