"""What the offline embedder sees of a text: stems and character n-grams, as one line of words."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Collection

from rag.lexical import MAX_CHARS, morphemes

BUCKETS = 8192


def features(text: str) -> list[str]:
    """Stems (``m:…``) and character 2- and 3-grams inside each word; a leading ``_`` marks the word's start."""
    text = unicodedata.normalize("NFC", text[:MAX_CHARS]).lower()
    words = re.findall(r"\w+", text)
    grams = [f"_{word}"[i : i + n] for word in words for n in (2, 3) for i in range(max(len(word) + 2 - n, 1))]
    return [f"m:{stem}" for stem in morphemes(text)] + grams


def known(found: list[str], vocabulary: Collection[str]) -> list[str]:
    """Features outside the vocabulary fall into hash buckets, so that a name never seen still matches itself."""
    return [f if f in vocabulary else f"#{zlib.crc32(f.encode()) % BUCKETS}" for f in found]
