"""Run a recipe: skip what is up to date, go on with what was interrupted, do the rest, and tell how it goes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from gonggam.allocator import keep_freed_memory
from gonggam.errors import UserError
from gonggam.files import sha256_tree
from gonggam.progress import progress_bar
from pipeline.crew import Crew
from pipeline.model import check_base
from pipeline.recipe import Recipe, check_stage
from pipeline.run import Run, code_version, fingerprint
from pipeline.stages import STAGES, Context

console = Console(stderr=True)


def execute(recipe: Recipe, run: Run, command: list[str], *, only: str | None, start: str | None, force: bool) -> bool:
    """Bring a run folder up to date with its recipe.

    Args:
        recipe: the checked recipe.
        run: the folder to work in.
        command: the command line, kept in the lock file for replay.
        only: do this stage alone (what it builds on must be there).
        start: do this stage and all later ones anew.
        force: do the chosen stages even if they are up to date.

    Returns:
        whether any stage had to be done.

    Raises:
        UserError: whatever a stage finds wrong; the folder is in use; it cannot be written.
    """
    for name in filter(None, (only, start)):
        check_stage(name, recipe)
    keep_freed_memory()
    crew = Crew()
    chosen = [only] if only else recipe.stages
    anew = set(chosen if force else ()) | set(recipe.stages[recipe.stages.index(start) :] if start else ())
    with _main_holds(run, crew):
        prints = crew.on_main(lambda: _begin(recipe, run, command, chosen))
        done = []
        for name in chosen:
            done.append(_stage(recipe, run, crew, name, prints[name], anew=name in anew))
            if name == "prepare" and "dpo" in chosen:
                crew.on_main(lambda: _check_pairs(run.stage("prepare")))
    return any(done)


@contextmanager
def _main_holds(run: Run, crew: Crew) -> Iterator[None]:
    lock = run.locked()
    crew.on_main(lock.__enter__)
    try:
        yield
    finally:
        if crew.is_main:
            lock.__exit__(None, None, None)


def _check_pairs(prepared: Path) -> None:
    """Tell what DPO would miss before the hours that SFT takes."""
    for split in ("train", "test"):
        file = prepared / "preference" / f"{split}.jsonl"
        if not file.is_file() or not file.stat().st_size:
            hint = "add a source with pairs to prepare, or train without dpo: --only sft"
            raise UserError(f"dpo needs preference pairs, and the {split} split has none", hint, file=prepared)


def _begin(recipe: Recipe, run: Run, command: list[str], chosen: list[str]) -> dict[str, str]:
    """Write the lock file; returns the fingerprint of every stage."""
    if recipe.model.base:
        check_base(recipe.model.base)
    for name in chosen:
        if "prepare" in STAGES[name].needs and "prepare" not in recipe.stages and not run.manifest("prepare"):
            raise UserError(
                f"{name} needs data, and the recipe has no prepare section", "write where the data is: prepare"
            )
        for need in STAGES[name].needs:
            if need in recipe.stages and need not in chosen and run.manifest(need) is None:
                raise UserError(f"{name} builds on {need}, which is not done yet", "leave --only out to do it first")
    hashes = _source_hashes(recipe)
    recipe.write_lock(run.folder / "recipe.lock.yaml", data_hashes=hashes, command=command)
    prints: dict[str, str] = {}
    for name in recipe.stages:
        stage = STAGES[name]
        sections = {key: _dotted(recipe, key) for key in stage.sections}
        inputs = hashes if name == "prepare" else {need: prints[need] for need in stage.needs if need in prints}
        prints[name] = fingerprint(name, recipe.seed, sections, inputs, code_version(*stage.code))
    return prints


def _dotted(recipe: Recipe, key: str) -> object:
    section, _, field = key.partition(".")
    plain = recipe.section(section)
    return plain.get(field) if field else plain


def _source_hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every local data source and model folder the recipe names."""
    paths = [recipe.model.base] if recipe.model.base else []
    for source in recipe.section("prepare").get("sources", []):
        given = source.get("path") or []
        paths += [given] if isinstance(given, str) else given
    return {path: sha256_tree(path) for path in paths if Path(path).exists()}


def _stage(recipe: Recipe, run: Run, crew: Crew, name: str, wanted: str, *, anew: bool) -> bool:
    """Do one stage unless it is up to date; returns whether it was done."""
    if crew.on_main(lambda: not anew and run.is_current(name, wanted)):
        if crew.is_main:
            console.print(f"[dim]{name:8} up to date[/]")
        return False
    going_on = crew.on_main(lambda: run.begin(name, wanted, anew=anew))
    if going_on and crew.is_main:
        console.print(f"{name:8} goes on where it was interrupted")
    stage, began = STAGES[name], time.perf_counter()
    try:
        with progress_bar(name, show=crew.is_main) as progress:
            context = Context(recipe, run, run.stage(name), progress)
            _reset_peak()
            metrics = stage.work(context) if stage.everywhere else crew.on_main(lambda: stage.work(context))
    except BaseException:
        if crew.is_main:
            run.spent(name, time.perf_counter() - began)
        raise
    metrics["peak_memory_bytes"] = _peak()

    def finish() -> None:
        if history := metrics.get("history"):
            from pipeline.train.curves import write_curves

            write_curves(run.stage(name), history, title=f"{recipe.name}: {name}")
        seconds = run.spent(name) + time.perf_counter() - began
        run.finish(name, wanted, seconds=seconds, metrics=metrics)
        console.print(f"{name:8} done in {seconds:.1f} s")

    crew.on_main(finish)
    return True


def _reset_peak() -> None:
    """Start the kernel's high-water mark of resident memory anew, where it can be (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak is then that of the whole process so far
        return


def _peak() -> int:
    """Peak resident memory in bytes, or peak GPU memory where a GPU was used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line[:5] == "VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
