"""Simulated conversations in the report: did the counsellor notice the danger, ask about it, lead to human help?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval.geval import Judgement
from eval.simulate import Cast
from gonggam.page import Section

TITLE = "Simulated conversations"
SAFE = "risk/none"


def signs_of(talk: Mapping[str, Any], cast: Cast) -> dict[str, int | None]:
    """For each sign of the cast the first user turn (from 1) whose reply shows it, or None."""
    replies = [m["content"] for m in talk["messages"] if m["role"] == "assistant"] + [talk["reply"]]
    return {
        name: next((turn for turn, reply in enumerate(replies, 1) if re.search(pattern, reply)), None)
        for name, pattern in cast.signs.items()
    }


def talks_section(
    talks: Sequence[Mapping[str, Any]],
    cast: Cast,
    judgements: Sequence[Judgement] = (),
    played_by: str | None = None,
) -> Section:
    """One row per talk, then the talks as bubbles.

    Args:
        talks: from `eval.simulate.simulate`; they may carry ``sources``, where each reply came from, and ``risks``,
            what the safety layer made of each message.
        cast: whose signs are looked for.
        judgements: a judge's scores of the talks; those that are missing are counted.
        played_by: the model that played the people; None: they spoke their scripts.
    """
    section = Section(TITLE)
    spoke = f"The people are played by {played_by} from their sheets" if played_by else "The people speak a script"
    section.text(f"{spoke}; the counsellor answers as it is served, safety layer and gate included.")
    grave = [talk for talk in talks if talk["category"] != SAFE]
    talks = sorted(talks, key=lambda talk: talk["category"] == SAFE)
    if grave and cast.signs:
        section.text(
            "For people in danger the table names the turn in which a reply first spoke of it, asked about it, and "
            "named human help. These are words found in the replies; whether they were well put is for a person to "
            "read below."
        )
        section.facts({name: _share([signs_of(talk, cast)[name] for talk in grave]) for name in cast.signs})
    names = {persona.key: persona.name for persona in cast.personas}
    section.table([_row(talk, names, cast, judgements) for talk in talks])
    if missing := Counter(j.verdict.problem for j in judgements if j.verdict.problem):
        rows = [{"problem": name, "judgements": count} for name, count in missing.items()]
        section.table(rows, caption=f"Missing among {len(judgements)} judgements of these talks")
    for talk in talks:
        said = [*talk["messages"], {"role": "assistant", "content": talk["reply"]}]
        section.chat(said, title=f"{names.get(talk['id'], talk['id'])} ({_danger(talk)})")
    return section


def _danger(talk: Mapping[str, Any]) -> str:
    return "everyday" if talk["category"] == SAFE else "in danger"


def _share(turns: Sequence[int | None]) -> str:
    return f"{sum(turn is not None for turn in turns)} of {len(turns)}"


def _row(
    talk: Mapping[str, Any], names: Mapping[str, str], cast: Cast, judgements: Sequence[Judgement]
) -> dict[str, Any]:
    row: dict[str, Any] = {"who": names.get(talk["id"], talk["id"]), "": _danger(talk)}
    found = signs_of(talk, cast)
    grave = talk["category"] != SAFE
    row |= {name: (f"turn {turn}" if turn else "no") if grave else None for name, turn in found.items()}
    if sources := talk.get("sources"):
        row["safety text at turns"] = ", ".join(str(n) for n, s in enumerate(sources, 1) if s == "safety") or None
    if talk.get("from_script"):
        row["turns from the script: the player wrote nothing"] = talk["from_script"]
    if risks := talk.get("risks"):
        row["risk seen, turn by turn"] = " · ".join(risks)
    judged = [j for j in judgements if j.item == talk["id"]]
    return row | {f"judge: {j.criterion}": j.verdict.score for j in judged}
