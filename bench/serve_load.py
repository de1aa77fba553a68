"""bench/serve.py with a stub in the model's place: overhead, a soak, and kill -9 under load."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from memory import sentence
from record import Row
from serve_process import Served, quick_starts, running
from sqlalchemy import func, select, text

from pipeline.serve.accounts import Accounts
from pipeline.serve.erasure import Erasure
from pipeline.serve.store import Database, Store, default_url
from pipeline.serve.store.models import Counsel


@dataclass
class Client:
    """One account with one room, over one connection; ``acknowledged`` are dialogue ids by what was said."""

    id: str
    token: str
    room: str
    address: str = ""
    acknowledged: dict[str, str] = field(default_factory=dict)
    _open: http.client.HTTPConnection | None = None
    _one: threading.Lock = field(default_factory=threading.Lock)

    def say(self, words: str) -> None:
        """Send a message, once the one before is answered; it is noted when the service has acknowledged it."""
        with self._one:
            self._say(words)

    def _say(self, words: str) -> None:
        body = json.dumps({"text": words}).encode()
        found = self._ask("POST", f"/api/rooms/{self.room}/dialogs", body, 201)
        self.acknowledged[words] = found["dialog"]["id"]

    def _ask(self, method: str, path: str, body: bytes | None, status: int) -> dict[str, Any]:
        if self._open is None:
            self._open = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self._open.request(method, path, body, headers)
        answer = self._open.getresponse()
        found = json.loads(answer.read())
        if answer.status != status:
            raise RuntimeError(f"refused with {answer.status}: {found}")
        return found

    def ping(self, words: str) -> None:
        """Ask for what needs neither an account nor the database: the floor of every answer."""
        with self._one:
            self._ask("GET", "/health/live", None, 200)

    def reconnect(self, address: str) -> None:
        """Speak to another server."""
        if self._open:
            self._open.close()
        self.address, self._open = address, None


def clients(folder: Path, count: int) -> list[Client]:
    """Accounts that are logged in, each with a room."""
    store = Store.open(default_url(folder))
    accounts, made = Accounts(store), []
    for i in range(count):
        person = accounts.sign_up(f"user{i}", f"a long password {i}")
        token = accounts.log_in(person.name, f"a long password {i}", kind="api").token
        made.append(Client(person.id, token, store.rooms.start(person.id, "기본").id))
    store.close()
    return made


def send_steadily(
    users: list[Client], rate: float, seconds: float, send: Callable[[Client, str], None] = Client.say
) -> list[float]:
    """Milliseconds of each answer, counted from the moment the message was due, however late it was sent."""
    began, waits = time.perf_counter() + 0.1, []

    def one(number: int, due: float) -> None:
        send(users[number % len(users)], sentence(number))
        waits.append(1000 * (time.perf_counter() - due))

    with ThreadPoolExecutor(len(users)) as pool:
        sent = []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            time.sleep(max(0, due - time.perf_counter()))
            sent.append(pool.submit(one, number, due))
        for done in sent:
            done.result()
    return waits


def overhead(folder: Path, rate: float = 50, seconds: float = 30, users: int = 50) -> list[Row]:
    """Everything but the model, message by message: log-in, queue, memory, emotion, risk, commit."""
    people = clients(folder, users)
    with running("stub", folder) as served:
        for person in people:
            person.reconnect(served.address)
        send_steadily(people, rate, 3)
        before = _cpu(served.process.pid)
        time.sleep(5)
        idle = f"{20 * (_cpu(served.process.pid) - before):.1f}% of a core"
        floor = _measure(served, people, rate, seconds, Client.ping)
        found = _measure(served, people, rate, seconds, Client.say)
    load = f"at {rate:g} a second, {users} users"
    return [
        ("the stub service without a request", idle),
        (f"floor: GET /health/live {load}", floor[0]),
        (f"overhead of a message {load}, SQLite", found[0], {"overhead_ms": found[1]}),
    ]


def _measure(
    served: Served, people: list[Client], rate: float, seconds: float, send: Callable[[Client, str], None]
) -> tuple[str, float]:
    """Percentiles and processor time of a request as a text, and the 95th percentile in milliseconds."""
    before = _cpu(served.process.pid)
    waits = send_steadily(people, rate, seconds, send)
    cpu = 1000 * (_cpu(served.process.pid) - before) / len(waits)
    p50, p95, p99 = np.percentile(waits, [50, 95, 99])
    return f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms; processor time {cpu:.1f} ms", float(p95)


def _cpu(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


def soak(folder: Path, minutes: float = 5, rate: float = 40, users: int = 20) -> list[Row]:
    """Resident memory, open files and threads at the end of the first and of the last quarter."""
    people = clients(folder, users)
    with running("stub", folder) as served:
        for person in people:
            person.reconnect(served.address)
        process, seen = psutil.Process(served.process.pid), []
        for _ in range(4):
            waits = send_steadily(people, rate, 15 * minutes)
            with process.oneshot():
                seen.append((process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()))
    (memory, files, threads), (later_memory, later_files, later_threads) = seen[0], seen[-1]
    messages = int(4 * 15 * minutes * rate)
    grown = {"soak_files": later_files - files, "soak_threads": later_threads - threads}
    what = f"{messages:,} messages in {minutes:g} minutes: resident memory"
    return [
        (what, f"{memory:.0f} MB, {later_memory:.0f} MB", {"soak_mb": later_memory - memory}),
        ("the same: open files, threads", f"{files}, {later_files}; {threads}, {later_threads}", grown),
        ("the same: p95 in the last quarter", f"{np.percentile(waits, 95):.1f} ms"),
    ]


def kills(folder: Path, times: int = 200, users: int = 8) -> list[Row]:
    """kill -9 at a random moment under load, again and again; what was acknowledged must be there each time.

    The next server goes on in the same rooms at once, as the one before is seen to be gone.

    Raises:
        RuntimeError: a message is gone, the database is damaged, or memory and database differ.
    """
    people, chance = clients(folder, users), random.Random(0)
    words, cut_off = (f"{sentence(number)} {number}" for number in range(10**9)), 0
    with quick_starts("light", folder) as begin:
        for _ in range(times):
            process, address = begin()
            for person in people:
                person.reconnect(address)
            stop, answered = threading.Event(), threading.Event()
            with ThreadPoolExecutor(users) as pool:
                talks = [pool.submit(_talk, person, words, answered, stop) for person in people]
                answered.wait(60)
                time.sleep(chance.uniform(0, 0.5))
                process.kill()
                stop.set()
            process.join()
            for talk in talks:
                talk.result()
            cut_off += _check(folder, people)
    acknowledged = sum(len(person.acknowledged) for person in people)
    told = f"{acknowledged:,} messages acknowledged, none lost; {cut_off:,} rooms cut off, memory agrees each time"
    return [(f"{times} times kill -9 under load", told, {"lost": 0})]  # else `_check` would have ended it


def _talk(person: Client, words: Iterator[str], answered: threading.Event, stop: threading.Event) -> None:
    """Send until the server is gone."""
    with suppress(OSError, http.client.HTTPException, ValueError):
        while not stop.is_set():
            person.say(_next(words))
            answered.set()


_turn = threading.Lock()


def _next(words: Iterator[str]) -> str:
    with _turn:
        return next(words)


def _check(folder: Path, people: list[Client]) -> int:
    """Put right what the dead server left, then compare what was acknowledged, the database and the memory.

    Returns:
        How many rooms it was working in.

    Raises:
        RuntimeError: they differ, or the database is damaged.
    """
    from serve_app import stub_counselor

    store, bot = Store(Database(default_url(folder))), stub_counselor(folder, lexical=0)
    cut_off = Erasure(store, bot).recover()
    with store.database.looking() as connection:
        if (found := connection.scalar(text("PRAGMA integrity_check"))) != "ok":
            raise RuntimeError(f"the database is damaged: {found}")
        claimed = connection.scalar(select(func.count()).where(Counsel.claim.is_not(None)))
    for person in people:
        dialogs = {dialog.id: dialog for dialog in store.rooms.dialogs(person.id, person.room)}
        lost = [w for w, id in person.acknowledged.items() if id not in dialogs or dialogs[id].message != w]
        kept = {exchange["id"] for exchange in bot.export(json.dumps([person.id, ""], ensure_ascii=False))["exchanges"]}
        written = {dialog.exchange for dialog in dialogs.values() if dialog.exchange}
        if lost or written != kept or claimed:
            what = f"{len(lost)} messages, {len(written - kept)} memories too few, {len(kept - written)} too many"
            raise RuntimeError(f"after kill -9: {what}, {claimed} rooms still claimed")
    bot.close()
    store.close()
    return cut_off
