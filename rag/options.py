"""The recipe's `memory:` section: how exchanges are embedded, recalled, kept and let go."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MemoryOptions(BaseModel):
    """How the counsellor remembers, and which human-written answers it falls back on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedder: str = Field(
        "offline",
        description="offline (trained on the run's own exchanges in seconds), a hub id such as nlpai-lab/KURE-v1, "
        "or a folder",
    )
    epochs: int = Field(10, ge=1, le=500, description="passes over the exchanges when fitting the offline embedder")
    seed: int = Field(0, ge=0, description="seed of the offline embedder's training")
    recent_turns: int = Field(4, ge=0, le=100, description="newest exchanges of the session that go in verbatim")
    recall: int = Field(2, ge=0, le=20, description="older exchanges that are recalled for a message; 0: none")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="relevance, from 0 to 1, that the best exchange must reach for any to be recalled; null: the level "
        "that the best of 15 unrelated exchanges stays below a quarter of the time, measured by the stage",
    )
    lexical: float = Field(
        0.5, ge=0, le=10, description="weight of BM25 over Kiwi morphemes beside the vectors' weight of 1; 0: off"
    )
    fusion: Literal["sum", "rrf"] = Field(
        "sum", description="how the two are joined: by the sum of their scores, or by reciprocal rank"
    )
    reply_context: float = Field(
        0.5, ge=0, le=1, description="weight of the reply's words beside the user's own when memories are compared"
    )
    half_life_days: float | None = Field(
        None, gt=0, description="days after which a memory's score has halved; null: memories do not fade"
    )
    retention_days: float | None = Field(
        None, gt=0, description="days after which an exchange is erased from disk; null: kept until it is forgotten"
    )
    reranker: str | None = Field(
        None, description="cross-encoder (hub id or folder) that orders the candidates anew; null: none"
    )
    max_loaded_users: int = Field(256, ge=1, description="users whose memories are held in RAM at the same time")
