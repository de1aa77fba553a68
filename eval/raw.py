"""All that an evaluation rests on, as files: enough to rebuild every report without asking a judge or a model again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.judges import JudgeSpec
from eval.options import EvalOptions
from eval.rubric import Rubric
from eval.yamls import validated
from gonggam.files import read_json, read_jsonl, write_json, write_jsonl

_LISTS = (
    "judgements",
    "pairs",
    "pair_judgements",
    "duels",
    "pair_duels",
    "ratings",
    "rating_judgements",
    "human",
)


@dataclass
class Raw:
    """Items, replies, measures and judgements of one evaluation, before any average is taken.

    Attributes:
        rubric: as judged, steps frozen.
        judges: the jury; empty for judge-free metrics only.
        items: ``id``, ``category``, ``messages``, ``reference``.
        replies: system → one reply per item, in order.
        metrics: system → one row of judge-free measures per item.
        corpus: system → measures over all its replies.
        judgements: rows of `eval.geval.Judgement`.
        pairs: the calibration pairs, and
        pair_judgements: the judgements on them.
        duels: rows of `eval.pairwise.fight` between the systems, and
        pair_duels: those between the two sides of the calibration pairs.
        ratings: replies that people have scored, and
        rating_judgements: the judgements on them.
        human: judge-free measures of the references, one row per item that has one.
        left_out: why items were left out, and how many.
        embedder: under what likeness to the reference was measured, in words; empty if it was not.
        sources: system → item id → where its reply comes from (see `eval.collect.Inputs`); empty where nobody told.
    """

    options: EvalOptions
    rubric: Rubric
    judges: list[JudgeSpec]
    items: list[dict[str, Any]]
    replies: dict[str, list[str]]
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    corpus: dict[str, dict[str, Any]] = field(default_factory=dict)
    judgements: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    pair_judgements: list[dict[str, Any]] = field(default_factory=list)
    duels: list[dict[str, Any]] = field(default_factory=list)
    pair_duels: list[dict[str, Any]] = field(default_factory=list)
    ratings: list[dict[str, Any]] = field(default_factory=list)
    rating_judgements: list[dict[str, Any]] = field(default_factory=list)
    human: list[dict[str, Any]] = field(default_factory=list)
    embedder: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write the files into ``folder``."""
        folder = Path(folder)
        head = {
            "options": self.options.model_dump(mode="json"),
            "rubric": self.rubric.model_dump(mode="json"),
            "judges": [judge.model_dump(mode="json") for judge in self.judges],
            "systems": list(self.replies),
            "corpus": self.corpus,
            "embedder": self.embedder,
            "left_out": self.left_out,
        }
        write_json(folder / "evaluation.json", head)
        write_jsonl(folder / "items.jsonl", self.items)
        write_jsonl(folder / "replies.jsonl", self._reply_rows())
        for name in _LISTS:
            write_jsonl(folder / f"{name}.jsonl", getattr(self, name))

    @classmethod
    def load(cls, folder: str | Path) -> Raw:
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing or broken.
        """
        folder = Path(folder)
        head = read_json(folder / "evaluation.json")
        source = folder / "evaluation.json"
        lists = {name: list(read_jsonl(folder / f"{name}.jsonl")) for name in _LISTS}
        raw = cls(
            options=validated(EvalOptions, head["options"], source),
            rubric=validated(Rubric, head["rubric"], source),
            judges=[validated(JudgeSpec, judge, source) for judge in head["judges"]],
            items=list(read_jsonl(folder / "items.jsonl")),
            replies={system: [] for system in head["systems"]},
            metrics={system: [] for system in head["systems"]},
            corpus=head["corpus"],
            embedder=head.get("embedder", ""),
            left_out=head.get("left_out", {}),
            sources={},
            **lists,
        )
        for row in read_jsonl(folder / "replies.jsonl"):
            raw.replies[row["system"]].append(row["reply"])
            raw.metrics[row["system"]].append(row["metrics"])
            if source := row.get("source"):
                raw.sources.setdefault(row["system"], {})[str(row["item"])] = source
        return raw

    def _reply_rows(self) -> Sequence[dict[str, Any]]:
        return [
            {
                "system": system,
                "item": item["id"],
                "reply": reply,
                "source": self.sources.get(system, {}).get(str(item["id"])),
                "metrics": self.metrics[system][index] if self.metrics.get(system) else {},
            }
            for system, replies in self.replies.items()
            for index, (item, reply) in enumerate(zip(self.items, replies, strict=True))
        ]
