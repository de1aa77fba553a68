"""Who helps to build preference pairs: the model that is to be aligned, and a judge out of the evaluation room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.answers import Answers, kept, key_of
from gonggam.errors import UserError
from gonggam.progress import Progress

if TYPE_CHECKING:
    from data_prep.conversation import Conversation
    from pipeline import Counselor
    from pipeline.serve.store.records import Preferred

Messages = list[dict[str, str]]
Sample = Callable[[Messages, int], list[str]]
Score = Callable[[Sequence[tuple[Messages, str]], Progress | None], list[float]]


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


def from_service(pairs: Iterable[Preferred]) -> list[Conversation]:
    """What users of the service chose between two replies, with personal data masked."""
    from data_prep.conversation import Conversation, Turn
    from data_prep.privacy import Privacy

    masked = Privacy("mask")
    made = []
    for number, pair in enumerate(pairs):
        said = [Turn("user" if m["role"] == "user" else "assistant", m["content"]) for m in pair.messages]
        turns = (*said, Turn("assistant", pair.chosen))
        safe = masked(Conversation(f"service-{number}", turns, "service", rejected=(pair.rejected,)))
        if isinstance(safe, Conversation):
            made.append(safe)
    return made


def geval_judge(judge: str, rubric: str, store: Path, load: Callable[[], Counselor] | None = None) -> Score:
    """A judge that scores replies by G-Eval: the mean over the criteria of a rubric, NaN where one is missing.

    Questions are asked side by side, as many as the judge allows.

    Args:
        judge: shipped judge by name, or a YAML; ``local`` is the model of the counsellor that ``load`` gives.
        rubric: likewise.
        store: JSON-lines file of verdicts; what stands in it is not asked again.
        load: only needed for ``local``.

    Raises:
        UserError: there is no such judge or rubric, steps are missing and the judge writes none, or ``local`` has no
            model in this process.
    """
    from eval import Answer, GEval, LocalJudge, load_judge, load_rubric
    from eval.http_judge import HttpJudge
    from eval.steps import freeze_steps
    from eval.store import Store
    from pipeline.chat.local import TransformersBackend

    who: LocalJudge | HttpJudge
    if judge == "local" and load is not None:
        backend = load().backend
        if not isinstance(backend, TransformersBackend):
            raise UserError("`local` needs a model in this process", "name another judge")
        who = LocalJudge(backend.model, backend.tokenizer, name=f"local:{Path(backend.name).name}")
    else:
        who = HttpJudge(load_judge(judge))
    verdicts = Store(store)
    geval = GEval(freeze_steps(load_rubric(rubric), who, verdicts), who, verdicts)
    wide = len(geval.rubric.criteria)

    def score(replies: Sequence[tuple[Messages, str]], progress: Progress | None = None) -> list[float]:
        answers = [Answer({"id": str(i), "messages": prompt}, reply) for i, (prompt, reply) in enumerate(replies)]
        given = [judgement.verdict.score for judgement in geval.score(answers, progress)]
        rows = [given[i : i + wide] for i in range(0, len(given), wide)]
        return [float("nan") if None in row else sum(s for s in row if s is not None) / wide for row in rows]

    return score
