"""OpenAI's chat completions on the wire: the request that is understood, and the objects that answer it.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pipeline.chat.reply import Reply
from pipeline.serve.errors import ApiError

# Hints about billing, caching and style that change nothing here; every OpenAI client may send them.
HINTS = (
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning_effort", "safety_identifier", "service_tier", "store", "verbosity",
)  # fmt: skip
# What this service cannot do, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "n": (None, 1),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}

Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Body):
    """A part of a message; texts only."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message; fields of other message types (names, tool calls) are not read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(_Body):
    """The body of POST /v1/chat/completions."""

    model: Annotated[str, Field(max_length=200, examples=["dpo", "dpo:할아버지"])]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    sentiment: Annotated[
        Annotated[str, Field(max_length=64)] | None,
        Field(description="not OpenAI's: what a model trained on sentiments shall answer to; left out: predicted"),
    ] = None
    unsupported: dict[str, Any] = Field(default_factory=dict, exclude=True)

    @classmethod
    def read(cls, body: Any) -> CompletionRequest:
        """A request from parsed JSON: hints are left out, wishes that cannot be met are refused.

        Raises:
            ApiError: 400 with the parameter.
            pydantic.ValidationError: a value is wrong or a parameter unknown.
        """
        if not isinstance(body, dict):
            raise ApiError(400, "The body of the request must be a JSON object.", code="invalid_type")
        for name, neutral in NEUTRAL.items():
            if name in body and body[name] not in neutral:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        return cls.model_validate({key: value for key, value in body.items() if key not in {*HINTS, *NEUTRAL}})

    @property
    def limit(self) -> int | None:
        """Longest reply in tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the reply ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Answer:
    """The objects that answer one request: a whole completion or its chunks.

    Each carries a field ``gonggam`` that OpenAI does not have, with what the counsellor knows of its reply: risk,
    emotion, where the words come from, what was recalled. Clients that do not know the field leave it alone.
    """

    def __init__(self, model: str) -> None:
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, reply: Reply) -> dict[str, Any]:
        """A ``chat.completion``."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(reply)}
        more = {"usage": usage(reply), "gonggam": extras(reply)}
        return {**self.head, "object": "chat.completion", "choices": [choice], "system_fingerprint": None, **more}

    def begin(self) -> str:
        """The first chunk: whose turn it is."""
        return self._event(self._chunk({"role": "assistant", "content": "", "refusal": None}))

    def piece(self, text: str) -> str:
        """A chunk of text."""
        return self._event(self._chunk({"content": text}))

    def end(self, reply: Reply, *, include_usage: bool) -> Iterator[str]:
        """The last chunks."""
        yield self._event({**self._chunk({}, finish_reason(reply)), "gonggam": extras(reply)})
        if include_usage:
            yield self._event({**self._chunk({}), "choices": [], "usage": usage(reply)})
        yield "data: [DONE]\n\n"

    def failure(self, error: ApiError) -> str:
        """What a stream says that cannot go on; OpenAI's client raises it."""
        return self._event(error.body)

    def _chunk(self, delta: dict[str, Any], finished: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finished}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice], "system_fingerprint": None}

    def _event(self, value: dict[str, Any]) -> str:
        return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def usage(reply: Reply) -> dict[str, Any]:
    """Token counts as OpenAI names them."""
    spent = reply.usage
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.prompt_tokens + spent.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens},
    }


def finish_reason(reply: Reply) -> str:
    """``length`` where the model's last sentence was cut by the token limit, else ``stop``."""
    return "length" if reply.source == "model" and "unfinished" in reply.reasons else "stop"


def extras(reply: Reply) -> dict[str, Any]:
    """What the counsellor knows of its reply, without the text."""
    return reply.model_dump(mode="json", exclude={"text", "usage"})
