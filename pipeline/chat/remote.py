"""Any server that speaks OpenAI's chat completions: vLLM, llama.cpp, TGI, text-generation-webui ..."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from pipeline.chat.backends import BackendError, Message, Piece, Request, Usage

if TYPE_CHECKING:
    import httpx

# The server renders the template itself and may parse markers in message texts: they are broken before they leave.
_MARKERS = re.compile(r"<\|[^<>|\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|^###(?= )", re.M)


def inert(text: str) -> str:
    """``text`` with the role markers of common templates broken by a space after the first character."""
    return _MARKERS.sub(lambda match: match[0][0] + " " + match[0][1:], text)


class RemoteStream:
    """Pieces of one reply, read from the server as they come."""

    def __init__(self, backend: OpenAIBackend, request: Request) -> None:
        self.request, self.usage, self._backend = request, Usage(), backend

    def __iter__(self) -> Generator[Piece, None, None]:
        tokens = 0
        with (
            _telling(self._backend),
            self._backend.client.stream("POST", "chat/completions", json=self._backend.body(self.request)) as response,
        ):
            if response.status_code != 200:
                raise _refusal(self._backend, response)
            for event in _events(response):
                if self.request.cancelled.is_set():
                    break
                if usage := event.get("usage"):
                    self.usage = Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", tokens))
                for choice in event.get("choices", ())[:1]:
                    if text := (choice.get("delta") or {}).get("content"):
                        found = ((choice.get("logprobs") or {}).get("content")) or []
                        logprob = sum(item["logprob"] for item in found) if found else None
                        piece = Piece(text, len(found) or 1, logprob)
                        tokens += piece.tokens
                        yield piece
        if not self.usage.completion_tokens:
            self.usage = Usage(self.usage.prompt_tokens, tokens)

    def close(self) -> None:
        """Give up: the connection is closed, which makes the server stop."""
        self.request.cancelled.set()


class OpenAIBackend:
    """A model behind ``http://host:port/v1``; adapters are the other models the server offers (vLLM's LoRA modules).

    The key, where one is needed, is read from the environment variable OPENAI_API_KEY.
    """

    def __init__(self, url: str, model: str | None = None, *, timeout_s: float = 60, context: int = 4096) -> None:
        import httpx

        if not re.match(r"https?://[^/\s]+", url):
            raise UserError(f"not an address: {url!r}", "write openai:http://HOST:PORT/v1#MODEL")
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self.client: httpx.Client = httpx.Client(
            base_url=self.url + "/", headers=headers, timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10))
        )
        self.timeout_s = timeout_s
        offered = self._models()
        self.model = model or next(iter(offered), "")
        if not self.model:
            raise BackendError(f"{self.url} names no model", "add #MODEL to the address")
        if offered and self.model not in offered:
            raise BackendError(f"{self.url} does not offer {self.model!r}", f"it offers: {', '.join(offered)}")
        self.name = self.model
        self.context = int(offered.get(self.model, {}).get("max_model_len") or context)
        self.adapters = tuple(name for name in offered if name != self.model)

    def stream(self, requests: Sequence[Request]) -> list[RemoteStream]:
        """See `pipeline.chat.backends.Backend.stream`; the server batches by itself."""
        return [RemoteStream(self, request) for request in requests]

    def count(self, messages: Sequence[Message]) -> int:
        """An upper estimate: no more than one token a character, and eight for a role marker."""
        return sum(len(message["content"]) + 8 for message in messages)

    def score(self, messages: Sequence[Message], reply: str, adapter: str | None = None) -> float | None:
        """Not offered by chat completions: None."""
        return None

    def forget(self, session: str) -> None:
        """Nothing of a session is kept on this side."""

    def alive(self) -> bool:
        """Whether the server tells its models."""
        try:
            self._models()
        except BackendError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def body(self, request: Request) -> dict[str, Any]:
        """What is posted for one request."""
        settings = request.settings
        adapter = None if settings.adapter == "none" else settings.adapter
        body: dict[str, Any] = {
            "model": adapter or self.model,
            "messages": [{"role": m["role"], "content": inert(m["content"])} for m in request.messages],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
        }
        if settings.seed is not None:
            body["seed"] = settings.seed
        return body

    def _models(self) -> dict[str, dict[str, Any]]:
        with _telling(self):
            response = self.client.get("models")
        if response.status_code == 404:  # the list is optional; the model's name is then taken as given
            return {}
        if response.status_code != 200:
            raise _refusal(self, response)
        return {row["id"]: row for row in response.json().get("data", [])}


class _telling:
    """Turns what httpx raises into one line that names the server."""

    def __init__(self, backend: OpenAIBackend) -> None:
        self.backend = backend

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import httpx

        if isinstance(error, httpx.TimeoutException):
            raise BackendError(
                f"{self.backend.url} did not answer within {self.backend.timeout_s:g} s", "raise chat.timeout_s"
            ) from error
        if isinstance(error, httpx.HTTPError | json.JSONDecodeError):
            raise BackendError(f"{self.backend.url} cannot be reached", "is the model server running?") from error


def _refusal(backend: OpenAIBackend, response: httpx.Response) -> BackendError:
    response.read()
    try:
        detail = response.json()
        reason = detail.get("message") or (detail.get("error") or {}).get("message") or ""
    except (ValueError, AttributeError):
        reason = ""
    return BackendError(f"{backend.url} answered {response.status_code} {str(reason)[:200]}".strip())


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    for line in response.iter_lines():
        if line.startswith("data:") and (data := line[5:].strip()) and data != "[DONE]":
            yield json.loads(data)
