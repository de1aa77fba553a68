"""Denoising for encoder-decoders (text infilling, Lewis et al. 2020, https://arxiv.org/abs/1910.13461).

Spans of a text are hidden behind one mask each and the whole text is asked back: from this a model learns to carry
over what it reads, which everything that rewrites a text builds on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

HIDDEN = 0.15
"""Share of a text's tokens that is hidden."""
_LONGEST = 3


class Denoising:
    """A collator: rows of ``input_ids`` to batches of hidden texts with the whole ones as labels.

    Chance comes from torch's generator, so that training that goes on after a stop hides what it would have hidden.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError("denoising needs a mask token")
        self.mask = tokenizer.mask_token_id
        self.special = frozenset(tokenizer.all_special_ids)
        self.collator = DataCollatorForSeq2Seq(tokenizer, model=model)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch as `DataCollatorForSeq2Seq` makes it; of a row's columns ``input_ids`` counts."""
        return self.collator([{"input_ids": self.hide(row["input_ids"]), "labels": row["input_ids"]} for row in rows])

    def hide(self, ids: Sequence[int]) -> list[int]:
        """``ids`` with spans of one to three tokens behind a mask each; special tokens stay."""
        begins = (torch.rand(len(ids)) < 2 * HIDDEN / (1 + _LONGEST)).tolist()
        lengths = torch.randint(1, _LONGEST + 1, (len(ids),)).tolist()
        left, place = [], 0
        while place < len(ids):
            if begins[place] and ids[place] not in self.special:
                left.append(self.mask)
                end = place + lengths[place]
                while place < min(end, len(ids)) and ids[place] not in self.special:
                    place += 1
            else:
                left.append(ids[place])
                place += 1
        return left
