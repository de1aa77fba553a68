"""The report of a classifier, as one self-contained page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.page import Page, Section
from pipeline.train.curves import figure
from pipeline.train.judged import Judged, mixed_up, reliability, surest, worst_labels
from pipeline.train.labelled import Labelled

if TYPE_CHECKING:
    import plotly.graph_objects as go


def write_report(folder: Path, metrics: Mapping[str, Any], judged: Judged, data: Labelled) -> None:
    """Write ``report.html`` and ``report.md`` into a stage's folder."""
    page = Page("Classifier", f"{len(data.labels)} labels, {len(judged.true)} test texts")
    page.sections += [
        _scores(metrics, data),
        _calibration(metrics, judged),
        _confusion(judged, data.labels),
        _learning(metrics),
    ]
    page.write(folder / "report.html")
    page.write_markdown(folder / "report.md")


def _scores(metrics: Mapping[str, Any], data: Labelled) -> Section:
    test, section = metrics["test"], Section("Scores on the test split")
    section.facts(
        {
            "accuracy": f"{test['accuracy']:.1%}",
            "macro-F1": round(test["macro_f1"], 3),
            "right label among the top 3": f"{test['top_3']:.1%}",
            "right label among the top 5": f"{test['top_5']:.1%}",
        }
    )
    commonest = Counter(example.label for example in data.splits["train"]).most_common(1)[0][0]
    always = sum(example.label == commonest for example in data.splits["test"]) / len(data.splits["test"])
    section.text(
        f"{commonest} told always would be right in {always:.1%}. Trained on {metrics['examples']['train']:,} texts, "
        f"stopped and calibrated by {metrics['examples']['validation']:,} validation texts."
    )
    if data.unknown:
        section.note(
            f"{metrics['left_out']} held-out texts were left out: no training text has their label "
            f"({', '.join(sorted(data.unknown)[:8])})",
            kind="warning",
        )
    if data.single:
        section.note(
            f"{len(data.single)} labels have a single training text ({', '.join(data.single[:8])}); "
            "give them more, or join them with others",
            kind="warning",
        )
    return section


def _calibration(metrics: Mapping[str, Any], judged: Judged) -> Section:
    section = Section("Calibration")
    section.facts(
        {
            "expected calibration error": round(metrics["test"]["ece"], 3),
            "temperature": round(metrics["temperature"], 2),
            "confidence from which it answers": round(metrics["confidence"], 3),
            "validation texts it answers": f"{metrics['coverage']:.1%}",
        }
    )
    reached = judged.confidence >= metrics["confidence"]
    if reached.any():
        section.text(
            f"Of the test texts {reached.mean():.1%} reach this confidence; {judged.right[reached].mean():.1%} of them "
            "are told rightly. On the others the counsellor says that it is unsure and asks back."
        )
    else:
        section.note("No test text reaches this confidence: the counsellor will ask back always.", kind="warning")
    section.table(surest(judged), caption="What another chat.min_confidence would answer, on the test texts")
    return section.figure(_reliability(reliability(judged)), "How often it was right, by how sure it was")


def _reliability(bins: Sequence[Mapping[str, Any]]) -> go.Figure:
    import plotly.graph_objects as go

    sure, right = [bin["confidence"] for bin in bins], [bin["accuracy"] for bin in bins]
    figure = go.Figure(
        [
            go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line_dash="dot", name="perfectly calibrated"),
            go.Scatter(
                x=sure, y=right, mode="lines+markers", name="test split", text=[f"{bin['texts']} texts" for bin in bins]
            ),
        ]
    )
    figure.update_layout(xaxis_title="confidence", yaxis_title="share told rightly", height=380)
    figure.update_xaxes(range=[0, 1])
    return figure.update_yaxes(range=[0, 1])


def _confusion(judged: Judged, labels: Sequence[str]) -> Section:
    section = Section("What is mixed up")
    pairs = mixed_up(judged, labels)
    if not pairs:
        return section.text("Nothing: every test text was told rightly.")
    section.table(pairs, caption="Labels most often taken for one another")
    return section.figure(_matrix(judged, labels), "The labels that take part in most mistakes (texts)")


def _matrix(judged: Judged, labels: Sequence[str]) -> go.Figure:
    import plotly.graph_objects as go

    worst = worst_labels(judged, labels)
    counts = Counter(zip(judged.true.tolist(), judged.top[:, 0].tolist(), strict=True))
    names = [labels[number] for number in worst]
    cells = [[counts[true, told] for told in worst] for true in worst]
    figure = go.Figure(go.Heatmap(z=cells, x=names, y=names, colorscale="Blues", texttemplate="%{z}"))
    figure.update_layout(xaxis_title="told", yaxis_title="right", height=460)
    return figure.update_yaxes(autorange="reversed", automargin=True)


def _learning(metrics: Mapping[str, Any]) -> Section:
    section = Section("Learning curve")
    sizes = metrics["learning_curve"]
    if sizes:
        texts = [point["texts"] for point in sizes]
        lines = {name: (texts, [point[name] for point in sizes]) for name in ("accuracy", "macro_f1")}
        title = "by training texts (test split)"
        section.table([{k: round(v, 3) for k, v in point.items()} for point in sizes], caption=title)
        section.figure(figure(title, lines, across="training texts"), title)
    groups = {"loss (nats per text)": ("loss", "eval_loss"), "validation": ("eval_accuracy", "eval_macro_f1")}
    for title, names in groups.items():
        lines = {}
        for name in names:
            rows = [row for row in metrics["history"] if name in row]
            if rows:
                lines[name] = [int(row["step"]) for row in rows], [float(row[name]) for row in rows]
        if lines:
            section.figure(figure(title, lines), title)
    return section
