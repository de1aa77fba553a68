"""What is remembered of each user: one log and one index a user, isolated by construction, durable and erasable."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from gonggam.errors import UserError
from gonggam.files import can_be_written, friendly_os_errors
from rag.mind import Memory
from rag.options import MemoryOptions

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from rag.rerank import Reranker
    from rag.seal import Seal


class MemoryStore:
    """All users' memories under one folder; at most ``settings.max_loaded_users`` of them in RAM.

    Args:
        root: the folder; made when first written to.
        embedder: any LangChain embedder.
        settings: the recipe's `memory:` section.
        reranker: orders candidates anew (see `rag.rerank.load_reranker`); None: the fused order stands.
        seal: seals words and vectors on the disk; None: they are written as they are.
    """

    def __init__(
        self,
        root: str | Path,
        embedder: Embeddings,
        settings: MemoryOptions | None = None,
        reranker: Reranker | None = None,
        seal: Seal | None = None,
    ) -> None:
        self.root, self.embedder, self.settings = Path(root), embedder, settings or MemoryOptions()
        self.reranker, self.seal = reranker, seal
        self._loaded: OrderedDict[str, Memory] = OrderedDict()
        self._lock, self._ready = RLock(), False

    def for_user(self, user: str) -> Memory:
        """The memory of ``user``; any text is a name, and no name reaches another user's files.

        Raises:
            UserError: the name is empty.
        """
        if not isinstance(user, str) or not user.strip():
            raise UserError("a memory needs the name of its user", "pass a user id that is not empty")
        name = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
        with self._lock:
            memory = self._loaded.pop(name, None)
            if memory is None:  # one without exchanges is falsy
                memory = Memory(self, name, user)
            self._loaded[name] = memory
            idle = [self._loaded.popitem(last=False)[1] for _ in range(len(self._loaded) - self._limit)]
        for old in idle:
            old.close()
        return memory

    def ready(self) -> None:
        """Make the folder of the lock files, once.

        Raises:
            UserError: it cannot be made.
        """
        if not self._ready:
            with friendly_os_errors(self.root):
                (self.root / "locks").mkdir(parents=True, exist_ok=True)
            self._ready = True

    def alive(self) -> bool:
        """Whether something could be remembered now: the folder may be written and its disk has room."""
        with suppress(UserError):
            self.ready()
            return can_be_written(self.root)
        return False

    @property
    def _limit(self) -> int:
        return self.settings.max_loaded_users

    @property
    def loaded(self) -> int:
        """How many users are in RAM."""
        return len(self._loaded)

    def expire(self) -> int:
        """Erase every user's exchanges that are older than ``settings.retention_days``; returns how many.

        A user's own old exchanges also go whenever that memory is used; this is for those who never come back.
        """
        folders = sorted(self.root.glob("users/*/*")) if self.settings.retention_days is not None else []
        return sum(Memory(self, folder.name, "").expire() for folder in folders)

    def forget(self, user: str) -> None:
        """Erase a user: every file, and what is held in RAM."""
        memory = self.for_user(user)
        memory.forget_all()
        with self._lock:
            self._loaded.pop(memory.name, None)

    def close(self) -> None:
        """Save every loaded user's index; not needed for durability, it spares embedding anew."""
        with self._lock:
            memories = list(self._loaded.values())
            self._loaded.clear()
        for memory in memories:
            memory.close()
