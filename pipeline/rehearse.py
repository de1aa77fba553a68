"""`gonggam eval simulate`: the counsellor as it is served, in talks with simulated people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.geval import GEval, Judgement, Progress
from eval.http_judge import HttpJudge
from eval.judges import Judge, JudgeSpec
from eval.options import SimulateOptions
from eval.rubric import Rubric, load_rubric
from eval.simulate import load_cast, simulate
from eval.steps import freeze_steps
from eval.store import Store
from eval.talks import SAFE, TITLE, talks_section
from gonggam.files import write_jsonl
from gonggam.page import Page, Section
from pipeline.referees import judges_of

if TYPE_CHECKING:
    from pipeline.chat.counselor import Counselor
    from pipeline.chat.reply import Reply

LINE = 128
"""Longest turn, in tokens, of a person whom a model plays."""


class Listener:
    """A counsellor as `eval.simulate.simulate` calls it; a talk that begins anew gets a session of its own.

    Nobody is remembered: the talks run without a user.

    Attributes:
        heard: for each talk the counsellor's replies.
    """

    def __init__(self, bot: Counselor) -> None:
        self.bot = bot
        self.heard: list[list[Reply]] = []

    def __call__(self, messages: list[dict[str, str]]) -> str:
        """The reply to the last of the messages."""
        if len(messages) == 1:
            self.heard.append([])
        reply = self.bot.reply(messages[-1]["content"], session=f"simulated {len(self.heard)}")
        self.heard[-1].append(reply)
        return reply.text


def rehearse(
    bot: Counselor,
    out: Path,
    options: SimulateOptions,
    name: str,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Section:
    """Simulate the talks, judge them if wanted, and write ``talks.jsonl``, ``report.html`` and ``report.md``.

    Args:
        bot: the counsellor.
        out: folder to write.
        options: who talks, who plays them, who judges.
        name: what the counsellor is called in the report.
        cache: folder of the judge's verdicts; ``out`` if absent.
        progress: called as (talks done, talks in all).

    Returns:
        the talks as a section for another report.

    Raises:
        UserError: no such cast, judge or rubric, or ``out`` cannot be written.
    """
    cast, rubric = load_cast(options.cast), load_rubric(options.rubric)
    player, judge = (_ready(named, bot) for named in (options.player, options.judge))
    out.mkdir(parents=True, exist_ok=True)
    listener = Listener(bot)
    talks = simulate(
        listener, cast, options.turns, partial(player.write, max_tokens=LINE) if player else None, progress
    )
    for talk, replies in zip(talks, listener.heard, strict=True):
        talk |= {"sources": [reply.source for reply in replies], "risks": [reply.risk for reply in replies]}
    judged = _judged(talks, rubric, judge, cache or out) if judge else []
    write_jsonl(out / "talks.jsonl", talks)
    section = talks_section(talks, cast, judged, played_by=player.spec.name if player else None)
    page = Page(TITLE, f"{len(talks)} talks with {name}", sections=[section])
    page.write(out / "report.html")
    page.write_markdown(out / "report.md")
    return section


def _judged(talks: Sequence[Mapping[str, Any]], rubric: Rubric, judge: Judge, cache: Path) -> list[Judgement]:
    """The judge's scores of the talks of people in danger."""
    with Store(cache / "verdicts.jsonl") as store:
        frozen = freeze_steps(rubric, judge, store)
        return GEval(frozen, judge, store).score([talk for talk in talks if talk["category"] != SAFE])


def _ready(named: str | dict[str, Any] | None, bot: Counselor) -> Judge | None:
    """The judge so named, ready to be asked; ``local`` is the counsellor's own base model."""
    if named is None:
        return None
    (judge,) = judges_of(named, bot.backend)
    return HttpJudge(judge) if isinstance(judge, JudgeSpec) else judge
