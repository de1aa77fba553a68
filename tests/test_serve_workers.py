"""Several workers of the real command: they count together, are replaced, and end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from serve_standin import GOOD, model_server
from store_standin import PASSWORD

from pipeline.serve.store import default_url

SECRET = "아무도모를비밀"
BODY = {"model": "gonggam", "messages": [{"role": "user", "content": f"면접 떨어졌어 {SECRET}"}]}
CHAT = "/v1/chat/completions"
# Whoever runs the tests may do so under nohup, and what they start would live through a closed terminal too.
HEARS = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"


def command(folder, model, *options):
    """`gonggam serve` with two workers, on a free port."""
    words = [sys.executable, "-c", f"{HEARS}; from pipeline.cli import main; main()", "serve", model, "--port", "0"]
    return subprocess.Popen(
        [*words, "--workers", "2", *options],
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        text=True,
        cwd=folder,
        env=os.environ,
        start_new_session=True,
    )


@contextmanager
def running(folder, *options, end=lambda process: process.terminate()):
    """Yields (process, client); both workers are up. Ends in order, with exit code 0."""
    with model_server() as model:
        process = command(folder, model, *options)
        try:
            address = process.stdout.readline().split()[3]
            while len(begun(folder)) < 2:
                assert process.poll() is None
            with httpx.Client(base_url=address, timeout=60, headers={"Connection": "close"}) as client:
                yield process, client
        finally:
            end(process)
            assert process.wait(60) == 0


def begun(folder):
    """Numbers of the workers that have begun to serve so far."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", (folder / "log").read_text())]


@contextmanager
def stopped(pid):
    """Until the end of the block the other worker answers everything."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def closed_terminal(process):
    """What every process that was started in a terminal hears when it is closed."""
    os.killpg(process.pid, signal.SIGHUP)


def test_both_answer_count_together_and_end_in_order_when_their_terminal_is_closed(tmp_path):
    with running(tmp_path, end=closed_terminal) as (_, client):
        for other in begun(tmp_path):
            with stopped(other):
                answers = [client.post(CHAT, json=BODY) for _ in range(3)]
                assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [GOOD] * 3
        assert 'gonggam_replies_total{source="model"} 6.0' in client.get("/metrics").text
    assert SECRET not in (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("Finished server process") == 2


def test_a_users_pace_holds_over_workers_and_a_dead_worker_is_replaced(tmp_path):
    database = ["--accounts", "--database", default_url(tmp_path)]
    with running(tmp_path, *database, "serve.per_minute=1") as (_, client):
        person = {"name": "minji", "password": PASSWORD}
        client.post("/api/accounts", json={**person, "agree": True})
        token = client.post("/api/session", json=person).json()["token"]
        client.headers["Authorization"] = f"Bearer {token}"
        first, second = begun(tmp_path)
        with stopped(first):
            assert [client.post(CHAT, json=BODY).status_code for _ in range(2)] == [200, 429]
        with stopped(second):
            refused = client.post(CHAT, json=BODY)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            until = time.monotonic() + 2  # workers are asked twice a second whether they are well; this one cannot say
            while time.monotonic() < until:
                assert client.get("/health/live").status_code == 200
            os.kill(second, signal.SIGKILL)
        while len(begun(tmp_path)) < 3:
            assert client.get("/health/live").status_code == 200


def test_no_database_ends_all_workers_with_one_line_each(tmp_path):
    nowhere = "postgresql+psycopg://postgres@127.0.0.1:9/none"
    with model_server() as model:
        process = command(tmp_path, model, "--database", nowhere)
        try:
            assert process.wait(60) == 2
        finally:
            process.kill()
    assert f"error no database at {nowhere}" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


TALKING = """
import asyncio, sys
from pathlib import Path
from pipeline.serve.options import ServeOptions
from pipeline.serve.server import Server, listen
import uvicorn

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"and done"})

with listen(ServeOptions(port=0)) as listening:
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    Server(uvicorn.Config(app, lifespan="off", log_level="info")).run([listening])
"""


@pytest.mark.parametrize("times", [["SIGTERM"], ["SIGINT"], ["SIGHUP"], ["SIGINT", "SIGINT"]])
def test_one_process_finishes_what_it_says_unless_it_is_told_twice(tmp_path, times):
    process = subprocess.Popen(
        [sys.executable, "-c", f"{HEARS}\n{TALKING}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    hung = threading.Timer(60, process.kill)
    hung.start()
    address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    with httpx.stream("GET", address) as answer:
        said = answer.iter_text()
        assert next(said) == "begun "
        for name in times:
            process.send_signal(getattr(signal, name))
            while "Waiting for connections to close" not in (line := process.stderr.readline()) and line:
                pass
        if len(times) == 1:
            (tmp_path / "go").touch()
            assert "".join(said) == "and done"
    assert process.wait(30) == (0 if len(times) == 1 else 130)
    hung.cancel()
    assert "Traceback" not in process.stderr.read()
