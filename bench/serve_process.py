"""Servers that bench/serve.py starts and stops."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import psutil

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Served:
    """A server process and where it listens."""

    process: subprocess.Popen
    address: str

    def cpu(self) -> float:
        """Seconds of processor time so far, its children's included."""
        process = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        return sum(one.user + one.system for one in times)


def start(kind: str, folder: Path) -> Served:
    """bench/serve_app.py in a process of its own."""
    command = [sys.executable, str(HERE / "serve_app.py"), kind, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip() if process.stdout else ""
    if not address:
        raise RuntimeError(f"the {kind} server did not start; its error stands above")
    return Served(process, address)


@contextmanager
def quick_starts(kind: str, folder: Path) -> Iterator[Callable[[], tuple[BaseProcess, str]]]:
    """Starts such servers one after another from a process that has everything loaded: each is there in a moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["serve_app", "serve_load", "serve_model"])

    def begin() -> tuple[BaseProcess, str]:
        here, there = context.Pipe()
        process = context.Process(target=_tell, args=(kind, folder, there), daemon=True)
        process.start()
        there.close()
        return process, here.recv()

    yield begin


def _tell(kind: str, folder: Path, told: Connection) -> None:
    from serve_app import serve

    serve(kind, folder, told.send)


@contextmanager
def running(kind: str, folder: Path) -> Iterator[Served]:
    """A server of ours for a while."""
    served = start(kind, folder)
    try:
        yield served
    finally:
        served.process.terminate()
        served.process.wait(60)


@contextmanager
def transformers_serve(folder: Path) -> Iterator[Served | None]:
    """`transformers serve` on the same model; None, with a line that says so, where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--continuous-batching"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    log = folder / "transformers-serve.log"
    with log.open("w") as out:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    served = Served(process, f"http://127.0.0.1:{port}")
    try:
        if _answers(served):
            yield served
        else:
            print(f"transformers serve did not start: {log.read_text()[-300:]}", file=sys.stderr)
            yield None
    finally:
        process.terminate()
        process.wait(60)


def _answers(served: Served, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and served.process.poll() is None:
        try:
            if httpx.get(f"{served.address}/health", timeout=5).status_code == 200:
                return True
        except httpx.HTTPError:
            time.sleep(0.5)
    return False
