"""How many messages a minute: a sliding window for every user."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

WINDOW = 60.0


class Pace:
    """Counts messages of the last minute by user; those who were silent since are let go.

    Args:
        limit: messages a user may send within `WINDOW` seconds.
        clock: seconds that only go forward.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self._clock = limit, clock
        self._sent: OrderedDict[str, deque[float]] = OrderedDict()

    def spend(self, owner: str) -> int:
        """Count a message; returns 0, or the seconds to wait if it is one too many (then it is not counted)."""
        now = self._clock()
        while self._sent and next(iter(self._sent.values()))[-1] <= now - WINDOW:
            self._sent.popitem(last=False)
        sent = self._sent.get(owner, deque())
        while sent and sent[0] <= now - WINDOW:
            sent.popleft()
        if len(sent) >= self.limit:
            return math.ceil(sent[0] + WINDOW - now)
        sent.append(now)
        self._sent[owner] = sent
        self._sent.move_to_end(owner)
        return 0
