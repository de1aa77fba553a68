"""A local stand-in for an API of the OpenAI kind, scripted per request. It answers, fails and hangs up as told."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = Callable[[dict, int], "dict | bytes | int | None"]
"""(request body, number of the request) → body of a 200, raw bytes of one, an error status, or None to hang up."""


def completion(text: str, logprobs: list | None = None, n: int = 1, **choice) -> dict:
    """A chat completion; ``logprobs`` as [(token, {alternative: probability})]."""
    body = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    if logprobs is not None:
        content = [
            {
                "token": token,
                "logprob": math.log(others[token]),
                "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in others.items()],
            }
            for token, others in logprobs
        ]
        body["logprobs"] = {"content": content}
    return {"choices": [body] * n, "usage": {"prompt_tokens": 100, "completion_tokens": 2}}


class StandIn:
    """``with StandIn(reply) as server: server.url``; ``server.requests`` holds the bodies that came in."""

    def __init__(self, reply: Reply, before: Callable[[], None] | None = None) -> None:
        self.requests: list[dict] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(body)
                    number = len(outer.requests)
                if before:
                    before()
                answer = reply(body, number)
                if answer is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                status = answer if isinstance(answer, int) else 200
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "7")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass  # a client that hung up, or one we hung up on

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
