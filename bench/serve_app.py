"""The services that bench/serve.py measures, each in a process of its own: ``python bench/serve_app.py KIND FOLDER``.

``model``: a model folder behind the API, gate off so that a model that was never trained can be measured too.
``stub``: a backend that answers at once, with SQLite and memories in the folder, so that all else is measured.
``light``: the same without the morpheme analyser and the page, which take seconds to load.
All print their address once they listen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import uvicorn
from fastapi import FastAPI

from pipeline.chat.backends import Message, Piece, Request, Usage
from pipeline.chat.counselor import Counselor
from pipeline.chat.options import ChatOptions
from pipeline.serve.app import create_app
from pipeline.serve.options import ServeOptions
from pipeline.serve.server import listen, warm_up
from pipeline.serve.store import Store, default_url

REPLY = "많이 속상하셨겠어요. 지금 가장 마음에 남는 건 무엇인가요?"


class StubStream:
    """The same reply, in one piece."""

    usage = Usage(50, 12)

    def __iter__(self) -> Generator[Piece, None, None]:
        yield Piece(REPLY, 12, -12.0)

    def close(self) -> None:
        """Nothing to give up."""


class StubBackend:
    """Answers at once."""

    name, context = "stub", 4096
    adapters: tuple[str, ...] = ()

    def stream(self, requests: Sequence[Request]) -> list[StubStream]:
        """A ready reply for each."""
        return [StubStream() for _ in requests]

    def count(self, messages: Sequence[Message]) -> int:
        """Characters."""
        return sum(len(message["content"]) for message in messages)

    def score(self, messages: Sequence[Message], reply: str, adapter: str | None = None) -> float | None:
        """Unknown."""
        return None

    def alive(self) -> bool:
        """Always."""
        return True

    def forget(self, session: str) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing to let go of."""


def model_app(folder: Path) -> FastAPI:
    """A model folder behind the API; as many new tokens as asked for."""
    from pipeline.chat.local import load_local

    options = ChatOptions(max_new_tokens=512, gate={"enabled": False, "retries": 0})
    return create_app(Counselor(load_local(str(folder)), options), ServeOptions(parallel=16))


def stub_counselor(folder: Path, **options: Any) -> Counselor:
    """The stub with memories on disk; ``options`` as in `rag.options.MemoryOptions`."""
    from memory import Topics

    from rag.memory import MemoryStore
    from rag.options import MemoryOptions

    return Counselor(StubBackend(), memory=MemoryStore(folder / "memory", Topics(), MemoryOptions(**options)))


def stub_app(folder: Path, *, page: bool = True, **options: Any) -> FastAPI:
    """Rooms in SQLite and memories on disk, as with `gonggam serve`, around the stub."""
    bot = stub_counselor(folder, **options)
    warm_up(bot)
    return create_app(bot, ServeOptions(accounts=True, per_minute=10**6, page=page), Store.open(default_url(folder)))


def serve(kind: str, folder: Path, tell: Callable[[str], object]) -> None:
    """Serve until SIGTERM; ``tell`` is given the address."""
    kinds: dict[str, Callable[[Path], FastAPI]] = {
        "model": model_app,
        "stub": stub_app,
        "light": partial(stub_app, page=False, lexical=0),
    }
    app = kinds[kind](folder)
    with listen(ServeOptions(port=0)) as listening:
        listening.listen(2048)
        tell(f"http://127.0.0.1:{listening.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="error", timeout_keep_alive=60)).run([listening])


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), partial(print, flush=True))
