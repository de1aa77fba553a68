"""Feelings as a curve: plain SVG, drawn on the server, readable by screen readers as a sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean
from zoneinfo import ZoneInfo

from pipeline.serve.store.records import Felt
from pipeline.serve.web.looks import words

WIDTH, HEIGHT, EDGE = 640, 220, 36


@dataclass(frozen=True)
class Point:
    """A place on the curve: from 0 (oldest) to 1, from -1 (heavy) to 1 (light), and what it is in words."""

    x: float
    y: float
    what: str

    @property
    def left(self) -> float:
        """Pixels from the left."""
        return round(EDGE + self.x * (WIDTH - 2 * EDGE), 1)

    @property
    def top(self) -> float:
        """Pixels from the top."""
        return round(HEIGHT / 2 - self.y * (HEIGHT / 2 - EDGE), 1)


def room_curve(felt: Sequence[Felt], zone: ZoneInfo) -> list[Point]:
    """A point for every message of a room; nothing where there are fewer than two."""
    known = [one for one in felt if one.label in words()["feelings"]]
    last = max(1, len(known) - 1)
    return _drawn(
        Point(i / last, words()["feelings"][one.label], f"{one.at.astimezone(zone):%H:%M} {one.label}")
        for i, one in enumerate(known)
    )


def weeks_curve(felt: Iterable[Felt], zone: ZoneInfo) -> list[Point]:
    """A point for every week from its Monday: the mean over its messages."""
    weeks = defaultdict(list)
    for one in felt:
        if one.label in words()["feelings"]:
            day = one.at.astimezone(zone).date()
            weeks[day - timedelta(days=day.weekday())].append(words()["feelings"][one.label])
    if not weeks:
        return []
    begin = min(weeks)
    span = max(1, (max(weeks) - begin).days)
    return _drawn(
        Point((week - begin).days / span, fmean(values), f"{week.month}/{week.day} ({len(values)})")
        for week, values in sorted(weeks.items())
    )


def _drawn(points: Iterable[Point]) -> list[Point]:
    found = list(points)
    return found if len(found) > 1 else []
