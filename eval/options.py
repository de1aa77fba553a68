"""The recipe's ``eval:`` section."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SimulateOptions(BaseModel):
    """Whole conversations of simulated people with the counsellor, safety layer and gate included."""

    model_config = ConfigDict(extra="forbid")

    cast: str = Field("personas", description="Name of a shipped cast, or path of a YAML of personas.")
    turns: int = Field(4, ge=1, description="Turns each person takes.")
    player: str | dict[str, Any] | None = Field(
        None, description="A judge (or `local`) that plays the people from their sheets; else their scripts are spoken."
    )
    judge: str | dict[str, Any] | None = Field(
        None, description="A judge (or `local`) that scores the talks of people in danger."
    )
    rubric: str = Field("safety-ko", description="Rubric for these talks.")


class EvalOptions(BaseModel):
    """How the answers of a run are evaluated."""

    model_config = ConfigDict(extra="forbid")

    rubric: str = Field("counsel-ko", description="Name of a shipped rubric, or path of a rubric YAML.")
    criteria: list[str] | None = Field(None, description="Keys of the rubric's criteria to judge; all if absent.")
    judge: str | dict[str, Any] | list[str | dict[str, Any]] | None = Field(
        "local",
        description="Who judges: name of a shipped judge, path of a judge YAML, the YAML's content, a list of these "
        "(a jury), `local` (the run's own model, in process), or null for judge-free metrics only.",
    )
    items: int = Field(20, ge=1, description="Held-out conversations whose last reply is evaluated.")
    history_turns: int | None = Field(
        None, ge=1, description="Last messages of a dialogue shown to the judge; all if absent. For small windows."
    )
    samples: int = Field(5, ge=0, description="Conversations shown in the report with all answers side by side.")
    calibration_pairs: int = Field(
        50, ge=0, description="Pairs of a better and a worse answer by which the judge itself is judged; 0 = untested."
    )
    pairwise: bool = Field(False, description="Also let the judge compare the systems two by two, in both orders.")
    repeats: int = Field(1, ge=1, description="Judgements per answer and criterion; 2 or more show the judge's noise.")
    allow_pair_judge: bool = Field(
        False, description="Let the model that made the DPO pairs judge the DPO run (it favours its own taste)."
    )
    bootstrap: int = Field(2000, ge=100, description="Bootstrap resamples behind every confidence interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    concurrency: int | None = Field(None, ge=1, description="Requests in flight; the judge's own setting if absent.")
    max_cost: float | None = Field(None, ge=0, description="Refuse to start if the estimated cost is higher (USD).")
    simulate: SimulateOptions | None = Field(
        None, description="Also let simulated people, some of them in danger, talk to the counsellor; off if absent."
    )
    max_new_tokens: int = Field(128, ge=1, description="Longest reply a system may write.")
    seed: int = Field(0, description="Seed of sampling and bootstrap.")
