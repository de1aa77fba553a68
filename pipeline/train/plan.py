"""What a recipe will cost, before any model is loaded: rows, steps, memory, time, and what to change."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from gonggam.errors import UserError
from pipeline.recipe import Recipe, upstream
from pipeline.train.plan_data import Batches, Rows, dpo_lengths, packed, padded, sft_lengths
from pipeline.train.plan_memory import Setting, Shape, config_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

GIB = 2**30
_KEYS = {
    "checkpointing": "{}.activation_checkpointing",
    "batch": "{}.per_device_train_batch_size",
    "accumulation": "{}.gradient_accumulation_steps",
    "optim": "{}.optim",
    "quantization": "model.quantization",
    "max_length": "{}.max_length",
}


@dataclass(frozen=True)
class Gpu:
    """A machine: memory in GiB, dense half-precision rate in teraflop/s, and whether it has bfloat16."""

    name: str
    memory: float
    tflops: float
    bf16: bool = True

    @property
    def usable(self) -> float:
        """Bytes left for training, after driver and fragmentation."""
        known = _known()
        taken = 0.0 if self.name == "cpu" else known["context"]
        return (self.memory - taken) * (1 - known["fragmentation"]) * GIB


@dataclass(frozen=True)
class Options:
    """The settings of a training stage that memory and time depend on, as TRL's arguments have them."""

    batch: int
    accumulation: int
    epochs: float
    max_steps: int
    max_length: int | None
    packing: bool
    checkpointing: bool
    optim: str
    quantization: str
    dtype: torch.dtype


@dataclass(frozen=True)
class StagePlan:
    """What a stage will cost.

    Attributes:
        rows: the data; loose, dense: an epoch without and with packing.
        steps: optimiser steps in all; epochs: passes over the data.
        parameters, trainable: of the frozen model, of the adapter.
        memory: bytes at the peak of a step, by kind.
        flops: floating-point operations in all, on all GPUs.
        seconds: of training alone, at the assumed share of the GPU's rate.
    """

    name: str
    options: Options
    rows: Rows
    loose: Batches
    dense: Batches
    steps: int
    epochs: float
    parameters: int
    trainable: int
    memory: Mapping[str, int]
    flops: float
    seconds: float
    gpu: Gpu

    @property
    def peak(self) -> int:
        """Bytes of all kinds together."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within what the GPU has to give."""
        return self.peak <= self.gpu.usable


class Planner:
    """Plans the training stages of one recipe.

    Args:
        recipe: the checked recipe.
        prepared: its prepared data.
        gpus: how many there are, each with a whole model (DDP).
        config: path of a ``config.json`` to take in place of the base model's.
        tokenizer: the base model's; None estimates from characters.
        system: the system prompt of training.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: Path,
        *,
        gpus: int = 1,
        config: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        system: str | None = None,
    ) -> None:
        self.recipe, self.prepared, self.gpus = recipe, prepared, gpus
        self.tokenizer, self.system = tokenizer, system
        self.config = _config(recipe, config)
        self._rows: dict[tuple[str, int | None], Rows] = {}
        self._shapes: dict[str, Shape] = {}

    def stage(self, name: str, gpu: Gpu, options: Options | None = None) -> StagePlan:
        """The plan of ``sft`` or ``dpo`` on a machine, with the recipe's options or others.

        Raises:
            UserError: there is nothing to train on; the model's configuration or the LoRA targets are wrong.
        """
        chosen = options or self.options(name, gpu)
        rows, shape = self._data(name, chosen.max_length), self._shape(name)
        loose = padded(rows.lengths, chosen.batch, self.recipe.seed)
        dense = packed(rows.lengths, chosen.max_length or max(rows.lengths))
        drawn = dense if chosen.packing else loose
        per_epoch = math.ceil(math.ceil(drawn.count / (chosen.batch * self.gpus)) / chosen.accumulation)
        steps = chosen.max_steps if chosen.max_steps > 0 else math.ceil(per_epoch * chosen.epochs)
        epochs = steps / per_epoch
        passes = int(name == "dpo")
        flops = epochs * shape.flops(
            rows.tokens,
            sum(length**2 for length in rows.lengths),
            sum(rows.supervised),
            checkpointing=chosen.checkpointing,
            passes=passes,
        )
        share = _known()["share_of_peak"][chosen.quantization] if gpu.name != "cpu" else 1.0
        return StagePlan(
            name=name,
            options=chosen,
            rows=rows,
            loose=loose,
            dense=dense,
            steps=steps,
            epochs=epochs,
            parameters=shape.parameters,
            trainable=shape.trainable,
            memory=shape.memory(_setting(name, chosen, rows, drawn)),
            flops=flops,
            seconds=flops / (gpu.tflops * 1e12 * share * self.gpus),
            gpu=gpu,
        )

    def advice(self, plan: StagePlan) -> tuple[list[str], StagePlan] | None:
        """Overrides after which the stage fits, and the plan with them; None if nothing helps.

        Savings are added in the order of what they cost until it fits; those that were not needed are taken back.
        """
        taken: dict[str, dict[str, Any]] = {}
        for kind, fields in _savings(plan):
            taken[kind] = fields
            if self._with(plan, taken).fits:
                break
        else:
            return None
        for kind in list(taken):
            rest = {name: fields for name, fields in taken.items() if name != kind}
            if self._with(plan, rest).fits:
                taken = rest
        changed = {name: value for fields in taken.values() for name, value in fields.items()}
        keys = {name: key.format(plan.name) for name, key in _KEYS.items()}
        texts = [f"{keys[name]}={str(value).lower()}" for name, value in changed.items()]
        return texts, self._with(plan, taken)

    def _with(self, plan: StagePlan, changes: Mapping[str, Mapping[str, Any]]) -> StagePlan:
        fields = {name: value for change in changes.values() for name, value in change.items()}
        return self.stage(plan.name, plan.gpu, replace(plan.options, **fields))

    def options(self, name: str, gpu: Gpu) -> Options:
        """The recipe's settings for a stage, with TRL's defaults and what the engine chooses for this machine."""
        given, settings = getattr(self.recipe, name).arguments, self.recipe.model
        defaults = upstream.model_of(upstream.SFT if name == "sft" else upstream.DPO).model_fields
        values = {key: given.get(key, field.default) for key, field in defaults.items()}
        on_gpu = gpu.name != "cpu"
        again = [given.get(key) for key in ("activation_checkpointing", "gradient_checkpointing")]
        half = torch.bfloat16 if gpu.bf16 else torch.float16
        auto = half if on_gpu else torch.float32
        return Options(
            batch=values["per_device_train_batch_size"],
            accumulation=values["gradient_accumulation_steps"],
            epochs=values["num_train_epochs"],
            max_steps=values["max_steps"],
            max_length=values["max_length"],
            packing=bool(values.get("packing")),
            checkpointing=next((value for value in again if value is not None), on_gpu),
            optim=values["optim"] or "adamw_torch_fused",
            quantization=settings.quantization,
            dtype=auto if settings.dtype == "auto" else getattr(torch, settings.dtype),
        )

    def _data(self, name: str, max_length: int | None) -> Rows:
        key = (name, max_length)
        if key not in self._rows:
            count = sft_lengths if name == "sft" else dpo_lengths
            self._rows[key] = count(self.tokenizer, self.prepared, system=self.system, max_length=max_length)
        return self._rows[key]

    def _shape(self, name: str) -> Shape:
        if name not in self._shapes:
            section = getattr(self.recipe, name)
            goes_on = name == "dpo" and section.reference == "sft"
            lora = self.recipe.sft.lora if goes_on else section.lora
            try:
                self._shapes[name] = Shape(self.config, lora, self.recipe.model.attn_implementation)
            except ValueError as error:
                raise UserError(f"{name}.lora does not fit this model ({error})", file=self.recipe.file) from error
        return self._shapes[name]


def gpu_named(name: str) -> Gpu:
    """A machine by name; ``cpu`` is this one, its rate measured by a matrix product.

    Raises:
        UserError: nothing is known of it.
    """
    if name == "cpu":
        return Gpu("cpu", _own_memory() / GIB, _own_rate(), bf16=False)
    known = _known()["gpus"]
    if name not in known:
        raise UserError(f"unknown GPU {name!r}", f"name one of: {', '.join(known)}, cpu")
    return Gpu(name, **known[name])


def _setting(name: str, options: Options, rows: Rows, drawn: Batches) -> Setting:
    """The largest batch of an epoch: its rows side by side in one, without padding."""
    count = min(options.batch, drawn.count)
    length = count * drawn.longest if options.packing else sum(sorted(rows.lengths)[-count:])
    positions = math.ceil(length * rows.share) if options.packing else sum(sorted(rows.supervised)[-count:])
    return Setting(
        rows=1,
        length=length,
        positions=positions,
        dtype=options.dtype,
        quantization=options.quantization,
        optim=options.optim,
        checkpointing=options.checkpointing,
        adapters=2 if name == "dpo" else 1,
    )


def _savings(plan: StagePlan) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, changed options) of what saves memory, cheapest first; a kind that comes again goes further."""
    options = plan.options
    if not options.checkpointing:
        yield "checkpointing", {"checkpointing": True}
    batch, accumulation = options.batch, options.accumulation
    while batch > 1:
        batch, accumulation = batch // 2, accumulation * 2
        yield "batch", {"batch": batch, "accumulation": accumulation}
    if "8bit" not in options.optim:
        yield "optim", {"optim": "paged_adamw_8bit"}
    if options.quantization == "none":
        yield "quantization", {"quantization": "nf4"}
    length = options.max_length or max(plan.rows.lengths)
    while length > 256:
        length //= 2
        yield "length", {"max_length": length}


def _config(recipe: Recipe, config: str | None) -> PretrainedConfig:
    if config or recipe.model.base:
        settings = recipe.model
        options = {} if config else {"revision": settings.revision or "main"}
        return config_of(config or settings.base, trust_remote_code=settings.trust_remote_code, **options)
    from transformers import LlamaConfig

    shape = recipe.tiny.model_dump(include=set(recipe.tiny.model_fields) & set(LlamaConfig().to_dict()))
    return LlamaConfig(**shape)


@cache
def _known() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text("utf-8"))


def _own_memory() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _own_rate() -> float:
    """Teraflop/s of fp32 matrix products on this processor."""
    a = torch.rand(512, 512)
    rates: Sequence[float] = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        rates = [*rates, 2 * 512**3 / (time.perf_counter() - began) / 1e12]
    return max(rates)
