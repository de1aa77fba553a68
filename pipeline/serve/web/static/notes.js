// What is remembered, each with a way to forget it.

import { button, el } from "./dom.js";

export function start({ element, props, watch, trigger }) {
  const words = props.words;
  const list = el("ul");
  element.replaceChildren(el("div", { class: "notes" }, el("p", {}, words.notes_hint), list));

  function show() {
    const notes = props.value?.notes ?? [];
    const items = notes.map((note) =>
      el("li", {}, el("time", { datetime: note.when }, new Date(note.when).toLocaleDateString("ko")), el("p", {}, note.user),
        button(words.notes_forget, () => trigger("forgot", { note: note.id }))),
    );
    list.replaceChildren(...(items.length ? items : [el("li", {}, words.notes_none)]));
  }

  watch("value", show);
  show();
}
