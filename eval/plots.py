"""The report's plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eval.stats import bootstrap, mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def metric_name(key: str) -> str:
    """What a measure is called in a report; its own key if it has no other name."""
    return yaml.safe_load((Path(__file__).parent / "metric_names.yaml").read_text("utf-8")).get(key, key)


Groups = dict[str, dict[str, list[float]]]
"""Name of a group → system → total scores."""


def grouped(groups: Groups, systems: Sequence[str]) -> Figure:
    """Bars of the mean total per group and system, with 95 % bootstrap intervals where a group has two or more."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for system in systems:
        bars = [
            (name, bootstrap(mean, scores[system], reps=500)) for name, scores in groups.items() if system in scores
        ]
        error = [(b.value or 0.0, b.low, b.high) for _, b in bars]
        figure.add_bar(
            name=system,
            x=[name for name, _ in bars],
            y=[bar.value for _, bar in bars],
            hovertext=[f"n = {bar.n}" for _, bar in bars],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [None if high is None else high - value for value, _, high in error],
                "arrayminus": [None if low is None else value - low for value, low, _ in error],
            },
        )
    order = {"categoryorder": "array", "categoryarray": list(groups)}
    return figure.update_layout(barmode="group", xaxis=order, yaxis={"range": [0, 102]})


def means(results: Mapping[str, Any]) -> Figure:
    """Bars of the mean per criterion and system on 0-1, with confidence intervals."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for system in results["systems"]:
        bars = [(c, results["scores"][system][c["key"]]) for c in results["criteria"]]
        bars = [(c, score) for c, score in bars if score["value"] is not None]
        width = [c["scale"][1] - c["scale"][0] for c, _ in bars]
        figure.add_bar(
            name=system,
            x=[c["name"] for c, _ in bars],
            y=[(s["value"] - c["scale"][0]) / w for (c, s), w in zip(bars, width, strict=True)],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [((s["high"] or s["value"]) - s["value"]) / w for (_, s), w in zip(bars, width, strict=True)],
                "arrayminus": [
                    (s["value"] - (s["low"] or s["value"])) / w for (_, s), w in zip(bars, width, strict=True)
                ],
            },
        )
    return figure.update_layout(barmode="group", yaxis={"range": [0, 1.02]})


def distributions(results: Mapping[str, Any]) -> Figure:
    """Box plots of the scores per criterion and system on 0-1."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for system in results["systems"]:
        points = [
            (c["name"], (row["scores"][c["key"]] - c["scale"][0]) / (c["scale"][1] - c["scale"][0]))
            for c in results["criteria"]
            for row in results["rows"]
            if row["system"] == system and row["scores"].get(c["key"]) is not None
        ]
        figure.add_box(name=system, x=[name for name, _ in points], y=[y for _, y in points], boxpoints="outliers")
    return figure.update_layout(boxmode="group", yaxis={"range": [-0.02, 1.02]})
