"""Speed of a classifier of the wellness data's size: one text at a time, batched, asked by many threads, compiled ...

Run from the repository root: ``python bench/classify.py [--size base|small] [--texts 512]``; writes
bench/results/classify.md. The weights are random: speed does not depend on what they say. ``base`` has the shape of
monologg/koelectra-base-v3-discriminator (12 layers of 768), ``small`` that of its small brother (12 layers of 256).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from record import record
from transformers import ElectraConfig, ElectraForSequenceClassification

from pipeline.chat.categories import CategoryClassifier, Labels
from pipeline.train.shapes import build_tokenizer

RESULT = Path(__file__).parent / "results" / "classify.md"
DIALOGUES = Path(__file__).parents[1] / "data_prep" / "samples" / "counsel_ko" / "dialogues.jsonl"
LABELS = 359
SHAPES = {"base": (768, 768, 3072, 12), "small": (256, 128, 1024, 4)}


def texts_of(count: int) -> list[str]:
    """What users of the sample corpus say, over and over until there are ``count``."""
    rows = [json.loads(line) for line in DIALOGUES.read_text("utf-8").splitlines()]
    said = [turn["content"] for row in rows for turn in row["turns"] if turn["role"] == "user"]
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
    axes = {name: {0: "texts", 1: "tokens"} for name in names}
    cpu = classifier.model.cpu()
    torch.onnx.export(
        cpu, tuple(sample[name] for name in names), path, input_names=names, output_names=["logits"], dynamic_axes=axes
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


def measure(work: Callable[[], np.ndarray], count: int) -> tuple[float, float, np.ndarray]:
    """Texts a second, processor milliseconds a text, and the probabilities."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return count / (time.perf_counter() - wall), 1000 * (time.process_time() - cpu) / count, found


def ways_of(classifier: CategoryClassifier, texts: Sequence[str], compiled: bool, folder: Path) -> dict[str, Callable]:
    """Name → what is timed; what is not installed is left out."""
    ways: dict[str, Callable[[], np.ndarray]] = {
        "one at a time": lambda: one_at_a_time(classifier, texts),
        "batched": lambda: classifier.probabilities(texts),
        "64 threads": lambda: by_threads(classifier, texts),
    }
    if compiled:
        fast = CategoryClassifier(
            torch.compile(classifier.model, dynamic=True), classifier.tokenizer, classifier.labels
        )
        ways["batched, torch.compile"] = lambda: fast.probabilities(texts)
    if find_spec("onnxruntime") and find_spec("onnx") and not torch.cuda.is_available():
        onnx = onnx_probabilities(classifier, folder)
        ways["batched, ONNX"] = lambda: onnx(texts)
    return ways


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SHAPES), default="base")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--compile", action="store_true", help="also torch.compile (needs a C++ compiler)")
    options = parser.parse_args()
    texts, classifier = texts_of(options.texts), classifier_of(options.size)
    rows, first, times = [], None, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in ways_of(classifier, texts, options.compile, Path(folder)).items():
            work() if "compile" in name else classifier.probabilities(texts[:64])
            speed, cpu, found = measure(work, len(texts))
            first = first or (speed, cpu, found)
            times[name] = speed / first[0]
            apart = float(np.abs(found - first[2]).max())
            cells = (f"{speed:,.0f}", f"{cpu:.2f}", f"{speed / first[0]:.1f}", f"{first[1] / cpu:.1f}", f"{apart:.0e}")
            rows.append(f"| {name} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} x {platform.machine()}"
    head = "| way | texts a second | processor ms a text | times faster | times less processor | largest difference |"
    title = f"# Classifier, {options.size}, {LABELS} labels, {len(texts)} texts, {device}, torch {torch.__version__}"
    RESULT.write_text("\n".join([title, "", head, "| --- |" + " ---: |" * 5, *rows, ""]), encoding="utf-8")
    record("classify", {"batched": times["batched"], "threads": times["64 threads"]}, ["torch", "transformers"])


if __name__ == "__main__":
    main()
