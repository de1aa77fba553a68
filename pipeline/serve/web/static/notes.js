// What is remembered, each with a way to forget it.

import { button, el } from "./dom.js";

export function start({ element, props, watch, trigger }) {
  const words = props.words;
  const list = el("ul");
  const more = button(words.notes_more, () => trigger("more", {}), { class: "more", hidden: true });
  element.replaceChildren(el("div", { class: "notes" }, el("p", {}, words.notes_hint), list, more));

  function show() {
    if (!props.value) return; // nothing is known yet, which is not the same as nothing remembered
    const { notes, more: others } = props.value;
    const items = notes.map((note) =>
      el("li", {}, el("time", { datetime: note.when }, new Date(note.when).toLocaleDateString("ko")), el("p", {}, note.user),
        button(words.notes_forget, () => trigger("forgot", { note: note.id }))),
    );
    list.replaceChildren(...(items.length ? items : [el("li", {}, words.notes_none)]));
    more.hidden = !others;
  }

  watch("value", show);
  show();
}
