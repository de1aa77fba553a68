"""What a run has to tell beside its scores: time and tokens of each stage, training curves, preference, retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonggam.page import Section

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from pipeline.recipe import Recipe
    from pipeline.run import Run


def sections(run: Run, recipe: Recipe, perplexities: Mapping[str, float]) -> list[Section]:
    """Sections for the run's report: stages, perplexity, curves, preference pairs, retrieval."""
    parts = [_stages(run, recipe)]
    parts.append(_perplexity(perplexities))
    for name in ("tiny", "sft", "dpo"):
        if manifest := run.manifest(name):
            history = [row for row in manifest["metrics"]["history"] if "loss" in row]
            if history:
                section = Section(f"Training: {name}")
                section.figure(_curve(name, history, "loss", "loss (nats per token)" if name != "dpo" else "DPO loss"))
                if "rewards/accuracies" in history[-1]:
                    section.figure(_curve(name, history, "rewards/accuracies", "share of pairs preferred rightly"))
                parts.append(section)
    if manifest := run.manifest("dpo"):
        parts.append(_preference(manifest["metrics"]))
    if (manifest := run.manifest("memory")) and manifest["metrics"]["retrieval"]:
        parts.append(_retrieval(manifest["metrics"]["retrieval"]))
    return parts


def _stages(run: Run, recipe: Recipe) -> Section:
    section = Section("Stages").table(stage_rows(run, recipe))
    for name in recipe.stages:
        if batches := ((run.manifest(name) or {}).get("metrics") or {}).get("batches"):
            section.text(f"Batches of {name}: {batches}.")
    return section


def stage_rows(run: Run, recipe: Recipe) -> list[dict[str, Any]]:
    """Seconds, tokens, supervised tokens and peak memory of each finished stage."""
    rows = []
    for name in recipe.stages:
        if manifest := run.manifest(name):
            metrics = manifest["metrics"]
            rows.append(
                {
                    "stage": name,
                    "seconds": round(manifest["seconds"], 1),
                    "tokens": metrics.get("tokens"),
                    "supervised tokens": metrics.get("supervised_tokens"),
                    "peak memory (MiB)": metrics["peak_memory_bytes"] // 2**20,
                }
            )
    return rows


def _perplexity(perplexities: Mapping[str, float]) -> Section:
    section = Section("Perplexity")
    section.text(
        "How surprised each policy is by what people really replied in the held-out test split, per token of the "
        "reply; lower is better. DPO does not aim at this figure and may raise it."
    )
    return section.table([{"policy": name, "perplexity": round(value, 2)} for name, value in perplexities.items()])


def _curve(name: str, history: Sequence[Mapping[str, float]], key: str, label: str) -> go.Figure:
    import plotly.graph_objects as go

    rows = [row for row in history if key in row]
    figure = go.Figure(go.Scatter(x=[row["step"] for row in rows], y=[float(row[key]) for row in rows], mode="lines"))
    figure.update_layout(title=f"{name}: {label}", xaxis_title="step", yaxis_title=label)
    return figure


def _preference(metrics: Mapping[str, Any]) -> Section:
    held_out = metrics["held_out"]
    section = Section("Preference")
    for warning in held_out.get("warnings", ()):
        section.note(warning, "warning")
    return section.facts(
        {
            "training pairs": metrics["pairs"],
            "held-out pairs": held_out["pairs"],
            "reward accuracy on held-out pairs": f"{held_out['accuracy']:.1%}",
            "mean reward margin on held-out pairs": round(held_out["margin"], 4),
            "reward margin before the first step": metrics["first_margin"],
            "chosen replies on held-out pairs (nats a token)": round(held_out["chosen_change"], 3),
        }
    )


def _retrieval(table: Mapping[str, Any]) -> Section:
    section = Section("Retrieval")
    section.text(
        "A hit: one of the k human-written answers found for a held-out first message comes from a conversation of "
        f"the same category. {table['questions']} questions."
    )
    ways = ("dense", "bm25", "hybrid", "chance")
    return section.table([{"way": way, **{k: f"{v:.1%}" for k, v in table[way].items()}} for way in ways])
