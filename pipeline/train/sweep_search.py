"""Which candidates a sweep tries: every combination, some at random, or what optuna makes of the scores so far."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from optuna.trial import Trial

    from pipeline.recipe.sections import SweepOptions

Values = dict[str, Any]
TRIALS = 20


class Search(Protocol):
    """Asked for candidates and told their scores in turn."""

    def ask(self) -> list[Values]:
        """Candidates to train next, side by side or not; none when the search is over."""
        ...

    def tell(self, scores: Sequence[float | None]) -> None:
        """The scores of what was asked last, in its order; None for a candidate without one."""
        ...


def search_of(options: SweepOptions, seed: int) -> Search:
    """The search of a recipe's ``sweep:`` section."""
    return Optuna(options, seed) if options.search == "optuna" else Grid(options, seed)


class Grid:
    """All combinations at once, or ``trials`` of them drawn at random."""

    def __init__(self, options: SweepOptions, seed: int) -> None:
        self.waiting = list(combinations(options))
        if options.trials and options.trials < len(self.waiting):
            kept = random.Random(seed).sample(range(len(self.waiting)), options.trials)
            self.waiting = [self.waiting[i] for i in sorted(kept)]

    def ask(self) -> list[Values]:
        """See `Search`."""
        asked, self.waiting = self.waiting, []
        return asked

    def tell(self, scores: Sequence[float | None]) -> None:
        """See `Search`."""


class Optuna:
    """Optuna's tree-structured Parzen estimator, as many candidates at a time as train side by side.

    It keeps nothing on disk: its draws follow from the seed and the scores, so the same sweep asks for the same
    candidates again, finds them trained, and goes on (Bergstra et al. 2011; https://optuna.org).
    """

    def __init__(self, options: SweepOptions, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=options.parallel > 1)
        self.study = optuna.create_study(sampler=sampler, direction="maximize" if options.mode == "max" else "minimize")
        self.options, self.left = options, options.trials or TRIALS
        self.asked: list[Trial] = []

    def ask(self) -> list[Values]:
        """See `Search`."""
        count = min(self.left, self.options.parallel)
        self.left -= count
        self.asked = [self.study.ask() for _ in range(count)]
        return [{key: _suggest(trial, key, given) for key, given in self.options.grid.items()} for trial in self.asked]

    def tell(self, scores: Sequence[float | None]) -> None:
        """See `Search`."""
        from optuna.trial import TrialState

        for trial, score in zip(self.asked, scores, strict=True):
            self.study.tell(trial, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)


def combinations(options: SweepOptions) -> Iterator[Values]:
    """Every combination of the values; of a range its two ends, which is enough to find what is wrong with a key."""
    ends = [given if isinstance(given, list) else [given.low, given.high] for given in options.grid.values()]
    return (dict(zip(options.grid, values, strict=True)) for values in itertools.product(*ends))


def _suggest(trial: Trial, key: str, given: Any) -> Any:
    """A value for a key; numbers to four figures, since a folder is named after them."""
    if isinstance(given, list):  # optuna takes only plain values, so it draws a place in the list
        return given[trial.suggest_categorical(key, range(len(given)))]
    if isinstance(given.low, int) and isinstance(given.high, int):
        return trial.suggest_int(key, given.low, given.high, log=given.log)
    return float(f"{trial.suggest_float(key, given.low, given.high, log=given.log):.4g}")
