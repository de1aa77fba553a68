"""One user's memory: a log on disk and an index over it, under one lock; durable, erasable, seen by all processes."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from gonggam.files import friendly_os_errors
from rag.index import ExchangeIndex
from rag.log import Exchange, ExchangeLog, sync_folder

if TYPE_CHECKING:
    from rag.memory import MemoryStore

# A fixed set of lock files: none is named after a user, so none is left to erase.
LOCKS = 256
# The saved index may lag behind the log by this many exchanges (up to twice as many, another number for each user, so
# that users who talk in step are not all saved at one moment), or by a tenth; they are embedded anew at loading.
LAG = 32


@dataclass(frozen=True)
class Recalled(Exchange):
    """An exchange that was recalled, with its relevance to the query from 0 to 1."""

    score: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().to_dict(), "score": round(self.score, 4)}


class Memory:
    """One user's exchanges. Safe to use from several threads and processes at once.

    Get it from `MemoryStore.for_user`.
    """

    def __init__(self, store: MemoryStore, name: str, user: str) -> None:
        self.name, self.user = name, user
        self._store, self._settings = store, store.settings
        self._folder = store.root / "users" / name[:2] / name
        self._log = ExchangeLog(self._folder / "exchanges.jsonl", store.seal)
        self._lock = lock(store.root, name)
        self._mutex = RLock()
        self._index = self._fresh()
        self._unsaved = self._expired = 0
        self._lag = LAG + int(name[:8], 16) % LAG

    def __len__(self) -> int:
        with self._open() as index:
            return sum(not exchange.mark for exchange in index.exchanges)

    @property
    def damaged(self) -> int:
        """How many lines of the log could not be read."""
        return self._log.damaged

    def add(
        self,
        user_text: str,
        reply_text: str,
        *,
        session: str = "",
        when: datetime | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> str:
        """Remember one exchange; when this returns its id, the exchange is on the disk.

        Args:
            when: its time, now if None; without a zone it is taken as UTC.
            meta: what else is known of it (an emotion, a risk), as plain JSON values.

        Raises:
            UserError: the disk is full or the folder may not be written; then nothing was added.
        """
        words = _text(user_text), _text(reply_text)
        return self._add([Exchange(secrets.token_hex(8), session, _aware(when), *words, dict(meta or {}))])[0]

    def mark(self, meta: Mapping[str, Any], *, session: str = "") -> str:
        """Note something of a session without any words of it; marks are never recalled. Returns its id."""
        return self._add([Exchange(secrets.token_hex(8), session, _aware(None), "", "", dict(meta), mark=True)])[0]

    def add_many(
        self, exchanges: Sequence[tuple[str, str]], *, session: str = "", when: datetime | None = None
    ) -> list[str]:
        """Remember several exchanges of one session with one flush to disk; returns their ids."""
        moment = _aware(when)
        return self._add([Exchange(secrets.token_hex(8), session, moment, _text(u), _text(r)) for u, r in exchanges])

    def recent(self, n: int | None = None, session: str | None = None) -> list[Exchange]:
        """The newest ``n`` exchanges (of one session, if named), oldest first; ``n`` is the recipe's if None."""
        n = self._settings.recent_turns if n is None else n
        return [e for e in self.entries(session) if not e.mark][-n:] if n > 0 else []

    def entries(self, session: str | None = None) -> list[Exchange]:
        """All exchanges and marks (of one session, if named), oldest first."""
        with self._open() as index:
            return [e for e in index.exchanges if session is None or e.session == session]

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
        return [Recalled(e.id, e.session, e.when, e.user, e.reply, e.meta, score=score) for e, score in found]

    def forget(self, exchange_id: str) -> bool:
        """Erase one exchange, its words and its vector, from RAM and disk; False if there is none of this id.

        With a session's last exchange its marks go as well.
        """
        with self._open() as index:
            kept = [exchange for exchange in index.exchanges if exchange.id != exchange_id]
            if len(kept) == len(index.exchanges):
                return False
            told = {exchange.session for exchange in kept if not exchange.mark}
            gone = {exchange.session for exchange in index.exchanges if not exchange.mark} - told
            self._keep([exchange for exchange in kept if exchange.session not in gone])
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
            exchanges = [exchange.to_dict() for exchange in index.exchanges if not exchange.mark]
            marks = [exchange.to_dict() for exchange in index.exchanges if exchange.mark]
        return {"format": 1, "user": self.user, "exchanges": exchanges, **({"marks": marks} if marks else {})}

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

    def _add(self, new: list[Exchange]) -> list[str]:
        with self._open() as index:
            vectors = index.embed(new)  # first: a model that fails must leave nothing half remembered
            first = not self._folder.exists()
            if first:
                with friendly_os_errors(self._folder):
                    self._folder.mkdir(parents=True, exist_ok=True)
            self._log.append(new)
            for parent in self._folder.parents[:3] if first else ():  # ab, users, root: new names in them
                sync_folder(parent)
            index.add(new, vectors)
            self._unsaved += len(new)
            if self._unsaved >= max(self._lag, len(index.exchanges) // 10):
                self._save(index)
        return [exchange.id for exchange in new]

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
        sweep(self._folder)
        self._index = self._fresh()
        saved = self._folder / "index"
        if not self._index.load(saved, exchanges, self._store.seal) and saved.exists():
            shutil.rmtree(saved)
        rest = exchanges[len(self._index.exchanges) :]
        self._index.add(rest)
        self._unsaved = len(rest)

    def _keep(self, kept: list[Exchange]) -> None:
        """Make ``kept`` all that is remembered: the saved vectors go first, so that nothing outlives its text."""
        sweep(self._folder)
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
            index.save(self._folder / "index", self._store.seal)
        self._unsaved = 0

    def _fresh(self) -> ExchangeIndex:
        return ExchangeIndex(self._store.embedder, self._settings, self._store.reranker)


def lock(root: Path, name: str) -> FileLock:
    """What whoever touches a user's files holds; ``name`` is that of the user's folder."""
    return FileLock(root / "locks" / f"{int(name[:8], 16) % LOCKS:03d}.lock")


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind; it may hold text."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _aware(when: datetime | None) -> datetime:
    when = when or datetime.now(UTC)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _text(text: str) -> str:
    """``text`` without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
