"""Running the application: one process or several behind one socket, stopped without cutting a reply short."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import HANDLED_SIGNALS
from uvicorn.supervisors.multiprocess import Multiprocess

from gonggam.errors import UserError
from gonggam.files import as_user_error
from pipeline.chat.load import LOCK
from pipeline.cipher import read_keys
from pipeline.serve.options import ServeOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipeline.chat.counselor import Counselor
    from pipeline.serve.store import Store


SILENT_S = 600
"""A worker that loads a large model may not answer the supervisor for long; after this it hangs."""
CLOSING_S = 20
"""How long a worker may take to save memories and close the database once replies are finished."""


@dataclass(frozen=True)
class Plan:
    """What every worker is to serve: something `Counselor.load` knows, the run whose memory it uses, and how."""

    where: str
    run: Path | None
    settings: ServeOptions


def check_reach(settings: ServeOptions) -> None:
    """Refuse to be reached from other machines without accounts.

    Raises:
        UserError: the address is not this machine's own and accounts are off.
    """
    if settings.accounts or _loopback(settings.host):
        return
    raise UserError(
        f"serving on {settings.host} without accounts would let anybody read everybody's talks",
        "switch accounts on (--accounts, or serve.accounts: true), or stay on 127.0.0.1 and reach it by "
        "ssh -L 8000:127.0.0.1:8000 HOST",
    )


def serve(plan: Plan) -> None:
    """Serve until SIGINT or SIGTERM; running replies are finished first.

    Raises:
        UserError: the model or the database cannot be had, or the address is taken.
    """
    settings = plan.settings
    check_reach(settings)
    _quiet()
    with listen(settings) as listening:
        if settings.workers == 1:
            config = _config(build(plan), settings)
            _tell(listening, settings)
            Server(config).run([listening])
            return
        with tempfile.TemporaryDirectory(prefix="gonggam-metrics-") as numbers:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = numbers
            _tell(listening, settings)
            workers = Workers(_config(partial(worker, plan), settings, factory=True), [listening])
            workers.run()
            if any(process.exitcode == STARTUP_FAILURE for process in workers.processes):
                sys.exit(2)  # the worker has told why


class Server(uvicorn.Server):
    """Uvicorn's server, for which having stopped when told to is no failure: it ends with exit code 0.

    A closed terminal (SIGHUP) is a way to tell it, a second Ctrl-C one to stop at once: what was acknowledged is kept.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Heed signals to the end of the process; uvicorn would raise those that stopped it once more."""
        for number in HANDLED_SIGNALS if hung_up_is_ignored() else (*HANDLED_SIGNALS, signal.SIGHUP):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at once if this is the second Ctrl-C."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)


class Workers(Multiprocess):
    """Uvicorn's supervisor, which a closed terminal stops like SIGTERM, and which one hung worker does not hold up.

    Uvicorn's asks every worker whether it is well and waits `SILENT_S` for the answer, meanwhile deaf to signals; at
    the end it waits without end.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        ignored = hung_up_is_ignored()
        self._heard: dict[int | None, float] = {}
        super().__init__(config, sockets)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def handle_hup(self) -> None:
        """The terminal was closed: finish replies and end. Uvicorn would start all workers anew."""
        self.handle_term()

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended or were silent for `SILENT_S`; stop all if one could not start."""
        for process in self.processes:
            # Held by this process too, it would hide the end of a worker that is just being asked.
            process.child_conn.close()
            if process.ping(timeout=1):
                self._heard[process.pid] = time.monotonic()
            elif time.monotonic() - self._heard.setdefault(process.pid, time.monotonic()) > SILENT_S:
                process.process.kill()
                process.process.join()
        if not all(process.process.is_alive() for process in self.processes):
            super().keep_subprocess_alive()

    def join_all(self) -> None:
        """Wait until replies are finished and memories saved; a worker that is not done by then hangs."""
        until = time.monotonic() + (self.config.timeout_graceful_shutdown or 0) + CLOSING_S
        for process in self.processes:
            process.process.join(max(0, until - time.monotonic()))
            if process.process.is_alive():
                process.process.kill()
            process.join()


def build(plan: Plan) -> FastAPI:
    """The application of a plan: the counsellor loaded, the database opened."""
    from pipeline import Counselor
    from pipeline.serve.app import create_app

    store = open_store(plan)
    counselor = Counselor.load(plan.where, run=plan.run, keys=read_keys(plan.settings.key_file))
    warm_up(counselor)
    return create_app(counselor, plan.settings, store)


def warm_up(counselor: Counselor) -> None:
    """Load what would otherwise be loaded by the first message, which would wait for it, or by several at once.

    Raises:
        UserError: the model cannot answer.
    """
    counselor.reply("오늘 하루가 길었어")
    if counselor.memory and counselor.memory.settings.lexical:
        from rag.korean import kiwi

        kiwi()


def open_store(plan: Plan) -> Store | None:
    """The database: the one named, else SQLite in the run folder; None for a bare model, which has no folder for it.

    Raises:
        UserError: it cannot be had, or accounts are wanted and there is no place for them.
    """
    from pipeline.serve.store import Store, default_url

    folder, settings = plan.run or Path(plan.where), plan.settings
    url = settings.database or (default_url(folder) if (folder / LOCK).is_file() else None)
    if url is not None:
        store = Store.open(url, read_keys(settings.key_file))
        _ = store.workers.own  # so that nobody changes the key meanwhile
        return store
    if settings.accounts:
        raise UserError("accounts need a database, and there is no run folder", "name one with --database URL")
    return None


def worker(plan: Plan) -> FastAPI:
    """`build` in a worker process, where an error ends the whole service: the next worker would not start either."""
    _quiet()
    if hasattr(signal, "SIGHUP"):  # a closed terminal tells it all processes; ours are told to end by the first
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return build(plan)
    except Exception as error:
        found = (as_user_error(error) if isinstance(error, OSError) else None) or error
        if isinstance(found, UserError):
            print(f"error {found}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.exit(STARTUP_FAILURE)


def _config(app: Callable[..., Any], settings: ServeOptions, *, factory: bool = False) -> uvicorn.Config:
    """Uvicorn's access log stays off: it writes queries down; `pipeline.serve.guard.Watch` writes a line of its own."""
    return uvicorn.Config(
        app,
        factory=factory,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        access_log=False,
        log_config=None,
        http="h11",  # httptools would read headers of any length
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        timeout_graceful_shutdown=settings.shutdown_s,
        timeout_worker_healthcheck=SILENT_S,
    )


def listen(settings: ServeOptions) -> socket.socket:
    """A socket bound to the address; it takes connections once its `listen` is called.

    Raises:
        UserError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Only for sockets that say they are TCP does asyncio send small packets at once; else answers wait 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        where = f"{settings.host}:{settings.port}"
        raise UserError(f"cannot listen on {where} ({error.strerror})", "choose another with --port") from error
    listening.set_inheritable(True)
    return listening


def _tell(listening: socket.socket, settings: ServeOptions) -> None:
    """From now on connections are taken; they wait while workers load the model."""
    listening.listen(2048)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    who = "with accounts" if settings.accounts else "without accounts, for this machine only"
    print(f"gonggam listens on http://{shown}:{port} ({who}; API: /v1)", flush=True)


def _quiet() -> None:
    """No telemetry; log lines of the service on standard error."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("gonggam", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


def hung_up_is_ignored() -> bool:
    """Whether closed terminals are to be lived through (nohup), or cannot be heard of (Windows)."""
    return not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
