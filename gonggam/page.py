"""One self-contained HTML page (and the same as Markdown) out of plain blocks: text, tables, plots, chats, notes.

Nothing is fetched when the page is opened: style, script, plotly.js and the Korean font lie inside it, and its
content security policy forbids the network. All text is escaped; no block takes HTML.

    page = Page("Run report")
    page.section("Scores").note("The judge was not tested", kind="error").table(rows).figure(fig)
    page.write("report.html"), page.write_markdown("report.md")
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gonggam.blocks import (
    Chat,
    Code,
    Facts,
    Figure,
    Heading,
    Note,
    Section,
    Table,
    Text,
    escape_markdown,
    language,
    show,
)
from gonggam.files import write_text

__all__ = ["Chat", "Code", "Facts", "Figure", "Heading", "Note", "Page", "Section", "Table", "Text"]

ASSETS = Path(__file__).parent / "page_assets"


@dataclass
class Page:
    """A page: title, a line under it, and sections with a table of contents.

    Args:
        title: of the page.
        subtitle: one line below the title.
        lang: language of headings and labels (``en`` or ``ko``); text in the other language is marked as such.
    """

    title: str
    subtitle: str = ""
    lang: Literal["en", "ko"] = "en"
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str) -> Section:
        """Add an empty section and return it."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def html(self) -> str:
        """The whole page. Takes about a second, for cutting the fonts."""
        from gonggam.fonts import FAMILY, font_face_css

        figures = [b.spec for s in self.sections for b in s.blocks if isinstance(b, Figure)]
        environment = _environment(self.lang)
        body = environment.get_template("body.html.j2").render(page=self)
        plots = _json_for_script(figures)
        return environment.get_template("page.html.j2").render(
            page=self,
            body=body,
            family=FAMILY,
            fonts=font_face_css(self.title + body + plots),
            style=(ASSETS / "page.css").read_text("utf-8"),
            script=(ASSETS / "page.js").read_text("utf-8") if figures else "",
            plotly=_plotly_js() if figures else "",
            plots=plots,
        )

    def markdown(self) -> str:
        """The page as Markdown; plots are named, not drawn."""
        head = [f"# {escape_markdown(self.title)}"] + ([escape_markdown(self.subtitle)] if self.subtitle else [])
        return "\n\n".join(head + [section.markdown() for section in self.sections]) + "\n"

    def write(self, path: str | Path) -> None:
        """Write the HTML page, whole or not at all."""
        write_text(path, self.html())

    def write_markdown(self, path: str | Path) -> None:
        """Write the Markdown page, whole or not at all."""
        write_text(path, self.markdown())


def _environment(lang: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def lang_attribute(value: Any) -> Markup:
        other = language(str(value))
        return Markup("") if other == lang else Markup(f' lang="{other}"')

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=show, lang=lang_attribute)
    return environment


def _json_for_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
