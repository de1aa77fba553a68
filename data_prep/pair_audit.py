"""Audit of preference pairs: what makes DPO learn something else than the preference.

A model that is shown chosen replies which are simply longer learns to write longer replies (Singhal et al. 2023, "A
Long Way to Go"; Park et al. 2024, "Disentangling Length from Quality in DPO"), so it is said how far length alone
tells the two apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.audit import audit
from data_prep.conversation import Conversation, letters
from data_prep.near import near_duplicates
from data_prep.sources import read

Level = Literal["error", "warning", "note"]

#: How far the share of pairs in which chosen is longer may be from one half before it is warned of, and failed.
LENGTH_WARNING, LENGTH_ERROR = 0.15, 0.35

#: Of fewer pairs a coin too falls on one side: length is warned of, not failed.
FEW = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how many pairs it concerns and what to make of it."""

    level: Level
    what: str
    count: int
    examples: list[str] = field(default_factory=list)


def audit_pairs(
    path: str | Path,
    *,
    max_length: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    evaluation: Sequence[str | Path] = (),
    near: float = 0.85,
) -> tuple[dict[str, Any], list[Finding]]:
    """Audit a file of pairs (prompt, chosen, rejected); a row with several rejected replies is as many pairs.

    Args:
        path: file or folder of pairs, in any form that the reader ``pairs`` knows.
        max_length: longest prompt and reply together, in tokens; pairs above it would be cut.
        count_tokens: counts the tokens of a text; without it 0.7 tokens a character are assumed.
        evaluation: files that must not share a beginning of two turns or more with the pairs.
        near: Jaccard similarity from which on two prompts are near duplicates.

    Returns:
        Figures (among them ``chosen_longer``, the share of pairs in which chosen is longer, ties half) and the
        findings, worst first.
    """
    pairs: list[Conversation] = []
    unread: Counter[str] = Counter()
    for _, _, outcome in read("pairs", str(path)):
        if isinstance(outcome, str):
            unread[outcome] += 1
        else:
            pairs += (replace(outcome, rejected=(text,)) for text in outcome.rejected)
    findings = [Finding("error", f"rows that are no pair: {reason}", count) for reason, count in sorted(unread.items())]
    findings += _sameness(pairs) + _prompts(pairs, near)
    figures, length = _lengths(pairs)
    findings.append(length)
    if max_length:
        findings.append(_cut(pairs, max_length, count_tokens or (lambda text: round(0.7 * len(text)))))
    if evaluation:
        leaks = audit([f"train={path}", *(f"eval={file}" for file in evaluation)], near=None)
        shown = [example["text"] for example in leaks.examples[:3]]
        findings.append(_finding("error", "evaluation conversations that share their beginning", leaks.leaks, shown))
    order = {"error": 0, "warning": 1, "note": 2}
    return figures, sorted((f for f in findings if f.count), key=lambda f: order[f.level])


def _finding(level: Level, what: str, count: int, examples: Iterable[str] = ()) -> Finding:
    return Finding(level, what, count, [text[:120] for text in examples][:3])


def _sameness(pairs: list[Conversation]) -> list[Finding]:
    same = [p for p in pairs if letters(p.turns[-1].content) == letters(p.rejected[0])]
    judged = {(p.turns[:-1], p.turns[-1].content, p.rejected[0]) for p in pairs}
    repeated = len(pairs) - len(judged)
    flipped = [key for key in judged if (key[0], key[2], key[1]) in judged]
    return [
        _finding("error", "chosen and rejected are the same", len(same), (p.rejected[0] for p in same)),
        _finding("error", "the same two replies judged both ways", len(flipped), (key[1] for key in flipped)),
        _finding("warning", "pairs stored twice", repeated),
    ]


def _prompts(pairs: list[Conversation], near: float) -> list[Finding]:
    texts = ["\n".join(turn.content for turn in pair.turns[:-1]) for pair in pairs]
    distinct = list(dict.fromkeys(texts))
    gone = near_duplicates(distinct, distinct.__getitem__, near)
    shared = len(texts) - len(distinct)
    return [
        _finding("note", "pairs that share a prompt with another pair", shared),
        _finding("warning", "prompts that nearly equal another one", len(gone), (distinct[i] for i in gone)),
    ]


def _lengths(pairs: list[Conversation]) -> tuple[dict[str, Any], Finding]:
    chosen = [len(pair.turns[-1].content) for pair in pairs]
    rejected = [len(pair.rejected[0]) for pair in pairs]
    n = len(pairs)
    wins = sum((c > r) + 0.5 * (c == r) for c, r in zip(chosen, rejected, strict=True))
    longer = wins / n if n else 0.5
    figures = {
        "pairs": n,
        "chosen_characters": round(sum(chosen) / n, 1) if n else 0,
        "rejected_characters": round(sum(rejected) / n, 1) if n else 0,
        "chosen_longer": round(longer, 3),
    }
    lean = abs(longer - 0.5)
    level: Level = "error" if lean >= LENGTH_ERROR and n >= FEW else "warning" if lean >= LENGTH_WARNING else "note"
    word = "longer" if longer >= 0.5 else "shorter"
    what = f"length alone tells chosen from rejected in {max(longer, 1 - longer):.0%} of pairs (chosen is {word})"
    return figures, Finding(level, what, n)


def _cut(pairs: list[Conversation], max_length: int, count_tokens: Callable[[str], int]) -> Finding:
    long = []
    for pair in pairs:
        prompt = count_tokens("\n".join(turn.content for turn in pair.turns[:-1]))
        if prompt + max(count_tokens(pair.turns[-1].content), count_tokens(pair.rejected[0])) > max_length:
            long.append(pair.turns[0].content)
    return _finding("warning", f"pairs longer than {max_length} tokens, which training would cut", len(long), long)
