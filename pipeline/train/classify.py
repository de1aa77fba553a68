"""The classify stage: a transformer encoder with a classification head, through transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
from gonggam.progress import Progress
from pipeline.chat.categories import Labels
from pipeline.model import hub_errors, source_of
from pipeline.train.calibrate import calibrated
from pipeline.train.classify_curve import learning_curve
from pipeline.train.classify_report import write_report
from pipeline.train.judged import figures, macro_f1
from pipeline.train.labelled import Labelled, Naming, read_labelled, read_replies
from pipeline.train.loop import arguments, forget_checkpoints, train
from pipeline.train.sft import lora_targets

if TYPE_CHECKING:
    from pipeline.recipe.sections import ModelOptions
    from pipeline.recipe.training import ClassifyKeys, KeyedSection

_BATCH = 64


def run_classify(
    section: KeyedSection,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelOptions | None,
    prepared: Path,
    folder: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict:
    """Train, calibrate on the validation split, score on the test split; leaves ``folder/model`` and a report.

    Returns:
        metrics: labels, examples, steps, loss history, temperature, confidence and the share of validation texts that
        reach it, the test split's figures (see `pipeline.train.judged.figures`), and those of smaller training sets.

    Raises:
        UserError: too little data, answers for no label, LoRA targets that match nothing; and what
            `pipeline.train.loop.train` raises.
    """
    keys = section.keys
    data = read_labelled(prepared, _naming(keys))
    answers = _answers(keys, prepared, data)
    fit = partial(_fit, section, base, tokenizer, settings, seed=seed)
    curve = learning_curve(keys.learning_curve, data, fit, tokenizer, keys.max_length, folder)
    trainer, model, result = fit(data, folder, progress=progress)
    precise = {"precision": keys.precision, "max_length": keys.max_length}
    labels, judged, coverage = calibrated(model, tokenizer, data, answers, **precise)
    metrics = _told(data, labels, figures(judged), coverage, curve) | result
    if trainer.accelerator.is_main_process:
        with publishing(folder / "model") as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            labels.save(aside)
        write_report(folder, metrics, judged, data)
    trainer.accelerator.wait_for_everyone()
    forget_checkpoints(trainer, section.arguments)
    return metrics


def _fit(
    section: KeyedSection,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelOptions | None,
    data: Labelled,
    folder: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Trainer, PreTrainedModel, dict[str, Any]]:
    """An encoder trained on ``data``, with its trainer and what training told."""
    set_seed(seed)
    model = load_encoder(base, tokenizer, data.labels, settings)
    trainer = classify_trainer(section, model, tokenizer, data, folder, seed)
    result = train(trainer, progress)
    model = trainer.accelerator.unwrap_model(trainer.model)
    return trainer, model.merge_and_unload() if section.lora is not None else model, result


def _told(data: Labelled, labels: Labels, test: dict[str, float], coverage: float, curve: list[dict]) -> dict[str, Any]:
    examples = {split: len(examples) for split, examples in data.splits.items()}
    whole = {"texts": examples["train"], "accuracy": test["accuracy"], "macro_f1": test["macro_f1"]}
    return {
        "labels": len(data.labels),
        "examples": examples,
        "single_example_labels": len(data.single),
        "left_out": sum(data.unknown.values()),
        "answers": sum(map(len, labels.answers.values())),
        "temperature": labels.temperature,
        "confidence": labels.confidence,
        "coverage": coverage,
        "test": test,
        "learning_curve": [*curve, whole] if curve else [],
    }


def load_encoder(
    base: str, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], settings: ModelOptions | None
) -> PreTrainedModel:
    """The encoder ``base`` with a new head over ``labels``, in float32.

    Raises:
        UserError: it cannot be found or is no kind that classifies.
    """
    with hub_errors(base):
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **source_of(settings),
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
) -> Trainer:
    """The Trainer of a recipe's ``classify:`` keys.

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
    return Trainer(
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


def class_weights(data: Labelled) -> torch.Tensor:
    """What an example of each label weighs: examples / (labels x examples of the label); (labels,) float32."""
    counts = np.maximum(np.bincount(data.numbers("train"), minlength=len(data.labels)), 1)
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
