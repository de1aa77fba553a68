"""The first half of an evaluation: let the systems answer, measure, judge the judge, judge."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from eval.cost import estimate
from eval.geval import GEval, Judgement, Progress
from eval.judges import Judge, JudgeSpec, load_judge
from eval.options import EvalOptions, SimulateOptions
from eval.pairwise import fight
from eval.raw import Raw
from eval.reference import Check, Embed, EmbedWords, corpus_metrics, human_metrics, reply_metrics
from eval.rubric import load_rubric
from eval.simulate import load_cast
from eval.steps import freeze_steps
from eval.store import Store, content_key
from eval.work import Work, work_of
from gonggam.errors import UserError

Reply = Callable[[list[dict[str, str]]], str]
Item = Mapping[str, Any]
Systems = Mapping[str, Sequence[str] | Reply]
Judges = Judge | JudgeSpec | Sequence[Judge | JudgeSpec] | None


class Inputs(TypedDict, total=False):
    """What an evaluation may be given besides items, systems and judges.

    Attributes:
        pairs: for the calibration of the judge: ``id``, ``messages``, ``chosen``, ``rejected``.
        ratings: further calibration, by people's scores: ``id``, ``messages``, ``reply``, ``human_KEY`` per criterion.
        pair_judge: model or models that made the DPO pairs, if any; refused as judge unless the options allow it.
        checks: further measures of a reply (emotion match, safety): name → function of (item, reply).
        embed: texts → unit vectors, for the similarity to the reference.
        embed_words: texts → the vectors of each one's words, for the same word by word.
        embedder: what these two are, in words for the report.
        sources: system → item id → where the reply comes from: `eval.summary.NOTICE` for fixed words in place of an
            answer, any other word else.
        fingerprint: of what the systems are (hashes of their weights, decoding settings). Replies found in the report's
            folder are used again only under the same fingerprint.
        cache: folder of the verdicts, if they are to outlive the report's.
    """

    pairs: Sequence[Item]
    ratings: Sequence[Item]
    pair_judge: str | Collection[str] | None
    checks: Mapping[str, Check] | None
    embed: Embed | None
    embed_words: EmbedWords | None
    embedder: str
    sources: Mapping[str, Mapping[str, str]]
    fingerprint: str
    cache: str | Path | None


def collect(
    items: Sequence[Item],
    systems: Systems,
    options: EvalOptions | None = None,
    judge: Judges = None,
    out: str | Path = "eval",
    progress: Progress | None = None,
    **given: Unpack[Inputs],
) -> Raw:
    """Let the systems answer and the judges judge; arguments as for `eval.run.evaluate`, whose first half this is.

    Everything is kept in ``out``/raw as it comes, so a run that was cut off goes on from there.

    Raises:
        UserError: as `eval.run.evaluate` says.
    """
    options, out = options or EvalOptions(), Path(out)
    items = [dict(item) for item in items][: options.items]
    items, systems, left_out = usable(items, systems)
    judges = _judges(judge, options)
    _refuse_pair_judge([judge.spec.model for judge in judges], given.get("pair_judge"), options)
    rubric = load_rubric(options.rubric).only(options.criteria)
    if judges and options.pairwise:
        rubric.check_pairs()
    pairs = spread_out(list(map(dict, given.get("pairs", ()))), options.calibration_pairs) if judges else []
    ratings = list(map(dict, given.get("ratings", ()))) if judges else []
    asked = _questions(len(items), len(pairs), len(ratings), len(systems), len(rubric.criteria), options)
    total = sum(map(callable, systems.values())) * len(items) + len(judges) * asked
    Store(out / "raw" / "written.jsonl").close()  # a folder that cannot be written is found before anything is paid
    steps, key = _Steps(progress, total), given.get("fingerprint", "")
    replies = {name: _replies(name, system, items, out, key, steps) for name, system in systems.items()}
    raw = Raw(options, rubric, [judge.spec for judge in judges], items, replies, pairs=pairs, ratings=ratings)
    raw.left_out = dict(left_out)
    raw.sources = {name: dict(told) for name, told in given.get("sources", {}).items()}
    _measure(raw, given)
    with Store(Path(given.get("cache") or out / "raw") / "verdicts.jsonl") as store:
        raw.rubric = freeze_steps(rubric, judges[0], store) if judges else rubric
        work = work_of(items, replies, options, pairs, ratings)
        _refuse_cost(raw, work)
        for member in judges:
            _judge(raw, work, member, store, steps)
    raw.save(out / "raw")
    return raw


def _measure(raw: Raw, given: Inputs) -> None:
    """Take every measure that needs no judge."""
    checks = given.get("checks")
    likeness: dict[str, Any] = {"embed": given.get("embed"), "embed_words": given.get("embed_words")}
    for name, texts in raw.replies.items():
        raw.metrics[name] = reply_metrics(raw.items, texts, checks=checks, **likeness)
        raw.corpus[name] = corpus_metrics(raw.items, texts)
    raw.human = human_metrics(raw.items, checks)
    raw.embedder = given.get("embedder", "")


def check_options(
    options: EvalOptions, pair_judge: str | Collection[str] | None = None, local: str | None = None
) -> None:
    """Refuse what `collect` would refuse, before a model is loaded.

    Args:
        options: the recipe's ``eval:`` section.
        pair_judge: as for `collect`.
        local: the model that the judge `local` is.

    Raises:
        UserError: an unknown rubric, criterion or judge, a judge without its key or that made the preference pairs.
    """
    rubric = load_rubric(options.rubric).only(options.criteria)
    named = options.judge if isinstance(options.judge, list) else [options.judge]
    judges = _judges(None, options.model_copy(update={"judge": [name for name in named if name != "local"]}))
    models = [judge.spec.model for judge in judges] + ([local] if local and "local" in named else [])
    _refuse_pair_judge(models, pair_judge, options)
    if options.pairwise and any(named):
        rubric.check_pairs()
    if options.simulate:
        check_simulate(options.simulate)


def check_simulate(options: SimulateOptions) -> None:
    """Refuse an unknown cast, rubric, player or judge before a model is loaded.

    Raises:
        UserError: naming it.
    """
    load_cast(options.cast)
    load_rubric(options.rubric)
    for name in (options.player, options.judge):
        if name is not None and name != "local":
            load_judge(name)


def usable(
    items: Sequence[dict[str, Any]], systems: Systems
) -> tuple[list[dict[str, Any]], dict[str, list[str] | Reply], Counter[str]]:
    """The items that can be evaluated, the systems with their replies to these, and why the others were left out.

    Raises:
        UserError: no usable items or no systems, ids that repeat, a list of replies of another length.
    """
    if not items:
        raise UserError("there is nothing to evaluate", "give at least one held-out conversation")
    if not systems:
        raise UserError("there is no system to evaluate", "name at least one model or file of replies")
    for name, system in systems.items():
        if not callable(system) and len(system) < len(items):
            raise UserError(f"{name} has {len(system)} replies for {len(items)} items")
    faults = [_fault(item) for item in items]
    kept = [at for at, fault in enumerate(faults) if fault is None]
    if not kept:
        raise UserError(f"no item can be evaluated: the first {faults[0]}", "every item needs `messages`")
    known = Counter(str(items[at]["id"]) for at in kept)
    if twice := [name for name, count in known.items() if count > 1]:
        raise UserError(f"two items are called {twice[0]!r}", "give every item its own id")
    theirs = {name: s if callable(s) else [str(s[at]) for at in kept] for name, s in systems.items()}
    return [items[at] for at in kept], theirs, Counter(filter(None, faults))


def _fault(item: Item) -> str | None:
    if not item.get("messages"):
        return "has no dialogue"
    return None if item["messages"][-1]["role"] == "user" else "does not end with the user's turn"


def _judge(raw: Raw, work: Work, judge: Judge, store: Store, steps: _Steps) -> None:
    """Let one judge judge the calibration pairs, the replies and, if wanted, the duels."""
    options = raw.options
    geval = GEval(raw.rubric, judge, store, options.repeats, options.seed, options.concurrency)
    raw.pair_judgements += _rows(geval.score(work.pairs, steps.phase()))
    raw.rating_judgements += _rows(geval.score(work.ratings, steps.phase()))
    raw.judgements += _rows(geval.score(work.answers, steps.phase()))
    how = (raw.rubric, judge, store, options.seed, options.concurrency)
    raw.pair_duels += fight(work.pair_duels, *how, steps.phase())
    raw.duels += fight(work.duels, *how, steps.phase())


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
    name: str, system: list[str] | Reply, items: Sequence[Item], out: Path, fingerprint: str, steps: _Steps
) -> list[str]:
    """One reply per item; those a model wrote before the run was cut off are taken from disk."""
    if not callable(system):
        return list(system)
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


def _judges(judge: Judges, options: EvalOptions) -> list[Judge]:
    from eval.http_judge import HttpJudge

    if judge is not None:
        given = list(judge) if isinstance(judge, Sequence) else [judge]
        return [HttpJudge(member) if isinstance(member, JudgeSpec) else member for member in given]
    named = options.judge if isinstance(options.judge, list) else [options.judge]
    if "local" in named:
        raise UserError("the judge `local` needs a loaded model", "name a judge, or evaluate a run folder")
    return [HttpJudge(load_judge(name)) for name in named if name is not None]


def _refuse_pair_judge(models: Sequence[str], makers: str | Collection[str] | None, options: EvalOptions) -> None:
    made = {_family(maker) for maker in ([makers] if isinstance(makers, str) else makers or ())}
    for model in models:
        if _family(model) in made and not options.allow_pair_judge:
            raise UserError(
                f"{model} made the preference pairs that this run was trained on, so it would judge its own taste",
                "choose another judge, or set `eval.allow_pair_judge: true`",
            )


def _family(model: str) -> str:
    """The model's name without vendor, date and our marks: `openai/gpt-4o` is `gpt-4o-2024-08-06`, and `org/X` is
    `local:X@0123456789ab`."""
    bare = re.sub(r"@[0-9a-f]{12}$", "", model.removeprefix("local:").rsplit("/", 1)[-1].lower())
    return re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", bare)


def _refuse_cost(raw: Raw, work: Work) -> None:
    if raw.options.max_cost is None:
        return
    cost = estimate(raw.rubric, raw.judges, work.singles, work.against, raw.options.repeats).cost
    if cost > raw.options.max_cost:
        raise UserError(
            f"judging would cost about {cost:.2f} USD, more than max_cost {raw.options.max_cost:.2f}",
            "lower `eval.items` or `eval.calibration_pairs`, name fewer `eval.criteria`, or raise `eval.max_cost`",
        )


def _rows(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    return [judgement.row() for judgement in judgements]
