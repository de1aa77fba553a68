"""What may stand in a recipe: one typed section for every stage and for what the stages share."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from pipeline.recipe.training import Section, training_model

STAGES = ("prepare", "tiny", "classify", "style", "sft", "dpo", "memory", "eval")


class ModelOptions(Section):
    """The pretrained model that training starts from, and how it is loaded."""

    base: str | None = Field(
        None, description="hub id or folder of the pretrained model; left out where `tiny` is given"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    quantization: Literal["none", "nf4", "int8"] = Field("none", description="bits of the frozen base weights")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="number format of the weights; auto: bfloat16 where the GPU has it, else float32"
    )
    attn_implementation: str | None = Field(
        None, description="sdpa, flash_attention_2, eager ...; null: what transformers chooses"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model; read it first")
    chat_template: str | None = Field(
        None, description="for tokenizers that bring none: a name under pipeline/templates or a Jinja file"
    )


class TinyOptions(Section):
    """A small base model built from the training split; names as in LlamaConfig and TrainingArguments."""

    architecture: Literal["llama", "gpt2", "modernbert", "bart"] = Field(
        "llama", description="llama and gpt2 generate; modernbert is for `classify`, bart for `style`"
    )
    vocab_size: int = Field(4096, ge=300, description="size of the byte-level BPE vocabulary")
    hidden_size: int = Field(256, ge=8, description="width of the model")
    num_hidden_layers: int = Field(4, ge=1, description="number of layers")
    num_attention_heads: int = Field(4, ge=1, description="attention heads a layer")
    num_key_value_heads: int | None = Field(
        None, ge=1, description="key/value heads a layer, of llama alone; null: as many as attention heads"
    )
    intermediate_size: int = Field(688, ge=8, description="width of the feed-forward layers")
    max_position_embeddings: int = Field(512, ge=32, description="longest text, in tokens")
    num_train_epochs: float = Field(3, gt=0, description="passes over the training split")
    max_steps: int = Field(-1, description="if positive, the number of steps, in place of num_train_epochs")
    per_device_train_batch_size: int = Field(16, ge=1, description="rows a step and device")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup_steps: float = Field(0.05, ge=0, description="steps of warm-up; below 1 a share of all steps")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of AdamW")

    @model_validator(mode="after")
    def _heads_fit(self) -> TinyOptions:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        if self.num_key_value_heads and self.architecture != "llama":
            raise ValueError(f"{self.architecture} has no num_key_value_heads; leave it out")
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self


class MergeOptions(Section):
    """What `gonggam merge` does with the merged model; an ordinary run does not read this."""

    push_to_hub: str | None = Field(
        None, pattern=r"^[\w.\-]+/[\w.\-]+$", description="USER/NAME of the hub repository to upload to; null: none"
    )
    private: bool = Field(True, description="whether a repository made for it is private")
    gguf: bool = Field(False, description="also convert with llama.cpp's converter")


class Range(Section):
    """Numbers between two ends, for optuna; whole numbers if both ends are."""

    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(False, description="draw evenly on a logarithmic scale, as for learning rates")


class SweepOptions(Section):
    """Candidates that `gonggam sweep` trains side by side; an ordinary run does not read this."""

    grid: dict[str, list[Any] | Range] = Field(
        min_length=1,
        description="dotted key, such as sft.lora.r, to the values to try, or for optuna to {low, high, log}",
    )
    search: Literal["grid", "optuna"] = Field(
        "grid", description="grid: every combination is a run; optuna: it chooses the next ones by the scores so far"
    )
    parallel: int = Field(1, ge=1, description="candidates trained at a time; GPUs, or else cores, are shared out")
    criterion: str = Field(
        description="what decides: a stage and a figure of its manifest's metrics, such as dpo.held_out.accuracy"
    )
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")
    trials: int | None = Field(None, ge=1, description="how many candidates; null: all of a grid, 20 with optuna")
    prompts: list[str] | None = Field(
        None, description="messages that every candidate answers, for reading side by side; null: a shipped few"
    )
    max_new_tokens: int = Field(128, ge=1, description="longest of these answers, in tokens")

    @model_validator(mode="after")
    def _values_given(self) -> SweepOptions:
        for key, values in self.grid.items():
            if isinstance(values, Range):
                if self.search == "grid":
                    raise ValueError(f"{key} is a range, which only search: optuna can draw from")
                if not values.low < values.high or (values.log and values.low <= 0):
                    raise ValueError(f"{key} needs low below high, and low above 0 where log is true")
            elif not values:
                raise ValueError(f"{key} has no values to try")
        if "." not in self.criterion:
            raise ValueError("criterion must name a stage and a figure, such as sft.validation_perplexity.after")
        return self


def _options(module: str, name: str) -> type[BaseModel]:
    return getattr(importlib.import_module(module), name)


@cache
def section_model(name: str) -> type[BaseModel]:
    """The pydantic model that checks a section."""
    match name:
        case "model":
            return ModelOptions
        case "tiny":
            return TinyOptions
        case "sweep":
            return SweepOptions
        case "classify" | "style" | "sft" | "dpo":
            return training_model(name)
        case "merge":
            return MergeOptions
        case "prepare":
            return _options("data_prep.options", "PrepareOptions")
        case "memory":
            return _options("rag.options", "MemoryOptions")
        case "eval":
            return _options("eval.options", "EvalOptions")
        case "chat":
            return _options("pipeline.chat.options", "ChatOptions")
        case "serve":
            return _options("pipeline.serve.options", "ServeOptions")
    raise KeyError(name)


SECTIONS = (
    "model", "prepare", "tiny", "classify", "style", "sft", "dpo", "memory", "chat", "eval", "serve", "sweep", "merge",
)  # fmt: skip
