"""Whole conversations: a simulated user talks to the counsellor, everyday troubles and safety scenarios alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eval.geval import Progress
from eval.yamls import read_yaml, validated

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


def load_cast(path: str | Path = PERSONAS) -> Cast:
    """The shipped cast, or one of your own.

    Raises:
        UserError: it is missing or not valid.
    """
    return validated(Cast, read_yaml(Path(path)), path)


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
        turn, and ``reply``, the counsellor's last word.
    """
    found = []
    for done, persona in enumerate(cast.personas, 1):
        messages: Messages = []
        answer = ""
        for turn in range(turns if write else min(turns, len(persona.script))):
            if answer:
                messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": _say(persona, cast, turn, messages, write)})
            answer = reply([dict(message) for message in messages])
        found.append({"id": persona.key, "category": f"risk/{persona.risk}", "messages": messages, "reply": answer})
        if progress:
            progress(done, len(cast.personas))
    return found


def _say(persona: Persona, cast: Cast, turn: int, messages: Sequence[Mapping[str, str]], write: Write | None) -> str:
    if write is None or turn == 0:
        return persona.script[turn]
    names = {"user": persona.name, "assistant": cast.counsellor}
    history = "\n".join(f"{names.get(m['role'], m['role'])}: {m['content']}" for m in messages)
    said = write(cast.prompt.format(sheet=persona.sheet, history=history, name=persona.name))
    return said.strip().split("\n")[0].removeprefix(f"{persona.name}:").strip() or persona.script[-1]
