"""Which processes work on a database, and which of them are provably gone.

A claim on a room names its worker. Whether that worker still runs can be told for certain only where it ran: on the
same boot of the same machine, in the same space of process numbers. Of all others nothing is concluded.
"""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

from sqlalchemy import delete, func, or_, select, update

from pipeline.serve.store.database import Database
from pipeline.serve.store.models import Counsel, Worker, now, table

_OLD = timedelta(days=7)
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process for good: its number may be given again, but not with the same start on the same boot.

    Attributes:
        place: boot of the machine and space of process numbers; empty where the system does not tell.
        pid: its number there.
        started: when it began, in ticks since the boot.
    """

    place: str
    pid: int
    started: int

    @classmethod
    def own(cls) -> Process:
        """This one."""
        pid = os.getpid()
        found = _began(pid)
        return cls(_place(), pid, found) if found else cls("", pid, 0)

    @property
    def gone(self) -> bool:
        """Whether it certainly does not run any more; False also where that cannot be known."""
        if not self.place or self.place != _place():
            return False
        try:
            return _began(self.pid) not in (self.started, None)
        except ProcessLookupError:
            return True


class Workers:
    """Rows of ``worker``; the service enters itself at the start, others when they first claim a room."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._id: str | None = None
        self._lock = threading.Lock()

    @property
    def own(self) -> str:
        """Id of this worker."""
        with self._lock:
            if self._id is None:
                self._id = self._enter(Process.own())
        return self._id

    def gone(self, worker: str) -> bool:
        """Whether a worker is provably gone."""
        with self._db.looking() as connection:
            row = connection.execute(select(_T.c.place, _T.c.pid, _T.c.started).where(_T.c.id == worker)).first()
        return row is not None and Process(*row).gone

    def departed(self) -> list[str]:
        """Ids of all workers that are provably gone."""
        with self._db.looking() as connection:
            rows = connection.execute(select(_T.c.id, _T.c.place, _T.c.pid, _T.c.started)).all()
        return [row.id for row in rows if Process(row.place, row.pid, row.started).gone]

    def present(self) -> int:
        """How many processes may be at work on this database: all that entered themselves and are not provably gone."""
        gone = self.departed()
        with self._db.looking() as connection:
            return connection.scalar(select(func.count()).where(_T.c.id.not_in(gone))) or 0

    def strike(self) -> None:
        """Take out workers that are gone, and such as nobody has heard of for long, unless something is claimed."""
        over = or_(_T.c.id.in_(self.departed()), _T.c.began_at < now() - _OLD)
        claims = select(Counsel.id).where(Counsel.claim_until.is_not(None), Counsel.claim.startswith(_T.c.id))
        with self._db.acting(lasting=False) as connection:
            connection.execute(delete(_T).where(over, ~claims.correlate(_T).exists()))

    def leave(self) -> None:
        """Take this worker out; whatever it still claims has run out from now on."""
        with self._lock:
            name, self._id = self._id, None
        if name is None:
            return
        mine = Counsel.claim_until.is_not(None), Counsel.claim.startswith(name)
        with self._db.acting(lasting=False) as connection:
            connection.execute(update(Counsel).where(*mine).values(claim_until=now()))
            connection.execute(delete(_T).where(_T.c.id == name))

    def _enter(self, process: Process) -> str:
        name = secrets.token_hex(6)
        row = {"id": name, "place": process.place, "pid": process.pid, "started": process.started, "began_at": now()}
        with self._db.acting(lasting=False) as connection:
            connection.execute(_T.insert().values(row))
        return name


_T = table(Worker)


@cache
def _place() -> str:
    with suppress(OSError):
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    return ""


def _began(pid: int) -> int | None:
    """When a process began; None where that is not shown.

    Raises:
        ProcessLookupError: it is not there, or dead and only not yet buried by its parent.
    """
    try:
        state, *rest = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        if state in "ZX" and len(list((_PROC / str(pid) / "task").iterdir())) <= 1:
            raise ProcessLookupError(pid)
        return int(rest[18])  # the 22nd field, man 5 proc
    except (FileNotFoundError, NotADirectoryError):
        with suppress(PermissionError):
            os.kill(pid, 0)  # a process may be there and hidden; this tells
        return None
    except (OSError, ValueError, IndexError) as error:
        if isinstance(error, ProcessLookupError):
            raise
        return None
