"""Asking a chat model behind any OpenAI-compatible endpoint: concurrent, rate-limited, retried, never paid twice.

Every answer is appended to a cache file at once. A run that is killed and started again asks only what is missing.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from data_prep.answers import Answers, key_of
from gonggam.errors import UserError
from gonggam.progress import Progress

if TYPE_CHECKING:
    import httpx

Message = Mapping[str, str]

#: Tokens a character of Korean text, for estimates before anything is asked.
TOKENS_A_CHARACTER = 0.7


class TeacherOptions(BaseModel):
    """Where the teacher is and how it may be used."""

    model_config = ConfigDict(extra="forbid")

    base_url: str = Field(description="Root of the endpoint, such as https://api.openai.com/v1 or a local vLLM.")
    model: str = Field(description="Model name as the endpoint knows it.")
    api_key_env: str = Field(
        default="OPENAI_API_KEY", description="Environment variable that holds the key, if one is needed."
    )
    temperature: float = Field(default=0.7, ge=0, description="Sampling temperature.")
    max_tokens: int = Field(default=300, ge=1, description="Longest answer in tokens.")
    concurrency: int = Field(default=8, ge=1, description="Requests under way at once.")
    requests_per_minute: float = Field(default=60, gt=0, description="Requests started per minute at most.")
    retries: int = Field(
        default=5, ge=0, description="Further tries after a failure that may pass (429, 5xx, network)."
    )
    timeout: float = Field(default=60, gt=0, description="Seconds to wait for an answer.")
    price_in: float = Field(default=0, ge=0, description="Price of a million prompt tokens.")
    price_out: float = Field(default=0, ge=0, description="Price of a million answer tokens.")


class Teacher:
    """A chat endpoint with a cache.

    Attributes:
        usage: requests, cached, failed, prompt_tokens, completion_tokens (of this run, cached answers not counted).

    Args:
        options: where and how.
        cache: JSON-lines file of answers; made if missing.
        sleep: waits between tries; for tests.
        transport: httpx transport; for tests.
    """

    def __init__(
        self,
        options: TeacherOptions,
        cache: str | Path,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.options = options
        self.usage = dict.fromkeys(("requests", "cached", "failed", "prompt_tokens", "completion_tokens"), 0)
        self._sleep, self._transport = sleep, transport
        self._answers = Answers(cache)
        self._next_start = 0.0
        self._reached = False

    def cost(self) -> float:
        """What this run's tokens cost, in the currency of the prices."""
        o, u = self.options, self.usage
        return (u["prompt_tokens"] * o.price_in + u["completion_tokens"] * o.price_out) / 1e6

    def plan(self, requests: Sequence[Sequence[Message]]) -> dict[str, Any]:
        """What asking would take, without asking: requests, cached, estimated tokens and cost."""
        missing = {key: r for r in requests if (key := self._key(r)) not in self._answers}
        prompt = round(sum(len(m["content"]) for r in missing.values() for m in r) * TOKENS_A_CHARACTER)
        answers = len(missing) * self.options.max_tokens
        cost = (prompt * self.options.price_in + answers * self.options.price_out) / 1e6
        return {
            "requests": len(missing),
            "cached": len(requests) - len(missing),
            "prompt_tokens": prompt,
            "completion_tokens_at_most": answers,
            "cost_at_most": round(cost, 4),
            "minutes_at_least": round(len(missing) / self.options.requests_per_minute, 1),
        }

    def ask_all(self, requests: Sequence[Sequence[Message]], progress: Progress | None = None) -> list[str | None]:
        """The answer to each request, in order; None where every try failed.

        Raises:
            UserError: the endpoint refuses the key, the model or the request, or cannot be reached at all.
        """
        return asyncio.run(self._ask_all(requests, progress))

    async def _ask_all(self, requests: Sequence[Sequence[Message]], progress: Progress | None) -> list[str | None]:
        import httpx

        key = os.environ.get(self.options.api_key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        gate, done = asyncio.Semaphore(self.options.concurrency), 0
        pending = {self._key(r): r for r in requests if self._key(r) not in self._answers}
        self.usage["cached"] += len(requests) - len(pending)

        async def one(name: str, request: Sequence[Message]) -> None:
            nonlocal done
            async with gate:
                answer = await self._ask(client, request)
            if answer is None:
                self.usage["failed"] += 1
            else:
                self._answers.put(name, answer)
            done += 1
            if progress:
                progress(done, len(pending))

        timeout = httpx.Timeout(self.options.timeout)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, transport=self._transport) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for name, request in pending.items():
                        group.create_task(one(name, request))
            except ExceptionGroup as errors:  # `except*` would wrap what is raised here in a group again
                refusals, _ = errors.split(UserError)
                if refusals is None:
                    raise
                raise refusals.exceptions[0] from None
        return [self._answers.get(self._key(request)) for request in requests]

    async def _ask(self, client: httpx.AsyncClient, request: Sequence[Message]) -> str | None:
        import httpx

        body = self._body(request)
        url = self.options.base_url.rstrip("/") + "/chat/completions"
        for attempt in range(self.options.retries + 1):
            await self._wait_for_turn()
            self.usage["requests"] += 1
            wait = min(60.0, 2.0**attempt) * (0.5 + random.random() / 2)
            try:
                response = await client.post(url, json=body)
            except httpx.UnsupportedProtocol as error:
                raise UserError(f"no usable address: {url}", "begin it with https:// or http://") from error
            except httpx.TransportError as error:
                if isinstance(error, httpx.ConnectError) and not self._reached:
                    hint = "start the teacher or correct its address; the same command goes on"
                    raise UserError(f"nobody answers at {url}", hint) from error
                await self._sleep(wait)
                continue
            self._reached = True
            if response.status_code == 200:
                answer = self._answer(response)
                if answer:
                    return answer
            elif response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
                after = response.headers.get("retry-after", "")
                wait = float(after) if after.replace(".", "", 1).isdigit() else wait
            else:
                raise UserError(
                    f"the teacher refuses ({response.status_code} from {url})",
                    f"check the model name and the key in ${self.options.api_key_env}",
                )
            await self._sleep(wait)
        return None

    async def _wait_for_turn(self) -> None:
        """Space the starts of requests evenly."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self.options.requests_per_minute
        if start > now:
            await self._sleep(start - now)

    def _answer(self, response: httpx.Response) -> str | None:
        try:
            body = response.json()
            text = str(body["choices"][0]["message"]["content"] or "").strip()
        except (ValueError, LookupError, TypeError):
            return None
        for name in ("prompt_tokens", "completion_tokens"):
            self.usage[name] += int((body.get("usage") or {}).get(name) or 0)
        return text or None

    def _body(self, request: Sequence[Message]) -> dict[str, Any]:
        o = self.options
        messages = [dict(message) for message in request]
        return {"model": o.model, "messages": messages, "temperature": o.temperature, "max_tokens": o.max_tokens}

    def _key(self, request: Sequence[Message]) -> str:
        return key_of([self.options.base_url, self._body(request)])
