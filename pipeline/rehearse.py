"""`gonggam eval simulate`: the counsellor as it is served, in talks with simulated people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.files import write_jsonl

if TYPE_CHECKING:
    from eval.geval import Judgement
    from gonggam.page import Section
    from pipeline.chat.counselor import Counselor
    from pipeline.chat.reply import Reply


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
    where: str, out: Path, *, cast: str, turns: int, player: str | None, judge: str | None, rubric: str
) -> Section:
    """Simulate the talks, judge them if wanted, and write ``talks.jsonl``, ``report.html`` and ``report.md``.

    The section is also put into the report of the run's evaluation, if there is one.

    Raises:
        UserError: no such counsellor, cast, judge or rubric, or ``out`` cannot be written.
    """
    from eval import load_judge, load_rubric
    from eval.http_judge import HttpJudge
    from eval.run import add_section
    from eval.simulate import load_cast, simulate
    from eval.talks import SAFE, TITLE, talks_section
    from gonggam.page import Page
    from pipeline import Counselor

    people, plays = load_cast(cast), HttpJudge(load_judge(player)) if player else None
    spec, scale = (load_judge(judge), load_rubric(rubric)) if judge else (None, None)
    out.mkdir(parents=True, exist_ok=True)
    bot = Counselor.load(where)
    try:
        listener = Listener(bot)
        talks = simulate(listener, people, turns, plays.write if plays else None)
    finally:
        bot.close()
    for talk, replies in zip(talks, listener.heard, strict=True):
        talk |= {"sources": [reply.source for reply in replies], "risks": [reply.risk for reply in replies]}
    judged: list[Judgement] = []
    if spec and scale:
        from eval.geval import GEval
        from eval.store import Store

        with Store(out / "verdicts.jsonl") as store:
            grave = [talk for talk in talks if talk["category"] != SAFE]
            judged = GEval(scale, HttpJudge(spec), store).score(grave)
    write_jsonl(out / "talks.jsonl", talks)
    section = talks_section(talks, people, judged)
    page = Page(TITLE, f"{len(talks)} talks with {where}", sections=[section])
    page.write(out / "report.html")
    page.write_markdown(out / "report.md")
    if (Path(where) / "eval" / "raw" / "evaluation.json").is_file():
        add_section(Path(where) / "eval", section)
    return section
