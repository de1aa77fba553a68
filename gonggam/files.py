"""Files that are whole or absent: written aside, flushed to disk, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from gonggam.errors import UserError

_HINTS = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EFBIG: "files may not grow this large here; raise the limit (ulimit -f)",
    errno.EACCES: "change its permissions or choose another folder",
    errno.EPERM: "change its permissions or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOTDIR: "a part of this path is a file; choose another folder",
    errno.EEXIST: "this is there already, maybe a file in a folder's place; choose another",
    errno.EISDIR: "this is a folder; name a file",
}


def as_user_error(error: OSError, path: str | Path | None = None) -> UserError | None:
    """The operating system's refusal as an error the user can act on; None if it is of another kind."""
    hint = _HINTS.get(error.errno or 0)
    return UserError(os.strerror(error.errno or 0), hint, file=error.filename or path) if hint else None


def can_be_written(path: str | Path, room: int = 4 << 20) -> bool:
    """Whether a file or folder is there, may be written, and has ``room`` bytes to grow; nothing is written for it."""
    try:
        return os.access(path, os.W_OK) and shutil.disk_usage(path).free >= room
    except OSError:
        return False


@contextmanager
def friendly_os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals about ``path`` into a `UserError`."""
    try:
        yield
    except OSError as error:
        if friendly := as_user_error(error, path):
            raise friendly from error
        raise


@contextmanager
def writing(path: str | Path, mode: str = "w", aside: str | Path | None = None) -> Iterator[IO[Any]]:
    """Open a file beside ``path`` for writing; on success it takes the place of ``path``, else it is gone.

    Args:
        path: the file.
        mode: ``w`` or ``wb``.
        aside: the file beside it, where there is one writer only: what a killed one left is then written over. By
            default one of a new name each time, which a kill leaves behind.

    Raises:
        UserError: the disk is full, read-only, or the folder may not be written.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    with friendly_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if aside is None:
            handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        else:
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o666 & ~_umask())
            os.replace(aside, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(aside)
            raise


@contextmanager
def publishing(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; on success it takes that name, replacing what stood there.

    Raises:
        UserError: the disk is full, read-only, or the parent may not be written.
    """
    folder = Path(folder)
    with friendly_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            yield aside
            os.chmod(aside, 0o777 & ~_umask())
            if folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.old.") as old:
                    os.replace(folder, Path(old) / folder.name)
                    os.replace(aside, folder)
            else:
                os.replace(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with writing(path) as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with Hangul left readable."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read one JSON file.

    Raises:
        UserError: it is missing or no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError("file not found", file=path) from error
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", file=path) from error


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> int:
    """Write one JSON object a line; returns the number of rows."""
    count = 0
    with writing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """Yield the objects of a JSON-lines file.

    Raises:
        UserError: it is missing, or a line is no JSON (named by file and line).
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise UserError(f"not valid JSON ({error})", file=path, line=number) from error
    except FileNotFoundError as error:
        raise UserError("file not found", file=path) from error


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(folder: str | Path) -> str:
    """Hex SHA-256 over the names and bytes of every file under ``folder`` (or of one file)."""
    folder = Path(folder)
    if folder.is_file():
        return sha256_file(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
