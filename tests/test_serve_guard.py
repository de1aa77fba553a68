"""What stands before the routes, and what is given up, refused, counted and written down."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import httpx
import pytest
from chat_standin import ScriptedBackend
from fastapi import FastAPI, Request
from serve_standin import GOOD, HeldBackend, serving

from gonggam.errors import UserError
from pipeline.chat.counselor import Counselor
from pipeline.chat.reply import Reply
from pipeline.chat.turn import Ask
from pipeline.serve.app import create_app
from pipeline.serve.errors import ApiError
from pipeline.serve.guard import BodyLimit, Watch
from pipeline.serve.meter import Meter
from pipeline.serve.options import ServeOptions
from pipeline.serve.queue import ReplyQueue
from pipeline.serve.server import check_reach

SECRET = "아무도모를비밀"
BODY = {"model": "gonggam", "messages": [{"role": "user", "content": f"면접 떨어졌어 {SECRET}"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def plain():
    app = create_app(Counselor(ScriptedBackend(GOOD)), ServeOptions(max_body_kb=8, origins=("https://friend.example",)))
    with serving(app) as (address, _), httpx.Client(base_url=address) as client:
        yield client


@pytest.fixture
def held():
    """A service of one place, two waiting, one a user; nothing is said before ``backend.go``."""
    backend = HeldBackend(free=3)
    settings = ServeOptions(parallel=1, queue=2, per_user=2)
    with serving(create_app(Counselor(backend), settings)) as (address, server):
        with httpx.Client(base_url=address, timeout=30) as client:
            yield backend, client, server
        backend.go.set()


def numbers(client):
    lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://friend.example"}, 200),
        ({"Cookie": "gonggam_session=x"}, 403),
        ({"Cookie": "gonggam_session=x", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "rebound.example"}, 400),
    ],
)
def test_other_sites_pages_change_nothing(plain, headers, status):
    answer = plain.post(CHAT, json=BODY, headers=headers)
    assert answer.status_code == status
    allowed = answer.headers.get("Access-Control-Allow-Origin")
    assert allowed == ("https://friend.example" if headers.get("Origin") == "https://friend.example" else None)


def test_the_pages_own_origin_passes(plain):
    assert plain.post(CHAT, json=BODY, headers={"Origin": str(plain.base_url)}).status_code == 200


def test_security_headers_stand_on_every_answer(plain):
    for answer in (plain.get("/health/live"), plain.get("/nowhere"), plain.post(CHAT, content=b"{")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "server" not in answer.headers
    assert plain.get("/health/live").headers["Cache-Control"] == "no-store"


def test_a_body_has_its_limit_told_or_not(plain):
    large = b"x" * 9000
    refused = plain.post(CHAT, content=large)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
    assert refused.headers["X-Content-Type-Options"] == "nosniff"
    assert plain.post(CHAT, content=iter([large[:5000], large[5000:]])).status_code == 413
    assert plain.post(CHAT, json=BODY).status_code == 200


@pytest.mark.parametrize(("limit", "status"), [(10, 200), (9, 413)])
def test_a_body_that_comes_in_parts_is_one(limit, status):
    app = FastAPI()

    @app.post("/")
    async def length(request: Request) -> int:
        return len(await request.body())

    parts = [{"type": "http.request", "body": b"x" * 5, "more_body": more} for more in (True, False)]
    told = asyncio.run(asked(BodyLimit(app, limit), "/", parts))
    assert told[0]["status"] == status
    if status == 200:
        assert told[1]["body"] == b"10"


async def asked(app, path, parts):
    """What an application answers to a POST request whose body comes in these messages."""
    told, left = [], list(parts)

    async def receive():
        return left.pop(0)

    async def send(message):
        told.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return told


def test_a_body_that_never_ends_is_not_waited_for():
    told = []

    async def ask():
        async def send(message):
            told.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await BodyLimit(None, limit=9, seconds=0)(scope, asyncio.Event().wait, send)

    asyncio.run(ask())
    assert told[0]["status"] == 408
    assert (b"connection", b"close") in told[0]["headers"]
    assert json.loads(told[1]["body"])["error"]["code"] == "timeout"


def test_no_text_in_logs_and_metrics(plain, caplog, monkeypatch):
    with caplog.at_level(logging.DEBUG):
        plain.post(f"{CHAT}?q={SECRET}", json={**BODY, "user": SECRET})
        plain.post(CHAT, json={**BODY, SECRET: SECRET})
        plain.get(f"/{SECRET}")
    assert f"POST {CHAT} 200" in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.split(".")[0] in ("gonggam", "uvicorn")]
    assert ours
    assert SECRET not in "".join(ours)
    assert SECRET not in plain.get("/metrics").text


def test_a_fault_is_logged_without_its_words(caplog):
    app = create_app(Counselor(ScriptedBackend(GOOD, fail=RuntimeError(SECRET))), ServeOptions())
    with serving(app) as (address, _):
        answer = httpx.post(address + CHAT, json=BODY)
        assert answer.status_code == 500
        streamed = httpx.post(address + CHAT, json={**BODY, "stream": True})
    assert SECRET not in answer.text + streamed.text + caplog.text
    assert "fault: RuntimeError at chat_standin.py" in caplog.text


def test_a_fault_amid_the_response_is_logged_without_its_words(caplog):
    async def begins(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(SECRET)

    meter = Meter()
    with caplog.at_level(logging.INFO):
        told = asyncio.run(asked(Watch(begins, meter), "/", []))
    assert [message["type"] for message in told] == ["http.response.start"]  # cut off, not answered twice
    assert "fault: RuntimeError at test_serve_guard.py" in caplog.text
    assert SECRET not in caplog.text
    assert 'status="200"} 1.0' in meter.text().decode()


def test_a_path_without_its_value_is_counted_as_it_came():
    app, meter = FastAPI(), Meter()

    @app.post("/files/{path:path}")
    async def file(path: str) -> str:
        return path

    for path, route in (("/files/", "/files/"), (f"/files/{SECRET}", "/files/{path}")):
        told = asyncio.run(asked(Watch(app, meter), path, [{"type": "http.request", "body": b""}]))
        assert told[0]["status"] == 200
        assert f'route="{route}",status="200"}} 1.0' in meter.text().decode()
    assert SECRET not in meter.text().decode()


def test_metrics_count_replies_and_tokens(plain):
    before = numbers(plain)
    plain.post(CHAT, json=BODY)
    after = numbers(plain)
    assert after['gonggam_replies_total{source="model"}'] == before.get('gonggam_replies_total{source="model"}', 0) + 1
    assert after['gonggam_tokens_total{kind="completion"}'] > 0
    while numbers(plain)["gonggam_replies_running"]:
        pass


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_who_goes_away_stops_the_model(held, stream):
    backend, client, _ = held
    with client.stream("POST", CHAT, json={**BODY, "stream": True}) if stream else _left(client, backend):
        assert backend.begun.acquire(timeout=10)
    assert backend.given_up.acquire(timeout=10)
    backend.go.set()
    assert client.post(CHAT, json=BODY).status_code == 200
    assert numbers(client)["gonggam_cancelled_total"] == 1


class _left:
    """Sends a request over a connection of its own and closes it at the end of the block."""

    def __init__(self, client, backend):
        import socket

        host, port = client.base_url.host, client.base_url.port
        body = json.dumps(BODY).encode()
        self.socket = socket.create_connection((host, port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def test_beyond_the_queue_is_429_and_not_ready(held):
    backend, client, _ = held
    answers = []
    waiting = [threading.Thread(target=lambda: answers.append(client.post(CHAT, json=BODY))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    while numbers(client)["gonggam_replies_waiting"] < 2:
        pass
    refused = client.post(CHAT, json=BODY)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert client.get("/health/ready").json()["checks"] == {
        "model": True,
        "database": True,
        "memory": True,
        "queue": False,
    }
    backend.go.set()
    for thread in waiting:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("queue", "per_user", "workers", "each"), [(64, 4, 1, (64, 4)), (64, 4, 4, (16, 1)), (3, 2, 4, (0, 1))]
)
def test_the_bounds_of_the_queue_are_shared_out_among_the_workers(queue, per_user, workers, each):
    app = create_app(Counselor(HeldBackend(free=0)), ServeOptions(queue=queue, per_user=per_user, workers=workers))
    assert (app.state.queue.limit, app.state.queue.per_user) == each


def test_a_closed_model_is_not_ready(plain):
    app = create_app(Counselor(ScriptedBackend(GOOD)), ServeOptions())
    app.state.counselor.backend.alive = lambda: False
    with serving(app) as (address, _):
        assert httpx.get(f"{address}/health/ready").status_code == 503
        assert httpx.get(f"{address}/health/live").status_code == 200


def test_shutdown_finishes_the_running_reply(held):
    backend, client, server = held
    with client.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
        lines = answer.iter_lines()
        while "속상" not in next(lines):
            pass
        server.should_exit = True
        while server.servers[0].is_serving():
            pass
        backend.go.set()
        rest = "".join(lines)
    assert "남는 건 무엇인가요?" in rest
    assert "[DONE]" in rest


def test_users_take_turns():
    """One place: a's three requests and b's and c's one each are served a, a, b, c, a."""

    async def scene():
        queue = ReplyQueue(Counselor(backend), Meter(), parallel=1, waiting=10, per_user=2)
        order = []

        async def one(owner):
            found = await queue.reply(Ask("면접 떨어졌어"), owner)
            order.append(owner)
            return found

        tasks = []
        for owner in ("a", "a", "a", "b", "c"):
            tasks.append(asyncio.create_task(one(owner)))
            await asyncio.sleep(0)
        with pytest.raises(ApiError, match="Too many"):
            await one("a")
        backend.go.set()
        replies = await asyncio.gather(*tasks)
        await queue.close()
        return order, replies

    backend = HeldBackend()
    order, replies = asyncio.run(scene())
    assert order == ["a", "a", "b", "c", "a"]
    assert all(isinstance(reply, Reply) and reply.text == GOOD for reply in replies)


def test_whoever_leaves_the_queue_gives_up_the_place():
    async def scene():
        queue = ReplyQueue(Counselor(backend), Meter(), parallel=1, waiting=10, per_user=2)
        first, second, third = (asyncio.create_task(queue.reply(Ask("면접 떨어졌어"), name)) for name in "abc")
        await asyncio.to_thread(backend.begun.acquire)
        assert (queue.running, queue.waiting) == (1, 2)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (queue.running, queue.waiting) == (1, 1)
        backend.go.set()
        await asyncio.gather(first, third)
        await queue.close()
        return queue.running, queue.waiting, len(backend.asked)

    backend = HeldBackend()
    assert asyncio.run(scene()) == (0, 0, 2)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.com"])
def test_no_service_for_others_without_accounts(host):
    with pytest.raises(UserError, match="--accounts"):
        check_reach(ServeOptions(host=host))
    check_reach(ServeOptions(host=host, accounts=True))
