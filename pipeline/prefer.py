"""Who helps to build preference pairs: the model that is to be aligned, and a judge out of the evaluation room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.answers import Answers, kept, key_of

if TYPE_CHECKING:
    from pipeline import Counselor

Messages = list[dict[str, str]]
Sample = Callable[[Messages, int], list[str]]
Score = Callable[[Messages, Sequence[str]], list[float]]


def sampler(counselor: Counselor, where: str, cache: Path) -> Sample:
    """``sample(prompt, n)``: n replies of the model after SFT (if it has that), kept in ``cache`` as they come.

    Args:
        counselor: holds the model.
        where: its run folder or name; another one, or one trained anew, is sampled anew.
        cache: JSON-lines file.
    """
    from pipeline.chat.backends import Request, Settings, collect
    from pipeline.prompt import with_system

    backend = counselor.backend
    adapter = "sft" if "sft" in backend.adapters else None

    def sample(prompt: Messages, n: int) -> list[str]:
        messages = with_system(prompt, counselor.system)
        asks = [Request(messages, Settings(adapter=adapter, seed=seed)) for seed in range(n)]
        return [collect(stream).text for stream in backend.stream(asks)]

    return kept(Answers(cache), _identity(where), sample)


def _identity(where: str) -> str:
    """Changes when the weights in a run folder do."""
    folder = Path(where).resolve()
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
    stats = [[file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return key_of([folder.as_posix() if files else where, stats])


def geval_judge(judge: str, rubric: str, store: Path, counselor: Counselor | None = None) -> Score:
    """A judge that scores replies by G-Eval: the mean over the criteria of a rubric, NaN where one is missing.

    Args:
        judge: shipped judge by name, or a YAML; ``local`` is the model of ``counselor``.
        rubric: likewise.
        store: JSON-lines file of verdicts; what stands in it is not asked again.
        counselor: only needed for ``local``.

    Raises:
        UserError: there is no such judge or rubric, or steps are missing and the judge writes none.
    """
    from eval import Answer, GEval, LocalJudge, load_judge, load_rubric
    from eval.http_judge import HttpJudge
    from eval.steps import freeze_steps
    from eval.store import Store

    if judge == "local" and counselor is not None:
        backend = counselor.backend
        who = LocalJudge(backend.model, backend.tokenizer, name=f"local:{Path(backend.name).name}")
    else:
        who = HttpJudge(load_judge(judge))
    verdicts = Store(store)
    geval = GEval(freeze_steps(load_rubric(rubric), who, verdicts), who, verdicts)
    wide = len(geval.rubric.criteria)

    def score(prompt: Messages, replies: Sequence[str]) -> list[float]:
        answers = [Answer({"id": str(i), "messages": prompt}, reply) for i, reply in enumerate(replies)]
        given = [judgement.verdict.score for judgement in geval.score(answers)]
        rows = [given[i : i + wide] for i in range(0, len(given), wide)]
        return [float("nan") if None in row else sum(s for s in row if s is not None) / wide for row in rows]

    return score
