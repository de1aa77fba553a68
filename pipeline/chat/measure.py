"""Measures the safety layer and the emotion classifier: `gonggam bench safety [--picture FILE]`.

What the figures mean and what they do not is said in ``docs/safety.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.chat import risk, safety
from pipeline.chat.fit import (
    SAMPLES,
    Line,
    Row,
    calm_texts,
    crisis_rows,
    dialogues,
    emotion_rows,
    fit_emotion,
    fit_safety,
    read_lines,
    read_tsv,
)
from pipeline.chat.resources import DATA

FOLDS = 10
Odds = Mapping[str, float]


@dataclass(frozen=True)
class Rates:
    """Counts of one way of telling high risk; ``missed`` and ``alarms`` are indices of rows."""

    high: int
    none: int
    missed: tuple[int, ...]
    alarms: tuple[int, ...]

    @property
    def recall(self) -> float:
        """Share of the high rows that were called high."""
        return 1 - len(self.missed) / self.high

    @property
    def false_alarms(self) -> float:
        """Share of the none rows that were called high."""
        return len(self.alarms) / self.none


def rates(rows: Sequence[Row], is_high: Callable[[int], bool]) -> Rates:
    """Rates of a judgement over rows."""
    called = [is_high(index) for index in range(len(rows))]
    return Rates(
        sum(label == "high" for _, label in rows),
        sum(label == "none" for _, label in rows),
        tuple(i for i, (_, label) in enumerate(rows) if label == "high" and not called[i]),
        tuple(i for i, (_, label) in enumerate(rows) if label == "none" and called[i]),
    )


def out_of_fold(rows: Sequence[Row], calm: Sequence[str], seed: int = 0) -> tuple[list[Odds], list[Odds]]:
    """Probabilities for every row and every calm text, by classifiers that did not see it."""
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, [label for _, label in rows])
    order = np.random.default_rng(seed).permutation(len(calm))
    odds: list[Odds] = [{}] * len(rows)
    calm_odds: list[Odds] = [{}] * len(calm)
    for number, (train, test) in enumerate(folds):
        held = set(order[number::FOLDS].tolist())
        model = fit_safety([rows[i] for i in train], [text for i, text in enumerate(calm) if i not in held])
        for i in test:
            odds[i] = model.probabilities(rows[i][0])
        for i in held:
            calm_odds[i] = model.probabilities(calm[i])
    return odds, calm_odds


@dataclass(frozen=True)
class SafetyReport:
    """What `measure_safety` found; every `Rates` is about being called high.

    ``crisis``: on the sample corpus's table, classifier out of fold, for rules, classifier and both;
    ``check``: the same on rows that neither rules nor classifier have seen; ``calm``: calm texts called high, of how
    many.
    """

    crisis: dict[str, Rates]
    check: dict[str, Rates]
    calm: tuple[int, int]
    rows: dict[str, list[Row]]


def measure_safety() -> SafetyReport:
    """Cross-validated and held-out rates of the safety layer; about half a minute."""
    rows, calm = crisis_rows(), calm_texts()
    crisis, check = read_tsv(SAMPLES / "crisis.tsv"), read_tsv(DATA / "crisis_check.tsv")
    odds, calm_odds = out_of_fold(rows, calm)
    check_odds = [risk.classifier().probabilities(text) for text, _ in check]
    alarmed = sum(risk.weigh(text, odd).risk == "high" for text, odd in zip(calm, calm_odds, strict=True))
    return SafetyReport(
        _three(crisis, odds),
        _three(check, check_odds),
        (alarmed, len(calm)),
        {"crisis": crisis, "check": check},
    )


def _three(rows: Sequence[Row], odds: Sequence[Odds]) -> dict[str, Rates]:
    ruled = [risk.by_rules(text) for text, _ in rows]
    return {
        "rules": rates(rows, lambda i: ruled[i].risk == "high"),
        "classifier": rates(rows, lambda i: odds[i]["high"] >= risk.needed(rows[i][0])),
        "both": rates(rows, lambda i: risk.weigh(rows[i][0], odds[i]).risk == "high"),
    }


def as_due(line: Line) -> bool:
    """Whether the layer does with a message what its table asks: alarm (high, or ask on after one) or none."""
    found = safety.assess(line.text, line.before)
    if line.due == "ask":
        return found.risk == "high" and found.standing is not None
    return (found.risk == "high") == (line.due == "high")


def emotion_out_of_fold(rows: Sequence[Row], seed: int = 0) -> list[str]:
    """Predicted emotion of every row, each by a classifier that did not see it."""
    from sklearn.model_selection import StratifiedKFold

    told = [""] * len(rows)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, [label for _, label in rows])
    for train, test in folds:
        model = fit_emotion([rows[i] for i in train])
        for i in test:
            odds = model.probabilities(rows[i][0])
            told[i] = max(odds, key=odds.__getitem__)
    return told


def confusion_picture(true: Sequence[str], told: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix of the emotion classifier."""
    import koreanize_matplotlib  # noqa: F401  (registers a font that has Hangul)
    import matplotlib.pyplot as plt
    from sklearn.metrics import ConfusionMatrixDisplay

    figure, axes = plt.subplots(figsize=(8, 7))
    ConfusionMatrixDisplay.from_predictions(
        list(true), list(told), ax=axes, xticks_rotation=60, colorbar=False, cmap="BuPu"
    )
    axes.set(xlabel="predicted", ylabel="true", title="emotion.tsv, 10-fold cross-validation")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(picture: Path | None = None) -> None:
    """Print the figures; draw the confusion matrix where a file is named."""
    from sklearn.metrics import f1_score

    found = measure_safety()
    for name, table in (
        ("crisis.tsv, out of fold", found.crisis),
        ("crisis_check.tsv, never learned from", found.check),
    ):
        print(f"{name}\n{'':12}recall on high    false alarms on none")
        for way, rate in table.items():
            high, none = f"{rate.high - len(rate.missed)}/{rate.high}", f"{len(rate.alarms)}/{rate.none}"
            print(f"{way:12}{rate.recall:.3f} ({high})   {rate.false_alarms:.3f} ({none})")
        print()
    for title, places in (("missed", found.check["both"].missed), ("false alarms", found.check["both"].alarms)):
        print(f"{title} in crisis_check.tsv:", *(found.rows["check"][i][0] for i in places), sep="\n  ")
    print(f"\ncalm texts called high: {found.calm[0]} of {found.calm[1]}")
    for name in ("crisis_fresh.tsv", "crisis_blind.tsv"):
        _print_lines(name)
    rows, lines = emotion_rows(), len(read_tsv(SAMPLES / "emotion.tsv"))
    talks = lines + len(dialogues())
    true, told = [label for _, label in rows], emotion_out_of_fold(rows)
    for name, part in (
        ("emotion.tsv", slice(lines)),
        ("first messages of dialogues", slice(lines, talks)),
        ("short talk", slice(talks, None)),
    ):
        print(f"emotion macro-F1 on {name}, out of fold: {f1_score(true[part], told[part], average='macro'):.3f}")
    if picture:
        confusion_picture(true[:lines], told[:lines], picture)


def _print_lines(name: str) -> None:
    lines = read_lines(DATA / name)
    right = [as_due(line) for line in lines]
    print(f"\n{name}: called as is due")
    for due in dict.fromkeys(line.due for line in lines):
        of = [place for place, line in enumerate(lines) if line.due == due]
        print(f"  {due:8}{sum(right[place] for place in of)}/{len(of)}")
    for line, fine in zip(lines, right, strict=True):
        if not fine:
            print(f"    {line.due}, {line.kind}: {' | '.join((*line.before, line.text))}")
    print()
