"""How it felt: the emotions of a room, and over days and weeks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from functools import cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, available_timezones

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from pipeline.serve.native.access import LOGGED_IN, OWN, Id, Me, TheStore, refusals
from pipeline.serve.native.rooms import found
from pipeline.serve.refused import Refused
from pipeline.serve.store.models import now
from pipeline.serve.store.records import Felt

router = APIRouter(tags=["emotions"])
Step = Literal["day", "week"]


class Span(BaseModel):
    """The messages of one day, or of one week from its Monday."""

    start: date
    messages: int
    counts: dict[str, int] = Field(description="messages by emotion, the most frequent first")


@router.get("/rooms/{room}/emotions", responses=OWN)
def of_room(room: Id, who: Me, store: TheStore) -> list[Felt]:
    """The emotion of every message of a room, oldest first."""
    found(store, who.id, room)
    return store.insight.emotions(who.id, room=room)


@router.get("/emotions", responses=LOGGED_IN | refusals("bad_timezone"))
def over_time(
    who: Me,
    store: TheStore,
    days: Annotated[int, Query(ge=1, le=3660)] = 30,
    by: Step = "day",
    timezone: Annotated[str, Query(max_length=64, description="where midnight is")] = "Asia/Seoul",
) -> list[Span]:
    """My emotions by day or week, oldest first; days without messages are left out."""
    if timezone != "UTC" and timezone not in _zones():
        raise Refused("bad_timezone")
    return spans(store.insight.emotions(who.id, since=now() - timedelta(days=days)), by, ZoneInfo(timezone))


def spans(felt: Iterable[Felt], by: Step, zone: ZoneInfo) -> list[Span]:
    """Emotions counted by day or week as a clock in ``zone`` shows it."""
    counts: defaultdict[date, Counter[str]] = defaultdict(Counter)
    for one in felt:
        counts[_start(one.at, by, zone)][one.label] += 1
    return [
        Span(start=start, messages=counter.total(), counts=dict(counter.most_common()))
        for start, counter in sorted(counts.items())
    ]


def _start(at: datetime, by: Step, zone: ZoneInfo) -> date:
    day = at.astimezone(zone).date()
    return day if by == "day" else day - timedelta(days=day.weekday())


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())
