"""What was computed of each session's prompt and reply, so that its next turn only reads what is new."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.chat.block import States

Key = tuple[str, str | None]
"""A session and the adapter it is answered with."""


class Prefixes:
    """Keys and values of sessions, up to ``room`` bytes; those that were used longest ago go first."""

    def __init__(self, room: int) -> None:
        self.room, self._taken, self._lock = room, 0, threading.Lock()
        self._kept: OrderedDict[Key, tuple[list[int], States, int]] = OrderedDict()

    def keep(self, key: Key, ids: list[int], states: States) -> None:
        """Keep what was computed of these tokens in place of what was kept of the session before."""
        size = sum(part.numel() * part.element_size() for layer in states for part in layer)
        with self._lock:
            self._drop(key)
            self._kept[key] = ids, states, size
            self._taken += size
            while self._taken > self.room:
                self._drop(next(iter(self._kept)))

    def take(self, key: Key, prompt: Sequence[int]) -> States | None:
        """What is kept of the beginning of a prompt, all but its last token at most; None: nothing of it."""
        from pipeline.chat.block import beginning

        with self._lock:
            ids, states, _ = self._drop(key) or ([], [], 0)
        most = min(len(ids), len(prompt) - 1)
        shared = next((at for at in range(most) if ids[at] != prompt[at]), most)
        return beginning(states, shared) if shared else None

    def forget(self, session: str) -> None:
        """Drop what is kept of a session."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == session]:
                self._drop(key)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._kept.clear()
            self._taken = 0

    def _drop(self, key: Key) -> tuple[list[int], States, int] | None:
        found = self._kept.pop(key, None)
        self._taken -= found[2] if found else 0
        return found
