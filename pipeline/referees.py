"""Who judges: names of a recipe or a command line become judges; `local` is a run's own base model, in process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval import LocalJudge, load_judge
from eval.judges import Judge, JudgeSpec, Question, Verdict
from gonggam.errors import UserError
from pipeline.chat.backends import Backend
from pipeline.chat.local import TransformersBackend, load_local
from pipeline.model import base_of, using

LOCAL = "local"
Named = str | dict[str, Any] | Sequence[str | dict[str, Any]] | None


class OwnBase(LocalJudge):
    """The base model of a backend, whatever adapters it carries.

    Raises:
        UserError: the backend is no model in this process.
    """

    def __init__(self, backend: Backend) -> None:
        if not isinstance(backend, TransformersBackend):
            raise UserError("`local` needs a model in this process", "name another judge")
        super().__init__(backend.model, backend.tokenizer, name=f"local:{Path(backend.name).name}")

    def ask(self, question: Question, seed: int = 0) -> Verdict:
        """See `LocalJudge.ask`."""
        with using(self.model, "none"):
            return super().ask(question, seed)

    def write(self, prompt: str, max_tokens: int = 512) -> str:
        """See `LocalJudge.write`."""
        with using(self.model, "none"):
            return super().write(prompt, max_tokens)


def names_of(named: Named) -> list[str | dict[str, Any]]:
    """One name, a list of them or none, as a list."""
    return [] if named is None else [named] if isinstance(named, str | dict) else list(named)


def judges_of(named: Named, backend: Backend) -> list[Judge | JudgeSpec]:
    """The judges so named; ``local`` is the backend's base model.

    Raises:
        UserError: an unknown judge, or ``local`` with a backend that is no model in this process.
    """
    return [OwnBase(backend) if name == LOCAL else load_judge(name) for name in names_of(named)]


@contextmanager
def referees(named: Named, run: str | Path) -> Iterator[list[Judge | JudgeSpec]]:
    """The judges so named, while they are needed; for ``local`` the run's base model is loaded.

    Raises:
        UserError: an unknown judge, or ``local`` and no run folder.
    """
    if LOCAL not in names_of(named):
        yield [load_judge(name) for name in names_of(named)]
        return
    backend = _base(Path(run))
    try:
        yield judges_of(named, backend)
    finally:
        backend.close()


def _base(folder: Path) -> TransformersBackend:
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    lock = folder / "recipe.lock.yaml"
    if not lock.is_file():
        raise UserError("the judge `local` is the base model of a run", "name a run folder first", file=folder)
    recipe = load_recipe(lock)
    return load_local(base_of(recipe, Run(folder)), settings=recipe.model)
