"""The chat page: Gradio draws it and asks for what it shows; what is said goes straight to the native API.

Handlers take no part in Gradio's queue and return plain values, never new components: queue and component changes live
in one process' memory, where another worker would not find them and nothing of a talk should be. Who asks is read from
the request's cookie; the room comes from the browser and is looked for among that user's rooms only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI
from starlette.datastructures import State

from gonggam.fonts import FAMILY
from pipeline.chat.resources import data
from pipeline.serve.app import SILENT
from pipeline.serve.native.access import member_of
from pipeline.serve.refused import Refused
from pipeline.serve.web.looks import html, words
from pipeline.serve.web.scenes import Scenes

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr

HERE = Path(__file__).parent
FONT = (FAMILY, "system-ui", "sans-serif")
HEAD = (
    '<link rel="icon" href="/static/icon.svg"><link rel="stylesheet" href="/static/frame.css">'
    '<script type="module" src="/static/frame.js"></script>'
)
COLOURS = yaml.safe_load((HERE / "colours.yaml").read_text("utf-8"))


class Page(gr.Blocks):
    """Gradio's page without the queue that nothing here takes part in: it looks for work a thousand times a second."""

    def run_startup_events(self) -> None:
        """What Gradio does when the service starts, but for its queue."""
        self.is_running = True
        self.create_limiter()


def mount(app: FastAPI, path: str) -> None:
    """Draw the chat under ``path``."""
    state = app.state
    gr.mount_gradio_app(
        app,
        build(state),
        path,
        auth_dependency=lambda request: found.person.id if (found := member_of(state, request)) else None,
        app_kwargs={"telemetry": SILENT},
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size=1,
        theme=theme(),
        css_paths=[HERE / "static" / "font.css", HERE / "static" / "chat.css"],
        head=HEAD,
    )


def theme() -> gr.themes.Base:
    """The page's look: fonts of the reader's machine, colours that can be read in light and dark."""
    base = gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=FONT, font_mono=("ui-monospace", "monospace"))
    return base.set(**COLOURS)


def build(state: State) -> gr.Blocks:
    """The page for an application with this state."""
    t, scenes = words()["chat"], Scenes(state)
    with Page(title=words()["title"], analytics_enabled=False) as blocks:
        gr.HTML(html("top", accounts=state.accounts is not None), js_on_load=None, apply_default_css=False)
        with gr.Row(elem_id="columns"):
            with gr.Column(elem_id="side", min_width=240):
                new = gr.Button(t["new_room"], variant="primary")
                rooms = _part("rooms", t)
            with gr.Column(elem_id="middle", min_width=320), gr.Tabs():
                with gr.Tab(t["talk"]):
                    talk = _talk(state)
                with gr.Tab(t["manner"]):
                    manner = gr.Radio(list(scenes.manners), label=t["manner_for"])
                    preview = gr.HTML(js_on_load=None, apply_default_css=False)
                with gr.Tab(t["moods"]) as moods_tab:
                    moods = gr.HTML(js_on_load=None, apply_default_css=False)
                with gr.Tab(t["notes"]) as notes_tab:
                    notes = _part("notes", t)
        scene = [rooms, talk, manner, preview]
        on = partial(_listen, state)
        on(blocks.load, scenes.first, [], scene)
        on(new.click, scenes.start, [manner], scene)
        on(rooms.opened, scenes.open, [rooms], scene)
        on(rooms.more, scenes.more_rooms, [rooms], [rooms])
        on(talk.said, scenes.said, [rooms], [rooms])
        on(talk.gone, scenes.first, [], scene)
        on(manner.input, scenes.speak, [rooms, manner], [preview])
        on(moods_tab.select, scenes.moods, [rooms], [moods])
        on(notes_tab.select, scenes.notes, [], [notes])
        on(notes.forgot, scenes.forget, [notes], [notes])
        on(notes.more, scenes.more_notes, [notes], [notes])
    return blocks


def _talk(state: State) -> gr.HTML:
    known = state.counselor.sentiments
    sentiments = list(known.values) if known else []
    crisis = words()["crisis"]
    return _part("talk", words()["talk"], crisis=crisis, lines=data("help_lines"), sentiments=sentiments)


def _part(name: str, texts: dict[str, str], **props: Any) -> gr.HTML:
    """A component of our own, drawn by ``static/NAME.js`` from its value.

    Its template stays empty: Gradio runs templates as JavaScript after filling them in, so no user's text may come near
    one. The script sets text as text.
    """
    start = f'import("/static/{name}.js").then((part) => part.start({{element, props, watch, trigger}}))'
    events = {"rooms": "'opened', 'more'", "talk": "'said', 'gone'", "notes": "'forgot', 'more'"}[name]
    return gr.HTML(
        None,
        html_template="",
        js_on_load=f"{start}; // {events}",
        apply_default_css=False,
        elem_id=name,
        words=texts,
        **props,
    )


def _listen(
    state: State, event: Callable[..., Any], work: Callable[..., Any], inputs: list[Any], outputs: list[Any]
) -> None:
    """Let ``work(member, what the event says, *inputs)`` answer an event."""

    def handle(request: gr.Request, said: gr.EventData, *given: Any) -> Any:
        member = member_of(state, request.request) if request.request else None
        if member is None:
            raise gr.Error(Refused("not_logged_in").message, print_exception=False)
        return work(member, said._data, *given)

    event(handle, inputs, outputs, queue=False, show_progress="hidden", api_visibility="private")
