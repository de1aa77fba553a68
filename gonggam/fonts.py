"""A Korean font cut down to the characters a page uses, so that Hangul is drawn where no Korean font is installed."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from gonggam.errors import UserError

FAMILY = "Gonggam Nanum"
"""CSS family name of the embedded font: Nanum Gothic, NAVER Corporation, SIL Open Font License 1.1."""

_FILES = {400: "NanumGothic.ttf", 700: "NanumGothicBold.ttf"}
_EDITORS = ["TSI0", "TSI1", "TSI2", "TSI3", "TSI5"]  # tables of the font editor's own; browsers refuse a font with them
_ALWAYS = "".join(map(chr, range(0x20, 0x7F))) + "–—…·‘’“”−×±≥≤→"


def font_file(weight: int = 400) -> Path:
    """Where Nanum Gothic of this weight (400 or 700) lies: inside koreanize-matplotlib, which is not imported.

    Raises:
        UserError: the package is not installed or carries no such file.
    """
    spec = importlib.util.find_spec("koreanize_matplotlib")
    if spec is None or spec.origin is None:
        raise UserError("the package koreanize-matplotlib is missing", "install it: it carries the Korean font")
    path = Path(spec.origin).parent / "fonts" / _FILES[weight]
    if not path.is_file():
        raise UserError("the Korean font is missing", "reinstall koreanize-matplotlib", file=path)
    return path


def subset_woff2(text: Iterable[str], weight: int = 400) -> bytes:
    """The font as WOFF2 with only the characters of ``text`` (and ASCII); those it lacks are left out."""
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    font = TTFont(font_file(weight), lazy=True, recalcTimestamp=False)  # the same page twice is the same bytes
    options = Options(hinting=False, layout_features=["kern"], notdef_outline=True, name_IDs=[0, 1, 2, 13, 14])
    options.drop_tables += _EDITORS
    cutter = Subsetter(options)
    cutter.populate(unicodes={ord(char) for char in set(_ALWAYS).union(text)})
    cutter.subset(font)
    font.flavor = "woff2"
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()


@cache
def whole_woff(weight: int = 400) -> bytes:
    """The font as WOFF with every character it has, for pages whose text is not known before."""
    from fontTools.ttLib import TTFont

    font = TTFont(font_file(weight), lazy=True, recalcTimestamp=False)
    for table in _EDITORS:
        del font[table]
    font.flavor = "woff"
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()


def font_face_css(text: Iterable[str]) -> str:
    """``@font-face`` rules, regular and bold, with the font inside as data: URLs."""
    chars = set(text)
    rules = []
    for weight in _FILES:
        data = base64.b64encode(subset_woff2(chars, weight)).decode()
        rules.append(
            f'@font-face{{font-family:"{FAMILY}";font-weight:{weight};font-display:block;'
            f'src:url(data:font/woff2;base64,{data}) format("woff2")}}'
        )
    return "\n".join(rules)
