"""What a user can set: the ``prepare:`` section of a recipe and the options of ``gonggam data prepare``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_prep.sources import reader
from gonggam.errors import UserError


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SourceOptions(_Options):
    """One data source."""

    reader: str | None = Field(default=None, description="Reader by name; left out, it is recognised from the columns.")
    path: str | list[str] | None = Field(
        default=None,
        description="File, folder, glob, a list of these, or the id of a data set on the Hugging Face hub. "
        "counsel_ko may leave it out: the packaged sample is read.",
    )
    name: str | None = Field(
        default=None, description="What the source is called in rows and reports; by default the reader."
    )
    rows: int | None = Field(default=None, ge=1, description="Keep at most this many conversations of it.")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Its share relative to the weights of the other sources; the scarcest is kept whole.",
    )

    @field_validator("reader")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                reader(name)
            except UserError as error:
                raise ValueError(f"{error.what}. {error.hint}") from error
        return name

    @model_validator(mode="after")
    def _one_of(self) -> SourceOptions:
        if self.rows and self.weight:
            raise ValueError("give rows or weight, not both")
        return self


class SplitOptions(_Options):
    """Shares of the held-out splits; the rest is train."""

    validation: float = Field(default=0.05, ge=0, lt=1, description="Share of conversations for validation.")
    test: float = Field(default=0.05, ge=0, lt=1, description="Share of conversations for test.")

    @model_validator(mode="after")
    def _leaves_train(self) -> SplitOptions:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing for train")
        return self


class CleanOptions(_Options):
    """Cleaning rules, each on or off."""

    unicode: bool = Field(default=True, description="Compose Hangul (NFC) and replace unusual spaces by plain ones.")
    control: bool = Field(default=True, description="Remove control, zero-width and replacement characters.")
    markup: bool = Field(default=True, description="Remove HTML tags and entities, and literal backslash-n.")
    repeats: bool = Field(default=True, description="Shorten runs such as ㅋㅋㅋㅋㅋ and !!!!! to three.")
    helplines: bool = Field(default=True, description="Replace retired help lines by the present one (1393 by 109).")
    empty_turns: bool = Field(default=True, description="Remove turns without text.")
    role_order: bool = Field(
        default=True,
        description="Join turns of the same speaker; drop replies before the first user turn, and unanswered ends.",
    )
    hangul: Literal["report", "drop", "off"] = Field(
        default="report", description="What to do with a conversation in which a reply holds no Hangul."
    )


class DeduplicateOptions(_Options):
    """Removal of conversations that are stored twice."""

    exact: bool = Field(default=True, description="Remove conversations with identical turns.")
    near: float | None = Field(
        default=0.85,
        gt=0,
        le=1,
        description="Jaccard similarity of 5-character shingles above which the shorter one goes.",
    )


class PrepareOptions(_Options):
    """Everything preparation can be told."""

    sources: list[SourceOptions] = Field(min_length=1, description="Data sources, mixed in this order.")
    split: SplitOptions = Field(default_factory=lambda: SplitOptions(), description="Shares of the held-out splits.")
    clean: CleanOptions = Field(default_factory=lambda: CleanOptions(), description="Cleaning rules.")
    privacy: Literal["mask", "drop", "report", "off"] = Field(
        default="mask",
        description="What to do with personal data: placeholders, drop the conversation, count only, nothing.",
    )
    reassemble: bool = Field(default=True, description="Join rows that hold prefixes of one conversation.")
    deduplicate: DeduplicateOptions = Field(default_factory=lambda: DeduplicateOptions(), description="Duplicates.")
    turns: Literal["all", "single"] = Field(default="all", description="single: only rows of one exchange.")
    formats: list[Literal["messages", "alpaca", "alpaca_replies", "sharegpt", "parquet"]] = Field(
        default=["messages", "alpaca", "sharegpt"],
        description="Forms to write; preference pairs are written if there are any. alpaca_replies holds one row for "
        "each reply, to be trained on with mask_history.",
    )
