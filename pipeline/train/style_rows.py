"""Rows of a style converter: read from tables, held out by their base, and with words swapped on both sides."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import data_prep
from data_prep.rows import read_rows
from data_prep.sources.fields import text_of
from gonggam.errors import UserError

SAMPLE = Path(data_prep.__file__).parent / "samples" / "counsel_ko" / "styles.tsv"
_WORD = re.compile("[가-힣]+")
_STEMS = (4, 3, 2)  # longest first


class Styled(NamedTuple):
    """A row of a style table."""

    base: str
    style: str
    styled: str


def read_styles(files: Sequence[str]) -> list[Styled]:
    """The rows of tables with the columns base, style and styled.

    Raises:
        UserError: a file cannot be read, or no row has all three.
    """
    cells = [[text_of(row.values.get(name)) for name in Styled._fields] for file in files for row in read_rows(file)]
    rows = [Styled(*cell) for cell in cells if all(cell)]
    if not rows:
        raise UserError("no row with base, style and styled", "name these columns", file=files[0])
    return rows


def split_by_base(rows: Sequence[Styled], share: float) -> tuple[list[Styled], list[Styled]]:
    """Rows to learn from and rows to measure on; all rows of a base are on one side, told by its hash.

    Raises:
        UserError: one side would be empty.
    """
    bases = sorted({row.base for row in rows}, key=lambda base: sha256(base.encode()).digest())
    held = set(bases[: max(1, round(share * len(bases)))])
    learn = [row for row in rows if row.base not in held]
    if not learn:
        raise UserError("a single base leaves nothing to measure on", "give more rows")
    return learn, [row for row in rows if row.base in held]


def with_swaps(rows: Sequence[Styled], times: int, seed: int) -> list[Styled]:
    """The rows, and ``times`` copies of each in which words that base and styled text share are other words.

    Each shared word is swapped, on both sides alike, with a chance of one half. A model that knows few texts would
    learn them by heart; what it learns from such copies is to carry over whatever word it reads.
    """
    chance = random.Random(seed)
    pool = {size: sorted({word[:size] for word in _words((row.base for row in rows), size)}) for size in _STEMS}
    return [*rows, *(_swapped(row, pool, chance) for _ in range(times) for row in rows)]


def shared_stems(base: str, styled: str) -> list[str]:
    """Beginnings of two to four syllables that words of both texts have in common, longest first."""
    found: list[str] = []
    for size in _STEMS:
        common = {w[:size] for w in _words([base], size)} & {w[:size] for w in _words([styled], size)}
        found += sorted(stem for stem in common if not any(longer.startswith(stem) for longer in found))
    return found


def _swapped(row: Styled, pool: dict[int, list[str]], chance: random.Random) -> Styled:
    new = {s: chance.choice(pool[len(s)]) for s in shared_stems(row.base, row.styled) if chance.random() < 0.5}
    if not new:
        return row
    stems = re.compile(f"(?<![가-힣])({'|'.join(new)})")  # longest first, as they came

    def put(text: str) -> str:
        return stems.sub(lambda match: new[match[1]], text)

    return Styled(put(row.base), row.style, put(row.styled))


def _words(texts: Iterable[str], size: int) -> list[str]:
    return [word for text in texts for word in _WORD.findall(text) if len(word) >= size]
