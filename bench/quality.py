"""The figures of `gonggam bench memory` and `gonggam bench safety` for the card: ``python bench/quality.py``.

What they mean and what they do not is said in docs/memory.md and docs/safety.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from record import ROOT, record

DEFAULT = "hybrid, sum"


def memory() -> dict[str, float]:
    """Recall of the default way with the offline embedder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "memory.json"
        code = "from pipeline.cli import main; main()"
        subprocess.run([sys.executable, "-c", code, "bench", "memory", "--out", str(out)], cwd=ROOT, check=True)
        rows = json.loads(out.read_text("utf-8"))
    (row,) = [row for row in rows if row["method"] == DEFAULT]
    return {"recall_at_2": row["recall@2"], "none_auc": row["auc"]}


def safety() -> dict[str, float]:
    """The safety layer as a whole, and emotions, by classifiers that did not see the rows."""
    from sklearn.metrics import f1_score

    from pipeline.chat import measure
    from pipeline.chat.fit import SAMPLES, emotion_rows, read_lines, read_tsv
    from pipeline.chat.resources import DATA

    crisis = measure.measure_safety().crisis["both"]
    blind = [line for line in read_lines(DATA / "crisis_blind.tsv") if line.due == "high"]
    rows, table = emotion_rows(), len(read_tsv(SAMPLES / "emotion.tsv"))
    true, told = [label for _, label in rows], measure.emotion_out_of_fold(rows)
    return {
        "crisis_recall": crisis.recall,
        "crisis_false_alarms": crisis.false_alarms,
        "blind_recall": sum(map(measure.as_due, blind)) / len(blind),
        "emotion_f1": f1_score(true[:table], told[:table], average="macro"),
    }


def main() -> None:
    """Measure and record."""
    found = {**memory(), **safety()}
    record("quality", found, ["kiwipiepy", "scikit-learn", "numpy"])
    for key, value in found.items():
        print(f"{key} {value:.3f}")


if __name__ == "__main__":
    main()
