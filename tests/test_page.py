"""Pages: everything escaped, nothing fetched, Hangul carried along, the same content as Markdown."""

import base64
import io
import re
import subprocess
import sys

import pytest

from gonggam.page import Page, Section


@pytest.fixture
def page():
    return make()


@pytest.fixture(scope="module")
def html():
    return make().html()


def make():
    page = Page("보고서 <script>", "line", lang="en")
    page.section("Scores").note("The judge is <b>no</b> judge", "error").table(
        [{"system": "base", "공감": 3.14159}, {"system": "a|b", "공감": None}], caption="means"
    ).facts({"Perplexity": 12.5})
    page.section("상담").chat(
        [{"role": "user", "content": "힘들어 </script>"}], {"sft": "많이 힘들었겠어요.", "dpo": ""}
    )
    return page


def test_everything_is_escaped(html):
    assert "<script>" not in html.lower().replace('<script type="application/json"', "")
    assert "&lt;/script&gt;" in html
    assert "&lt;b&gt;no&lt;/b&gt;" in html


def test_the_page_fetches_nothing_and_names_languages(html):
    assert not re.findall(r'(?:src|href)\s*=\s*"(?!#|data:)', html)
    assert "default-src 'none'" in html
    assert '<html lang="en">' in html
    assert 'lang="ko">상담</h2>' in html


def test_the_embedded_font_covers_the_hangul_of_the_page(html):
    from fontTools.ttLib import TTFont

    faces = re.findall(r"base64,([A-Za-z0-9+/=]+)", html)
    assert len(faces) == 2
    for face in faces:
        known = TTFont(io.BytesIO(base64.b64decode(face))).getBestCmap()
        assert {ord(c) for c in "보고서상담많이힘들었겠어요공감"} <= set(known)
        assert len(known) < 200


def test_plotly_is_inlined_once_and_only_if_used(page, monkeypatch):
    monkeypatch.setattr("gonggam.fonts.font_face_css", lambda text: "")
    import plotly.graph_objects as go

    assert "Plotly.react" not in page.html()
    figure = go.Figure(go.Bar(x=["공감 </script>"], y=[1]))
    page.sections[0].figure(figure, "one").figure(figure, "two")
    html = page.html()
    assert html.count("plotly.js v") == 1
    assert html.count('class="plot"') == 2
    assert "공감 \\u003c/script>" in html
    assert "template" not in page.sections[0].blocks[-1].spec["layout"]


def test_markdown_says_the_same(page):
    text = page.markdown()
    assert "> **ERROR** The judge is \\<b\\>no" in text
    assert "| a\\|b | – |" in text
    assert "| base | 3.142 |" in text
    assert "- **dpo**: –" in text


def test_importing_pages_loads_nothing_heavy():
    heavy = "{'plotly', 'jinja2', 'fontTools', 'matplotlib', 'koreanize_matplotlib'}"
    code = f"import sys, gonggam.page; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sections_come_back_from_json(page):
    import json

    import plotly.graph_objects as go

    page.section("all").text("가").heading("나").code("x").figure(go.Figure(go.Bar(x=["가"], y=[1])), "plot")
    again = Page(page.title, page.subtitle)
    again.sections = [Section.from_json(json.loads(json.dumps(s.to_json()))) for s in page.sections]
    assert again.sections == page.sections


def test_the_same_page_is_the_same_bytes(page, html):
    assert page.html() == html
