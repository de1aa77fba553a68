"""Answers that are none: nothing said, no end found, the same word or phrase over and over.

They were the known fault of small Korean chatbots (endless padding, 진짜 진짜 진짜 …), so every evaluation counts them
over the same few messages, before the gate: decoded as the counsellor decodes, and greedily without any penalty on
repetition, which shows what decoding hides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pipeline.chat.gate import repetition
from pipeline.chat.options import ChatOptions
from pipeline.chat.resources import DATA
from pipeline.prompt import with_system

if TYPE_CHECKING:
    from gonggam.page import Section
    from pipeline.chat.backends import Backend
    from pipeline.chat.sentiment import Sentiments

Fault = Literal["empty", "endless", "repeated"]
WAYS = ("served", "greedy")
FAULTS: tuple[Fault, ...] = ("empty", "endless", "repeated")
_THRICE = re.compile(r"(?<!\S)(\S+)(?:\s+\1){2,}(?!\S)|(\S{2,}?)\2{3,}")
_LAUGHTER = re.compile(r"([ㅋㅎㅠㅜ.…~!?])\1+")


def fault(text: str, ended: bool) -> Fault | None:
    """What is wrong with an answer as the model wrote it.

    Args:
        text: the answer.
        ended: whether the model itself ended it, rather than the limit of tokens.
    """
    if not re.search(r"\w", text):
        return "empty"
    text = _LAUGHTER.sub(r"\1", text)
    if _THRICE.search(text) or repetition(text, 4) > 0.3:
        return "repeated"
    return None if ended else "endless"


def prompts() -> list[str]:
    """The messages that every model is asked: everyday talk, sorrow, love, and signs without words."""
    return (DATA / "probe_prompts.txt").read_text("utf-8").splitlines()


def count_degenerate(
    backend: Backend,
    options: ChatOptions,
    system: str | None,
    *,
    adapter: str | None = None,
    sentiments: Sentiments | None = None,
) -> dict[str, dict[str, Any]]:
    """How many of the answers to `prompts` are degenerate, by `FAULTS`, and one example of each: for each of `WAYS`."""
    from pipeline.chat.backends import Settings, replies

    asked = [with_system([{"role": "user", "content": text}], system) for text in prompts()]
    marked = [sentiments.mark(messages) if sentiments else messages for messages in asked]
    served = Settings.of(options, seed=0, adapter=adapter)
    found: dict[str, dict[str, Any]] = {}
    for way, settings in zip(WAYS, (served, replace(served, temperature=0, repetition_penalty=1)), strict=True):
        answers = replies(backend, marked, settings)
        faults = [fault(a.text, a.usage.completion_tokens < settings.max_new_tokens) for a in answers]
        counts: dict[str, int] = {name: faults.count(name) for name in FAULTS}
        examples = {name: answers[faults.index(name)].text[:80] for name in FAULTS if counts[name]}
        found[way] = {"answers": len(answers), **counts, "examples": examples}
    return found


def degenerate_section(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Section:
    """The counts of each policy for a report."""
    from gonggam.page import Section

    section = Section("Degenerate answers")
    section.text(
        f"Answers to the same {len(prompts())} messages, before the gate: nothing said, no end within the limit of "
        "tokens, or the same word or phrase over and over. Served: decoded as the counsellor decodes. Greedy: always "
        "the likeliest token, without a penalty on repetition."
    )
    return section.table(
        [
            {"policy": name, "decoding": way, **{key: row[key] for key in ("answers", *FAULTS)}}
            for name, ways in found.items()
            for way, row in ways.items()
        ]
    )


def degenerate_line(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The counts of each policy in one line."""
    told = (
        f"{way}: " + " → ".join(f"{name} {sum(ways[way][fault] for fault in FAULTS)}" for name, ways in found.items())
        for way in WAYS
    )
    return f"{', '.join(told)}  (of {len(prompts())} answers: empty, endless or repeating)"
