// What is remembered, each with a way to forget it.

import { button, el } from "./dom.js";

export function start({ element, props, watch, trigger }) {
  const words = props.words;
  const list = el("ul");
  const more = button(words.notes_more, () => trigger("more", {}), { class: "more" });
  element.replaceChildren(el("div", { class: "notes" }, el("p", {}, words.notes_hint), list, more));

  function show() {
    const notes = props.value?.notes ?? [];
    const items = notes.map((note) =>
      el("li", {}, el("time", { datetime: note.when }, new Date(note.when).toLocaleDateString("ko")), el("p", {}, note.user),
        button(words.notes_forget, () => trigger("forgot", { note: note.id }))),
    );
    list.replaceChildren(...(items.length ? items : [el("li", {}, words.notes_none)]));
    more.hidden = !props.value?.more;
  }

  watch("value", show);
  show();
}
