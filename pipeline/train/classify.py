"""The classify stage: a transformer encoder with a classification head, through transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from data_prep.reviewed import read_answers
from gonggam.errors import UserError
from gonggam.files import publishing
from pipeline.chat.categories import CategoryClassifier, Labels
from pipeline.model import hub_errors
from pipeline.train.classify_report import write_report
from pipeline.train.judged import Judged, confidence_for, figures, macro_f1
from pipeline.train.labelled import Labelled, Naming, read_labelled, read_replies
from pipeline.train.loop import arguments, forget_checkpoints, train
from pipeline.train.sft import lora_targets

if TYPE_CHECKING:
    from pipeline.recipe.sections import ClassifyKeys, KeyedSection, ModelOptions

Progress = Callable[[int, int], None]
_TEMPERATURES = np.exp(np.linspace(np.log(0.25), np.log(8), 36))  # a tenth apart
_BATCH = 64


def run_classify(
    section: KeyedSection,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelOptions,
    prepared: Path,
    folder: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict:
    """Train, calibrate on the validation split, score on the test split; leaves ``folder/model`` and a report.

    Returns:
        metrics: labels, examples, steps, loss history, temperature, confidence and the share of validation texts that
        reach it, and the test split's figures (see `pipeline.train.judged.figures`).

    Raises:
        UserError: too little data, answers for no label, LoRA targets that match nothing; and what
            `pipeline.train.loop.train` raises.
    """
    keys = section.keys
    data = read_labelled(prepared, _naming(keys))
    answers = _answers(keys, prepared, data)
    set_seed(seed)
    model = load_encoder(base, tokenizer, data.labels, settings)
    trainer, given = classify_trainer(section, model, tokenizer, data, folder, seed)
    result = train(trainer, progress)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if section.lora is not None:
        model = model.merge_and_unload()
    labels, judged, coverage = _calibrated(model, tokenizer, data, answers, keys)
    metrics = {
        "labels": len(data.labels),
        "examples": {split: len(examples) for split, examples in data.splits.items()},
        "single_example_labels": len(data.single),
        "left_out": sum(data.unknown.values()),
        "answers": sum(map(len, answers.values())),
        "temperature": labels.temperature,
        "confidence": labels.confidence,
        "coverage": coverage,
        "test": figures(judged),
        **result,
    }
    if trainer.accelerator.is_main_process:
        with publishing(folder / "model") as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            labels.save(aside)
        write_report(folder, metrics, judged, data)
    trainer.accelerator.wait_for_everyone()
    forget_checkpoints(trainer, given)
    return metrics


def load_encoder(
    base: str, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], settings: ModelOptions
) -> PreTrainedModel:
    """The encoder ``base`` with a new head over ``labels``, in float32.

    Raises:
        UserError: it cannot be found or is no kind that classifies.
    """
    source = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code} if settings.base else {}
    with hub_errors(base):
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **{key: value for key, value in source.items() if value},
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def classify_trainer(
    section: KeyedSection,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Labelled,
    folder: Path,
    seed: int,
) -> tuple[Trainer, dict[str, Any]]:
    """The Trainer of a recipe's ``classify:`` keys, and the TrainingArguments that were given.

    Raises:
        UserError: LoRA targets that match nothing.
    """
    keys, given = section.keys, dict(section.arguments)
    if section.lora is not None:
        from peft import LoraConfig, get_peft_model

        with lora_targets(model):
            model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **section.lora))
    callbacks: list[TrainerCallback] = []
    if keys.early_stopping_patience:
        best = {"load_best_model_at_end": True, "metric_for_best_model": "macro_f1", "greater_is_better": True}
        given = {**best, **given}
        callbacks = [EarlyStoppingCallback(keys.early_stopping_patience)]
    every = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}
    settings = arguments({**every, "per_device_eval_batch_size": _BATCH, **given}, folder, seed)
    if given.get("gradient_checkpointing") is None:
        settings["gradient_checkpointing"] = False
    settings |= {"bf16": False} if torch.cuda.is_available() and "bf16" not in given else {}
    rows = {split: _rows(tokenizer, data, split, keys.max_length) for split in ("train", "validation")}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=weighted_loss(class_weights(data) if keys.class_weights == "balanced" else None),
        compute_metrics=_scores,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),  # all labels of all texts are too many
        callbacks=callbacks,
    )
    return trainer, section.arguments


def class_weights(data: Labelled) -> torch.Tensor:
    """What an example of each label weighs: examples / (labels x examples of the label); (labels,) float32."""
    counts = np.bincount(data.numbers("train"), minlength=len(data.labels))
    return torch.tensor(len(data.splits["train"]) / (len(data.labels) * counts), dtype=torch.float32)


def weighted_loss(weights: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    """Cross-entropy in nats, each example weighing as its label does, divided by the examples of the optimiser step."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        weight = None if weights is None else weights.to(logits.device)
        total = torch.nn.functional.cross_entropy(logits, labels, weight=weight, reduction="sum")
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    return loss


def _naming(keys: ClassifyKeys) -> Naming:
    return Naming(keys.label, keys.merge or {}, keys.levels)


def _answers(keys: ClassifyKeys, prepared: Path, data: Labelled) -> dict[str, list[str]]:
    if keys.answers is None:
        said = read_replies(prepared, _naming(keys))
        return {label: said[label] for label in data.labels if label in said}
    said = read_answers(keys.answers)
    found = {label: said[label] for label in data.labels if label in said}
    if not found:
        raise UserError("none of these answers is for a label of the data", "compare the names", file=keys.answers)
    return found


def _rows(tokenizer: PreTrainedTokenizerBase, data: Labelled, split: str, max_length: int) -> Dataset:
    texts = [example.text for example in data.splits[split]]
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    return Dataset.from_dict({**encoded, "labels": data.numbers(split)})


def _scores(evaluated: Any) -> dict[str, float]:
    told, true = np.asarray(evaluated.predictions), np.asarray(evaluated.label_ids)
    return {"accuracy": float((told == true).mean()), "macro_f1": macro_f1(true, told)}


def _calibrated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Labelled,
    answers: Mapping[str, Sequence[str]],
    keys: ClassifyKeys,
) -> tuple[Labels, Judged, float]:
    """Labels with temperature and confidence from the validation split, the test split as judged, and the coverage."""
    raw = CategoryClassifier(model, tokenizer, Labels(data.labels, max_length=keys.max_length))
    temperature = _temperature(_batches(raw, data, "validation"), data.numbers("validation"))
    warm = Labels(data.labels, answers, temperature, max_length=keys.max_length)
    warmed = CategoryClassifier(model, tokenizer, warm)
    validation = Judged.of(data.numbers("validation"), _batches(warmed, data, "validation"))
    confidence, coverage = confidence_for(validation, keys.precision)
    labels = Labels(data.labels, answers, temperature, confidence, keys.max_length)
    return labels, Judged.of(data.numbers("test"), _batches(warmed, data, "test")), coverage


def _batches(classifier: CategoryClassifier, data: Labelled, split: str) -> Iterator[np.ndarray]:
    texts = [example.text for example in data.splits[split]]
    for start in range(0, len(texts), _BATCH):
        yield classifier.probabilities(texts[start : start + _BATCH])


def _temperature(batches: Iterator[np.ndarray], true: Sequence[int]) -> float:
    """The temperature at which the right labels are likeliest, of 36 between 1/4 and 8."""
    losses, done = np.zeros(len(_TEMPERATURES)), 0
    for rows in batches:
        right = np.asarray(true[done : done + len(rows)])
        logits = np.log(np.maximum(rows, 1e-30)).astype(float)
        for place, temperature in enumerate(_TEMPERATURES):
            scaled = logits / temperature
            top = scaled.max(axis=1)
            norm = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
            losses[place] += (norm - scaled[np.arange(len(rows)), right]).sum()
        done += len(rows)
    return float(_TEMPERATURES[losses.argmin()])
