"""Personas (말투): files that say how replies sound, spoken by the language model or by a seq2seq converter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from gonggam.errors import UserError
from gonggam.files import read_json
from pipeline.chat.resources import DATA, data

DEFAULT = "기본"
STYLES = "styles.json"
"""In a converter's folder: the styles it was trained on. Replies in other manners are left as they are."""


@dataclass(frozen=True)
class Persona:
    """A manner of speech.

    Attributes:
        name: as users choose it.
        description: one line for people.
        instruction: for the language model; empty for the default, which is how the model was trained.
        examples: (plain, styled) pairs.
    """

    name: str
    description: str
    instruction: str
    examples: tuple[tuple[str, str], ...]

    def system(self, base: str | None) -> str | None:
        """The system prompt with this persona's instruction and examples added."""
        if not self.instruction:
            return base
        shown = "\n".join(f"- {plain} → {styled}" for plain, styled in self.examples)
        heading = data("texts")["persona_examples"]
        return "\n\n".join(filter(None, [base, self.instruction, f"{heading}\n{shown}" if shown else ""]))


@cache
def personas() -> dict[str, Persona]:
    """All personas by name, the default first."""
    found = []
    for path in sorted((DATA / "personas").glob("*.yaml")):
        raw = yaml.safe_load(path.read_text("utf-8"))
        examples = tuple((row["plain"], row["styled"]) for row in raw.get("examples", ()))
        found.append(Persona(raw["name"], raw["description"], raw.get("instruction", ""), examples))
    found.sort(key=lambda persona: persona.name != DEFAULT)
    return {persona.name: persona for persona in found}


def persona(name: str) -> Persona:
    """The persona of this name.

    Raises:
        UserError: there is none.
    """
    if name not in personas():
        raise UserError(f"no persona {name!r}", f"choose one of: {', '.join(personas())}")
    return personas()[name]


def load_converter(model: str) -> Callable[[str, Persona], str]:
    """A seq2seq model that rewrites a reply, prompted as KoJLabs' style transfer is: ``말투 형식으로 변환:문장``.

    Raises:
        UserError: the model cannot be loaded.
    """
    from transformers import AutoModelForSeq2SeqLM

    from pipeline.model import hub_errors, load_tokenizer

    tokenizer = load_tokenizer(model)
    with hub_errors(model):
        network = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    known = Path(model) / STYLES
    styles = set(read_json(known)) if known.is_file() else None

    def convert(text: str, manner: Persona) -> str:
        if not manner.instruction or (styles is not None and manner.name not in styles):
            return text
        ids = tokenizer(style_prompt(text, manner.name), return_tensors="pt").input_ids
        if ids.shape[1] > min(tokenizer.model_max_length, network.config.max_position_embeddings):
            return text  # half a reply in another manner is worse than the whole one in its own
        made = network.generate(input_ids=ids, max_new_tokens=2 * ids.shape[1] + 16)
        return tokenizer.decode(made[0], skip_special_tokens=True).strip() or text

    return convert


def style_prompt(text: str, style: str) -> str:
    """What a style converter reads, in training and serving: the form of KoJLabs' models."""
    return f"{style} 형식으로 변환:{text}"
