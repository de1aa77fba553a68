"""How many messages a user may send, counted in the database, so that all workers count together.

A token bucket kept as one number (the generic cell rate algorithm, ITU-T I.371): a user's row holds the moment until
which the messages sent so far use the rate up. Where that is a minute ahead, the next one has to wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sqlalchemy import bindparam, case, or_, select, update

from pipeline.serve.store.database import Database
from pipeline.serve.store.models import User, table

MINUTE = 60_000_000  # microseconds


class Pace:
    """The column ``used_until`` of ``user``.

    Args:
        database: where it is.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._db, self._clock = database, clock

    def spend(self, user: str, per_minute: int) -> int:
        """Count a message; returns 0, or the seconds to wait if it is one too many (then it is not counted).

        ``per_minute`` messages may come at once, and ``per_minute`` a minute in the long run.
        """
        moment, each = int(self._clock() * 1e6), MINUTE // per_minute
        latest = moment + each * (per_minute - 1)
        with self._db.acting(lasting=False) as connection:
            if connection.execute(_SPEND, {"who": user, "moment": moment, "each": each, "latest": latest}).rowcount:
                return 0
            used = connection.execute(_USED, {"who": user}).scalar()
        return 0 if used is None else max(1, math.ceil((used - latest) / 1e6))


_USER = table(User)
_ME = _USER.c.id == bindparam("who")
_FROM = case((_USER.c.used_until > bindparam("moment"), _USER.c.used_until), else_=bindparam("moment"))
_SPEND = (
    update(_USER)
    .where(_ME, or_(_USER.c.used_until.is_(None), _USER.c.used_until <= bindparam("latest")))
    .values(used_until=_FROM + bindparam("each"))
)
_USED = select(_USER.c.used_until).where(_ME)
