// The conversation of one room: streaming, stopping, answering anew, editing, two replies to choose from.

import { composer } from "./composer.js";
import { button, el } from "./dom.js";
import { bubble, turn } from "./turns.js";
import { json, stream } from "./wire.js";

export function start({ element, props, watch, trigger }) {
  const { words, crisis, lines } = props;
  const list = el("ol", { class: "turns", "aria-label": words.log });
  const status = el("p", { class: "unseen", role: "status" });
  const alarm = el("p", { class: "alarm", role: "alert", hidden: true });
  const note = el("p", { class: "note" });
  const end = button(words.end, endRoom);
  const drop = button(words.delete_room, deleteRoom);
  const form = composer(words, { send, stop: () => running?.abort() });
  let room = null, ended = false, dialogs = [], running = null;
  element.replaceChildren(el("div", { class: "talk" }, list, note, alarm, status, form.element, el("div", { class: "closing" }, end, drop)));
  const does = { again: (dialog) => answerAnew(dialog, null), edit: answerAnew, drop: dropOne, fail };

  function show(focus = false) {
    const last = dialogs.at(-1);
    list.replaceChildren(...dialogs.map((dialog) => turn(dialog, { words, crisis, lines, last: dialog === last, ended, does })));
    note.textContent = room === null ? words.nothing : ended ? words.ended : dialogs.length ? "" : words.welcome;
    note.hidden = !note.textContent;
    form.element.hidden = room === null || ended;
    end.hidden = room === null || ended;
    drop.hidden = room === null;
    if (focus) form.focus();
    toEnd();
  }

  function load() {
    running?.abort();
    ({ room, ended, dialogs } = { room: null, ended: false, dialogs: [], ...props.value });
    alarm.hidden = true;
    form.clear();
    show();
  }

  // Runs one request at a time; whatever happens, the form is free again afterwards.
  async function run(work) {
    const mine = (running = new AbortController());
    const here = room;
    form.busy(true);
    alarm.hidden = true;
    status.textContent = words.thinking;
    try {
      const told = await work(mine.signal);
      if (here === room && told) status.textContent = `${words.replied}: ${told}`;
    } catch (error) {
      if (here === room) await recover(error, mine.signal.aborted);
    } finally {
      if (running === mine) running = null;
      if (here === room) form.busy(false);
    }
  }

  async function recover(error, stopped) {
    dialogs = await json("GET", `/api/rooms/${room}/dialogs?limit=200`).catch(() => dialogs);
    show();
    status.textContent = stopped ? words.stopped : "";
    if (!stopped) fail(error);
  }

  function fail(error) {
    alarm.textContent = error.status === 429 ? words.busy : (error.code && error.message) || words.failed;
    alarm.hidden = false;
  }

  async function send(text, two) {
    const known = dialogs.at(-1)?.id;
    await run(async (signal) => {
      form.clear();
      try {
        return await (two ? offer(text, signal) : say("POST", `/api/rooms/${room}/dialogs/stream`, { text }, text, signal));
      } catch (error) {
        form.restore(text);
        throw error;
      }
    });
    if (dialogs.at(-1)?.id !== known && dialogs.at(-1)?.message === text) form.unless(text);
  }

  async function answerAnew(dialog, text) {
    if (running || text === "") return;
    dialogs = dialogs.filter((one) => one !== dialog);
    show();
    await run((signal) => say("PUT", `/api/dialogs/${dialog.id}/stream`, { text }, text ?? dialog.message, signal));
  }

  async function say(method, path, body, text, signal) {
    const reply = bubble("it", words, "", { "aria-busy": "true" });
    const growing = reply.querySelector("p");
    list.append(el("li", { class: "turn" }, bubble("you", words, text), reply));
    note.hidden = true;
    toEnd();
    const answer = await stream(method, path, body, signal, (piece) => {
      growing.append(piece);
      toEnd();
    });
    return kept(answer);
  }

  function kept(answer) {
    dialogs.push(answer.dialog);
    ended ||= answer.ended;
    show(true);
    if (answer.introduction) list.firstChild.before(el("li", { class: "note" }, answer.introduction));
    trigger("said", { room });
    return answer.dialog.reply;
  }

  async function offer(text, signal) {
    list.append(el("li", { class: "turn" }, bubble("you", words, text)));
    note.hidden = true;
    toEnd();
    const two = await json("POST", `/api/rooms/${room}/choices`, { text }, signal);
    if (two.answer) return kept(two.answer);
    const question = el("h2", { tabindex: -1 }, words.choose);
    list.append(el("li", { class: "two" }, question, ...["a", "b"].map((name) => option(two, name))));
    toEnd();
    question.focus();
    return null;
  }

  function option(two, name) {
    const label = name === "a" ? words.first : words.second;
    const take = button(words.take, () => run(() => choose(two, name)), { "aria-label": `${label}: ${words.take}` });
    return el("section", { "aria-label": label }, el("h3", {}, label), el("p", {}, two[name]), take);
  }

  async function choose(two, name) {
    return kept({ dialog: await json("POST", `/api/choices/${two.id}`, { choice: name }), ended: false });
  }

  async function dropOne(dialog) {
    try {
      await json("DELETE", `/api/dialogs/${dialog.id}`);
      dialogs = dialogs.filter((one) => one !== dialog);
      show(true);
      trigger("said", { room });
    } catch (error) {
      fail(error);
    }
  }

  async function endRoom() {
    try {
      await json("POST", `/api/rooms/${room}/end`);
      ended = true;
      show();
      trigger("said", { room });
    } catch (error) {
      fail(error);
    }
  }

  async function deleteRoom() {
    if (!window.confirm(words.delete_room_sure)) return;
    try {
      await json("DELETE", `/api/rooms/${room}`);
      trigger("gone", {});
    } catch (error) {
      fail(error);
    }
  }

  function toEnd() {
    requestAnimationFrame(() => form.element.scrollIntoView({ block: "nearest" }));
  }

  watch("value", load);
  load();
}
