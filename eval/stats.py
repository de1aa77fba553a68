"""How sure a number is: bootstrap intervals, paired permutation tests, Holm's correction, agreement measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate, the bounds of its confidence interval, and how many observations it rests on."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def row(self) -> dict[str, Any]:
        """As a plain dict."""
        return asdict(self)


def bootstrap(
    statistic: Callable[..., float],
    *columns: Sequence[float | None],
    reps: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic of paired columns; rows are drawn together (Efron 1979).

    Rows with a missing (None) value are left out. Fewer than two rows give no bounds.
    """
    import numpy as np

    rows = [row for row in zip(*columns, strict=True) if None not in row]
    if not rows:
        return Interval(None, None, None, 0)
    data = np.array(rows, dtype=float).T
    value = float(statistic(*data))
    if len(rows) < 2 or not np.isfinite(value):
        return Interval(value if np.isfinite(value) else None, None, None, len(rows))
    draws = np.random.default_rng(seed).integers(len(rows), size=(reps, len(rows)))
    if statistic is mean:
        values = data[0][draws].mean(axis=1)
    else:
        values = np.array([statistic(*data[:, draw]) for draw in draws])
    values = values[np.isfinite(values)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (None, None)
    return Interval(value, None if low is None else float(low), None if high is None else float(high), len(rows))


def mean(values: np.ndarray) -> float:
    """The arithmetic mean."""
    return float(values.mean())


def paired_p_value(differences: Sequence[float], reps: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of paired differences being centred on 0, by flipping their signs (exact up to 13 pairs)."""
    import numpy as np

    data = np.array(differences, dtype=float)
    data = data[data != 0]
    if not len(data):
        return 1.0
    observed = abs(data.sum())
    if len(data) <= 13:
        signs = 1 - 2 * ((np.arange(2 ** len(data))[:, None] >> np.arange(len(data))) & 1)
        return float((np.abs(signs @ data) >= observed - 1e-12).mean())
    signs = np.random.default_rng(seed).choice([-1, 1], size=(reps, len(data)))
    return float((1 + (np.abs(signs @ data) >= observed - 1e-12).sum()) / (1 + reps))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold for all tests together (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; nan where either side does not vary."""
    import numpy as np

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho, ties averaged; nan where either side does not vary."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b; nan where either side does not vary."""
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


def weighted_kappa(x: np.ndarray, y: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights between two ratings, rounded to whole scores (Cohen 1968)."""
    import numpy as np

    a, b = np.rint(x), np.rint(y)
    expected = ((a[:, None] - b[None, :]) ** 2).mean()
    return float("nan") if expected == 0 else float(1 - ((a - b) ** 2).mean() / expected)


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope of y on x; nan where x does not vary."""

    spread = x - x.mean()
    return float("nan") if not spread.any() else float((spread * (y - y.mean())).sum() / (spread**2).sum())
