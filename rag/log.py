"""One user's exchanges on disk: an append-only file of JSON lines that survives a kill at any moment.

With a seal every line is sealed for itself (see `rag.seal`); the first then holds a proof by which another key is
told from a damaged line.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gonggam.errors import UserError
from gonggam.files import friendly_os_errors, writing
from rag.seal import MARK, Seal, opened, sealed

_HEADLESS = "headless"  # the first line was lost; the rest is read all the same


@dataclass(frozen=True)
class Exchange:
    """A user's message and the reply it got, or a mark: something noted of a session without any words of it.

    ``when`` is an aware time; ``meta`` holds what the caller knows of it (an emotion, a risk) as plain JSON values.
    """

    id: str
    session: str
    when: datetime
    user: str
    reply: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    mark: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``meta`` and ``mark`` only where there is something to tell."""
        row = {**asdict(self), "when": self.when.isoformat()}
        return {name: value for name, value in row.items() if value or name not in ("meta", "mark")}


class ExchangeLog:
    """The log file. Its first line names a generation, which changes whenever the file is rewritten.

    The caller holds the user's lock around every call.
    """

    def __init__(self, path: Path, seal: Seal | None = None) -> None:
        self.path, self._seal = path, seal
        self.damaged = 0
        self._generation = ""
        self._offset = 0

    def news(self) -> tuple[bool, list[Exchange]]:
        """What changed since the last call: whether to start afresh, and the exchanges to add.

        Lines that cannot be read are counted in ``damaged`` and passed over; a torn last line (a write that was
        never acknowledged) is not read.

        Raises:
            UserError: it was sealed with another key.
        """
        try:
            with self.path.open("rb") as file:
                header = file.readline()
                generation, proof = _head(header)
                afresh = generation != self._generation or os.fstat(file.fileno()).st_size < self._offset
                if afresh:
                    self._generation, self.damaged = generation, 0
                    self._offset = 0 if generation == _HEADLESS else len(header)
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            afresh, self._generation, self._offset, self.damaged = bool(self._generation), "", 0, 0
            return afresh, []
        whole = data[: data.rfind(b"\n") + 1]
        found = self._read(whole.splitlines(), proof)
        self._offset += len(whole)
        self.damaged += found.count(None)
        return afresh, [exchange for exchange in found if exchange]

    def append(self, exchanges: Sequence[Exchange]) -> None:
        """Add exchanges; when this returns they are on the disk. Call `news` first.

        Raises:
            UserError: the disk is full or the folder may not be written; then nothing was added.
        """
        if not self._generation:
            self.rewrite(exchanges)
            return
        data = b"".join(map(self._line, exchanges))
        with friendly_os_errors(self.path), self.path.open("r+b") as file:
            file.truncate(self._offset)  # a torn line of a writer that was killed
            file.seek(self._offset)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), self._offset)
                raise
        self._offset += len(data)

    def rewrite(self, exchanges: Iterable[Exchange]) -> None:
        """Replace the file by one with only these exchanges, under a new generation."""
        self._replace(map(self._line, exchanges))

    def reseal(self) -> None:
        """Seal every line anew, whatever it was stored with; lines that are damaged stay as they are.

        Raises:
            UserError: some were sealed with a key that is not known.
        """
        self._generation = ""
        self.news()  # tells a wrong key before anything is touched
        with self.path.open("rb") as file:
            lines = file.read().splitlines(keepends=True)[0 if self._generation == _HEADLESS else 1 :]
        self._replace(self._anew(line) for line in lines if line.endswith(b"\n"))

    def _anew(self, line: bytes) -> bytes:
        try:
            return sealed(opened(line.rstrip(b"\n"), self._seal), self._seal) + b"\n"
        except UserError:
            return line

    def _replace(self, lines: Iterable[bytes]) -> None:
        self._generation = secrets.token_hex(8)
        head = {"gonggam_memory": 1, "generation": self._generation}
        if self._seal:
            head["proof"] = self._seal.encrypt(self._generation.encode()).decode("ascii")
        with writing(self.path, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            file.writelines(lines)
            self._offset = file.tell()
        self.damaged = 0
        sync_folder(self.path.parent)

    def _line(self, exchange: Exchange) -> bytes:
        return sealed(json.dumps(exchange.to_dict(), ensure_ascii=False).encode(), self._seal) + b"\n"

    def _read(self, lines: Sequence[bytes], proof: str | None) -> list[Exchange | None]:
        """The exchanges; None for a line that is damaged, if anything shows that the key is right."""
        right = proof is not None and self._opens(MARK + proof.encode())
        found: list[Exchange | None] = []
        wrong: UserError | None = None
        for line in lines:
            try:
                found.append(_parse(opened(line, self._seal)))
                right = right or line.startswith(MARK)
            except UserError as error:
                found.append(None)
                wrong = error
        if wrong and not right:
            raise wrong
        return found

    def _opens(self, stored: bytes) -> bool:
        try:
            return bool(opened(stored, self._seal))
        except UserError:
            return False


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename or a removal in it outlives a power cut (POSIX only)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _head(header: bytes) -> tuple[str, str | None]:
    """Generation and proof of the key."""
    try:
        row = json.loads(header)
        return str(row["generation"]), row.get("proof")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _HEADLESS, None


def _parse(line: bytes) -> Exchange | None:
    try:
        row = json.loads(line)
        when = datetime.fromisoformat(row["when"])
        return Exchange(
            id=str(row["id"]),
            session=str(row["session"]),
            when=when if when.tzinfo else when.replace(tzinfo=UTC),
            user=str(row["user"]),
            reply=str(row["reply"]),
            meta=dict(row.get("meta") or {}),
            mark=bool(row.get("mark")),
        )
    except (ValueError, KeyError, TypeError):
        return None
