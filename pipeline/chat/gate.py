"""The quality gate: what a generated reply must not be, told from the text and its likelihood alone.

A reply is checked sentence by sentence (`sentences`), each together with all before it, so that a stream never shows
what would later be withdrawn: text goes out once its sentence has passed, and the reply ends before the first sentence
that fails. If the first one fails, nothing was shown and another answer takes its place.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from pipeline.chat.options import GateOptions

# Ends of sentences; a closing quote or bracket and the laughter or tears after it belong to the sentence.
_END = re.compile(r"""(?:[.!?。…~]+["'”’)\]]*|(?<=[요다죠까네])(?=\s*\n))(?:\s*[ㅋㅎㅠㅜ^]+)?(?=\s)""")
# Letters of Hangul on their own inside words are broken syllables; alone they are slang (ㅋㅋ, ㅠㅠ, ㅇㅇ).
_BROKEN_JAMO = re.compile(r"[가-힣][ㄱ-ㅎㅏ-ㅣ][가-힣]|[\u1100-\u11ff](?![\u1160-\u11ff])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffd\ue000-\uf8ff]")
_MARKER = re.compile(r"<\|?[a-z_/ ]{1,20}\|?>|\[/?INST\]|^(?:### ?|Human:|Assistant:|User:|질문:|답변:)", re.I | re.M)
_RUN = re.compile(r"(.{2,20}?)\1{3,}|([^\s.…~ㅋㅎㅠㅜ!?])\2{5,}")


@dataclass(frozen=True)
class Verdict:
    """Whether a reply may be shown; ``reasons`` are short English words for logs and `/why`."""

    ok: bool
    reasons: tuple[str, ...] = ()


def check(
    text: str, said: str, options: GateOptions, *, mean_logprob: float | None = None, floor: float | None = None
) -> Verdict:
    """Judge a reply, or the beginning of one that ends with a whole sentence.

    Args:
        text: the reply so far.
        said: the user's message it answers.
        options: the limits.
        mean_logprob: mean token log-probability of ``text`` in nats, where known.
        floor: the lowest that may be, where known (see `GateOptions.min_logprob`).
    """
    if not options.enabled:
        return Verdict(bool(text.strip()), () if text.strip() else ("empty",))
    bare = re.sub(r"\s", "", text)
    reasons = []
    if not bare:
        reasons.append("empty")
    elif len(bare) < options.min_chars:
        reasons.append("too short")
    if len(text) > options.max_chars:
        reasons.append("too long")
    if _CONTROL.search(text) or _BROKEN_JAMO.search(text):
        reasons.append("broken characters")
    if _MARKER.search(text):
        reasons.append("role marker")
    if _RUN.search(text) or repetition(text) > options.max_repetition:
        reasons.append("repetition")
    if echo(text, said) > options.max_echo:
        reasons.append("echo")
    if floor is not None and mean_logprob is not None and mean_logprob < floor:
        reasons.append("unlikely")
    return Verdict(not reasons, tuple(reasons))


def lost(text: str, options: GateOptions) -> tuple[str, ...]:
    """What is already wrong with an unfinished reply and no further word can mend; empty while it may still pass."""
    if not options.enabled:
        return ()
    found = {
        "broken characters": _CONTROL.search(text),
        "role marker": _MARKER.search(text),
        "repetition": _RUN.search(text),
        "too long": len(text) > options.max_chars,
    }
    return tuple(reason for reason, wrong in found.items() if wrong)


def repetition(text: str, n: int = 6) -> float:
    """Share of the text's character n-grams that occurred in it before: 0 for none, towards 1 for a loop."""
    grams = _grams(text, n)
    return 1 - len(grams) / total if (total := grams.total()) else 0.0


def echo(text: str, said: str, n: int = 4) -> float:
    """Share of the reply's character n-grams that stand in the user's message; 0 for replies too short to tell."""
    grams, theirs = _grams(text, n), _grams(said, n)
    if grams.total() < 4:
        return 0.0
    return sum(count for gram, count in grams.items() if gram in theirs) / grams.total()


def sentences(text: str) -> list[str]:
    """The text in pieces that each end where a sentence ends; joined they are the text again."""
    cuts = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


def whole(text: str) -> bool:
    """Whether the text ends where a sentence may end, rather than in the middle of one."""
    return bool(
        re.search(
            r"""(?:[.!?。…~♥♡]|[요다죠까네야어아지나니군구]|[ㅋㅎㅠㅜ^]|[\U0001F300-\U0001FAFF])["'”’)\]]*$""",
            text.rstrip(),
        )
    )


def _grams(text: str, n: int) -> Counter[str]:
    bare = re.sub(r"[\s.!?,~…]+", "", text)
    return Counter(bare[i : i + n] for i in range(len(bare) - n + 1))
