// One exchange of a conversation: what was said, what was answered, and what can be done about it.

import { button, el, fits } from "./dom.js";
import { json } from "./wire.js";

export function bubble(who, words, text, extra = {}) {
  return el("div", { class: `bubble ${who}`, ...extra }, el("span", { class: "who" }, words[who]), el("p", {}, text));
}

export function crisisCard(crisis, lines) {
  const calls = lines.map((line) =>
    el("li", {}, el("a", { href: `tel:${line.number}` }, el("strong", {}, line.number), ` ${line.name}`), el("span", {}, line.note)),
  );
  return el("aside", { class: "crisis", "aria-label": crisis.title }, el("h2", {}, crisis.title), el("p", {}, crisis.text), el("ul", {}, ...calls));
}

// `does`: again(dialog), edit(dialog, text), drop(dialog), fail(error); `last`: it may be answered anew;
// `rewritten`: what the message was to become when that failed, else null.
export function turn(dialog, { words, crisis, lines, last, ended, does, rewritten }) {
  const said = bubble("you", words, dialog.message);
  const item = el("li", { class: "turn", tabindex: -1, "data-id": dialog.id }, said, bubble("it", words, dialog.reply));
  if (dialog.risk === "high") item.append(crisisCard(crisis, lines));
  const tools = el("div", { class: "tools" }, ...thumbs(dialog, words, does));
  if (dialog.recalled.length) tools.append(...recollection(dialog, words, does, item));
  if (last && !ended) {
    tools.append(button(words.again, () => does.again(dialog)));
    tools.append(button(words.edit, () => said.replaceWith(editor(dialog, dialog.message, words, does, said))));
    if (rewritten !== null) said.replaceWith(editor(dialog, rewritten, words, does, said));
  }
  tools.append(button(words.delete, () => window.confirm(words.delete_sure) && does.drop(dialog)));
  item.append(tools);
  return item;
}

function thumbs(dialog, words, does) {
  const shown = [[1, words.up], [-1, words.down]].map(([rating, label]) =>
    button(el("span", { class: "sign" }), () => rate(rating), { class: "thumb", "aria-label": label, title: label, "data-rating": rating }),
  );
  const show = () => shown.forEach((one) => one.setAttribute("aria-pressed", String(Number(one.dataset.rating) === dialog.rating)));
  async function rate(rating) {
    const wanted = dialog.rating === rating ? null : rating;
    try {
      await json("PUT", `/api/dialogs/${dialog.id}/feedback`, { rating: wanted });
      dialog.rating = wanted;
      show();
    } catch (error) {
      does.fail(error);
    }
  }
  show();
  return shown;
}

function recollection(dialog, words, does, item) {
  const list = el("ul", { class: "recalled", hidden: true });
  const toggle = button(words.recalled, open, { "aria-expanded": "false" });
  async function open() {
    if (!list.isConnected) item.append(list);
    list.hidden = !list.hidden;
    toggle.setAttribute("aria-expanded", String(!list.hidden));
    if (list.hidden) return;
    try {
      const notes = await json("GET", `/api/dialogs/${dialog.id}/recalled`);
      list.replaceChildren(...(notes.length ? notes.map((note) => noteItem(note, words, does)) : [el("li", {}, words.recalled_none)]));
    } catch (error) {
      does.fail(error);
    }
  }
  return [toggle];
}

function noteItem(note, words, does) {
  async function forget() {
    try {
      await json("DELETE", `/api/memory/${note.id}`);
      item.replaceChildren(words.forgot);
    } catch (error) {
      does.fail(error);
    }
  }
  const item = el("li", {}, el("p", {}, note.user), button(words.forget, forget));
  return item;
}

function editor(dialog, text, words, does, said) {
  const field = el("textarea", { rows: 3, "aria-label": words.edit, value: text });
  const form = el("form", { class: "editor", onsubmit: save },
    field, el("div", {}, el("button", { class: "go" }, words.save), button(words.cancel, () => form.replaceWith(said))));
  function save(event) {
    event.preventDefault();
    if (fits(field, words)) does.edit(dialog, field.value.trim());
  }
  requestAnimationFrame(() => field.focus());
  return form;
}
