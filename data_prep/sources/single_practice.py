"""``single_practice``: one ``text`` column, ``### Instruction: … ### Input: … ### Answer: …``."""

from __future__ import annotations

import re
from typing import Any

from data_prep.conversation import Conversation
from data_prep.sources.fields import BadRow, need, single

COLUMNS = (frozenset({"text"}),)

_PARTS = re.compile(r"#{2,3}\s*(Instruction|Input|Answer|Response|Output)\s*[::]?[ \t]*", re.I)


def parse(values: dict[str, Any]) -> Conversation:
    """One row; the instruction and the input together are what the user says."""
    pieces = _PARTS.split(need(values, "text").replace("\\n", "\n"))
    parts = {name.lower(): text.strip() for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    said = "\n".join(text for text in (parts.get("instruction"), parts.get("input")) if text)
    answer = parts.get("answer") or parts.get("response") or parts.get("output")
    if not said or not answer:
        raise BadRow("no ### Instruction: and ### Answer: with text in it")
    return single(said, answer)
