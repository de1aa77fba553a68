// Below the conversation: give the room a name, end it, delete it.

import { button, el } from "./dom.js";

export function closing(words, { rename, end, drop }) {
  const naming = button(words.rename, open, { "aria-expanded": "false" });
  const ending = button(words.end, end);
  const row = el("div", { class: "row" }, naming, ending, button(words.delete_room, () => window.confirm(words.delete_room_sure) && drop()));
  const title = el("input", { id: "title", maxlength: 100, autocomplete: "off", "aria-describedby": "title-hint" });
  const form = el("form", { class: "naming", hidden: true, onsubmit: save },
    el("label", { for: "title" }, words.name), title, el("p", { id: "title-hint", class: "hint" }, words.name_hint),
    el("div", { class: "row" }, el("button", { class: "go" }, words.name_save), button(words.cancel, close)));
  let known = "";

  form.addEventListener("keydown", (event) => event.key === "Escape" && close());

  function open() {
    if (!form.hidden) return close();
    title.value = known;
    form.hidden = false;
    naming.setAttribute("aria-expanded", "true");
    title.select();
    form.scrollIntoView({ block: "nearest" });
  }

  function close() {
    form.hidden = true;
    naming.setAttribute("aria-expanded", "false");
    naming.focus();
  }

  async function save(event) {
    event.preventDefault();
    if (await rename(title.value.trim())) close();
  }

  return {
    element: el("div", { class: "closing" }, row, form),
    show(room, named, ended) {
      known = named ?? "";
      row.hidden = room === null;
      ending.hidden = ended;
      if (room === null) form.hidden = true;
    },
  };
}
