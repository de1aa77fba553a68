"""Which tokens the loss is on: every reply with the token that ends it, and nothing else, proven row by row.

The labels come from our own rendering of the model's chat template, not from a template's generation markers, which
most Korean models lack. For each reply three things are checked, and a row that fails one stops the run:

1. the text before the reply, rendered alone with the generation prompt, is a prefix of the whole conversation's text;
2. its token ids are a prefix of the whole conversation's ids, so that serving sees what training saw;
3. the supervised ids decode to the reply and the end-of-sequence token, letter for letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gonggam.errors import UserError
from pipeline.prompt import Message, encode, end_of_turn, inert, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100


class Unwritable(UserError):
    """A reply holds characters that the tokenizer's vocabulary lacks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: ``input_ids`` and ``labels`` of equal length, labels -100 where no loss is taken.

    ``name`` is how messages to the user call it.
    """

    input_ids: list[int]
    labels: list[int]
    name: str = ""

    @property
    def supervised(self) -> int:
        """Number of tokens the loss is on."""
        return sum(label != IGNORE for label in self.labels)


def supervise(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, first: int = 0, name: str = "row"
) -> Row:
    """Token ids and labels of a conversation, with loss on every reply from the ``first`` one on (0-based).

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: system turn (optional), then user and assistant turns.
        first: replies before this one are context only.
        name: how errors call this row.

    Raises:
        Unwritable: a reply holds characters that the vocabulary lacks.
        UserError: the template does not keep prefixes, a reply does not end in EOS, or the supervised tokens do not
            spell the reply.
    """
    text = render(tokenizer, messages)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    labels = [IGNORE] * len(ids)
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in replies[first:]:
        prefix = render(tokenizer, messages[:i], add_generation_prompt=True)
        reply = inert(tokenizer, messages[i]["content"]).strip()
        start, end = _span(tokenizer, text, prefix, reply, name)
        context = encode(tokenizer, messages[:i])
        if ids[: len(context)] != context:
            raise UserError(
                f"{name}: the tokens before reply {i} change when the reply follows",
                "the chat template must end its generation prompt at a token boundary",
            )
        stop = next((k for k, (left, _) in enumerate(offsets) if left >= end), None)
        said = slice(len(context), stop)
        labels[said] = ids[said]
        pieces = [text[left:right] for left, right in offsets[said]]
        _prove(tokenizer, ids[said], pieces, text[start:end], name)
    return Row(ids, labels, name)


def windows(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    max_length: int | None,
    *,
    first: int = 0,
    name: str = "row",
) -> list[Row]:
    """Rows of at most ``max_length`` tokens that together supervise every reply from the ``first`` on exactly once.

    A conversation that fits is one row. A longer one is cut between exchanges: later rows drop whole old exchanges
    (never the system turn) and supervise only the replies that no earlier row did.

    Raises:
        UserError: as `supervise`; or one exchange alone is longer than ``max_length``.
    """
    whole = supervise(tokenizer, messages, first=first, name=name)
    if max_length is None or len(whole.input_ids) <= max_length:
        return [whole]
    lead = int(messages[0]["role"] == "system")
    system, turns = messages[:lead], messages[lead:]
    ends = [i + 1 for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    starts = [0, *ends[:-1]]
    rows: list[Row] = []
    done, begin = first, 0
    while done < len(ends):
        row = None
        for last in range(len(ends), done, -1):
            candidate = supervise(
                tokenizer, [*system, *turns[starts[begin] : ends[last - 1]]], first=done - begin, name=name
            )
            if len(candidate.input_ids) <= max_length:
                row, done = candidate, last
                break
        if row is not None:
            rows.append(row)
        elif begin == done:
            raise UserError(
                f"{name}: exchange {done + 1} alone exceeds max_length={max_length}, its reply would be cut",
                "raise max_length, or drop such rows in prepare",
            )
        else:
            begin += 1
    return rows


def _span(tokenizer: PreTrainedTokenizerBase, text: str, prefix: str, reply: str, name: str) -> tuple[int, int]:
    """Where a reply and its EOS stand in the rendered text (characters)."""
    if not text.startswith(prefix):
        raise UserError(
            f"{name}: the chat template of {tokenizer.name_or_path} does not keep prefixes "
            "(what stands before a reply changes when the reply follows), so no exact mask can be made",
            "set model.chat_template to one that keeps them",
        )
    for stop in filter(None, _ends(tokenizer)):
        said, found, _ = text[len(prefix) :].partition(stop)
        if found and said.strip() == reply:
            return len(prefix), len(prefix) + len(said) + len(stop)
    raise UserError(
        f"{name}: the chat template does not end a reply with the end-of-sequence token {tokenizer.eos_token!r}",
        "set model.chat_template to one that does, else the model never learns to stop",
    )


def _ends(tokenizer: PreTrainedTokenizerBase) -> Iterator[str | None]:
    yield tokenizer.eos_token
    yield end_of_turn(tokenizer)  # asked of the template only where it is not EOS


def _prove(tokenizer: PreTrainedTokenizerBase, ids: list[int], pieces: list[str], expected: str, name: str) -> None:
    """Check that the supervised ids, which stand for these ``pieces`` of text, spell the reply and EOS."""
    unknown = tokenizer.unk_token_id
    if unknown in ids and unknown != tokenizer.eos_token_id:  # GPT-2's is its EOS, and it lacks no character
        lacking = pieces[ids.index(unknown)]
        raise Unwritable(
            f"{name}: the vocabulary of {tokenizer.name_or_path} lacks {lacking[:20]!r} of a reply",
            "clean the row or choose another base model",
        )
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None:
        expected = normalizer.normalize_str(expected)
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    # SentencePiece writes a blank as ▁, and its normaliser puts one in front of every text.
    if decoded.replace("▁", " ").strip() != expected.replace("▁", " ").strip():
        raise UserError(
            f"{name}: the supervised tokens spell {decoded[:80]!r}, not the reply",
            "the tokenizer cannot write this reply; clean the row or choose another base model",
        )
