"""The first half of an evaluation: let the systems answer, measure, judge the judge, judge."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.agreement import rated_answers
from eval.calibration import BETTER, WORSE, pair_answers
from eval.cost import estimate
from eval.geval import Answer, GEval, Judgement, Progress
from eval.judges import Judge, JudgeSpec, load_judge
from eval.options import EvalOptions
from eval.pairwise import Duel, fight
from eval.raw import Raw
from eval.reference import Check, Embed, EmbedWords, corpus_metrics, human_metrics, reply_metrics
from eval.rubric import load_rubric
from eval.speech import load_kiwi
from eval.steps import freeze_steps
from eval.store import Store, content_key
from gonggam.errors import UserError

Reply = Callable[[list[dict[str, str]]], str]
Item = Mapping[str, Any]


def collect(
    items: Sequence[Item],
    systems: Mapping[str, Sequence[str] | Reply],
    options: EvalOptions | None = None,
    judge: Judge | JudgeSpec | Sequence[Judge | JudgeSpec] | None = None,
    out: str | Path = "eval",
    progress: Progress | None = None,
    *,
    pairs: Sequence[Item] = (),
    ratings: Sequence[Item] = (),
    pair_judge: str | Collection[str] | None = None,
    checks: Mapping[str, Check] | None = None,
    embed: Embed | None = None,
    embed_words: EmbedWords | None = None,
    fingerprint: str = "",
    cache: str | Path | None = None,
) -> Raw:
    """Let the systems answer and the judges judge; arguments as for `eval.run.evaluate`, whose first half this is.

    Everything is kept in ``out``/raw as it comes, so a run that was cut off goes on from there.

    Raises:
        UserError: as `eval.run.evaluate` says.
    """
    options, out = options or EvalOptions(), Path(out)
    items = [dict(item) for item in items][: options.items]
    pairs = spread_out([dict(pair) for pair in pairs], options.calibration_pairs)
    check_items(items, systems)
    judges = _judges(judge, options)
    _refuse_pair_judge(judges, pair_judge, options)
    rubric = load_rubric(options.rubric).only(options.criteria)
    if judges and options.pairwise:
        rubric.check_pairs()
    pairs, ratings = (pairs, [dict(rating) for rating in ratings]) if judges else ([], [])
    work = sum(map(callable, systems.values())) * len(items)
    work += len(judges) * _questions(len(items), len(pairs), len(ratings), len(systems), len(rubric.criteria), options)
    steps = _Steps(progress, work)
    replies = {name: _replies(name, system, items, out, fingerprint, steps) for name, system in systems.items()}
    raw = Raw(options, rubric, [judge.spec for judge in judges], items, replies, pairs=pairs, ratings=ratings)
    kiwi = load_kiwi()
    for name, texts in replies.items():
        raw.metrics[name] = reply_metrics(items, texts, kiwi, checks=checks, embed=embed, embed_words=embed_words)
        raw.corpus[name] = corpus_metrics(items, texts, kiwi)
    raw.human = human_metrics(items, kiwi, checks)
    with Store(Path(cache or out / "raw") / "verdicts.jsonl") as store:
        raw.rubric = freeze_steps(rubric, judges[0], store) if judges else rubric
        _refuse_cost(raw)
        for member in judges:
            _judge(raw, member, store, steps)
    raw.save(out / "raw")
    return raw


def check_options(options: EvalOptions, pair_judge: str | Collection[str] | None = None) -> None:
    """Refuse what `collect` would refuse, before a model is loaded; the judge `local` is taken on trust.

    Raises:
        UserError: an unknown rubric, criterion or judge, a judge without its key or that made the preference pairs.
    """
    rubric = load_rubric(options.rubric).only(options.criteria)
    named = options.judge if isinstance(options.judge, list) else [options.judge]
    judges = _judges(None, options.model_copy(update={"judge": [name for name in named if name != "local"]}))
    _refuse_pair_judge(judges, pair_judge, options)
    if options.pairwise and any(named):
        rubric.check_pairs()


def check_items(items: Sequence[Item], systems: Mapping[str, Any]) -> None:
    """Refuse what cannot be evaluated, before anything is asked or paid.

    Raises:
        UserError: no items or systems, an item without a dialogue or not ending in a user's turn, ids that repeat,
            a list of replies of another length.
    """
    if not items:
        raise UserError("there is nothing to evaluate", "give at least one held-out conversation")
    if not systems:
        raise UserError("there is no system to evaluate", "name at least one model or file of replies")
    seen: set[str] = set()
    for number, item in enumerate(items, 1):
        messages = item.get("messages")
        if not messages:
            raise UserError(f"item {item.get('id', number)} has no dialogue", "every item needs `messages`")
        if messages[-1]["role"] != "user":
            raise UserError(f"the dialogue of item {item.get('id', number)} does not end with the user's turn")
        if str(item["id"]) in seen:
            raise UserError(f"two items are called {item['id']!r}", "give every item its own id")
        seen.add(str(item["id"]))
    for name, system in systems.items():
        if not callable(system) and len(system) < len(items):
            raise UserError(f"{name} has {len(system)} replies for {len(items)} items")


def _judge(raw: Raw, judge: Judge, store: Store, steps: _Steps) -> None:
    """Let one judge judge the calibration pairs, the replies and, if wanted, the duels."""
    options = raw.options
    items, pairs, ratings = (_shown(rows, options.history_turns) for rows in (raw.items, raw.pairs, raw.ratings))
    geval = GEval(raw.rubric, judge, store, options.repeats, options.seed, options.concurrency)
    raw.pair_judgements += _rows(geval.score(pair_answers(pairs), steps.phase()))
    raw.rating_judgements += _rows(geval.score(rated_answers(ratings), steps.phase()))
    answers = [Answer(i, t, name) for name, texts in raw.replies.items() for i, t in zip(items, texts, strict=True)]
    raw.judgements += _rows(geval.score(answers, steps.phase()))
    if options.pairwise:
        known = [Duel(pair, BETTER, WORSE, pair[BETTER], pair[WORSE]) for pair in pairs]
        duels = [
            Duel(item, a, b, raw.replies[a][index], raw.replies[b][index])
            for a, b in itertools.combinations(raw.replies, 2)
            for index, item in enumerate(items)
        ]
        how = (raw.rubric, judge, store, options.seed, options.concurrency)
        raw.pair_duels += fight(known, *how, steps.phase())
        raw.duels += fight(duels, *how, steps.phase())


def _shown(rows: Sequence[Item], turns: int | None) -> list[dict[str, Any]]:
    """The rows with as much of their dialogues as the judge is to see."""
    return [{**row, "messages": row["messages"][-turns:] if turns else row["messages"]} for row in rows]


def _questions(items: int, pairs: int, ratings: int, systems: int, criteria: int, options: EvalOptions) -> int:
    """How many questions each judge is asked."""
    single = options.repeats * criteria * (systems * items + 2 * pairs + ratings)
    return single + (2 * (pairs + items * math.comb(systems, 2)) if options.pairwise else 0)


def spread_out(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows at even distances, so that a sorted file gives all its kinds a chance."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows


class _Steps:
    """Counts the steps of all phases together for one progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.total, self.done, self._progress = total, 0, progress

    def phase(self) -> Progress:
        """A callback for one phase, whose steps start where the last phase ended."""
        start = self.done

        def report(done: int, _: int) -> None:
            self.done = start + done
            if self._progress:
                self._progress(self.done, self.total)

        return report


def _replies(
    name: str, system: Sequence[str] | Reply, items: Sequence[Item], out: Path, fingerprint: str, steps: _Steps
) -> list[str]:
    """One reply per item; those a model wrote before the run was cut off are taken from disk."""
    if not callable(system):
        return [str(reply) for reply in system[: len(items)]]
    report, replies = steps.phase(), []
    with Store(out / "raw" / "written.jsonl") as store:
        for done, item in enumerate(items, 1):
            messages = [dict(message) for message in item["messages"]]
            key = content_key(name, fingerprint, messages)
            row = store.get(key)
            if row is None:
                row = {"reply": system(messages)}
                store.put(key, row)
            replies.append(row["reply"])
            report(done, len(items))
    return replies


def _judges(judge: Judge | JudgeSpec | Sequence[Judge | JudgeSpec] | None, options: EvalOptions) -> list[Judge]:
    from eval.http_judge import HttpJudge

    if judge is not None:
        given = list(judge) if isinstance(judge, Sequence) else [judge]
        return [HttpJudge(member) if isinstance(member, JudgeSpec) else member for member in given]
    named = options.judge if isinstance(options.judge, list) else [options.judge]
    if "local" in named:
        raise UserError("the judge `local` needs a loaded model", "name a judge, or evaluate a run folder")
    return [HttpJudge(load_judge(name)) for name in named if name is not None]


def _refuse_pair_judge(judges: Sequence[Judge], makers: str | Collection[str] | None, options: EvalOptions) -> None:
    made = {_family(maker) for maker in ([makers] if isinstance(makers, str) else makers or ())}
    for judge in judges:
        if _family(judge.spec.model) in made and not options.allow_pair_judge:
            raise UserError(
                f"{judge.spec.model} made the preference pairs that this run was trained on, "
                "so it would judge its own taste",
                "choose another judge, or set `eval.allow_pair_judge: true`",
            )


def _family(model: str) -> str:
    """The model's name without vendor and date, by which `openai/gpt-4o` and `gpt-4o-2024-08-06` are the same."""
    return re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", model.rsplit("/", 1)[-1].lower())


def _refuse_cost(raw: Raw) -> None:
    if raw.options.max_cost is None:
        return
    sides = {side: [str(pair[side]) for pair in raw.pairs] for side in (BETTER, WORSE)}
    parts = [(raw.items, raw.replies), (raw.pairs, sides)]
    cost = sum(estimate(raw.rubric, raw.judges, items, texts, raw.options.repeats).cost for items, texts in parts)
    if cost > raw.options.max_cost:
        raise UserError(
            f"judging would cost about {cost:.2f} USD, more than max_cost {raw.options.max_cost:.2f}",
            "lower `eval.items` or `eval.calibration_pairs`, name fewer `eval.criteria`, or raise `eval.max_cost`",
        )


def _rows(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    return [judgement.row() for judgement in judgements]
