"""What a judge is: a YAML description, one question at a time, one verdict back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from eval.yamls import find_yaml, read_yaml, validated

JUDGES = Path(__file__).parent / "judges"

Method = Literal["exact", "logprobs", "samples"]
"""Where a score came from: every score string's probability in process, an API's top log-probabilities, or samples."""


class Price(BaseModel):
    """US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(0.0, ge=0)
    output: float = Field(0.0, ge=0)


class JudgeSpec(BaseModel):
    """One judge as data.

    ``http`` is any server of the OpenAI kind. Its scores come from ``logprobs`` or from ``samples``, as the YAML says:
    a server that returns no log-probabilities makes the judgement missing, it does not change the method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["http", "local"] = "http"
    model: str = Field(description="Model name for the server, or folder of a local model.")
    method: Method = "logprobs"
    url: str = Field("https://api.openai.com/v1", description="Base URL of the server, up to and with `/v1`.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key.")
    samples: int = Field(20, ge=1, description="Answers drawn for one judgement when `method: samples`.")
    temperature: float | None = Field(
        None, ge=0, description="Of the server; by default 0 for logprobs, 1 for samples."
    )
    top_logprobs: int = Field(20, ge=1, le=20)
    max_tokens: int = Field(16, ge=1, description="Longest form a judge may fill in.")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Further fields of the request.")
    concurrency: int = Field(8, ge=1, description="Requests in flight.")
    requests_per_minute: float | None = Field(None, gt=0)
    timeout: float = Field(60.0, gt=0, description="Seconds for one request.")
    retries: int = Field(5, ge=0, description="Further attempts after 429, 5xx, a timeout or a cut connection.")
    backoff: float = Field(1.0, ge=0, description="Seconds before the first further attempt; doubles each time.")
    price: Price = Price()

    @property
    def identity(self) -> str:
        """Hash over what shapes a verdict (not over speed, price or retries)."""
        shaping = {
            "kind",
            "model",
            "method",
            "url",
            "samples",
            "temperature",
            "top_logprobs",
            "max_tokens",
            "extra_body",
        }
        text = json.dumps(self.model_dump(mode="json", include=shaping), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars for so many tokens."""
        return (prompt_tokens * self.price.input + completion_tokens * self.price.output) / 1e6


@dataclass(frozen=True)
class Question:
    """What a judge is asked: the prompt, the line it completes, and the scores it may give."""

    prompt: str
    form: str
    scores: Sequence[int]

    @property
    def text(self) -> str:
        """Prompt and form as one message."""
        return f"{self.prompt}\n\n{self.form}"


@dataclass(frozen=True)
class Verdict:
    """A judge's answer.

    Attributes:
        method: where the score came from.
        score: expected score under ``probabilities``, or None if there is none (see ``problem``).
        probabilities: score → probability, normalised over the scale.
        outside: probability mass (or share of samples) that fell on no score of the scale, before normalising.
        problem: why the score is missing: `no score`, `several scores`, `refused`, `no logprobs`, `malformed`,
            `timeout`, `connection`, `http 429` ...
        text: the judge's own words, where it gave any.
    """

    method: Method
    score: float | None = None
    probabilities: dict[int, float] = field(default_factory=dict)
    outside: float = 0.0
    problem: str | None = None
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Verdict:
        """Back from JSON, whose keys are always text."""
        probabilities = {int(score): p for score, p in row["probabilities"].items()}
        return cls(**{**row, "probabilities": probabilities})

    @property
    def paid(self) -> bool:
        """False if the judge never answered, so that asking again is worth it."""
        return self.problem is None or not self.problem.startswith(("timeout", "connection", "http "))


class Judge(Protocol):
    """Something that can be asked. ``ask`` is called from ``spec.concurrency`` threads at once."""

    spec: JudgeSpec

    def ask(self, question: Question, seed: int = 0) -> Verdict:
        """Answer one question; never raises for what a single answer can cause."""
        ...

    def write(self, prompt: str, max_tokens: int = 512) -> str:
        """Write free text (evaluation steps)."""
        ...


def judge_names() -> list[str]:
    """Names of the shipped judges."""
    return sorted(path.stem for path in JUDGES.glob("*.yaml"))


def load_judge(judge: str | Path | dict[str, Any]) -> JudgeSpec:
    """A shipped judge by name, one of your own by path, or the content itself.

    Raises:
        UserError: it is missing, no YAML, or not a valid judge (every fault named).
    """
    if isinstance(judge, dict):
        return validated(JudgeSpec, judge, "judge")
    path = find_yaml(judge, JUDGES, "judge")
    return validated(JudgeSpec, read_yaml(path), path)
