"""The level of relevance that unrelated memories reach by accident, from which the recall threshold follows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gonggam.files import read_json, write_json
from rag.index import ExchangeIndex
from rag.log import Exchange
from rag.options import MemoryOptions

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings


_FILE = "threshold.json"


def write_threshold(folder: str | Path, level: float) -> None:
    """Keep what `unrelated_level` measured beside the embedder it was measured with."""
    write_json(Path(folder) / _FILE, {"threshold": level})


def settled(settings: MemoryOptions, folder: str | Path) -> MemoryOptions:
    """``settings`` with the threshold that was measured, where the recipe names none and one was kept in ``folder``."""
    path = Path(folder) / _FILE
    if settings.threshold is not None or not path.is_file():
        return settings
    return settings.model_copy(update={"threshold": float(read_json(path)["threshold"])})


def unrelated_level(
    conversations: Sequence[Sequence[tuple[str, str]]],
    embedder: Embeddings,
    settings: MemoryOptions | None = None,
    *,
    memories: int = 15,
    samples: int = 200,
    quantile: float = 0.25,
    seed: int = 0,
) -> float:
    """Relevance that the best of ``memories`` exchanges from other conversations reaches, at ``quantile``.

    A memory too many costs a few tokens, a memory missed costs trust: hence the low default.

    Args:
        conversations: each a list of (utterance, reply); with fewer than ``memories + 1`` of them the level is 0.

    Returns:
        a threshold for ``MemoryOptions.threshold``.
    """
    settings = settings or MemoryOptions()
    talks = [talk for talk in conversations if talk]
    if len(talks) <= memories:
        return 0.0
    rng, now, best = np.random.default_rng(seed), datetime.now(UTC), []
    for _ in range(max(samples // memories, 1)):
        chosen = rng.permutation(len(talks))
        index = ExchangeIndex(embedder, settings.model_copy(update={"half_life_days": None}))
        index.add([Exchange(str(i), "", now, *talks[i][0]) for i in chosen[:memories]])
        for i in chosen[memories : 2 * memories]:
            found = index.search(talks[i][0][0], 1, now=now)
            best.append(found[0][1] if found else 0.0)
    return round(float(np.quantile(best, quantile)), 4)
