"""Speed of a classifier of the wellness data's size: one text at a time, batched, asked by many threads, compiled ...

Run from the repository root: ``python bench/classify.py [--size base|small] [--texts 512] [--rounds 3] [--compile]
[--onnx]``; writes bench/results/classify-SIZE.md. Each way is measured once a round and compared within the round, so
that a machine busy with other things slows all of them. The weights are random: speed does not depend on what they
say. ``base`` has the shape of monologg/koelectra-base-v3-discriminator (12 layers of 768), ``small`` that of its small
brother (12 layers of 256).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from record import RESULTS, record, table, told
from transformers import ElectraConfig, ElectraForSequenceClassification

from pipeline.chat.categories import CategoryClassifier, Labels
from pipeline.train.shapes import build_tokenizer

DIALOGUES = Path(__file__).parents[1] / "data_prep" / "samples" / "counsel_ko" / "dialogues.jsonl"
LABELS = 359
FIRST = "one at a time"
HEAD = ("way", "texts a second", "processor ms a text", "times faster", "times less processor", "largest difference")
GOALS = {"batched": "batched", "threads": "64 threads"}
Ways = dict[str, Callable[[], np.ndarray]]
SHAPES = {"base": (768, 768, 3072, 12), "small": (256, 128, 1024, 4)}


def texts_of(count: int) -> list[str]:
    """First sentences of users of the sample corpus, short as the wellness questions; repeated up to ``count``."""
    rows = [json.loads(line) for line in DIALOGUES.read_text("utf-8").splitlines()]
    turns = [turn["content"] for row in rows for turn in row["turns"] if turn["role"] == "user"]
    said = [re.split(r"(?<=[.?!…~])\s", turn)[0] for turn in turns]
    return [said[i % len(said)] for i in range(count)]


def classifier_of(size: str) -> CategoryClassifier:
    """A classifier of random weights on the best device there is."""
    hidden, embedding, inner, heads = SHAPES[size]
    tokenizer = build_tokenizer(iter(texts_of(2000)), 8000, 512, "modernbert")
    config = ElectraConfig(
        vocab_size=35000, hidden_size=hidden, embedding_size=embedding, intermediate_size=inner, num_hidden_layers=12,
        num_attention_heads=heads, num_labels=LABELS, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ElectraForSequenceClassification(config).to("cuda" if torch.cuda.is_available() else "cpu")
    return CategoryClassifier(model, tokenizer, Labels(tuple(map(str, range(LABELS)))))


def one_at_a_time(classifier: CategoryClassifier, texts: Sequence[str]) -> np.ndarray:
    """As a loop over users would do it."""
    return np.concatenate([classifier.probabilities([text]) for text in texts])


def by_threads(classifier: CategoryClassifier, texts: Sequence[str]) -> np.ndarray:
    """64 users ask at the same time, each for one text; batches make themselves."""
    with ThreadPoolExecutor(64) as pool:
        return np.stack(list(pool.map(lambda text: classifier.ask([text])[0], texts)))


def onnx_probabilities(classifier: CategoryClassifier, folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """The same batches through onnxruntime."""
    import onnxruntime

    sample = classifier.tokenizer(["가", "나다"], padding=True, return_tensors="pt")
    names, path = ("input_ids", "attention_mask"), str(folder / "model.onnx")
    free = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=512)}
    torch.onnx.export(
        classifier.model.cpu(),
        kwargs={name: sample[name] for name in names},
        f=path,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(names, free),
        dynamo=True,
    )
    session = onnxruntime.InferenceSession(path)

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found = np.empty((len(texts), LABELS), dtype=np.float32)
        for start in range(0, len(order), 64):
            places = order[start : start + 64]
            inputs = classifier.tokenizer([texts[p] for p in places], padding=True, truncation=True, max_length=128)
            logits = session.run(["logits"], {name: np.array(inputs[name]) for name in names})[0]
            odds = np.exp(logits - logits.max(1, keepdims=True))
            found[places] = odds / odds.sum(1, keepdims=True)
        return found

    return probabilities


class Figures(NamedTuple):
    """What one way took in one round."""

    wall: float
    processor: float


Round = Mapping[str, Figures]


def measure(work: Callable[[], np.ndarray]) -> Figures:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Figures(time.perf_counter() - wall, time.process_time() - processor)


def ways_of(classifier: CategoryClassifier, texts: Sequence[str], options: argparse.Namespace, folder: Path) -> Ways:
    """Name → what is timed."""
    ways: Ways = {
        FIRST: lambda: one_at_a_time(classifier, texts),
        "batched": lambda: classifier.probabilities(texts),
        "64 threads": lambda: by_threads(classifier, texts),
    }
    if options.compile:
        fast = CategoryClassifier(
            torch.compile(classifier.model, dynamic=True), classifier.tokenizer, classifier.labels
        )
        ways["batched, torch.compile"] = lambda: fast.probabilities(texts)
    if options.onnx:
        onnx = onnx_probabilities(classifier, folder)
        ways["batched, ONNX"] = lambda: onnx(texts)
    return ways


def rows_of(rounds: Sequence[Round], apart: Mapping[str, float], texts: int) -> Iterator[tuple[str, ...]]:
    """A line a way: medians over the rounds, and how many times faster, which is reckoned within each round."""
    for name, difference in apart.items():
        wall, cpu = (median(getattr(one[name], what) for one in rounds) for what in Figures._fields)
        ratios = (_range(_times(rounds, name, what)) for what in Figures._fields)
        yield name, f"{texts / wall:,.0f}", f"{1000 * cpu / texts:.2f}", *ratios, f"{difference:.0e}"


def _times(rounds: Sequence[Round], name: str, what: str) -> list[float]:
    return [getattr(one[FIRST], what) / getattr(one[name], what) for one in rounds]


def _range(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SHAPES), default="base")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured, in turn")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (needs a C++ compiler)")
    parser.add_argument("--onnx", action="store_true", help="also ONNX (needs onnx, onnxscript and onnxruntime)")
    options = parser.parse_args()
    texts, classifier = texts_of(options.texts), classifier_of(options.size)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(classifier, texts, options, Path(folder))
        said = {name: work() for name, work in ways.items()}  # also warms up, and compiles
        for number in range(options.rounds):
            rounds.append({name: measure(work) for name, work in ways.items()})
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    apart = {name: float(np.abs(found - said[FIRST]).max()) for name, found in said.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} x {platform.machine()}"
    title = f"# Classifier, {options.size}, {LABELS} labels, {len(texts)} texts, {device}, torch {torch.__version__}"
    about = f"{told()} Median (range) of {options.rounds} rounds, in which each way comes once."
    lines = [title, "", about, "", *table(HEAD, rows_of(rounds, apart, len(texts)))]
    print("\n".join(lines))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"classify-{options.size}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    times = {key: median(_times(rounds, name, "wall")) for key, name in GOALS.items()}
    record("classify", times, ["torch", "transformers"])


if __name__ == "__main__":
    main()
