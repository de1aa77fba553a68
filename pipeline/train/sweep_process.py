"""The processes of a sweep: each an ordinary run, and all of them asked to stop when the sweep is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import FrameType

from gonggam.errors import Interrupted

_ROOT = Path(__file__).resolve().parents[2]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Processes:
    """Does ordinary runs, each in a process of its own, several at a time if called from several threads.

    A signal to stop goes on to all of them, and so does one that a single run was sent: a run that was stopped is no
    candidate to compare. Each finishes its step and writes a checkpoint; the sweep waits for that.

    Args:
        command: what does a run; the recipe file and ``--runs FOLDER`` are put behind it.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "pipeline")) -> None:
        self.command, self.received = list(command), 0
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = RLock()  # the handler may find its own thread inside

    def __call__(self, file: Path, runs: Path, log: Path, more: Mapping[str, str]) -> tuple[int, str]:
        """Do the run of a recipe file under ``runs``; returns its exit code and the last line it wrote.

        Raises:
            Interrupted: the sweep was asked to stop, and no run begins any more.
        """
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, **more, "PYTHONPATH": os.pathsep.join(paths)}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            with self._lock:
                self.check()
                command = [*self.command, str(file), "--runs", str(runs)]
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
                self._running.add(process)
            if self.received:  # while the process was being started
                process.send_signal(self.received)
            code = process.wait()
        with self._lock:
            self._running.remove(process)
        lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        return code, lines[-1].strip() if lines else "no output"

    def check(self, code: int = 0) -> None:
        """Leave if the sweep was asked to stop, or if a run came back with the exit code of one that was.

        Raises:
            Interrupted: with 128 + the number of the signal.
        """
        if not self.received and code - 128 in _SIGNALS:
            self.stop(code - 128)
        if self.received:
            raise Interrupted(128 + self.received)

    def stop(self, number: int) -> None:
        """Pass a signal on to every run; none begins any more."""
        with self._lock:
            self.received = number
            for process in self._running:
                process.send_signal(number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals that ask to stop, as long as the sweep lasts."""

        def receive(number: int, _: FrameType | None) -> None:
            self.stop(number)

        previous = {number: signal.signal(number, receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
