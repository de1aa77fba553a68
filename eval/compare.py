"""Several evaluations on the same conversations, put side by side without asking anyone again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.raw import Raw
from eval.reference import LIKENESS, corpus_metrics
from gonggam.errors import UserError

BASE = "base"


def find_raw(target: str | Path) -> Raw:
    """The raw files of a run folder, or of an evaluation folder.

    Raises:
        UserError: no finished evaluation lies there.
    """
    for folder in (Path(target) / "eval" / "raw", Path(target) / "raw"):
        if (folder / "evaluation.json").is_file():
            return Raw.load(folder)
    raise UserError("no finished evaluation", "run the eval stage first: gonggam run RECIPE --only eval", file=target)


def gather(targets: Sequence[str]) -> Raw:
    """One evaluation out of several: the last system of each (`base` stands for the first one's own first system).

    Judgements are taken over if all were judged by the same judges under the same rubric; else they are left out,
    and the systems must be judged anew.

    Raises:
        UserError: a target without an evaluation, or no conversation that all of them share.
    """
    named = {target: find_raw(target) for target in targets if target != BASE}
    if not named:
        raise UserError("nothing to compare", "name at least one run folder")
    raws = list(named.values())
    picked = [(_name(t), raw, list(raw.replies)[-1]) for t, raw in named.items()]
    if BASE in targets:
        picked.insert(0, (BASE, raws[0], next(iter(raws[0].replies))))
    if len({name for name, _, _ in picked}) < len(picked):
        raise UserError("two targets have the same name", "rename one of the folders")
    places = [{str(item["id"]): (i, item["messages"]) for i, item in enumerate(raw.items)} for raw in raws]
    shared = [key for key, (_, m) in places[0].items() if all(p.get(key, (0, None))[1] == m for p in places)]
    if not shared:
        raise UserError("these runs share no conversation", "evaluate them on the same held-out file")
    where = {id(raw): place for raw, place in zip(raws, places, strict=True)}
    alike = len({(raw.rubric.hash, tuple(judge.identity for judge in raw.judges)) for raw in raws}) == 1
    merged = Raw(
        options=raws[0].options,
        rubric=raws[0].rubric,
        judges=raws[0].judges if alike else [],
        items=[raws[0].items[places[0][key][0]] for key in shared],
        replies={n: [raw.replies[s][where[id(raw)][key][0]] for key in shared] for n, raw, s in picked},
        metrics={n: [raw.metrics[s][where[id(raw)][key][0]] for key in shared] for n, raw, s in picked},
        sources={n: raw.sources[s] for n, raw, s in picked if s in raw.sources},
        human=_human(raws[0], set(shared)),
        embedder=raws[0].embedder,
    )
    _measure_anew(merged, alike=len({raw.embedder for raw in raws}) == 1)
    if alike:
        merged.judgements = [row for name, raw, system in picked for row in _renamed(raw, system, name, set(shared))]
        merged.pairs, merged.pair_judgements = raws[0].pairs, raws[0].pair_judgements
        merged.ratings, merged.rating_judgements = raws[0].ratings, raws[0].rating_judgements
    return merged


def _measure_anew(merged: Raw, alike: bool) -> None:
    """Measures of all replies together, now that there are fewer; likeness goes if each run had its own embedder."""
    merged.corpus = {name: corpus_metrics(merged.items, texts) for name, texts in merged.replies.items()}
    if not alike:
        merged.embedder = ""
        merged.metrics = {
            name: [{key: value for key, value in row.items() if key not in LIKENESS} for row in rows]
            for name, rows in merged.metrics.items()
        }


def _human(raw: Raw, shared: set[str]) -> list[dict[str, Any]]:
    answered = [str(item["id"]) for item in raw.items if item.get("reference")]
    return [row for key, row in zip(answered, raw.human, strict=False) if key in shared]


def _name(target: str) -> str:
    return Path(target).resolve().name


def _renamed(raw: Raw, system: str, name: str, shared: set[str]) -> list[dict[str, Any]]:
    return [{**row, "system": name} for row in raw.judgements if row["system"] == system and row["item"] in shared]
