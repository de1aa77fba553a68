"""The recipe's `chat:` section: how the counsellor speaks, what it holds back and what it never leaves to a model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GateOptions(_Section):
    """When a generated reply is withdrawn and a human-written one answers instead."""

    enabled: bool = Field(True, description="check generated replies at all")
    retries: int = Field(1, ge=0, le=5, description="how often to generate anew before a human-written answer is used")
    min_chars: int = Field(8, ge=1, description="shortest reply, in characters without spaces")
    max_chars: int = Field(600, ge=20, description="longest reply, in characters")
    max_repetition: float = Field(
        0.2, ge=0, le=1, description="largest share of the reply's character 6-grams that may be repeats"
    )
    max_echo: float = Field(
        0.6,
        ge=0,
        le=1,
        description="largest share of the reply's character 4-grams that may stand in the user's message",
    )
    min_logprob: float | Literal["auto"] | None = Field(
        "auto",
        description="lowest mean token log-probability in nats; auto: the 1st percentile over held-out human replies "
        "that training measured, but not below -3; null: not checked",
    )
    min_cosine: float = Field(
        0.4,
        ge=-1,
        le=1,
        description="lowest likeness of the message to the question a human-written answer was given to",
    )
    min_feeling: float = Field(
        0.35, ge=0, le=1, description="lowest probability of an emotion at which the general words speak of it"
    )
    min_relevance: float | None = Field(
        None,
        description="lowest gain, in nats a token, that the conversation may bring over none; null: not checked "
        "(costs a second pass over the reply)",
    )


class SafetyOptions(_Section):
    """The layer outside the model. It cannot be switched off; these settings say how it behaves."""

    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="probability from which the classifier calls a message high risk; null: as shipped",
    )
    history_turns: int = Field(4, ge=0, le=20, description="how many earlier messages of the user are taken into view")
    remember: bool = Field(False, description="whether exchanges of high risk are written to the user's memory")
    remember_mark: bool = Field(
        False,
        description="whether the time, session and kind of a message of high risk are kept with the user's memory, "
        "without any words, so that the concern outlives a restart",
    )
    introduce: bool = Field(True, description="whether a session begins by saying that this is an AI")


class ChatOptions(_Section):
    """How the counsellor answers."""

    system: str = Field("counselor", description="prompt of training and serving: a name, a text file, or none")
    persona: str = Field("기본", description="manner of speech used when a request names none")
    adapter: str = Field("auto", description="auto (dpo, else sft, else the base), none, or an adapter's name")
    max_new_tokens: int = Field(160, ge=1, le=4096, description="longest reply, in tokens")
    temperature: float = Field(0.7, ge=0, le=2, description="0 chooses the likeliest token each time")
    top_p: float = Field(0.9, gt=0, le=1, description="sample from the smallest set of tokens with this probability")
    top_k: int = Field(50, ge=0, description="sample from the k likeliest tokens; 0: from all")
    repetition_penalty: float = Field(1.1, ge=1, le=2, description="above 1 makes tokens that were used less likely")
    seed: int | None = Field(None, description="makes replies reproducible; null: different each time")
    emotion_model: str | None = Field(
        None, description="text classifier for emotions, such as nlp04/korean_sentiment_analysis_kcelectra; null: ours"
    )
    style_model: str | None = Field(
        None,
        description="seq2seq model that rewrites replies in a persona's manner, such as "
        "KoJLabs/bart-speech-style-converter; null: the language model speaks in it",
    )
    sentiment: dict[str, str] | None = Field(
        None,
        description="for models that answer to a sentiment: labels of the run's classify stage, and what the chat "
        "template is told for each; the first where none is told or predicted",
    )
    recent_turns: int = Field(
        4, ge=0, description="earlier exchanges that the model is shown, where there is no memory section to say so"
    )
    min_confidence: float | Literal["auto"] = Field(
        "auto", description="runs of a classifier: probability from which a category is believed; auto: as calibrated"
    )
    fallback: str | None = Field(
        None,
        description="runs that choose among answers: who answers where they are unsure (run or model folder, hub id, "
        "openai:URL#model); null: the counsellor says so and asks back",
    )
    timeout_s: float = Field(60, gt=0, description="longest wait for a model server, in seconds")
    max_message_chars: int = Field(4000, ge=100, description="longest message that is read; longer ones are declined")
    gate: GateOptions = Field(default_factory=GateOptions, description="the quality gate")
    safety: SafetyOptions = Field(default_factory=SafetyOptions, description="the safety layer")
