"""How well memories are recalled: users with dated sessions and later questions whose gold exchanges are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gonggam.errors import UserError
from gonggam.files import read_jsonl
from gonggam.progress import Progress
from rag.calibrate import unrelated_level
from rag.index import ExchangeIndex
from rag.log import Exchange
from rag.options import MemoryOptions

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from rag.rerank import Reranker

Ranked = list[tuple[str, float]]  # ids best first, each with its score
KS = (1, 2, 5)


@dataclass(frozen=True)
class Question:
    """A later question: the exchanges it calls for (none for small talk), and its kind."""

    query: str
    gold: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class BenchUser:
    """One user's exchanges in order of time, and the questions asked afterwards."""

    name: str
    exchanges: tuple[Exchange, ...]
    questions: tuple[Question, ...]


Way = Callable[[BenchUser], Callable[[str], Ranked]]  # a user's history -> a query -> what is recalled


def read_users(path: str | Path) -> list[BenchUser]:
    """Read a file of users: ``user, sessions[{date, turns[[role, text]…]}], questions[{query, gold, kind}]``.

    Raises:
        UserError: a line lacks a field or names a turn that is not there.
    """
    users = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            users.append(_user(row))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"not a user of the memory benchmark ({error!r})", file=path, line=number) from error
    return users


def memory_bench(
    users: Sequence[BenchUser],
    embedders: Mapping[str, Embeddings],
    settings: MemoryOptions | None = None,
    *,
    reranker: Reranker | None = None,
    calibration: Sequence[Sequence[tuple[str, str]]] = (),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Compare ways to remember.

    Recall@k is the share of a question's gold exchanges among the first k, averaged over the questions that have
    some; MRR the mean reciprocal rank of the first gold exchange. ``auc`` is the chance that the best score of a
    question with gold exceeds that of one without (0.5: no better than a coin); ``false_recall`` the share of
    questions without gold for which something is recalled at the threshold, ``missed`` the share of those with gold
    for which nothing is. Recall is measured without the threshold; ``kept@2`` is recall@2 with it.

    Args:
        users: see `read_users`.
        embedders: name -> embedder.
        calibration: conversations (of other people) by which the threshold is set if the recipe names none.

    Returns:
        one row a method: ``method, embedder, recall@1, recall@2, recall@5, mrr, kept@2, auc, false_recall, missed,
        by_kind``.
    """
    settings = settings or MemoryOptions()
    ways = list(_ways(users, embedders, settings, reranker, calibration))
    rows = []
    for done, (method, name, way, threshold) in enumerate(ways, 1):
        answers = [(q, found(q.query)) for user in users for found in [way(user)] for q in user.questions]
        rows.append({"method": method, "embedder": name, **_score(answers, threshold)})
        if progress:
            progress(done, len(ways))
    return rows


def _ways(
    users: Sequence[BenchUser],
    embedders: Mapping[str, Embeddings],
    settings: MemoryOptions,
    reranker: Reranker | None,
    calibration: Sequence[Sequence[tuple[str, str]]],
) -> Iterator[tuple[str, str, Way, float]]:
    """Method, embedder, how it remembers, and the score below which it recalls nothing."""
    never = float("-inf")
    yield "no memory", "", lambda user: lambda query: [], never
    yield "recent window", "", lambda user: lambda query: _newest(user), never
    yield "BM25", "", lambda user: _bm25(user, settings.reply_context), never
    variants = {
        "dense": settings.model_copy(update={"lexical": 0.0}),
        "hybrid, reciprocal rank": settings.model_copy(update={"fusion": "rrf"}),
        "hybrid, sum": settings.model_copy(update={"fusion": "sum"}),
    }
    for name, embedder in embedders.items():
        yield "seed: global L2, k=2, window 1", name, _seed(users, embedder), never
        for method, own in variants.items():
            level = own.threshold if own.threshold is not None else unrelated_level(calibration, embedder, own)
            yield method, name, partial(_ours, embedder=embedder, settings=own), level
        if reranker:
            way = partial(_ours, embedder=embedder, settings=variants["hybrid, sum"], reranker=reranker)
            yield "hybrid, sum + reranker", name, way, level


def _user(row: dict[str, Any]) -> BenchUser:
    exchanges = []
    for s, session in enumerate(row["sessions"]):
        turns, when = session["turns"], datetime.fromisoformat(session["date"]).replace(tzinfo=UTC)
        for t in range(0, len(turns) - 1, 2):
            exchanges.append(Exchange(f"{s}.{t}", str(s), when, turns[t][1], turns[t + 1][1]))
    ids = {exchange.id for exchange in exchanges}
    questions = []
    for question in row["questions"]:
        gold = tuple(f"{s}.{t}" for s, t in question["gold"])
        if not ids.issuperset(gold):
            raise ValueError(f"gold {question['gold']} names no exchange")
        questions.append(Question(question["query"], gold, question["kind"]))
    return BenchUser(row["user"], tuple(exchanges), tuple(questions))


def _newest(user: BenchUser) -> Ranked:
    return [(exchange.id, 1.0) for exchange in reversed(user.exchanges)]


def _bm25(user: BenchUser, reply_context: float) -> Callable[[str], Ranked]:
    from rag.index import terms
    from rag.korean import morphemes
    from rag.lexical import Bm25, ranking

    index = Bm25()
    for exchange in user.exchanges:
        index.add_weighted(terms(morphemes(exchange.user), exchange.reply, reply_context))

    def found(query: str) -> Ranked:
        scores = index.scores(morphemes(query))
        return [(user.exchanges[i].id, float(scores[i])) for i in ranking(scores, len(scores))]

    return found


def _seed(users: Sequence[BenchUser], embedder: Embeddings) -> Callable[[BenchUser], Callable[[str], Ranked]]:
    """The way this project began: one index for everybody, two nearest by L2, and the newest exchange."""
    import faiss

    from rag.store import embed

    owners = [(user.name, exchange.id) for user in users for exchange in user.exchanges]
    vectors = embed(embedder, [exchange.user for user in users for exchange in user.exchanges])
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)

    def way(user: BenchUser) -> Callable[[str], Ranked]:
        def found(query: str) -> Ranked:
            distances, rows = index.search(embed(embedder, [query]), 2)
            near = [(owners[row], -float(d)) for row, d in zip(rows[0], distances[0], strict=True)]
            mine = [(i if name == user.name else f"{name}:{i}", score) for (name, i), score in near]
            return [*mine, (user.exchanges[-1].id, float("-inf"))]

        return found

    return way


def _ours(
    user: BenchUser, embedder: Embeddings, settings: MemoryOptions, reranker: Reranker | None = None
) -> Callable[[str], Ranked]:
    index = ExchangeIndex(embedder, settings, reranker)
    index.add(user.exchanges)
    now = user.exchanges[-1].when

    def found(query: str) -> Ranked:
        return [(exchange.id, score) for exchange, score in index.search(query, len(user.exchanges), now=now)]

    return found


def _score(answers: Sequence[tuple[Question, Ranked]], threshold: float) -> dict[str, Any]:
    asked, small_talk = ([(q, r) for q, r in answers if bool(q.gold) is wanted] for wanted in (True, False))
    kept = [(q, r if _top(r) >= threshold else []) for q, r in asked]
    false = [bool(r) and _top(r) >= threshold for _, r in small_talk]
    return {
        **_recall(asked),
        "kept@2": _recall(kept)["recall@2"],
        "auc": _auc([_top(r) for _, r in asked], [_top(r) for _, r in small_talk]),
        "false_recall": round(float(np.mean(false)), 4) if false else None,
        "missed": round(float(np.mean([not r for _, r in kept])), 4),
        "questions": len(answers),
        "by_kind": {
            kind: _recall([pair for pair in asked if pair[0].kind == kind])
            for kind in dict.fromkeys(question.kind for question, _ in asked)
        },
    }


def _top(ranked: Ranked) -> float:
    return max((score for _, score in ranked), default=float("-inf"))


def _recall(asked: Sequence[tuple[Question, Ranked]]) -> dict[str, float]:
    shares = {k: [len({i for i, _ in found[:k]} & set(q.gold)) / len(q.gold) for q, found in asked] for k in KS}
    first = [next((1 / rank for rank, (i, _) in enumerate(found, 1) if i in q.gold), 0.0) for q, found in asked]
    return {
        **{f"recall@{k}": round(float(np.mean(values)), 4) for k, values in shares.items()},
        "mrr": round(float(np.mean(first)), 4),
    }


def _auc(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Chance that one of ``above`` exceeds one of ``below``; ties count half."""
    if not above or not below:
        return None
    wins = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    return round(float(np.mean(wins)), 4)
