// The conversation of one room: streaming, stopping, answering anew, editing, two replies to choose from.

import { closing } from "./closing.js";
import { composer } from "./composer.js";
import { button, el } from "./dom.js";
import { bubble, turn } from "./turns.js";
import { json, stream } from "./wire.js";

const PAGE = 50; // exchanges that are fetched at once
const NEWEST = 200; // as many as the API gives at once
const NEAR = 240; // pixels from the end within which one is reading the newest

export function start({ element, props, watch, trigger }) {
  const { words, crisis, lines } = props;
  const list = el("ol", { class: "turns", "aria-label": words.log });
  const status = el("p", { class: "unseen", role: "status" });
  const alarm = el("p", { class: "alarm", role: "alert", hidden: true });
  const note = el("p", { class: "note" });
  const before = button(words.older, older, { class: "older" });
  const foot = closing(words, { rename, end: endRoom, drop: deleteRoom });
  const form = composer(words, { send, stop: () => running?.abort() });
  let room = null, title = null, ended = false, more = false, dialogs = [], running = null;
  element.replaceChildren(el("div", { class: "talk" }, before, list, note, alarm, status, form.element, foot.element));
  const does = { again: (dialog) => answerAnew(dialog, null), edit: answerAnew, drop: dropOne, fail };
  const drawn = (dialog) => turn(dialog, { words, crisis, lines, last: dialog === dialogs.at(-1), ended, does });

  function show(focus = false) {
    list.replaceChildren(...dialogs.map(drawn));
    before.hidden = !more;
    note.textContent = room === null ? words.nothing : ended ? words.ended : dialogs.length ? "" : words.welcome;
    note.hidden = !note.textContent || !props.value;
    form.element.hidden = room === null || ended;
    foot.show(room, title, ended);
    if (focus) form.focus();
    toEnd();
  }

  function load() {
    running?.abort();
    ({ room, title, ended, more, dialogs } = { room: null, title: null, ended: false, more: false, dialogs: [], ...props.value });
    alarm.hidden = true;
    form.clear();
    show();
    document.fonts.ready.then(toEnd); // with its own font the page is longer
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
    const newest = await json("GET", `/api/rooms/${room}/dialogs?limit=${NEWEST}`).catch(() => dialogs);
    dialogs = [...dialogs.filter((one) => one.position < newest[0]?.position), ...newest];
    show();
    status.textContent = stopped ? words.stopped : "";
    if (!stopped) fail(error, words.failed);
  }

  function fail(error, otherwise = words.undone) {
    alarm.textContent = (error.code && error.message) || otherwise;
    alarm.hidden = false;
  }

  // Puts earlier exchanges above the others; what was in view stays where it is.
  async function older() {
    const here = room, first = list.firstElementChild, place = first?.getBoundingClientRect().top;
    const until = dialogs.length ? `&before=${dialogs[0].position}` : "";
    try {
      const found = await json("GET", `/api/rooms/${room}/dialogs?limit=${PAGE + 1}${until}`);
      if (here !== room) return;
      const earlier = found.slice(-PAGE);
      more = found.length > PAGE;
      dialogs = [...earlier, ...dialogs];
      list.prepend(...earlier.map(drawn));
      before.hidden = !more;
      if (!more) list.firstElementChild?.focus({ preventScroll: true });
      if (first) document.scrollingElement.scrollTop += first.getBoundingClientRect().top - place;
      status.textContent = words.older_shown;
    } catch (error) {
      fail(error);
    }
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
      follow();
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
    const waiting = bubble("it", words, "", { "aria-busy": "true" });
    list.append(el("li", { class: "turn" }, bubble("you", words, text), waiting));
    note.hidden = true;
    toEnd();
    const two = await json("POST", `/api/rooms/${room}/choices`, { text }, signal);
    if (two.answer) return kept(two.answer);
    waiting.remove();
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

  async function rename(wanted) {
    try {
      ({ title } = await json("PATCH", `/api/rooms/${room}`, { title: wanted }));
      foot.show(room, title, ended);
      status.textContent = words.renamed;
      trigger("said", { room });
      return true;
    } catch (error) {
      fail(error);
      return false;
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
    try {
      await json("DELETE", `/api/rooms/${room}`);
      trigger("gone", {});
    } catch (error) {
      fail(error);
    }
  }

  function toEnd() {
    requestAnimationFrame(() => foot.element.scrollIntoView({ block: "end" }));
  }

  // What streams in is followed, unless the reader has gone up to read something else.
  function follow() {
    const page = document.scrollingElement;
    if (page.scrollHeight - page.scrollTop - window.innerHeight < NEAR) toEnd();
  }

  watch("value", load);
  load();
}
