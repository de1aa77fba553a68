"""``Smoked-Salmon-s/empathetic_dialogues_ko``: ``instruction, output, source, type``.

A multi-turn row's instruction is ``질문: …\\n답변: …\\n질문: …`` and ``output`` the last reply. The real files also
hold ``질문 :`` with a space, a literal backslash-n for a line break, replies with line breaks inside, rows marked
multi_3 with four questions, and rows that start in the middle of a conversation.
"""

from __future__ import annotations

import re
from typing import Any

from data_prep.conversation import Conversation, Turn
from data_prep.sources.fields import checked, need, optional, single

COLUMNS = (frozenset({"instruction", "output", "type"}), frozenset({"instruction", "output", "source"}))

_MARK = re.compile(r"(?:^|\n)[ \t]*(질문|답변)[ \t]*[::][ \t]*")


def parse(values: dict[str, Any]) -> Conversation:
    """One row; the markers count, not what ``type`` claims."""
    instruction, output = need(values, "instruction"), need(values, "output")
    meta = optional(values, type="type", origin="source")
    text = instruction.replace("\\r", "").replace("\\n", "\n")
    marks = list(_MARK.finditer(text))
    if not marks or (meta.get("type") == "single" and len(marks) > 1 and marks[0].start() > 0):
        return single(instruction, output, meta=meta)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    head = text[: marks[0].start()].strip()
    turns = [Turn("user", head)] if head else []
    turns += [
        Turn("user" if mark[1] == "질문" else "assistant", text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    ]
    reply = _MARK.sub("", output, count=1) if _MARK.match(output) else output
    return Conversation("", checked([*turns, Turn("assistant", reply.strip())]), "", meta)
