"""A real server in this process, and a backend that says its next word only when the test lets it."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager

import uvicorn
from chat_standin import ScriptedBackend, ScriptedStream

from pipeline.chat.backends import Piece, Usage

GOOD = "많이 속상하셨겠어요. 지금 가장 마음에 남는 건 무엇인가요?"


class HeldStream(ScriptedStream):
    """Says its first ``free`` words, then nothing (in endless empty pieces) until `go` is set."""

    def __init__(self, backend, request):
        super().__init__(request, GOOD, -1.0)
        self.backend = backend

    def __iter__(self):
        self.backend.begun.release()
        try:
            for place, word in enumerate(GOOD.split(" ")):
                while place >= self.backend.free and not self.backend.go.wait(0.01):
                    yield Piece("", 0, 0.0)
                self.usage = Usage(7, place + 1)
                yield Piece((" " if place else "") + word, 1, -1.0)
        except GeneratorExit:
            self.backend.given_up.release()
            raise


class HeldBackend(ScriptedBackend):
    """``begun`` and ``given_up`` count; nothing after the first ``free`` words is said before `go`."""

    def __init__(self, free=0):
        super().__init__(GOOD)
        self.free, self.go = free, threading.Event()
        self.begun, self.given_up = threading.Semaphore(0), threading.Semaphore(0)

    def stream(self, requests):
        self.asked += requests
        return [HeldStream(self, request) for request in requests]


class Started(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config):
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def serving(app, **options):
    """The app on a free port; yields (address, server). Ends gracefully."""
    config = uvicorn.Config(app, port=0, access_log=False, log_config=None, server_header=False, **options)
    server = Started(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.listening.wait(30)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class _Model(http.server.BaseHTTPRequestHandler):
    """A model server that always says `GOOD`."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer("application/json", json.dumps({"data": [{"id": "some-model"}]}))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        event = {"choices": [{"delta": {"content": GOOD}}], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}
        self._answer("text/event-stream", f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    def _answer(self, kind, text):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def model_server():
    """Yields what `gonggam serve` calls a model server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Model) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"openai:http://127.0.0.1:{served.server_port}/v1"
        served.shutdown()
