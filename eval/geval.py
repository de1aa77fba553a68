"""G-Eval (Liu et al. 2023): each reply is scored under each criterion by its expected score under the judge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any

from eval.judges import Judge, Question, Verdict
from eval.rubric import Criterion, Rubric
from eval.store import Store, content_key
from gonggam.progress import Progress


@dataclass(frozen=True)
class Judgement:
    """One verdict on one reply under one criterion.

    ``system`` names who wrote the reply; ``repeat`` counts repetitions of the same question.
    """

    item: str
    system: str
    criterion: str
    judge: str
    rubric: str
    repeat: int
    verdict: Verdict

    def row(self) -> dict[str, Any]:
        """Flat, for files."""
        fields = asdict(self)
        return {**fields, **fields.pop("verdict")}


@dataclass(frozen=True)
class Answer:
    """A reply to be judged. ``item`` holds ``id``, ``messages`` (up to the user's turn) and perhaps ``reference``."""

    item: Mapping[str, Any]
    reply: str
    system: str = "reply"


@dataclass
class GEval:
    """Judges replies under a rubric.

    Args:
        rubric: with steps for every criterion (see `eval.steps.freeze_steps`).
        judge: who is asked.
        store: where verdicts are kept and found again; in memory if absent.
        repeats: judgements per reply and criterion.
        seed: of the samples; each repetition has its own.
        concurrency: questions in flight; the judge's own setting if absent.
    """

    rubric: Rubric
    judge: Judge
    store: Store | None = None
    repeats: int = 1
    seed: int = 0
    concurrency: int | None = None

    def score(self, answers: Sequence[Answer | Mapping[str, Any]], progress: Progress | None = None) -> list[Judgement]:
        """Judge every answer under every criterion; the order of the result does not depend on the judge's speed.

        Args:
            answers: `Answer`s, or items that carry their own ``reply``.
            progress: called as (judgements done, judgements in all).

        An empty reply is not shown to the judge; its judgements are missing with problem `empty reply`.
        """
        work = [
            (answer, criterion, repeat)
            for answer in map(_as_answer, answers)
            for criterion in self.rubric.criteria
            for repeat in range(self.repeats)
        ]
        verdicts: list[Verdict | None] = [None] * len(work)
        calls = [lambda w=w: self._verdict(*w) for w in work]
        for done, (index, verdict) in enumerate(in_flight(calls, self.concurrency or self.judge.spec.concurrency), 1):
            verdicts[index] = verdict
            if progress:
                progress(done, len(work))
        return [
            Judgement(
                item=str(answer.item["id"]),
                system=answer.system,
                criterion=criterion.key,
                judge=self.judge.spec.name,
                rubric=f"{self.rubric.name}@{self.rubric.hash}",
                repeat=repeat,
                verdict=verdict,
            )
            for (answer, criterion, repeat), verdict in zip(work, verdicts, strict=True)
            if verdict is not None
        ]

    def question(self, answer: Answer, criterion: Criterion) -> Question:
        """What the judge is asked about one answer."""
        prompt = self.rubric.render(criterion, answer.item, answer.reply)
        return Question(prompt, self.rubric.render_form(criterion), criterion.scores)

    def _verdict(self, answer: Answer, criterion: Criterion, repeat: int) -> Verdict:
        if not answer.reply.strip():
            return Verdict(self.judge.spec.method, problem="empty reply")
        return ask_once(self.judge, self.question(answer, criterion), self.store, repeat, self.seed)


def ask_once(judge: Judge, question: Question, store: Store | None, repeat: int = 0, seed: int = 0) -> Verdict:
    """Ask, unless the store already holds this judge's verdict on this question."""
    if store is None:
        return judge.ask(question, seed + repeat)
    key = content_key(question.prompt, question.form, list(question.scores), judge.spec.identity, repeat, seed)
    row = store.get(key)
    known = None if row is None else Verdict.from_row(row)
    if known is not None and known.paid:
        return known
    verdict = judge.ask(question, seed + repeat)
    store.put(key, asdict(verdict))
    return verdict


def in_flight(calls: Sequence[Callable[[], Verdict]], width: int) -> Iterator[tuple[int, Verdict]]:
    """Run the calls, at most ``width`` at a time, and yield (index, result) as they end.

    On an error, or when the caller stops, no further call is started.
    """
    if width == 1:
        yield from ((index, call()) for index, call in enumerate(calls))
        return
    waiting = iter(enumerate(calls))
    running: dict[Future[Verdict], int] = {}
    ended: SimpleQueue[Future[Verdict]] = SimpleQueue()

    def start(count: int) -> None:
        for index, call in itertools.islice(waiting, count):
            future = pool.submit(call)
            running[future] = index
            future.add_done_callback(ended.put)

    with ThreadPoolExecutor(width) as pool:
        try:
            start(2 * width)  # one waits behind each worker, so that none stands idle
            while running:
                future = ended.get()
                start(1)
                yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _as_answer(answer: Answer | Mapping[str, Any]) -> Answer:
    if isinstance(answer, Answer):
        return answer
    return Answer(answer, str(answer["reply"]), str(answer.get("system", "reply")))
