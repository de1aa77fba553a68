"""What a recipe will cost, before any model is loaded: rows, steps, memory, time, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import AutoConfig

from gonggam.errors import UserError
from pipeline.recipe import Recipe, required, upstream
from pipeline.train.attend import cannot_keep_apart
from pipeline.train.plan_data import Batches, Rows, dpo_lengths, loose, packed, padded, sft_lengths, twice
from pipeline.train.plan_machine import Gpu, known
from pipeline.train.plan_memory import Setting, Shape, config_of
from pipeline.train.plan_stage import Options, StagePlan
from pipeline.train.shapes import tiny_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_KEYS = {
    "checkpointing": "{}.activation_checkpointing",
    "batch": "{}.per_device_train_batch_size",
    "accumulation": "{}.gradient_accumulation_steps",
    "optim": "{}.optim",
    "quantization": "model.quantization",
    "max_length": "{}.max_length",
}


class Planner:
    """Plans the training stages of one recipe.

    Args:
        recipe: the checked recipe.
        prepared: its prepared data.
        gpus: how many there are.
        sharded: weights, gradients and optimiser are split over them (FSDP2, ZeRO-3); else each has them all (DDP).
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
        sharded: bool = False,
        config: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        system: str | None = None,
    ) -> None:
        self.recipe, self.prepared, self.gpus, self.sharded = recipe, prepared, gpus, sharded
        self.tokenizer, self.system = tokenizer, system
        self.config, self.shipped = _config(recipe, config)
        self._rows: dict[tuple[str, int | None, bool], Rows] = {}
        self._shapes: dict[str, Shape] = {}

    def stage(self, name: str, gpu: Gpu, options: Options | None = None) -> StagePlan:
        """The plan of ``sft`` or ``dpo`` on a machine, with the recipe's options or others.

        Raises:
            UserError: there is nothing to train on; the model's configuration or the LoRA targets are wrong.
        """
        chosen = options or self.options(name, gpu)
        attention = self.recipe.model.attn_implementation
        flash = name == "sft" and "flash" in (attention or "")
        apart = None if flash else cannot_keep_apart(self.config, attention, chosen.max_length)
        rows, shape = self._data(name, chosen.max_length, apart=bool(apart)), self._shape(name)
        pair = 2 if name == "dpo" else 1
        wide = padded(twice(rows) if pair == 2 else rows.lengths, chosen.batch * pair, self.recipe.seed)
        dense = packed(rows.lengths, chosen.max_length or max(rows.lengths))
        drawn = wide if apart else dense if chosen.packing else loose(rows.lengths)
        examples = dense.count if drawn is dense else len(rows.lengths)
        per_epoch = math.ceil(math.ceil(examples / (chosen.batch * self.gpus)) / chosen.accumulation)
        steps = chosen.max_steps if chosen.max_steps > 0 else math.ceil(per_epoch * chosen.epochs)
        epochs = steps / per_epoch
        passes = int(name == "dpo")
        flops = epochs * shape.flops(
            drawn.slots if apart else rows.tokens,
            drawn.squares,
            sum(rows.positions),
            checkpointing=chosen.checkpointing,
            passes=passes,
        )
        share = known()["share_of_peak"][chosen.quantization] if gpu.name != "cpu" else 1.0
        return StagePlan(
            name=name,
            options=chosen,
            rows=rows,
            drawn=drawn,
            padded=wide,
            dense=dense,
            apart=apart,
            steps=steps,
            epochs=epochs,
            parameters=shape.parameters,
            trainable=shape.trainable,
            memory=shape.memory(self._setting(name, chosen, rows, drawn, padded=bool(apart))),
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
        section, settings = getattr(self.recipe, name), self.recipe.model
        given = section.arguments
        defaults = upstream.model_of(upstream.SFT if name == "sft" else upstream.DPO).model_fields
        values = {key: given.get(key, field.default) for key, field in defaults.items()}
        on_gpu = gpu.name != "cpu"
        again = [given.get(key) for key in ("activation_checkpointing", "gradient_checkpointing")]
        half = torch.bfloat16 if gpu.bf16 else torch.float16
        whole = name == "sft" and section.lora is None
        auto = half if on_gpu and not whole else torch.float32
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
            mixed=half if on_gpu else None,
        )

    def _setting(self, name: str, options: Options, rows: Rows, drawn: Batches, *, padded: bool) -> Setting:
        """The largest batch of an epoch: its rows side by side in one, or padded to the longest."""
        count = min(options.batch, len(rows.lengths))
        supervised = sum(sorted(rows.positions)[-count:])
        length = sum(sorted(rows.lengths)[-count:])
        if padded:
            count, length = count * (1 if name == "sft" else 2), drawn.longest
            # The head works at every position that is supervised in some row of the batch; a pair's replies lie apart.
            supervised = count * max(rows.supervised) if name == "sft" else supervised
        elif options.packing:
            length = min(options.batch, drawn.count) * drawn.longest
            supervised = math.ceil(length * rows.share)
        return Setting(
            rows=count if padded else 1,
            length=length,
            positions=supervised,
            masked=padded,
            dtype=options.dtype,
            mixed=options.mixed,
            quantization=options.quantization,
            optim=options.optim,
            checkpointing=options.checkpointing,
            adapters=2 if self._goes_on(name) else 1,
            shards=self.gpus if self.sharded else 1,
        )

    def _data(self, name: str, max_length: int | None, *, apart: bool) -> Rows:
        key = (name, max_length, apart)
        if key not in self._rows:
            count = sft_lengths if name == "sft" else partial(dpo_lengths, shared=not apart)
            self._rows[key] = count(self.tokenizer, self.prepared, system=self.system, max_length=max_length)
        return self._rows[key]

    def _shape(self, name: str) -> Shape:
        if name not in self._shapes:
            lora = getattr(self.recipe, "sft" if self._goes_on(name) else name).lora
            try:
                self._shapes[name] = Shape(self.config, lora, self.recipe.model.attn_implementation)
            except ValueError as error:
                raise UserError(f"{name}.lora does not fit this model ({error})", file=self.recipe.file) from error
        return self._shapes[name]

    def _goes_on(self, name: str) -> bool:
        """Whether a stage trains the adapter of the one before it."""
        sft, dpo = self.recipe.sft, self.recipe.dpo
        return name == "dpo" and bool(sft and dpo and dpo.reference == "sft" and sft.lora is not None)


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
    if options.quantization == "none" and plan.trainable < plan.parameters:
        yield "quantization", {"quantization": "nf4"}
    length = options.max_length or max(plan.rows.lengths)
    while length > 256:
        length //= 2
        yield "length", {"max_length": length}


def _config(recipe: Recipe, config: str | None) -> tuple[PretrainedConfig, bool]:
    """The shape of the base model, and whether it is the one that stands in shapes.yaml."""
    settings = recipe.model
    wanted = config or settings.base
    if not wanted:
        tiny = required(recipe.tiny)
        return tiny_config(tiny, tiny.vocab_size), False
    options = {} if config else {"revision": settings.revision or "main"}
    try:
        return config_of(wanted, trust_remote_code=settings.trust_remote_code, **options), False
    except UserError:
        if config or wanted not in known_shapes():
            raise
        return AutoConfig.for_model(**known_shapes()[wanted]), True


@cache
def known_shapes() -> dict[str, dict[str, Any]]:
    """shapes.yaml: what the configurations of the shipped recipes' base models say, by hub id."""
    return yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text("utf-8"))
