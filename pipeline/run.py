"""The run folder: one folder holds all that came of a recipe, and knows what is done, half done or out of date.

``runs/NAME/STAGE/manifest.json`` is written last, by rename: a stage without it did not happen. A stage's fingerprint
covers its recipe section, the fingerprints of the stages it builds on, its input files and the code that makes it;
a manifest with another fingerprint is out of date, and work begun under another fingerprint is thrown away.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from gonggam.errors import UserError
from gonggam.files import friendly_os_errors, read_json, sha256_file, write_json

_ROOT = Path(__file__).resolve().parent.parent
_MAKING = ("prepare", "tiny", "classify", "sft", "dpo", "memory")


class Run:
    """A run folder.

    Args:
        folder: where it lies (or shall lie).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.folder / name

    def manifest(self, name: str) -> dict[str, Any] | None:
        """What a finished stage left behind, or None if it is not finished."""
        path = self.stage(name) / "manifest.json"
        return read_json(path) if path.is_file() else None

    def is_current(self, name: str, fingerprint: str) -> bool:
        """Whether the stage is finished and was made from just these inputs."""
        manifest = self.manifest(name)
        return manifest is not None and manifest["fingerprint"] == fingerprint

    def begin(self, name: str, fingerprint: str, *, anew: bool = False) -> bool:
        """Make the stage's folder ready; True if work begun earlier under the same fingerprint can go on there.

        A finished stage starts over. With ``anew`` so does an unfinished one, unless it was itself begun anew: then the
        same command was interrupted, and goes on.
        """
        folder = self.stage(name)
        started = folder / "started.json"
        before = read_json(started) if started.is_file() and self.manifest(name) is None else {}
        going_on = before.get("fingerprint") == fingerprint and (before.get("anew", False) or not anew)
        with friendly_os_errors(folder):
            (folder / "manifest.json").unlink(missing_ok=True)
            if not going_on and folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
        if not going_on:
            write_json(started, {"fingerprint": fingerprint, "seconds": 0.0, "anew": anew})
        return going_on

    def finish(self, name: str, fingerprint: str, *, seconds: float, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest, and with it make the stage done."""
        manifest = {
            "stage": name,
            "fingerprint": fingerprint,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(seconds, 2),
            "metrics": dict(metrics),
        }
        write_json(self.stage(name) / "manifest.json", manifest)
        return manifest

    def spent(self, name: str, seconds: float | None = None) -> float:
        """Seconds that interrupted attempts at this stage took so far; with ``seconds``, add and store them."""
        path = self.stage(name) / "started.json"
        started = read_json(path)
        if seconds is not None:
            started["seconds"] += seconds
            write_json(path, started)
        return started["seconds"]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder for this process; the lock dies with the process, however it dies.

        Raises:
            UserError: another process works in this folder, or it cannot be written.
        """
        with friendly_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a+")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise UserError(
                    f"another process (pid {lock.read().strip() or '?'}) works in this run folder",
                    "wait for it, or give this run another name: name=...",
                    file=self.folder,
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def fingerprint(*parts: Any) -> str:
    """Hex SHA-256 of JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_version(*places: str) -> str:
    """Hex SHA-256 over the program files under ``places`` (files or folders, relative to the project)."""
    digest = hashlib.sha256()
    for place in places:
        path = _ROOT / place
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            if "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(_ROOT)}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def state_of(target: str) -> list[list[Any]]:
    """What changes when a model on this machine is trained anew; empty for one elsewhere."""
    folder = Path(target)
    if not folder.is_dir():
        return []
    run = (folder / "recipe.lock.yaml").is_file()
    files = [folder / stage / "manifest.json" for stage in _MAKING] if run else sorted(folder.iterdir())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
