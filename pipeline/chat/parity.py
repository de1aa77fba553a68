"""Prompt parity: serving builds the token ids that training built; checked whenever a run is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.errors import UserError
from gonggam.files import read_json, write_json
from pipeline.prompt import Message, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "prompt_parity.json"


def write_parity(stage: str | Path, messages: Sequence[Message], prompt_ids: Sequence[int]) -> None:
    """Store a conversation up to a reply, and the ids that a training row held before that reply's first token.

    Args:
        stage: the training stage's folder.
        messages: the turns before the reply, system turn included.
        prompt_ids: ids of the training row up to the reply.
    """
    write_json(Path(stage) / FILE, {"messages": list(map(dict, messages)), "prompt_ids": list(map(int, prompt_ids))})


def check_parity(stage: str | Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a stored conversation was found and gives the same ids now.

    Raises:
        UserError: it gives other ids: tokenizer, template or code changed since training.
    """
    path = Path(stage) / FILE
    if not path.is_file():
        return False
    stored = read_json(path)
    ids = encode(tokenizer, stored["messages"], add_generation_prompt=True)
    if ids != stored["prompt_ids"]:
        at = next((i for i, (a, b) in enumerate(zip(ids, stored["prompt_ids"], strict=False)) if a != b), len(ids))
        raise UserError(
            f"the prompt differs from the one of training (from token {at} on)",
            "tokenizer or chat template changed since: train this stage again with --force",
            file=path,
        )
    return True
