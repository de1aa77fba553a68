"""What can be said of replies without any judge: closeness to the reference, variety, length, speech level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.speech import analyse

if TYPE_CHECKING:
    import numpy as np

Check = Callable[[Mapping[str, Any], str], float | None]
"""A measure of the caller's own: (item, reply) → a number, or None where it does not apply."""

LIKENESS = ("similarity", "word_similarity")
"""The measures that stand and fall with the embedder."""

Embed = Callable[[list[str]], "np.ndarray"]
"""Texts → rows of unit length."""

EmbedWords = Callable[[list[str]], "list[np.ndarray]"]
"""Texts → for each text the vectors of its words, shape ``(words, dim)``; their lengths are the words' weights."""


def reply_metrics(
    items: Sequence[Mapping[str, Any]],
    replies: Sequence[str],
    *,
    checks: Mapping[str, Check] | None = None,
    embed: Embed | None = None,
    embed_words: EmbedWords | None = None,
) -> list[dict[str, float | None]]:
    """One row of measures per reply.

    ``chrf`` (0-100, against the item's ``reference``), ``length`` (characters), ``empty`` (0/1), ``asks_back`` (1 if
    the reply ends in a question), ``repetition`` (share of its morpheme trigrams that repeat an earlier one),
    ``polite`` (share of its sentences that end politely), ``consistent_speech`` (1 if all its sentences share one
    level), ``similarity`` (cosine to the reference under ``embed``, if given), ``word_similarity`` (see `greedy_match`;
    under ``embed_words``, if given), and one column per check.
    """
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    parts = analyse(replies)
    likeness = {}
    if embed:
        likeness["similarity"] = _similarity(items, replies, embed)
    if embed_words:
        likeness["word_similarity"] = _word_similarity(items, replies, embed_words)
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
        row.update({name: values[index] if reference else None for name, values in likeness.items()})
        row.update({name: check(item, reply) for name, check in (checks or {}).items()})
        rows.append(row)
    return rows


def human_metrics(
    items: Sequence[Mapping[str, Any]], checks: Mapping[str, Check] | None = None
) -> list[dict[str, float | None]]:
    """`reply_metrics` of the references themselves, for comparison; without those that measure closeness to them."""
    known = [item for item in items if item.get("reference")]
    rows = reply_metrics(known, [str(item["reference"]) for item in known], checks=checks) if known else []
    return [{name: value for name, value in row.items() if name != "chrf"} for row in rows]


def corpus_metrics(items: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> dict[str, float | None]:
    """Measures that only make sense for all replies together.

    ``chrf`` and ``bleu`` (sacrebleu, corpus level; BLEU over Kiwi morphemes, since a word of Korean with its particles
    is too rare a unit), ``distinct_1`` and ``distinct_2`` (Li et al. 2016, over morphemes).
    """
    from sacrebleu.metrics import BLEU, CHRF

    pairs = [(reply, item["reference"]) for item, reply in zip(items, replies, strict=True) if item.get("reference")]
    parts = [part.forms for part in analyse(replies)]
    row: dict[str, float | None] = {"distinct_1": distinct(parts, 1), "distinct_2": distinct(parts, 2)}
    if not pairs:
        return {"chrf": None, "bleu": None, **row}
    said, wanted = [reply for reply, _ in pairs], [reference for _, reference in pairs]
    spelt = [[" ".join(part.forms) for part in analyse(texts)] for texts in (said, wanted)]
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


def _word_similarity(items: Sequence[Mapping[str, Any]], replies: Sequence[str], embed: EmbedWords) -> list[float]:
    references = embed([str(item.get("reference") or "") for item in items])
    return [greedy_match(*pair) for pair in zip(embed(list(replies)), references, strict=True)]


def greedy_match(said: np.ndarray, wanted: np.ndarray) -> float:
    """BERTScore's F1 (Zhang et al. 2020, section 3): every word is matched with the likest one of the other text.

    Precision weighs the words of ``said``, recall those of ``wanted``, each by the length of its vector (the paper
    weighs by inverse document frequency, which the offline embedder's vectors hold as their length). 0 where either
    text has no word.

    Args:
        said: vectors of the reply's words, shape ``(words, dim)``.
        wanted: those of the reference's.
    """
    import numpy as np

    if not len(said) or not len(wanted):
        return 0.0
    weights = [np.maximum(np.linalg.norm(side, axis=1), 1e-12) for side in (said, wanted)]
    cosines = (said / weights[0][:, None]) @ (wanted / weights[1][:, None]).T
    precision, recall = (np.average(cosines.max(axis=1 - i), weights=weights[i]) for i in (0, 1))
    return float(2 * precision * recall / (precision + recall)) if precision > 0 and recall > 0 else 0.0
