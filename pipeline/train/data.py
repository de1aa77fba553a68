"""From the prepared files to rows of token ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from gonggam.errors import UserError
from gonggam.files import read_jsonl
from gonggam.progress import Progress
from pipeline.prompt import encode, with_system
from pipeline.train.mask import IGNORE, Row, Unwritable, supervise, windows

T = TypeVar("T")


def conversations(prepared: Path, split: str) -> list[dict[str, Any]]:
    """The conversations of a split, as the prepare stage wrote them."""
    return list(read_jsonl(prepared / "messages" / f"{split}.jsonl"))


def pairs(prepared: Path, split: str) -> list[dict[str, Any]]:
    """The preference pairs of a split; none if the data has none."""
    path = prepared / "preference" / f"{split}.jsonl"
    return list(read_jsonl(path)) if path.is_file() else []


def sft_rows(
    tokenizer: PreTrainedTokenizerBase,
    prepared: Path,
    split: str,
    *,
    system: str | None,
    max_length: int | None,
    progress: Progress | None = None,
) -> list[Row]:
    """Training rows of a split, every reply supervised once (see `pipeline.train.mask`).

    Raises:
        UserError: a row fails the mask's proof or cannot fit ``max_length``; or the split is empty.
    """
    found = conversations(prepared, split)
    if not found:
        raise UserError(f"no conversations in the {split} split", "prepare more data", file=prepared)

    def build(conversation: dict[str, Any]) -> list[Row]:
        # Replies that another row teaches are context here, so that no reply is taught twice.
        first = _replies(conversation["messages"][: conversation.get("given", 0)])
        messages = with_system(conversation["messages"], system)
        return windows(tokenizer, messages, max_length, first=first, name=conversation["id"])

    return writable(found, build, f"conversations of the {split} split", progress)


def writable(
    items: Sequence[dict[str, Any]],
    build: Callable[[dict[str, Any]], list[T]],
    what: str,
    progress: Progress | None = None,
) -> list[T]:
    """What ``build`` makes of the items, without those that have a reply which the vocabulary cannot write.

    A vocabulary without bytes (KoGPT2's, KoBERT's) lacks rare syllables and emoji, and no model is to be taught to say
    its unknown token. How many were left out is logged.

    Raises:
        Unwritable: more than a tenth would be left out, so that the tokenizer rather than the data is at fault.
    """
    rows: list[T] = []
    refused: list[Unwritable] = []
    for number, item in enumerate(items, 1):
        try:
            rows += build(item)
        except Unwritable as error:
            refused.append(error)
        if progress and (number % 64 == 0 or number == len(items)):
            progress(number, len(items))
    if len(refused) > len(items) / 10:
        raise refused[0]
    if refused:
        logging.getLogger(__name__).warning(
            "%d of %d %s are left out: %s", len(refused), len(items), what, refused[0].what
        )
    return rows


def first_prompt(prepared: Path, row: Row, system: str | None) -> tuple[list[dict[str, str]], list[int]]:
    """The turns before the first reply of the conversation of a training ``row``, and the ids it holds before that."""
    talk = next(talk for talk in read_jsonl(prepared / "messages" / "train.jsonl") if talk["id"] == row.name)
    messages = with_system(talk["messages"], system)
    turns = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    ids = next(i for i, label in enumerate(row.labels) if label != IGNORE)
    return messages[:turns], row.input_ids[:ids]


def dpo_rows(
    tokenizer: PreTrainedTokenizerBase, prepared: Path, split: str, *, system: str | None, max_length: int | None
) -> list[dict[str, Any]]:
    """Preference rows ``{id, prompt_ids, chosen_ids, rejected_ids}``, both replies ending in EOS.

    A prompt that is too long drops whole old exchanges until both replies fit.

    Raises:
        UserError: a reply alone cannot fit ``max_length``, or the mask's proof fails.
    """

    def build(pair: dict[str, Any]) -> list[dict[str, Any]]:
        return [pair_row(tokenizer, pair, system, max_length)]

    return writable(pairs(prepared, split), build, f"pairs of the {split} split")


def pair_row(
    tokenizer: PreTrainedTokenizerBase, pair: dict[str, Any], system: str | None, max_length: int | None
) -> dict[str, Any]:
    """One row of `dpo_rows`, from a pair ``{id, prompt, chosen, rejected}`` of messages."""
    for prompt in _shortened(with_system(pair["prompt"], system)):
        prompt_ids = encode(tokenizer, prompt)
        replies = {
            side: _reply_ids(supervise(tokenizer, [*prompt, *pair[side]], first=_replies(prompt), name=pair["id"]))
            for side in ("chosen", "rejected")
        }
        if max_length is None or len(prompt_ids) + max(map(len, replies.values())) <= max_length:
            return {
                "id": pair["id"],
                "prompt_ids": prompt_ids,
                "chosen_ids": replies["chosen"],
                "rejected_ids": replies["rejected"],
            }
    raise UserError(
        f"pair {pair['id']}: its last exchange alone is longer than max_length={max_length} tokens",
        "raise max_length, or drop such pairs in prepare",
    )


def _replies(messages: list[dict[str, str]]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _reply_ids(row: Row) -> list[int]:
    return [label for label in row.labels if label != IGNORE]


def _shortened(messages: list[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """The prompt, then the prompt without its oldest exchange, and so on down to the last user turn."""
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    starts = [
        i for i, turn in enumerate(turns) if turn["role"] == "user" and (i == 0 or turns[i - 1]["role"] != "user")
    ]
    for start in starts or [0]:
        yield [*system, *turns[start:]]
