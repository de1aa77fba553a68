"""Speed of the local backend: many users at once against one after another, and first words late in a session.

Run from the repository root: ``python bench/chat.py [MODEL]``; without a model folder or hub id, a random one of
``--hidden`` and ``--layers`` is made. Replies have ``--tokens`` tokens each; figures hold for the model they are
measured with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from record import ROOT, record

sys.path.insert(0, str(ROOT / "tests"))

from chat_standin import tiny_model

from pipeline.chat.backends import Piece, Request, Settings, Usage, collect
from pipeline.chat.counselor import Counselor
from pipeline.chat.local import TransformersBackend, load_local
from pipeline.chat.options import ChatOptions
from pipeline.prompt import encode, system_prompt

SAID = "오늘 회사에서 팀장님이 제 기획안을 다 뒤집었어요. 너무 허탈하고 눈물이 나려고 해요."


def prompts(users: int) -> list[list[dict[str, str]]]:
    """A first message from every user."""
    return [[{"role": "user", "content": f"{number}번째로 하는 말이에요. {SAID}"}] for number in range(users)]


def endless(backend: TransformersBackend, tokens: int, session: str | None = None) -> Settings:
    """Greedy settings; replies are as long as they may be unless the model ends them."""
    return Settings(max_new_tokens=tokens, temperature=0, repetition_penalty=1.0, session=session)


def clock(call: Callable[[], int]) -> tuple[float, float, int]:
    """Seconds on the wall, seconds of processor time, and what ``call`` returned."""
    wall, processor = time.perf_counter(), time.process_time()
    count = call()
    return time.perf_counter() - wall, time.process_time() - processor, count


def one_by_one(backend: TransformersBackend, talks: list[list[dict[str, str]]], tokens: int) -> int:
    """Tokens written by transformers' own `generate`, one conversation after another."""
    import torch

    written = 0
    for talk in talks:
        ids = torch.tensor([encode(backend.tokenizer, talk)], device=backend.model.device)
        out = backend.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            pad_token_id=backend.tokenizer.pad_token_id or backend.tokenizer.eos_token_id,
        )  # fmt: skip
        written += out.shape[1] - ids.shape[1]
    return written


def at_once(backend: TransformersBackend, talks: list[list[dict[str, str]]], tokens: int) -> int:
    """Tokens written with one thread a user, each asking by itself."""
    written = [0] * len(talks)

    def ask(place: int) -> None:
        found = collect(backend.stream([Request(talks[place], endless(backend, tokens))])[0])
        written[place] = found.usage.completion_tokens

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(talks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(written)


class Timed:
    """The backend, with the seconds from each request to its first piece."""

    def __init__(self, backend: TransformersBackend) -> None:
        self.backend, self.seconds = backend, list[float]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)

    def stream(self, requests: Sequence[Request]) -> list[Timed]:
        """Begin the only request, and wait for its first piece."""
        begun = time.perf_counter()
        self.inner = self.backend.stream(requests)[0]
        self.pieces = iter(self.inner)
        self.first = next(self.pieces, None)
        self.seconds.append(time.perf_counter() - begun)
        return [self]

    def __iter__(self) -> Generator[Piece, None, None]:
        if self.first:
            yield self.first
            yield from self.pieces

    @property
    def usage(self) -> Usage:
        """Of the stream that is being read."""
        return self.inner.usage


def first_tokens(backend: TransformersBackend, turns: int, tokens: int) -> list[float]:
    """Seconds to the first token of every turn of one session with a counsellor."""
    timed: Any = Timed(backend)  # what it lacks of a backend it takes from the one it holds
    options = ChatOptions(max_new_tokens=tokens, temperature=0, gate={"enabled": False})
    counselor = Counselor(timed, options, system=system_prompt("counselor"))
    for turn in range(turns):
        counselor.reply(f"{turn}번째 이야기예요. {SAID[:24]}", session="bench")
    return timed.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="model folder or hub id")
    for name, value in (("users", 16), ("tokens", 64), ("turns", 20), ("hidden", 512), ("layers", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = chosen.model or tiny_model(Path(folder), 8192, hidden=chosen.hidden, layers=chosen.layers)
        backend = load_local(str(made))
    talks = prompts(chosen.users)
    at_once(backend, talks[:1], 4)
    alone = clock(lambda: one_by_one(backend, talks, chosen.tokens))
    together = clock(lambda: at_once(backend, talks, chosen.tokens))
    for name, (wall, processor, written) in (("one after another (generate)", alone), ("at once", together)):
        print(f"{chosen.users} users {name}: {written} tokens, {written / wall:.1f} a second,", end=" ")
        print(f"{1000 * processor / written:.2f} ms of processor time a token")
    rates = [written / wall for wall, _, written in (alone, together)]
    print(f"at once: {rates[1] / rates[0]:.1f} times the tokens a second")
    taken = [1000 * seconds for seconds in first_tokens(backend, chosen.turns, chosen.tokens)]
    print(f"first token: turn 2 {taken[1]:.1f} ms, turn {chosen.turns} {taken[-1]:.1f} ms,", end=" ")
    print(f"{taken[-1] / taken[1]:.2f} times; slowest from turn 3 on {max(taken[2:]):.1f} ms")
    backend.close()
    if chosen == parser.parse_args([]):
        figures = {"times_generate": rates[1] / rates[0], "first_token": taken[-1] / taken[1]}
        record("chat", figures, ["torch", "transformers"])


if __name__ == "__main__":
    main()
