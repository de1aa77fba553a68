"""Near duplicates by MinHash and locality-sensitive hashing (Leskovec et al., Mining of Massive Datasets, ch. 3).

datasketch computes the signatures and chooses the bands; the bands are compared by sorting numbers instead of its
dictionaries of Python objects, which would need several gigabytes for a million conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SHINGLE = 5
PERMUTATIONS = 128
#: In a bucket a text is compared with this many of the longest kept ones, so that huge buckets stay cheap.
LEADERS = 8


def shingles(text: str) -> np.ndarray:
    """The distinct 5-character pieces of ``text`` (white space removed, lower case) as sorted 64-bit hashes."""
    import numpy as np

    codes = np.frombuffer("".join(text.lower().split()).encode("utf-32-le", "replace"), dtype=np.uint32)
    width = min(SHINGLE, len(codes))
    count = len(codes) - width + 1 if width else 0
    value = np.zeros(count, dtype=np.uint64)
    for shift in range(width):
        value = value * np.uint64(0x9E3779B97F4A7C15) + codes[shift : shift + count]
    value ^= value >> np.uint64(29)
    return np.unique(value * np.uint64(0xBF58476D1CE4E5B9))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Size of the intersection over size of the union of two results of `shingles`."""
    import numpy as np

    if not len(one) or not len(other):
        return 0.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def near_duplicates(
    texts: Iterable[str],
    text_at: Callable[[int], str],
    threshold: float,
    *,
    apart: Callable[[int, int], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[int, int]:
    """Which texts are near duplicates: ``{index: index of a longer one that stands for it}``.

    Args:
        texts: all texts in order.
        text_at: the same texts by index; candidates are compared exactly.
        threshold: Jaccard similarity of their `shingles` from which on two are near duplicates.
        apart: says of two that are similar whether they are to be kept apart all the same.
        progress: called with the number of texts looked at so far.
    """
    import numpy as np

    bands, lengths = _band_hashes(texts, threshold, progress)
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    gone: dict[int, int] = {}
    for band in bands.T:
        for bucket in _buckets(band, order):
            _thin(bucket, gone, text_at, threshold, apart or (lambda one, other: False))
    return gone


def _band_hashes(
    texts: Iterable[str], threshold: float, progress: Callable[[int], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """One row of band hashes a text, shape (texts, bands), and the number of shingles of each text."""
    import numpy as np
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
    blank = MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=int)
    odd = np.random.default_rng(1).integers(1, 2**63, size=(lsh.b, lsh.r), dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
    rows, lengths = [], []
    for done, text in enumerate(texts, 1):
        pieces = shingles(text)
        signature = blank.copy()
        signature.update_batch((pieces & np.uint64(0xFFFFFFFF)).tolist())
        mixed = signature.hashvalues[: lsh.b * lsh.r].reshape(lsh.b, lsh.r).astype(np.uint64) * odd
        rows.append(np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(31)), axis=1))
        lengths.append(len(pieces))
        if progress and done % 500 == 0:
            progress(done)
    bands = np.array(rows, dtype=np.uint64).reshape(len(rows), lsh.b)
    return bands, np.array(lengths, dtype=np.int64)


def _buckets(band: np.ndarray, order: np.ndarray) -> Iterator[list[int]]:
    """Groups of two or more texts with the same band hash, each from the longest to the shortest."""
    import numpy as np

    by_hash = order[np.argsort(band[order], kind="stable")]
    values = band[by_hash]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.array([], dtype=int)
    sizes = np.diff(np.r_[starts, len(values)])
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        yield by_hash[start : start + size].tolist()


def _thin(
    bucket: list[int],
    gone: dict[int, int],
    text_at: Callable[[int], str],
    threshold: float,
    apart: Callable[[int, int], bool],
) -> None:
    leaders: list[tuple[int, Any]] = []
    for index in bucket:
        if index in gone:
            continue
        pieces = shingles(text_at(index))
        similar = (leader for leader, other in leaders if jaccard(pieces, other) >= threshold)
        twin = next((leader for leader in similar if not apart(index, leader)), None)
        if twin is not None:
            gone[index] = twin
        elif len(leaders) < LEADERS:
            leaders.append((index, pieces))
