"""What came of a sweep: candidates' answers to the same prompts, and one page with table, curves and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from gonggam.files import read_json, write_json
from gonggam.page import Page
from pipeline.run import fingerprint
from pipeline.train.curves import figure, series

if TYPE_CHECKING:
    from pipeline.recipe.sections import SweepOptions
    from pipeline.run import Run
    from pipeline.train.sweep import Candidate


def prompts_of(options: SweepOptions) -> list[str]:
    """The sweep's own prompts, or the shipped ones."""
    shipped = Path(__file__).with_name("merge_prompts.txt")
    return options.prompts or shipped.read_text("utf-8").splitlines()


def answer(candidate: Candidate, run: Run, options: SweepOptions, stages: Sequence[str]) -> None:
    """Let a finished candidate answer the sweep's prompts, greedily; kept in ``answers.json`` of its run folder.

    A model that cannot be loaded leaves no answers and says so in ``candidate.fault``; its score stands.
    """
    done = [(name, left) for name in ("dpo", "sft") if name in stages and (left := run.manifest(name))]
    if not done:
        return
    stage, manifest = done[0]
    prompts, file = prompts_of(options), run.folder / "answers.json"
    made = fingerprint(manifest["fingerprint"], prompts, options.max_new_tokens)
    if file.is_file() and (kept := read_json(file))["fingerprint"] == made:
        candidate.answers = kept["answers"]
        return
    try:
        candidate.answers = _ask(candidate, run, stage, prompts, options.max_new_tokens)
    except (UserError, RuntimeError) as error:  # out of memory is a RuntimeError: the other candidates go on
        candidate.fault = f"no answers: {str(error).splitlines()[0]}"
        return
    write_json(file, {"fingerprint": made, "prompts": prompts, "answers": candidate.answers})


def _ask(candidate: Candidate, run: Run, stage: str, prompts: Sequence[str], longest: int) -> list[str]:
    from pipeline.chat.backends import Settings, replies
    from pipeline.chat.local import load_local
    from pipeline.chat.options import ChatOptions
    from pipeline.model import adapters_on, policies
    from pipeline.prompt import system_prompt, with_system

    chat = candidate.recipe.chat or ChatOptions()
    found = policies(candidate.recipe, run)
    model = found[stage].model
    backend = load_local(model, adapters=adapters_on(model, found), settings=candidate.recipe.model)
    settings = Settings.of(chat, max_new_tokens=longest, temperature=0, adapter=stage)
    system = system_prompt(chat.system)
    talks = [with_system([{"role": "user", "content": prompt}], system) for prompt in prompts]
    answers = [reply.text for reply in replies(backend, talks, settings)]
    backend.close()
    return answers


def write_report(
    name: str, options: SweepOptions, found: Sequence[Candidate], place: Path, stages: Sequence[str]
) -> None:
    """Write ``sweep.html``: the winner, the table, curves laid over one another, answers side by side."""
    page = Page(f"Sweep: {name}", f"{len(found)} candidates by {options.criterion} ({options.mode})")
    best = found[0]
    section = page.section("Result").note(f"The winner is {label(best)}: {options.criterion} {best.score:.6g}", "good")
    section.table(table(options, found))
    for candidate in found:
        if candidate.fault:
            section.note(f"{label(candidate)}: {candidate.fault}", "error")
    curves = page.section("Curves")
    for stage in ("sft", "dpo"):
        for title, lines in _overlaid(found, place, stage).items() if stage in stages else ():
            curves.figure(figure(f"{stage}: {title}", lines))
    answered = [candidate for candidate in found if candidate.answers]
    if answered:
        talks = page.section("Answers to the same prompts")
        for number, prompt in enumerate(prompts_of(options)):
            said = {label(candidate): candidate.answers[number] for candidate in answered}
            talks.chat([{"role": "user", "content": prompt}], said)
    page.write(place / "sweep.html")


def table(options: SweepOptions, found: Sequence[Candidate]) -> list[dict[str, Any]]:
    """A row for every candidate, best first."""
    return [
        {
            **{key: str(c.values[key]) for key in options.grid},
            options.criterion: c.score,
            "seconds": round(c.seconds, 1),
        }
        for c in found
    ]


def label(candidate: Candidate) -> str:
    """The candidate's values in a few words."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in candidate.values.items())


def _overlaid(
    found: Sequence[Candidate], place: Path, stage: str
) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Title → one line a candidate (its first series of that title)."""
    from pipeline.run import Run

    plots: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for candidate in found:
        manifest = Run(place / candidate.name).manifest(stage)
        for title, lines in series(manifest["metrics"]["history"] if manifest else ()).items():
            plots.setdefault(title, {})[label(candidate)] = next(iter(lines.values()))
    return plots
