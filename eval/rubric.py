"""Rubrics as data: criteria, scales, evaluation steps and the prompt, from YAML (G-Eval, Liu et al. 2023)."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from eval.yamls import find_yaml, read_yaml, validated
from gonggam.errors import UserError

RUBRICS = Path(__file__).parent / "rubrics"

_FIELDS = {"task", "name", "definition", "steps", "anchors", "history", "reply", "reference", "low", "high"}


class Criterion(BaseModel):
    """One question asked about a reply, answered by a whole number from ``scale[0]`` to ``scale[1]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Name in files and code.")
    name: str = Field(description="Name that people and the judge read.")
    definition: str
    scale: tuple[int, int] = Field(description="Lowest and highest score.")
    steps: tuple[str, ...] = Field((), description="Evaluation steps; if none, the judge writes them once.")
    anchors: dict[str, str] = Field(default_factory=dict, description="Score or range (`3`, `4-5`) to its meaning.")

    @property
    def scores(self) -> tuple[int, ...]:
        """Every score the judge may give."""
        return tuple(range(self.scale[0], self.scale[1] + 1))

    def normalised(self, score: float) -> float:
        """The score on 0..1, so that criteria of different scales can be averaged."""
        low, high = self.scale
        return (score - low) / (high - low)

    @model_validator(mode="after")
    def _check(self) -> Criterion:
        low, high = self.scale
        if not 0 <= low < high <= 100:
            raise ValueError(f"scale {low}-{high} must rise and lie within 0-100")
        seen: dict[int, str] = {}
        for anchor in self.anchors:
            first, _, last = anchor.partition("-")
            if not first.strip().isdigit() or (last and not last.strip().isdigit()):
                raise ValueError(f"anchor {anchor!r} is neither a score nor a range of scores")
            for score in range(int(first), int(last or first) + 1):
                if score in seen:
                    raise ValueError(f"anchors {seen[score]!r} and {anchor!r} overlap at {score}")
                if not low <= score <= high:
                    raise ValueError(f"anchor {anchor!r} lies outside the scale {low}-{high}")
                seen[score] = anchor
        return self


class Rubric(BaseModel):
    """Criteria and the words in which a judge is asked about them.

    ``prompt`` may use {task} {name} {definition} {steps} {anchors} {history} {reply} {reference} {low} {high};
    ``form`` is the line the judge completes with the score; ``steps_prompt`` asks for missing steps;
    ``pair_prompt`` (fields {task} {history} {first} {second}) asks which of two replies is better, 1 or 2, and
    ``pair_form`` is the line completed then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    language: str = "ko"
    source: str = Field("", description="Where the rubric comes from.")
    task: str
    prompt: str
    form: str = "- {name}:"
    steps_prompt: str = ""
    pair_prompt: str = ""
    pair_form: str = "-"
    roles: dict[str, str] = Field(default_factory=dict, description="What roles are called in the prompt.")
    overall: str | None = Field(None, description="Key of the criterion that sums up; else the mean of all on 0-1.")
    criteria: tuple[Criterion, ...] = Field(min_length=1)

    @field_validator("prompt", "form", "steps_prompt", "pair_prompt")
    @classmethod
    def _known_fields(cls, text: str) -> str:
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ValueError(f"{error}; write a literal brace twice") from error
        if unknown := used - _FIELDS - {"first", "second"}:
            raise ValueError(f"unknown field {{{sorted(unknown)[0]}}}; known are {', '.join(sorted(_FIELDS))}")
        return text

    @model_validator(mode="after")
    def _check(self) -> Rubric:
        keys = [criterion.key for criterion in self.criteria]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"criterion {sorted(twice)[0]!r} is defined twice")
        if self.overall is not None and self.overall not in keys:
            raise ValueError(f"overall {self.overall!r} is no criterion of this rubric")
        if "{reply}" not in self.prompt:
            raise ValueError("the prompt does not show the judge the {reply}")
        return self

    @property
    def hash(self) -> str:
        """Twelve hex digits over everything in the rubric: two runs with the same hash were judged alike."""
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def only(self, keys: Sequence[str] | None) -> Rubric:
        """The rubric cut down to some criteria.

        Raises:
            UserError: a key is not among them.
        """
        if keys is None:
            return self
        known = {criterion.key: criterion for criterion in self.criteria}
        if missing := [key for key in keys if key not in known]:
            raise UserError(f"rubric {self.name!r} has no criterion {missing[0]!r}", f"it has {', '.join(known)}")
        overall = self.overall if self.overall in keys else None
        return self.model_copy(update={"criteria": tuple(known[key] for key in keys), "overall": overall})

    def history(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A dialogue as the judge reads it, one turn a line."""
        return "\n".join(f"{self.roles.get(m['role'], m['role'])}: {m['content']}" for m in messages)

    def render(self, criterion: Criterion, item: Mapping[str, Any], reply: str) -> str:
        """The question about one reply under one criterion."""
        return self.prompt.format(
            **self._words(criterion),
            history=self.history(item["messages"]),
            reply=reply,
            reference=item.get("reference", ""),
        ).strip()

    def check_pairs(self) -> None:
        """Refuse duels under a rubric that has no words for them.

        Raises:
            UserError: the rubric has no ``pair_prompt``.
        """
        if not self.pair_prompt:
            raise UserError(f"rubric {self.name!r} has no pair_prompt", "write one, or leave out the pairwise part")

    def render_pair(self, item: Mapping[str, Any], first: str, second: str) -> str:
        """The question which of two replies is better.

        Raises:
            UserError: the rubric has no ``pair_prompt``.
        """
        self.check_pairs()
        history = self.history(item["messages"])
        return self.pair_prompt.format(task=self.task.strip(), history=history, first=first, second=second).strip()

    def render_form(self, criterion: Criterion) -> str:
        """The line that the judge completes with a score."""
        return self.form.format(**self._words(criterion))

    def render_steps_prompt(self, criterion: Criterion) -> str:
        """The request to write evaluation steps for a criterion that has none."""
        return self.steps_prompt.format(**self._words(criterion)).strip()

    def _words(self, criterion: Criterion) -> dict[str, object]:
        return {
            "task": self.task.strip(),
            "name": criterion.name,
            "definition": criterion.definition.strip(),
            "steps": "\n".join(f"{n}. {step}" for n, step in enumerate(criterion.steps, 1)),
            "anchors": "\n".join(f"{score}: {meaning}" for score, meaning in criterion.anchors.items()),
            "low": criterion.scale[0],
            "high": criterion.scale[1],
        }


def rubric_names() -> list[str]:
    """Names of the shipped rubrics."""
    return sorted(path.stem for path in RUBRICS.glob("*.yaml"))


def load_rubric(name_or_path: str | Path) -> Rubric:
    """A shipped rubric by name, or one of your own by path.

    Raises:
        UserError: it is missing, no YAML, or not a valid rubric (every fault named).
    """
    path = find_yaml(name_or_path, RUBRICS, "rubric")
    return validated(Rubric, read_yaml(path), path)
