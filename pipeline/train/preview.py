"""Training rows as the model reads them: tokens, each supervised, context or padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.train.data import sft_rows
from pipeline.train.mask import IGNORE, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["supervised", "context", "padding"]
SHOWN_AS = {"<unused1>": "<sent>"}
"""Free tokens of a vocabulary under the name they have in what is read: KoGPT2's, which stands before a sentiment."""


@dataclass(frozen=True)
class Preview:
    """One row of a batch.

    Attributes:
        tokens: (text, role) of every token, padding to the batch's longest row included.
    """

    tokens: tuple[tuple[str, Role], ...]

    @property
    def counts(self) -> dict[str, int]:
        """Tokens by role."""
        return {role: sum(r == role for _, r in self.tokens) for role in ("supervised", "context", "padding")}


def preview(
    tokenizer: PreTrainedTokenizerBase,
    prepared: Path,
    split: str,
    count: int,
    *,
    system: str | None,
    max_length: int | None,
) -> list[Preview]:
    """The first ``count`` rows of a split as one batch, padded on the right.

    Raises:
        UserError: the split is empty, or a row fails the mask's proof.
    """
    rows = sft_rows(tokenizer, prepared, split, system=system, max_length=max_length)[:count]
    longest = max(len(row.input_ids) for row in rows)
    return [Preview((*_tokens(tokenizer, row), *_padding(tokenizer, longest - len(row.input_ids)))) for row in rows]


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Row) -> list[tuple[str, Role]]:
    texts = [SHOWN_AS.get(text, text) for text in pieces(tokenizer, row.input_ids)]
    return [
        (text, "context" if label == IGNORE else "supervised") for text, label in zip(texts, row.labels, strict=True)
    ]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; together they spell the row.

    A token that ends inside a character adds nothing yet; the one that completes it adds the character. Each is
    decoded after the one before it, since many tokenizers drop a space at the beginning.
    """
    texts: list[str] = []
    before: Sequence[int] = []
    begin = 0
    for end in range(1, len(ids) + 1):
        text = _decode(tokenizer, [*before, *ids[begin:end]])[len(_decode(tokenizer, before)) :]
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
        else:
            texts.append(text)
            before, begin = ids[begin:end], end
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _padding(tokenizer: PreTrainedTokenizerBase, count: int) -> list[tuple[str, Role]]:
    return [(str(tokenizer.pad_token), "padding")] * count
