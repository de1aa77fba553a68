"""What may stand in a recipe: one typed section for every stage and for what the stages share."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from pipeline.recipe import upstream

OWN_OF_DPO = ("reference", "stop_on_collapse", "length_prompts")
"""Keys of the dpo section that are ours, beside those of TRL."""
STAGES = ("prepare", "tiny", "classify", "style", "sft", "dpo", "memory", "eval")


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


class MergeOptions(_Section):
    """What `gonggam merge` does with the merged model; an ordinary run does not read this."""

    push_to_hub: str | None = Field(
        None, pattern=r"^[\w.\-]+/[\w.\-]+$", description="USER/NAME of the hub repository to upload to; null: none"
    )
    private: bool = Field(True, description="whether a repository made for it is private")
    gguf: bool = Field(False, description="also convert with llama.cpp's converter")


class Range(_Section):
    """Numbers between two ends, for optuna; whole numbers if both ends are."""

    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(False, description="draw evenly on a logarithmic scale, as for learning rates")


class SweepOptions(_Section):
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


@dataclass(frozen=True)
class SftSection:
    """Supervised fine-tuning.

    Attributes:
        lora: keyword arguments of `peft.LoraConfig`, just as written in the recipe; None trains all weights.
        arguments: keyword arguments of `trl.SFTConfig`, just as written in the recipe.
    """

    lora: dict[str, Any] | None
    arguments: dict[str, Any]


@dataclass(frozen=True)
class DpoSection:
    """Direct preference optimisation.

    Attributes:
        lora: keyword arguments of `peft.LoraConfig`, just as written in the recipe.
        arguments: keyword arguments of `trl.DPOConfig`, just as written in the recipe.
        reference: the frozen policy that DPO compares with: the base model, or the base with the SFT adapter.
        stop_on_collapse: end training when the chosen replies become half as likely a token.
        length_prompts: held-out prompts answered at times, to see whether answers grow longer.
    """

    lora: dict[str, Any]
    arguments: dict[str, Any]
    reference: Literal["base", "sft"]
    stop_on_collapse: bool = False
    length_prompts: int = 4


class ClassifyKeys(_Section):
    """A text classifier: `lora`, the keys below and those of transformers' TrainingArguments."""

    label: Literal["category", "emotion"] = Field("category", description="what the first message of a row is told by")
    merge: dict[str, str] | None = Field(
        None, description="labels of several data sets under common names: {their name: the common one}"
    )
    levels: int | None = Field(
        None, ge=1, description="how many parts of a label such as 감정/우울 count: 1 joins all of 감정; null: all"
    )
    base: str | None = Field(None, description="hub id or folder of the encoder; null: model.base, or the tiny base")
    max_length: int = Field(128, ge=8, description="longest text in tokens; what is longer is cut")
    class_weights: Literal["balanced", "none"] = Field(
        "balanced", description="balanced: rare labels weigh more in the loss, as much as they are rarer"
    )
    early_stopping_patience: int | None = Field(
        3, ge=1, description="stop after so many epochs without a better macro-F1 on validation; null: never"
    )
    answers: str | None = Field(
        None, description="table of labels and reviewed answers; null: the replies of the training rows of each label"
    )
    precision: float = Field(
        0.8, gt=0, le=1, description="share of its sure answers that must be right on validation: sets the confidence"
    )
    learning_curve: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [], description="shares of the training texts, such as 0.1, to train on as well: what more data would buy"
    )


class StyleKeys(_Section):
    """A seq2seq model that rewrites replies in another manner; the keys below and those of TrainingArguments."""

    files: list[str] | None = Field(
        None, description="tables with the columns base, style, styled; null: the sample corpus's"
    )
    base: str | None = Field(None, description="hub id or folder of the model; null: model.base, or the tiny base")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the bases, with all their styles, to measure on")
    swaps: int = Field(
        0,
        ge=0,
        description="copies of every row with other words where both texts share one; teaches copying",
    )
    max_length: int = Field(160, ge=16, description="longest text in tokens, either side; longer rows are left out")
    num_beams: int = Field(1, ge=1, description="beams of generation when it is measured")


@dataclass(frozen=True)
class KeyedSection:
    """A section with keys of our own beside those of transformers.

    Attributes:
        keys: our own keys.
        lora: keyword arguments of `peft.LoraConfig`; None: all weights are trained.
        arguments: keyword arguments of `transformers.TrainingArguments`, just as written in the recipe.
    """

    keys: Any
    lora: dict[str, Any] | None
    arguments: dict[str, Any]

    @classmethod
    def of(cls, name: str, written: dict[str, Any]) -> KeyedSection:
        """The section ``name`` of a recipe that was checked."""
        keys = {key: written.pop(key) for key in KEYED[name].model_fields if key in written}
        return cls(KEYED[name](**keys), written.pop("lora", None), written)

    def plain(self) -> dict[str, Any]:
        """As plain data, our own defaults filled in."""
        return {**self.keys.model_dump(mode="json"), "lora": self.lora, **self.arguments}


KEYED: dict[str, type[BaseModel]] = {"classify": ClassifyKeys, "style": StyleKeys}


class KeyHint(NamedTuple):
    """What to say about a key that a library once had, or that the pipeline sets itself."""

    owned: bool
    text: str


def _options(module: str, name: str) -> type[BaseModel]:
    return getattr(importlib.import_module(module), name)


def _adapter_wanted(value: Any) -> Any:
    if value is None:
        raise ValueError("preference optimisation trains an adapter, since its reference is the model without it")
    return value


def _training(name: str, kind: upstream.Upstream, doc: str, **extra: Any) -> type[BaseModel]:
    owned = {key for section in ("training", name) for key in known_keys()["owned"].get(section, {})}
    lora = upstream.model_of(upstream.LORA, frozenset(known_keys()["owned"]["lora"]))
    if name == "sft":
        extra["lora"] = (
            lora | None,
            Field(default_factory=lora, description="keys of peft's LoraConfig; null trains all weights of the model"),
        )
    else:
        extra["lora"] = (
            Annotated[lora, BeforeValidator(_adapter_wanted)],
            Field(default_factory=lora, description="keys of peft's LoraConfig"),
        )
    return create_model(
        kind.name,
        __base__=upstream.model_of(kind, frozenset(owned)),
        __doc__=doc,
        **extra,
    )


def _keyed(name: str) -> type[BaseModel]:
    owned = {key for section in ("training", name) for key in known_keys()["owned"].get(section, {})}
    lora = upstream.model_of(upstream.LORA, frozenset(known_keys()["owned"]["lora"]))
    described = Field(None, description="keys of peft's LoraConfig; null: train all weights")
    fields = {key: (field.annotation, field) for key, field in KEYED[name].model_fields.items()}
    own: dict[str, Any] = {"lora": (lora | None, described), **fields}
    base = upstream.model_of(upstream.TRAINING, frozenset(owned))
    title, doc = f"{name.title()}Options", KEYED[name].__doc__
    return create_model(title, __base__=base, __doc__=doc, **own)


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
        case "classify" | "style":
            return _keyed(name)
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
        case "sft":
            return _training("sft", upstream.SFT, "Supervised fine-tuning: `lora` and the keys of TRL's SFTConfig.")
        case "dpo":
            which = (
                Literal["base", "sft"] | None,
                Field(None, description="the policy that DPO compares with; null: sft if there is such a stage"),
            )
            doc = "Preference optimisation: `lora`, `reference` and the keys of TRL's DPOConfig."
            stop = Field(False, description="stop when chosen replies become half as likely a token, else only warn")
            watched = Field(4, ge=0, description="held-out prompts answered at times, to see if answers grow; 0: none")
            return _training(
                "dpo",
                upstream.DPO,
                doc,
                reference=which,
                stop_on_collapse=(bool, stop),
                length_prompts=(int, watched),
            )
    raise KeyError(name)


SECTIONS = (
    "model", "prepare", "tiny", "classify", "style", "sft", "dpo", "memory", "chat", "eval", "serve", "sweep", "merge",
)  # fmt: skip


def key_hint(section: str, key: str) -> KeyHint | None:
    """What is known about a key that is not accepted in ``section`` (``lora`` for the keys of peft)."""
    groups = (section, "training") if section in (*KEYED, "sft", "dpo") else (section,)
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
