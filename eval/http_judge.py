"""A judge behind an API of the OpenAI kind: log-probabilities or samples, retried with patience, never guessed."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from eval.judges import JudgeSpec, Question, Verdict
from eval.scoring import expected_score, logprob_weights, parse_score
from gonggam.errors import UserError

_WORTH_RETRYING = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class HttpJudge:
    """Asks a chat-completions endpoint. Safe for threads.

    Args:
        spec: a judge of kind ``http``.
        environment: where the key is looked up.
        transport: an ``httpx`` transport in place of the network.
        sleep: how to wait before a further attempt.

    Raises:
        UserError: the environment variable with the key is not set.
    """

    def __init__(
        self,
        spec: JudgeSpec,
        environment: Mapping[str, str] = os.environ,
        transport: Any = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        if spec.kind != "http":
            raise UserError(f"judge {spec.name} is not reached by http", "hand a loaded model to LocalJudge")
        self.spec = spec
        headers = {}
        if spec.api_key_env:
            if not environment.get(spec.api_key_env):
                raise UserError(
                    f"judge {spec.name} needs a key", f"put it into the environment variable {spec.api_key_env}"
                )
            headers["Authorization"] = f"Bearer {environment[spec.api_key_env]}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=spec.concurrency)
        self._client = httpx.Client(
            base_url=spec.url.rstrip("/") + "/", headers=headers, timeout=spec.timeout, limits=limits,
            transport=transport, trust_env=transport is None,
        )  # fmt: skip
        self._sleep = sleep
        self._reached = False
        self._pace = _Pace(spec.requests_per_minute, sleep)

    def ask(self, question: Question, seed: int = 0) -> Verdict:
        """The expected score by the spec's method. What goes wrong with one answer is told in its ``problem``.

        Raises:
            UserError: what would go wrong with every answer: nobody there, no such model, a key that is refused.
        """
        answer = self._complete(question.text, self.spec.max_tokens, self._sampling(seed))
        if isinstance(answer, str):
            return Verdict(self.spec.method, problem=answer)
        return read_answer(answer, question, self.spec)

    def write(self, prompt: str, max_tokens: int = 512) -> str:
        """Write free text.

        Raises:
            UserError: the server does not answer.
        """
        answer = self._complete(prompt, max_tokens, {"temperature": 0})
        if isinstance(answer, str):
            raise UserError(f"judge {self.spec.name} did not answer ({answer})", "try again later")
        return _content(answer["choices"][0]).strip()

    def _sampling(self, seed: int) -> dict[str, Any]:
        if self.spec.method == "logprobs":
            temperature = 0.0 if self.spec.temperature is None else self.spec.temperature
            return {"temperature": temperature, "logprobs": True, "top_logprobs": self.spec.top_logprobs, "seed": seed}
        temperature = 1.0 if self.spec.temperature is None else self.spec.temperature
        return {"temperature": temperature, "n": self.spec.samples, "seed": seed}

    def _complete(self, text: str, max_tokens: int, sampling: Mapping[str, Any]) -> dict[str, Any] | str:
        """The server's answer, or why there is none after all attempts."""
        body = {
            "model": self.spec.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            **sampling,
            **self.spec.extra_body,
        }
        problem = ""
        for attempt in range(self.spec.retries + 1):
            self._pace.wait()
            answer, problem, wait = self._attempt(body)
            if answer is not None:
                return answer
            if attempt < self.spec.retries:
                self._sleep(max(wait, self.spec.backoff * 2**attempt * random.uniform(0.75, 1.25)))
        return problem

    def _attempt(self, body: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str, float]:
        """(answer, problem, seconds the server asks us to wait)."""
        import httpx

        try:
            response = self._client.post("chat/completions", json=body)
        except httpx.TimeoutException:
            return None, "timeout", 0.0
        except httpx.TransportError as error:
            if isinstance(error, httpx.ConnectError) and not self._reached:
                hint = "start it or correct its url; the same command goes on"
                raise UserError(f"nobody answers for judge {self.spec.name} at {self.spec.url}", hint) from error
            return None, "connection", 0.0
        self._reached = True
        if response.status_code in _WORTH_RETRYING:
            return None, f"http {response.status_code}", _retry_after(response.headers)
        if response.status_code != 200:
            raise UserError(
                f"judge {self.spec.name} refused the request (http {response.status_code}: {response.text[:200]})",
                "check url, model and key",
            )
        try:
            answer = response.json()
            choices = answer["choices"]
        except (ValueError, KeyError, TypeError):
            return None, "malformed", 0.0
        return (answer, "", 0.0) if isinstance(choices, list) and choices else (None, "malformed", 0.0)


def read_answer(answer: Mapping[str, Any], question: Question, spec: JudgeSpec) -> Verdict:
    """A verdict out of one chat completion."""
    usage = answer.get("usage") or {}
    tokens = {key: int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")}
    read = _from_samples if spec.method == "samples" else _from_logprobs
    weights, problem, text = read(answer["choices"], question)
    score, probabilities, outside = expected_score(weights)
    if score is None and problem is None:
        problem = "no score"
    if problem is not None:
        return Verdict(spec.method, None, {}, outside, problem, text, **tokens)
    return Verdict(spec.method, score, probabilities, outside, None, text, **tokens)


def _from_logprobs(choices: list[Any], question: Question) -> tuple[dict[int, float], str | None, str]:
    choice = choices[0]
    text = _content(choice)
    if _refused(choice):
        return {}, "refused", text
    _, problem = parse_score(text, question.scores)
    if problem is not None:
        return {}, problem, text
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return {}, "no logprobs", text
    tokens = [
        (t["token"], {**{o["token"]: o["logprob"] for o in t.get("top_logprobs") or []}, t["token"]: t["logprob"]})
        for t in content
    ]
    return logprob_weights(tokens, question.scores) or {}, None, text


def _from_samples(choices: list[Any], question: Question) -> tuple[dict[int, float], str | None, str]:
    texts = [_content(choice) for choice in choices]
    read = [parse_score(text, question.scores) for text in texts]
    found = Counter(score for score, _ in read if score is not None)
    problem = None
    if not found:
        problem = "refused" if all(map(_refused, choices)) else read[0][1]
    return {score: count / len(choices) for score, count in found.items()}, problem, texts[0]


def _content(choice: Mapping[str, Any]) -> str:
    message = choice.get("message") or {}
    return str(message.get("content") or message.get("refusal") or "")


def _refused(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message") or {}
    return bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return min(120.0, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:
        return 0.0


class _Pace:
    """Spaces requests evenly so that no more than so many start in a minute."""

    def __init__(self, per_minute: float | None, sleep: Callable[[float], None]) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock, self._sleep = 0.0, threading.Lock(), sleep

    def wait(self) -> None:
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
        if start > now:
            self._sleep(start - now)
