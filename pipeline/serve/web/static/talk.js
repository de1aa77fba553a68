// The conversation of one room: streaming, stopping, answering anew, editing, two replies to choose from.

import { closing } from "./closing.js";
import { composer } from "./composer.js";
import { button, el } from "./dom.js";
import { newest } from "./newest.js";
import { bubble, turn } from "./turns.js";
import { two } from "./two.js";
import { json, stream } from "./wire.js";

const PAGE = 50; // exchanges that are fetched at once
const NEWEST = 200; // as many as the API gives at once
const NOTHING = { room: null, title: null, ended: false, more: false, dialogs: [], pending: [] };

export function start({ element, props, watch, trigger }) {
  const { words, crisis, lines, sentiments } = props;
  const list = el("ol", { class: "turns", "aria-label": words.log });
  const status = el("p", { class: "unseen", role: "status" });
  const alarm = el("p", { class: "alarm", role: "alert", hidden: true });
  const note = el("p", { class: "note" });
  const before = button(words.older, older, { class: "older" });
  const foot = closing(words, { rename, end: endRoom, drop: deleteRoom });
  const form = composer(words, sentiments, { send, stop: () => running?.abort() });
  const talk = el("div", { class: "talk" }, before, list, note, alarm, status, form.element, foot.element);
  const toEnd = newest(talk);
  const drafts = new Map(); // what was written in other rooms and not sent
  let { room, title, ended, more, dialogs, pending } = NOTHING;
  let running = null, rewritten = null;
  element.replaceChildren(talk);
  const does = { again: (dialog) => answerAnew(dialog, null), edit: answerAnew, drop: dropOne, fail };

  function drawn(dialog) {
    const last = dialog === dialogs.at(-1) && !pending.length;
    return turn(dialog, { words, crisis, lines, last, ended, does, rewritten: rewritten?.of === dialog.id ? rewritten.text : null });
  }

  function show(focus = false) {
    list.replaceChildren(...dialogs.map(drawn), ...pending.map((pair) => two(pair, words, { take: choose, ended })));
    before.hidden = !more;
    note.textContent = room === null ? words.nothing : ended ? words.ended : list.firstChild ? "" : words.welcome;
    note.hidden = !note.textContent || !props.value;
    form.element.hidden = room === null || ended;
    foot.show(room, title, ended);
    if (focus) form.focus();
  }

  function load() {
    running?.abort();
    running = rewritten = null;
    drafts.set(room, form.text());
    ({ room, title, ended, more, dialogs, pending } = { ...NOTHING, ...props.value });
    alarm.hidden = true;
    form.busy(false);
    form.clear();
    form.restore(drafts.get(room) ?? "");
    form.unless((pending.at(-1) ?? dialogs.at(-1))?.message); // it was kept after all
    show();
    toEnd();
  }

  // Runs one request at a time; whatever happens, the form is free again afterwards. Another room ends it.
  async function run(work, stopped = words.stopped) {
    const mine = (running = new AbortController());
    form.busy(true);
    alarm.hidden = true;
    rewritten = null;
    status.textContent = words.thinking;
    try {
      const told = await work(mine.signal);
      if (running === mine) status.textContent = told ? `${words.replied}: ${told}` : "";
    } catch (error) {
      if (running === mine) await recover(error, mine.signal.aborted && stopped);
    } finally {
      if (running === mine) {
        running = null;
        form.busy(false);
      }
    }
  }

  async function recover(error, stopped) {
    await refresh().catch(() => {}); // of what failed is told here
    show();
    status.textContent = stopped || "";
    if (!stopped) fail(error, words.failed);
  }

  // What the service holds of this room: the newest of it, whatever was done on another device.
  async function refresh() {
    const here = room;
    const [said, pairs] = await Promise.all([
      json("GET", `/api/rooms/${here}/dialogs?limit=${NEWEST}`),
      json("GET", `/api/rooms/${here}/choices`),
    ]);
    if (here !== room) return;
    dialogs = [...dialogs.filter((one) => one.position < said[0]?.position), ...said];
    pending = pairs;
  }

  // Whoever is logged out is sent to the log-in, but not while there is something they would lose by that.
  function fail(error, otherwise = words.undone) {
    const out = error.status === 401;
    if (out && !rewritten && !form.text().trim()) return window.location.assign("/log-in");
    if (out) alarm.replaceChildren(words.logged_out, " ", el("a", { href: "/log-in", target: "_blank" }, words.log_in));
    else alarm.textContent = (error.code && error.message) || otherwise;
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

  async function send(text, wantsTwo) {
    const here = room, known = (pending.at(-1) ?? dialogs.at(-1))?.id;
    await run(async (signal) => {
      form.clear();
      try {
        return await (wantsTwo ? offer(text, signal) : say("POST", `/api/rooms/${room}/dialogs/stream`, { text }, text, signal));
      } catch (error) {
        if (here === room) form.restore(text);
        else drafts.set(here, text);
        throw error;
      }
    });
    const last = pending.at(-1) ?? dialogs.at(-1);
    if (last?.id !== known && last?.message === text) form.unless(text);
  }

  async function answerAnew(dialog, text) {
    if (running || text === "") return;
    dialogs = dialogs.filter((one) => one !== dialog);
    show();
    await run(async (signal) => {
      try {
        return await say("PUT", `/api/dialogs/${dialog.id}/stream`, { text }, text ?? dialog.message, signal);
      } catch (error) {
        if (text !== null) rewritten = { of: dialog.id, text };
        throw error;
      }
    }, text === null ? words.stopped_again : words.stopped);
  }

  // Shows what is being answered. A pair that was not chosen from is left with its first reply, as on the server.
  function begin(text) {
    const reply = bubble("it", words, "", { "aria-busy": "true" });
    const left = pending.map((pair) => two(pair, words, {}));
    list.replaceChildren(...dialogs.map(drawn), ...left, el("li", { class: "turn" }, bubble("you", words, text), reply));
    note.hidden = true;
    toEnd();
    return reply.querySelector("p");
  }

  async function say(method, path, body, text, signal) {
    const growing = begin(text);
    const whole = { ...body, sentiment: form.sentiment() };
    return kept(await stream(method, path, whole, signal, (piece) => growing.append(piece)), signal);
  }

  async function offer(text, signal) {
    begin(text);
    const made = await json("POST", `/api/rooms/${room}/choices`, { text, sentiment: form.sentiment() }, signal);
    if (made.answer) return kept(made.answer, signal);
    await refresh();
    if (signal.aborted) return null;
    show();
    list.querySelector(".two h2")?.focus({ preventScroll: true });
    return null;
  }

  async function choose(pair, name) {
    if (running) return;
    await run(async (signal) => {
      const dialog = await json("POST", `/api/choices/${pair.id}`, { choice: name }, signal);
      pending = pending.filter((one) => one !== pair);
      return kept({ dialog, ended: false }, signal);
    }, words.undone);
  }

  async function kept(answer, signal) {
    if (pending.length) await refresh();
    else dialogs.push(answer.dialog);
    if (signal.aborted) return null;
    ended ||= answer.ended;
    show(true);
    if (answer.introduction) list.firstChild.before(el("li", { class: "note" }, answer.introduction));
    trigger("said", { room });
    return answer.dialog.reply;
  }

  // Does something about this room; in another one nothing is shown of it.
  async function act(method, path, body, then) {
    const here = room;
    try {
      const told = await json(method, path, body);
      if (here !== room) return false;
      then(told);
      return true;
    } catch (error) {
      if (here === room) fail(error);
      return false;
    }
  }

  function dropOne(dialog) {
    return act("DELETE", `/api/dialogs/${dialog.id}`, undefined, () => {
      dialogs = dialogs.filter((one) => one !== dialog);
      show(true);
      trigger("said", { room });
    });
  }

  function rename(wanted) {
    return act("PATCH", `/api/rooms/${room}`, { title: wanted }, (changed) => {
      title = changed.title;
      foot.show(room, title, ended);
      status.textContent = words.renamed;
      trigger("said", { room });
    });
  }

  function endRoom() {
    return act("POST", `/api/rooms/${room}/end`, undefined, () => {
      ended = true;
      show();
      trigger("said", { room });
    });
  }

  function deleteRoom() {
    return act("DELETE", `/api/rooms/${room}`, undefined, () => trigger("gone", {}));
  }

  watch("value", load);
  load();
}
