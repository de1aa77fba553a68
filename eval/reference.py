"""What can be said of replies without any judge: closeness to the reference, variety, length, speech level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.speech import analyse, load_kiwi

if TYPE_CHECKING:
    import numpy as np
    from kiwipiepy import Kiwi

Check = Callable[[Mapping[str, Any], str], float | None]
"""A measure of the caller's own: (item, reply) → a number, or None where it does not apply."""

Embed = Callable[[list[str]], "np.ndarray"]
"""Texts → rows of unit length."""


def reply_metrics(
    items: Sequence[Mapping[str, Any]],
    replies: Sequence[str],
    kiwi: Kiwi | None = None,
    *,
    checks: Mapping[str, Check] | None = None,
    embed: Embed | None = None,
) -> list[dict[str, float | None]]:
    """One row of measures per reply.

    ``chrf`` (0-100, against the item's ``reference``), ``length`` (characters), ``empty`` (0/1), ``asks_back`` (1 if
    the reply ends in a question), ``repetition`` (share of its morpheme trigrams that repeat an earlier one),
    ``polite`` (share of its sentences that end politely), ``consistent_speech`` (1 if all its sentences share one
    level), ``similarity`` (cosine to the reference under ``embed``, if given), and one column per check.
    """
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    parts = analyse(replies, kiwi)
    similar = _similarity(items, replies, embed) if embed else None
    rows = []
    for index, (item, reply, part) in enumerate(zip(items, replies, parts, strict=True)):
        reference = item.get("reference") or ""
        row: dict[str, float | None] = {
            "chrf": chrf.sentence_score(reply, [reference]).score if reference else None,
            "length": float(len(reply.strip())),
            "empty": float(not reply.strip()),
            "asks_back": float(ends_in_question(reply)),
            "repetition": repetition(part.forms),
            "polite": _share([level == "polite" for level in part.levels]),
            "consistent_speech": float(len(set(part.levels)) == 1) if part.levels else None,
        }
        if similar is not None:
            row["similarity"] = similar[index] if reference else None
        row.update({name: check(item, reply) for name, check in (checks or {}).items()})
        rows.append(row)
    return rows


def corpus_metrics(
    items: Sequence[Mapping[str, Any]], replies: Sequence[str], kiwi: Kiwi | None = None
) -> dict[str, float | None]:
    """Measures that only make sense for all replies together.

    ``chrf`` and ``bleu`` (sacrebleu, corpus level; BLEU over Kiwi morphemes, since a word of Korean with its particles
    is too rare a unit), ``distinct_1`` and ``distinct_2`` (Li et al. 2016, over morphemes).
    """
    from sacrebleu.metrics import BLEU, CHRF

    kiwi = kiwi or load_kiwi()
    pairs = [(reply, item["reference"]) for item, reply in zip(items, replies, strict=True) if item.get("reference")]
    parts = [part.forms for part in analyse(replies, kiwi)]
    row: dict[str, float | None] = {"distinct_1": distinct(parts, 1), "distinct_2": distinct(parts, 2)}
    if not pairs:
        return {"chrf": None, "bleu": None, **row}
    said, wanted = [reply for reply, _ in pairs], [reference for _, reference in pairs]
    spelt = [[" ".join(part.forms) for part in analyse(texts, kiwi)] for texts in (said, wanted)]
    return {
        "chrf": CHRF().corpus_score(said, [wanted]).score,
        "bleu": BLEU(tokenize="none").corpus_score(spelt[0], [spelt[1]]).score,
        **row,
    }


def ends_in_question(reply: str) -> bool:
    """Whether the reply's last mark is a question mark; closing quotes, emoticons and spaces do not count."""
    return reply.rstrip(" \n\t\"'”’)~.!ㅎㅋㅠㅜ^").endswith(("?", "？"))


def repetition(forms: Sequence[str], n: int = 3) -> float:
    """Share of a text's n-grams that have occurred in it before; 0 for texts shorter than n."""
    grams = [tuple(forms[i : i + n]) for i in range(len(forms) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all n-grams of all texts; None if there are none."""
    grams = [tuple(forms[i : i + n]) for forms in texts for i in range(len(forms) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _similarity(items: Sequence[Mapping[str, Any]], replies: Sequence[str], embed: Embed) -> list[float]:
    references = embed([str(item.get("reference") or "") for item in items])
    return [float(value) for value in (embed(list(replies)) * references).sum(axis=1)]
