"""Recipe sections with the keys of a library's trainer beside ours: sft, dpo, classify, style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from pipeline.recipe import upstream
from pipeline.recipe.keys import known_keys, limits

OWN_OF_DPO = ("reference", "stop_on_collapse", "length_prompts")
"""Keys of the dpo section that are ours, beside those of TRL."""


class Section(BaseModel):
    """A section takes the keys it has, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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


class ClassifyKeys(Section):
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
        0.8, gt=0, lt=1, description="share of its sure answers that must be right on validation: sets the confidence"
    )
    learning_curve: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [], description="shares of the training texts, such as 0.1, to train on as well: what more data would buy"
    )


class StyleKeys(Section):
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


def training_model(name: str) -> type[BaseModel]:
    """The pydantic model that checks the section ``name``: sft, dpo, classify or style."""
    if name in KEYED:
        return _keyed(name)
    if name == "sft":
        return _training("sft", upstream.SFT, "Supervised fine-tuning: `lora` and the keys of TRL's SFTConfig.")
    which = Field(None, description="the policy that DPO compares with; null: sft if there is such a stage")
    stop = Field(False, description="stop when chosen replies become half as likely a token, else only warn")
    watched = Field(4, ge=0, description="held-out prompts answered at times, to see if answers grow; 0: none")
    return _training(
        "dpo",
        upstream.DPO,
        "Preference optimisation: `lora`, `reference` and the keys of TRL's DPOConfig.",
        reference=(Literal["base", "sft"] | None, which),
        stop_on_collapse=(bool, stop),
        length_prompts=(int, watched),
    )


def _adapter_wanted(value: Any) -> Any:
    if value is None:
        raise ValueError("preference optimisation trains an adapter, since its reference is the model without it")
    return value


def _training(name: str, kind: upstream.Upstream, doc: str, **extra: Any) -> type[BaseModel]:
    lora = _settable(upstream.LORA, "lora")
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
        __base__=_settable(kind, "training", name),
        __doc__=doc,
        **extra,
    )


def _keyed(name: str) -> type[BaseModel]:
    lora = _settable(upstream.LORA, "lora")
    described = Field(None, description="keys of peft's LoraConfig; null: train all weights")
    fields = {key: (field.annotation, field) for key, field in KEYED[name].model_fields.items()}
    own: dict[str, Any] = {"lora": (lora | None, described), **fields}
    base = _settable(upstream.TRAINING, "training", name)
    title, doc = f"{name.title()}Options", KEYED[name].__doc__
    return create_model(title, __base__=base, __doc__=doc, **own)


def _settable(kind: upstream.Upstream, *groups: str) -> type[BaseModel]:
    """The keys of a library that a recipe may set, their values within our limits."""
    owned = {key for group in groups for key in known_keys()["owned"].get(group, {})}
    base = upstream.model_of(kind, frozenset(owned))
    bounds = {key: bound for group in groups for key, bound in limits().get(group, {}).items()}
    bounded: dict[str, Any] = {}
    for key, bound in bounds.items():
        field = base.model_fields[key]
        bounded[key] = (Annotated[field.annotation, Field(**bound)], field)
    return create_model(kind.name, __base__=base, **bounded)
