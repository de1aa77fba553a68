"""The processes of one ``accelerate launch``: what the main one decides alone, the others learn from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


class Crew:
    """All processes of a launch; a crew of one needs no torch and costs nothing."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.is_main = int(os.environ.get("RANK", "0")) == 0
        if self.size > 1:
            import torch
            from accelerate import PartialState

            # The others wait while the main process prepares data, which may take hours.
            PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))

    def on_main(self, work: Callable[[], T]) -> T:
        """The result of ``work``, done by the main process; what it raises is raised on every process."""
        if self.size == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except (Exception, SystemExit) as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]
