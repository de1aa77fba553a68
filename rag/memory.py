"""What is remembered of each user: one log and one index a user, isolated by construction, durable and erasable."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from gonggam.errors import UserError
from gonggam.files import friendly_os_errors
from rag.index import ExchangeIndex
from rag.log import Exchange, ExchangeLog, sync_folder
from rag.options import MemoryOptions

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from rag.rerank import Reranker

# A fixed set of lock files: none is named after a user, so none is left to erase.
LOCKS = 256
# The saved index may lag behind the log by this many exchanges, or by a tenth; they are embedded anew at loading.
LAG = 32


@dataclass(frozen=True)
class Recalled(Exchange):
    """An exchange that was recalled, with its relevance to the query from 0 to 1."""

    score: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().to_dict(), "score": round(self.score, 4)}


class MemoryStore:
    """All users' memories under one folder; at most ``settings.max_loaded_users`` of them in RAM.

    Args:
        root: the folder; made when first written to.
        embedder: any LangChain embedder.
        settings: the recipe's `memory:` section.
        reranker: orders candidates anew (see `rag.rerank.load_reranker`); None: the fused order stands.
    """

    def __init__(
        self,
        root: str | Path,
        embedder: Embeddings,
        settings: MemoryOptions | None = None,
        reranker: Reranker | None = None,
    ) -> None:
        self.root, self.embedder, self.settings = Path(root), embedder, settings or MemoryOptions()
        self.reranker = reranker
        self._loaded: OrderedDict[str, Memory] = OrderedDict()
        self._lock = RLock()

    def for_user(self, user: str) -> Memory:
        """The memory of ``user``; any text is a name, and no name reaches another user's files.

        Raises:
            UserError: the name is empty.
        """
        if not isinstance(user, str) or not user.strip():
            raise UserError("a memory needs the name of its user", "pass a user id that is not empty")
        name = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
        with self._lock:
            memory = self._loaded.pop(name, None) or Memory(self, name, user)
            self._loaded[name] = memory
            idle = [self._loaded.popitem(last=False)[1] for _ in range(len(self._loaded) - self._limit)]
        for old in idle:
            old.close()
        return memory

    def ready(self) -> None:
        """Make the folder of the lock files.

        Raises:
            UserError: it cannot be made.
        """
        try:
            with friendly_os_errors(self.root):
                (self.root / "locks").mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError("memories need a folder, and this is a file", "name another", file=self.root) from error

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
        folders = sorted(self.root.glob("users/*/*")) if self.settings.retention_days else []
        return sum(Memory(self, folder.name, "").expire() for folder in folders)

    def close(self) -> None:
        """Save every loaded user's index; not needed for durability, it spares embedding anew."""
        with self._lock:
            memories = list(self._loaded.values())
            self._loaded.clear()
        for memory in memories:
            memory.close()


class Memory:
    """One user's exchanges. Safe to use from several threads and processes at once.

    Get it from `MemoryStore.for_user`.
    """

    def __init__(self, store: MemoryStore, name: str, user: str) -> None:
        self.user = user
        self._store, self._settings = store, store.settings
        self._folder = store.root / "users" / name[:2] / name
        self._log = ExchangeLog(self._folder / "exchanges.jsonl")
        self._lock = FileLock(store.root / "locks" / f"{int(name[:8], 16) % LOCKS:03d}.lock")
        self._mutex = RLock()
        self._index = self._fresh()
        self._unsaved = self._expired = 0

    def __len__(self) -> int:
        with self._open() as index:
            return len(index.exchanges)

    @property
    def damaged(self) -> int:
        """How many lines of the log could not be read."""
        return self._log.damaged

    def add(self, user_text: str, reply_text: str, *, session: str = "", when: datetime | None = None) -> str:
        """Remember one exchange; when this returns its id, the exchange is on the disk.

        Args:
            when: its time, now if None; without a zone it is taken as UTC.

        Raises:
            UserError: the disk is full or the folder may not be written; then nothing was added.
        """
        return self.add_many([(user_text, reply_text)], session=session, when=when)[0]

    def add_many(
        self, exchanges: Sequence[tuple[str, str]], *, session: str = "", when: datetime | None = None
    ) -> list[str]:
        """Remember several exchanges of one session with one flush to disk; returns their ids."""
        moment = _aware(when)
        new = [Exchange(secrets.token_hex(8), session, moment, _text(u), _text(r)) for u, r in exchanges]
        with self._open() as index:
            vectors = index.embed(new)  # first: a model that fails must leave nothing half remembered
            first = not self._folder.exists()
            with friendly_os_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            self._log.append(new)
            for parent in self._folder.parents[:3] if first else ():  # ab, users, root: new names in them
                sync_folder(parent)
            index.add(new, vectors)
            self._unsaved += len(new)
            if self._unsaved >= max(LAG, len(index.exchanges) // 10):
                self._save(index)
        return [exchange.id for exchange in new]

    def recent(self, n: int | None = None, session: str | None = None) -> list[Exchange]:
        """The newest ``n`` exchanges (of one session, if named), oldest first; ``n`` is the recipe's if None."""
        n = self._settings.recent_turns if n is None else n
        with self._open() as index:
            found = [e for e in index.exchanges if session is None or e.session == session]
        return found[-n:] if n > 0 else []

    def recall(
        self,
        query: str,
        k: int | None = None,
        *,
        exclude: Collection[str] = (),
        now: datetime | None = None,
        threshold: float | None = None,
    ) -> list[Recalled]:
        """The exchanges that ``query`` calls to mind, best first.

        Args:
            k: how many at most; the recipe's ``recall`` if None.
            exclude: ids that are left out, such as those already in the prompt verbatim.
            now: the time from which ages count.
            threshold: relevance the best must reach; the recipe's if None (see `rag.calibrate.unrelated_level`).
        """
        k = self._settings.recall if k is None else k
        threshold = self._settings.threshold or 0.0 if threshold is None else threshold
        with self._open() as index:
            found = index.search(_text(query), k, now=_aware(now), exclude=exclude, threshold=threshold)
        return [Recalled(e.id, e.session, e.when, e.user, e.reply, score) for e, score in found]

    def forget(self, exchange_id: str) -> bool:
        """Erase one exchange, its words and its vector, from RAM and disk; False if there is none of this id."""
        with self._open() as index:
            kept = [exchange for exchange in index.exchanges if exchange.id != exchange_id]
            if len(kept) == len(index.exchanges):
                return False
            self._keep(kept)
            return True

    def forget_all(self) -> None:
        """Erase this user: every file is removed."""
        with self._open():
            if self._folder.exists():
                shutil.rmtree(self._folder)
                sync_folder(self._folder.parent)
            self._index, self._unsaved = self._fresh(), 0
            self._log.news()

    def export(self) -> dict[str, Any]:
        """Everything that is stored of this user, as plain JSON values."""
        with self._open() as index:
            exchanges = [exchange.to_dict() for exchange in index.exchanges]
        return {"format": 1, "user": self.user, "exchanges": exchanges}

    def expire(self) -> int:
        """Erase what is older than the recipe's retention, if it has one; returns how many this call erased."""
        before = self._expired
        with self._open():
            return self._expired - before

    def close(self) -> None:
        """Save the index, so that the next loading embeds nothing anew."""
        if self._unsaved:
            with self._open() as index:
                self._save(index)

    @contextmanager
    def _open(self) -> Iterator[ExchangeIndex]:
        """The index in step with the log, under the user's lock."""
        self._store.ready()
        with self._mutex, self._lock:
            afresh, new = self._log.news()
            if afresh:
                self._load(new)
            elif new:
                self._index.add(new)
            self._expire()
            yield self._index

    def _load(self, exchanges: list[Exchange]) -> None:
        self._sweep()
        self._index = self._fresh()
        saved = self._folder / "index"
        if not self._index.load(saved, exchanges) and saved.exists():
            shutil.rmtree(saved)
        rest = exchanges[len(self._index.exchanges) :]
        self._index.add(rest)
        self._unsaved = len(rest)

    def _keep(self, kept: list[Exchange]) -> None:
        """Make ``kept`` all that is remembered: the saved vectors go first, so that nothing outlives its text."""
        self._sweep()
        if (self._folder / "index").exists():
            shutil.rmtree(self._folder / "index")
        self._log.rewrite(kept)
        self._index.keep({exchange.id for exchange in kept})
        self._save(self._index)

    def _expire(self) -> None:
        if self._settings.retention_days is None or not self._index.exchanges:
            return
        oldest = datetime.now(UTC) - timedelta(days=self._settings.retention_days)
        kept = [exchange for exchange in self._index.exchanges if exchange.when >= oldest]
        if len(kept) < len(self._index.exchanges):
            self._expired += len(self._index.exchanges) - len(kept)
            self._keep(kept)

    def _save(self, index: ExchangeIndex) -> None:
        if self._folder.exists():
            index.save(self._folder / "index")
        self._unsaved = 0

    def _sweep(self) -> None:
        """Remove what writers that were killed left behind; it may hold text."""
        for leftover in self._folder.glob(".*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    def _fresh(self) -> ExchangeIndex:
        return ExchangeIndex(self._store.embedder, self._settings, self._store.reranker)


def _aware(when: datetime | None) -> datetime:
    when = when or datetime.now(UTC)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _text(text: str) -> str:
    """``text`` without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
