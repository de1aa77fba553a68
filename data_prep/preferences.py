"""Building preference pairs (prompt, chosen, rejected) for conversations.

Three ways: a teacher writes both replies (`from_teacher`), the teacher writes the chosen and the model at hand the
rejected one (the same with ``policy``), or the model's own samples are ranked by a judge (`from_samples`), which keeps
the pairs on policy. Files of pairs are read by the reader ``pairs``. See `data_prep.pair_audit` for the check after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isnan
from pathlib import Path
from typing import Any
from zlib import crc32

from data_prep.conversation import Conversation, Turn, letters
from data_prep.formats import preference_rows
from data_prep.sources import read
from data_prep.teacher import Teacher
from gonggam.errors import UserError
from gonggam.progress import Progress

Messages = list[dict[str, str]]
Judge = Callable[[Sequence[tuple[Messages, str]], Progress | None], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Prompts:
    """System prompts for the teacher: one for good replies, several ways of going wrong for the rejected ones."""

    chosen: str
    rejected: tuple[str, ...]


def load_prompts(chosen: str | Path | None = None, rejected: str | Path | None = None) -> Prompts:
    """Prompts from text files, by default the packaged ones; rejected ones are parted by lines of ``---``.

    Raises:
        UserError: a file is missing or empty.
    """
    folder = Path(__file__).parent / "prompts"
    good = _text(Path(chosen or folder / "chosen.txt"))
    bad = _text(Path(rejected or folder / "rejected.txt"))
    return Prompts(good, tuple(part.strip() for part in bad.split("\n---\n") if part.strip()))


def _text(path: Path) -> str:
    if not path.is_file() or not (text := path.read_text("utf-8").strip()):
        raise UserError("prompt file is missing or empty", file=path)
    return text


def by_split(data: str, rows: int | None = None, *, pairs: bool = False) -> dict[str, list[Conversation]]:
    """The conversations of a prepared folder by split, or those of other files under ``pairs``.

    Args:
        data: a folder that preparation wrote, or what `data_prep.sources.read` reads.
        rows: at most this many of each split.
        pairs: of a prepared folder take its preference pairs, not its conversations.

    Raises:
        UserError: nothing is there, or no conversation in it.
    """
    folder = Path(data) / ("preference" if pairs and (Path(data) / "preference").is_dir() else "messages")
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl")) if path.stat().st_size} or {"pairs": Path(data)}
    splits = {
        split: list(islice((c for *_, c in read(None, str(path)) if isinstance(c, Conversation)), rows))
        for split, path in files.items()
    }
    if not any(splits.values()):
        raise UserError("no conversation in it", "prepare the data first: gonggam data prepare", file=data)
    return splits


def from_pairs(conversations: Iterable[Conversation]) -> list[dict[str, Any]]:
    """Rows for conversations that bring their rejected replies, as files of pairs do.

    Raises:
        UserError: none of them does.
    """
    made = [
        row
        for conversation in conversations
        for row in preference_rows(replace(conversation, id=conversation.id or f"pair-{conversation.root():016x}"))
    ]
    if not made:
        raise UserError(
            "these conversations bring no rejected replies", "name a teacher that writes them: --teacher URL"
        )
    return made


def prompt_of(conversation: Conversation) -> Messages:
    """What is answered: the conversation up to its last user turn."""
    return replace(conversation, turns=_answered(conversation)).messages()


def _answered(conversation: Conversation) -> tuple[Turn, ...]:
    turns = list(conversation.turns)
    while turns and turns[-1].role != "user":
        turns.pop()
    return tuple(turns)


def teacher_requests(
    conversations: Iterable[Conversation], prompts: Prompts, *, rejected: bool = True
) -> list[list[dict[str, str]]]:
    """All that `from_teacher` asks: the chosen replies, then the rejected ones if the teacher writes these too."""
    asked = [prompt_of(conversation) for conversation in conversations]
    requests = [_with_system(prompts.chosen, prompt) for prompt in asked]
    if rejected:
        requests += [_with_system(_way(prompts.rejected, prompt), prompt) for prompt in asked]
    return requests


def from_teacher(
    conversations: Sequence[Conversation],
    teacher: Teacher,
    prompts: Prompts,
    *,
    policy: Callable[[Messages], str] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Pairs whose chosen reply the teacher wrote.

    Args:
        conversations: prompts are taken from them up to the last user turn.
        teacher: asked for the chosen and, without ``policy``, for the rejected replies.
        prompts: see `load_prompts`.
        policy: writes the rejected replies, such as the model after SFT.
        progress: called as ``progress(done, total)``.

    Returns:
        Rows ``id, source, prompt, chosen, rejected``; conversations that could not be answered are left out.

    Raises:
        UserError: see `Teacher.ask_all`.
    """
    requests = teacher_requests(conversations, prompts, rejected=policy is None)
    answers = teacher.ask_all(requests, progress)
    chosen = answers[: len(conversations)]
    if policy is None:
        rejected = answers[len(conversations) :]
    else:
        rejected = [policy(prompt_of(c)) if good else None for c, good in zip(conversations, chosen, strict=True)]
    return [
        row
        for conversation, good, bad in zip(conversations, chosen, rejected, strict=True)
        for row in _pair(conversation, good, bad)
    ]


def from_samples(
    conversations: Sequence[Conversation],
    sample: Callable[[Messages, int], Sequence[str]],
    judge: Judge,
    *,
    n: int = 4,
    margin: float = 0.0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Pairs of the best and the worst of ``n`` samples.

    Args:
        conversations: prompts are taken from them up to the last user turn.
        sample: ``sample(prompt, n)`` gives replies of the model that is to be aligned.
        judge: ``judge([(prompt, reply), ...], progress)`` gives a score each, NaN where it could not tell. It is
            handed all replies at once, so that as many requests can be under way as it allows.
        n: samples a prompt, two at least.
        margin: pairs whose scores differ by no more than this are left out.
        progress: called as ``progress(done, total)``, first of the prompts sampled, then of what is judged.
    """
    drawn: list[list[str]] = []
    for done, conversation in enumerate(conversations, 1):
        said = (text.strip() for text in sample(prompt_of(conversation), max(2, n)))
        drawn.append(list(dict.fromkeys(filter(None, said))))
        if progress:
            progress(done, len(conversations))
    work = zip(conversations, drawn, strict=True)
    asked = [(prompt_of(conversation), reply) for conversation, replies in work for reply in replies]
    scores = iter(judge(asked, progress))
    rows: list[dict[str, Any]] = []
    for conversation, replies in zip(conversations, drawn, strict=True):
        scored = [(score, reply) for reply, score in zip(replies, islice(scores, len(replies)), strict=True)]
        told = [pair for pair in scored if not isnan(pair[0])]
        if len(told) > 1 and max(told)[0] - min(told)[0] > margin:
            rows += _pair(conversation, max(told)[1], min(told)[1])
    return rows


def teacher_judge(teacher: Teacher) -> Judge:
    """A judge for `from_samples` that asks the teacher for a score from 1 to 10."""
    instruction = _text(Path(__file__).parent / "prompts" / "judge.txt")

    def judge(replies: Sequence[tuple[Messages, str]], progress: Progress | None = None) -> list[float]:
        talks = ([*prompt, {"role": "assistant", "content": reply}] for prompt, reply in replies)
        said = (json.dumps(talk, ensure_ascii=False) for talk in talks)
        asked = [_with_system(instruction, [{"role": "user", "content": text}]) for text in said]
        numbers = [re.search(r"\d+", answer or "") for answer in teacher.ask_all(asked, progress)]
        return [float(m[0]) if m and 1 <= int(m[0]) <= 10 else float("nan") for m in numbers]

    return judge


def _pair(conversation: Conversation, good: str | None, bad: str | None) -> list[dict[str, Any]]:
    if not good or not bad or letters(good) == letters(bad):
        return []
    turns = (*_answered(conversation), Turn("assistant", good))
    return preference_rows(replace(conversation, turns=turns, rejected=(bad,)))


def _way(ways: Sequence[str], prompt: Messages) -> str:
    """One of the ways to go wrong, the same for the same prompt each time."""
    return ways[crc32(prompt[-1]["content"].encode("utf-8", "replace")) % len(ways)]


def _with_system(system: str, prompt: Messages) -> Messages:
    return [{"role": "system", "content": system}, *(m for m in prompt if m["role"] != "system")]
