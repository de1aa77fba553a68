"""What is remembered of me: read, forget, take along."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from pipeline.serve.native.access import LOGGED_IN, OWN, TheTalks, Who
from pipeline.serve.refused import Refused

router = APIRouter(prefix="/memory", tags=["memory"])


class Remembered(BaseModel):
    """An exchange in the memory; ``session`` is the room it comes from."""

    id: str
    session: str
    when: str
    user: str
    reply: str


@router.get("", responses=LOGGED_IN)
def read(
    who: Who,
    talks: TheTalks,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> list[Remembered]:
    """What is remembered of me, the newest first."""
    newest = talks.counselor.export(who.memory)["exchanges"][::-1]
    return [Remembered.model_validate(row) for row in newest[offset : offset + limit]]


@router.get("/export", responses=LOGGED_IN)
def export(who: Who, talks: TheTalks) -> dict[str, Any]:
    """All of it as JSON."""
    return talks.counselor.export(who.memory)


@router.delete("/{exchange}", status_code=204, responses=OWN)
def forget(exchange: Annotated[str, Path(pattern=r"^[0-9a-f]{1,64}$")], who: Who, talks: TheTalks) -> None:
    """Forget one exchange; it can still be read in its room."""
    if not talks.erasure.memory_of(who, exchange):
        raise Refused("not_found")


@router.delete("", status_code=204, responses=LOGGED_IN)
def forget_all(who: Who, talks: TheTalks) -> None:
    """Forget everything; rooms stay."""
    talks.erasure.memories(who)
