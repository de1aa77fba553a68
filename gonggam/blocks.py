"""What a page is made of: blocks that know how to be written as Markdown, and sections that hold them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

Kind = Literal["info", "good", "warning", "error"]


def show(value: Any) -> str:
    """How a table cell is written: floats to three places, thousands with commas, nothing as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3f}"
    return str(value)


def language(text: str) -> str:
    """``ko`` where Hangul outweighs Latin letters, else ``en``: for ``lang`` attributes (voices, line breaks)."""
    hangul = len(re.findall(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]", text))
    return "ko" if hangul * 2 > len(re.findall(r"[A-Za-z]", text)) and hangul else "en"


def escape_markdown(text: str) -> str:
    """One line of text with nothing left that Markdown would read as a mark."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", text).replace("\n", " ")


@dataclass(frozen=True)
class Text:
    """Paragraphs, parted by blank lines."""

    text: str
    block: str = "text"

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs without the blank lines."""
        return [part for part in re.split(r"\n\s*\n", self.text.strip()) if part]

    def markdown(self) -> str:
        """The block as Markdown."""
        return "\n\n".join(map(escape_markdown, self.paragraphs))


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    block: str = "heading"

    def markdown(self) -> str:
        """The block as Markdown."""
        return f"### {escape_markdown(self.text)}"


@dataclass(frozen=True)
class Code:
    """Commands or other preformatted text."""

    text: str
    block: str = "code"

    def markdown(self) -> str:
        """The block as Markdown."""
        return "\n".join(f"    {line}" for line in self.text.splitlines())


@dataclass(frozen=True)
class Note:
    """A coloured banner; ``error`` is red and read first by screen readers."""

    text: str
    kind: Kind = "info"
    block: str = "note"

    def markdown(self) -> str:
        """The block as Markdown."""
        return f"> **{self.kind.upper()}** {escape_markdown(self.text)}"


@dataclass(frozen=True)
class Facts:
    """A few figures writ large: label → value."""

    facts: Mapping[str, Any]
    block: str = "facts"

    def markdown(self) -> str:
        """The block as Markdown."""
        return "\n".join(
            f"- {escape_markdown(name)}: **{escape_markdown(show(value))}**" for name, value in self.facts.items()
        )


@dataclass(frozen=True)
class Table:
    """Rows under column names; numbers are set right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    block: str = "table"

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds numbers (gaps allowed)."""
        columns = [[row[i] for row in self.rows if row[i] is not None] for i in range(len(self.columns))]
        return [bool(c) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in c) for c in columns]

    def markdown(self) -> str:
        """The block as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns)]
        lines += [[escape_markdown(show(cell)) for cell in row] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{escape_markdown(self.caption)}\n\n{table}" if self.caption else table


@dataclass(frozen=True)
class Figure:
    """A plotly figure. The page sets its colours (light, dark, print), font and width."""

    spec: Mapping[str, Any]
    caption: str = ""
    block: str = "figure"

    @property
    def title(self) -> str:
        """Caption or, failing that, the figure's own title."""
        return self.caption or self.spec.get("layout", {}).get("title", {}).get("text", "")

    def markdown(self) -> str:
        """The block as Markdown: what the plot shows; the plot itself is in the HTML page."""
        return f"*(plot: {escape_markdown(self.title) or 'see the HTML page'})*"


@dataclass(frozen=True)
class Chat:
    """A dialogue as bubbles; below it, if given, several answers to its last turn side by side (label → text)."""

    messages: Sequence[Mapping[str, str]]
    answers: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    block: str = "chat"

    def markdown(self) -> str:
        """The block as Markdown."""
        lines = [f"**{escape_markdown(self.title)}**", ""] if self.title else []
        lines += [f"> **{escape_markdown(m['role'])}**: {escape_markdown(m['content'])}\n>" for m in self.messages]
        for label, answer in self.answers.items():
            note = f" *({escape_markdown(self.notes[label])})*" if self.notes.get(label) else ""
            lines.append(f"- **{escape_markdown(label)}**{note}: {escape_markdown(answer) or '–'}")
        return "\n".join(lines)


Block = Text | Heading | Code | Note | Facts | Table | Figure | Chat


@dataclass
class Section:
    """A titled run of blocks; the methods add one block and return the section."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, block: Block) -> Self:
        """Add a block made elsewhere."""
        self.blocks.append(block)
        return self

    def text(self, text: str) -> Self:
        """Add paragraphs."""
        return self.add(Text(text))

    def heading(self, text: str) -> Self:
        """Add a heading."""
        return self.add(Heading(text))

    def code(self, text: str) -> Self:
        """Add preformatted text."""
        return self.add(Code(text))

    def note(self, text: str, kind: Kind = "info") -> Self:
        """Add a banner: ``info``, ``good``, ``warning`` or ``error`` (red)."""
        return self.add(Note(text, kind))

    def facts(self, facts: Mapping[str, Any]) -> Self:
        """Add a row of large figures."""
        return self.add(Facts(dict(facts)))

    def table(
        self, rows: Sequence[Sequence[Any] | Mapping[str, Any]], columns: Sequence[str] = (), caption: str = ""
    ) -> Self:
        """Add a table; rows may be dicts, whose keys (in order of appearance) name the columns."""
        names = list(columns) or list(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row))
        cells = [[row.get(n) for n in names] if isinstance(row, Mapping) else list(row) for row in rows]
        return self.add(Table(names, cells, caption))

    def figure(self, fig: PlotlyFigure, caption: str = "") -> Self:
        """Add a plotly figure; the caption also serves readers who cannot see it."""
        spec = json.loads(fig.to_json())
        for key in ("template", "width"):
            spec["layout"].pop(key, None)
        return self.add(Figure(spec, caption))

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        answers: Mapping[str, str] | None = None,
        title: str = "",
        notes: Mapping[str, str] | None = None,
    ) -> Self:
        """Add a dialogue, with several answers side by side if given."""
        return self.add(Chat(list(messages), dict(answers or {}), title, dict(notes or {})))

    def to_json(self) -> dict[str, Any]:
        """The section as JSON-able data."""
        return {"title": self.title, "blocks": [asdict(block) for block in self.blocks]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The section that `to_json` told of."""
        kinds: dict[str, type[Any]] = {kind.block: kind for kind in get_args(Block)}
        return cls(data["title"], [kinds[block["block"]](**block) for block in data["blocks"]])

    def markdown(self) -> str:
        """The section as Markdown."""
        return "\n\n".join([f"## {escape_markdown(self.title)}", *(block.markdown() for block in self.blocks)])
