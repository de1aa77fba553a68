"""Whole conversations: a simulated user talks to the counsellor, everyday troubles and safety scenarios alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from eval.geval import Progress
from eval.yamls import find_yaml, read_yaml, validated

PERSONAS = Path(__file__).parent / "personas" / "personas.yaml"

Messages = list[dict[str, str]]
Write = Callable[[str], str]
"""Prompt → text; `Judge.write` of any judge will do."""


class Persona(BaseModel):
    """Who the simulated user is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    name: str
    sheet: str = Field(description="Age, trouble, manner of speaking.")
    script: tuple[str, ...] = Field(min_length=1, description="What is said where no model plays the user.")
    risk: Literal["none", "high"] = "none"


class Cast(BaseModel):
    """Personas, and the prompt (fields {sheet} {history} {name}) by which a model plays one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    counsellor: str = Field(description="What the counsellor is called in the prompt.")
    personas: tuple[Persona, ...] = Field(min_length=1)
    signs: dict[str, str] = Field(
        default_factory=dict, description="What a reply to someone in danger should show: name to a regular expression."
    )

    @field_validator("signs")
    @classmethod
    def _readable(cls, signs: dict[str, str]) -> dict[str, str]:
        for name, pattern in signs.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name}: no regular expression ({error})") from error
        return signs

    @model_validator(mode="after")
    def _check(self) -> Cast:
        keys = [persona.key for persona in self.personas]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"two personas are called {sorted(twice)[0]!r}")
        return self


def load_cast(path: str | Path = PERSONAS) -> Cast:
    """The shipped cast, or one of your own.

    Raises:
        UserError: it is missing or not valid.
    """
    return validated(Cast, read_yaml(find_yaml(path, PERSONAS.parent, "cast")), path)


def simulate(
    reply: Callable[[Messages], str],
    cast: Cast,
    turns: int = 4,
    write: Write | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Let every persona talk to the counsellor for so many user turns.

    Args:
        reply: the counsellor: messages up to a user turn → its reply.
        cast: who talks to it.
        turns: user turns; a script that is shorter ends the talk earlier.
        write: plays the user after the first line; without it the script is spoken, whatever the counsellor says.
        progress: called as (conversations done, conversations in all).

    Returns:
        Items that can be judged as they are: ``id``, ``category`` (`risk/high` ...), ``messages`` up to the last user
        turn, and ``reply``, the counsellor's last word; ``from_script`` counts the turns for which ``write`` wrote
        nothing, so that the script was spoken.
    """
    found = []
    for done, persona in enumerate(cast.personas, 1):
        messages: Messages = []
        answer, silent = "", 0
        for turn in range(turns if write else min(turns, len(persona.script))):
            if answer:
                messages.append({"role": "assistant", "content": answer})
            said = _play(persona, cast, messages, write) if write and turn else ""
            silent += write is not None and turn > 0 and not said
            messages.append({"role": "user", "content": said or persona.script[min(turn, len(persona.script) - 1)]})
            answer = reply([dict(message) for message in messages])
        talk = {"id": persona.key, "category": f"risk/{persona.risk}", "messages": messages, "reply": answer}
        found.append(talk | {"from_script": silent})
        if progress:
            progress(done, len(cast.personas))
    return found


def _play(persona: Persona, cast: Cast, messages: Sequence[Mapping[str, str]], write: Write) -> str:
    """What the model says in the person's stead: its first line."""
    names = {"user": persona.name, "assistant": cast.counsellor}
    history = "\n".join(f"{names.get(m['role'], m['role'])}: {m['content']}" for m in messages)
    said = write(cast.prompt.format(sheet=persona.sheet, history=history, name=persona.name))
    return said.strip().split("\n")[0].removeprefix(f"{persona.name}:").strip()
