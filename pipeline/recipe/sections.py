"""What may stand in a recipe: one typed section for every stage and for what the stages share."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from pipeline.recipe import upstream

STAGES = ("prepare", "tiny", "classify", "sft", "dpo", "memory", "eval")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelOptions(_Section):
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


class TinyOptions(_Section):
    """A small Llama-shaped base model built from the training split; names as in LlamaConfig and TrainingArguments."""

    vocab_size: int = Field(4096, ge=300, description="size of the byte-level BPE vocabulary")
    hidden_size: int = Field(256, ge=8, description="width of the model")
    num_hidden_layers: int = Field(4, ge=1, description="number of layers")
    num_attention_heads: int = Field(4, ge=1, description="attention heads a layer")
    num_key_value_heads: int = Field(4, ge=1, description="key/value heads a layer")
    intermediate_size: int = Field(688, ge=8, description="width of the feed-forward layers")
    max_position_embeddings: int = Field(512, ge=32, description="longest text, in tokens")
    tie_word_embeddings: bool = Field(True, description="one matrix for input embeddings and output head")
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
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self


class SweepOptions(_Section):
    """Candidates that `gonggam sweep` trains side by side; an ordinary run does not read this."""

    grid: dict[str, list[Any]] = Field(
        min_length=1, description="dotted key, such as sft.lora.r, to the values to try; every combination is a run"
    )
    criterion: str = Field(
        description="what decides: a stage and a figure of its manifest's metrics, such as dpo.held_out.accuracy"
    )
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")
    trials: int | None = Field(None, ge=1, description="try so many combinations, drawn at random; null: all")
    prompts: list[str] | None = Field(
        None, description="messages that every candidate answers, for reading side by side; null: a shipped few"
    )
    max_new_tokens: int = Field(128, ge=1, description="longest of these answers, in tokens")

    @model_validator(mode="after")
    def _values_given(self) -> SweepOptions:
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"{key} has no values to try")
        if "." not in self.criterion:
            raise ValueError("criterion must name a stage and a figure, such as sft.validation_perplexity.after")
        return self


@dataclass(frozen=True)
class SftSection:
    """Supervised fine-tuning.

    Attributes:
        lora: keyword arguments of `peft.LoraConfig`, just as written in the recipe.
        arguments: keyword arguments of `trl.SFTConfig`, just as written in the recipe.
    """

    lora: dict[str, Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class DpoSection:
    """Direct preference optimisation.

    Attributes:
        lora: keyword arguments of `peft.LoraConfig`, just as written in the recipe.
        arguments: keyword arguments of `trl.DPOConfig`, just as written in the recipe.
        reference: the frozen policy that DPO compares with: the base model, or the base with the SFT adapter.
    """

    lora: dict[str, Any]
    arguments: dict[str, Any]
    reference: Literal["base", "sft"]


class KeyHint(NamedTuple):
    """What to say about a key that a library once had, or that the pipeline sets itself."""

    owned: bool
    text: str


def _options(module: str, name: str) -> type[BaseModel]:
    return getattr(importlib.import_module(module), name)


def _training(name: str, kind: upstream.Upstream, doc: str, **extra: Any) -> type[BaseModel]:
    owned = {key for section in ("training", name) for key in known_keys()["owned"].get(section, {})}
    lora = upstream.model_of(upstream.LORA, frozenset(known_keys()["owned"]["lora"]))
    return create_model(
        kind.name,
        __base__=upstream.model_of(kind, frozenset(owned)),
        __doc__=doc,
        lora=(lora, Field(default_factory=lora, description="keys of peft's LoraConfig")),
        **extra,
    )


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
        case "prepare":
            return _options("data_prep.options", "PrepareOptions")
        case "memory":
            return _options("rag.options", "MemoryOptions")
        case "eval":
            return _options("eval.options", "EvalOptions")
        case "chat":
            return _options("pipeline.chat.options", "ChatOptions")
        case "sft":
            return _training("sft", upstream.SFT, "Supervised fine-tuning: `lora` and the keys of TRL's SFTConfig.")
        case "dpo":
            which = (
                Literal["base", "sft"] | None,
                Field(None, description="the policy that DPO compares with; null: sft if there is such a stage"),
            )
            doc = "Preference optimisation: `lora`, `reference` and the keys of TRL's DPOConfig."
            return _training("dpo", upstream.DPO, doc, reference=which)
    raise KeyError(name)


SECTIONS = ("model", "prepare", "tiny", "sft", "dpo", "memory", "chat", "eval", "sweep")


def key_hint(section: str, key: str) -> KeyHint | None:
    """What is known about a key that is not accepted in ``section`` (``lora`` for the keys of peft)."""
    groups = (section, "training") if section in ("sft", "dpo") else (section,)
    for group in groups:
        if why := known_keys()["owned"].get(group, {}).get(key):
            return KeyHint(True, why)
        known = known_keys()["renamed"].get(group, {}).get(key)
        if known is not None:
            now, note = known.get("now"), known.get("note", "")
            return KeyHint(False, "; ".join(filter(None, [f"use {now}" if now else "it was removed", note])))
    return None


@cache
def known_keys() -> dict[str, Any]:
    """keys.yaml: `renamed` and `owned`, each by section."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(Path(__file__).with_name("keys.yaml").read_text("utf-8"), fast)
