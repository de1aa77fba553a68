"""A sweep: candidates that differ in a few settings, each an ordinary run in a folder of its own.

``runs/NAME/sweep/ID`` is a candidate's run folder. What no candidate changes (data, tiny base, often SFT) is done once
in ``sweep/shared`` and shared by hard links. Each candidate trains in a process of its own, so one that crashes
loses nothing of the others; the same command again does what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gonggam.errors import UserError, UserErrors
from gonggam.files import read_json, write_json, write_text
from pipeline.recipe import Recipe, load_recipe
from pipeline.run import Run
from pipeline.stages import STAGES
from pipeline.train.side_by_side import side_by_side
from pipeline.train.sweep_process import Processes
from pipeline.train.sweep_search import combinations, search_of

if TYPE_CHECKING:
    from pipeline.recipe.sections import SweepOptions

Launch = Callable[[Path, Path, Path, Mapping[str, str]], tuple[int, str]]
"""(recipe file, where run folders lie, log file, environment variables) → exit code and the last line written."""


@dataclass
class Candidate:
    """One combination of the grid.

    Attributes:
        name: also of its run folder.
        values: dotted key → value.
        recipe: the whole recipe with these values.
        score: the criterion's figure; None if it has none (yet).
        seconds: of the stages that are its own.
        fault: why it has no score.
        answers: to the sweep's prompts, in their order.
    """

    name: str
    values: dict[str, Any]
    recipe: Recipe
    score: float | None = None
    seconds: float = 0.0
    fault: str = ""
    answers: list[str] = field(default_factory=list)


def candidates(file: str | Path, overrides: Sequence[str], asked: Iterable[dict[str, Any]]) -> list[Candidate]:
    """Candidates with these values, each checked as a recipe.

    Raises:
        UserErrors: all that is wrong with any of them.
    """
    found: list[Candidate] = []
    errors: dict[str, UserError] = {}
    for values in asked:
        name = candidate_name(values)
        given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        try:
            recipe = load_recipe(file, [*overrides, f"name={json.dumps(name)}", *given])
            found.append(Candidate(name, values, recipe))
        except UserErrors as error:
            errors |= {str(one): one for one in error.errors}
    if errors:
        raise UserErrors(list(errors.values()))
    return found


def candidate_name(values: dict[str, Any]) -> str:
    """A folder name that tells the values apart, and shortened by a hash where it would be too long."""
    name = "_".join(f"{key}-{json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    name = re.sub(r"[^\w가-힣.\-]+", "", name)
    if len(name) <= 100:
        return name
    return f"{name[:80]}-{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]}"


def shared_stages(recipe: Recipe, grid: Sequence[str]) -> list[str]:
    """The stages, up to the last one a sweep needs, that no key of the grid changes."""
    found: list[str] = []
    for name in needed_stages(recipe):
        stage = STAGES[name]
        touched = any(_covers(section, key) for section in stage.sections for key in grid)
        if not touched and "seed" not in grid and all(need in found for need in stage.needs if need in recipe.stages):
            found.append(name)
    return found


def needed_stages(recipe: Recipe) -> list[str]:
    """The criterion's stage and those it builds on, in order.

    Raises:
        UserError: the criterion names a stage that the recipe does not have.
    """
    last = _options(recipe).criterion.partition(".")[0]
    if last not in recipe.stages:
        hint = f"it has: {', '.join(recipe.stages)}"
        raise UserError(f"sweep.criterion names {last!r}, which is no stage of the recipe", hint, file=recipe.file)
    wanted = {last}
    for name in reversed(recipe.stages):
        if name in wanted:
            wanted |= set(STAGES[name].needs) & set(recipe.stages)
    return [name for name in recipe.stages if name in wanted]


def sweep(
    file: str | Path,
    overrides: Sequence[str],
    runs: Path,
    *,
    report: Callable[[str], None] | None = None,
    launch: Launch | None = None,
    answers: bool = True,
) -> list[Candidate]:
    """Run every candidate and compare them; leaves ``runs/NAME/sweep/sweep.html`` and ``sweep.json``.

    Args:
        file: the recipe.
        overrides: `section.key=value`.
        runs: where run folders lie.
        report: told one line at a time how it goes.
        launch: does an ordinary run; by default `Processes`. Called from several threads if ``parallel`` is set.
        answers: let every candidate answer the sweep's prompts.

    Returns:
        the candidates, best first; those without a score last.

    Raises:
        UserError: the recipe or a candidate is wrong; a shared stage fails; no candidate got a score.
        SystemExit: it or a candidate was asked to stop, and all have; the same command goes on.
    """
    processes = launch if isinstance(launch, Processes) else Processes()
    with processes.listening():
        return _sweep(file, overrides, runs, report or (lambda line: None), launch or processes, processes, answers)


def _sweep(
    file: str | Path,
    overrides: Sequence[str],
    runs: Path,
    tell: Callable[[str], None],
    launch: Launch,
    processes: Processes,
    answers: bool,
) -> list[Candidate]:
    from pipeline.train.sweep_report import answer, write_report

    base = load_recipe(file, overrides)
    options = _options(base)
    candidates(file, overrides, combinations(options))  # what is wrong with any is told before one is trained
    run, place = Run(runs / base.name), runs / base.name / "sweep"
    shared, needed = shared_stages(base, list(options.grid)), needed_stages(base)

    def launched(*what: Any) -> tuple[int, str]:
        code, line = launch(*what)
        processes.check(code)
        return code, line

    common = _share_work(base, run, place, shared, launched)

    def work(candidate: Candidate, environment: Mapping[str, str]) -> None:
        tell(f"begun    {candidate.name}")
        _train(candidate, common, place, shared, needed, launched, environment)
        _score(candidate, Run(place / candidate.name), options.criterion, needed, shared)
        figure = candidate.fault if candidate.score is None else f"{options.criterion} {candidate.score:.6g}"
        tell(f"done     {candidate.name}: {figure}")

    found = _searched(options, base.seed, lambda asked: candidates(file, overrides, asked), work)
    if found[0].score is None:
        raise UserError("no candidate got a score", found[0].fault, file=place)
    for candidate in found:
        processes.check()
        if answers and candidate.score is not None:
            answer(candidate, Run(place / candidate.name), options, needed)
    rows = [
        {"name": c.name, "values": c.values, "score": c.score, "seconds": c.seconds, "fault": c.fault} for c in found
    ]
    write_json(place / "sweep.json", {"criterion": options.criterion, "mode": options.mode, "candidates": rows})
    write_report(base.name, options, found, place, needed)
    return found


def _searched(
    options: SweepOptions,
    seed: int,
    candidates_of: Callable[[Any], list[Candidate]],
    work: Callable[[Candidate, Mapping[str, str]], None],
) -> list[Candidate]:
    """What the search asked for, worked on, best first; those without a score last."""
    known: dict[str, Candidate] = {}
    search = search_of(options, seed)
    while asked := candidates_of(search.ask()):
        new = {candidate.name: candidate for candidate in asked if candidate.name not in known}
        side_by_side(list(new.values()), work, options.parallel)
        known |= new
        search.tell([known[candidate.name].score for candidate in asked])
    return sorted(
        known.values(), key=lambda c: (c.score is None, (c.score or 0) * (-1 if options.mode == "max" else 1))
    )


def _options(recipe: Recipe) -> SweepOptions:
    if recipe.sweep is None:
        hint = "write sweep: {grid: {sft.lora.r: [8, 16]}, criterion: sft.validation_perplexity.after, mode: min}"
        raise UserError("the recipe has no sweep section", hint, file=recipe.file)
    return recipe.sweep


def _covers(section: str, key: str) -> bool:
    """Whether a grid key changes what a stage reads: either may be the wider one."""
    return f"{key}.".startswith(f"{section}.") or f"{section}.".startswith(f"{key}.")


def _plain(recipe: Recipe, stages: Sequence[str]) -> dict[str, Any]:
    """A recipe of just these stages and what they share."""
    return {key: value for key, value in recipe.resolved().items() if key in ("name", "seed", "model", "chat", *stages)}


def _share_work(recipe: Recipe, run: Run, place: Path, shared: Sequence[str], launch: Launch) -> Run:
    """Do in ``sweep/shared`` what no candidate changes, starting from what the run itself has done already."""
    common, file, log = Run(place / "shared"), place / "shared.yaml", place / "shared.log"
    for name in shared:
        if common.manifest(name) is None and run.manifest(name) is not None:
            _share(run.stage(name), common.stage(name))
    if shared:
        _write({**_plain(recipe, shared), "name": "shared"}, file)
        code, line = launch(file, place, log, {})
        if code:
            raise UserError(f"what the candidates share failed: {line}", "mend it and run again", file=log)
    return common


def _train(
    candidate: Candidate,
    common: Run,
    place: Path,
    shared: Sequence[str],
    needed: Sequence[str],
    launch: Launch,
    environment: Mapping[str, str],
) -> None:
    own = Run(place / candidate.name)
    for name in shared:
        _share(common.stage(name), own.stage(name))
    file, log = place / f"{candidate.name}.yaml", place / f"{candidate.name}.log"
    _write(_plain(candidate.recipe, needed), file)
    code, line = launch(file, place, log, environment)
    if code:
        candidate.fault = f"exit code {code}: {line} (see {log})"


def _write(plain: dict[str, Any], path: Path) -> None:
    write_text(path, yaml.safe_dump(plain, allow_unicode=True, sort_keys=False, width=120))


def _share(source: Path, target: Path) -> None:
    """Hard links to a finished stage, unless the same one is there; files are replaced by renaming, never rewritten."""
    theirs, ours = source / "manifest.json", target / "manifest.json"
    if ours.is_file() and read_json(ours)["fingerprint"] == read_json(theirs)["fingerprint"]:
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):  # a file system without hard links
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def _score(candidate: Candidate, run: Run, criterion: str, needed: Sequence[str], shared: Sequence[str]) -> None:
    """Read the criterion's figure and the time from the candidate's manifests."""
    manifests = {name: run.manifest(name) for name in needed}
    candidate.seconds = sum(m["seconds"] for name, m in manifests.items() if m and name not in shared)
    if candidate.fault:
        return
    stage, *path = criterion.split(".")
    value: Any = (manifests[stage] or {}).get("metrics")
    for number, part in enumerate(path):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(value) if isinstance(value, dict) else "nothing"
            candidate.fault = f"no {'.'.join([stage, *path[: number + 1]])} in the manifest; there is: {there}"
            return
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        candidate.fault = f"{criterion} is no number"
    else:
        candidate.score = float(value)
